//! Elementwise and per-pixel kernels, each one pass over memory per direction.

use super::simd::vectorize;
use super::{Kernel, Output, View};
use crate::diffusion::ops::{EPSILON, SILU_SCALE};

const INVERSE_SCALE: f32 = (1.0 / SILU_SCALE) as f32;

/// e^x to about one unit in the last place, branch-free so that loops over it vectorise.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2: a polynomial in r, then n added to the exponent's bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer that then sits in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_145_75;
    let r = r - n * 1.428_606_8e-6;
    let p = 1.388_888_9e-3;
    let p = p * r + 8.333_333e-3;
    let p = p * r + 4.166_666_6e-2;
    let p = p * r + 1.666_666_7e-1;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn scaled_silu(x: f32) -> f32 {
    x * sigmoid(x) * INVERSE_SCALE
}

#[inline(always)]
fn scaled_silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s)) * INVERSE_SCALE
}

/// `mp_silu` of any array.
#[derive(Debug, Clone)]
pub struct Silu;

impl Kernel<1> for Silu {
    fn forward(&self, [x]: [View<'_>; 1]) -> Output {
        let data = vectorize(|| x.data.iter().map(|v| scaled_silu(*v)).collect());
        Output { shape: x.shape.to_vec(), data }
    }

    fn backward(&self, [x]: [View<'_>; 1], grad: View<'_>, _: [bool; 1]) -> [Option<Output>; 1] {
        let data = vectorize(|| {
            x.data.iter().zip(grad.data).map(|(x, g)| g * scaled_silu_slope(*x)).collect()
        });
        [Some(Output { shape: x.shape.to_vec(), data })]
    }
}

/// `mp_silu(x * factor)`, one factor per image and channel.
#[derive(Debug, Clone)]
pub struct SiluModulated;

impl Kernel<2> for SiluModulated {
    fn forward(&self, [x, factor]: [View<'_>; 2]) -> Output {
        let area = x.data.len() / factor.data.len().max(1);
        let mut data = Vec::with_capacity(x.data.len());
        for (plane, &f) in x.data.chunks_exact(area).zip(factor.data) {
            vectorize(|| data.extend(plane.iter().map(|v| scaled_silu(v * f))));
        }
        Output { shape: x.shape.to_vec(), data }
    }

    fn backward(
        &self,
        [x, factor]: [View<'_>; 2],
        grad: View<'_>,
        _: [bool; 2],
    ) -> [Option<Output>; 2] {
        let area = x.data.len() / factor.data.len().max(1);
        let mut dx = Vec::with_capacity(x.data.len());
        let mut df = Vec::with_capacity(factor.data.len());
        let planes = x.data.chunks_exact(area).zip(grad.data.chunks_exact(area));
        for ((plane, g), &f) in planes.zip(factor.data) {
            let total = vectorize(|| {
                let start = dx.len();
                // First the slope times the incoming gradient, which both results need.
                dx.extend(plane.iter().zip(g).map(|(x, g)| g * scaled_silu_slope(x * f)));
                let slopes = &mut dx[start..];
                let total = dot(slopes, plane);
                for s in slopes.iter_mut() {
                    *s *= f;
                }
                total
            });
            df.push(total);
        }
        [
            Some(Output { shape: x.shape.to_vec(), data: dx }),
            Some(Output { shape: factor.shape.to_vec(), data: df }),
        ]
    }
}

/// Inner product in sixteen partial sums, which vectorises and keeps digits.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// `a x + b y` within plus and minus `limit`.
#[derive(Debug, Clone)]
pub struct Sum {
    /// Weight of the first.
    pub a: f32,
    /// Weight of the second.
    pub b: f32,
    /// Largest magnitude of the result.
    pub limit: f32,
}

impl Kernel<2> for Sum {
    fn forward(&self, [x, y]: [View<'_>; 2]) -> Output {
        let (a, b, limit) = (self.a, self.b, self.limit);
        let data = vectorize(|| {
            let pairs = x.data.iter().zip(y.data);
            pairs.map(|(x, y)| (a * x + b * y).clamp(-limit, limit)).collect()
        });
        Output { shape: x.shape.to_vec(), data }
    }

    fn backward(
        &self,
        [x, y]: [View<'_>; 2],
        grad: View<'_>,
        wanted: [bool; 2],
    ) -> [Option<Output>; 2] {
        let (a, b, limit) = (self.a, self.b, self.limit);
        let side = |wanted: bool, weight: f32| {
            wanted.then(|| {
                let data = vectorize(|| {
                    let all = x.data.iter().zip(y.data).zip(grad.data);
                    all.map(
                        |((x, y), g)| {
                            if (a * x + b * y).abs() <= limit { weight * g } else { 0.0 }
                        },
                    )
                    .collect()
                });
                Output { shape: x.shape.to_vec(), data }
            })
        };
        [side(wanted[0], a), side(wanted[1], b)]
    }
}

/// Concatenation along channels of `a x` and `b y`.
#[derive(Debug, Clone)]
pub struct Cat {
    /// Weight of the first.
    pub a: f32,
    /// Weight of the second.
    pub b: f32,
}

impl Kernel<2> for Cat {
    fn forward(&self, [x, y]: [View<'_>; 2]) -> Output {
        let n = x.shape[0].max(1);
        let (lx, ly) = (x.data.len() / n, y.data.len() / n);
        let mut data = Vec::with_capacity(x.data.len() + y.data.len());
        let (a, b) = (self.a, self.b);
        for (x, y) in x.data.chunks_exact(lx).zip(y.data.chunks_exact(ly)) {
            vectorize(|| {
                data.extend(x.iter().map(|v| a * v));
                data.extend(y.iter().map(|v| b * v));
            });
        }
        let shape = vec![x.shape[0], x.shape[1] + y.shape[1], x.shape[2], x.shape[3]];
        Output { shape, data }
    }

    fn backward(
        &self,
        [x, y]: [View<'_>; 2],
        grad: View<'_>,
        wanted: [bool; 2],
    ) -> [Option<Output>; 2] {
        let n = x.shape[0].max(1);
        let (lx, ly) = (x.data.len() / n, y.data.len() / n);
        let part = |wanted: bool, like: View<'_>, range: std::ops::Range<usize>, weight: f32| {
            wanted.then(|| {
                let mut data = Vec::with_capacity(like.data.len());
                for g in grad.data.chunks_exact(lx + ly) {
                    let g = &g[range.clone()];
                    vectorize(|| data.extend(g.iter().map(|v| weight * v)));
                }
                Output { shape: like.shape.to_vec(), data }
            })
        };
        [part(wanted[0], x, 0..lx, self.a), part(wanted[1], y, lx..lx + ly, self.b)]
    }
}

/// `x / (eps + rms over channels)` at every pixel of `[N, C, ...]`.
#[derive(Debug, Clone)]
pub struct PixelNorm;

impl Kernel<1> for PixelNorm {
    fn forward(&self, [x]: [View<'_>; 1]) -> Output {
        let (channels, area) = (x.shape[1], x.shape[2..].iter().product::<usize>());
        let mut data = Vec::with_capacity(x.data.len());
        let mut factor = vec![0.0f32; area];
        for image in x.data.chunks_exact((channels * area).max(1)) {
            vectorize(|| {
                mean_square(image, &mut factor, area, channels);
                for f in &mut factor {
                    *f = 1.0 / (f.sqrt() + EPSILON as f32);
                }
                for plane in image.chunks_exact(area) {
                    data.extend(plane.iter().zip(&factor).map(|(x, f)| x * f));
                }
            });
        }
        Output { shape: x.shape.to_vec(), data }
    }

    fn backward(&self, [x]: [View<'_>; 1], grad: View<'_>, _: [bool; 1]) -> [Option<Output>; 1] {
        // With r = rms, n = eps + r: dx = g / n - x (g . x) / (C r n^2).
        let (channels, area) = (x.shape[1], x.shape[2..].iter().product::<usize>());
        let size = (channels * area).max(1);
        let mut data = Vec::with_capacity(x.data.len());
        let mut inverse = vec![0.0f32; area];
        let mut shrink = vec![0.0f32; area];
        for (image, g) in x.data.chunks_exact(size).zip(grad.data.chunks_exact(size)) {
            vectorize(|| {
                mean_square(image, &mut inverse, area, channels);
                shrink.fill(0.0);
                for (x, g) in image.chunks_exact(area).zip(g.chunks_exact(area)) {
                    for ((s, x), g) in shrink.iter_mut().zip(x).zip(g) {
                        *s += x * g;
                    }
                }
                for (s, i) in shrink.iter_mut().zip(inverse.iter_mut()) {
                    let rms = i.sqrt();
                    let n = rms + EPSILON as f32;
                    *i = 1.0 / n;
                    *s /= channels as f32 * rms.max(1e-20) * n * n;
                }
                for (x, g) in image.chunks_exact(area).zip(g.chunks_exact(area)) {
                    let factors = inverse.iter().zip(&shrink);
                    data.extend(x.iter().zip(g).zip(factors).map(|((x, g), (i, s))| g * i - x * s));
                }
            });
        }
        [Some(Output { shape: x.shape.to_vec(), data })]
    }
}

/// Mean over channels of the squared values at every pixel.
#[inline(always)]
fn mean_square(image: &[f32], out: &mut [f32], area: usize, channels: usize) {
    out.fill(0.0);
    for plane in image.chunks_exact(area) {
        for (o, x) in out.iter_mut().zip(plane) {
            *o += x * x;
        }
    }
    let scale = 1.0 / channels as f32;
    for o in out {
        *o *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
        assert!(exp(-1000.0) < 1e-37 && exp(1000.0) > 1e38);
    }
}
