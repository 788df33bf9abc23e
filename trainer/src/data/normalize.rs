//! Expression of a tile as the models see it: a fixed total, then a logarithm.

use serde::{Deserialize, Serialize};

/// Total that the counts of a tile are scaled to before the logarithm.
pub const TARGET_TOTAL: f64 = 10_000.0;

/// What the numbers of a dataset are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Raw counts of molecules; normalised on reading.
    #[serde(rename = "counts")]
    Counts,
    /// Normalised counts after `ln(1 + x)` already; never normalised again.
    #[serde(rename = "ln(1+x)")]
    Log1p,
}

impl Unit {
    /// The unit's name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Log1p => "ln(1+x)",
        }
    }
}

/// Scales `counts` to a total of 10,000 and takes `ln(1 + x)`: the expression of a tile. All
/// zeros stay zeros. The total is over all genes given, so normalise before choosing genes.
pub fn log_normalize(counts: &[f32]) -> Vec<f32> {
    let scale = scale(counts);
    counts.iter().map(|&count| log_scaled(count, scale)).collect()
}

/// Factor that brings `counts` to a total of [`TARGET_TOTAL`]; 0 when there is nothing to scale.
pub fn scale(counts: &[f32]) -> f64 {
    let total: f64 = counts.iter().map(|&c| f64::from(c)).sum();
    if total > 0.0 { TARGET_TOTAL / total } else { 0.0 }
}

/// `ln(1 + count * scale)`.
pub fn log_scaled(count: f32, scale: f64) -> f32 {
    (f64::from(count) * scale).ln_1p() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_to_ten_thousand_then_takes_the_logarithm() {
        let got = log_normalize(&[1.0, 0.0, 3.0]);
        assert!((got[0] - 2501f32.ln()).abs() < 1e-6);
        assert_eq!(got[1], 0.0);
        assert!((got[2] - 7501f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn an_empty_tile_stays_empty() {
        assert_eq!(log_normalize(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
