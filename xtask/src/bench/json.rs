//! The same as JSON, with the machine. Small enough to be written by hand.

use std::fmt::Write;

use super::Context;
use super::idle::Row;
use super::report::means;
use super::results::{Comparison, Key};
use super::statistics::Summary;
use super::targets::target;

/// A whole document.
pub(super) fn document(
    context: &Context,
    comparisons: &[(&Key, Comparison)],
    rows: &[Row],
) -> String {
    let machine = &context.machine;
    let mut text = String::from("{\n  \"machine\": {");
    let facts = [
        ("date", &machine.date),
        ("processor", &machine.processor),
        ("kernel", &machine.kernel),
        ("dpdk", &machine.dpdk),
        ("commit", &machine.commit),
        ("cores", &machine.cores),
    ];
    for (name, value) in facts {
        let _ = write!(text, "\"{name}\": {}, ", string(value));
    }
    let _ = writeln!(
        text,
        "\"processors\": {}, \"memory\": {}}},",
        machine.processors,
        string(machine.memory)
    );
    let _ = writeln!(
        text,
        "  \"base\": {}, \"ours\": {}, \"rounds\": {}, \"ms\": {},",
        string(&context.base),
        string(&context.ours),
        context.rounds,
        context.ms
    );
    let means: Vec<String> = means(comparisons)
        .into_iter()
        .map(|(mode, mean)| format!("{}: {}", string(mode.name()), number(mean)))
        .collect();
    let _ = writeln!(text, "  \"geometric_means\": {{{}}},", means.join(", "));
    let cells: Vec<String> = comparisons
        .iter()
        .map(|(key, comparison)| format!("    {}", cell(key, comparison)))
        .collect();
    let idle: Vec<String> = rows
        .iter()
        .map(|row| {
            format!(
                "    {{\"case\": {}, \"figure\": {}, \"base\": {}, \"ours\": {}}}",
                string(row.case),
                string(row.figure),
                number(row.base),
                number(row.ours)
            )
        })
        .collect();
    let _ = writeln!(text, "  \"idle\": [\n{}\n  ],", idle.join(",\n"));
    let _ = writeln!(text, "  \"cells\": [\n{}\n  ]\n}}", cells.join(",\n"));
    text
}

fn cell(key: &Key, comparison: &Comparison) -> String {
    let (setup, cell) = (&key.setup, &key.cell);
    format!(
        "{{\"mode\": {}, \"layout\": {}, \"mergeable\": {}, \"in_order\": {}, \"vectorized\": {}, \
         \"ring\": {}, \"queues\": {}, \"checksum\": {}, \"parked\": {}, \"apart\": {}, \"size\": {}, \"burst\": {}, \
         \"flow\": {}, \"direction\": {}, \"place\": {}, \"base\": {}, \"ours\": {}, \"ratio\": {}, \"target\": {}, \
         \"noisy\": {}}}",
        string(setup.mode.name()),
        string(setup.layout()),
        setup.mergeable,
        setup.in_order,
        setup.vectorized,
        setup.ring,
        setup.queues,
        string(setup.checksum.name()),
        setup.parked,
        setup.apart,
        cell.size,
        cell.burst,
        string(cell.flow.name()),
        string(key.direction.name()),
        string(comparison.place.name()),
        summary(&comparison.base),
        summary(&comparison.ours),
        number(comparison.ratio),
        number(target(setup, cell, key.direction).ratio),
        comparison.noisy
    )
}

fn summary(summary: &Summary) -> String {
    format!(
        "{{\"value\": {}, \"median\": {}, \"lowest\": {}, \"highest\": {}, \"runs\": {}}}",
        number(summary.value),
        number(summary.median),
        number(summary.lowest),
        number(summary.highest),
        summary.runs
    )
}

/// JSON has no infinity.
fn number(value: f64) -> String {
    match value.is_finite() {
        true => format!("{value:.3}"),
        false => "null".to_owned(),
    }
}

/// A string in quotes.
pub(super) fn string(value: &str) -> String {
    let mut quoted = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if u32::from(c) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::super::results::tests_support::{context, one_comparison};
    use super::*;

    #[test]
    fn quotes_and_control_characters_are_escaped() {
        assert_eq!(string("a\"b\\c\nd"), "\"a\\\"b\\\\c\\u000ad\"");
        assert_eq!(number(f64::INFINITY), "null");
    }

    #[test]
    fn brackets_and_quotes_of_a_document_come_in_pairs() {
        let (key, comparison) = one_comparison();
        let row = Row {
            case: "1 port",
            figure: "threads",
            base: 0.0,
            ours: 1.0,
        };

        let text = document(
            &context(),
            &[(&key, comparison.clone()), (&key, comparison)],
            &[row],
        );

        let count = |wanted: char| text.chars().filter(|&c| c == wanted).count();
        assert_eq!(count('{'), count('}'));
        assert_eq!(count('['), count(']'));
        assert_eq!(count('"') % 2, 0);
        assert!(text.contains("\"ratio\": 2.000, \"target\": 3.000, \"noisy\": false}"));
        assert!(!text.contains(",\n  ]") && !text.contains(", }"));
    }
}
