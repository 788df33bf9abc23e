#![expect(unsafe_op_in_unsafe_fn, reason = "arithmetic on vectors under the trait's contract")]

use std::{hint::black_box, time::Instant};

use crate::{
    Isa,
    simd::{self, Kernel, Simd},
};

/// Independent multiply-adds, enough to hide their latency.
const CHAINS: usize = 12;

/// Steps of a measurement, about a tenth of a millisecond.
const STEPS: usize = 20_000;

struct Chains;

impl Kernel for Chains {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        let factor = S::splat(black_box(0.999));
        let mut acc = [S::splat(black_box(1.0)); CHAINS];
        for _ in 0..black_box(STEPS) {
            for v in &mut acc {
                *v = S::mul_add(*v, factor, factor);
            }
        }
        let mut total = S::zero();
        for v in acc {
            total = S::add(total, v);
        }
        black_box(S::sum(total));
        2 * S::LANES * CHAINS * STEPS
    }
}

/// Float operations a second of one core with `isa`'s multiply-adds and nothing else: what a kernel's speed is a share
/// of. Takes about ten milliseconds; the best of many short runs, so that other work on the machine hardly shows.
///
/// # Panics
/// The machine lacks `isa`.
pub fn measure_peak(isa: Isa) -> f64 {
    let mut best = 0.0f64;
    for _ in 0..60 {
        let start = Instant::now();
        // SAFETY: no pointers.
        let operations = unsafe { simd::dispatch(isa, Chains) };
        best = best.max(operations as f64 / start.elapsed().as_secs_f64());
    }
    best
}
