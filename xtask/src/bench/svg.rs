//! A picture: a panel for each set-up, a bar for each direction of each cell.

use std::fmt::Write;

use super::Context;
use super::report::means;
use super::results::{Comparison, Direction, Key};
use super::targets::{FLOOR, target};

const PANEL_WIDTH: usize = 420;
const LABEL_WIDTH: usize = 118;
const BAR_WIDTH: usize = 240;
const ROW: usize = 13;
const TITLE: usize = 40;
const HEAD: usize = 110;
const COLUMNS: usize = 4;
/// Longer bars end here, with their number beside them.
const LONGEST: f64 = 5.0;

/// The whole picture.
pub(super) fn picture(context: &Context, comparisons: &[(&Key, Comparison)]) -> String {
    let panels: Vec<&[(&Key, Comparison)]> = comparisons
        .chunk_by(|(one, _), (next, _)| one.setup == next.setup)
        .collect();
    let columns = panels.len().clamp(1, COLUMNS);
    // Each panel goes to the column that is the shortest yet.
    let mut heights = vec![HEAD; columns];
    let mut body = String::new();
    for panel in panels {
        let shortest = (0..columns)
            .min_by_key(|&column| heights[column])
            .unwrap_or(0);
        let (left, top) = (shortest * PANEL_WIDTH + 10, heights[shortest]);
        heights[shortest] += TITLE + panel.len() * ROW + 14;
        body.push_str(&draw_panel(panel, left, top));
    }
    let width = (columns * PANEL_WIDTH + 10).max(1300);
    let height = heights.into_iter().max().unwrap_or(HEAD);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let title = format!(
        "{} against {}: how many times faster",
        context.ours, context.base
    );
    let means: Vec<String> = means(comparisons)
        .into_iter()
        .map(|(mode, mean)| format!("{} {mean:.2}", mode.name()))
        .collect();
    let legend = format!(
        "Geometric means, 64 to 1518 bytes, bursts of 4 to 64: {}. Rows are SIZExBURST; the black line is \
         1.0, the small mark the target.",
        means.join(", ")
    );
    for (line, (size, words)) in [(16, title), (11, context.machine.to_string()), (11, legend)]
        .into_iter()
        .enumerate()
    {
        let _ = writeln!(
            text,
            "<text x=\"10\" y=\"{}\" font-size=\"{size}\">{}</text>",
            24 + line * 20,
            escaped(&words)
        );
    }
    for (number, (words, fill)) in COLOURS.iter().enumerate() {
        let x = 10 + number * 170;
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"80\" width=\"12\" height=\"10\" fill=\"{fill}\"/>\
             <text x=\"{}\" y=\"89\">{words}</text>",
            x + 17
        );
    }
    text.push_str(&body);
    text.push_str("</svg>\n");
    text
}

const COLOURS: [(&str, &str); 4] = [
    ("target reached, rx or rate", "#2a7f9e"),
    ("target reached, tx", "#1b4f72"),
    ("below its target", "#e0a030"),
    ("below 1.0", "#c0392b"),
];

fn colour(ratio: f64, target: f64, direction: Direction) -> &'static str {
    let at = match direction {
        _ if ratio < FLOOR => 3,
        _ if ratio < target => 2,
        Direction::Tx => 1,
        Direction::Rx | Direction::Rate => 0,
    };
    COLOURS[at].1
}

fn draw_panel(panel: &[(&Key, Comparison)], left: usize, top: usize) -> String {
    let mut text = String::new();
    let Some((first, _)) = panel.first() else {
        return text;
    };
    let _ = writeln!(
        text,
        "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        top + TITLE - 22,
        escaped(&first.setup.to_string())
    );
    let bars = left + LABEL_WIDTH;
    for (row, (key, comparison)) in panel.iter().enumerate() {
        let target = target(&key.setup, &key.cell, key.direction).ratio;
        let y = top + TITLE - 12 + row * ROW;
        let length = position(comparison.ratio);
        let name = key.way();
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} {name}</text>\
             <rect x=\"{bars}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>\
             <rect x=\"{:.1}\" y=\"{y}\" width=\"2\" height=\"{}\" fill=\"#888888\"/>\
             <text x=\"{:.1}\" y=\"{}\" font-size=\"10\">{:.2}{}</text>",
            bars - 5,
            y + 9,
            key.cell,
            ROW - 3,
            colour(comparison.ratio, target, key.direction),
            bars as f64 + position(target) - 1.0,
            ROW - 3,
            bars as f64 + length.max(position(target)) + 4.0,
            y + 9,
            comparison.ratio,
            if comparison.noisy { " ~" } else { "" },
        );
    }
    let _ = writeln!(
        text,
        "<rect x=\"{:.1}\" y=\"{}\" width=\"1\" height=\"{}\" fill=\"black\"/>",
        bars as f64 + position(FLOOR),
        top + TITLE - 14,
        panel.len() * ROW + 2
    );
    text
}

/// How far from the left end of the bars.
fn position(ratio: f64) -> f64 {
    ratio.clamp(0.0, LONGEST) / LONGEST * BAR_WIDTH as f64
}

fn escaped(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::results::tests_support::{context, one_comparison};
    use super::*;

    #[test]
    fn a_bar_has_the_colour_of_what_it_means() {
        assert_eq!(colour(0.99, 1.0, Direction::Rx), COLOURS[3].1);
        assert_eq!(colour(1.5, 2.0, Direction::Rx), COLOURS[2].1);
        assert_eq!(colour(2.5, 2.0, Direction::Tx), COLOURS[1].1);
        assert_eq!(colour(2.5, 2.0, Direction::Rate), COLOURS[0].1);
    }

    #[test]
    fn very_long_bars_stay_in_their_panel() {
        assert!((position(50.0) - BAR_WIDTH as f64).abs() < 1e-9);
        assert!((position(1.0) - 48.0).abs() < 1e-9);
    }

    #[test]
    fn every_element_of_the_picture_is_closed() {
        let (key, comparison) = one_comparison();

        let text = picture(&context(), &[(&key, comparison)]);

        for element in ["text", "svg"] {
            let opened = text.matches(&format!("<{element} ")).count();
            assert_eq!(opened, text.matches(&format!("</{element}>")).count());
        }
        assert!(text.contains("64x32 rx") && text.contains(">2.00</text>"));
        assert!(text.contains("a &amp; b"));
        // Heading of the panel, bar, target and line of 1.0 below the four colours.
        assert_eq!(text.matches("<rect ").count(), 1 + 4 + 3);
    }
}
