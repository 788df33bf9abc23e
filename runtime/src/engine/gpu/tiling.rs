//! How a convolution's work is cut among threads.

use serde::{Deserialize, Serialize};

use super::map::Frame;
use crate::engine::fused::{Conv, FusedOp};

/// How a convolution's work is cut. Every choice adds up in the same order, so results do not depend
/// on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tiling {
    /// Pixels a thread, without shared memory.
    Direct { pixels: usize },
    /// Threads down and across a workgroup, pixels and elements of channels a thread, elements of
    /// channels a step.
    Shared { threads: [usize; 2], pixels: usize, elements: usize, depth: usize },
}

impl Tiling {
    /// What is measured, for adapters with shared memory of their own and for others.
    pub(super) fn candidates(shared: bool) -> &'static [Self] {
        const fn tile(threads: [usize; 2], pixels: usize, elements: usize, depth: usize) -> Tiling {
            Tiling::Shared { threads, pixels, elements, depth }
        }
        const ALL: &[Tiling] = &[
            Tiling::Direct { pixels: 2 },
            Tiling::Direct { pixels: 4 },
            Tiling::Direct { pixels: 8 },
            tile([16, 4], 2, 1, 4),
            tile([16, 4], 4, 1, 4),
            tile([8, 8], 2, 1, 4),
            tile([8, 8], 4, 1, 4),
            tile([8, 8], 8, 1, 4),
            tile([8, 8], 4, 2, 4),
            tile([8, 8], 4, 1, 2),
            tile([16, 8], 4, 1, 4),
            tile([16, 16], 4, 1, 4),
        ];
        if shared { ALL } else { ALL.split_at(3).0 }
    }

    /// The choice without measuring, for a product of `pixels` x `n4` elements over `k4`.
    pub(super) fn usual(shared: bool, pixels: usize, n4: usize, k4: usize) -> Self {
        if !shared {
            return Self::Direct { pixels: 4 };
        }
        let across = n4.next_power_of_two().clamp(1, 8);
        let depth = if k4.is_multiple_of(4) { 4 } else { k4.min(2).next_power_of_two() };
        let per_thread = if pixels >= 1024 { 4 } else { 2 };
        Self::Shared {
            threads: [64 / across, across],
            pixels: per_thread,
            elements: if n4 > 8 { 2 } else { 1 },
            depth,
        }
    }
}

/// What decides how fast a tiling is, in words.
pub(super) fn shape(op: &FusedOp, conv: &Conv, frame: Frame, k4: usize) -> String {
    let [kh, kw] = conv.kernel;
    let enlarged = op.inputs.iter().any(|input| input.upsample > 1);
    format!(
        "{}x{}x{} of {k4} {kh}x{kw}/{} from {}{}",
        frame.height,
        frame.width,
        frame.c4(),
        conv.stride[0],
        op.inputs.len(),
        if enlarged { " enlarged" } else { "" }
    )
}
