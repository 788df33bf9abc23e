//! How a kernel's work is cut among threads.

use serde::{Deserialize, Serialize};

use super::shader::{Abilities, Matrices};

/// Shared memory of a workgroup that every adapter has, in bytes (a core limit of WebGPU).
const SHARED: usize = 16 << 10;

/// Shared memory that kernels with cooperative matrices may take, in bytes.
pub(super) const SHARED_BY_MATRICES: usize = 32 << 10;

/// Most groups of four channels whose pixel norm a convolution takes itself.
const NORMED: usize = 24;

/// How a kernel's work is cut. Every choice adds up in the same order, so results do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tiling {
    /// A convolution, without shared memory: pixels a thread.
    Direct { pixels: usize },
    /// A convolution from shared memory: threads down and across a workgroup, pixels and elements of
    /// channels a thread, elements of channels a step.
    Shared { threads: [usize; 2], pixels: usize, elements: usize, depth: usize },
    /// The same by cooperative matrices: subgroups down and across a workgroup, matrices down and across
    /// a subgroup, elements of channels a step.
    Cooperative { subgroups: [usize; 2], matrices: [usize; 2], depth: usize },
    /// A matrix: elements of outputs a workgroup.
    Rows { elements: usize },
    /// Attention: queries a workgroup, and keys that it shares at a time.
    Queries { threads: usize, keys: usize },
}

/// The tilings that a kernel has the choice of.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// What decides how fast they are, in words.
    pub(super) shape: String,
    /// What is measured; the first is the one without measuring.
    pub(super) tilings: Vec<Tiling>,
}

/// A product of `pixels` x `n4` elements over `k4`, for each tap of a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) pixels: usize,
    pub(super) n4: usize,
    pub(super) k4: usize,
    /// Channels are bytes.
    pub(super) bytes: bool,
    /// One workgroup must have all channels of its pixels, whose norm it takes.
    pub(super) normed: bool,
}

/// Whether a convolution to `n4` elements of channels can take its pixels' norm itself.
pub(super) fn takes_norm(abilities: Abilities, n4: usize) -> bool {
    abilities.shared && n4 <= NORMED
}

impl Choice {
    /// Of a product that adds up from shared memory where `abilities` make that pay, or from global memory
    /// (`direct`).
    pub(super) fn product(
        shape: String,
        abilities: Abilities,
        extent: Extent,
        direct: bool,
    ) -> Self {
        let matrices = abilities.matrices.filter(|matrices| extent.fits(*matrices));
        let tilings = match matrices {
            Some(matrices) => extent.cooperative(matrices, abilities.half),
            None if abilities.shared => extent.shared(abilities.half, direct),
            None => [4, 2, 8].map(|pixels| Tiling::Direct { pixels }).to_vec(),
        };
        let shape = if matrices.is_some() { format!("matrices {shape}") } else { shape };
        Self { shape, tilings }
    }

    /// Of a convolution from global memory alone.
    pub(super) fn direct(shape: String, pixels: &[usize]) -> Self {
        let tilings = pixels.iter().map(|&pixels| Tiling::Direct { pixels }).collect();
        Self { shape, tilings }
    }

    /// Of a matrix with `n4` elements of outputs.
    pub(super) fn rows(shape: String, n4: usize) -> Self {
        let elements = [1, 2, 4].into_iter().filter(|&elements| elements <= n4);
        Self { shape, tilings: elements.map(|elements| Tiling::Rows { elements }).collect() }
    }

    /// Of attention whose heads have `d4` elements of channels; `keys` of them are shared at a time.
    pub(super) fn queries(shape: String, d4: usize, shares: bool) -> Self {
        let mut tilings = vec![];
        for threads in [64, 32, 128] {
            for keys in [16, 8, 32] {
                // Keys and values.
                if !shares || 2 * keys * d4 * 16 <= SHARED {
                    tilings.push(Tiling::Queries { threads, keys });
                }
                if !shares {
                    break;
                }
            }
        }
        Self { shape, tilings }
    }
}

impl Extent {
    /// Tiles in shared memory.
    fn shared(self, half: bool, direct: bool) -> Vec<Tiling> {
        let tile =
            |threads, pixels, elements, depth| Tiling::Shared { threads, pixels, elements, depth };
        let mut tilings = vec![self.usual()];
        tilings.extend([
            tile([16, 4], 2, 1, 4),
            tile([16, 4], 4, 1, 4),
            tile([8, 8], 2, 1, 4),
            tile([8, 8], 4, 1, 4),
            tile([8, 8], 8, 1, 4),
            tile([8, 8], 4, 2, 4),
            tile([8, 8], 4, 1, 2),
            tile([8, 8], 2, 2, 8),
            tile([16, 8], 4, 1, 4),
            tile([16, 8], 4, 2, 4),
            tile([16, 16], 4, 1, 4),
            tile([16, 16], 2, 2, 2),
        ]);
        if direct && !self.normed {
            tilings.extend([2, 4, 8].map(|pixels| Tiling::Direct { pixels }));
        }
        let first = tilings[0];
        let mut known = vec![];
        tilings.retain(|tiling| {
            let is_new = !known.contains(tiling);
            known.push(*tiling);
            is_new && (*tiling == first || self.has_room(*tiling, half))
        });
        tilings
    }

    /// The choice without measuring.
    fn usual(self) -> Tiling {
        let across = self.n4.next_power_of_two().clamp(1, 8);
        let depth = if self.k4.is_multiple_of(4) { 4 } else { self.k4.min(2).next_power_of_two() };
        let per_thread = if self.pixels >= 1024 && !self.normed { 4 } else { 2 };
        let elements = match self.normed {
            true => self.n4.div_ceil(across),
            false if self.n4 > 8 => 2,
            false => 1,
        };
        Tiling::Shared { threads: [64 / across, across], pixels: per_thread, elements, depth }
    }

    /// Whether `tiling` fits shared memory, and has all channels if it must.
    fn has_room(self, tiling: Tiling, half: bool) -> bool {
        let Tiling::Shared { threads: [down, across], pixels, elements, depth } = tiling else {
            return true;
        };
        let (rows, columns) = (down * pixels, across * elements);
        let squares = if self.normed { rows * columns * 16 } else { 0 };
        // Four channels of a pixel, and what they are multiplied with for four outputs.
        let [left, right] = match (self.bytes, half) {
            (true, _) => [4, 16],
            (false, true) => [8, 32],
            (false, false) => [16, 64],
        };
        let bytes = depth * (rows * left + columns * right) + squares;
        let covers = !self.normed || (self.n4..=2 * self.n4).contains(&columns);
        bytes <= SHARED && covers
    }

    /// Whether it fills cooperative matrices, which are of reals.
    fn fits(self, matrices: Matrices) -> bool {
        let least = matrices.side / 4;
        !self.bytes && !self.normed && self.n4 >= least && self.k4 >= least
    }

    /// Tiles of cooperative matrices.
    fn cooperative(self, of: Matrices, half: bool) -> Vec<Tiling> {
        let step = of.side / 4;
        // 64 pixels by 32 channels, then others.
        let usual = [2, 1].map(|matrices| matrices * 16 / of.side);
        let mut tilings = vec![];
        for matrices in [usual, [1, 1], [1, 2], [2, 2], [2, 4], [4, 4]] {
            for subgroups in [[2, 2], [4, 1], [1, 4]] {
                for depth in [step.max(4), 2 * step.max(4)] {
                    let rows = subgroups[0] * matrices[0] * of.side;
                    let columns = subgroups[1] * matrices[1] * of.side;
                    let scalar = if half { 2 } else { 4 };
                    let bytes = 4 * depth * (rows + columns) * scalar + 4 * rows * columns;
                    let tiling = Tiling::Cooperative { subgroups, matrices, depth };
                    if bytes <= SHARED_BY_MATRICES && !tilings.contains(&tiling) {
                        tilings.push(tiling);
                    }
                }
            }
        }
        tilings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIKELY: Extent = Extent { pixels: 784, n4: 16, k4: 8, bytes: false, normed: false };

    #[test]
    fn every_tiling_has_room_in_shared_memory() {
        for n4 in [1, 3, 4, 8, 15, 16, 24, 100] {
            for k4 in [1, 2, 3, 8, 200] {
                for (bytes, half) in [(false, false), (false, true), (true, false)] {
                    for normed in [false, true] {
                        if normed && n4 > NORMED {
                            continue;
                        }
                        let extent = Extent { n4, k4, bytes, normed, ..LIKELY };
                        for tiling in extent.shared(half, true) {
                            assert!(extent.has_room(tiling, half), "{extent:?} {tiling:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_choice_is_there_without_measuring() {
        let shape = || "a shape".to_owned();
        for shared in [false, true] {
            let abilities = Abilities { shared, ..Abilities::default() };
            let choice = Choice::product(shape(), abilities, LIKELY, true);
            let is_shared = matches!(choice.tilings[0], Tiling::Shared { .. });
            assert_eq!(is_shared, shared);
        }
        let matrices = Some(Matrices { side: 16, subgroup: 32 });
        let abilities = Abilities { shared: true, half: true, matrices, ..Abilities::default() };
        let choice = Choice::product(shape(), abilities, LIKELY, true);
        assert!(choice.tilings.iter().all(|t| matches!(t, Tiling::Cooperative { .. })));
        assert!(choice.tilings.len() > 5 && choice.shape != shape());
        // Bytes, norms, and what does not fill a matrix go their own way.
        let few = Extent { n4: 2, ..LIKELY };
        let bytes = Extent { bytes: true, ..LIKELY };
        for extent in [few, bytes, Extent { normed: true, ..LIKELY }] {
            let choice = Choice::product(shape(), abilities, extent, true);
            assert!(matches!(choice.tilings[0], Tiling::Shared { .. }), "{extent:?}");
        }
        assert_eq!(Choice::rows(shape(), 1).tilings, [Tiling::Rows { elements: 1 }]);
        for d4 in [1, 8, 32] {
            assert!(!Choice::queries(shape(), d4, true).tilings.is_empty());
        }
    }
}
