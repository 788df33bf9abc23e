//! The learning rate over a run.

use serde::{Deserialize, Serialize};

/// `reference / sqrt(max(t / decay, 1))` with a linear ramp-up from zero, over images.
///
/// The inverse square root keeps magnitude-preserving weights, whose size does not grow, learning
/// ever finer. Published: 0.012, decay after 70,000 batches of 1024 images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LearningRate {
    /// Rate between ramp-up and decay.
    pub reference: f64,
    /// Images after which it decays.
    pub decay_images: u64,
    /// Images of the ramp-up.
    pub ramp_images: u64,
}

impl LearningRate {
    /// The rate of the step that brings the run to `images` images.
    pub fn at(&self, images: u64) -> f64 {
        let t = images as f64;
        let decay = (t / self.decay_images.max(1) as f64).max(1.0).sqrt();
        let ramp = (t / self.ramp_images.max(1) as f64).min(1.0);
        self.reference / decay * ramp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramps_holds_and_decays() {
        let rate = LearningRate { reference: 0.01, decay_images: 100, ramp_images: 10 };
        assert!((rate.at(5) - 0.005).abs() < 1e-12);
        assert!((rate.at(50) - 0.01).abs() < 1e-12);
        assert!((rate.at(400) - 0.005).abs() < 1e-12);
    }
}
