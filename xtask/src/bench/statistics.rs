//! Means, medians and spreads of a few numbers.

/// The value below which `numerator / denominator` of the values lie; between two values, linear.
pub(super) fn quantile(values: &[f64], numerator: usize, denominator: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = sorted.len().checked_sub(1)? * numerator;
    let low = *sorted.get(at / denominator)?;
    let high = *sorted.get(at.div_ceil(denominator))?;
    Some(low + (high - low) * (at % denominator) as f64 / denominator as f64)
}

/// The middle one.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 1, 2)
}

/// The mean of ratios: twice as fast here and half as fast there is no gain.
pub(super) fn geometric_mean(ratios: &[f64]) -> Option<f64> {
    if ratios.is_empty() || ratios.iter().any(|&ratio| ratio <= 0.0) {
        return None;
    }
    let sum: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
    Some((sum / ratios.len() as f64).exp())
}

/// What is printed of the runs of one driver in one cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Summary {
    /// What ratios are made of, by the method of the part.
    pub(super) value: f64,
    /// The median of the runs' medians.
    pub(super) median: f64,
    /// The lowest of the runs' medians.
    pub(super) lowest: f64,
    /// The highest of the runs' medians.
    pub(super) highest: f64,
    /// How many runs.
    pub(super) runs: usize,
}

impl Summary {
    /// From the value and the medians of the runs.
    pub(super) fn new(value: f64, medians: &[f64]) -> Option<Self> {
        Some(Self {
            value,
            median: median(medians)?,
            lowest: quantile(medians, 0, 1)?,
            highest: quantile(medians, 1, 1)?,
            runs: medians.len(),
        })
    }

    /// From the lowest to the highest run, in percent of the median.
    pub(super) fn spread_percent(&self) -> f64 {
        match self.median > 0.0 {
            true => (self.highest - self.lowest) / self.median * 100.0,
            false => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
    }

    #[test]
    fn quantiles_reach_from_the_lowest_to_the_highest() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];

        assert_eq!(quantile(&values, 0, 1), Some(1.0));
        assert_eq!(quantile(&values, 1, 4), Some(2.0));
        assert_eq!(quantile(&values, 1, 1), Some(5.0));
    }

    #[test]
    fn nothing_has_no_median_and_no_mean() {
        assert_eq!(median(&[]), None);
        assert_eq!(geometric_mean(&[]), None);
    }

    #[test]
    fn a_gain_and_an_equal_loss_are_no_gain() {
        let mean = geometric_mean(&[2.0, 0.5, 1.0]);

        assert!(mean.is_some_and(|mean| (mean - 1.0).abs() < 1e-12));
        assert_eq!(geometric_mean(&[2.0, 0.0]), None);
    }

    #[test]
    fn the_spread_is_relative_to_the_median() {
        let summary = Summary::new(9.0, &[10.0, 11.0, 9.5]);

        assert!(summary.is_some_and(|summary| (summary.spread_percent() - 15.0).abs() < 1e-9));
    }
}
