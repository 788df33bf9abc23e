//! Figures of merit. The main one is Pearson's correlation per gene over the tiles of one
//! held-out section, averaged over genes; the others stand beside it under their own names.
//!
//! A gene's correlation is undefined where its measured or predicted values are all equal. Such
//! genes are left out of the mean and counted, so that nobody mistakes them for zeros.

use nalgebra::DMatrix;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// Variance below this share of the mean square is rounding, not signal.
const CONSTANT: f64 = 1e-12;

/// All figures of one model on one held-out set of tiles.
#[derive(Debug, Clone, Serialize)]
pub struct Scores {
    /// Tiles the figures are over.
    pub tiles: usize,
    /// Pearson per gene averaged over the genes where it is defined; absent if it is nowhere.
    pub pearson: Option<f64>,
    /// 95 % bootstrap interval of `pearson`, resampling tiles.
    pub pearson_interval: Option<[f64; 2]>,
    /// Spearman per gene averaged over the genes where it is defined.
    pub spearman: Option<f64>,
    /// Genes whose Pearson correlation is undefined.
    pub undefined_genes: usize,
    /// Mean squared error over all tiles and genes.
    pub mse: f64,
    /// Mean absolute error over all tiles and genes.
    pub mae: f64,
    /// Pearson over all values of all genes at once. Differences between genes' means dominate
    /// it, so it is never to be compared with `pearson`.
    pub flat_pearson: Option<f64>,
    /// Pearson of each gene, in panel order.
    #[serde(skip)]
    pub gene_pearson: Vec<Option<f64>>,
}

impl Scores {
    /// Compares `predicted` with `measured`, both [tiles, genes]; `draws` are bootstrap values of
    /// the mean per-gene Pearson from [`bootstrap`] (empty: no interval).
    pub fn new(predicted: &DMatrix<f64>, measured: &DMatrix<f64>, draws: &[f64]) -> Self {
        let gene_pearson = per_gene(predicted, measured, pearson);
        let gene_spearman = per_gene(predicted, measured, spearman);
        let count = predicted.len().max(1) as f64;
        let difference = predicted - measured;
        Self {
            tiles: predicted.nrows(),
            pearson: mean_defined(&gene_pearson),
            pearson_interval: interval(draws),
            spearman: mean_defined(&gene_spearman),
            undefined_genes: gene_pearson.iter().filter(|r| r.is_none()).count(),
            mse: difference.norm_squared() / count,
            mae: difference.iter().map(|d| d.abs()).sum::<f64>() / count,
            flat_pearson: pearson(predicted.as_slice(), measured.as_slice()),
            gene_pearson,
        }
    }
}

/// Pearson's correlation; absent for fewer than two values or where either side is constant.
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    if a.len() != b.len() || a.len() < 2 {
        return None;
    }
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        aa += x * x;
        bb += y * y;
        ab += x * y;
    }
    let defined = aa > CONSTANT * (n * mean_a * mean_a) && bb > CONSTANT * (n * mean_b * mean_b);
    (defined && aa > 0.0 && bb > 0.0).then(|| (ab / (aa * bb).sqrt()).clamp(-1.0, 1.0))
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    pearson(&ranks(a), &ranks(b))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        // Ranks start+1 ..= end share their mean.
        let rank = (start + 1 + end) as f64 / 2.0;
        order[start..end].iter().for_each(|&i| ranks[i] = rank);
        start = end;
    }
    ranks
}

fn per_gene(
    predicted: &DMatrix<f64>,
    measured: &DMatrix<f64>,
    measure: fn(&[f64], &[f64]) -> Option<f64>,
) -> Vec<Option<f64>> {
    let rows = predicted.nrows();
    let column = |m: &DMatrix<f64>, g: usize| m.as_slice()[g * rows..(g + 1) * rows].to_vec();
    (0..predicted.ncols()).map(|g| measure(&column(predicted, g), &column(measured, g))).collect()
}

/// Mean of the defined values, if there are any.
pub fn mean_defined(values: &[Option<f64>]) -> Option<f64> {
    let defined: Vec<f64> = values.iter().flatten().copied().collect();
    (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
}

/// Mean per-gene Pearson of each of `resamples` draws of the tiles with replacement. The draws
/// depend only on the seed and the number of tiles, so models scored with the same seed are
/// paired. NaN stands for a draw where no gene is defined.
pub fn bootstrap(
    predicted: &DMatrix<f64>,
    measured: &DMatrix<f64>,
    resamples: usize,
    seed: u64,
) -> Vec<f64> {
    let (n, genes) = predicted.shape();
    if n < 2 || genes == 0 {
        return Vec::new();
    }
    let mut random = StdRng::seed_from_u64(seed);
    let mut weights = DMatrix::<f64>::zeros(resamples, n);
    for draw in 0..resamples {
        for _ in 0..n {
            weights[(draw, random.random_range(0..n))] += 1.0 / n as f64;
        }
    }
    // A resample is a weighting of tiles: all weighted moments are matrix products. Centred
    // values first, so that the differences of moments lose nothing.
    let (p, m) = (centred(predicted), centred(measured));
    let mean_p = &weights * &p;
    let mean_m = &weights * &m;
    let square_p = &weights * p.component_mul(&p);
    let square_m = &weights * m.component_mul(&m);
    let product = &weights * p.component_mul(&m);
    (0..resamples)
        .map(|draw| {
            let (mut sum, mut defined) = (0.0, 0usize);
            for gene in 0..genes {
                let at = (draw, gene);
                let var_p = square_p[at] - mean_p[at] * mean_p[at];
                let var_m = square_m[at] - mean_m[at] * mean_m[at];
                if var_p > CONSTANT * square_p[at] && var_m > CONSTANT * square_m[at] {
                    sum += (product[at] - mean_p[at] * mean_m[at]) / (var_p * var_m).sqrt();
                    defined += 1;
                }
            }
            if defined == 0 { f64::NAN } else { sum / defined as f64 }
        })
        .collect()
}

fn centred(matrix: &DMatrix<f64>) -> DMatrix<f64> {
    let mean = matrix.row_mean();
    let mut out = matrix.clone();
    out.row_iter_mut().for_each(|mut row| row -= &mean);
    out
}

/// The central 95 % of bootstrap draws; absent where there are none or a draw is undefined.
pub fn interval(draws: &[f64]) -> Option<[f64; 2]> {
    if draws.is_empty() || draws.iter().any(|d| !d.is_finite()) {
        return None;
    }
    let mut sorted = draws.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let at = q * (sorted.len() - 1) as f64;
        let (low, part) = (at.floor() as usize, at.fract());
        let high = (low + 1).min(sorted.len() - 1);
        sorted[low] * (1.0 - part) + sorted[high] * part
    };
    Some([quantile(0.025), quantile(0.975)])
}

/// Bootstrap draws of the mean over several held-out sections: sections are drawn with
/// replacement, and of each drawn section one of its own draws.
pub fn bootstrap_sections(sections: &[&[f64]], resamples: usize, seed: u64) -> Vec<f64> {
    if sections.is_empty() || sections.iter().any(|draws| draws.is_empty()) {
        return Vec::new();
    }
    let mut random = StdRng::seed_from_u64(seed);
    (0..resamples)
        .map(|_| {
            let total: f64 = (0..sections.len())
                .map(|_| {
                    let draws = sections[random.random_range(0..sections.len())];
                    draws[random.random_range(0..draws.len())]
                })
                .sum();
            total / sections.len() as f64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: Option<f64>, b: f64) {
        let a = a.expect("defined");
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn correlations_equal_scipy() {
        // scipy.stats.pearsonr and spearmanr, scipy 1.17.
        let a = [1.0, 2.5, 2.5, 4.0, 0.5, 7.0, 3.0];
        let b = [0.2, 1.9, 2.0, 2.0, 1.1, 3.5, 0.1];
        near(pearson(&a, &b), PEARSON);
        near(spearman(&a, &b), SPEARMAN);
    }

    const PEARSON: f64 = 0.762_360_415_718_839_5;
    const SPEARMAN: f64 = 0.554_545_454_545_454_6;

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
    }

    #[test]
    fn constant_values_leave_a_gene_undefined() {
        assert_eq!(pearson(&[0.1; 5], &[1.0, 2.0, 3.0, 4.0, 5.0]), None);
        assert_eq!(pearson(&[1.0], &[2.0]), None);
        assert_eq!(pearson(&[1.0, 2.0], &[1.0]), None);
        near(pearson(&[1.0, 2.0], &[5.0, 4.0]), -1.0);
    }

    #[test]
    fn scores_of_a_small_case_by_hand() {
        let predicted = DMatrix::from_row_slice(3, 2, &[1.0, 4.0, 2.0, 4.0, 3.0, 4.0]);
        let measured = DMatrix::from_row_slice(3, 2, &[2.0, 1.0, 4.0, 2.0, 6.0, 3.0]);
        let scores = Scores::new(&predicted, &measured, &[]);
        assert_eq!(scores.gene_pearson, [Some(1.0), None]);
        assert_eq!((scores.pearson, scores.undefined_genes), (Some(1.0), 1));
        near(Some(scores.mse), (1.0 + 4.0 + 9.0 + 9.0 + 4.0 + 1.0) / 6.0);
        near(Some(scores.mae), (1.0 + 2.0 + 3.0 + 3.0 + 2.0 + 1.0) / 6.0);
        assert!(scores.pearson_interval.is_none());
    }

    #[test]
    fn a_bootstrap_draw_is_the_pearson_of_its_tiles() {
        let predicted = DMatrix::from_fn(40, 3, |i, j| ((i * 7 + j * 3) % 11) as f64 + 5.0);
        let measured = DMatrix::from_fn(40, 3, |i, j| ((i * 5 + j) % 13) as f64);
        let draws = bootstrap(&predicted, &measured, 8, 3);
        let mut random = StdRng::seed_from_u64(3);
        for draw in draws {
            let rows: Vec<usize> = (0..40).map(|_| random.random_range(0..40)).collect();
            let again =
                Scores::new(&predicted.select_rows(&rows), &measured.select_rows(&rows), &[]);
            assert!((draw - again.pearson.unwrap()).abs() < 1e-9);
        }
    }

    #[test]
    fn intervals_are_central_and_seeded() {
        let draws: Vec<f64> = (0..=1000).map(f64::from).collect();
        assert_eq!(interval(&draws), Some([25.0, 975.0]));
        assert_eq!(interval(&[0.1, f64::NAN]), None);
        let a = bootstrap_sections(&[&[0.1, 0.2], &[0.3]], 100, 1);
        assert_eq!(a, bootstrap_sections(&[&[0.1, 0.2], &[0.3]], 100, 1));
        assert!(a.iter().all(|v| (0.1..=0.3).contains(v)));
    }
}
