//! Statistics of few numbers: what the runs of a cell come to.

/// The middle of some runs, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The median; with an even count, the mean of the two in the middle.
    pub value: f64,
    /// Half the distance of the extremes, as a part of the median: 0.05 is "within 5 percent" if they lie evenly.
    /// `None` if there was only one.
    pub spread: Option<f64>,
}

impl Median {
    /// `None` if there are no values.
    pub fn of(values: &[f64]) -> Option<Median> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (first, last) = (sorted.first()?, sorted.last()?);
        let value = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        let half = (last - first) / 2.0;
        let spread = (sorted.len() > 1).then(|| if value == 0.0 { 0.0 } else { half / value.abs() });
        Some(Median { value, spread })
    }

    /// How many times as much this is as `base`; `None` if that is zero.
    pub fn ratio(self, base: Median) -> Option<f64> {
        (base.value != 0.0).then(|| self.value / base.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one_or_the_mean_of_two() {
        let value = |values: &[f64]| Median::of(values).map(|median| median.value);
        assert_eq!(value(&[]), None);
        assert_eq!(value(&[7.0]), Some(7.0));
        assert_eq!(value(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(value(&[4.0, 1.0, 100.0, 2.0]), Some(3.0));
    }

    #[test]
    fn spread_is_half_the_range() {
        let spread = |values: &[f64]| Median::of(values).and_then(|median| median.spread);
        assert_eq!(spread(&[95.0, 100.0, 105.0]), Some(0.05));
        assert_eq!(spread(&[100.0]), None);
        assert_eq!(spread(&[0.0, 0.0]), Some(0.0));
    }

    #[test]
    fn ratios_are_of_medians() {
        let median = |value| Median { value, spread: None };
        assert_eq!(median(3.0).ratio(median(2.0)), Some(1.5));
        assert_eq!(median(3.0).ratio(median(0.0)), None);
    }
}
