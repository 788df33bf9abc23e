//! Depthwise convolutions: one kernel a channel. The loops are written so that the compiler makes vector
//! code of them for each instruction set.

use crate::ConvSpec;

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
    let [top, left, ..] = spec.padding;
    for (tap, weights) in weights.chunks_exact(channels).enumerate() {
        let (down, across) = (tap / spec.kernel[1], tap % spec.kernel[1]);
        let sy = (y * spec.stride[0] + down * spec.dilation[0]).wrapping_sub(top);
        let sx = (x * spec.stride[1] + across * spec.dilation[1]).wrapping_sub(left);
        if sy >= spec.height || sx >= spec.width {
            // Padding is zero, which is the zero point.
            for (sum, w) in sums.iter_mut().zip(weights) {
                *sum += i32::from(i16::from(zero) * w);
            }
            continue;
        }
        let from = &source[(sy * spec.width + sx) * channels..][..channels];
        for ((sum, from), w) in sums.iter_mut().zip(from).zip(weights) {
            *sum += i32::from(i16::from(*from) * w);
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
