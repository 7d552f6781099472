//! `cargo xtask bench`: our driver and the distribution's in turn, in the same pairs of testpmd.

use std::time::{Duration, Instant};

use crate::command::interrupted;
use crate::common::{Backend, Driver, Frontend, Lab, Outcome, PortStats, Testpmd, pair};
use crate::demo::serves;

use super::statistics::Summary;

/// A way to keep the pair busy, and what to count at the backend.
struct Case {
    name: &'static str,
    frontend: &'static [&'static str],
    backend: &'static [&'static str],
    count: fn(PortStats) -> u64,
}

const CASES: [Case; 4] = [
    Case {
        name: "64 bytes, loop",
        frontend: &["start"],
        backend: &["start tx_first 4"],
        count: |stats| stats.rx_packets + stats.tx_packets,
    },
    Case {
        name: "64 bytes, from the frontend",
        frontend: &["set fwd txonly", "start"],
        backend: &["set fwd rxonly", "start"],
        count: |stats| stats.rx_packets,
    },
    Case {
        name: "64 bytes, to the frontend",
        frontend: &["set fwd rxonly", "start"],
        backend: &["set fwd txonly", "start"],
        count: |stats| stats.tx_packets,
    },
    Case {
        name: "1518 bytes, loop",
        frontend: &["start"],
        backend: &["set txpkts 1518", "start tx_first 4"],
        count: |stats| stats.rx_packets + stats.tx_packets,
    },
];

const SECONDS: u32 = 2;

/// Measures and prints medians in Mpps.
pub(super) fn pairs(ours: &Driver, base: &Driver, rounds: u32) -> Outcome {
    let seconds = SECONDS;
    println!(
        "\n{rounds} rounds of {seconds} s, drivers in turn; median (lowest to highest) in Mpps"
    );
    println!("{:<30} {:>22} {:>22} {:>7}", "", "ours", "base", "ratio");
    for case in &CASES {
        let (mut of_ours, mut of_base) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            // Whatever drifts must not always meet the same driver first.
            for second in [false, true] {
                let is_ours = second == (round % 2 == 1);
                let driver = if is_ours { ours } else { base };
                let rate = measure(case, driver, seconds)?;
                if is_ours { &mut of_ours } else { &mut of_base }.push(rate);
            }
        }
        let summary = |rates: &[f64]| Summary::new(0.0, rates).ok_or("nothing was measured");
        let (of_ours, of_base) = (summary(&of_ours)?, summary(&of_base)?);
        println!(
            "{:<30} {:>22} {:>22} {:>7.2}",
            case.name,
            spread(&of_ours),
            spread(&of_base),
            of_ours.median / of_base.median
        );
    }
    Ok(())
}

/// One pair, one rate in Mpps.
fn measure(case: &Case, driver: &Driver, seconds: u32) -> Outcome<f64> {
    if interrupted() {
        return Err("interrupted".into());
    }
    let lab = Lab::new("bench")?;
    let backend = Backend {
        pinned: Some(0),
        ..Backend::server(driver, 1)
    };
    let frontend = Frontend {
        pinned: Some(1),
        ..Frontend::client(1)
    };
    let (mut back, mut front) = pair(&lab, &backend, &frontend)?;
    serves(driver, &mut back)?;
    run_all(&mut front, case.frontend)?;
    run_all(&mut back, case.backend)?;
    std::thread::sleep(Duration::from_millis(500));
    let (started, before) = (Instant::now(), back.stats(0)?);
    std::thread::sleep(Duration::from_secs(u64::from(seconds)));
    let (ended, after) = (Instant::now(), back.stats(0)?);
    front.quit()?;
    back.quit()?;
    lab.finish()?;
    let packets = (case.count)(after) - (case.count)(before);
    Ok(packets as f64 / (ended - started).as_secs_f64() / 1e6)
}

fn run_all(testpmd: &mut Testpmd, commands: &[&str]) -> Outcome {
    commands
        .iter()
        .try_for_each(|command| testpmd.run(command).map(|_| ()))
}

fn spread(rates: &Summary) -> String {
    let Summary {
        median,
        lowest,
        highest,
        ..
    } = rates;
    format!("{median:.2} ({lowest:.2} to {highest:.2})")
}
