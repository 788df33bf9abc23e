//! Transformed weights, and when they are made.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

use std::marker::PhantomData;

use super::{Size, Winograd};
use crate::{
    Isa,
    conv::{
        ConvSpec,
        transform::{MOST_PATCH, Tile},
    },
    matrix::Panel,
    simd::{self, Kernel, Simd},
};

/// When weights are transformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::conv) enum When {
    /// While preparing: they are small, or serve too few tiles.
    Ahead,
    /// Once a call, for all its blocks of tiles.
    EachCall,
    /// For each block of tiles and panel, as they would not fit the cache together.
    EachBlock,
}

impl When {
    /// The best for a shape.
    pub(super) fn best(isa: Isa, spec: &ConvSpec, size: Size) -> Self {
        let lanes = simd::block(isa).0;
        let channels = spec.in_channels() * spec.out_channels.next_multiple_of(lanes);
        let bytes = size.patch() * size.patch() * channels * size_of::<f32>();
        if size == Size::Two || bytes * size.tiles(spec) <= WORTH_IT {
            Self::Ahead
        } else if bytes <= AT_ONCE {
            Self::EachCall
        } else {
            Self::EachBlock
        }
    }
}

/// Bytes of transformed weights times tiles up to which they are transformed while preparing. A transformation costs
/// about as much as the products of 3 tiles, and what it saves is memory: so it pays for the largest weights of the
/// largest maps.
const WORTH_IT: usize = 20 << 20;

/// Bytes of transformed weights up to which a call transforms all at once: what stays in a second-level cache beside a
/// block.
const AT_ONCE: usize = 640 * 1024;

/// Transforms a panel's weights: `channels` times 9 taps of `columns` vectors to positions `stride` apart.
pub(super) struct Transform<T> {
    channels: usize,
    columns: usize,
    taps: *const f32,
    to: *mut f32,
    stride: usize,
    tile: PhantomData<T>,
}

/// Transforms all panels, from the taps to positions `[panel][position]`.
pub(super) struct TransformAll<'a, T>(
    pub &'a Winograd,
    pub *const f32,
    pub *mut f32,
    pub PhantomData<T>,
);

impl<T> Transform<T> {
    /// Of `panel`, whose taps are among `taps`, to `to`.
    #[inline(always)]
    pub(super) unsafe fn new(
        conv: &Winograd,
        panel: &Panel,
        taps: *const f32,
        to: *mut f32,
    ) -> Self {
        Self {
            channels: conv.in_channels,
            columns: panel.columns,
            // The panels before have only whole vectors.
            taps: taps.add(panel.start * conv.in_channels * 9),
            to,
            stride: conv.strides.weights,
            tile: PhantomData,
        }
    }
}

impl<T: Tile> Kernel for TransformAll<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(conv, taps, to, _) = self;
        for (i, panel) in conv.panels.iter().enumerate() {
            let to = to.add(i * T::PATCH * T::PATCH * conv.strides.weights);
            S::call(Transform::<T>::new(conv, panel, taps, to));
        }
    }
}

impl<T: Tile> Kernel for Transform<T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.columns * S::LANES;
        for k in 0..self.channels {
            for c in (0..width).step_by(S::LANES) {
                let taps = self.taps.add(k * 9 * width + c);
                let tap = |y: usize, x: usize| S::load(taps.add((y * 3 + x) * width));
                let mut rows = [[S::zero(); 3]; MOST_PATCH];
                for x in 0..3 {
                    let column = T::kernel::<S>([tap(0, x), tap(1, x), tap(2, x)]);
                    for (row, v) in rows.iter_mut().zip(column) {
                        row[x] = v;
                    }
                }
                let to = self.to.add(k * width + c);
                for (y, row) in rows.into_iter().enumerate().take(T::PATCH) {
                    let row = T::kernel::<S>(row);
                    for (x, v) in row.iter().enumerate().take(T::PATCH) {
                        S::store(to.add((y * T::PATCH + x) * self.stride), *v);
                    }
                }
            }
        }
    }
}
