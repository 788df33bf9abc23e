//! From the values a tensor took to the range its integers should cover.
//!
//! One [`Calibrator`] a way of choosing: [`MinMax`], [`Percentile`], [`Entropy`], [`MeanSquare`].
//! All of them look at a [`Histogram`].

mod entropy;
mod histogram;
mod mean_square;

use clap::ValueEnum;
pub use entropy::Entropy;
pub use histogram::{BINS, Histogram};
pub use mean_square::MeanSquare;

/// Chooses the range of a tensor's integers.
pub trait Calibrator: Sync {
    /// Lowest and highest real that should have a value of their own.
    fn range(&self, histogram: &Histogram) -> (f32, f32);
}

/// Everything that was seen.
#[derive(Debug, Clone, Copy)]
pub struct MinMax;

impl Calibrator for MinMax {
    fn range(&self, histogram: &Histogram) -> (f32, f32) {
        (histogram.low(), histogram.high())
    }
}

/// What remains after a share of the values is cut off at the ends.
#[derive(Debug, Clone, Copy)]
pub struct Percentile {
    /// Share of the values that is kept, in per cent.
    pub kept: f64,
}

impl Calibrator for Percentile {
    fn range(&self, histogram: &Histogram) -> (f32, f32) {
        let cut = histogram.total() as f64 * (1.0 - self.kept / 100.0) / 2.0;
        (histogram.cut_low(cut), histogram.cut_high(cut))
    }
}

/// `--calibrator` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CalibratorName {
    /// Everything that was seen.
    MinMax,
    /// 99.99 % of the values.
    Percentile,
    /// Least divergence of the distributions (KL).
    Entropy,
    /// Least mean squared error.
    #[default]
    Mse,
}

impl CalibratorName {
    /// The calibrator of that name.
    pub fn open(self) -> Box<dyn Calibrator> {
        match self {
            Self::MinMax => Box::new(MinMax),
            Self::Percentile => Box::new(Percentile { kept: 99.99 }),
            Self::Entropy => Box::new(Entropy),
            Self::Mse => Box::new(MeanSquare),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_max_is_what_was_seen() {
        let histogram = Histogram::of(-1.0, 3.0, &[-1.0, 0.0, 3.0]);
        assert_eq!(MinMax.range(&histogram), (-1.0, 3.0));
    }

    #[test]
    fn a_percentile_by_hand() {
        // 1000 values evenly over 0 to 10, one far away: 99.8 % leaves one out at each end.
        let mut values: Vec<f32> = (0..999).map(|i| i as f32 / 100.0).collect();
        values.push(1000.0);
        let histogram = Histogram::of(0.0, 1000.0, &values);
        let (low, high) = Percentile { kept: 99.8 }.range(&histogram);
        assert_eq!(low, 0.0);
        assert!((high - 10.0).abs() < 2.0 * 1000.0 / BINS as f32, "{high}");
        assert_eq!(Percentile { kept: 100.0 }.range(&histogram), (0.0, 1000.0));
    }

    #[test]
    fn an_outlier_is_cut_by_all_but_min_max() {
        // A million values of one sign below 1, and one far away. By hand, the squared error with
        // the end at h is n (h / 255)^2 / 12 + (50 - h)^2, least at h = 50 / (1 + n / (12 255^2)):
        // 21.9 here (and 44.3 with n = 100,000: an outlier is worth its error squared).
        let mut values: Vec<f32> = (0..1_000_000).map(|i| (i % 1000) as f32 / 1000.0).collect();
        values.push(50.0);
        let histogram = Histogram::of(0.0, 50.0, &values);
        let by_hand = 50.0 / (1.0 + 1e6 / (12.0 * 255.0 * 255.0));
        let (_, high) = CalibratorName::Mse.open().range(&histogram);
        assert!((high - by_hand).abs() < 2.0, "{high} {by_hand}");
        for name in [CalibratorName::Percentile, CalibratorName::Entropy, CalibratorName::Mse] {
            let (low, high) = name.open().range(&histogram);
            assert!(low == 0.0 && (0.9..40.0).contains(&high), "{name:?}: {low} {high}");
        }
        assert_eq!(CalibratorName::MinMax.open().range(&histogram).1, 50.0);
    }
}
