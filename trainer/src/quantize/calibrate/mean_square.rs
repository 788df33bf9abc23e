//! The range whose integers lie closest to the values.

use super::super::scheme::Affine;
use super::{Calibrator, Histogram};

/// Shares of the seen range that are tried at each end.
const STEPS: usize = 24;
/// Smallest of them.
const SMALLEST: f32 = 0.1;

/// Least mean squared error between values and what their integers stand for.
#[derive(Debug, Clone, Copy)]
pub struct MeanSquare;

impl Calibrator for MeanSquare {
    fn range(&self, histogram: &Histogram) -> (f32, f32) {
        let full: Vec<(f32, u64)> = histogram
            .counts()
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(bin, &count)| (histogram.middle(bin), count))
            .collect();
        let shares = |end: f32| -> Vec<f32> {
            // An end at zero stays there.
            let steps = if end == 0.0 { 1 } else { STEPS };
            let share = |step| 1.0 - (1.0 - SMALLEST) * step as f32 / STEPS as f32;
            (0..steps).map(|step| end * share(step)).collect()
        };
        let mut best = (f64::INFINITY, (histogram.low(), histogram.high()));
        for low in shares(histogram.low()) {
            for high in shares(histogram.high()) {
                let error = error(&full, Affine::over(low, high), histogram.width());
                if error < best.0 {
                    best = (error, (low, high));
                }
            }
        }
        best.1
    }
}

/// Summed squared error of the values, taken as spread evenly within their bins.
fn error(bins: &[(f32, u64)], affine: Affine, width: f32) -> f64 {
    let (low, high) = (affine.dequantize(0), affine.dequantize(255));
    let step = f64::from(affine.scale);
    let rounding = step * step / 12.0;
    bins.iter()
        .map(|&(value, count)| {
            let beyond = f64::from((low - value).max(value - high).max(0.0));
            // Bins coarser than the integers see their own spread; values are then not known
            // better than that, so the rounding error of an even spread stands for it.
            let inside = if width > affine.scale {
                rounding
            } else {
                f64::from(value - affine.dequantize(affine.quantize(value))).powi(2)
            };
            count as f64 * if beyond > 0.0 { beyond * beyond } else { inside }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_pays_only_where_few_values_are_lost() {
        // Half the values at each end: nothing can be cut.
        let histogram = Histogram::of(-1.0, 1.0, &[-1.0, 1.0, -1.0, 1.0]);
        let (low, high) = MeanSquare.range(&histogram);
        assert!(low < -0.99 && high > 0.99, "{low} {high}");
        // A million small values and one large: by hand, keeping the large one costs
        // n (10/255)^2/12 = 128, cutting to 1 costs n (1/255)^2/12 + 81 = 82.
        let mut histogram = Histogram::new(0.0, 10.0);
        let small: Vec<f32> = (0..1_000_000).map(|i| (i % 9973) as f32 / 9973.0).collect();
        histogram.add(&small);
        histogram.add(&[10.0]);
        let (_, high) = MeanSquare.range(&histogram);
        assert!(high < 9.0, "{high}");
    }
}
