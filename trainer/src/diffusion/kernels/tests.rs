//! Every kernel against burn's own operations, forward and backward.

use burn::tensor::{Device, Tensor};

use crate::diffusion::ops::{self, composed};
use crate::train::random::Stream;

fn random<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    let values = Stream::new(seed, 1).normals(shape.iter().product());
    Tensor::<1>::from_data(values.as_slice(), &Device::flex().autodiff()).reshape(shape)
}

fn largest_difference<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> f32 {
    let scale = b.clone().abs().max().into_scalar::<f32>().max(1e-6);
    (a.clone() - b.clone()).abs().max().into_scalar::<f32>() / scale
}

/// Compares values and gradients of two functions of two tensors.
fn compare<const A: usize, const B: usize, const O: usize>(
    a: [usize; A],
    b: [usize; B],
    fast: impl Fn(Tensor<A>, Tensor<B>) -> Tensor<O>,
    slow: impl Fn(Tensor<A>, Tensor<B>) -> Tensor<O>,
) {
    let run = |f: &dyn Fn(Tensor<A>, Tensor<B>) -> Tensor<O>| {
        let (a, b) = (random(a, 11).require_grad(), random(b, 12).require_grad());
        let out = f(a.clone(), b.clone());
        let mixed = (out.clone() * random(out.dims(), 13)).sum();
        let grads = mixed.backward();
        (out.inner(), a.grad(&grads), b.grad(&grads))
    };
    let (fast, slow) = (run(&fast), run(&slow));
    let difference = largest_difference(&fast.0, &slow.0);
    assert!(difference < 1e-5, "values of {a:?} and {b:?} differ by {difference}");
    for (name, difference) in [
        ("first", fast.1.zip(slow.1).map(|(a, b)| largest_difference(&a, &b))),
        ("second", fast.2.zip(slow.2).map(|(a, b)| largest_difference(&a, &b))),
    ] {
        if let Some(difference) = difference {
            assert!(
                difference < 2e-5,
                "{name} gradient of {a:?} and {b:?} differs by {difference}"
            );
        }
    }
}

#[test]
fn convolutions_agree() {
    for (n, c, o, h, w, k) in [
        (2, 5, 7, 9, 6, 3),
        (1, 16, 8, 56, 56, 3),
        (3, 4, 4, 7, 7, 3),
        (2, 9, 3, 5, 8, 1),
        (1, 1, 1, 1, 1, 3),
        (2, 3, 6, 40, 30, 5),
        (1, 48, 16, 28, 28, 1),
        (2, 6, 9, 7, 7, 1),
        (2, 6, 9, 3, 1, 1),
        (1, 64, 48, 14, 14, 3),
    ] {
        compare([n, c, h, w], [o, c, k, k], ops::conv, composed::conv);
    }
}

#[test]
fn activations_agree() {
    compare([2, 5, 6, 7], [2, 5], ops::mp_silu_modulated, composed::silu_modulated);
    compare([2, 5, 6, 7], [1], |x, _| ops::mp_silu_image(x), |x, _| ops::mp_silu(x));
    compare([2, 5, 6, 7], [1], |x, _| ops::pixel_norm(x), |x, _| ops::normalize_dim(x, 1));
    compare([2, 5, 6, 37], [1], |x, _| ops::softmax_last(x), |x, _| composed::softmax(x));
}

#[test]
fn sums_and_concatenations_agree() {
    let shape = [2, 5, 6, 7];
    let clipped = |scale: f64| {
        move |a: Tensor<4>, b: Tensor<4>| ops::mp_sum_image(a.mul_scalar(scale), b, 0.3, true)
    };
    let slow = |scale: f64| {
        move |a: Tensor<4>, b: Tensor<4>| composed::sum(a.mul_scalar(scale), b, 0.3, true)
    };
    compare(shape, shape, clipped(1.0), slow(1.0));
    compare(shape, shape, clipped(300.0), slow(300.0));
    compare(shape, [2, 3, 6, 7], |a, b| ops::mp_cat(a, b, 0.5), |a, b| composed::cat(a, b, 0.5));
}

#[test]
fn resampling_agrees() {
    compare([2, 3, 6, 8], [1], |x, _| ops::down(x), |x, _| composed::down(x));
    compare([2, 3, 3, 5], [1], |x, _| ops::up(x), |x, _| composed::up(x));
}

#[test]
fn kernels_read_views() {
    // A transposed and a narrowed input: the kernel must see the logical values.
    let x = random([3, 8, 4, 6], 3).swap_dims(0, 1).narrow(0, 2, 4);
    let w = random([5, 3, 3, 3], 4);
    let difference =
        largest_difference(&ops::conv(x.clone(), w.clone()).inner(), &composed::conv(x, w).inner());
    assert!(difference < 1e-5, "{difference}");
}
