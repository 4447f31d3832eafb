//! Medians and their intervals. Pure.

use serde::{Deserialize, Serialize};

/// Share of the cases in which the interval is to hold the median.
const CONFIDENCE: f64 = 0.9;

/// The middle of several measurements, and how well it is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// Lower end of the median's 90 % interval; the least value where there are fewer than five.
    pub low: f64,
    /// Its upper end; the greatest value where there are fewer than five.
    pub high: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these values; `None` when there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let cut = cut(sorted.len());
        Some(Self {
            median: quantile(&sorted, 0.5)?,
            low: sorted[cut],
            high: sorted[sorted.len() - 1 - cut],
            min,
            max,
        })
    }
}

/// The value below which this share of them lies, between two by their distance; they are in order.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    let between = at - at.floor();
    Some(sorted[below] + (sorted[above] - sorted[below]) * between)
}

/// How many values may be left out at each end so that what remains still holds the median with
/// [`CONFIDENCE`], whatever they are distributed like: how many of them lie below it is binomial.
fn cut(count: usize) -> usize {
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let mut probability = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut below = probability;
    let mut cut = 0;
    while below <= tail && cut < count / 2 {
        // From the probability of `cut` values to that of one more.
        probability *= (count - cut) as f64 / (cut + 1) as f64;
        cut += 1;
        below += probability;
    }
    cut.saturating_sub(1)
}

/// How many times as much one is as the other; the interval is the widest that both allow.
pub fn ratio(one: Spread, other: Spread) -> Option<Spread> {
    let over = |a: f64, b: f64| (b > 0.0).then(|| a / b);
    Some(Spread {
        median: over(one.median, other.median)?,
        low: over(one.low, other.high)?,
        high: over(one.high, other.low)?,
        min: over(one.min, other.max)?,
        max: over(one.max, other.min)?,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let median = |values: &[f64]| Spread::of(values.iter().copied()).map(|s| s.median);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn of_few_values_the_interval_is_all_of_them() {
        let spread = Spread::of([5.0, 1.0, 3.0]).unwrap();
        assert_eq!((spread.low, spread.high), (1.0, 5.0));
    }

    #[test]
    fn the_interval_leaves_out_what_it_may() {
        // 90 %: of 5 none may go (2 × 1/32 = 6 % outside), of 8 one at each end (2 × 9/256 = 7 %), of 11 two.
        for (count, cut_off) in [(4, 0), (5, 0), (7, 0), (8, 1), (11, 2), (13, 3)] {
            assert_eq!(cut(count), cut_off, "{count}");
        }
        let spread = Spread::of((1..=8).map(f64::from)).unwrap();
        assert_eq!(
            (spread.low, spread.high, spread.min, spread.max),
            (2.0, 7.0, 1.0, 8.0)
        );
    }

    #[test]
    fn a_quantile_lies_between_its_neighbours() {
        let sorted = [0.0, 10.0, 20.0, 30.0, 40.0];
        assert_eq!(quantile(&sorted, 0.99), Some(39.6));
        assert_eq!(quantile(&sorted, 0.0), Some(0.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_ratio_has_the_spread_of_both() {
        let one = Spread::of([8.0, 10.0, 12.0]).unwrap();
        let other = Spread::of([4.0, 5.0, 6.0]).unwrap();
        let ratio = ratio(one, other).unwrap();
        assert_eq!((ratio.median, ratio.low, ratio.high), (2.0, 8.0 / 6.0, 3.0));
        let nothing = Spread::of([0.0]).unwrap();
        assert_eq!(super::ratio(one, nothing), None);
    }
}
