//! Which genes to predict: the most variable ones of given rows, chosen without looking at others.

use super::dataset::PairedDataset;
use crate::{Error, Result};

/// Genes that are left out before the most variable are taken.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneFilter {
    /// Smallest fraction (0 to 1) of the rows a gene is detected in.
    pub min_detected: f64,
    /// Leave out mitochondrial genes (`MT-`).
    pub exclude_mitochondrial: bool,
    /// Leave out genes of cytosolic ribosomal proteins (`RPS`, `RPL`).
    pub exclude_ribosomal: bool,
}

impl Default for GeneFilter {
    /// Detected in a tenth of the rows; no names left out.
    fn default() -> Self {
        Self { min_detected: 0.1, exclude_mitochondrial: false, exclude_ribosomal: false }
    }
}

/// Columns of the `count` genes whose expression (`ln(1 + counts per 10,000)`) varies most over
/// `rows`, most variable first; equal variances go by symbol. Only `rows` are looked at: give the
/// training rows. Errors when fewer than `count` genes pass `filter`.
pub fn most_variable(
    dataset: &PairedDataset,
    rows: &[usize],
    count: usize,
    filter: &GeneFilter,
) -> Result<Vec<usize>> {
    if rows.is_empty() {
        return Err(Error::Request("genes cannot be chosen from no rows".into()));
    }
    let genes = dataset.genes();
    let mut detected = vec![0usize; genes.len()];
    let mut sum = vec![0f64; genes.len()];
    for &row in rows {
        for (gene, value) in dataset.expression_entries(row) {
            detected[gene] += 1;
            sum[gene] += f64::from(value);
        }
    }
    // Two passes: the difference of large sums would lose what small variances are made of.
    let total = rows.len() as f64;
    let mean: Vec<f64> = sum.iter().map(|sum| sum / total).collect();
    let mut squares: Vec<f64> =
        mean.iter().zip(&detected).map(|(m, &n)| m * m * (total - n as f64)).collect();
    for &row in rows {
        for (gene, value) in dataset.expression_entries(row) {
            squares[gene] += (f64::from(value) - mean[gene]).powi(2);
        }
    }

    let enough =
        |gene: usize| detected[gene] > 0 && detected[gene] as f64 >= filter.min_detected * total;
    let named_out = |symbol: &str| {
        filter.exclude_mitochondrial && is_mitochondrial(symbol)
            || filter.exclude_ribosomal && is_ribosomal(symbol)
    };
    let mut chosen: Vec<usize> =
        (0..genes.len()).filter(|&gene| enough(gene) && !named_out(&genes[gene])).collect();
    if chosen.len() < count {
        return Err(Error::Request(format!(
            "{count} genes were asked for, but only {} of {} are detected in at least {:.0}% of \
             the {} training tiles; ask for fewer, or lower that fraction",
            chosen.len(),
            genes.len(),
            filter.min_detected * 100.0,
            rows.len()
        )));
    }
    chosen
        .sort_by(|&a, &b| squares[b].total_cmp(&squares[a]).then_with(|| genes[a].cmp(&genes[b])));
    chosen.truncate(count);
    Ok(chosen)
}

/// Whether `symbol` is of a gene of the mitochondrial genome.
pub fn is_mitochondrial(symbol: &str) -> bool {
    symbol.get(..3).is_some_and(|prefix| prefix.eq_ignore_ascii_case("MT-"))
}

/// Whether `symbol` is of a cytosolic ribosomal protein. `RPS6KA1` and the like are kinases.
pub fn is_ribosomal(symbol: &str) -> bool {
    let symbol = symbol.to_ascii_uppercase();
    let Some(rest) = symbol.strip_prefix("RPS").or_else(|| symbol.strip_prefix("RPL")) else {
        return false;
    };
    let number = rest.trim_start_matches('P');
    let tail = number.trim_start_matches(|c: char| c.is_ascii_digit());
    rest == "A" || (tail.len() < number.len() && !tail.starts_with('K'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::testing::dataset;

    #[test]
    fn the_most_variable_come_first_and_ties_go_by_symbol() {
        // Columns: D is flat after normalisation, A and B swing alike, C is seen once.
        let rows: [&[f32]; 4] =
            [&[8., 0., 0., 8.], &[0., 8., 0., 8.], &[8., 0., 0., 8.], &[0., 6., 2., 8.]];
        let (_dir, data) = dataset(&["B", "A", "C", "D"], &rows);
        let filter = GeneFilter { min_detected: 0.5, ..GeneFilter::default() };
        let first = [0, 1, 2];
        let chosen = most_variable(&data, &first, 2, &filter).unwrap();
        assert_eq!(chosen.len(), 2);
        let tied = most_variable(&data, &[0, 1], 2, &filter).unwrap();
        assert_eq!(tied, [1, 0], "A before B");
        let all = most_variable(&data, &[0, 1, 2, 3], 3, &filter).unwrap();
        assert!(!all.contains(&2) && all[2] == 3, "{all:?}");
        let error = most_variable(&data, &[0, 1, 2, 3], 4, &filter).unwrap_err().to_string();
        assert!(error.contains("only 3 of 4"), "{error}");
        assert!(most_variable(&data, &[], 1, &filter).is_err());
    }

    #[test]
    fn names_of_families() {
        assert!(is_mitochondrial("MT-CO1") && is_mitochondrial("mt-Co1"));
        assert!(!is_mitochondrial("MTOR") && !is_mitochondrial("µ"));
        for symbol in ["RPS6", "RPL13A", "RPLP0", "RPSA", "RPS4X", "Rpl10l"] {
            assert!(is_ribosomal(symbol), "{symbol}");
        }
        for symbol in ["RPS6KA1", "RPSAP1X", "RPLX", "MRPS12", "RPS", "RPL", "RPLP"] {
            assert!(!is_ribosomal(symbol), "{symbol}");
        }
    }

    #[test]
    fn families_are_left_out_on_request() {
        let rows: [&[f32]; 2] = [&[9., 0., 5.], &[0., 9., 1.]];
        let (_dir, data) = dataset(&["MT-CO1", "RPS6", "ERBB2"], &rows);
        let filter =
            GeneFilter { min_detected: 0.0, exclude_mitochondrial: true, exclude_ribosomal: true };
        assert_eq!(most_variable(&data, &[0, 1], 1, &filter).unwrap(), [2]);
    }
}
