//! The epilogue on vectors: what every fast kernel does with its sums.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic under the contract of Finish")]

use crate::{
    Epilogue, PixelNorm, Residual,
    math::{self, VectorActivation},
    simd::{Kernel, Simd},
};

/// An [`Epilogue`] as raw parts. Offsets are floats from the first value of the rows being computed.
///
/// # Safety
/// All pointers reach as far as the destination does, which the epilogue's check asserted.
#[derive(Clone, Copy)]
pub(crate) struct Finish {
    pub dst: *mut f32,
    channels: usize,
    residual: *const f32,
    residual_scale: f32,
    enlarged: Option<Enlarged>,
    norm: Option<PixelNorm>,
    activation: VectorActivation,
    second: *mut f32,
    second_scale: f32,
    second_activation: VectorActivation,
}

/// Where the rows being computed lie in a map whose residual is one of half its size.
#[derive(Clone, Copy)]
struct Enlarged {
    first_row: usize,
    width: usize,
}

impl Finish {
    /// Of rows of a map `width` pixels wide, the first of which is `first_row`, with an epilogue that was checked
    /// against the whole map.
    pub(crate) fn of_map(
        epilogue: &mut Epilogue,
        dst: &mut [f32],
        channels: usize,
        first_row: usize,
        width: usize,
    ) -> Self {
        let enlarged = matches!(epilogue.residual, Residual::Enlarged { .. });
        let enlarged = enlarged.then_some(Enlarged { first_row, width });
        Self { enlarged, ..Self::new(epilogue, dst, channels) }
    }

    /// Of an epilogue that was checked against `dst`. A residual in place reads `dst`.
    pub(crate) fn new(epilogue: &mut Epilogue, dst: &mut [f32], channels: usize) -> Self {
        let dst = dst.as_mut_ptr();
        let (residual, residual_scale) = match epilogue.residual {
            Residual::None => (std::ptr::null(), 0.0),
            Residual::Add { data, scale } | Residual::Enlarged { data, scale } => {
                (data.as_ptr(), scale)
            }
            Residual::InPlace { scale } => (dst.cast_const(), scale),
        };
        let (second, second_scale, second_activation) = match &mut epilogue.second {
            None => (std::ptr::null_mut(), 0.0, crate::Activation::None),
            Some(s) => (s.data.as_mut_ptr(), s.scale, s.activation),
        };
        Self {
            dst,
            channels,
            residual,
            residual_scale,
            enlarged: None,
            norm: epilogue.pixel_norm,
            activation: epilogue.activation.into(),
            second,
            second_scale,
            second_activation: second_activation.into(),
        }
    }

    /// The bounds of the clip that is all there is to do, if so.
    #[inline(always)]
    pub(crate) fn only_clip(&self) -> Option<(f32, f32)> {
        match self.activation {
            VectorActivation::Clip { low, high }
                if self.residual.is_null() && self.second.is_null() && self.norm.is_none() =>
            {
                Some((low, high))
            }
            _ => None,
        }
    }

    /// Whether [`pixels`](Self::pixels) must follow once all channels are written.
    #[inline(always)]
    pub(crate) fn needs_pixels(&self) -> bool {
        self.norm.is_some()
    }

    /// The pixel of the residual that is added to pixel `pixel`, counted from the first being computed.
    #[inline(always)]
    pub(crate) fn residual_pixel(&self, pixel: usize) -> usize {
        match self.enlarged {
            None => pixel,
            Some(Enlarged { first_row, width }) => {
                (first_row + pixel / width) / 2 * (width / 2) + pixel % width / 2
            }
        }
    }

    /// Finishes a vector of sums, of which the first `n` lanes count, and writes it at `offset`.
    ///
    /// # Safety
    /// `offset + n` is within the rows being computed, and the residual is not enlarged.
    #[inline(always)]
    pub(crate) unsafe fn vector<S: Simd>(&self, v: S::V, offset: usize, n: usize) {
        self.vector_with::<S>(v, offset, offset, n);
    }

    /// The same where the residual is read at `residual`, which is at the [pixel](Self::residual_pixel) that belongs
    /// to it.
    ///
    /// # Safety
    /// `offset + n` is within the rows being computed, and `residual + n` within the residual.
    #[inline(always)]
    pub(crate) unsafe fn vector_with<S: Simd>(
        &self,
        v: S::V,
        offset: usize,
        residual: usize,
        n: usize,
    ) {
        if n == S::LANES {
            self.write::<S, true>(v, offset, residual, n)
        } else {
            self.write::<S, false>(v, offset, residual, n)
        }
    }

    #[inline(always)]
    unsafe fn write<S: Simd, const FULL: bool>(
        &self,
        mut v: S::V,
        offset: usize,
        residual: usize,
        n: usize,
    ) {
        if !self.residual.is_null() {
            let r = load::<S, FULL>(self.residual.add(residual), n);
            v = S::mul_add(S::splat(self.residual_scale), r, v);
        }
        if self.norm.is_some() {
            store::<S, FULL>(self.dst.add(offset), n, v);
        } else {
            self.activate::<S, FULL>(v, offset, n);
        }
    }

    #[inline(always)]
    unsafe fn activate<S: Simd, const FULL: bool>(&self, v: S::V, offset: usize, n: usize) {
        let v = self.activation.apply::<S>(v);
        store::<S, FULL>(self.dst.add(offset), n, v);
        if !self.second.is_null() {
            let second = self.second_activation.apply::<S>(S::mul(S::splat(self.second_scale), v));
            store::<S, FULL>(self.second.add(offset), n, second);
        }
    }

    /// Normalises `count` pixels from pixel `first` on, whose channels are all written, and finishes them.
    ///
    /// # Safety
    /// The pixels are within the rows being computed.
    #[inline(always)]
    pub(crate) unsafe fn pixels<S: Simd>(&self, first: usize, count: usize) {
        let Some(PixelNorm { eps, gain }) = self.norm else { return };
        let (c, full) = (self.channels, self.channels / S::LANES * S::LANES);
        for pixel in first..first + count {
            let at = pixel * c;
            let factor = math::norm_factor::<S>(self.dst.add(at).cast_const(), c, eps);
            let factor = S::splat(gain * factor);
            for i in (0..full).step_by(S::LANES) {
                let v = S::mul(factor, S::load(self.dst.add(at + i)));
                self.activate::<S, true>(v, at + i, S::LANES);
            }
            if full < c {
                let v = S::mul(factor, S::load_first(self.dst.add(at + full), c - full));
                self.activate::<S, false>(v, at + full, c - full);
            }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd, const FULL: bool>(from: *const f32, n: usize) -> S::V {
    if FULL { S::load(from) } else { S::load_first(from, n) }
}

#[inline(always)]
unsafe fn store<S: Simd, const FULL: bool>(to: *mut f32, n: usize, v: S::V) {
    if FULL { S::store(to, v) } else { S::store_first(to, n, v) }
}

/// Finishes rows of a tile of sums, `stride` floats apart, of which the first `channels` count: row `r` goes to
/// `offset + r * pixel_stride`. A kernel of its own, so that its code exists once.
pub(crate) struct FinishTile<'a> {
    pub finish: &'a Finish,
    pub tile: *const f32,
    pub rows: usize,
    pub stride: usize,
    pub channels: usize,
    pub offset: usize,
    pub pixel_stride: usize,
}

impl Kernel for FinishTile<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let finish = self.finish;
        for r in 0..self.rows {
            let offset = self.offset + r * self.pixel_stride;
            let residual = match finish.enlarged {
                None => offset,
                Some(_) => {
                    let (pixel, channel) = (offset / finish.channels, offset % finish.channels);
                    finish.residual_pixel(pixel) * finish.channels + channel
                }
            };
            for c in (0..self.channels).step_by(S::LANES) {
                let v = S::load(self.tile.add(r * self.stride + c));
                let n = S::LANES.min(self.channels - c);
                finish.vector_with::<S>(v, offset + c, residual + c, n);
            }
        }
    }
}

/// Normalises and finishes pixels, as [`Finish::pixels`].
pub(crate) struct FinishPixels<'a>(pub &'a Finish, pub std::ops::Range<usize>);

impl Kernel for FinishPixels<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.0.pixels::<S>(self.1.start, self.1.len());
    }
}

/// Sums over each row of `width` pixels of `channels` values, into `[rows, channels]`.
pub(crate) struct RowSums<'a> {
    pub src: &'a [f32],
    pub width: usize,
    pub channels: usize,
    pub sums: &'a mut [f32],
}

impl Kernel for RowSums<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (width, channels) = (self.width, self.channels);
        for (row, sums) in
            self.src.chunks_exact(width * channels).zip(self.sums.chunks_exact_mut(channels))
        {
            for c in (0..channels).step_by(S::LANES) {
                let n = S::LANES.min(channels - c);
                let mut sum = S::zero();
                for x in 0..width {
                    let from = row.as_ptr().add(x * channels + c);
                    sum = S::add(
                        sum,
                        if n == S::LANES { S::load(from) } else { S::load_first(from, n) },
                    );
                }
                S::store_first(sums.as_mut_ptr().add(c), n, sum);
            }
        }
    }
}
