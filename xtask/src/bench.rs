//! `cargo xtask bench`: our driver and the distribution's in turn, in the same pairs of testpmd.

use std::time::{Duration, Instant};

use crate::command::interrupted;
use crate::common::{Backend, Driver, Frontend, Lab, Outcome, PortStats, Testpmd, pair};
use crate::demo::{built_driver, serves};
use crate::{number_option, setup};

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

/// Measures and prints medians in Mpps.
pub(crate) fn bench(args: &[String]) -> Outcome {
    let rounds = number_option(args, "--rounds", 5)?;
    let seconds = number_option(args, "--seconds", 2)?;
    setup::machine()?;
    let ours = built_driver()?;
    println!(
        "\n{rounds} rounds of {seconds} s, drivers in turn; median (lowest to highest) in Mpps"
    );
    println!("{:<30} {:>22} {:>22} {:>7}", "", "ours", "stock", "ratio");
    for case in &CASES {
        let (mut of_ours, mut of_stock) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            // Whatever drifts must not always meet the same driver first.
            for second in [false, true] {
                let is_ours = second == (round % 2 == 1);
                let driver = if is_ours { &ours } else { &Driver::Stock };
                let rate = measure(case, driver, seconds)?;
                if is_ours { &mut of_ours } else { &mut of_stock }.push(rate);
            }
        }
        let ratio = median(&mut of_ours) / median(&mut of_stock);
        println!(
            "{:<30} {:>22} {:>22} {ratio:>7.2}",
            case.name,
            spread(&mut of_ours),
            spread(&mut of_stock)
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

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    let middle = rates.len() / 2;
    match rates.len() % 2 {
        0 => (rates[middle - 1] + rates[middle]) / 2.0,
        _ => rates[middle],
    }
}

fn spread(rates: &mut [f64]) -> String {
    let median = median(rates);
    let (lowest, highest) = (rates[0], rates[rates.len() - 1]);
    format!("{median:.2} ({lowest:.2} to {highest:.2})")
}
