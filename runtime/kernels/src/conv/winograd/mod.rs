//! Stride-1 3x3 convolution by Winograd's minimal filtering: patches of the input are transformed, each of their
//! positions is a matrix product over channels, and the sums are transformed back. A block of tiles goes through all
//! three steps while it is in cache.
//!
//! Large weights of maps with many tiles are kept as they are and transformed while running, panel by panel into the
//! second-level cache: otherwise they would take four times their bytes of memory, and of its bandwidth for every tile
//! of the slide.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

mod tiles;
mod weights;

use std::{marker::PhantomData, ops::Range};

use self::tiles::{Gather, Scatter};
pub(super) use self::weights::When;
use self::weights::{Transform, TransformAll};

use super::{
    ConvSpec,
    transform::{Tile, Tile2, Tile4},
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

    /// Tiles of the whole map.
    fn tiles(self, spec: &ConvSpec) -> usize {
        spec.out_height().div_ceil(self.out()) * spec.out_width().div_ceil(self.out())
    }
}

#[derive(Debug)]
pub(super) struct Winograd {
    size: Size,
    panels: Vec<Panel>,
    lanes: usize,
    /// Either the taps, `[panel][in_channels][9][columns * lanes]`, or already transformed,
    /// `[panel][position][in_channels][columns * lanes]`.
    weights: Aligned,
    when: When,
    bias: Aligned,
    zeros: Aligned,
    /// Tiles that go through the steps together.
    block: usize,
    in_channels: usize,
    strides: Strides,
}

/// Floats between neighbours in scratch.
#[derive(Debug, Clone, Copy)]
struct Strides {
    /// Tiles and positions of the transformed input.
    in_tile: usize,
    in_position: usize,
    /// Tiles and positions of a panel's sums.
    out_tile: usize,
    out_position: usize,
    /// Positions of a panel's transformed weights.
    weights: usize,
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
        Self::transformed(When::best(isa, spec, size), isa, spec, size, weights, bias)
    }

    /// With the weights transformed at a time of the caller's choice.
    pub(super) fn transformed(
        when: When,
        isa: Isa,
        spec: &ConvSpec,
        size: Size,
        weights: &[f32],
        bias: &[f32],
    ) -> Self {
        match size {
            Size::Two => Self::prepare::<Tile2>(when, isa, spec, size, weights, bias),
            Size::Four => Self::prepare::<Tile4>(when, isa, spec, size, weights, bias),
        }
    }

    fn prepare<T: Tile>(
        when: When,
        isa: Isa,
        spec: &ConvSpec,
        size: Size,
        weights: &[f32],
        bias: &[f32],
    ) -> Self {
        let (lanes, rows, most) = simd::block(isa);
        let (channels, positions) = (spec.in_channels(), T::PATCH * T::PATCH);
        let tiles = size.tiles(spec);
        let vector = positions * channels * lanes * size_of::<f32>();
        let most = if when == When::EachBlock { (PANEL / vector).clamp(1, most) } else { most };
        let panels = matrix::layout(lanes, most, spec.out_channels);
        let mut taps = vec![0.0; matrix::packed_len(&panels, lanes, channels * 9)];
        let weight = |k: usize, n: usize| weights[(n * channels + k / 9) * 9 + k % 9];
        matrix::pack(&panels, lanes, channels * 9, weight, &mut taps);
        let widest = panels.iter().map(|panel| panel.columns).max().unwrap_or(0) * lanes;
        let in_tile = channels.next_multiple_of(16);
        let room = if when == When::EachBlock { 2 * BLOCK } else { BLOCK };
        let block = block_size(tiles, rows, room / (positions * (in_tile + widest)));
        // An odd number of cache lines between positions spreads them over the cache's sets.
        let odd = |floats: usize| (floats.div_ceil(16) | 1) * 16;
        let strides = Strides {
            in_tile,
            in_position: odd(block * in_tile),
            out_tile: widest,
            out_position: odd(block * widest),
            weights: odd(channels * widest),
        };
        let transformed = panels.len() * positions * strides.weights;
        let mut conv = Self {
            size,
            bias: matrix::pad_bias(&panels, lanes, bias),
            panels,
            lanes,
            weights: match when {
                When::Ahead => Aligned::zeroed(transformed),
                When::EachCall | When::EachBlock => Aligned::copy_of(&taps),
            },
            when,
            zeros: Aligned::zeroed(spec.sources.iter().map(|s| s.channels).max().unwrap_or(0)),
            block,
            in_channels: channels,
            strides,
        };
        if when == When::Ahead {
            let to = conv.weights.as_mut_slice().as_mut_ptr();
            // SAFETY: taps and room for all panels are as `TransformAll` wants them.
            unsafe {
                simd::dispatch(isa, TransformAll::<T>(&conv, taps.as_ptr(), to, PhantomData))
            };
        }
        conv
    }

    pub(super) fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len() + self.zeros.len()) * size_of::<f32>()
    }

    pub(super) fn scratch_len(&self) -> usize {
        let (positions, st) = (self.size.patch() * self.size.patch(), self.strides);
        let panels = match self.when {
            When::Ahead => 0,
            When::EachCall => self.panels.len(),
            When::EachBlock => 1,
        };
        positions * (st.in_position + st.out_position + panels * st.weights)
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
        let positions = self.size.patch() * self.size.patch();
        let input = scratch.as_mut_ptr();
        let sums = input.add(positions * self.strides.in_position);
        let weights = sums.add(positions * self.strides.out_position);
        let parts = Parts { conv: self, spec, sources, finish, input, sums, weights, rows };
        match self.size {
            Size::Two => simd::dispatch(isa, Run::<Tile2>(parts, PhantomData)),
            Size::Four => simd::dispatch(isa, Run::<Tile4>(parts, PhantomData)),
        }
    }
}

/// Bytes of a panel's transformed weights beyond which it is made narrower.
const PANEL: usize = 400 * 1024;

/// Floats of a block's transformed inputs and sums.
const BLOCK: usize = 128 * 1024;

/// Tiles of a block: nearly equal blocks of at most `most`, whole register blocks where there are several.
fn block_size(tiles: usize, rows: usize, most: usize) -> usize {
    let fit = (most / rows * rows).clamp(rows, 8 * rows);
    tiles.div_ceil(tiles.div_ceil(fit))
}

struct Parts<'a> {
    conv: &'a Winograd,
    spec: &'a ConvSpec,
    sources: [*const f32; 2],
    finish: Finish,
    input: *mut f32,
    sums: *mut f32,
    weights: *mut f32,
    rows: Range<usize>,
}

struct Run<'a, T>(Parts<'a>, PhantomData<T>);

impl<T: Tile> Kernel for Run<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (run, s) = (&self.0, self.0.spec);
        let conv = run.conv;
        debug_assert_eq!(conv.lanes, S::LANES);
        let across = s.out_width().div_ceil(T::OUT);
        let tiles = run.rows.start / T::OUT * across..run.rows.end.div_ceil(T::OUT) * across;
        let taps = conv.weights.as_ptr();
        if conv.when == When::EachCall {
            TransformAll::<T>(conv, taps, run.weights, PhantomData).run::<S>();
        }
        for block in matrix::parts(tiles, conv.block) {
            S::call(Gather::<T>(run, block.clone(), PhantomData));
            for (i, panel) in conv.panels.iter().enumerate() {
                let at = i * T::PATCH * T::PATCH * conv.strides.weights;
                let weights = match conv.when {
                    When::Ahead => taps.add(at),
                    When::EachCall => run.weights.add(at).cast_const(),
                    When::EachBlock => {
                        S::call(Transform::<T>::new(conv, panel, taps, run.weights));
                        run.weights.cast_const()
                    }
                };
                run.multiply::<S, T>(panel, weights, block.len());
                S::call(Scatter::<T>(run, panel, block.clone(), PhantomData));
            }
            if run.finish.needs_pixels() {
                for tile in block {
                    let (y0, x0) = (tile / across * T::OUT, tile % across * T::OUT);
                    for y in run.rows.start.max(y0)..run.rows.end.min(y0 + T::OUT) {
                        let first = (y - run.rows.start) * s.out_width() + x0;
                        let end = first + (s.out_width() - x0).min(T::OUT);
                        S::call(FinishPixels(&run.finish, first..end));
                    }
                }
            }
        }
    }
}

impl Parts<'_> {
    /// The matrix products of a block of tiles with a panel, one for each position of the patch.
    #[inline(always)]
    unsafe fn multiply<S: Simd, T: Tile>(&self, panel: &Panel, weights: *const f32, tiles: usize) {
        let (conv, st) = (self.conv, self.conv.strides);
        let count = groups(tiles, S::ROWS);
        for position in 0..T::PATCH * T::PATCH {
            let input = self.input.add(position * st.in_position);
            let sums = self.sums.add(position * st.out_position);
            for i in 0..count {
                let (from, to) = (group_start(tiles, count, i), group_start(tiles, count, i + 1));
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
                    b: weights.add(position * st.weights),
                    bias: std::ptr::null(),
                    clip: None,
                    out: sums.add(from * st.out_tile),
                    out_stride: st.out_tile,
                }
                .compute::<S>();
            }
        }
    }
}
