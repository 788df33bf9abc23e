//! Adam, on flat tensors of any device.

use burn::tensor::Tensor;

use crate::diffusion::Parameters;

/// Decay of the first moment.
const BETA1: f64 = 0.9;
/// Decay of the second moment.
const BETA2: f64 = 0.99;
/// Added to the denominator.
const EPSILON: f64 = 1e-8;
/// Largest magnitude of a gradient's value that is used.
const LIMIT: f64 = 1e5;

/// First and second moments of the gradients, in the order of [`Parameters::specs`].
#[derive(Debug, Clone)]
pub struct Adam {
    /// Running mean.
    pub first: Vec<Tensor<1>>,
    /// Running mean of squares.
    pub second: Vec<Tensor<1>>,
}

impl Adam {
    /// Moments of zero.
    pub fn new(parameters: &Parameters) -> Self {
        let zeros = || parameters.values().iter().map(Tensor::zeros_like).collect();
        Self { first: zeros(), second: zeros() }
    }

    /// One step number `step` (from 1) with learning rate `rate`. Gradients that are not finite
    /// count as zero. Parameters without a gradient stay as they are.
    pub fn step(
        &mut self,
        parameters: &mut Parameters,
        gradients: Vec<Option<Tensor<1>>>,
        step: u64,
        rate: f64,
    ) {
        let power = step.min(i32::MAX as u64) as i32;
        let (correct1, correct2) = (1.0 - BETA1.powi(power), 1.0 - BETA2.powi(power));
        let mut values = parameters.values().to_vec();
        for (i, gradient) in gradients.into_iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let g = finite(gradient);
            let first = self.first[i].clone() * BETA1 + g.clone() * (1.0 - BETA1);
            let second = self.second[i].clone() * BETA2 + g.square() * (1.0 - BETA2);
            let denominator = second.clone().div_scalar(correct2).sqrt() + EPSILON;
            let change = first.clone().mul_scalar(rate / correct1) / denominator;
            values[i] = values[i].clone() - change;
            self.first[i] = first;
            self.second[i] = second;
        }
        parameters.set_values(values);
    }
}

/// NaN to zero, infinities to a large finite value.
fn finite(x: Tensor<1>) -> Tensor<1> {
    let nan = x.clone().is_nan();
    x.mask_fill(nan, 0.0).clamp(-LIMIT, LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Config;
    use crate::diffusion::parameters::host;
    use burn::tensor::Device;

    #[test]
    fn the_first_step_has_the_size_of_the_rate() {
        let config = Config::preset("tiny").unwrap();
        let device = Device::flex();
        let mut parameters = Parameters::initialize(&config, 1, &device);
        let before = parameters.values().to_vec();
        let mut adam = Adam::new(&parameters);
        let mut gradients: Vec<Option<Tensor<1>>> =
            before.iter().map(|v| Some(Tensor::full_like(v, -3.0))).collect();
        gradients[0] = None;
        adam.step(&mut parameters, gradients, 1, 0.01);
        for (i, (a, b)) in before.iter().zip(parameters.values()).enumerate() {
            let moved = host(b.clone() - a.clone()).unwrap();
            let expected = if i == 0 { 0.0 } else { 0.01 };
            assert!(moved.iter().all(|v| (v - expected).abs() < 1e-6), "{i}: {:?}", moved.first());
        }
    }

    #[test]
    fn broken_gradients_become_finite() {
        let x =
            Tensor::<1>::from_data([f32::NAN, f32::INFINITY, -f32::INFINITY, 2.0], &Device::flex());
        assert_eq!(host(finite(x)).unwrap(), [0.0, 1e5, -1e5, 2.0]);
    }
}
