//! Neon, and the 8-bit dot product (SDOT, written as assembly: its intrinsic is not stable yet).
//! Activations come as signed bytes.

use std::arch::aarch64::*;
use std::arch::asm;

use super::conv::Runs;
use super::pack::{BLOCK, DEPTH, Packed};

/// Pixels computed together with the dot product: 4 x 4 sums of 4 stay in registers.
const TOGETHER: usize = 4;

/// # Safety
/// Neon with the dot product, and what `conv` asserts of the windows. So for all functions here.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dot(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    packed: &Packed,
    sums: &mut [i32],
) {
    let step = packed.blocks * BLOCK;
    for block in 0..packed.blocks {
        // SAFETY: the caller's promise.
        unsafe {
            let weights = packed.data().as_ptr().add(block * packed.block_bytes());
            let sums = sums.as_mut_ptr().add(block * BLOCK);
            let mut done = 0;
            while offsets.len() - done >= TOGETHER {
                let offsets = &offsets[done..done + TOGETHER];
                dot_tile::<TOGETHER>(source, offsets, runs, weights, sums.add(done * step), step);
                done += TOGETHER;
            }
            for (pixel, offset) in offsets.iter().enumerate().skip(done) {
                let offsets = std::slice::from_ref(offset);
                dot_tile::<1>(source, offsets, runs, weights, sums.add(pixel * step), step);
            }
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_tile<const P: usize>(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    weights: *const i8,
    sums: *mut i32,
    step: usize,
) {
    // SAFETY: the caller's promise: runs lie within the source, groups within the block, `sums` has `P`
    // rows of `step` with one block in each.
    unsafe {
        let mut acc = [[vdupq_n_s32(0); 4]; P];
        for p in 0..P {
            for quarter in 0..4 {
                acc[p][quarter] = vld1q_s32(sums.add(p * step + quarter * 4));
            }
        }
        let mut w = weights;
        for &start in runs.starts {
            for group in 0..runs.groups {
                let at = start + group * DEPTH;
                let wide: [int8x16_t; 4] =
                    std::array::from_fn(|quarter| vld1q_s8(w.add(quarter * 16)));
                for p in 0..P {
                    let four = source.as_ptr().add(offsets[p] + at).cast::<i32>().read_unaligned();
                    let x = vreinterpretq_s8_s32(vdupq_n_s32(four));
                    for quarter in 0..4 {
                        acc[p][quarter] = sdot(acc[p][quarter], wide[quarter], x);
                    }
                }
                w = w.add(BLOCK * DEPTH);
            }
        }
        for p in 0..P {
            for quarter in 0..4 {
                vst1q_s32(sums.add(p * step + quarter * 4), acc[p][quarter]);
            }
        }
    }
}

/// Adds four products of signed bytes to each of four sums.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: one instruction on registers, which `dotprod` has.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// # Safety
/// Neon.
#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    packed: &Packed,
    sums: &mut [i32],
) {
    let step = packed.blocks * BLOCK;
    for block in 0..packed.blocks {
        for (pixel, &offset) in offsets.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let weights = packed.data().as_ptr().add(block * packed.block_bytes());
                let sums = sums.as_mut_ptr().add(pixel * step + block * BLOCK);
                multiply_pixel(source.as_ptr().add(offset), runs, weights, sums);
            }
        }
    }
}

#[target_feature(enable = "neon")]
unsafe fn multiply_pixel(source: *const u8, runs: Runs, weights: *const i8, sums: *mut i32) {
    // SAFETY: as for `dot_tile`, one pixel.
    unsafe {
        // Two outputs a register, two partial sums each.
        let mut acc = [vdupq_n_s32(0); 8];
        let mut w = weights;
        for &start in runs.starts {
            for group in 0..runs.groups {
                let four = source.add(start + group * DEPTH).cast::<i32>().read_unaligned();
                let x = vreinterpret_s8_s32(vdup_n_s32(four));
                for (pair, acc) in acc.iter_mut().enumerate() {
                    let products = vmull_s8(vld1_s8(w.add(pair * 8)), x);
                    *acc = vpadalq_s16(*acc, products);
                }
                w = w.add(BLOCK * DEPTH);
            }
        }
        for quarter in 0..4 {
            let own = vpaddq_s32(acc[quarter * 2], acc[quarter * 2 + 1]);
            let to = sums.add(quarter * 4);
            vst1q_s32(to, vaddq_s32(vld1q_s32(to), own));
        }
    }
}
