//! What the tool printed, and what becomes of it.

use std::collections::BTreeMap;

use super::cells::{Cell, Flow, Mode, Setup};
use super::statistics::{Summary, median, quantile};

/// Which of the two drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// What we compare with.
    Base,
    /// The driver under test.
    Ours,
}

/// Which of the port's two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Rx,
    Tx,
    /// Packets per second that went through.
    Rate,
}

impl Direction {
    /// For tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rx => "rx",
            Self::Tx => "tx",
            Self::Rate => "rate",
        }
    }
}

/// Where the peer's processor was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Near,
    Far,
    Shared,
}

impl Place {
    const ALL: [Self; 3] = [Self::Near, Self::Far, Self::Shared];

    /// As the tool prints it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
            Self::Shared => "shared",
        }
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.name() == name)
    }
}

/// One direction of one cell in one process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) place: Place,
    /// The 10th percentile of the batches.
    pub(super) low: f64,
    /// Their median.
    pub(super) median: f64,
    /// There was no quiet moment.
    pub(super) noisy: bool,
}

/// One line `cell` of the tool's output.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) cell: Cell,
    pub(super) samples: Vec<(Direction, Sample)>,
}

/// The words `NAME=VALUE` of a line.
pub(super) fn value_of<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace();
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Reads a line of the tool; `None` for one that is not about a cell.
pub(super) fn parse_line(line: &str) -> Option<Line> {
    let rest = line.strip_prefix("cell ")?;
    let number = |name: &str| -> Option<f64> { value_of(rest, name)?.parse().ok() };
    let whole = |name: &str| -> Option<u32> { value_of(rest, name)?.parse().ok() };
    let flow = match value_of(rest, "flow") {
        Some("to-host") => Flow::ToHost,
        Some("to-guest") => Flow::ToGuest,
        _ => Flow::Forward,
    };
    let cell = Cell {
        size: whole("size")?,
        burst: whole("burst")?,
        flow,
    };
    let place = Place::of(value_of(rest, "place")?)?;
    let noisy = value_of(rest, "noisy") == Some("1");
    let sample = |low, median| {
        Some(Sample {
            place,
            low: number(low)?,
            median: number(median)?,
            noisy,
        })
    };
    let all = [
        (Direction::Rx, sample("rx_p10", "rx_median")),
        (Direction::Tx, sample("tx_p10", "tx_median")),
        (Direction::Rate, sample("mpps_p10", "mpps_median")),
    ];
    let samples = all.into_iter();
    Some(Line {
        cell,
        samples: samples
            .filter_map(|(direction, sample)| Some((direction, sample?)))
            .collect(),
    })
}

/// One direction of one cell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) setup: Setup,
    pub(super) cell: Cell,
    pub(super) direction: Direction,
}

impl Key {
    /// The direction, or which way packets went.
    pub(super) fn way(&self) -> &'static str {
        match self.direction {
            Direction::Rate => self.cell.flow.name(),
            direction => direction.name(),
        }
    }
}

/// The runs of both drivers in one direction of one cell.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Runs {
    base: Vec<Sample>,
    ours: Vec<Sample>,
}

/// Both drivers in one direction of one cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Comparison {
    pub(super) place: Place,
    pub(super) base: Summary,
    pub(super) ours: Summary,
    /// How many times faster ours is.
    pub(super) ratio: f64,
    /// One of the two was never measured in a quiet moment.
    pub(super) noisy: bool,
}

/// Which runs of both drivers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Quiet,
    Noisy,
    Any,
}

impl Kind {
    fn has(self, sample: &Sample) -> bool {
        match self {
            Self::Quiet => !sample.noisy,
            Self::Noisy => sample.noisy,
            Self::Any => true,
        }
    }
}

impl Runs {
    fn of(&self, side: Side, place: Place, kind: Kind) -> Vec<Sample> {
        let samples = match side {
            Side::Base => &self.base,
            Side::Ours => &self.ours,
        };
        let samples = samples.iter().filter(|sample| sample.place == place);
        samples.filter(|sample| kind.has(sample)).copied().collect()
    }

    /// How many runs of a kind the driver with fewer of them has in one place.
    fn of_both(&self, place: Place, kind: Kind) -> usize {
        let count = |side| self.of(side, place, kind).len();
        count(Side::Base).min(count(Side::Ours))
    }

    /// How many quiet runs the driver with fewer of them has in one place.
    pub(super) fn comparable(&self, place: Place) -> usize {
        self.of_both(place, Kind::Quiet)
    }

    /// The quietest kind of which both drivers have runs: a quiet one of the one says nothing beside
    /// noisy ones of the other.
    fn kind(&self, place: Place) -> Kind {
        let has = |kind: &Kind| self.of_both(place, *kind) != 0;
        let kinds = [Kind::Quiet, Kind::Noisy];
        kinds.into_iter().find(has).unwrap_or(Kind::Any)
    }

    /// Compares where both drivers were measured most often.
    pub(super) fn compare(&self, mode: Mode) -> Option<Comparison> {
        let place = Place::ALL.into_iter().rev().max_by_key(|&place| {
            let count = |kind| self.of_both(place, kind);
            (count(Kind::Quiet), count(Kind::Noisy), count(Kind::Any))
        })?;
        let kind = self.kind(place);
        let summary = |side| summarize(mode, &self.of(side, place, kind));
        let (base, ours) = (summary(Side::Base)?, summary(Side::Ours)?);
        // A processor that somebody else had all the time moved nothing.
        if base.value <= 0.0 || ours.value <= 0.0 {
            return None;
        }
        let ratio = match mode {
            Mode::FreeRunning => ours.value / base.value,
            _ => base.value / ours.value,
        };
        Some(Comparison {
            place,
            base,
            ours,
            ratio,
            noisy: kind != Kind::Quiet,
        })
    }
}

/// Disturbances only ever add on one core; between cores, where lines happen to be matters, too.
fn summarize(mode: Mode, samples: &[Sample]) -> Option<Summary> {
    let lows: Vec<f64> = samples.iter().map(|sample| sample.low).collect();
    let medians: Vec<f64> = samples.iter().map(|sample| sample.median).collect();
    let value = match mode {
        Mode::OneCore | Mode::Instructions => quantile(&lows, 0, 1),
        Mode::LockStep => quantile(&medians, 1, 4),
        Mode::FreeRunning => median(&medians),
    };
    Summary::new(value?, &medians)
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(super) struct Results {
    runs: BTreeMap<Key, Runs>,
}

impl Results {
    /// Adds what one process printed about one cell.
    pub(super) fn add(&mut self, setup: &Setup, side: Side, line: Line) {
        for (direction, sample) in line.samples {
            let key = Key {
                setup: setup.clone(),
                cell: line.cell,
                direction,
            };
            let runs = self.runs.entry(key).or_default();
            match side {
                Side::Base => runs.base.push(sample),
                Side::Ours => runs.ours.push(sample),
            }
        }
    }

    /// All that can be compared, set-up by set-up.
    pub(super) fn comparisons(&self) -> Vec<(&Key, Comparison)> {
        let runs = self.runs.iter();
        runs.filter_map(|(key, runs)| Some((key, runs.compare(key.setup.mode)?)))
            .collect()
    }

    /// Does a cell of this set-up want more runs?
    pub(super) fn is_thin(&self, setup: &Setup, cells: &[Cell]) -> bool {
        if setup.mode == Mode::Instructions {
            return false;
        }
        let runs = self.runs.iter();
        runs.filter(|(key, _)| key.setup == *setup && cells.contains(&key.cell))
            .any(|(_, runs)| {
                let places = Place::ALL.into_iter();
                places.map(|place| runs.comparable(place)).max() < Some(2)
            })
    }
}

/// One result, for the tests of what is written.
#[cfg(test)]
pub(super) mod tests_support {
    use super::super::Context;
    use super::super::machine::Machine;
    use super::*;

    pub(in super::super) fn one_comparison() -> (Key, Comparison) {
        let key = Key {
            setup: Setup::plain(Mode::OneCore, false),
            cell: Cell::new(64, 32),
            direction: Direction::Rx,
        };
        let base = Summary {
            value: 70.0,
            median: 71.0,
            lowest: 70.5,
            highest: 73.0,
            runs: 4,
        };
        let ours = Summary {
            value: 35.0,
            median: 36.0,
            lowest: 35.5,
            highest: 37.0,
            runs: 4,
        };
        let comparison = Comparison {
            place: Place::Near,
            base,
            ours,
            ratio: 2.0,
            noisy: false,
        };
        (key, comparison)
    }

    pub(in super::super) fn context() -> Context {
        Context {
            machine: Machine {
                date: "2026-01-01 00:00 UTC".to_owned(),
                processor: "a & b".to_owned(),
                processors: 2,
                kernel: "6.1".to_owned(),
                dpdk: "22.11".to_owned(),
                commit: "0123abc".to_owned(),
                memory: "huge pages",
                cores: "measured on 1".to_owned(),
            },
            ours: "ours".to_owned(),
            base: "stock".to_owned(),
            rounds: 4,
            ms: 100,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "cell size=64 burst=32 rx_p10=34.31 rx_median=34.65 tx_p10=33.27 \
                        tx_median=33.58 batches=906 dropped=172 noisy=0 place=near";

    fn sample(place: Place, low: f64, median: f64, noisy: bool) -> Sample {
        Sample {
            place,
            low,
            median,
            noisy,
        }
    }

    #[test]
    fn a_line_of_the_tool_is_two_samples() {
        let line = parse_line(LINE);

        let expected = Line {
            cell: Cell::new(64, 32),
            samples: vec![
                (Direction::Rx, sample(Place::Near, 34.31, 34.65, false)),
                (Direction::Tx, sample(Place::Near, 33.27, 33.58, false)),
            ],
        };
        assert_eq!(line, Some(expected));
    }

    #[test]
    fn other_lines_are_not_about_cells() {
        assert_eq!(parse_line("cell-end packets=1 partial=0"), None);
        assert_eq!(parse_line("driver path=/usr/lib/x.so"), None);
        assert_eq!(parse_line("cell size=64"), None);
        assert_eq!(
            value_of("driver path=/usr/lib/x.so", "path"),
            Some("/usr/lib/x.so")
        );
    }

    #[test]
    fn one_core_takes_the_lowest_quiet_run_and_two_cores_the_lower_quartile() {
        let runs = Runs {
            base: vec![
                sample(Place::Near, 70.0, 72.0, false),
                sample(Place::Near, 60.0, 90.0, true),
                sample(Place::Near, 80.0, 84.0, false),
            ],
            ours: vec![sample(Place::Near, 35.0, 36.0, false)],
        };

        let one = runs.compare(Mode::OneCore).map(|compared| compared.ratio);
        let two = runs.compare(Mode::LockStep).map(|compared| compared.ratio);

        assert_eq!(one, Some(2.0));
        assert_eq!(two, Some(75.0 / 36.0));
    }

    #[test]
    fn quiet_runs_are_not_compared_with_noisy_ones() {
        let quiet = sample(Place::Near, 70.0, 72.0, false);
        let noisy = |low| sample(Place::Near, low, low, true);
        let with = |ours| {
            let base = vec![quiet, noisy(90.0)];
            let compared = Runs { base, ours }.compare(Mode::OneCore);
            compared.map(|compared| (compared.ratio, compared.noisy))
        };

        assert_eq!(with(vec![noisy(45.0)]), Some((2.0, true)));
        assert_eq!(with(vec![noisy(45.0), quiet]), Some((1.0, false)));
        let all_quiet = Runs {
            base: vec![quiet],
            ours: vec![noisy(140.0)],
        };
        let compared = all_quiet.compare(Mode::OneCore);
        assert_eq!(
            compared.map(|compared| (compared.ratio, compared.noisy)),
            Some((0.5, true))
        );
    }

    #[test]
    fn more_packets_per_second_are_a_ratio_above_one() {
        let runs = Runs {
            base: vec![sample(Place::Near, 9.0, 10.0, false)],
            ours: vec![sample(Place::Near, 14.0, 15.0, false)],
        };

        let ratio = runs
            .compare(Mode::FreeRunning)
            .map(|compared| compared.ratio);

        assert_eq!(ratio, Some(1.5));
    }

    #[test]
    fn only_runs_in_the_same_place_are_compared() {
        let runs = Runs {
            base: vec![
                sample(Place::Near, 100.0, 100.0, false),
                sample(Place::Far, 400.0, 400.0, false),
            ],
            ours: vec![sample(Place::Far, 200.0, 200.0, false)],
        };

        let compared = runs.compare(Mode::LockStep);

        assert_eq!(
            compared.map(|compared| (compared.place, compared.ratio)),
            Some((Place::Far, 2.0))
        );
    }

    #[test]
    fn a_cell_with_one_quiet_run_wants_more() {
        let setup = Setup::plain(Mode::OneCore, false);
        let cells = [Cell::new(64, 32)];
        let mut results = Results::default();
        for side in [Side::Base, Side::Ours] {
            results.add(&setup, side, parse_line(LINE).expect("a line"));
        }
        assert!(results.is_thin(&setup, &cells));

        for side in [Side::Base, Side::Ours] {
            results.add(&setup, side, parse_line(LINE).expect("a line"));
        }
        assert!(!results.is_thin(&setup, &cells));
        assert_eq!(results.comparisons().len(), 2);
    }
}
