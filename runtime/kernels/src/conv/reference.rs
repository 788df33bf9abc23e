//! The convolution as its definition says it, in plain loops.

use std::ops::Range;

use super::ConvSpec;
use crate::{Activation, Epilogue, Source, epilogue::finish_reference};

/// Value of the concatenated, scaled, enlarged input at a pixel inside the map.
fn input(spec: &ConvSpec, sources: &[Source], y: usize, x: usize, mut channel: usize) -> f32 {
    for (source, shape) in sources.iter().zip(&spec.sources) {
        if channel < shape.channels {
            let (y, x, width) =
                if shape.upsample { (y / 2, x / 2, spec.width / 2) } else { (y, x, spec.width) };
            let mut v = source.data[(y * width + x) * shape.channels + channel];
            if let Some(scale) = source.scale {
                v *= scale[channel];
            }
            return if source.silu { Activation::Silu.apply(v) } else { v };
        }
        channel -= shape.channels;
    }
    unreachable!("channels were checked against the sources")
}

#[expect(clippy::too_many_arguments, reason = "the parts of one prepared convolution and one call")]
pub(super) fn run(
    spec: &ConvSpec,
    weights: &[f32],
    bias: &[f32],
    sources: &[Source],
    epilogue: &mut Epilogue,
    dst: &mut [f32],
    scratch: &mut [f32],
    rows: Range<usize>,
) {
    let (width, channels) = (spec.out_width(), spec.out_channels);
    let row_len = width * channels;
    let ([kh, kw], group) = (spec.kernel, spec.group_channels());
    for (i, oy) in rows.enumerate() {
        let dst = &mut dst[i * row_len..][..row_len];
        let before = &mut scratch[..row_len];
        before.copy_from_slice(dst);
        for (ox, pixel) in dst.chunks_exact_mut(channels).enumerate() {
            for (o, v) in pixel.iter_mut().enumerate() {
                let mut sum = bias[o];
                for ky in 0..kh {
                    let y =
                        (oy * spec.stride[0] + ky * spec.dilation[0]).wrapping_sub(spec.padding[0]);
                    for kx in 0..kw {
                        let x = (ox * spec.stride[1] + kx * spec.dilation[1])
                            .wrapping_sub(spec.padding[1]);
                        if y >= spec.height || x >= spec.width {
                            continue;
                        }
                        for c in 0..group {
                            let from = if spec.depthwise { o } else { c };
                            sum += weights[((o * group + c) * kh + ky) * kw + kx]
                                * input(spec, sources, y, x, from);
                        }
                    }
                }
                *v = sum;
            }
        }
        let mut epilogue = epilogue.rows(i, 1, width, channels);
        finish_reference(&mut epilogue, before, dst, oy, width, channels);
    }
}
