//! What ports cost that move no packets: memory, threads, descriptors, time.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use crate::command::{interrupted, root, run_quietly};
use crate::common::{Driver, Outcome};

use super::matrix::Level;
use super::results::value_of;
use super::statistics::median;
use super::tool::{Tool, compile};

/// DPDK has numbers for 32 ports in a process; more of them are spread over processes of as many.
const IN_ONE_PROCESS: u32 = 25;

/// What some processes of one driver do at the same time.
struct Case {
    name: &'static str,
    arguments: &'static [&'static str],
    processes: u32,
    /// What sums are divided by: ports, or how often one was opened.
    count: f64,
    figures: &'static [Figure],
}

/// A line of the table: a value of a phase, less that of the phase before any port was there.
struct Figure {
    name: &'static str,
    phase: &'static str,
    value: &'static str,
    of: Of,
}

/// How the values of all processes become one.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    /// For each port.
    Port,
    /// For each port, beyond what was there before.
    PortMore,
    /// Altogether, beyond what was there before.
    More,
    /// The mean of the processes.
    Process,
}

const fn figure(name: &'static str, phase: &'static str, value: &'static str, of: Of) -> Figure {
    Figure {
        name,
        phase,
        value,
        of,
    }
}

const PORTS: &[Figure] = &[
    figure("to start a port, ms", "started", "ms", Of::Port),
    figure("processor time of that, ms", "started", "cpu_ms", Of::Port),
    figure(
        "resident memory of a port, KB",
        "started",
        "rss_kb",
        Of::PortMore,
    ),
    figure(
        "DPDK's heap of a port, KB",
        "started",
        "heap_kb",
        Of::PortMore,
    ),
    figure("threads of a port", "started", "threads", Of::PortMore),
    figure("descriptors of a port", "started", "fds", Of::PortMore),
    figure(
        "idle, % of a processor",
        "started",
        "cpu_percent",
        Of::Process,
    ),
    figure("to close a port, ms", "closed", "ms", Of::Port),
];

const CONNECTED: &[Figure] = &[
    figure("until the link is up, ms", "connected", "ms", Of::Port),
    figure(
        "processor time of that, ms",
        "connected",
        "cpu_ms",
        Of::Port,
    ),
    figure(
        "resident memory of a port, KB",
        "connected",
        "rss_kb",
        Of::PortMore,
    ),
    figure(
        "DPDK's heap of a port, KB",
        "connected",
        "heap_kb",
        Of::PortMore,
    ),
    figure("threads of a port", "connected", "threads", Of::PortMore),
    figure("descriptors of a port", "connected", "fds", Of::PortMore),
    figure(
        "idle, % of a processor",
        "connected",
        "cpu_percent",
        Of::Process,
    ),
    figure("descriptors left after close", "closed", "fds", Of::More),
];

const LOCKED: &[Figure] = &[figure(
    "resident memory of a port, KB",
    "started",
    "rss_kb",
    Of::PortMore,
)];

const CHURN: &[Figure] = &[
    figure("to open and close it, ms", "churned", "ms", Of::Port),
    figure("resident memory left, KB", "churned", "rss_kb", Of::More),
    figure("DPDK's heap left, KB", "churned", "heap_kb", Of::More),
    figure("threads left", "churned", "threads", Of::More),
    figure("descriptors left", "churned", "fds", Of::More),
];

const INTERRUPTS: &[Figure] = &[
    figure(
        "no packets, % of a processor",
        "idle",
        "cpu_percent",
        Of::Process,
    ),
    figure(
        "100 a second, % of a processor",
        "sparse",
        "cpu_percent",
        Of::Process,
    ),
    figure("a packet waits, us", "sparse", "wait_us", Of::Process),
];

/// What is left after that many ports came and went must be nothing.
const CHURNED: u32 = 1000;

fn cases(level: Level) -> Vec<Case> {
    let case = |name, arguments, processes, count: u32, figures| Case {
        name,
        arguments,
        processes,
        count: f64::from(count),
        figures,
    };
    let mut cases = vec![
        case("1 port", &["ports=1"], 1, 1, PORTS),
        case("32 ports", &["ports=32"], 1, 32, PORTS),
        case(
            "32 ports, frontends",
            &["ports=32", "connected=1"],
            1,
            32,
            CONNECTED,
        ),
        case(
            "32 ports, mlockall",
            &["ports=32", "locked=1"],
            1,
            32,
            LOCKED,
        ),
        case("1 port, 1000 times", &["churn=1000"], 1, CHURNED, CHURN),
        case("interrupts", &["interrupt=1"], 1, 1, INTERRUPTS),
    ];
    if level != Level::Quick {
        for (name, count) in [("100 ports", 100), ("1000 ports", 1000)] {
            let processes = count / IN_ONE_PROCESS;
            cases.push(case(name, &["ports=25"], processes, count, PORTS));
        }
    }
    cases
}

/// Both drivers in one line of the table.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) case: &'static str,
    pub(super) figure: &'static str,
    pub(super) base: f64,
    pub(super) ours: f64,
}

impl Row {
    /// Is ours worse by more than measuring explains?
    pub(super) fn is_worse(&self) -> bool {
        self.ours > self.base * 1.15 + 0.02
    }
}

/// Measures all cases, prints them, and returns what was printed.
pub(super) fn measure(
    tool: &Tool,
    base: &Driver,
    ours: &Driver,
    level: Level,
) -> Outcome<Vec<Row>> {
    let program = compile("scale", &root().join("benches/scale"))?;
    let mut rows = Vec::new();
    println!("\n{:<20} {:<34} {:>10} {:>10}", "idle", "", "A", "B");
    for case in cases(level) {
        let mut values: [Vec<Vec<f64>>; 2] = [Vec::new(), Vec::new()];
        let rounds = match (case.processes, level) {
            (1, Level::Usual | Level::Full) => 3,
            _ => 1,
        };
        for _ in 0..rounds {
            for (driver, values) in [base, ours].into_iter().zip(&mut values) {
                if interrupted() {
                    return Err("interrupted".into());
                }
                values.push(run(tool, &program, driver, &case)?);
            }
        }
        for (at, figure) in case.figures.iter().enumerate() {
            let of = |rounds: &[Vec<f64>]| {
                let values: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
                median(&values).unwrap_or(0.0)
            };
            let row = Row {
                case: case.name,
                figure: figure.name,
                base: of(&values[0]),
                ours: of(&values[1]),
            };
            println!(
                "{:<20} {:<34} {:>10.3} {:>10.3} {}",
                row.case,
                row.figure,
                row.base,
                row.ours,
                if row.is_worse() { "worse" } else { "" }
            );
            rows.push(row);
        }
    }
    Ok(rows)
}

/// One driver, once: its figures.
fn run(tool: &Tool, program: &std::path::Path, driver: &Driver, case: &Case) -> Outcome<Vec<f64>> {
    let cores = tool.cores();
    let texts: Vec<Outcome<String>> = thread::scope(|scope| {
        let processes: Vec<_> = (0..case.processes)
            .map(|_| {
                scope.spawn(|| {
                    let mut command = tool.command(program, driver);
                    command
                        .args(case.arguments)
                        .arg(format!("control={}", cores.control))
                        .arg(format!("measure={}", cores.measure));
                    let finished = run_quietly(command, Duration::from_secs(300))?;
                    match finished.success {
                        true => Ok(finished.text),
                        false => {
                            let last = finished.text.lines().last().unwrap_or("died silently");
                            Err(format!("{}: {last}", case.name).into())
                        }
                    }
                })
            })
            .collect();
        let joined = processes.into_iter().map(|process| process.join());
        joined
            .map(|text| text.unwrap_or_else(|_| Err("a thread of ours panicked".into())))
            .collect()
    });
    let texts = texts.into_iter().collect::<Outcome<Vec<String>>>()?;
    Ok(figures(case, &texts))
}

/// The figures of a case from what its processes printed.
fn figures(case: &Case, texts: &[String]) -> Vec<f64> {
    let mut sums: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for line in texts.iter().flat_map(|text| text.lines()) {
        let Some(phase) = value_of(line, "phase") else {
            continue;
        };
        let pairs = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='));
        for (name, value) in pairs.filter_map(|(name, value)| Some((name, value.parse().ok()?))) {
            let value: f64 = value;
            *sums.entry((phase, name)).or_default() += value;
        }
    }
    let sum = |phase, name| sums.get(&(phase, name)).copied().unwrap_or(0.0);
    let one = |figure: &Figure| {
        let value = sum(figure.phase, figure.value);
        let more = value - sum("before", figure.value);
        match figure.of {
            Of::Port => value / case.count,
            Of::PortMore => more / case.count,
            Of::More => more,
            Of::Process => value / f64::from(case.processes),
        }
    };
    case.figures.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_for_each_port_over_all_processes() {
        let case = Case {
            name: "4 ports",
            arguments: &[],
            processes: 2,
            count: 4.0,
            figures: PORTS,
        };
        let text = "state phase=before ms=0 cpu_ms=0 rss_kb=100 heap_kb=10 threads=2 fds=5\n\
                    state phase=started ms=8.0 cpu_ms=4 rss_kb=140 heap_kb=30 threads=4 fds=9\n\
                    idle phase=started cpu_percent=0.5\n\
                    state phase=closed ms=2 cpu_ms=1 rss_kb=120 heap_kb=10 threads=2 fds=5\n";

        let figures = figures(&case, &[text.to_owned(), text.to_owned()]);

        assert_eq!(figures, [4.0, 2.0, 20.0, 10.0, 1.0, 2.0, 0.5, 1.0]);
    }

    #[test]
    fn small_differences_are_not_worse() {
        let row = |base, ours| Row {
            case: "1 port",
            figure: "x",
            base,
            ours,
        };

        assert!(!row(1.0, 1.1).is_worse() && !row(0.0, 0.01).is_worse());
        assert!(row(1.0, 1.3).is_worse() && row(0.0, 1.0).is_worse());
    }
}
