//! Four floats: aarch64 with Advanced SIMD.
#![expect(unsafe_op_in_unsafe_fn, reason = "thin wrappers whose contract is the trait's")]

use std::arch::aarch64::*;

use super::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(super) struct Neon;

// SAFETY of every function: Advanced SIMD is present and pointers valid, both the caller's promise (see the trait).
impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const ROWS: usize = 6;
    const COLUMNS: usize = 4;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        unsafe fn outlined<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<Neon>()
        }
        outlined(kernel)
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        // The intrinsic is not stable yet.
        std::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, readonly, preserves_flags));
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        vdupq_n_f32(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        vld1q_f32(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        vst1q_f32(to, v);
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; 4];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            *lane = from.add(i).read();
        }
        vld1q_f32(lanes.as_ptr())
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V) {
        let mut lanes = [0.0f32; 4];
        vst1q_f32(lanes.as_mut_ptr(), v);
        for (i, lane) in lanes.into_iter().enumerate().take(n) {
            to.add(i).write(lane);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        vaddq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        vsubq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        vmulq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        vdivq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        vfmaq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn neg_mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        vfmsq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        vmaxq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        vminq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        vrndnq_f32(a)
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: Self::V, n: Self::V) -> Self::V {
        let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
        vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        let two = vadd_f32(vget_low_f32(a), vget_high_f32(a));
        vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
    }
    #[inline(always)]
    unsafe fn largest(a: Self::V) -> f32 {
        vmaxvq_f32(a)
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self::V {
        let bytes = from.cast::<u32>().read_unaligned();
        let wide = vmovl_u8(vcreate_u8(u64::from(bytes)));
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)))
    }
}
