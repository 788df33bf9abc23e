//! Stride-1 3x3 convolution by Winograd's minimal filtering: patches of the input are transformed, each of their
//! positions is a matrix product over channels, and the sums are transformed back. A block of tiles goes through all
//! three steps while it is in cache.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

use std::{marker::PhantomData, ops::Range};

use super::{
    ConvSpec,
    transform::{self, MOST_PATCH, Tile, Tile2, Tile4},
};
use crate::{
    Isa,
    aligned::Aligned,
    finish::{Finish, FinishPixels},
    matrix::{self, MOST_ROWS, Panel, Strip, group_start, groups},
    simd::{self, Kernel, Simd},
};

/// Which of the two tile sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Two,
    Four,
}

impl Size {
    pub(super) fn out(self) -> usize {
        match self {
            Self::Two => Tile2::OUT,
            Self::Four => Tile4::OUT,
        }
    }

    fn patch(self) -> usize {
        self.out() + 2
    }
}

#[derive(Debug)]
pub(super) struct Winograd {
    size: Size,
    panels: Vec<Panel>,
    lanes: usize,
    /// `[position][panel][in_channels][columns * lanes]`.
    weights: Aligned,
    bias: Aligned,
    zeros: Aligned,
    /// Tiles that go through the steps together.
    block: usize,
    in_channels: usize,
    /// Floats between tiles and between positions of the transformed input and of the sums.
    strides: Strides,
}

#[derive(Debug, Clone, Copy)]
struct Strides {
    in_tile: usize,
    in_position: usize,
    out_tile: usize,
    out_position: usize,
}

/// Whether Winograd can compute it at all.
pub(super) fn fits(spec: &ConvSpec) -> bool {
    spec.kernel == [3; 2] && spec.stride == [1; 2] && spec.dilation == [1; 2] && !spec.depthwise
}

impl Winograd {
    pub(super) fn new(
        isa: Isa,
        spec: &ConvSpec,
        size: Size,
        weights: &[f32],
        bias: &[f32],
    ) -> Self {
        match size {
            Size::Two => Self::prepare::<Tile2>(isa, spec, size, weights, bias),
            Size::Four => Self::prepare::<Tile4>(isa, spec, size, weights, bias),
        }
    }

    fn prepare<T: Tile>(
        isa: Isa,
        spec: &ConvSpec,
        size: Size,
        weights: &[f32],
        bias: &[f32],
    ) -> Self {
        let (lanes, rows, _) = simd::block(isa);
        let panels = matrix::layout(isa, spec.out_channels);
        let (channels, positions) = (spec.in_channels(), T::PATCH * T::PATCH);
        let per_position = matrix::packed_len(&panels, lanes, channels);
        // [position][in][out], then packed.
        let mut plain = vec![0.0f32; positions * channels * spec.out_channels];
        for o in 0..spec.out_channels {
            for c in 0..channels {
                let g = &weights[(o * channels + c) * 9..][..9];
                let g = std::array::from_fn(|y| std::array::from_fn(|x| f64::from(g[y * 3 + x])));
                let u = transform::kernel::<T>(g);
                for p in 0..positions {
                    plain[(p * channels + c) * spec.out_channels + o] =
                        u[p / T::PATCH][p % T::PATCH] as f32;
                }
            }
        }
        let mut packed = Aligned::zeroed(positions * per_position);
        for (p, out) in packed.as_mut_slice().chunks_exact_mut(per_position).enumerate() {
            let weight = |k: usize, n: usize| plain[(p * channels + k) * spec.out_channels + n];
            matrix::pack(&panels, lanes, channels, weight, out);
        }
        let bias = matrix::pad_bias(&panels, lanes, bias);
        let (in_tile, out_tile) = (channels.next_multiple_of(16), bias.len());
        let tiles = spec.out_height().div_ceil(T::OUT) * spec.out_width().div_ceil(T::OUT);
        let block = block_size(tiles, rows, positions * (in_tile + out_tile));
        // An odd number of cache lines between positions spreads them over the cache's sets.
        let odd = |floats: usize| {
            ((floats / 16) | 1) * 16 + if floats.is_multiple_of(16) { 0 } else { 32 }
        };
        Self {
            size,
            panels,
            lanes,
            weights: packed,
            bias,
            zeros: Aligned::zeroed(spec.sources.iter().map(|s| s.channels).max().unwrap_or(0)),
            block,
            in_channels: channels,
            strides: Strides {
                in_tile,
                in_position: odd(block * in_tile),
                out_tile,
                out_position: odd(block * out_tile),
            },
        }
    }

    pub(super) fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len() + self.zeros.len()) * size_of::<f32>()
    }

    pub(super) fn scratch_len(&self) -> usize {
        let positions = self.size.patch() * self.size.patch();
        positions * (self.strides.in_position + self.strides.out_position)
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// # Safety
    /// `sources` are the spec's whole maps, `finish` covers `rows`, `scratch` begins on a cache line and has
    /// [`scratch_len`](Self::scratch_len) floats.
    pub(super) unsafe fn run(
        &self,
        isa: Isa,
        spec: &ConvSpec,
        sources: [*const f32; 2],
        finish: Finish,
        scratch: &mut [f32],
        rows: Range<usize>,
    ) {
        let input = scratch.as_mut_ptr();
        let sums = input.add(self.size.patch() * self.size.patch() * self.strides.in_position);
        match self.size {
            Size::Two => {
                simd::dispatch(
                    isa,
                    Run::<Tile2> {
                        conv: self,
                        spec,
                        sources,
                        finish,
                        input,
                        sums,
                        rows,
                        tile: PhantomData,
                    },
                );
            }
            Size::Four => {
                simd::dispatch(
                    isa,
                    Run::<Tile4> {
                        conv: self,
                        spec,
                        sources,
                        finish,
                        input,
                        sums,
                        rows,
                        tile: PhantomData,
                    },
                );
            }
        }
    }
}

/// Tiles of a block: whole register blocks whose transformed inputs and sums (`floats` a tile) take about half of a
/// 512 KiB second-level cache.
fn block_size(tiles: usize, rows: usize, floats: usize) -> usize {
    let fit = (64 * 1024 / floats / rows * rows).clamp(rows, 8 * rows);
    // Nearly equal blocks.
    let count = tiles.div_ceil(fit);
    tiles.div_ceil(count)
}

struct Run<'a, T> {
    conv: &'a Winograd,
    spec: &'a ConvSpec,
    sources: [*const f32; 2],
    finish: Finish,
    input: *mut f32,
    sums: *mut f32,
    rows: Range<usize>,
    tile: PhantomData<T>,
}

/// The steps as kernels of their own, so that each is compiled once by itself.
struct Gather<'a, 'b, T>(&'b Run<'a, T>, Range<usize>);
struct Scatter<'a, 'b, T>(&'b Run<'a, T>, Range<usize>);

impl<T: Tile> Kernel for Run<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (conv, s) = (self.conv, self.spec);
        debug_assert_eq!(conv.lanes, S::LANES);
        let across = s.out_width().div_ceil(T::OUT);
        let tiles = self.rows.start / T::OUT * across..self.rows.end.div_ceil(T::OUT) * across;
        for block in matrix::parts(tiles, conv.block) {
            S::call(Gather(&self, block.clone()));
            self.multiply::<S>(block.len());
            S::call(Scatter(&self, block));
        }
    }
}

impl<T: Tile> Run<'_, T> {
    /// The matrix products of a block, one for each position.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, tiles: usize) {
        let (conv, st) = (self.conv, self.conv.strides);
        let count = groups(tiles, S::ROWS);
        let mut weights = conv.weights.as_ptr();
        for position in 0..T::PATCH * T::PATCH {
            let input = self.input.add(position * st.in_position);
            let sums = self.sums.add(position * st.out_position);
            for panel in &conv.panels {
                for i in 0..count {
                    let (from, to) =
                        (group_start(tiles, count, i), group_start(tiles, count, i + 1));
                    let mut a = [std::ptr::null(); MOST_ROWS];
                    for (r, a) in a.iter_mut().enumerate().take(to - from) {
                        *a = input.add((from + r) * st.in_tile).cast_const();
                    }
                    Strip {
                        rows: to - from,
                        columns: panel.columns,
                        a: a.as_ptr(),
                        row_stride: MOST_ROWS,
                        k: &conv.in_channels,
                        segments: 1,
                        b: weights,
                        bias: std::ptr::null(),
                        clip: None,
                        out: sums.add(from * st.out_tile + panel.start),
                        out_stride: st.out_tile,
                    }
                    .compute::<S>();
                }
                weights = weights.add(conv.in_channels * panel.columns * S::LANES);
            }
        }
    }
}

impl<T: Tile> Kernel for Gather<'_, '_, T> {
    type Output = ();

    /// Transforms the input patches of a block of tiles.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (run, s, st) = (self.0, self.0.spec, self.0.conv.strides);
        let across = s.out_width().div_ceil(T::OUT);
        for (t, tile) in self.1.enumerate() {
            let y0 = (tile / across * T::OUT).wrapping_sub(s.padding[0]);
            let x0 = (tile % across * T::OUT).wrapping_sub(s.padding[1]);
            let inside = y0 < s.height
                && x0 < s.width
                && y0 + T::PATCH <= s.height
                && x0 + T::PATCH <= s.width;
            let mut to = run.input.add(t * st.in_tile);
            for (source, map) in s.sources.iter().zip(run.sources) {
                let channels = source.channels;
                if inside && !source.upsample {
                    let corner = map.add((y0 * s.width + x0) * channels);
                    let from = |y: usize, x: usize| corner.add((y * s.width + x) * channels);
                    patches::<S, T>(from, channels, to, st.in_position);
                } else {
                    let shift = usize::from(source.upsample);
                    let mut at = [[std::ptr::null(); MOST_PATCH]; MOST_PATCH];
                    for (dy, row) in at.iter_mut().enumerate().take(T::PATCH) {
                        let y = y0.wrapping_add(dy);
                        for (dx, at) in row.iter_mut().enumerate().take(T::PATCH) {
                            let x = x0.wrapping_add(dx);
                            *at = if y < s.height && x < s.width {
                                map.add(
                                    ((y >> shift) * (s.width >> shift) + (x >> shift)) * channels,
                                )
                            } else {
                                run.conv.zeros.as_ptr()
                            };
                        }
                    }
                    patches::<S, T>(|y, x| at[y][x], channels, to, st.in_position);
                }
                to = to.add(channels);
            }
        }
    }
}

/// Transforms one patch, `from(row, column)` being its pixels, and writes its positions.
#[inline(always)]
unsafe fn patches<S: Simd, T: Tile>(
    from: impl Fn(usize, usize) -> *const f32,
    channels: usize,
    to: *mut f32,
    stride: usize,
) {
    let full = channels / S::LANES * S::LANES;
    for c in (0..full).step_by(S::LANES) {
        patch::<S, T, true>(|y, x| from(y, x).add(c), S::LANES, to.add(c), stride);
    }
    if full < channels {
        patch::<S, T, false>(|y, x| from(y, x).add(full), channels - full, to.add(full), stride);
    }
}

/// One vector of its channels, of which `n` count.
#[inline(always)]
unsafe fn patch<S: Simd, T: Tile, const FULL: bool>(
    from: impl Fn(usize, usize) -> *const f32,
    n: usize,
    to: *mut f32,
    stride: usize,
) {
    let mut columns = [[S::zero(); MOST_PATCH]; MOST_PATCH];
    for (x, column) in columns.iter_mut().enumerate().take(T::PATCH) {
        let mut d = [S::zero(); MOST_PATCH];
        for (y, d) in d.iter_mut().enumerate().take(T::PATCH) {
            *d = if FULL { S::load(from(y, x)) } else { S::load_first(from(y, x), n) };
        }
        *column = T::input::<S>(d);
    }
    let row_of = |y: usize| std::array::from_fn(|x: usize| columns[x][y]);
    for y in 0..T::PATCH {
        let row = T::input::<S>(row_of(y));
        for (x, v) in row.iter().enumerate().take(T::PATCH) {
            let to = to.add((y * T::PATCH + x) * stride);
            if FULL { S::store(to, *v) } else { S::store_first(to, n, *v) }
        }
    }
}

impl<T: Tile> Kernel for Scatter<'_, '_, T> {
    type Output = ();

    /// Transforms the sums of a block of tiles back and finishes them.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (run, s, st) = (self.0, self.0.spec, self.0.conv.strides);
        let (width, n) = (s.out_width(), s.out_channels);
        let across = width.div_ceil(T::OUT);
        for (t, tile) in self.1.enumerate() {
            let (y0, x0) = (tile / across * T::OUT, tile % across * T::OUT);
            // Rows of the tile that the call computes, columns that exist.
            let ys = run.rows.start.max(y0) - y0..run.rows.end.min(y0 + T::OUT) - y0;
            let xs = (width - x0).min(T::OUT);
            let sums = run.sums.add(t * st.out_tile);
            for c in (0..n).step_by(S::LANES) {
                let bias = S::load(run.conv.bias.as_ptr().add(c));
                let mut columns = [[S::zero(); 4]; MOST_PATCH];
                for (x, column) in columns.iter_mut().enumerate().take(T::PATCH) {
                    let mut m = [S::zero(); MOST_PATCH];
                    for (y, m) in m.iter_mut().enumerate().take(T::PATCH) {
                        *m = S::load(sums.add((y * T::PATCH + x) * st.out_position + c));
                    }
                    *column = T::output::<S>(m);
                }
                let mut tile = [[S::zero(); 4]; 4];
                for (y, row) in tile.iter_mut().enumerate().take(T::OUT) {
                    *row = T::output::<S>(std::array::from_fn(|x| columns[x][y]));
                }
                for y in ys.clone() {
                    for (x, v) in tile[y].iter().enumerate().take(xs) {
                        let offset = ((y0 + y - run.rows.start) * width + x0 + x) * n + c;
                        run.finish.vector::<S>(S::add(bias, *v), offset, S::LANES.min(n - c));
                    }
                }
            }
            if run.finish.needs_pixels() {
                for y in ys {
                    let first = (y0 + y - run.rows.start) * width + x0;
                    S::call(FinishPixels(&run.finish, first..first + xs));
                }
            }
        }
    }
}
