//! `cargo xtask bench [OPTION]...`

use std::path::Path;

use crate::common::{Driver, Outcome};

use super::cells::Mode;
use super::matrix::Level;
use super::tool::Cores;

/// What `--only` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The cells of one mode.
    Cells(Mode),
    /// Memory, threads and time of many ports, and of idle ones.
    Idle,
    /// Packets per second of two testpmd.
    Testpmd,
}

impl Part {
    const ALL: [(&'static str, Self); 6] = [
        ("one-core", Self::Cells(Mode::OneCore)),
        ("lock-step", Self::Cells(Mode::LockStep)),
        ("free-running", Self::Cells(Mode::FreeRunning)),
        ("instructions", Self::Cells(Mode::Instructions)),
        ("idle", Self::Idle),
        ("testpmd", Self::Testpmd),
    ];
}

/// Everything that can be asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Options {
    pub(super) level: Level,
    /// What we compare with.
    pub(super) base: Driver,
    /// Words that cells must have, with commas between; several add up.
    pub(super) filters: Vec<String>,
    /// Empty: all but the pairs of testpmd.
    pub(super) only: Vec<Part>,
    pub(super) rounds: Option<u32>,
    /// For each cell.
    pub(super) ms: u32,
    pub(super) cores: Cores,
    /// The files in `benches/results` are called so.
    pub(super) name: String,
    /// Write the tables of docs/performance.md.
    pub(super) docs: bool,
    /// Print the cells and leave.
    pub(super) list: bool,
}

impl Options {
    /// Reads the command line.
    pub(super) fn parse(args: &[String]) -> Outcome<Self> {
        let mut options = Self {
            level: Level::Usual,
            base: Driver::Stock,
            filters: Vec::new(),
            only: Vec::new(),
            rounds: None,
            ms: 80,
            cores: Cores {
                control: 0,
                measure: 1,
            },
            name: "latest".to_owned(),
            docs: false,
            list: false,
        };
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let mut value = || {
                let value = rest.next().map(String::as_str);
                value.ok_or_else(|| format!("{arg} wants a value"))
            };
            match arg.as_str() {
                "--quick" => options.level = Level::Quick,
                "--full" => options.level = Level::Full,
                "--docs" => options.docs = true,
                "--list" => options.list = true,
                "--vs" => options.base = driver(value()?)?,
                "--cell" => options.filters.push(value()?.to_owned()),
                "--only" => options.only.push(part(value()?)?),
                "--rounds" => options.rounds = Some(positive(arg, value()?)?),
                "--ms" => options.ms = positive(arg, value()?)?,
                "--cores" => options.cores = cores(value()?)?,
                "--name" => options.name = file_name(value()?)?,
                _ => return Err(format!("unknown option `{arg}`").into()),
            }
        }
        Ok(options)
    }

    /// Is this part of the benchmark wanted?
    pub(super) fn wants(&self, part: Part) -> bool {
        if !self.only.is_empty() {
            return self.only.contains(&part);
        }
        match part {
            Part::Cells(_) => true,
            Part::Idle => self.filters.is_empty(),
            Part::Testpmd => false,
        }
    }

    /// How often each cell is measured.
    pub(super) fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(match self.level {
            Level::Quick => 3,
            Level::Usual => 4,
            Level::Full => 7,
        })
    }
}

fn driver(name: &str) -> Outcome<Driver> {
    match name {
        "stock" => Ok(Driver::Stock),
        path => Driver::plugin(Path::new(path)),
    }
}

fn part(name: &str) -> Outcome<Part> {
    let known = Part::ALL.map(|(name, _)| name).join(", ");
    let found = Part::ALL.iter().find(|(known, _)| *known == name);
    found
        .map(|&(_, part)| part)
        .ok_or_else(|| format!("--only {name}: the parts are: {known}").into())
}

fn positive(option: &str, value: &str) -> Outcome<u32> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{option} {value}: wants a number above 0").into()),
    }
}

fn cores(value: &str) -> Outcome<Cores> {
    let parsed = value.split_once(',').and_then(|(control, measure)| {
        Some(Cores {
            control: control.parse().ok()?,
            measure: measure.parse().ok()?,
        })
    });
    match parsed {
        Some(cores) if cores.control != cores.measure => Ok(cores),
        _ => Err(format!("--cores {value}: wants two processors, CONTROL,MEASURE").into()),
    }
}

fn file_name(value: &str) -> Outcome<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match !value.is_empty() && value.chars().all(good) {
        true => Ok(value.to_owned()),
        false => Err(format!("--name {value}: wants letters, digits, - and _").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Outcome<Options> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&args)
    }

    #[test]
    fn all_options_are_read() {
        let line = "--quick --cell split,64x32 --cell packed --only lock-step --rounds 2 --ms 50 \
                    --cores 3,2 --name a-copy";

        let options = parse(line).expect("good options");

        assert_eq!(options.level, Level::Quick);
        assert_eq!(options.filters, ["split,64x32", "packed"]);
        assert!(options.wants(Part::Cells(Mode::LockStep)));
        assert!(!options.wants(Part::Cells(Mode::OneCore)) && !options.wants(Part::Idle));
        assert_eq!((options.rounds(), options.ms), (2, 50));
        assert_eq!(options.cores.measure, 2);
        assert_eq!(options.name, "a-copy");
    }

    #[test]
    fn wrong_options_are_refused() {
        for line in [
            "--fast",
            "--rounds",
            "--rounds 0",
            "--cores 1,1",
            "--only two-core",
            "--name ../x",
            "--vs /no/such/file.so",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
