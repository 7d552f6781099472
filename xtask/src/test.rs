//! `cargo xtask test`: all stages, a table, and the line that CI reads.

use std::time::{Duration, Instant};

use crate::command::interrupted;
use crate::common::Outcome;
use crate::setup;
use crate::stages::{Counts, STAGES};

/// Runs the stages; a stage that fails does not stop the others. Was all well?
pub(crate) fn test(args: &[String]) -> Outcome<bool> {
    let (quick, only) = options(args)?;
    setup::setup()?;
    let mut table: Vec<(&str, Duration, Counts)> = Vec::new();
    for stage in STAGES {
        if !only.is_empty() && !only.contains(&stage.name) {
            continue;
        }
        if interrupted() {
            break;
        }
        println!("\n=== {}: {}", stage.name, stage.what);
        let started = Instant::now();
        let counts = if quick && stage.slow {
            Counts::skipped(format!("stage {}: left out by --quick", stage.name))
        } else {
            (stage.run)().unwrap_or_else(|error| {
                println!("{}: {error}", stage.name);
                Counts::failed()
            })
        };
        table.push((stage.name, started.elapsed(), counts));
    }

    println!(
        "\n{:<10} {:>8} {:>8} {:>8} {:>8}",
        "stage", "time", "passed", "failed", "skipped"
    );
    let mut total = Counts::default();
    for (name, time, counts) in table {
        let skipped = counts.skips.len();
        let seconds = time.as_secs_f64();
        println!(
            "{name:<10} {seconds:>6.1} s {:>8} {:>8} {skipped:>8}",
            counts.passed, counts.failed
        );
        total.add(counts);
    }
    for reason in &total.skips {
        println!("skipped: {reason}");
    }
    if interrupted() {
        println!("interrupted: the remaining stages did not run");
        total.failed += 1;
    }
    // CI reads this line; nothing may come after it.
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed,
        total.failed,
        total.skips.len()
    );
    Ok(total.failed == 0)
}

fn options(args: &[String]) -> Outcome<(bool, Vec<&str>)> {
    let mut quick = false;
    let mut only = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--quick" => quick = true,
            "--only" => {
                let known = || STAGES.map(|stage| stage.name).join(", ");
                let name = rest
                    .next()
                    .ok_or_else(|| format!("--only wants one of: {}", known()))?;
                if !STAGES.iter().any(|stage| stage.name == name) {
                    return Err(format!("--only {name}: the stages are: {}", known()).into());
                }
                only.push(name.as_str());
            }
            _ => return Err(format!("unknown option `{arg}`").into()),
        }
    }
    Ok((quick, only))
}
