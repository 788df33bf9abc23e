//! Accuracy of predictions against measured values and against another model's.

use std::collections::BTreeMap;

/// Resamples of the intervals.
pub const RESAMPLES: usize = 400;

/// Predictions of one model for all tiles, one row a tile.
pub type Rows = [Vec<f32>];

/// Mean over slides of the mean per-output Pearson correlation within a slide, with 95 % bootstrap
/// intervals over tiles.
#[derive(Debug, Clone, PartialEq)]
pub struct Accuracy {
    /// The figure.
    pub pearson: f64,
    /// Its interval.
    pub interval: [f64; 2],
    /// Difference from the reference model (negative: worse), on the same resamples.
    pub difference: f64,
    /// Its interval.
    pub difference_interval: [f64; 2],
    /// Mean absolute error.
    pub mae: f64,
}

/// Correlates `predicted` with `truth`, beside the `reference` model's.
pub fn accuracy(
    predicted: &Rows,
    reference: &Rows,
    truth: &Rows,
    slides: &[String],
    seed: u64,
) -> Option<Accuracy> {
    let slides = by_slide(slides);
    let all = |rows: &Rows| mean_over(slides.iter().map(|own| pearson(rows, truth, own)));
    let (pearson_of, reference_of) = (all(predicted)?, all(reference)?);
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut draws = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let resampled: Vec<Vec<usize>> = slides
            .iter()
            .map(|own| own.iter().map(|_| own[below(&mut state, own.len())]).collect())
            .collect();
        let of = |rows: &Rows| mean_over(resampled.iter().map(|own| pearson(rows, truth, own)));
        if let (Some(a), Some(b)) = (of(predicted), of(reference)) {
            draws.push((a, a - b));
        }
    }
    let values = predicted.iter().flatten().zip(truth.iter().flatten());
    let count = predicted.iter().map(Vec::len).sum::<usize>().max(1) as f64;
    Some(Accuracy {
        pearson: pearson_of,
        interval: interval(draws.iter().map(|draw| draw.0).collect()),
        difference: pearson_of - reference_of,
        difference_interval: interval(draws.iter().map(|draw| draw.1).collect()),
        mae: values.map(|(a, b)| f64::from(a - b).abs()).sum::<f64>() / count,
    })
}

/// Signal to noise of predictions against the reference model's, in dB: all outputs together, and
/// each by itself. The signal is what varies between tiles.
pub fn noise(predicted: &Rows, reference: &Rows) -> (f64, Vec<f64>) {
    let width = reference.first().map_or(0, Vec::len);
    let count = reference.len().max(1) as f64;
    let (mut signal, mut noise) = (0.0, 0.0);
    let outputs = (0..width)
        .map(|output| {
            let mean = reference.iter().map(|row| f64::from(row[output])).sum::<f64>() / count;
            let (mut s, mut n) = (0.0, 0.0);
            for (a, b) in predicted.iter().zip(reference) {
                s += (f64::from(b[output]) - mean).powi(2);
                n += f64::from(a[output] - b[output]).powi(2);
            }
            signal += s;
            noise += n;
            decibel(s, n)
        })
        .collect();
    (decibel(signal, noise), outputs)
}

/// Largest difference, as a share of the largest reference value.
pub fn largest(predicted: &Rows, reference: &Rows) -> f64 {
    let pairs = || predicted.iter().flatten().zip(reference.iter().flatten());
    let worst = pairs().map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    let peak = pairs().map(|(_, b)| f64::from(b.abs())).fold(0.0, f64::max);
    worst / peak.max(f64::MIN_POSITIVE)
}

/// 10 log10(signal / noise), at most 200.
pub fn decibel(signal: f64, noise: f64) -> f64 {
    if noise <= signal * 1e-20 { 200.0 } else { 10.0 * (signal / noise).log10() }
}

/// The value below which a share of `sorted` lies, linear between neighbours.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let (low, rest) = (at.floor() as usize, at.fract());
    sorted[low] + (sorted[(low + 1).min(last)] - sorted[low]) * rest
}

/// The middle of some values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(&values, 0.5)
}

fn interval(mut draws: Vec<f64>) -> [f64; 2] {
    draws.sort_by(f64::total_cmp);
    [percentile(&draws, 0.025), percentile(&draws, 0.975)]
}

fn by_slide(slides: &[String]) -> Vec<Vec<usize>> {
    let mut map: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (row, slide) in slides.iter().enumerate() {
        map.entry(slide).or_default().push(row);
    }
    map.into_values().collect()
}

fn mean_over(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let defined: Vec<f64> = values.flatten().collect();
    (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
}

/// Mean per-output correlation over `rows`, where it is defined.
fn pearson(a: &Rows, b: &Rows, rows: &[usize]) -> Option<f64> {
    let width = b.first().map_or(0, Vec::len);
    let n = rows.len() as f64;
    // Six sums an output, in one pass over the rows.
    let mut sums = vec![[0.0f64; 5]; width];
    for &row in rows {
        for ((sums, &x), &y) in sums.iter_mut().zip(&a[row]).zip(&b[row]) {
            let (x, y) = (f64::from(x), f64::from(y));
            sums[0] += x;
            sums[1] += y;
            sums[2] += x * x;
            sums[3] += y * y;
            sums[4] += x * y;
        }
    }
    mean_over(sums.into_iter().map(|[x, y, xx, yy, xy]| {
        let (vx, vy) = (xx - x * x / n, yy - y * y / n);
        let defined = vx > 1e-10 * xx && vy > 1e-10 * yy;
        defined.then(|| ((xy - x * y / n) / (vx * vy).sqrt()).clamp(-1.0, 1.0))
    }))
}

/// A seeded number below `n` (SplitMix64).
fn below(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((u128::from(z) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[[f32; 2]]) -> Vec<Vec<f32>> {
        values.iter().map(|row| row.to_vec()).collect()
    }

    #[test]
    fn correlations_are_within_slides() {
        let truth = rows(&[[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [10.0, 0.0], [20.0, 1.0]]);
        let slides: Vec<String> = ["A", "A", "A", "B", "B"].map(String::from).to_vec();
        let same = accuracy(&truth, &truth, &truth, &slides, 1).unwrap();
        assert!((same.pearson - 1.0).abs() < 1e-9 && same.difference == 0.0 && same.mae == 0.0);
        // The second output upside down in A: (1 - 1) / 2 there, 1 in B.
        let turned = rows(&[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [10.0, 0.0], [20.0, 1.0]]);
        let half = accuracy(&turned, &truth, &truth, &slides, 1).unwrap();
        assert!((half.pearson - 0.5).abs() < 1e-9, "{half:?}");
        assert!((half.difference + 0.5).abs() < 1e-9);
        assert_eq!(half, accuracy(&turned, &truth, &truth, &slides, 1).unwrap());
    }

    #[test]
    fn noise_by_hand() {
        let reference = rows(&[[1.0, 5.0], [2.0, 3.0], [3.0, 4.0]]);
        let predicted = rows(&[[1.1, 5.0], [2.1, 3.0], [3.1, 4.0]]);
        let (all, each) = noise(&predicted, &reference);
        assert!((all - 10.0 * (4.0f64 / 0.03).log10()).abs() < 1e-3, "{all}");
        assert!((each[0] - 10.0 * (2.0f64 / 0.03).log10()).abs() < 1e-3);
        assert_eq!(each[1], 200.0);
        assert!((largest(&predicted, &reference) - 0.02).abs() < 1e-6);
    }

    #[test]
    fn percentiles_by_hand() {
        let sorted = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(percentile(&sorted, 0.5), 3.0);
        assert_eq!(percentile(&sorted, 0.95), 4.8);
        assert_eq!(median(vec![3.0, 1.0]), 2.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
