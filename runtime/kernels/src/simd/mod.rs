//! One vector of floats per instruction set, so that each kernel is written once.
//!
//! A kernel is a [`Kernel`] whose `run` is generic over [`Simd`] and always inlined; [`dispatch`] compiles it once for
//! each instruction set, inside a function that has the set's target features.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use crate::Isa;

/// A piece of work that is compiled for every instruction set.
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;

    /// Does the work. Implementations and all they call up to another [`Simd::call`] are `#[inline(always)]`.
    ///
    /// # Safety
    /// The machine has `S`'s instructions, and the kernel's own pointers are as it says.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// A vector of `LANES` floats and what the kernels do with it.
///
/// # Safety
/// Every function needs the instruction set to be present; those with pointers need them valid for as many floats as
/// they touch, without alignment. [`dispatch`] is the one place that makes the first promise.
pub(crate) trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// Floats in a vector.
    const LANES: usize;
    /// Most rows of a register block of the matrix kernel.
    const ROWS: usize;
    /// Most vectors in a row of that block.
    const COLUMNS: usize;

    /// Runs a kernel behind a function call, to keep its code from being copied into the caller.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// The first `n <= LANES` lanes; the rest are 0.
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V;
    /// The first `n <= LANES` lanes.
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V);

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, in one rounding where the instruction set has it.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`, likewise.
    unsafe fn neg_mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where it is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where it is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Nearest whole number, for values within 2^22.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `a * 2^n` for whole `n` in -126..=127.
    unsafe fn scale_by_power(a: Self::V, n: Self::V) -> Self::V;
    /// Sum of the lanes, in a fixed order.
    unsafe fn sum(a: Self::V) -> f32;
    /// Largest of the lanes.
    unsafe fn largest(a: Self::V) -> f32;
    /// `LANES` bytes as floats.
    unsafe fn load_bytes(from: *const u8) -> Self::V;

    /// Asks for the cache line at `at`, which may lie anywhere.
    unsafe fn prefetch(at: *const f32);

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the same contract.
        unsafe { Self::splat(0.0) }
    }
}

/// Runs `kernel` with the vectors of `isa`.
///
/// # Safety
/// The kernel's own pointers are as it says.
///
/// # Panics
/// The machine lacks `isa`.
pub(crate) unsafe fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    assert!(isa.is_available(), "instruction set {isa}");
    // SAFETY: the instruction set was just found present; the kernel's pointers are the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => avx2::Avx2::call(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni => avx512::Avx512::call(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot | Isa::NeonI8mm | Isa::NeonFp16 => neon::Neon::call(kernel),
            _ => portable::Portable::call(kernel),
        }
    }
}

/// Lanes of `isa`'s vectors, its register block's rows and columns.
pub(crate) fn block(isa: Isa) -> (usize, usize, usize) {
    struct Block;
    impl Kernel for Block {
        type Output = (usize, usize, usize);
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Self::Output {
            (S::LANES, S::ROWS, S::COLUMNS)
        }
    }
    // SAFETY: no pointers.
    unsafe { dispatch(isa, Block) }
}
