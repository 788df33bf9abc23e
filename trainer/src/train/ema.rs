//! Power-function averages of the parameters, and their post-hoc reconstruction.
//!
//! The average with exponent gamma weighs the parameters of time t by t^gamma; its width, the
//! standard deviation of that profile relative to the training time, is what is chosen. Averages of
//! two widths are kept while training; any other width follows afterwards as the combination of
//! their snapshots whose profile is nearest (Karras et al. 2024, section 3).

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use nalgebra::{DMatrix, DVector};

use crate::diffusion::{Array, Parameters, Weights};
use crate::{Error, Result};

/// Relative widths kept in training.
pub const TRACKED: [f64; 2] = [0.05, 0.10];

/// Relative widths written at every checkpoint.
pub const RECONSTRUCTED: [f64; 3] = [0.10, 0.15, 0.20];

/// Exponent of the profile with relative width `width`: the positive root of
/// `(g + 2)^2 (g + 3) width^2 = g + 1`.
pub fn exponent(width: f64) -> f64 {
    let excess = |g: f64| (g + 1.0) / ((g + 2.0).powi(2) * (g + 3.0)) - width * width;
    // The width falls from its largest value as g grows from 0.
    let (mut low, mut high) = (0.0, 1e4);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if excess(middle) > 0.0 { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Averages of the parameters at the [`TRACKED`] widths.
#[derive(Debug, Clone)]
pub struct Averages {
    /// One list for each width, in the order of [`Parameters::specs`].
    pub values: Vec<Vec<Tensor<1>>>,
}

impl Averages {
    /// Averages that start at the parameters themselves.
    pub fn new(parameters: &Parameters) -> Self {
        Self { values: vec![parameters.values().to_vec(); TRACKED.len()] }
    }

    /// Takes in the parameters after `images` images, the last `batch` of them in this step.
    pub fn update(&mut self, parameters: &Parameters, images: u64, batch: u64) {
        for (width, averages) in TRACKED.iter().zip(&mut self.values) {
            let keep = 1.0 - batch as f64 / images.max(1) as f64;
            let keep = keep.max(0.0).powf(exponent(*width) + 1.0);
            for ((average, value), spec) in
                averages.iter_mut().zip(parameters.values()).zip(parameters.specs())
            {
                if spec.role.trained() {
                    *average = average.clone() * keep + value.clone() * (1.0 - keep);
                }
            }
        }
    }
}

/// One stored average.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Images trained on.
    pub images: u64,
    /// Relative width.
    pub width: f64,
    /// The file.
    pub path: PathBuf,
}

/// Name of a snapshot's file.
pub fn snapshot_name(images: u64, width: f64) -> String {
    format!("ema-{images:09}-{width:.3}.safetensors")
}

/// Snapshots of a model directory up to `images`, oldest first.
pub fn snapshots(directory: &Path, images: u64) -> Result<Vec<Snapshot>> {
    let mut list = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io(directory))? {
        let path = entry.map_err(Error::io(directory))?.path();
        let parsed = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_prefix("ema-")?.strip_suffix(".safetensors")?.split_once('-'))
            .and_then(|(images, width)| Some((images.parse().ok()?, width.parse().ok()?)));
        if let Some((at, width)) = parsed
            && at <= images
        {
            list.push(Snapshot { images: at, width, path });
        }
    }
    list.sort_by(|a, b| a.images.cmp(&b.images).then(a.width.total_cmp(&b.width)));
    Ok(list)
}

/// Inner product of the profiles that end at `ta` and `tb` with exponents `ga` and `gb`.
fn profile_product(ta: f64, ga: f64, tb: f64, gb: f64) -> f64 {
    // integral_0^min(ta, tb) of (ga+1) t^ga / ta^(ga+1) * (gb+1) t^gb / tb^(gb+1)
    let ratio = ta / tb;
    let power = if ta < tb { ratio.powf(gb) } else { ratio.powf(-ga) };
    (ga + 1.0) * (gb + 1.0) * power / ((ga + gb + 1.0) * ta.max(tb))
}

/// Coefficients of the stored averages (time, width) whose combination has the profile of width
/// `width` at time `end`, by least squares.
pub fn coefficients(stored: &[(f64, f64)], end: f64, width: f64) -> Option<Vec<f64>> {
    let stored: Vec<(f64, f64)> = stored.iter().map(|(t, w)| (t / end, exponent(*w))).collect();
    let n = stored.len();
    let a = DMatrix::from_fn(n, n, |i, j| {
        profile_product(stored[i].0, stored[i].1, stored[j].0, stored[j].1)
    });
    let target = exponent(width);
    let b = DVector::from_fn(n, |i, _| profile_product(stored[i].0, stored[i].1, 1.0, target));
    // Neighbouring profiles are nearly parallel: tiny singular values are noise.
    let solution = a.svd(true, true).solve(&b, 1e-12).ok()?;
    Some(solution.iter().copied().collect())
}

/// The average of width `width` at `images`, from the snapshots of `directory`. Tensors that are
/// not trained are taken from the newest snapshot.
pub fn reconstruct(directory: &Path, images: u64, width: f64) -> Result<Weights> {
    let list = snapshots(directory, images)?;
    let times: Vec<(f64, f64)> = list.iter().map(|s| (s.images as f64, s.width)).collect();
    let newest = list.last().ok_or_else(|| {
        Error::model(directory, "holds no ema-*.safetensors snapshot; train for longer")
    })?;
    let weights = coefficients(&times, newest.images as f64, width).ok_or_else(|| {
        Error::Check(format!("the average of width {width} cannot be reconstructed"))
    })?;
    let mut result = Weights::load(&newest.path)?;
    let mut sums: Vec<(String, Vec<usize>, Vec<f64>)> = result
        .iter()
        .filter(|(name, _)| !name.ends_with(".freqs") && !name.ends_with(".phases"))
        .map(|(name, a)| (name.to_owned(), a.shape.clone(), vec![0.0; a.data.len()]))
        .collect();
    for (snapshot, weight) in list.iter().zip(weights) {
        let stored = Weights::load(&snapshot.path)?;
        for (name, shape, sum) in &mut sums {
            let array = stored.get(name).filter(|a| a.shape == *shape).ok_or_else(|| {
                Error::model(
                    &snapshot.path,
                    format!("does not hold tensor '{name}' as the newest snapshot does; remove it"),
                )
            })?;
            for (s, v) in sum.iter_mut().zip(&array.data) {
                *s += weight * f64::from(*v);
            }
        }
    }
    for (name, shape, sum) in sums {
        result.insert(name, Array::new(shape, sum.into_iter().map(|v| v as f32).collect()));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_exponents() {
        // Karras et al. give 16.97 for 0.05 and 6.94 for 0.10.
        assert!((exponent(0.05) - 16.97).abs() < 0.01, "{}", exponent(0.05));
        assert!((exponent(0.10) - 6.94).abs() < 0.01, "{}", exponent(0.10));
    }

    /// The average of a known trajectory, stepped and by its integral.
    fn average(f: impl Fn(f64) -> f64, end: usize, width: f64) -> f64 {
        let gamma = exponent(width);
        let mut value = f(1.0);
        for t in 1..=end {
            let keep = (1.0 - 1.0 / t as f64).powf(gamma + 1.0);
            value = value * keep + f(t as f64) * (1.0 - keep);
        }
        value
    }

    #[test]
    fn other_widths_follow_from_snapshots() {
        let f = |t: f64| (t / 300.0).sin() + (t / 40.0).cos() * 0.3;
        let times: Vec<usize> = (1..=16).map(|i| i * 64).collect();
        let mut stored = Vec::new();
        let mut values = Vec::new();
        for t in &times {
            for width in TRACKED {
                stored.push((*t as f64, width));
                values.push(average(f, *t, width));
            }
        }
        for width in [0.05, 0.10, 0.15, 0.20] {
            let c = coefficients(&stored, 1024.0, width).unwrap();
            let got: f64 = c.iter().zip(&values).map(|(c, v)| c * v).sum();
            let expected = average(f, 1024, width);
            assert!((got - expected).abs() < 0.02, "width {width}: {got} and {expected}");
            assert!((c.iter().sum::<f64>() - 1.0).abs() < 0.02);
        }
    }

    #[test]
    fn one_snapshot_is_itself() {
        let c = coefficients(&[(10.0, 0.10)], 10.0, 0.10).unwrap();
        assert!((c[0] - 1.0).abs() < 1e-9);
    }
}
