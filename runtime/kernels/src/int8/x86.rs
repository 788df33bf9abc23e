//! AVX2 (`maddubs`), AVX-VNNI and AVX-512 VNNI (`vpdpbusd`).

use std::arch::x86_64::*;

use super::conv::Runs;
use super::depthwise;
use super::output::{Output, dequantize_here, quantize_here};
use super::pack::{BLOCK, DEPTH, Packed};
use crate::ConvSpec;

/// Runs `$tile::<pixels, blocks>` over all pixels and blocks, the widest first.
macro_rules! over {
    ($tile:ident, [$($pixels:literal),+], $blocks:literal, $source:ident, $offsets:ident, $runs:ident,
     $packed:ident, $sums:ident) => {
        for plane in 0..$packed.planes {
            let plane = $packed.data().as_ptr().add(plane * $packed.plane_bytes());
            let step = $packed.blocks * BLOCK;
            let mut block = 0;
            while block < $packed.blocks {
                let weights = plane.add(block * $packed.block_bytes());
                let sums = $sums.as_mut_ptr().add(block * BLOCK);
                let wide = $packed.blocks - block >= $blocks;
                let mut done = 0;
                $(
                    while $offsets.len() - done >= $pixels {
                        let offsets = &$offsets[done..done + $pixels];
                        let to = sums.add(done * step);
                        let tile = if wide { $tile::<$pixels, $blocks> } else { $tile::<$pixels, 1> };
                        tile($source, offsets, $runs, weights, $packed.block_bytes(), to, step);
                        done += $pixels;
                    }
                )+
                block += if wide { $blocks } else { 1 };
            }
        }
    };
}

/// Four bytes of the source in every lane.
macro_rules! four {
    ($set:ident, $at:expr) => {
        $set($at.cast::<i32>().read_unaligned())
    };
}

/// # Safety
/// AVX-512 VNNI, and what `conv` asserts of the windows. So for all functions here.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn dot512(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    packed: &Packed,
    sums: &mut [i32],
) {
    // SAFETY: the caller's promise.
    unsafe { over!(tile512, [12, 6, 4, 2, 1], 2, source, offsets, runs, packed, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile512<const P: usize, const B: usize>(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    weights: *const i8,
    block_bytes: usize,
    sums: *mut i32,
    step: usize,
) {
    // SAFETY: the caller's promise: every run lies within the source, every group within the block, and
    // `sums` has `P` rows of `step` with `B` blocks in each.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); B]; P];
        for (p, row) in acc.iter_mut().enumerate() {
            for (b, sum) in row.iter_mut().enumerate() {
                *sum = _mm512_loadu_si512(sums.add(p * step + b * BLOCK).cast());
            }
        }
        let from: [*const u8; P] = std::array::from_fn(|p| source.as_ptr().add(offsets[p]));
        let mut w = weights;
        for &start in runs.starts {
            for group in 0..runs.groups {
                let at = start + group * DEPTH;
                let wide: [__m512i; B] =
                    std::array::from_fn(|b| _mm512_loadu_si512(w.add(b * block_bytes).cast()));
                for p in 0..P {
                    let x = four!(_mm512_set1_epi32, from[p].add(at));
                    for b in 0..B {
                        acc[p][b] = _mm512_dpbusd_epi32(acc[p][b], x, wide[b]);
                    }
                }
                w = w.add(BLOCK * DEPTH);
            }
        }
        for (p, row) in acc.iter().enumerate() {
            for (b, sum) in row.iter().enumerate() {
                _mm512_storeu_si512(sums.add(p * step + b * BLOCK).cast(), *sum);
            }
        }
    }
}

/// A tile of 256-bit registers, two a block, with `$dot(sum, bytes, weights)`.
macro_rules! tile256 {
    ($name:ident, $features:literal, $dot:ident) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const P: usize, const B: usize>(
            source: &[u8],
            offsets: &[usize],
            runs: Runs,
            weights: *const i8,
            _block_bytes: usize,
            sums: *mut i32,
            step: usize,
        ) {
            // SAFETY: as for `tile512`, with `B` 1.
            unsafe {
                let mut acc = [[_mm256_setzero_si256(); 2]; P];
                for p in 0..P {
                    for half in 0..2 {
                        acc[p][half] = _mm256_loadu_si256(sums.add(p * step + half * 8).cast());
                    }
                }
                let from: [*const u8; P] = std::array::from_fn(|p| source.as_ptr().add(offsets[p]));
                let mut w = weights;
                for &start in runs.starts {
                    for group in 0..runs.groups {
                        let at = start + group * DEPTH;
                        let low = _mm256_loadu_si256(w.cast());
                        let high = _mm256_loadu_si256(w.add(32).cast());
                        for p in 0..P {
                            let x = four!(_mm256_set1_epi32, from[p].add(at));
                            acc[p][0] = $dot(acc[p][0], x, low);
                            acc[p][1] = $dot(acc[p][1], x, high);
                        }
                        w = w.add(BLOCK * DEPTH);
                    }
                }
                for p in 0..P {
                    for half in 0..2 {
                        _mm256_storeu_si256(sums.add(p * step + half * 8).cast(), acc[p][half]);
                    }
                }
            }
        }
    };
}

/// The dot product in two steps; exact while no pair of products saturates 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(sum: __m256i, bytes: __m256i, weights: __m256i) -> __m256i {
    let products = _mm256_maddubs_epi16(bytes, weights);
    _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)))
}

tile256!(tile_maddubs, "avx2", pairs);
tile256!(tile_vnni, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);

/// # Safety
/// AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn maddubs(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    packed: &Packed,
    sums: &mut [i32],
) {
    // SAFETY: the caller's promise.
    unsafe { over!(tile_maddubs, [4, 2, 1], 1, source, offsets, runs, packed, sums) }
}

/// # Safety
/// AVX-VNNI.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn dot256(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    packed: &Packed,
    sums: &mut [i32],
) {
    // SAFETY: the caller's promise.
    unsafe { over!(tile_vnni, [4, 2, 1], 1, source, offsets, runs, packed, sums) }
}

/// # Safety
/// AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn depthwise256(
    spec: &ConvSpec,
    source: &[u8],
    zero: u8,
    weights: &[i16],
    at: [usize; 2],
    sums: &mut [i32],
) {
    depthwise::pixel(spec, source, zero, weights, at, sums);
}

/// # Safety
/// AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn depthwise512(
    spec: &ConvSpec,
    source: &[u8],
    zero: u8,
    weights: &[i16],
    at: [usize; 2],
    sums: &mut [i32],
) {
    depthwise::pixel(spec, source, zero, weights, at, sums);
}

/// A loop of plain Rust compiled for AVX2 and for AVX-512.
macro_rules! compiled {
    ($name256:ident, $name512:ident, ($($arg:ident: $type:ty),*), $body:expr) => {
        /// # Safety
        /// AVX2.
        #[target_feature(enable = "avx2,fma")]
        pub(super) unsafe fn $name256($($arg: $type),*) {
            $body
        }

        /// # Safety
        /// AVX-512 F, BW, DQ and VL.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        pub(super) unsafe fn $name512($($arg: $type),*) {
            $body
        }
    };
}

compiled!(
    take256,
    take512,
    (output: &mut Output, first: usize, sums: &[i32], step: usize, channels: usize),
    output.take_here(first, sums, step, channels)
);
compiled!(
    quantize256,
    quantize512,
    (from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]),
    quantize_here(from, scale, zero_point, to)
);
compiled!(
    dequantize256,
    dequantize512,
    (from: &[u8], scale: f32, zero_point: u8, to: &mut [f32]),
    dequantize_here(from, scale, zero_point, to)
);

/// # Safety
/// AVX-512 F, BW and VBMI; slices of one length.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) unsafe fn look_up512(table: &[u8; 256], from: &[u8], to: &mut [u8]) {
    // SAFETY: four times 64 bytes of the table, and bytes of the slices that the mask leaves, are within them.
    unsafe {
        let part = |k: usize| _mm512_loadu_si512(table.as_ptr().add(64 * k).cast());
        let (low, high) = ([part(0), part(1)], [part(2), part(3)]);
        for at in (0..from.len()).step_by(64) {
            let count = (from.len() - at).min(64);
            let mask = u64::MAX >> (64 - count);
            let index = _mm512_maskz_loadu_epi8(mask, from.as_ptr().add(at).cast());
            let small = _mm512_permutex2var_epi8(low[0], index, low[1]);
            let large = _mm512_permutex2var_epi8(high[0], index, high[1]);
            let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), small, large);
            _mm512_mask_storeu_epi8(to.as_mut_ptr().add(at).cast(), mask, found);
        }
    }
}
