//! The tables on the screen.

use std::collections::BTreeMap;

use super::Context;
use super::cells::{Mode, Setup};
use super::results::{Comparison, Key};
use super::statistics::{Summary, geometric_mean};
use super::targets::{FLOOR, counts_for_mean, mean_target, target};

const HELP: &str = "\
One core and lock step: core cycles per packet; instructions:
those per packet; free running: millions of packets per second. In brackets the median of the runs
and half their spread. `-`: below its target, `!`: below 1.0, `~`: never a quiet moment; (near),
(far), (shared): where the peer's processor was.";

/// The cells, the summary by target, and the means.
pub(super) fn print(context: &Context, comparisons: &[(&Key, Comparison)]) {
    println!(
        "\n{} rounds, {} ms a cell. {HELP}",
        context.rounds, context.ms
    );
    let mut last: Option<&Setup> = None;
    for (key, comparison) in comparisons {
        if last != Some(&key.setup) {
            println!("\n{}", key.setup);
            println!("{:<20} {:>27} {:>27} {:>6}", "", "A", "B", "ratio");
        }
        last = Some(&key.setup);
        println!("{}", line(key, comparison));
    }
    print_targets(comparisons);
    print_means(comparisons);
}

fn line(key: &Key, comparison: &Comparison) -> String {
    let target = target(&key.setup, &key.cell, key.direction);
    let mark = match comparison.ratio {
        ratio if ratio < FLOOR => "!",
        ratio if ratio < target.ratio => "-",
        _ => " ",
    };
    format!(
        "{:<20} {:>27} {:>27} {:>6.2} {mark}{} (target {:.2}){}",
        format!("{} {}", key.cell, key.way()),
        numbers(&comparison.base),
        numbers(&comparison.ours),
        comparison.ratio,
        if comparison.noisy { "~" } else { " " },
        target.ratio,
        match key.setup.mode {
            Mode::OneCore | Mode::Instructions => String::new(),
            Mode::LockStep | Mode::FreeRunning => format!(" ({})", comparison.place.name()),
        }
    )
}

fn numbers(summary: &Summary) -> String {
    let Summary { value, median, .. } = summary;
    format!(
        "{value:.1} ({median:.1} ±{:.0}%)",
        summary.spread_percent() / 2.0
    )
}

/// All cells of a mode that have one target.
pub(super) struct Row {
    pub(super) mode: Mode,
    pub(super) name: &'static str,
    pub(super) target: f64,
    pub(super) cells: usize,
    pub(super) missed: usize,
    pub(super) lowest: f64,
    /// Geometric.
    pub(super) mean: f64,
}

/// The ratios by mode and target.
pub(super) fn rows(comparisons: &[(&Key, Comparison)]) -> Vec<Row> {
    let mut rows: BTreeMap<(Mode, &str), (f64, Vec<f64>)> = BTreeMap::new();
    for (key, comparison) in comparisons {
        let target = target(&key.setup, &key.cell, key.direction);
        let row = rows.entry((key.setup.mode, target.row)).or_default();
        row.0 = target.ratio;
        row.1.push(comparison.ratio);
    }
    let rows = rows.into_iter();
    rows.map(|((mode, name), (target, ratios))| Row {
        mode,
        name,
        target,
        cells: ratios.len(),
        missed: ratios.iter().filter(|&&ratio| ratio < target).count(),
        lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
        mean: geometric_mean(&ratios).unwrap_or(f64::NAN),
    })
    .collect()
}

fn print_targets(comparisons: &[(&Key, Comparison)]) {
    println!(
        "\n{:<14} {:<34} {:>6} {:>6} {:>7} {:>7} {:>7}",
        "", "by target", "target", "cells", "missed", "lowest", "mean"
    );
    for row in rows(comparisons) {
        println!(
            "{:<14} {:<34} {:>6.2} {:>6} {:>7} {:>7.2} {:>7.2}",
            row.mode.name(),
            row.name,
            row.target,
            row.cells,
            row.missed,
            row.lowest,
            row.mean
        );
    }
    let below = comparisons.iter().filter(|(_, found)| found.ratio < FLOOR);
    println!("\n{} of {} below 1.0", below.count(), comparisons.len());
}

/// The geometric means of the ratios that count, by mode.
pub(super) fn means(comparisons: &[(&Key, Comparison)]) -> Vec<(Mode, f64)> {
    let mean = |mode| {
        let counted = comparisons
            .iter()
            .filter(|(key, _)| key.setup.mode == mode && counts_for_mean(&key.setup, &key.cell));
        let ratios: Vec<f64> = counted.map(|(_, comparison)| comparison.ratio).collect();
        Some((mode, geometric_mean(&ratios)?))
    };
    [Mode::OneCore, Mode::LockStep]
        .into_iter()
        .filter_map(mean)
        .collect()
}

fn print_means(comparisons: &[(&Key, Comparison)]) {
    for (mode, mean) in means(comparisons) {
        let target = mean_target(mode).unwrap_or(FLOOR);
        println!(
            "geometric mean, {}, 64 to 1518 bytes, bursts of 4 to 64: {mean:.3} (target {target:.1})",
            mode.name()
        );
    }
}
