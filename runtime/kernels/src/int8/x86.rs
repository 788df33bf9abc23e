//! AVX2 (`maddubs`), AVX-VNNI and AVX-512 VNNI (`vpdpbusd`).

use std::arch::x86_64::*;

use super::conv::Runs;
use super::depthwise;
use super::output::{Output, dequantize_here, quantize_here};
use super::pack::{BLOCK, DEPTH, Packed};
use crate::ConvSpec;

/// Runs `$tile::<pixels, blocks>` over all pixels and blocks of plane `$plane`, the widest first. `$start(pixel, block)`
/// is what a sum begins with, `$end(pixel, block, sum)` what becomes of it.
macro_rules! over {
    ($tile:ident, [$($pixels:literal),+], $blocks:literal, $source:ident, $offsets:ident, $runs:ident,
     $packed:ident, $plane:expr, $start:expr, $end:expr) => {{
        let plane = $packed.data().as_ptr().add($plane * $packed.plane_bytes());
        let mut block = 0;
        while block < $packed.blocks {
            let weights = plane.add(block * $packed.block_bytes());
            let wide = $packed.blocks - block >= $blocks;
            let mut done = 0;
            $(
                while $offsets.len() - done >= $pixels {
                    let offsets = &$offsets[done..done + $pixels];
                    let tile = if wide { $tile::<$pixels, $blocks> } else { $tile::<$pixels, 1> };
                    tile($source, offsets, $runs, weights, $packed.block_bytes(), (done, block), &$start, &$end);
                    done += $pixels;
                }
            )+
            block += if wide { $blocks } else { 1 };
        }
    }};
}

/// What is added to the sums, and how they become bytes where they lie.
pub(super) struct Rounding<'a> {
    /// Of whole blocks of outputs.
    pub bias: &'a [i32],
    /// Of the output's channels.
    pub factors: &'a [f32],
    pub zero_point: u8,
}

/// `$body` with `$n` each number below `$count`, at most 12, written out: a loop would keep sums in memory.
macro_rules! each {
    ($count:ident, $n:ident => $body:block) => {
        each!(@ $count, $n, $body, [0 1 2 3 4 5 6 7 8 9 10 11])
    };
    (@ $count:ident, $n:ident, $body:block, [$($number:literal)+]) => {
        $(
            if $number < $count {
                let $n = $number;
                $body
            }
        )+
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
    let step = packed.blocks * BLOCK;
    let sums = sums.as_mut_ptr();
    let place = |pixel: usize, block: usize| sums.wrapping_add(pixel * step + block * BLOCK);
    // SAFETY: the caller's promise; `sums` has a row of all blocks for every pixel.
    unsafe {
        let start = |pixel, block| _mm512_loadu_si512(place(pixel, block).cast());
        let end = |pixel, block, sum| _mm512_storeu_si512(place(pixel, block).cast(), sum);
        over!(tile512, [12, 6, 4, 2, 1], 2, source, offsets, runs, packed, 0, start, end);
    }
}

/// As [`dot512`], with the sums rounded to the bytes at `to`, `[pixels, channels]`.
///
/// # Safety
/// Also: `to` has a pixel for every offset.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn round512(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    packed: &Packed,
    rounding: &Rounding,
    to: &mut [u8],
) {
    let (bias, factors) = (rounding.bias.as_ptr(), rounding.factors.as_ptr());
    let (channels, to) = (rounding.factors.len(), to.as_mut_ptr());
    let zero = _mm512_set1_epi32(i32::from(rounding.zero_point));
    // What does not fit an integer becomes the least one, which is right for NaN and for small reals only.
    let high = _mm512_set1_ps(65536.0);
    // SAFETY: the caller's promise; biases are of whole blocks; of the last block of a pixel only its channels are read
    // and written.
    unsafe {
        let start = |_: usize, block: usize| _mm512_loadu_si512(bias.add(block * BLOCK).cast());
        let end = |pixel: usize, block: usize, sum: __m512i| {
            let rest = channels - block * BLOCK;
            let mask = if rest < BLOCK { (1 << rest) - 1 } else { u16::MAX };
            let factor = _mm512_maskz_loadu_ps(mask, factors.add(block * BLOCK));
            let real = _mm512_min_ps(high, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), factor));
            let whole = _mm512_add_epi32(_mm512_cvtps_epi32(real), zero);
            let bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512()));
            let to = to.add(pixel * channels + block * BLOCK);
            _mm_mask_storeu_epi8(to.cast(), mask, bytes);
        };
        over!(tile512, [12, 6, 4, 2, 1], 2, source, offsets, runs, packed, 0, start, end);
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one call, and what is around them")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile512<const P: usize, const B: usize>(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    weights: *const i8,
    block_bytes: usize,
    (pixel, block): (usize, usize),
    start: &impl Fn(usize, usize) -> __m512i,
    end: &impl Fn(usize, usize, __m512i),
) {
    // SAFETY: the caller's promise: every run lies within the source, every group within the block.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); B]; P];
        for (p, row) in acc.iter_mut().enumerate() {
            for (b, sum) in row.iter_mut().enumerate() {
                *sum = start(pixel + p, block + b);
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
        each!(P, p => {
            for (b, sum) in acc[p].into_iter().enumerate() {
                end(pixel + p, block + b, sum);
            }
        });
    }
}

/// The kernels of 256-bit registers, two a block, with `$dot(sum, bytes, weights)`.
macro_rules! kernels256 {
    ($tile:ident, $sums:ident, $round:ident, $features:literal, $dot:ident) => {
        /// # Safety
        /// The instruction set, and what `conv` asserts of the windows.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $sums(
            source: &[u8],
            offsets: &[usize],
            runs: Runs,
            packed: &Packed,
            sums: &mut [i32],
        ) {
            let step = packed.blocks * BLOCK;
            let sums = sums.as_mut_ptr();
            let place =
                |pixel: usize, block: usize| sums.wrapping_add(pixel * step + block * BLOCK);
            // SAFETY: the caller's promise; `sums` has a row of all blocks for every pixel.
            unsafe {
                let start = |pixel, block| halves(place(pixel, block));
                let end = |pixel, block, [low, high]: [__m256i; 2]| {
                    _mm256_storeu_si256(place(pixel, block).cast(), low);
                    _mm256_storeu_si256(place(pixel, block).add(8).cast(), high);
                };
                for plane in 0..packed.planes {
                    over!($tile, [4, 2, 1], 1, source, offsets, runs, packed, plane, start, end);
                }
            }
        }

        /// As the kernel of sums, with the sums rounded to the bytes at `to`, `[pixels, channels]`.
        ///
        /// # Safety
        /// Also: `to` has a pixel for every offset, and the weights are one plane.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $round(
            source: &[u8],
            offsets: &[usize],
            runs: Runs,
            packed: &Packed,
            rounding: &Rounding,
            to: &mut [u8],
        ) {
            let (channels, to) = (rounding.factors.len(), to.as_mut_ptr());
            // SAFETY: the caller's promise; biases are of whole blocks; of the last block of a pixel only its channels
            // are read and written.
            unsafe {
                let start =
                    |_: usize, block: usize| halves(rounding.bias.as_ptr().add(block * BLOCK));
                let end = |pixel: usize, block: usize, sums: [__m256i; 2]| {
                    let factors = rounding.factors.as_ptr().add(block * BLOCK);
                    let to = to.add(pixel * channels + block * BLOCK);
                    let rest = channels - block * BLOCK;
                    if rest >= BLOCK {
                        _mm_storeu_si128(to.cast(), round256(sums, factors, rounding.zero_point));
                    } else {
                        let (mut real, mut bytes) = ([0.0f32; BLOCK], [0u8; BLOCK]);
                        real.as_mut_ptr().copy_from_nonoverlapping(factors, rest);
                        let all = round256(sums, real.as_ptr(), rounding.zero_point);
                        _mm_storeu_si128(bytes.as_mut_ptr().cast(), all);
                        to.copy_from_nonoverlapping(bytes.as_ptr(), rest);
                    }
                };
                over!($tile, [4, 2, 1], 1, source, offsets, runs, packed, 0, start, end);
            }
        }

        #[expect(
            clippy::too_many_arguments,
            reason = "the parts of one call, and what is around them"
        )]
        #[target_feature(enable = $features)]
        unsafe fn $tile<const P: usize, const B: usize>(
            source: &[u8],
            offsets: &[usize],
            runs: Runs,
            weights: *const i8,
            _block_bytes: usize,
            (pixel, block): (usize, usize),
            start: &impl Fn(usize, usize) -> [__m256i; 2],
            end: &impl Fn(usize, usize, [__m256i; 2]),
        ) {
            // SAFETY: as for `tile512`, with `B` 1.
            unsafe {
                let mut acc = [[_mm256_setzero_si256(); 2]; P];
                for (p, acc) in acc.iter_mut().enumerate() {
                    *acc = start(pixel + p, block);
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
                each!(P, p => {
                    end(pixel + p, block, acc[p]);
                });
            }
        }
    };
}

/// The sums of a block.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn halves(from: *const i32) -> [__m256i; 2] {
    // SAFETY: the caller's promise: a block of sums can be read.
    unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())] }
}

/// Sums of a block as bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn round256(sums: [__m256i; 2], factors: *const f32, zero_point: u8) -> __m128i {
    // As in `round512`.
    let high = _mm256_set1_ps(65536.0);
    let whole = |half: usize| {
        // SAFETY: the caller's promise: a block of factors can be read.
        let factor = unsafe { _mm256_loadu_ps(factors.add(half * 8)) };
        let real = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[half]), factor);
        _mm256_cvtps_epi32(_mm256_min_ps(high, real))
    };
    // Packing works in halves of 128 bits.
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(whole(0), whole(1)));
    let words = _mm256_adds_epi16(words, _mm256_set1_epi16(i16::from(zero_point)));
    _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words))
}

/// The dot product in two steps; exact while no pair of products saturates 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pairs(sum: __m256i, bytes: __m256i, weights: __m256i) -> __m256i {
    let products = _mm256_maddubs_epi16(bytes, weights);
    _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)))
}

kernels256!(tile_maddubs, maddubs, round_maddubs, "avx2", pairs);
kernels256!(tile_vnni, dot256, round_vnni, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);

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
