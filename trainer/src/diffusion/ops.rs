//! Magnitude-preserving operations (Karras et al. 2024) on burn tensors.
//!
//! Each keeps the expected magnitude of its output at that of its inputs. On the CPU backend the
//! hot ones go through the fused [`super::kernels`], elsewhere through burn's own operations; the
//! composed forms here are the reference the kernels are tested against.

use burn::tensor::{Tensor, activation};

use super::kernels;

/// Added to norms before dividing by them.
pub const EPSILON: f64 = 1e-4;

/// Root mean square of SiLU over a standard normal input.
pub const SILU_SCALE: f64 = 0.596;

/// Balance between the two sides of a skip connection's concatenation.
pub const CONCAT_BALANCE: f64 = 0.5;

/// Weight of the residual and of the attention branch.
pub const BRANCH_BALANCE: f64 = 0.3;

/// Activations are held within plus and minus this.
pub const CLIP: f64 = 256.0;

/// SiLU over its own magnitude for normal input, any shape.
pub fn mp_silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::silu(x).div_scalar(SILU_SCALE)
}

/// [`mp_silu`] of an image batch `[N, C, H, W]`.
pub fn mp_silu_image(x: Tensor<4>) -> Tensor<4> {
    kernels::silu(x).unwrap_or_else(mp_silu)
}

/// `mp_silu(x * factor)` with one factor per image and channel, `[N, C]`.
pub fn mp_silu_modulated(x: Tensor<4>, factor: Tensor<2>) -> Tensor<4> {
    kernels::silu_modulated(x, factor).unwrap_or_else(|(x, f)| composed::silu_modulated(x, f))
}

/// Coefficients of a magnitude-preserving sum with balance `t`.
pub fn sum_weights(t: f64) -> (f64, f64) {
    let scale = ((1.0 - t).powi(2) + t.powi(2)).sqrt();
    ((1.0 - t) / scale, t / scale)
}

/// Coefficients of a magnitude-preserving concatenation of `a` and `b` channels.
pub fn cat_weights(a: usize, b: usize, t: f64) -> (f64, f64) {
    let (a, b) = (a as f64, b as f64);
    let scale = ((a + b) / ((1.0 - t).powi(2) + t.powi(2))).sqrt();
    (scale / a.sqrt() * (1.0 - t), scale / b.sqrt() * t)
}

/// Magnitude-preserving sum of two tensors of any shape.
pub fn mp_sum<const D: usize>(a: Tensor<D>, b: Tensor<D>, t: f64) -> Tensor<D> {
    let (wa, wb) = sum_weights(t);
    a.mul_scalar(wa) + b.mul_scalar(wb)
}

/// Magnitude-preserving sum of feature maps; `clip` also holds it within [`CLIP`].
pub fn mp_sum_image(a: Tensor<4>, b: Tensor<4>, t: f64, clip: bool) -> Tensor<4> {
    kernels::sum(a, b, sum_weights(t), clip.then_some(CLIP))
        .unwrap_or_else(|(a, b)| composed::sum(a, b, t, clip))
}

/// Concatenation along channels, each side scaled to contribute by its balance.
pub fn mp_cat(a: Tensor<4>, b: Tensor<4>, t: f64) -> Tensor<4> {
    let weights = cat_weights(a.dims()[1], b.dims()[1], t);
    weighted_cat(a, b, weights)
}

/// Concatenation along channels without scaling, as the released stage-2 code does.
pub fn plain_cat(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    weighted_cat(a, b, (1.0, 1.0))
}

fn weighted_cat(a: Tensor<4>, b: Tensor<4>, (wa, wb): (f64, f64)) -> Tensor<4> {
    kernels::cat(a, b, (wa, wb)).unwrap_or_else(|(a, b)| composed::weighted_cat(a, b, wa, wb))
}

/// Scales every pixel's channel vector to unit root mean square.
pub fn pixel_norm(x: Tensor<4>) -> Tensor<4> {
    kernels::pixel_norm(x).unwrap_or_else(|x| normalize_dim(x, 1))
}

/// `x / (eps + rms(x))` along one dimension.
pub fn normalize_dim<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    let count = x.dims()[dim] as f64;
    let norm = x.clone().square().sum_dim(dim).sqrt().mul_scalar(count.powf(-0.5));
    x / norm.add_scalar(EPSILON)
}

/// Mean over 2 x 2 pixels, the box filter's downsampling.
pub fn down(x: Tensor<4>) -> Tensor<4> {
    kernels::down(x).unwrap_or_else(composed::down)
}

/// Every pixel repeated 2 x 2, the box filter's upsampling.
pub fn up(x: Tensor<4>) -> Tensor<4> {
    kernels::up(x).unwrap_or_else(composed::up)
}

/// Stride-1 convolution that keeps the resolution; `weight` is `[out, in, k, k]` with odd `k` and
/// is used as it is.
pub fn conv(x: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
    kernels::conv(x, weight).unwrap_or_else(|(x, weight)| composed::conv(x, weight))
}

/// Softmax over the last dimension.
pub fn softmax_last<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    kernels::softmax(x).unwrap_or_else(composed::softmax)
}

/// `x [N, in]` times the transpose of `weight [out, in]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    x.matmul(weight.transpose())
}

/// `sqrt(2) cos(f x + p)` for every value of `x [N]`: `[N, F]`.
pub fn fourier(x: Tensor<1>, frequencies: Tensor<1>, phases: Tensor<1>) -> Tensor<2> {
    let n = x.dims()[0];
    let f = frequencies.dims()[0];
    let angle = x.reshape([n, 1]) * frequencies.reshape([1, f]) + phases.reshape([1, f]);
    angle.cos().mul_scalar(std::f64::consts::SQRT_2)
}

/// `[N, C, H, W]` to `[N, C p p, H/p, W/p]`; the new channel index is `(dy p + dx) C + c`.
pub fn space_to_depth(x: Tensor<4>, p: usize) -> Tensor<4> {
    if p == 1 {
        return x;
    }
    let [n, c, h, w] = x.dims();
    x.reshape([n, c, h / p, p, w / p, p]).permute([0, 3, 5, 1, 2, 4]).reshape([
        n,
        p * p * c,
        h / p,
        w / p,
    ])
}

/// Inverse of [`space_to_depth`].
pub fn depth_to_space(x: Tensor<4>, p: usize) -> Tensor<4> {
    if p == 1 {
        return x;
    }
    let [n, c, h, w] = x.dims();
    x.reshape([n, p, p, c / (p * p), h, w]).permute([0, 3, 4, 1, 5, 2]).reshape([
        n,
        c / (p * p),
        h * p,
        w * p,
    ])
}

/// Multi-head attention over the pixels of `qkv [N, 3C, H, W]`, whose channels are grouped as
/// (head, channel, one of q k v); q, k and v are pixel-normalised. Returns `[N, C, H, W]`.
pub fn pixel_attention(qkv: Tensor<4>, heads: usize) -> Tensor<4> {
    let [n, c3, h, w] = qkv.dims();
    let channels = c3 / 3 / heads;
    let grouped = normalize_dim(qkv.reshape([n * heads, channels, 3, h * w]), 1);
    let part = |i: usize| grouped.clone().narrow(2, i, 1).reshape([n * heads, channels, h * w]);
    let (q, k, v) = (part(0), part(1), part(2));
    let scores = q.transpose().matmul(k.div_scalar((channels as f64).sqrt()));
    let attention = softmax_last(scores);
    v.matmul(attention.transpose()).reshape([n, c3 / 3, h, w])
}

/// The same operations composed of burn's: for other devices, and the kernels' reference.
pub(super) mod composed {
    use burn::tensor::ops::ConvOptions;
    use burn::tensor::{Tensor, activation, module};

    use super::{CLIP, mp_silu, mp_sum};

    pub fn silu_modulated(x: Tensor<4>, factor: Tensor<2>) -> Tensor<4> {
        let [n, c] = factor.dims();
        mp_silu(x * factor.reshape([n, c, 1, 1]))
    }

    pub fn sum(a: Tensor<4>, b: Tensor<4>, t: f64, clip: bool) -> Tensor<4> {
        let sum = mp_sum(a, b, t);
        if clip { sum.clamp(-CLIP, CLIP) } else { sum }
    }

    pub fn weighted_cat(a: Tensor<4>, b: Tensor<4>, wa: f64, wb: f64) -> Tensor<4> {
        Tensor::cat(vec![a.mul_scalar(wa), b.mul_scalar(wb)], 1)
    }

    #[cfg(test)]
    pub fn cat(a: Tensor<4>, b: Tensor<4>, t: f64) -> Tensor<4> {
        let (wa, wb) = super::cat_weights(a.dims()[1], b.dims()[1], t);
        weighted_cat(a, b, wa, wb)
    }

    pub fn down(x: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        x.reshape([n * c, h / 2, 2, w / 2, 2]).mean_dim(4).mean_dim(2).reshape([n, c, h / 2, w / 2])
    }

    pub fn up(x: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        x.reshape([n * c, h, 1, w, 1]).expand([n * c, h, 2, w, 2]).reshape([n, c, 2 * h, 2 * w])
    }

    pub fn conv(x: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
        let pad = weight.dims()[2] / 2;
        module::conv2d(x, weight, None, ConvOptions::new([1, 1], [pad, pad], [1, 1], 1))
    }

    pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
        activation::softmax(x, D - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tolerance};

    fn random(shape: [usize; 4], seed: u64) -> Tensor<4> {
        let device = Device::flex();
        let values = crate::train::random::Stream::new(seed, 0).normals(shape.iter().product());
        Tensor::<1>::from_data(values.as_slice(), &device).reshape(shape)
    }

    #[test]
    fn space_to_depth_is_inverted_and_ordered() {
        let x = random([2, 3, 8, 8], 1);
        let deep = space_to_depth(x.clone(), 4);
        assert_eq!(deep.dims(), [2, 48, 2, 2]);
        // Channel (dy p + dx) 3 + c of patch (1, 0) is pixel (4 + dy, dx).
        let value =
            deep.clone().slice([0..1, (2 * 4 + 3) * 3 + 1..(2 * 4 + 3) * 3 + 2, 1..2, 0..1]);
        let pixel = x.clone().slice([0..1, 1..2, 6..7, 3..4]);
        assert_eq!(value.into_data(), pixel.into_data());
        depth_to_space(deep, 4).into_data().assert_eq(&x.into_data(), true);
    }

    #[test]
    fn sums_and_concatenations_keep_magnitude() {
        let (a, b) = (random([2, 16, 16, 16], 2), random([2, 16, 16, 16], 3));
        let rms = |x: Tensor<4>| x.square().mean().sqrt().into_scalar::<f32>();
        assert!((rms(mp_sum_image(a.clone(), b.clone(), 0.3, true)) - 1.0).abs() < 0.03);
        assert!((rms(mp_cat(a.clone(), b.narrow(1, 0, 4), 0.5)) - 1.0).abs() < 0.03);
        assert!((rms(mp_silu_image(a)) - 1.0).abs() < 0.03);
    }

    #[test]
    fn resampling_is_the_box_filter() {
        let x = random([1, 2, 4, 4], 4);
        down(up(x.clone()))
            .into_data()
            .assert_approx_eq::<f32>(&x.into_data(), Tolerance::default());
    }
}
