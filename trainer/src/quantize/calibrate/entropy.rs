//! The range that keeps most of the distribution (Kullback and Leibler's divergence), as
//! TensorRT's entropy calibration does for one-sided ranges.

use super::{Calibrator, Histogram};

/// Values of the integers.
const LEVELS: usize = 256;
/// Shares of the seen range that are tried.
const STEPS: usize = 96;
/// Smallest share of the range.
const SMALLEST: f32 = 0.125;

/// Least divergence between the clipped distribution and the one the integers give.
#[derive(Debug, Clone, Copy)]
pub struct Entropy;

impl Calibrator for Entropy {
    fn range(&self, histogram: &Histogram) -> (f32, f32) {
        let mut best = (f64::INFINITY, 1.0);
        for step in 0..STEPS {
            let share = 1.0 - (1.0 - SMALLEST) * step as f32 / STEPS as f32;
            let divergence = divergence(histogram, share);
            if divergence < best.0 {
                best = (divergence, share);
            }
        }
        (histogram.low() * best.1, histogram.high() * best.1)
    }
}

/// Divergence when the range is `share` of the seen one at both ends.
fn divergence(histogram: &Histogram, share: f32) -> f64 {
    let counts = histogram.counts();
    let width = histogram.width();
    let bin = |value: f32| ((value - histogram.low()) / width).round() as usize;
    let first = bin(histogram.low() * share).min(counts.len() - 1);
    let last = bin(histogram.high() * share).clamp(first + 1, counts.len());
    let inside = &counts[first..last];
    let mut clipped: Vec<f64> = inside.iter().map(|&count| count as f64).collect();
    clipped[0] += counts[..first].iter().sum::<u64>() as f64;
    let end = clipped.len() - 1;
    clipped[end] += counts[last..].iter().sum::<u64>() as f64;
    kullback_leibler(&clipped, &levels(inside))
}

/// The counts as the integers see them: each level's mean over its bins that are not empty.
fn levels(counts: &[u64]) -> Vec<f64> {
    let level = |bin: usize| bin * LEVELS / counts.len();
    let mut sums = [(0.0, 0u32); LEVELS];
    for (bin, &count) in counts.iter().enumerate() {
        let (sum, filled) = &mut sums[level(bin)];
        *sum += count as f64;
        *filled += u32::from(count > 0);
    }
    counts
        .iter()
        .enumerate()
        .map(|(bin, &count)| {
            let (sum, filled) = sums[level(bin)];
            if count > 0 { sum / f64::from(filled) } else { 0.0 }
        })
        .collect()
}

/// sum p ln(p / q) of two sets of counts; where q has nothing it counts as one ten-thousandth of
/// a value.
fn kullback_leibler(p: &[f64], q: &[f64]) -> f64 {
    let total = |counts: &[f64]| counts.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let (p_total, q_total) = (total(p), total(q));
    p.iter()
        .zip(q)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, q)| {
            let (p, q) = (p / p_total, q.max(1e-4) / q_total);
            p * (p / q).ln()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::BINS;
    use super::*;

    #[test]
    fn divergence_by_hand() {
        // (1/2) ln(2/3) + (1/2) ln 2.
        let by_hand = 0.5 * (2.0f64 / 3.0).ln() + 0.5 * 2f64.ln();
        assert!((kullback_leibler(&[2.0, 2.0], &[3.0, 1.0]) - by_hand).abs() < 1e-12);
        assert_eq!(kullback_leibler(&[5.0, 0.0], &[7.0, 0.0]), 0.0);
    }

    #[test]
    fn levels_share_their_counts_over_filled_bins() {
        let mut counts = vec![0u64; 2 * LEVELS];
        (counts[0], counts[1], counts[2]) = (4, 2, 6);
        let seen = levels(&counts);
        assert_eq!(&seen[..4], [3.0, 3.0, 6.0, 0.0]);
    }

    #[test]
    fn an_even_distribution_is_kept_whole() {
        let values: Vec<f32> = (0..BINS * 8).map(|i| i as f32 / (BINS * 8) as f32).collect();
        let histogram = Histogram::of(0.0, 1.0, &values);
        assert_eq!(Entropy.range(&histogram), (0.0, 1.0));
    }
}
