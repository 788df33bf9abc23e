//! Stride-1 convolution that keeps the resolution, and both its gradients.
//!
//! Planes are laid out with a zero border and read as flat arrays: the value an output position
//! needs from tap (dy, dx) then lies at a fixed distance from it, so a whole convolution is, for
//! every (input channel, tap), one multiply-add of a shifted flat array. No patches are gathered.
//! Positions in the border columns are computed too (2 of W + 2) and dropped.
//!
//! - Forward: a tile of [`OUTPUTS`] channels by [`VECTORS`] vectors of positions stays in registers
//!   over all input channels and taps.
//! - Gradient of the input: the forward kernel with flipped and transposed weights.
//! - Gradient of the weight: a tile of [`OUTPUTS`] channels by [`VECTORS`] (channel, tap) rows
//!   stays in registers over a run of positions.

use rayon::prelude::*;

use super::simd::{Vector, Work, dispatch};
use super::{Kernel, Output, View};

/// Output channels of a register tile.
const OUTPUTS: usize = 4;
/// Vectors of positions, or rows, of a register tile.
const VECTORS: usize = 3;
/// Zeros behind every padded array, so that the last tile may read past its end: at least one
/// tile of the widest vector.
const SLACK: usize = 64;
/// Zeros between padded planes, so that a vector that starts inside a gradient plane meets nothing
/// of the next: the widest vector.
const GAP: usize = 16;
/// Positions whose weight gradient is summed before moving to the next rows; keeps the gradient's
/// segment in the first-level cache.
const RUN: usize = 1024;

/// Stride-1 convolution `x [N, C, H, W]` with `weight [O, C, k, k]`, odd k, zero padding k / 2.
#[derive(Debug, Clone)]
pub struct Convolution;

/// Sizes of one convolution.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    height: usize,
    width: usize,
    kernel: usize,
}

impl Geometry {
    fn new(x: &[usize], weight: &[usize]) -> Self {
        Self { height: x[2], width: x[3], kernel: weight[2] }
    }

    fn pad(&self) -> usize {
        self.kernel / 2
    }

    /// Length of a padded row.
    fn stride(&self) -> usize {
        self.width + 2 * self.pad()
    }

    /// Distance between padded planes.
    fn plane(&self) -> usize {
        self.stride() * (self.height + 2 * self.pad()) + GAP
    }

    /// Positions computed, border columns included.
    fn positions(&self) -> usize {
        self.stride() * self.height
    }

    /// Distance of every tap from its output position, in kernel order.
    fn taps(&self) -> impl Iterator<Item = usize> + use<> {
        let (kernel, stride) = (self.kernel, self.stride());
        (0..kernel * kernel).map(move |t| (t / kernel) * stride + t % kernel)
    }

    /// Start of every (channel, tap) row in the padded array.
    fn rows(&self, channels: usize) -> Vec<usize> {
        (0..channels)
            .flat_map(|c| self.taps().map(move |t| (c, t)))
            .map(|(c, t)| c * self.plane() + t)
            .collect()
    }

    /// One image with its border, in `out`.
    fn pad_image(&self, image: &[f32], out: &mut Vec<f32>) {
        let (pad, stride) = (self.pad(), self.stride());
        let channels = image.len() / (self.height * self.width).max(1);
        out.clear();
        out.resize(channels * self.plane() + SLACK, 0.0);
        for (c, plane) in image.chunks_exact(self.height * self.width).enumerate() {
            for (y, row) in plane.chunks_exact(self.width).enumerate() {
                let start = c * self.plane() + (y + pad) * stride + pad;
                out[start..start + self.width].copy_from_slice(row);
            }
        }
    }
}

/// Weights in the order the forward tile reads them: for every block of output channels, for
/// every (channel, tap), the block's values; missing channels are zero.
fn pack(weight: &[f32], outputs: usize, rows: usize) -> Vec<f32> {
    let blocks = outputs.div_ceil(OUTPUTS);
    let mut packed = vec![0.0; blocks * rows * OUTPUTS];
    for (o, values) in weight.chunks_exact(rows).enumerate() {
        let block = (o / OUTPUTS) * rows * OUTPUTS + o % OUTPUTS;
        for (k, v) in values.iter().enumerate() {
            packed[block + k * OUTPUTS] = *v;
        }
    }
    packed
}

/// `[O, C, k, k]` to `[C, O, k, k]` with both kernel axes reversed.
fn flip(weight: &[f32], outputs: usize, channels: usize, area: usize) -> Vec<f32> {
    let mut flipped = vec![0.0; weight.len()];
    for o in 0..outputs {
        for c in 0..channels {
            for t in 0..area {
                flipped[(c * outputs + o) * area + area - 1 - t] =
                    weight[(o * channels + c) * area + t];
            }
        }
    }
    flipped
}

/// The forward kernel over one image.
struct Forward<'a> {
    padded: &'a [f32],
    rows: &'a [usize],
    packed: &'a [f32],
    /// One row of positions for every output channel, rounded up to whole tiles.
    out: &'a mut [f32],
    out_stride: usize,
    positions: usize,
}

impl Work for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        let tile = VECTORS * L;
        let block_len = self.rows.len() * OUTPUTS;
        let mut p = 0;
        while p < self.positions {
            for (block, weights) in self.packed.chunks_exact(block_len).enumerate() {
                let mut acc = [[Vector::<L>::splat(0.0); VECTORS]; OUTPUTS];
                for (row, w) in self.rows.iter().zip(weights.chunks_exact(OUTPUTS)) {
                    let x = &self.padded[row + p..row + p + tile];
                    let x: [Vector<L>; VECTORS] =
                        std::array::from_fn(|v| Vector::load(&x[v * L..(v + 1) * L]));
                    for (acc, w) in acc.iter_mut().zip(w) {
                        let w = Vector::splat(*w);
                        for (acc, x) in acc.iter_mut().zip(&x) {
                            *acc = acc.add_product::<FUSED>(w, *x);
                        }
                    }
                }
                for (o, acc) in acc.iter().enumerate() {
                    let start = (block * OUTPUTS + o) * self.out_stride + p;
                    let out = &mut self.out[start..start + tile];
                    for (v, acc) in acc.iter().enumerate() {
                        acc.store(&mut out[v * L..(v + 1) * L]);
                    }
                }
            }
            p += tile;
        }
    }
}

/// The weight gradient of one image, added to `out [O, rows]`.
struct WeightGradient<'a> {
    padded: &'a [f32],
    rows: &'a [usize],
    /// Gradient planes in the padded layout, starting at the first output position.
    grad: &'a [f32],
    grad_stride: usize,
    outputs: usize,
    out: &'a mut [f32],
    positions: usize,
}

impl Work for WeightGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(mut self) {
        let mut start = 0;
        while start < self.positions {
            // Whole vectors: the gradient is zero behind the last position.
            let run = RUN.min((self.positions - start).next_multiple_of(L));
            let mut o = 0;
            while o + OUTPUTS <= self.outputs {
                self.outputs_tile::<L, FUSED, OUTPUTS>(o, start, run);
                o += OUTPUTS;
            }
            while o < self.outputs {
                self.outputs_tile::<L, FUSED, 1>(o, start, run);
                o += 1;
            }
            start += run;
        }
    }
}

impl WeightGradient<'_> {
    #[inline(always)]
    fn outputs_tile<const L: usize, const FUSED: bool, const O: usize>(
        &mut self,
        first: usize,
        start: usize,
        run: usize,
    ) {
        let mut row = 0;
        while row + VECTORS <= self.rows.len() {
            self.tile::<L, FUSED, O, VECTORS>(first, row, start, run);
            row += VECTORS;
        }
        while row < self.rows.len() {
            self.tile::<L, FUSED, O, 1>(first, row, start, run);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<const L: usize, const FUSED: bool, const O: usize, const R: usize>(
        &mut self,
        first: usize,
        row: usize,
        start: usize,
        run: usize,
    ) {
        let g: [&[f32]; O] = std::array::from_fn(|o| {
            let at = (first + o) * self.grad_stride + start;
            &self.grad[at..at + run]
        });
        let x: [&[f32]; R] = std::array::from_fn(|r| {
            let at = self.rows[row + r] + start;
            &self.padded[at..at + run]
        });
        let mut acc = [[Vector::<L>::splat(0.0); R]; O];
        let mut p = 0;
        while p < run {
            let end = p + L;
            let x: [Vector<L>; R] = std::array::from_fn(|r| Vector::load(&x[r][p..end]));
            for (acc, g) in acc.iter_mut().zip(&g) {
                let g = Vector::load(&g[p..end]);
                for (acc, x) in acc.iter_mut().zip(&x) {
                    *acc = acc.add_product::<FUSED>(g, *x);
                }
            }
            p = end;
        }
        for (o, acc) in acc.iter().enumerate() {
            for (r, acc) in acc.iter().enumerate() {
                self.out[(first + o) * self.rows.len() + row + r] += acc.sum();
            }
        }
    }
}

/// Buffers one thread reuses from image to image.
#[derive(Default)]
struct Scratch {
    padded: Vec<f32>,
    grad: Vec<f32>,
    out: Vec<f32>,
}

/// Convolves one padded image into `out [O, H, W]`.
fn convolve(
    geometry: Geometry,
    padded: &[f32],
    rows: &[usize],
    packed: &[f32],
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let positions = geometry.positions();
    let out_stride = positions + SLACK;
    let blocks = packed.len() / (rows.len() * OUTPUTS).max(1);
    scratch.resize((blocks * OUTPUTS) * out_stride, 0.0);
    dispatch(Forward { padded, rows, packed, out: scratch, out_stride, positions });
    let (stride, width) = (geometry.stride(), geometry.width);
    for (plane, out) in
        scratch.chunks_exact(out_stride).zip(out.chunks_exact_mut(geometry.height * width))
    {
        for (row, out) in plane.chunks_exact(stride).zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&row[..width]);
        }
    }
}

impl Kernel<2> for Convolution {
    fn forward(&self, [x, weight]: [View<'_>; 2]) -> Output {
        let geometry = Geometry::new(x.shape, weight.shape);
        let (n, channels, outputs) = (x.shape[0], x.shape[1], weight.shape[0]);
        let area = geometry.height * geometry.width;
        let rows = geometry.rows(channels);
        let packed = pack(weight.data, outputs, rows.len());
        let mut data = vec![0.0; n * outputs * area];
        let images = x.data.par_chunks_exact((channels * area).max(1));
        images.zip(data.par_chunks_exact_mut((outputs * area).max(1))).for_each_init(
            Scratch::default,
            |scratch, (image, out)| {
                geometry.pad_image(image, &mut scratch.padded);
                convolve(geometry, &scratch.padded, &rows, &packed, &mut scratch.out, out);
            },
        );
        Output { shape: vec![n, outputs, geometry.height, geometry.width], data }
    }

    fn backward(
        &self,
        [x, weight]: [View<'_>; 2],
        grad: View<'_>,
        wanted: [bool; 2],
    ) -> [Option<Output>; 2] {
        let geometry = Geometry::new(x.shape, weight.shape);
        let (n, channels, outputs) = (x.shape[0], x.shape[1], weight.shape[0]);
        let area = geometry.height * geometry.width;
        let taps = geometry.kernel * geometry.kernel;
        let rows = geometry.rows(channels);
        let grad_rows = geometry.rows(outputs);
        let flipped = pack(&flip(weight.data, outputs, channels, taps), channels, grad_rows.len());
        // First output position inside a padded gradient plane.
        let origin = geometry.pad() * geometry.stride() + geometry.pad();

        // Every thread sums the weight gradients of a fixed range of images, and the ranges are
        // added in order: the result depends on the number of threads, not on their timing.
        let share = n.div_ceil(rayon::current_num_threads().max(1)).max(1);
        let mut dx = vec![0.0; if wanted[0] { x.data.len() } else { 0 }];
        let images = (channels * area).max(1);
        let mut outs: Vec<Option<&mut [f32]>> = if wanted[0] {
            dx.chunks_exact_mut(images).map(Some).collect()
        } else {
            (0..n).map(|_| None).collect()
        };
        let sums: Vec<Vec<f32>> = outs
            .par_chunks_mut(share)
            .enumerate()
            .map(|(chunk, outs)| {
                let mut scratch = Scratch::default();
                let mut sum = vec![0.0; if wanted[1] { weight.data.len() } else { 0 }];
                for (i, out) in outs.iter_mut().enumerate() {
                    let index = chunk * share + i;
                    let g = &grad.data[index * outputs * area..(index + 1) * outputs * area];
                    geometry.pad_image(g, &mut scratch.grad);
                    if let Some(out) = out {
                        let Scratch { grad, out: rows_out, .. } = &mut scratch;
                        convolve(geometry, grad, &grad_rows, &flipped, rows_out, out);
                    }
                    if wanted[1] {
                        let image = &x.data[index * images..(index + 1) * images];
                        geometry.pad_image(image, &mut scratch.padded);
                        dispatch(WeightGradient {
                            padded: &scratch.padded,
                            rows: &rows,
                            grad: &scratch.grad[origin..],
                            grad_stride: geometry.plane(),
                            outputs,
                            out: &mut sum,
                            positions: geometry.positions(),
                        });
                    }
                }
                sum
            })
            .collect();
        let dw = wanted[1].then(|| {
            let mut total = vec![0.0; weight.data.len()];
            for sum in &sums {
                for (t, s) in total.iter_mut().zip(sum) {
                    *t += s;
                }
            }
            Output { shape: weight.shape.to_vec(), data: total }
        });
        [wanted[0].then(|| Output { shape: x.shape.to_vec(), data: dx }), dw]
    }
}
