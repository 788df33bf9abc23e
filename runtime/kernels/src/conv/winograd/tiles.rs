//! The first and the last step: patches of the input into the transformed space, sums back out of it.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

use std::{marker::PhantomData, ops::Range};

use super::Parts;
use crate::{
    conv::transform::{MOST_PATCH, Tile},
    matrix::Panel,
    simd::{Kernel, Simd},
};

/// A kernel of its own, as the other steps are, so that each is compiled once by itself.
pub(super) struct Gather<'a, 'b, T>(pub &'b Parts<'a>, pub Range<usize>, pub PhantomData<T>);

pub(super) struct Scatter<'a, 'b, T>(
    pub &'b Parts<'a>,
    pub &'b Panel,
    pub Range<usize>,
    pub PhantomData<T>,
);

impl<T: Tile> Kernel for Gather<'_, '_, T> {
    type Output = ();

    /// Transforms the input patches of a block of tiles.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(run, tiles, _) = self;
        let (s, st) = (run.spec, run.conv.strides);
        let across = s.out_width().div_ceil(T::OUT);
        for (t, tile) in tiles.enumerate() {
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

    /// Transforms the sums of a block of tiles and one panel back and finishes them, except for what needs all
    /// channels of a pixel.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(run, panel, tiles, _) = self;
        let (s, st) = (run.spec, run.conv.strides);
        let (width, n) = (s.out_width(), s.out_channels);
        let across = width.div_ceil(T::OUT);
        for (t, tile) in tiles.enumerate() {
            let (y0, x0) = (tile / across * T::OUT, tile % across * T::OUT);
            // Rows of the tile that the call computes, columns that exist.
            let ys = run.rows.start.max(y0) - y0..run.rows.end.min(y0 + T::OUT) - y0;
            let xs = (width - x0).min(T::OUT);
            let sums = run.sums.add(t * st.out_tile);
            let pixel = |y: usize, x: usize| (y0 + y - run.rows.start) * width + x0 + x;
            let mut residuals = [[0; 4]; 4];
            for y in ys.clone() {
                for (x, residual) in residuals[y].iter_mut().enumerate().take(xs) {
                    *residual = run.finish.residual_pixel(pixel(y, x)) * n;
                }
            }
            for c in (0..panel.channels).step_by(S::LANES) {
                let channel = panel.start + c;
                let bias = S::load(run.conv.bias.as_ptr().add(channel));
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
                        let (offset, residual) =
                            (pixel(y, x) * n + channel, residuals[y][x] + channel);
                        let count = S::LANES.min(panel.channels - c);
                        run.finish.vector_with::<S>(S::add(bias, *v), offset, residual, count);
                    }
                }
            }
        }
    }
}
