//! Depthwise convolution: several neighbouring output pixels at a time, one vector of channels after the other.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

use std::ops::Range;

use super::ConvSpec;
use crate::{
    Isa,
    aligned::Aligned,
    finish::Finish,
    simd::{self, Kernel, Simd},
};

/// Output pixels computed together.
const PIXELS: usize = 4;

#[derive(Debug)]
pub(super) struct Depthwise {
    /// `[tap][padded channels]`.
    weights: Aligned,
    bias: Aligned,
    zeros: Aligned,
    stride: usize,
}

impl Depthwise {
    pub(super) fn new(spec: &ConvSpec, weights: &[f32], bias: &[f32]) -> Self {
        let taps = spec.kernel[0] * spec.kernel[1];
        let stride = spec.out_channels.next_multiple_of(16);
        let mut packed = Aligned::zeroed(taps * stride);
        for (tap, out) in packed.as_mut_slice().chunks_exact_mut(stride).enumerate() {
            for (c, out) in out.iter_mut().enumerate().take(spec.out_channels) {
                *out = weights[c * taps + tap];
            }
        }
        let mut padded = Aligned::zeroed(stride);
        padded.as_mut_slice()[..bias.len()].copy_from_slice(bias);
        Self { weights: packed, bias: padded, zeros: Aligned::zeroed(stride), stride }
    }

    pub(super) fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len() + self.zeros.len()) * size_of::<f32>()
    }

    /// # Safety
    /// `source` is the spec's whole map and `finish` covers `rows`.
    pub(super) unsafe fn run(
        &self,
        isa: Isa,
        spec: &ConvSpec,
        source: *const f32,
        finish: Finish,
        rows: Range<usize>,
    ) {
        let call = Call { conv: self, spec, source, finish, rows };
        let plain = spec.dilation == [1; 2]
            && spec.kernel[0] == spec.kernel[1]
            && spec.stride[0] == spec.stride[1];
        // PATCH is the input columns that PIXELS outputs touch.
        match (plain, spec.kernel[0], spec.stride[0]) {
            (true, 3, 1) => simd::dispatch(isa, Fixed::<3, 1, 6>(call)),
            (true, 3, 2) => simd::dispatch(isa, Fixed::<3, 2, 9>(call)),
            (true, 5, 1) => simd::dispatch(isa, Fixed::<5, 1, 8>(call)),
            (true, 5, 2) => simd::dispatch(isa, Fixed::<5, 2, 11>(call)),
            _ => simd::dispatch(isa, Any(call)),
        }
    }
}

struct Call<'a> {
    conv: &'a Depthwise,
    spec: &'a ConvSpec,
    source: *const f32,
    finish: Finish,
    rows: Range<usize>,
}

/// Kernel side, stride, and input columns of a block of pixels.
struct Fixed<'a, const K: usize, const STRIDE: usize, const PATCH: usize>(Call<'a>);

impl<const K: usize, const STRIDE: usize, const PATCH: usize> Kernel
    for Fixed<'_, K, STRIDE, PATCH>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Call { conv, spec: s, source, finish, rows } = self.0;
        let (width, channels) = (s.out_width(), s.out_channels);
        for y in rows.clone() {
            let top = (y * STRIDE) as isize - s.padding[0] as isize;
            // Kernel rows that lie on the map.
            let first = (-top).max(0) as usize;
            let last = (s.height as isize - top).clamp(0, K as isize) as usize;
            for x in (0..width).step_by(PIXELS) {
                let count = PIXELS.min(width - x);
                let mut at = [[conv.zeros.as_ptr(); PATCH]; K];
                for (ky, at) in at.iter_mut().enumerate().take(last).skip(first) {
                    let row = source.offset((top + ky as isize) * (s.width * channels) as isize);
                    for (i, at) in at.iter_mut().enumerate() {
                        let column = (x * STRIDE + i).wrapping_sub(s.padding[1]);
                        if column < s.width {
                            *at = row.add(column * channels);
                        }
                    }
                }
                let offset = ((y - rows.start) * width + x) * channels;
                for c in (0..channels).step_by(S::LANES) {
                    let n = S::LANES.min(channels - c);
                    let mut acc = [S::load(conv.bias.as_ptr().add(c)); PIXELS];
                    for (ky, at) in at.iter().enumerate().take(last).skip(first) {
                        let mut weights = [S::zero(); K];
                        for (kx, w) in weights.iter_mut().enumerate() {
                            *w =
                                S::load(conv.weights.as_ptr().add((ky * K + kx) * conv.stride + c));
                        }
                        for (i, at) in at.iter().enumerate() {
                            let v = if n == S::LANES {
                                S::load(at.add(c))
                            } else {
                                S::load_first(at.add(c), n)
                            };
                            for (p, acc) in acc.iter_mut().enumerate() {
                                if i >= p * STRIDE && i < p * STRIDE + K {
                                    *acc = S::mul_add(v, weights[i - p * STRIDE], *acc);
                                }
                            }
                        }
                    }
                    for (p, acc) in acc.iter().enumerate().take(count) {
                        finish.vector::<S>(*acc, offset + p * channels + c, n);
                    }
                }
                finish.pixels::<S>((y - rows.start) * width + x, count);
            }
        }
    }
}

/// Any kernel, stride and dilation, a pixel at a time.
struct Any<'a>(Call<'a>);

impl Kernel for Any<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Call { conv, spec: s, source, finish, rows } = self.0;
        let (width, channels) = (s.out_width(), s.out_channels);
        let ([kh, kw], [sy, sx], [dy, dx]) = (s.kernel, s.stride, s.dilation);
        for y in rows.clone() {
            for x in 0..width {
                let pixel = (y - rows.start) * width + x;
                for c in (0..channels).step_by(S::LANES) {
                    let n = S::LANES.min(channels - c);
                    let mut acc = S::load(conv.bias.as_ptr().add(c));
                    for ky in 0..kh {
                        let iy = (y * sy + ky * dy).wrapping_sub(s.padding[0]);
                        for kx in 0..kw {
                            let ix = (x * sx + kx * dx).wrapping_sub(s.padding[1]);
                            if iy < s.height && ix < s.width {
                                let v = S::load_first(
                                    source.add((iy * s.width + ix) * channels + c),
                                    n,
                                );
                                let w = S::load(
                                    conv.weights.as_ptr().add((ky * kw + kx) * conv.stride + c),
                                );
                                acc = S::mul_add(v, w, acc);
                            }
                        }
                    }
                    finish.vector::<S>(acc, pixel * channels + c, n);
                }
                finish.pixels::<S>(pixel, 1);
            }
        }
    }
}
