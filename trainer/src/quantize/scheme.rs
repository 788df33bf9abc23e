//! Numbers of 8 bits and fewer: what a real value becomes and what comes back.
//!
//! Activations are one scale and zero point a tensor (uint8, asymmetric), weights one scale an
//! output channel (int8, symmetric). Rounding is half to even, as ONNX `QuantizeLinear` does.

use serde::{Deserialize, Serialize};

use super::graph::Layer;
use super::rounding::Moments;

/// Largest magnitude that an int32 bias may have, so that sums keep room above it.
const BIAS_LIMIT: f32 = (1 << 30) as f32;

/// Shares of the largest weight that are tried as the end of a channel's range.
const SHRINK_STEPS: usize = 24;

/// uint8 values of one tensor: real = scale * (q - zero_point).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Affine {
    /// Distance between neighbouring values.
    pub scale: f32,
    /// The value that means zero.
    pub zero_point: u8,
}

impl Affine {
    /// The finest scale whose values reach from `low` to `high`; zero is always among them.
    pub fn over(low: f32, high: f32) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = (high - low) / 255.0;
        if !(scale.is_finite() && scale > 0.0) {
            return Self { scale: 1.0, zero_point: 0 };
        }
        let zero_point = (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8;
        Self { scale, zero_point }
    }

    /// The nearest value of 0 to 255.
    pub fn quantize(self, real: f32) -> u8 {
        // A NaN becomes 0 by the cast.
        ((real / self.scale).round_ties_even() + f32::from(self.zero_point)).clamp(0.0, 255.0) as u8
    }

    /// What `q` stands for.
    pub fn dequantize(self, q: u8) -> f32 {
        self.scale * (f32::from(q) - f32::from(self.zero_point))
    }
}

/// A weight tensor as integers with one scale per index of `axis`.
#[derive(Debug, Clone, PartialEq)]
pub struct Channels {
    /// Integers, row-major in the tensor's own shape.
    pub values: Vec<i8>,
    /// One scale per index of `axis`: real = scale * value.
    pub scales: Vec<f32>,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// The output channels' axis.
    pub axis: usize,
}

impl Channels {
    /// Quantises `data` to `bits` bits (8: -127 to 127, 7: -63 to 63). Each channel's scale is the
    /// one of least squared error among shrunken ranges; scales are at least `floor`, one a
    /// channel.
    pub fn of(data: &[f32], shape: &[usize], axis: usize, bits: u8, floor: &[f32]) -> Self {
        let mut values = vec![0; data.len()];
        let mut scales = Vec::with_capacity(shape[axis]);
        for channel in 0..shape[axis] {
            let own: Vec<usize> = indices(shape, axis, channel).collect();
            let weights: Vec<f32> = own.iter().map(|&index| data[index]).collect();
            let scale = best_scale(&weights, bits).max(floor.get(channel).copied().unwrap_or(0.0));
            for (&index, weight) in own.iter().zip(weights) {
                values[index] = to_integer(weight, scale, bits);
            }
            scales.push(scale);
        }
        Self { values, scales, shape: shape.to_vec(), axis }
    }

    /// Rounds the weights of `layer`, in the layout of `data`, so that its output moves least.
    pub fn round(&mut self, layer: &Layer, data: &[f32], bits: u8, moments: &Moments) {
        let (shape, scales) = (&self.shape, &self.scales);
        let inner: usize = shape[self.axis + 1..].iter().product();
        let scale = |at: usize| scales[at / inner % shape[self.axis]];
        moments.round(layer, data, &mut self.values, scale, bits);
    }

    /// The reals the integers stand for.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut data = vec![0.0; self.values.len()];
        for (channel, &scale) in self.scales.iter().enumerate() {
            for index in indices(&self.shape, self.axis, channel) {
                data[index] = scale * f32::from(self.values[index]);
            }
        }
        data
    }
}

/// Largest integer of a symmetric range.
pub fn largest(bits: u8) -> f32 {
    ((1i32 << (bits - 1)) - 1) as f32
}

/// The nearest integer to `weight / scale` in the symmetric range of `bits`.
pub fn to_integer(weight: f32, scale: f32, bits: u8) -> i8 {
    let end = largest(bits);
    (weight / scale).round_ties_even().clamp(-end, end) as i8
}

/// The scale of least squared error for one channel.
fn best_scale(weights: &[f32], bits: u8) -> f32 {
    let peak = weights.iter().fold(0.0f32, |peak, weight| peak.max(weight.abs()));
    if peak == 0.0 || !peak.is_finite() {
        return 1.0;
    }
    let error = |scale: f32| -> f64 {
        let distance = |&w: &f32| f64::from(w - scale * f32::from(to_integer(w, scale, bits)));
        weights.iter().map(|w| distance(w).powi(2)).sum()
    };
    let candidates = (0..SHRINK_STEPS).map(|step| {
        let share = 1.0 - 0.5 * step as f32 / SHRINK_STEPS as f32;
        peak * share / largest(bits)
    });
    candidates
        .map(|scale| (error(scale), scale))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(1.0, |(_, scale)| scale)
}

/// Smallest weight scales with which `bias` fits into an int32 of scale input x weight.
pub fn bias_floor(bias: &[f32], input: Affine) -> Vec<f32> {
    bias.iter().map(|b| b.abs() / (input.scale * BIAS_LIMIT)).collect()
}

/// Positions of one channel in a row-major tensor.
pub fn indices(shape: &[usize], axis: usize, channel: usize) -> impl Iterator<Item = usize> {
    let inner: usize = shape[axis + 1..].iter().product();
    let stride = inner * shape[axis];
    let outer: usize = shape[..axis].iter().product();
    (0..outer).flat_map(move |o| {
        let start = o * stride + channel * inner;
        start..start + inner
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_by_hand() {
        let affine = Affine::over(-1.0, 4.1);
        assert_eq!(affine, Affine { scale: 5.1 / 255.0, zero_point: 50 });
        assert_eq!(affine.quantize(0.0), 50);
        assert_eq!(affine.quantize(100.0), 255);
        assert_eq!(affine.quantize(-100.0), 0);
        // Pixels are exact.
        assert_eq!(Affine::over(0.0, 255.0), Affine { scale: 1.0, zero_point: 0 });
        // A range that is all positive still holds zero, and an empty one still is one.
        assert_eq!(Affine::over(1.0, 2.55).zero_point, 0);
        assert_eq!(Affine::over(0.0, 0.0).scale, 1.0);
    }

    #[test]
    fn halves_go_to_even() {
        let affine = Affine { scale: 1.0, zero_point: 10 };
        assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5].map(|x| affine.quantize(x)), [10, 12, 12, 10, 8]);
    }

    #[test]
    fn channels_have_their_own_scales() {
        // Two output channels on axis 1.
        let data = [1.27, 0.1, -0.63, 0.05];
        let channels = Channels::of(&data, &[2, 2], 1, 8, &[]);
        assert_eq!(channels.scales.len(), 2);
        for (a, b) in data.iter().zip(channels.dequantize()) {
            assert!((a - b).abs() < 0.006, "{a} {b}");
        }
        let seven = Channels::of(&data, &[2, 2], 1, 7, &[]);
        assert!(seven.values.iter().all(|v| v.abs() <= 63));
        assert_eq!(Channels::of(&[0.0; 4], &[2, 2], 0, 8, &[]).dequantize(), [0.0; 4]);
    }

    #[test]
    fn a_scale_leaves_room_for_its_bias() {
        let input = Affine { scale: 1e-3, zero_point: 0 };
        let floor = bias_floor(&[5.0], input);
        let channels = Channels::of(&[1e-9], &[1, 1], 0, 8, &floor);
        assert!(5.0 / (channels.scales[0] * input.scale) <= BIAS_LIMIT * 1.0001);
    }

    proptest! {
        #[test]
        fn what_is_in_range_moves_by_half_a_step(
            low in -100f32..0.0, span in 0.01f32..200.0, at in 0f32..1.0
        ) {
            let affine = Affine::over(low, low + span);
            let (low, high) = (affine.dequantize(0), affine.dequantize(255));
            let real = low + (high - low) * at;
            let back = affine.dequantize(affine.quantize(real));
            prop_assert!((real - back).abs() <= affine.scale * 0.5001);
            // Quantising what came back changes nothing.
            prop_assert_eq!(affine.quantize(back), affine.quantize(real));
        }

        #[test]
        fn order_is_kept(a in -10f32..10.0, b in -10f32..10.0) {
            let affine = Affine::over(-3.0, 5.0);
            prop_assert!((a <= b) <= (affine.quantize(a) <= affine.quantize(b)));
        }

        #[test]
        fn weights_come_back_within_their_range(
            data in proptest::collection::vec(-2f32..2.0, 12), bits in 7u8..=8
        ) {
            let channels = Channels::of(&data, &[3, 4], 0, bits, &[]);
            let end = largest(bits);
            for (index, (w, back)) in data.iter().zip(channels.dequantize()).enumerate() {
                let scale = channels.scales[index / 4];
                if w.abs() <= scale * end {
                    prop_assert!((w - back).abs() <= scale * 0.5001);
                }
                prop_assert!(f32::from(channels.values[index].abs()) <= end);
            }
        }
    }
}
