//! Averages over a map.

use std::ops::Range;

use crate::{Epilogue, Isa, epilogue::finish_reference};

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
    assert!(isa.is_available(), "instruction set {isa}");
    let out_width = width / 2;
    assert_eq!(src.len(), height * width * channels, "average pool input");
    assert!(rows.start <= rows.end && rows.end <= height / 2, "rows {rows:?} of {}", height / 2);
    assert_eq!(
        dst.len(),
        rows.len() * out_width * channels,
        "destination: not the rows being computed"
    );
    assert!(
        !matches!(epilogue.residual, crate::Residual::InPlace { .. }),
        "average pool: residual in place"
    );
    epilogue.check(rows.len(), out_width, channels);
    if dst.is_empty() {
        return;
    }
    for (i, pixel) in dst.chunks_exact_mut(channels).enumerate() {
        let (y, x) = (rows.start + i / out_width, i % out_width);
        for (c, v) in pixel.iter_mut().enumerate() {
            let at = |dy: usize, dx: usize| src[((2 * y + dy) * width + 2 * x + dx) * channels + c];
            *v = ((at(0, 0) + at(0, 1)) + (at(1, 0) + at(1, 1))) * 0.25;
        }
    }
    finish_reference(epilogue, &[], dst, out_width, channels);
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
    mut std: Option<&mut [f32]>,
    channels: Range<usize>,
) {
    assert!(isa.is_available(), "instruction set {isa}");
    assert!(
        all_channels > 0 && !src.is_empty() && src.len().is_multiple_of(all_channels),
        "mean of whole pixels"
    );
    assert!(
        channels.start <= channels.end && channels.end <= all_channels,
        "channels {channels:?} of {all_channels}"
    );
    assert_eq!(mean.len(), channels.len(), "mean");
    assert!(std.as_ref().is_none_or(|s| s.len() == channels.len()), "standard deviation");
    let count = (src.len() / all_channels) as f64;
    for (i, c) in channels.enumerate() {
        let values = || src.iter().skip(c).step_by(all_channels).map(|v| f64::from(*v));
        let centre = values().sum::<f64>() / count;
        mean[i] = centre as f32;
        if let Some(std) = &mut std {
            std[i] = (values().map(|v| (v - centre).powi(2)).sum::<f64>() / count).sqrt() as f32;
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
