#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "pointer arithmetic on slices that the safe functions checked"
)]

use crate::{
    Epilogue, Isa, Residual, Source,
    finish::{Finish, RowSums},
    math,
    simd::{self, Kernel, Simd},
};

/// An epilogue on a map that is already there: `src` (scaled and SiLU'd as its [`Source`] says) through residual,
/// pixel norm, activation, second output and row sums into `dst`. Slices hold the rows being computed,
/// `[rows, width, channels]`; the residual must not be in place.
///
/// # Panics
/// A slice that does not fit, a residual in place, or an instruction set this machine lacks.
pub fn pointwise(
    isa: Isa,
    width: usize,
    channels: usize,
    src: Source,
    epilogue: &mut Epilogue,
    dst: &mut [f32],
) {
    assert!(
        width > 0 && channels > 0 && dst.len().is_multiple_of(width * channels),
        "pointwise: not whole rows"
    );
    assert_eq!(src.data.len(), dst.len(), "pointwise input");
    assert!(src.scale.is_none_or(|s| s.len() == channels), "pointwise factors");
    let from = src.data.as_ptr();
    // SAFETY: the closure gives pixel `p` of a source that is as long as the destination.
    unsafe { map_pixels(isa, width, channels, &src, epilogue, dst, |p| from.add(p * channels)) };
}

/// Runs `epilogue` on pixels of `src` that `pixel` points at, in the order of `dst`'s pixels.
///
/// # Safety
/// `pixel` gives `channels` readable floats for each pixel of `dst`.
pub(crate) unsafe fn map_pixels(
    isa: Isa,
    width: usize,
    channels: usize,
    src: &Source,
    epilogue: &mut Epilogue,
    dst: &mut [f32],
    pixel: impl Fn(usize) -> *const f32,
) {
    assert!(
        !matches!(epilogue.residual, Residual::InPlace { .. }),
        "a residual in place is for convolutions only"
    );
    epilogue.check(dst.len() / (width * channels), width, channels);
    let scale = src.scale.map_or(std::ptr::null(), <[f32]>::as_ptr);
    let finish = Finish::new(epilogue, dst, channels);
    let kernel =
        Map { pixel, scale, silu: src.silu, pixels: dst.len() / channels, channels, finish };
    simd::dispatch(isa, kernel);
    if let Some(sums) = &mut epilogue.row_sums {
        simd::dispatch(isa, RowSums { src: dst, width, channels, sums });
    }
}

/// Reads a source as its factors and SiLU say, into a plain map.
pub(crate) fn read_source(isa: Isa, channels: usize, src: &Source, dst: &mut [f32]) {
    pointwise(isa, 1, channels, *src, &mut Epilogue::default(), dst);
}

struct Map<F> {
    pixel: F,
    scale: *const f32,
    silu: bool,
    pixels: usize,
    channels: usize,
    finish: Finish,
}

impl<F: Fn(usize) -> *const f32> Kernel for Map<F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.channels;
        for p in 0..self.pixels {
            let from = (self.pixel)(p);
            for c in (0..channels).step_by(S::LANES) {
                let n = S::LANES.min(channels - c);
                let mut v = if n == S::LANES {
                    S::load(from.add(c))
                } else {
                    S::load_first(from.add(c), n)
                };
                if !self.scale.is_null() {
                    v = S::mul(v, S::load_first(self.scale.add(c), n));
                }
                if self.silu {
                    v = math::silu::<S>(v, false);
                }
                self.finish.vector::<S>(v, p * channels + c, n);
            }
            self.finish.pixels::<S>(p, 1);
        }
    }
}
