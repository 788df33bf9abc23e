//! What the kernels' tests share.

use crate::Isa;

/// `len` values, roughly normal, from a seed.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| 2.0 * (uniform() + uniform() + uniform())).collect()
}

/// Every float instruction set of this machine. Those that only add integer instructions run the same float kernels.
pub(crate) fn instruction_sets() -> Vec<Isa> {
    let same = [Isa::AvxVnni, Isa::Avx512Vnni, Isa::NeonDot, Isa::NeonI8mm];
    Isa::available().into_iter().filter(|i| !same.contains(i)).collect()
}

/// Largest difference over the larger of 1 and the largest reference value.
///
/// # Panics
/// The slices differ in length or a value is not finite.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let mut worst = 0.0f32;
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(f.is_finite() && e.is_finite(), "value {i}: {f} where the reference has {e}");
        worst = worst.max((f - e).abs());
    }
    worst / expected.iter().fold(1.0, |m, v| v.abs().max(m))
}

/// How many cases a property runs; `PROPTEST_CASES` asks for another number, fewer where each step is emulated.
pub(crate) fn cases(n: u32) -> proptest::test_runner::Config {
    let n = std::env::var("PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(n);
    proptest::test_runner::Config { cases: n, failure_persistence: None, ..Default::default() }
}
