//! The reference, and what runs where no instruction set fits.

use super::conv::Runs;
use super::pack::{BLOCK, DEPTH, Packed};

/// See [`Chunk`](super::conv::Chunk).
pub(super) fn chunk(
    source: &[u8],
    offsets: &[usize],
    runs: Runs,
    packed: &Packed,
    sums: &mut [i32],
) {
    for (&offset, sums) in offsets.iter().zip(sums.chunks_exact_mut(packed.blocks * BLOCK)) {
        for (block, sums) in sums.chunks_exact_mut(BLOCK).enumerate() {
            let weights = &packed.data()[block * packed.block_bytes()..][..packed.block_bytes()];
            let mut groups = weights.chunks_exact(BLOCK * DEPTH);
            for &start in runs.starts {
                let from = &source[offset + start..][..runs.groups * DEPTH];
                for (x, weights) in from.chunks_exact(DEPTH).zip(&mut groups) {
                    for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(DEPTH)) {
                        for (x, w) in x.iter().zip(weights) {
                            *sum = sum.wrapping_add(i32::from(*x) * i32::from(*w));
                        }
                    }
                }
            }
        }
    }
}
