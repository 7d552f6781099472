//! One line for each direction of each cell.

use super::idle::Row;
use super::results::{Comparison, Key};
use super::statistics::Summary;
use super::targets::target;

const HEAD: &str = "mode,layout,mergeable,in_order,vectorized,ring,queues,checksum,parked,apart,size,burst,flow,\
                    direction,place,base,base_median,base_lowest,base_highest,base_runs,ours,ours_median,\
                    ours_lowest,ours_highest,ours_runs,ratio,target,noisy\n";

/// All results, with a head line.
pub(super) fn table(comparisons: &[(&Key, Comparison)]) -> String {
    let lines = comparisons.iter().map(|(key, found)| {
        let (setup, cell) = (&key.setup, &key.cell);
        let words = [
            setup.mode.name().to_owned(),
            setup.layout().to_owned(),
            setup.mergeable.to_string(),
            setup.in_order.to_string(),
            setup.vectorized.to_string(),
            setup.ring.to_string(),
            setup.queues.to_string(),
            setup.checksum.name().to_owned(),
            setup.parked.to_string(),
            setup.apart.to_string(),
            cell.size.to_string(),
            cell.burst.to_string(),
            cell.flow.name().to_owned(),
            key.direction.name().to_owned(),
            found.place.name().to_owned(),
            numbers(&found.base),
            numbers(&found.ours),
            format!("{:.3}", found.ratio),
            target(setup, cell, key.direction).ratio.to_string(),
            found.noisy.to_string(),
        ];
        words.join(",") + "\n"
    });
    HEAD.to_owned() + &lines.collect::<String>()
}

/// What ports cost that move no packets.
pub(super) fn idle_table(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| {
        let Row {
            case,
            figure,
            base,
            ours,
        } = row;
        format!("\"{case}\",\"{figure}\",{base:.3},{ours:.3}\n")
    });
    "case,figure,base,ours\n".to_owned() + &lines.collect::<String>()
}

fn numbers(summary: &Summary) -> String {
    let Summary {
        value,
        median,
        lowest,
        highest,
        runs,
    } = summary;
    format!("{value:.2},{median:.2},{lowest:.2},{highest:.2},{runs}")
}

#[cfg(test)]
mod tests {
    use super::super::results::tests_support::one_comparison;
    use super::*;

    #[test]
    fn names_with_commas_are_quoted() {
        let row = Row {
            case: "32 ports, mlockall",
            figure: "x",
            base: 1.0,
            ours: 2.5,
        };

        let expected = "case,figure,base,ours\n\"32 ports, mlockall\",\"x\",1.000,2.500\n";
        assert_eq!(idle_table(&[row]), expected);
    }

    #[test]
    fn each_line_has_as_many_words_as_the_head() {
        let (key, comparison) = one_comparison();

        let table = table(&[(&key, comparison)]);

        let counts: Vec<usize> = table.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(counts, [28, 28]);
        assert!(table.ends_with(
            "64,32,forward,rx,near,70.00,71.00,70.50,73.00,4,35.00,36.00,35.50,37.00,4,2.000,3,false\n"
        ));
    }
}
