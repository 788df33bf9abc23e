//! Depthwise convolutions: one kernel a channel. The loops are written so that the compiler makes vector
//! code of them for each instruction set.

use crate::ConvSpec;

/// Channels summed together: they stay in registers over all taps.
const BLOCK: usize = 32;

/// Taps whose places are worked out once for all blocks.
const MOST_TAPS: usize = 25;

/// Sums of one pixel: products of 16 bits are exact (255 * 127 < 2^15), and sums of two are not.
#[inline(always)]
pub(super) fn pixel(
    spec: &ConvSpec,
    source: &[u8],
    zero: u8,
    weights: &[i16],
    [y, x]: [usize; 2],
    sums: &mut [i32],
) {
    let channels = spec.out_channels;
    let taps = weights.len() / channels;
    let [top, left, ..] = spec.padding;
    // Row and column of the next tap.
    let (mut down, mut across) = (0, 0);
    // First byte of its pixel; none where it is padding.
    let mut next = || {
        let sy = (y * spec.stride[0] + down * spec.dilation[0]).wrapping_sub(top);
        let sx = (x * spec.stride[1] + across * spec.dilation[1]).wrapping_sub(left);
        across += 1;
        if across == spec.kernel[1] {
            (down, across) = (down + 1, 0);
        }
        (sy < spec.height && sx < spec.width).then(|| (sy * spec.width + sx) * channels)
    };
    for first in (0..taps).step_by(MOST_TAPS) {
        let count = (taps - first).min(MOST_TAPS);
        let mut places = [None; MOST_TAPS];
        places[..count].fill_with(&mut next);
        let mut blocks = sums.chunks_exact_mut(BLOCK);
        let mut c = 0;
        for sums in &mut blocks {
            let mut acc = [0; BLOCK];
            acc.copy_from_slice(sums);
            for (tap, place) in places[..count].iter().enumerate() {
                let weights = &weights[(first + tap) * channels + c..][..BLOCK];
                add(&mut acc, *place, c, source, zero, weights);
            }
            sums.copy_from_slice(&acc);
            c += BLOCK;
        }
        let rest = blocks.into_remainder();
        for (tap, place) in places[..count].iter().enumerate() {
            let weights = &weights[(first + tap) * channels + c..][..rest.len()];
            add(rest, *place, c, source, zero, weights);
        }
    }
}

/// Adds one tap's products for the channels from `c` on. Padding is zero, which is the zero point.
#[inline(always)]
fn add(sums: &mut [i32], place: Option<usize>, c: usize, source: &[u8], zero: u8, weights: &[i16]) {
    match place {
        None => {
            for (sum, w) in sums.iter_mut().zip(weights) {
                *sum += i32::from(i16::from(zero) * w);
            }
        }
        Some(place) => {
            let from = &source[place + c..][..sums.len()];
            for ((sum, from), w) in sums.iter_mut().zip(from).zip(weights) {
                *sum += i32::from(i16::from(*from) * w);
            }
        }
    }
}

/// Weights `[channels, 1, kernel height, kernel width]` as `[tap, channel]`.
pub(super) fn pack(spec: &ConvSpec, weights: &[i8]) -> Vec<i16> {
    let taps = spec.kernel[0] * spec.kernel[1];
    (0..taps * spec.out_channels)
        .map(|at| i16::from(weights[at % spec.out_channels * taps + at / spec.out_channels]))
        .collect()
}
