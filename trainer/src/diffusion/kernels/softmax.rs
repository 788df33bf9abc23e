//! Softmax over the last dimension.

use super::pointwise::exp;
use super::simd::vectorize;
use super::{Kernel, Output, View};

/// Softmax over the last dimension.
#[derive(Debug, Clone)]
pub struct Softmax;

/// One row: `exp(x - max)` over its sum.
#[inline(always)]
fn row(x: &[f32], out: &mut Vec<f32>) {
    let start = out.len();
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    out.extend(x.iter().map(|v| exp(v - top)));
    let values = &mut out[start..];
    let mut lanes = [0.0f32; 8];
    for chunk in values.chunks(8) {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    let inverse = 1.0 / lanes.iter().sum::<f32>();
    for v in values {
        *v *= inverse;
    }
}

impl Kernel<1> for Softmax {
    fn forward(&self, [x]: [View<'_>; 1]) -> Output {
        let width = x.shape.last().copied().unwrap_or(1).max(1);
        let mut data = Vec::with_capacity(x.data.len());
        vectorize(|| {
            for x in x.data.chunks_exact(width) {
                row(x, &mut data);
            }
        });
        Output { shape: x.shape.to_vec(), data }
    }

    fn backward(&self, [x]: [View<'_>; 1], grad: View<'_>, _: [bool; 1]) -> [Option<Output>; 1] {
        // The result is computed again rather than kept: dx = y (g - g . y).
        let width = x.shape.last().copied().unwrap_or(1).max(1);
        let mut data = Vec::with_capacity(x.data.len());
        vectorize(|| {
            for (x, g) in x.data.chunks_exact(width).zip(grad.data.chunks_exact(width)) {
                let start = data.len();
                row(x, &mut data);
                let y = &mut data[start..];
                let mut lanes = [0.0f32; 8];
                for (y, g) in y.chunks(8).zip(g.chunks(8)) {
                    for ((lane, y), g) in lanes.iter_mut().zip(y).zip(g) {
                        *lane += y * g;
                    }
                }
                let total: f32 = lanes.iter().sum();
                for (y, g) in y.iter_mut().zip(g) {
                    *y *= g - total;
                }
            }
        });
        [Some(Output { shape: x.shape.to_vec(), data })]
    }
}
