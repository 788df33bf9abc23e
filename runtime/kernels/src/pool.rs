//! Averages over a map.
#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "pointer arithmetic on slices that the safe functions checked"
)]

use std::ops::Range;

use crate::{
    Epilogue, Isa, Residual,
    finish::{Finish, RowSums},
    simd::{self, Kernel, Simd},
};

/// Average over 2x2 blocks with stride 2: output rows `rows` of a `height x width` map (odd remainders are dropped)
/// into `dst`, `[rows, width / 2, channels]`. The residual must not be in place.
///
/// # Panics
/// A slice that does not fit, or an instruction set this machine lacks.
pub fn average_pool_2x2(
    isa: Isa,
    [height, width, channels]: [usize; 3],
    src: &[f32],
    epilogue: &mut Epilogue,
    dst: &mut [f32],
    rows: Range<usize>,
) {
    let out_width = width / 2;
    assert_eq!(src.len(), height * width * channels, "average pool input");
    assert!(rows.start <= rows.end && rows.end <= height / 2, "rows {rows:?} of {}", height / 2);
    assert_eq!(
        dst.len(),
        rows.len() * out_width * channels,
        "destination: not the rows being computed"
    );
    assert!(
        !matches!(epilogue.residual, Residual::InPlace { .. }),
        "a residual in place is for convolutions only"
    );
    epilogue.check(rows.len(), out_width, channels);
    if dst.is_empty() {
        return;
    }
    let finish = Finish::new(epilogue, dst, channels);
    // SAFETY: the map, the rows and the destination were checked against each other.
    unsafe { simd::dispatch(isa, Quarter { src: src.as_ptr(), width, channels, rows, finish }) };
    if let Some(sums) = &mut epilogue.row_sums {
        // SAFETY: slices whose lengths were checked.
        unsafe { simd::dispatch(isa, RowSums { src: dst, width: out_width, channels, sums }) };
    }
}

struct Quarter {
    src: *const f32,
    width: usize,
    channels: usize,
    rows: Range<usize>,
    finish: Finish,
}

impl Kernel for Quarter {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (width, channels) = (self.width, self.channels);
        let mut pixel = 0;
        for y in self.rows {
            for x in 0..width / 2 {
                let from = self.src.add((2 * y * width + 2 * x) * channels);
                for c in (0..channels).step_by(S::LANES) {
                    let n = S::LANES.min(channels - c);
                    let at = |dy: usize, dx: usize| {
                        let from = from.add((dy * width + dx) * channels + c);
                        if n == S::LANES { S::load(from) } else { S::load_first(from, n) }
                    };
                    let sum = S::add(S::add(at(0, 0), at(0, 1)), S::add(at(1, 0), at(1, 1)));
                    self.finish.vector::<S>(S::mul(sum, S::splat(0.25)), pixel * channels + c, n);
                }
                self.finish.pixels::<S>(pixel, 1);
                pixel += 1;
            }
        }
    }
}

/// Mean over all pixels of `src`, `[pixels, all channels]`, of the channels `channels`, into `dst`,
/// `[channels.len()]`.
///
/// # Panics
/// A slice that does not fit, or an instruction set this machine lacks.
pub fn global_mean(
    isa: Isa,
    all_channels: usize,
    src: &[f32],
    dst: &mut [f32],
    channels: Range<usize>,
) {
    mean_std(isa, all_channels, src, dst, None, channels);
}

/// Mean, and standard deviation (biased) where `std` is given, over all pixels of `src`, `[pixels, all channels]`, of
/// the channels `channels`, each into `[channels.len()]`.
///
/// # Panics
/// A slice that does not fit, or an instruction set this machine lacks.
pub fn mean_std(
    isa: Isa,
    all_channels: usize,
    src: &[f32],
    mean: &mut [f32],
    std: Option<&mut [f32]>,
    channels: Range<usize>,
) {
    assert!(
        all_channels > 0 && !src.is_empty() && src.len().is_multiple_of(all_channels),
        "mean of whole pixels"
    );
    assert!(
        channels.start <= channels.end && channels.end <= all_channels,
        "channels {channels:?} of {all_channels}"
    );
    assert_eq!(mean.len(), channels.len(), "mean");
    let mut variance = match std {
        Some(std) => {
            assert_eq!(std.len(), channels.len(), "standard deviation");
            Some(std)
        }
        None => None,
    };
    let moments =
        Moments { src, stride: all_channels, channels, mean, variance: variance.as_deref_mut() };
    // SAFETY: slices whose lengths were checked.
    unsafe { simd::dispatch(isa, moments) };
    if let Some(std) = variance {
        std.iter_mut().for_each(|v| *v = v.sqrt());
    }
}

/// Mean and (biased) variance of some channels over all pixels, each `[channels.len()]`.
pub(crate) struct Moments<'a> {
    pub src: &'a [f32],
    pub stride: usize,
    pub channels: Range<usize>,
    pub mean: &'a mut [f32],
    pub variance: Option<&'a mut [f32]>,
}

/// Pixels whose moments are taken by themselves, while they are in the first-level cache.
const RUN: usize = 64;

/// Sum over `pixels` of a function of one vector of channels; two sums hide the latency of the addition.
#[inline(always)]
unsafe fn sum_over_pixels<S: Simd>(
    (from, stride, n): (*const f32, usize, usize),
    pixels: usize,
    f: impl Fn(S::V) -> S::V,
) -> S::V {
    let read = |p: usize| {
        let at = from.add(p * stride);
        if n == S::LANES { S::load(at) } else { S::load_first(at, n) }
    };
    let mut sums = [S::zero(); 2];
    for p in (0..pixels - pixels % 2).step_by(2) {
        sums = [S::add(sums[0], f(read(p))), S::add(sums[1], f(read(p + 1)))];
    }
    if pixels % 2 == 1 {
        sums[0] = S::add(sums[0], f(read(pixels - 1)));
    }
    S::add(sums[0], sums[1])
}

impl Kernel for Moments<'_> {
    type Output = ();

    /// Each run's mean and squared distances, joined as Chan, Golub and LeVeque do ("Updating Formulae and a Pairwise
    /// Algorithm for Computing Sample Variances", 1979): one pass over memory, and no difference of large squares.
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let pixels = self.src.len() / self.stride;
        for c in (0..self.channels.len()).step_by(S::LANES) {
            let n = S::LANES.min(self.channels.len() - c);
            let from = self.src.as_ptr().add(self.channels.start + c);
            let (mut mean, mut squares) = (S::zero(), S::zero());
            for start in (0..pixels).step_by(RUN) {
                let count = RUN.min(pixels - start);
                let part = (from.add(start * self.stride), self.stride, n);
                let part_mean =
                    S::mul(S::splat(1.0 / count as f32), sum_over_pixels::<S>(part, count, |v| v));
                let distance = S::sub(part_mean, mean);
                let share = count as f32 / (start + count) as f32;
                if self.variance.is_some() {
                    let part_squares = sum_over_pixels::<S>(part, count, |v| {
                        let d = S::sub(v, part_mean);
                        S::mul(d, d)
                    });
                    let between =
                        S::mul(S::splat(start as f32 * share), S::mul(distance, distance));
                    squares = S::add(squares, S::add(part_squares, between));
                }
                mean = S::mul_add(S::splat(share), distance, mean);
            }
            S::store_first(self.mean.as_mut_ptr().add(c), n, mean);
            if let Some(variance) = &mut self.variance {
                let variance = variance.as_mut_ptr().add(c);
                S::store_first(variance, n, S::mul(S::splat(1.0 / pixels as f32), squares));
            }
        }
    }
}

/// The global mean from the row sums a kernel left, `[rows, channels]`, of rows of `width` pixels, into `dst`,
/// `[channels]`.
///
/// # Panics
/// A slice that does not fit.
pub fn mean_of_row_sums(width: usize, sums: &[f32], dst: &mut [f32]) {
    let channels = dst.len();
    assert!(
        channels > 0 && width > 0 && !sums.is_empty() && sums.len().is_multiple_of(channels),
        "row sums"
    );
    let pixels = (sums.len() / channels * width) as f64;
    for (c, mean) in dst.iter_mut().enumerate() {
        *mean = (sums.iter().skip(c).step_by(channels).map(|v| f64::from(*v)).sum::<f64>() / pixels)
            as f32;
    }
}
