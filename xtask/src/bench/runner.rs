//! Runs the groups, drivers in turn, round by round.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::command::interrupted;
use crate::common::{Driver, Outcome};

use super::cells::{Group, Mode};
use super::matrix::Level;
use super::options::Options;
use super::results::{Results, Side};
use super::tool::Tool;

/// The results, how many rounds there were, and what went wrong in them. A group whose runs were noisy, or in different places, is repeated while there is time.
pub(super) fn run_all(
    tool: &Tool,
    ours: &Driver,
    options: &Options,
    groups: &[Group],
) -> Outcome<(Results, u32, Vec<String>)> {
    let mut runner = Runner {
        tool,
        drivers: [(Side::Base, &options.base), (Side::Ours, ours)],
        ms: options.ms,
        blocks: BTreeMap::new(),
        results: Results::default(),
        failures: Vec::new(),
    };
    let started = Instant::now();
    // Leaves time for the other parts; --full takes what it takes.
    let limit = match options.level {
        Level::Quick => Duration::from_secs(4 * 60),
        Level::Usual => Duration::from_secs(21 * 60),
        Level::Full => Duration::MAX,
    };
    let rounds = match groups.is_empty() {
        true => 0,
        false => options.rounds(),
    };
    let mut done = 0;
    for round in 0..rounds {
        let round_started = Instant::now();
        for group in groups {
            // Instructions are the same each time.
            if round == 0 || group.setup.mode != Mode::Instructions {
                runner.pair(group, round % 2 == 1)?;
            }
        }
        done += 1;
        let (took, total) = (round_started.elapsed(), started.elapsed());
        println!("round {} of {rounds}: {} s", round + 1, took.as_secs());
        if round + 1 < rounds && total.saturating_add(took) > limit {
            println!("no time for the other rounds");
            break;
        }
    }
    for group in groups {
        for again in 0..2 {
            let thin = runner.results.is_thin(&group.setup, &group.cells);
            if rounds > 1 && thin && started.elapsed() < limit {
                runner.pair(group, again == 1)?;
            }
        }
    }
    Ok((runner.results, done, runner.failures))
}

struct Runner<'a> {
    tool: &'a Tool,
    drivers: [(Side, &'a Driver); 2],
    ms: u32,
    /// The quietest block of additions of each mode.
    blocks: BTreeMap<Mode, f64>,
    results: Results,
    failures: Vec<String>,
}

impl Runner<'_> {
    /// Both drivers, each in a fresh process. Whatever drifts must not always meet the same one first.
    fn pair(&mut self, group: &Group, ours_first: bool) -> Outcome {
        let mut order = self.drivers;
        if ours_first {
            order.reverse();
        }
        for (side, driver) in order {
            if interrupted() {
                return Err("interrupted".into());
            }
            let block = self.blocks.get(&group.setup.mode).copied();
            let report = match self.tool.run(driver, group, self.ms, block) {
                Ok(report) => report,
                // The rest is worth having.
                Err(error) => {
                    println!("{side:?}: {error}");
                    self.failures.push(error.to_string());
                    continue;
                }
            };
            for line in report.lines {
                self.results.add(&group.setup, side, line);
            }
            if let Some(block) = report.block {
                self.blocks.insert(group.setup.mode, block);
            }
        }
        Ok(())
    }
}
