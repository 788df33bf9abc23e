//! Dropout whose draws come from the program's own seeded generator, so that a training run
//! repeats and resumes to the same numbers on every device.

use burn::tensor::{Tensor, TensorData};

use crate::train::random::Stream;

/// Draws of dropout masks; [`Masks::none`] for prediction.
pub struct Masks<'a> {
    random: Option<&'a mut Stream>,
}

impl<'a> Masks<'a> {
    /// No dropout.
    pub fn none() -> Masks<'static> {
        Masks { random: None }
    }

    /// Masks drawn from `random`.
    pub fn new(random: &'a mut Stream) -> Self {
        Self { random: Some(random) }
    }

    /// `x` with a share `rate` of the values dropped and the others scaled up to keep the mean.
    pub fn drop<const D: usize>(&mut self, x: Tensor<D>, rate: f64) -> Tensor<D> {
        let Some(random) = self.random.as_mut().filter(|_| rate > 0.0) else { return x };
        let keep = (1.0 / (1.0 - rate)) as f32;
        let shape = x.dims();
        let mask: Vec<f32> = (0..shape.iter().product())
            .map(|_| if random.uniform() < rate { 0.0 } else { keep })
            .collect();
        let mask = Tensor::<D>::from_data(TensorData::new(mask, shape), &x.device().inner());
        x * mask
    }
}
