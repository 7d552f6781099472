//! The short tables of docs/performance.md.

use std::fmt::Write;

use super::Context;
use super::cells::{Cell, Checksum, Flow, Mode, Setup};
use super::report::{means, rows};
use super::results::{Comparison, Direction, Key};
use super::targets::{FLOOR, mean_target};

/// What stands between these lines in docs/performance.md is ours.
const BEGIN: &str = "<!-- cargo xtask bench --docs writes from here -->";
const END: &str = "<!-- to here -->";

/// The rows: bursts of plain packets, then what is special.
const ROWS: [(u32, u32, Checksum, &str); 14] = [
    (64, 1, Checksum::Plain, "64 B, burst 1"),
    (64, 4, Checksum::Plain, "64 B, burst 4"),
    (64, 32, Checksum::Plain, "64 B, burst 32"),
    (256, 32, Checksum::Plain, "256 B, burst 32"),
    (512, 32, Checksum::Plain, "512 B, burst 32"),
    (1518, 32, Checksum::Plain, "1518 B, burst 32"),
    (9000, 32, Checksum::Plain, "9000 B, burst 32"),
    (1518, 32, Checksum::Software, "1518 B, checksum in software"),
    (1518, 32, Checksum::Passed, "1518 B, checksum passed on"),
    (64, 32, Checksum::Ip, "64 B, IPv4 header's checksum made"),
    (
        1518,
        32,
        Checksum::Ip,
        "1518 B, IPv4 header's checksum made",
    ),
    (64, 32, Checksum::Ipv6, "64 B, IPv6, checksum passed on"),
    (
        64,
        32,
        Checksum::Unsummed,
        "64 B, guest takes no partial checksum",
    ),
    (0, 32, Checksum::Plain, "empty poll"),
];

/// The tables of the cells that a reader looks for: one queue of 256, mergeable buffers.
pub(super) fn tables(context: &Context, comparisons: &[(&Key, Comparison)]) -> String {
    let mut text = format!("{}\n", context.machine);
    for (mode, title, unit) in [
        (Mode::OneCore, "One core, warm caches", "Core cycles"),
        (Mode::LockStep, "Two cores in lock step", "Core cycles"),
        (Mode::Instructions, "Instructions", "Instructions"),
    ] {
        let mut rows = String::new();
        for (size, burst, checksum, name) in ROWS {
            let cells = [false, true].map(|packed| {
                [Direction::Rx, Direction::Tx].map(|direction| {
                    let key = Key {
                        setup: Setup {
                            checksum,
                            ..Setup::plain(mode, packed)
                        },
                        cell: Cell::new(size, burst),
                        direction,
                    };
                    entry(comparisons, &key)
                })
            });
            let cells = cells.concat();
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(rows, "| {name} | {} |", cells.join(" | "));
            }
        }
        if rows.is_empty() {
            continue;
        }
        let _ = write!(
            text,
            "\n### {title}\n\n{unit} per packet, {} → {} (ratio).\n\n\
             | | split rx | split tx | packed rx | packed tx |\n|---|---|---|---|---|\n",
            context.base, context.ours
        );
        text.push_str(&rows);
    }
    text.push_str(&by_target(comparisons));
    text.push_str(&means_and_rates(context, comparisons));
    text
}

/// What became of each target in all set-ups that were measured, and which cells are slower.
fn by_target(comparisons: &[(&Key, Comparison)]) -> String {
    let mut text = "\n### All set-ups\n\nRatios by what they are to be.\n\n\
                    | | cells | wanted | lowest | geometric mean | missed |\n|---|---|---|---|---|---|\n"
        .to_owned();
    let rows = rows(comparisons);
    for row in rows.iter().filter(|row| row.mode != Mode::Instructions) {
        let _ = writeln!(
            text,
            "| {}, {} | {} | {} | {:.2} | {:.2} | {} |",
            row.mode.name(),
            row.name,
            row.cells,
            row.target,
            row.lowest,
            row.mean,
            row.missed
        );
    }
    let below: Vec<String> = comparisons
        .iter()
        .filter(|(key, found)| key.setup.mode != Mode::Instructions && found.ratio < FLOOR)
        .map(|(key, found)| {
            let noisy = if found.noisy { " ~" } else { "" };
            let (setup, cell, way) = (&key.setup, &key.cell, key.way());
            format!("- {setup}, {cell} {way}: {:.2}{noisy}\n", found.ratio)
        })
        .collect();
    if !below.is_empty() {
        let _ = write!(text, "\nBelow 1.0:\n\n{}", below.concat());
    }
    text
}

fn means_and_rates(context: &Context, comparisons: &[(&Key, Comparison)]) -> String {
    let mut text = String::new();
    for (mode, mean) in means(comparisons) {
        let target = mean_target(mode).unwrap_or(1.0);
        let _ = write!(
            text,
            "\nGeometric mean of all set-ups, 64 to 1518 bytes, bursts of 4 to 64, {}: {mean:.2} \
             (target {target:.1}).\n",
            mode.name()
        );
    }
    let _ = write!(
        text,
        "\n### Two cores, free running\n\nMillions of packets per second, {} → {} (ratio).\n\n\
         | | split | packed | packed, vectorised frontend |\n|---|---|---|---|\n",
        context.base, context.ours
    );
    let plain = |packed| Setup::plain(Mode::FreeRunning, packed);
    let vectorized = Setup {
        mergeable: false,
        in_order: true,
        vectorized: true,
        ..plain(true)
    };
    for (size, flow) in [
        (64, Flow::Forward),
        (64, Flow::ToHost),
        (64, Flow::ToGuest),
        (1518, Flow::Forward),
    ] {
        let cells = [plain(false), plain(true), vectorized.clone()].map(|setup| {
            let key = Key {
                setup,
                cell: Cell {
                    flow,
                    ..Cell::new(size, 32)
                },
                direction: Direction::Rate,
            };
            entry(comparisons, &key)
        });
        if cells.iter().any(|cell| !cell.is_empty()) {
            let _ = writeln!(
                text,
                "| {size} B, {} | {} |",
                flow.name(),
                cells.join(" | ")
            );
        }
    }
    text
}

fn entry(comparisons: &[(&Key, Comparison)], wanted: &Key) -> String {
    let mut found = comparisons.iter().filter(|(key, _)| *key == wanted);
    found.next().map_or_else(String::new, |(_, comparison)| {
        let digits = usize::from(wanted.direction == Direction::Rate);
        format!(
            "{:.digits$} → {:.digits$} ({:.2}){}",
            comparison.base.value,
            comparison.ours.value,
            comparison.ratio,
            if comparison.noisy { " ~" } else { "" }
        )
    })
}

/// The document with the tables between its two marks; `None` when it has none.
pub(super) fn updated(document: &str, tables: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{tables}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::super::results::tests_support::{context, one_comparison};
    use super::*;

    #[test]
    fn a_cell_that_was_not_measured_stays_empty() {
        let (key, comparison) = one_comparison();

        let text = tables(&context(), &[(&key, comparison)]);

        assert!(text.contains("| 64 B, burst 32 | 70 → 35 (2.00) |  |  |  |\n"));
        assert!(!text.contains("| 256 B"));
    }

    #[test]
    fn a_part_that_was_not_measured_has_no_table() {
        let (key, comparison) = one_comparison();

        let text = tables(&context(), &[(&key, comparison)]);

        assert!(text.contains("### One core, warm caches"));
        assert!(!text.contains("### Instructions"));
    }

    #[test]
    fn cells_that_are_slower_are_named() {
        let (key, comparison) = one_comparison();
        let slower = Comparison {
            ratio: 0.9,
            noisy: true,
            ..comparison.clone()
        };

        let text = tables(&context(), &[(&key, slower)]);

        let row = "| one-core, 64 B, burst 32 and more, split | 1 | 3 | 0.90 | 0.90 | 1 |\n";
        assert!(text.contains(row), "{text}");
        let name = "- one-core split mergeable any-order ring256 queues1 plain, 64x32 rx: 0.90 ~\n";
        assert!(text.contains(name), "{text}");
        assert!(!tables(&context(), &[(&key, comparison)]).contains("Below 1.0"));
    }

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let document = format!("head\n{BEGIN}\nold\n{END}\ntail\n");

        let updated = updated(&document, "new\n");

        let expected = format!("head\n{BEGIN}\n\nnew\n\n{END}\ntail\n");
        assert_eq!(updated, Some(expected));
        assert_eq!(super::updated("no marks", "new"), None);
    }
}
