//! The most float32 multiply-adds that one core of this machine does in a second.

use std::hint::black_box;
use std::time::Instant;

/// Multiply-adds for each accumulator in one round.
const STEPS: usize = 1 << 16;

/// Peak of one core in GFLOP/s (a multiply-add is two), the best of some short rounds.
pub(super) fn gflops() -> f64 {
    let mut best = 0.0f64;
    for _ in 0..20 {
        let start = Instant::now();
        let operations = round();
        best = best.max(operations as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

#[cfg(target_arch = "x86_64")]
fn round() -> usize {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the feature.
        unsafe { avx512() }
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the features.
        unsafe { avx2() }
    } else {
        plain()
    }
}

#[cfg(target_arch = "aarch64")]
fn round() -> usize {
    // SAFETY: every aarch64 processor that Rust's standard targets run on has Advanced SIMD.
    unsafe { neon() }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn round() -> usize {
    plain()
}

/// # Safety
/// The processor has AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512() -> usize {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let factor = _mm512_set1_ps(black_box(0.999));
    let mut sums = [_mm512_set1_ps(1.0); 16];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    black_box(sums);
    STEPS * 16 * 16 * 2
}

/// # Safety
/// The processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2() -> usize {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let factor = _mm256_set1_ps(black_box(0.999));
    let mut sums = [_mm256_set1_ps(1.0); 12];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    black_box(sums);
    STEPS * 12 * 8 * 2
}

/// # Safety
/// The processor has Advanced SIMD.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon() -> usize {
    use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
    let factor = vdupq_n_f32(black_box(0.999));
    let mut sums = [vdupq_n_f32(1.0); 16];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = vfmaq_f32(factor, *sum, factor);
        }
    }
    black_box(sums);
    STEPS * 16 * 4 * 2
}

#[cfg(not(target_arch = "aarch64"))]
fn plain() -> usize {
    let factor = black_box(0.999f32);
    let mut sums = [1.0f32; 16];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = *sum * factor + factor;
        }
    }
    black_box(sums);
    STEPS * 16 * 2
}
