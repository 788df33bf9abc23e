//! How far a quantised model is from the float32 one, on tiles.

use std::collections::BTreeMap;

use diffbulk::model::pb::ModelProto;
use serde::Serialize;

use super::observe::Tiles;
use crate::Result;
use crate::evaluate::metrics::pearson;

/// What the float32 model and, where it is known, the laboratory say of the tiles.
#[derive(Debug)]
pub struct Reference {
    float: Vec<Vec<f32>>,
    truth: Option<Truth>,
    float_pearson: Option<f64>,
}

/// Measured values of the outputs.
#[derive(Debug)]
pub struct Truth {
    /// One value an output, per tile.
    pub values: Vec<Vec<f32>>,
    /// The slide of each tile: correlations are within slides.
    pub slides: Vec<String>,
}

/// One model against the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Tiles it was measured on.
    pub tiles: usize,
    /// Signal to quantisation noise in dB, where the signal is what varies between tiles.
    pub sqnr_db: f64,
    /// Largest difference, as a share of the largest float32 output.
    pub largest: f64,
    /// What is lost: of the mean per-output Pearson correlation with measured values, or, where
    /// nothing was measured, 1 minus the mean per-output correlation with the float32 model.
    pub drop: f64,
}

impl Reference {
    /// Runs the float32 model.
    pub fn new(model: &ModelProto, tiles: Tiles, truth: Option<Truth>) -> Result<Self> {
        let float = tiles.outputs(model)?;
        let float_pearson = truth.as_ref().map(|truth| truth.mean_pearson(&float));
        Ok(Self { float, truth, float_pearson })
    }

    /// Whether outputs are compared with measured values.
    pub fn has_truth(&self) -> bool {
        self.truth.is_some()
    }

    /// Runs `model` on the tiles the reference was made with.
    pub fn measure(&self, model: &ModelProto, tiles: Tiles) -> Result<Measured> {
        Ok(self.compare(&tiles.outputs(model)?))
    }

    /// Compares outputs, one row a tile.
    pub fn compare(&self, outputs: &[Vec<f32>]) -> Measured {
        let (mut signal, mut noise, mut worst, mut peak) = (0.0, 0.0, 0.0f64, 0.0f64);
        let count = self.float.len().max(1) as f64;
        let width = self.float.first().map_or(0, Vec::len);
        for output in 0..width {
            let mean = self.float.iter().map(|row| f64::from(row[output])).sum::<f64>() / count;
            for (float, other) in self.float.iter().zip(outputs) {
                let (f, q) = (f64::from(float[output]), f64::from(other[output]));
                signal += (f - mean).powi(2);
                noise += (f - q).powi(2);
                let difference = (f - q).abs();
                // A NaN must not compare as agreement.
                worst = if difference.is_nan() { f64::INFINITY } else { worst.max(difference) };
                peak = peak.max(f.abs());
            }
        }
        let drop = match (&self.truth, self.float_pearson) {
            (Some(truth), Some(float)) => float - truth.mean_pearson(outputs),
            _ => 1.0 - mean_correlation(&self.float, outputs, 0..self.float.len()),
        };
        Measured {
            tiles: self.float.len(),
            sqnr_db: decibel(signal, noise),
            largest: worst / peak.max(f64::MIN_POSITIVE),
            drop: if drop.is_nan() || !worst.is_finite() { f64::INFINITY } else { drop },
        }
    }
}

impl Truth {
    /// Mean over slides of the mean per-output correlation within the slide.
    fn mean_pearson(&self, outputs: &[Vec<f32>]) -> f64 {
        let mut slides: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, slide) in self.slides.iter().enumerate() {
            slides.entry(slide).or_default().push(index);
        }
        let means: Vec<f64> = slides
            .into_values()
            .map(|rows| mean_correlation(&self.values, outputs, rows.into_iter()))
            .filter(|mean| mean.is_finite())
            .collect();
        means.iter().sum::<f64>() / means.len() as f64
    }
}

/// Mean over outputs of the correlation over `rows`, where it is defined.
fn mean_correlation(
    a: &[Vec<f32>],
    b: &[Vec<f32>],
    rows: impl Iterator<Item = usize> + Clone,
) -> f64 {
    let width = a.first().map_or(0, Vec::len);
    let column = |m: &[Vec<f32>], output: usize| -> Vec<f64> {
        rows.clone().map(|row| f64::from(m[row][output])).collect()
    };
    let defined: Vec<f64> =
        (0..width).filter_map(|output| pearson(&column(a, output), &column(b, output))).collect();
    defined.iter().sum::<f64>() / defined.len() as f64
}

/// 10 log10(signal / noise), at most 200.
pub fn decibel(signal: f64, noise: f64) -> f64 {
    if noise <= signal * 1e-20 { 200.0 } else { 10.0 * (signal / noise).log10() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(truth: bool) -> Reference {
        let float = vec![vec![1.0, 5.0], vec![2.0, 3.0], vec![3.0, 4.0]];
        let truth = truth.then(|| Truth { values: float.clone(), slides: vec!["A".into(); 3] });
        let float_pearson = truth.as_ref().map(|truth| truth.mean_pearson(&float));
        Reference { float, truth, float_pearson }
    }

    #[test]
    fn noise_by_hand() {
        // The outputs vary by 2 and 2; the error is 0.1 everywhere: 4 / 0.06 is 18.24 dB.
        let outputs = vec![vec![1.1, 5.1], vec![2.1, 3.1], vec![3.1, 4.1]];
        for truth in [false, true] {
            let measured = reference(truth).compare(&outputs);
            assert!((measured.sqnr_db - 18.239).abs() < 1e-3, "{measured:?}");
            assert!((measured.largest - 0.02).abs() < 1e-6);
            // A shift costs no correlation.
            assert!(measured.drop.abs() < 1e-9);
        }
    }

    #[test]
    fn a_lost_order_is_a_drop() {
        let outputs = vec![vec![1.0, 5.0], vec![2.0, 3.0], vec![1.0, 4.0]];
        // The first output no longer follows: its correlation is 0, the mean 0.5.
        assert!((reference(true).compare(&outputs).drop - 0.5).abs() < 1e-9);
        let broken = vec![vec![f32::NAN, 5.0], vec![2.0, 3.0], vec![1.0, 4.0]];
        assert_eq!(reference(true).compare(&broken).drop, f64::INFINITY);
    }

    #[test]
    fn decibels_end_somewhere() {
        assert_eq!(decibel(10.0, 1.0), 10.0);
        assert_eq!(decibel(1.0, 0.0), 200.0);
    }
}
