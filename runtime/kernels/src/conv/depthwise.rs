//! Depthwise convolution: several neighbouring output pixels at a time, one vector of channels after the other.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

use std::ops::Range;

use super::ConvSpec;
use crate::{
    Isa,
    aligned::Aligned,
    finish::{Finish, FinishPixels, FinishTile},
    simd::{self, Kernel, Simd},
};

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

    /// `source` holds `ring` rows, row `y` of the map in row `y % ring`: all of the map, or the rows that `rows` touch.
    ///
    /// # Safety
    /// `source` is as said and `finish` covers `rows`.
    pub(super) unsafe fn run(
        &self,
        isa: Isa,
        spec: &ConvSpec,
        (source, ring): (*const f32, usize),
        finish: Finish,
        rows: Range<usize>,
    ) {
        let call = Call { conv: self, spec, source, ring, finish, rows };
        let plain = spec.dilation == [1; 2]
            && spec.kernel[0] == spec.kernel[1]
            && spec.stride[0] == spec.stride[1];
        // Neighbours of stride 1 share columns: seven sums hide the latency of each other and divide the widths of most
        // maps.
        match (plain, spec.kernel[0], spec.stride[0]) {
            (true, 3, 1) => simd::dispatch(isa, Fixed::<3, 1, 7, 9>(call)),
            (true, 3, 2) => simd::dispatch(isa, Fixed::<3, 2, 4, 9>(call)),
            (true, 5, 1) => simd::dispatch(isa, Fixed::<5, 1, 7, 11>(call)),
            (true, 5, 2) => simd::dispatch(isa, Fixed::<5, 2, 4, 11>(call)),
            _ => simd::dispatch(isa, Any(call)),
        }
    }
}

struct Call<'a> {
    conv: &'a Depthwise,
    spec: &'a ConvSpec,
    source: *const f32,
    ring: usize,
    finish: Finish,
    rows: Range<usize>,
}

/// Kernel side, stride, output pixels computed together and the input columns that they touch.
struct Fixed<'a, const K: usize, const STRIDE: usize, const PIXELS: usize, const PATCH: usize>(
    Call<'a>,
);

impl<const K: usize, const STRIDE: usize, const PIXELS: usize, const PATCH: usize> Kernel
    for Fixed<'_, K, STRIDE, PIXELS, PATCH>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Call { conv, spec: s, source, ring, finish, rows } = self.0;
        let (width, channels) = (s.out_width(), s.out_channels);
        for y in rows.clone() {
            let top = (y * STRIDE) as isize - s.padding[0] as isize;
            // Kernel rows that lie on the map.
            let first = (-top).max(0) as usize;
            let last = (s.height as isize - top).clamp(0, K as isize) as usize;
            let mut lines = [std::ptr::null(); K];
            for (ky, line) in lines.iter_mut().enumerate().take(last).skip(first) {
                *line = source.add((top + ky as isize) as usize % ring * (s.width * channels));
            }
            for x in (0..width).step_by(PIXELS) {
                let count = PIXELS.min(width - x);
                let left = (x * STRIDE).wrapping_sub(s.padding[1]);
                let pixel = (y - rows.start) * width + x;
                let block = Block::<K, STRIDE, PIXELS, PATCH> {
                    conv,
                    finish: &finish,
                    channels,
                    pixel,
                    count,
                    taps: first..last,
                };
                if left < s.width && left + PATCH <= s.width {
                    let lines = lines.map(|line: *const f32| line.wrapping_add(left * channels));
                    block.run::<S>(|ky, i| lines[ky].add(i * channels));
                } else {
                    let mut at = [[conv.zeros.as_ptr(); PATCH]; K];
                    for (at, line) in at.iter_mut().zip(lines).take(last).skip(first) {
                        for (i, at) in at.iter_mut().enumerate() {
                            let column = left.wrapping_add(i);
                            if column < s.width {
                                *at = line.add(column * channels);
                            }
                        }
                    }
                    block.run::<S>(|ky, i| at[ky][i]);
                }
                if finish.needs_pixels() {
                    S::call(FinishPixels(&finish, pixel..pixel + count));
                }
            }
        }
    }
}

/// One block of neighbouring output pixels.
struct Block<'a, const K: usize, const STRIDE: usize, const PIXELS: usize, const PATCH: usize> {
    conv: &'a Depthwise,
    finish: &'a Finish,
    channels: usize,
    /// First pixel, counted from the first row being computed, and how many count.
    pixel: usize,
    count: usize,
    /// Kernel rows on the map.
    taps: Range<usize>,
}

impl<const K: usize, const STRIDE: usize, const PIXELS: usize, const PATCH: usize>
    Block<'_, K, STRIDE, PIXELS, PATCH>
{
    /// `at(kernel row, column)` points at the pixels of the input patch.
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, at: impl Fn(usize, usize) -> *const f32) {
        let full = self.channels / S::LANES * S::LANES;
        // Bounds of the clip, where that is all there is to do.
        let clip = if self.count == PIXELS { self.finish.only_clip() } else { None };
        for c in (0..full).step_by(S::LANES) {
            let sums = self.sums::<S, true>(&at, c, S::LANES);
            if let Some((low, high)) = clip {
                let to = self.finish.dst.add(self.pixel * self.channels + c);
                for (p, v) in sums.into_iter().enumerate() {
                    S::store(
                        to.add(p * self.channels),
                        S::min(S::splat(high), S::max(S::splat(low), v)),
                    );
                }
            } else {
                self.finish_sums::<S>(&sums, c, S::LANES);
            }
        }
        if full < self.channels {
            let n = self.channels - full;
            let sums = self.sums::<S, false>(&at, full, n);
            self.finish_sums::<S>(&sums, full, n);
        }
    }

    #[inline(always)]
    unsafe fn sums<S: Simd, const FULL: bool>(
        &self,
        at: &impl Fn(usize, usize) -> *const f32,
        c: usize,
        n: usize,
    ) -> [S::V; PIXELS] {
        let mut acc = [S::load(self.conv.bias.as_ptr().add(c)); PIXELS];
        for ky in self.taps.clone() {
            let mut weights = [S::zero(); K];
            for (kx, w) in weights.iter_mut().enumerate() {
                *w = S::load(self.conv.weights.as_ptr().add((ky * K + kx) * self.conv.stride + c));
            }
            for i in 0..PATCH {
                let from = at(ky, i).add(c);
                let v = if FULL { S::load(from) } else { S::load_first(from, n) };
                for (p, acc) in acc.iter_mut().enumerate() {
                    if i >= p * STRIDE && i < p * STRIDE + K {
                        *acc = S::mul_add(v, weights[i - p * STRIDE], *acc);
                    }
                }
            }
        }
        acc
    }

    #[inline(always)]
    unsafe fn finish_sums<S: Simd>(&self, sums: &[S::V; PIXELS], c: usize, n: usize) {
        S::call(FinishTile {
            finish: self.finish,
            tile: sums.as_ptr().cast(),
            rows: self.count,
            stride: S::LANES,
            channels: n,
            offset: self.pixel * self.channels + c,
            pixel_stride: self.channels,
        });
    }
}

/// Any kernel, stride and dilation, a pixel at a time.
struct Any<'a>(Call<'a>);

impl Kernel for Any<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Call { conv, spec: s, source, ring, finish, rows } = self.0;
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
                                    source.add((iy % ring * s.width + ix) * channels + c),
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
                if finish.needs_pixels() {
                    S::call(FinishPixels(&finish, pixel..pixel + 1));
                }
            }
        }
    }
}
