//! Runs numeric loops with the widest vector instructions of the processor.
//!
//! The loops are ordinary Rust on small arrays; compiled inside a function that has the wide
//! instructions enabled, they become those instructions. Which function runs is decided once the
//! processor is known.

/// `L` values that live in one vector register.
#[derive(Debug, Clone, Copy)]
pub struct Vector<const L: usize>([f32; L]);

impl<const L: usize> Vector<L> {
    /// All lanes the same.
    #[inline(always)]
    pub fn splat(value: f32) -> Self {
        Self([value; L])
    }

    /// The first `L` values of a slice.
    #[inline(always)]
    pub fn load(values: &[f32]) -> Self {
        let mut lanes = [0.0; L];
        lanes.copy_from_slice(&values[..L]);
        Self(lanes)
    }

    /// Overwrites the first `L` values of a slice.
    #[inline(always)]
    pub fn store(self, values: &mut [f32]) {
        values[..L].copy_from_slice(&self.0);
    }

    /// `a * b + self`, rounded once where `FUSED`.
    #[inline(always)]
    pub fn add_product<const FUSED: bool>(mut self, a: Self, b: Self) -> Self {
        for ((sum, a), b) in self.0.iter_mut().zip(&a.0).zip(&b.0) {
            *sum = if FUSED { a.mul_add(*b, *sum) } else { a * b + *sum };
        }
        self
    }

    /// Sum of the lanes.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        self.0.iter().sum()
    }
}

/// A computation written for `L` lanes, with or without fused multiply-add.
pub trait Work {
    /// What it returns.
    type Output;

    /// Does the work. Implementations are `#[inline(always)]`, so that they are compiled with the
    /// caller's instructions.
    fn run<const L: usize, const FUSED: bool>(self) -> Self::Output;
}

/// Runs `work` with the widest vectors there are.
pub fn dispatch<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, which implies AVX2 and FMA.
            return unsafe { with_avx512(work) };
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            // SAFETY: the processor has AVX2 and FMA.
            return unsafe { with_avx2(work) };
        }
    }
    if cfg!(target_arch = "aarch64") { work.run::<4, true>() } else { work.run::<4, false>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn with_avx512<W: Work>(work: W) -> W::Output {
    work.run::<16, true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<W: Work>(work: W) -> W::Output {
    work.run::<8, true>()
}

/// A closure as [`Work`].
struct Plain<F>(F);

impl<R, F: FnOnce() -> R> Work for Plain<F> {
    type Output = R;

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) -> R {
        (self.0)()
    }
}

/// Runs a closure whose loops the compiler vectorises by itself.
#[inline(always)]
pub fn vectorize<R>(work: impl FnOnce() -> R) -> R {
    dispatch(Plain(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dot<'a>(&'a [f32], &'a [f32]);

    impl Work for Dot<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<const L: usize, const FUSED: bool>(self) -> f32 {
            let mut total = Vector::<L>::splat(0.0);
            for (a, b) in self.0.chunks_exact(L).zip(self.1.chunks_exact(L)) {
                total = total.add_product::<FUSED>(Vector::load(a), Vector::load(b));
            }
            total.sum()
        }
    }

    #[test]
    fn every_width_agrees() {
        let a: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..64).map(|i| (i % 7) as f32).collect();
        let expected: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
        // Small integers: exact in any order.
        assert_eq!(dispatch(Dot(&a, &b)), expected);
        assert_eq!(Dot(&a, &b).run::<4, false>(), expected);
        assert_eq!(Dot(&a, &b).run::<8, true>(), expected);
        assert_eq!(vectorize(|| a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>()), expected);
    }
}
