//! Deterministic second-order sampling (Heun) on the EDM2 noise schedule.

use burn::tensor::Tensor;

use super::denoiser::Denoiser;
use super::unet::Condition;

/// The schedule of noise levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Number of steps.
    pub steps: usize,
    /// Smallest noise level.
    pub sigma_min: f64,
    /// Largest noise level.
    pub sigma_max: f64,
    /// Exponent that puts more steps at small noise.
    pub rho: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { steps: 32, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 }
    }
}

impl Schedule {
    /// Noise levels from the largest to zero, `steps + 1` of them.
    pub fn sigmas(&self) -> Vec<f64> {
        let root = |s: f64| s.powf(1.0 / self.rho);
        let (high, low) = (root(self.sigma_max), root(self.sigma_min));
        let last = self.steps.saturating_sub(1).max(1) as f64;
        let mut list: Vec<f64> = (0..self.steps)
            .map(|i| (high + i as f64 / last * (low - high)).powf(self.rho))
            .collect();
        list.push(0.0);
        list
    }
}

/// Draws images from unit normal `noise [N, C, H, W]`; with genes where a condition is given.
pub fn sample(
    denoiser: &Denoiser,
    noise: Tensor<4>,
    condition: Option<&Condition>,
    schedule: &Schedule,
) -> Tensor<4> {
    let n = noise.dims()[0];
    let device = noise.device();
    let sigmas = schedule.sigmas();
    let slope = |x: Tensor<4>, sigma: f64| {
        let level = Tensor::full([n], sigma, &device);
        (x.clone() - denoiser.denoise(x, level, condition)).div_scalar(sigma)
    };
    let mut x = noise.mul_scalar(sigmas[0]);
    for pair in sigmas.windows(2) {
        let (now, next) = (pair[0], pair[1]);
        let d = slope(x.clone(), now);
        let euler = x.clone() + d.clone().mul_scalar(next - now);
        x = if next > 0.0 {
            let corrected = (d + slope(euler, next)).mul_scalar(0.5);
            x + corrected.mul_scalar(next - now)
        } else {
            euler
        };
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_runs_from_largest_to_zero() {
        let sigmas = Schedule::default().sigmas();
        assert_eq!(sigmas.len(), 33);
        assert!((sigmas[0] - 80.0).abs() < 1e-9 && (sigmas[31] - 0.002).abs() < 1e-9);
        assert!(sigmas.windows(2).all(|p| p[0] > p[1]));
        assert_eq!(sigmas[32], 0.0);
    }
}
