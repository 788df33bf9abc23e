//! Ways of looking at a tile.

use crate::data::augment::{DIHEDRAL_COUNT, dihedral, stain_jitter};

/// One view of a tile, a pure function of its pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Symmetry of the square, 0 (as it is) to 7; see [`dihedral`].
    pub dihedral: u8,
    /// Strength and seed of a stain jitter; see [`stain_jitter`].
    pub stain: Option<(f32, u64)>,
}

impl View {
    /// The tile as it is.
    pub const PLAIN: Self = Self { dihedral: 0, stain: None };

    /// The eight symmetries without jitter.
    pub fn dihedrals() -> Vec<Self> {
        (0..DIHEDRAL_COUNT).map(|dihedral| Self { dihedral, stain: None }).collect()
    }

    /// The tile as it is and its three flips (left-right, top-bottom, both).
    pub fn flips() -> Vec<Self> {
        [0, 4, 6, 2].map(|dihedral| Self { dihedral, stain: None }).to_vec()
    }

    /// The view of the tile `image` of `size` x `size` x 3 bytes.
    pub fn apply(&self, image: &[u8], size: usize) -> Vec<u8> {
        let turned = dihedral(image, size, self.dihedral);
        match self.stain {
            Some((strength, seed)) => stain_jitter(&turned, strength, seed),
            None => turned,
        }
    }

    /// A name that tells views apart, for files: `d3` or `d3-s0.1-17`.
    pub fn name(&self) -> String {
        let dihedral = self.dihedral % DIHEDRAL_COUNT;
        match self.stain {
            Some((strength, seed)) => format!("d{dihedral}-s{strength}-{seed}"),
            None => format!("d{dihedral}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_are_the_two_mirrors_and_their_product() {
        let tile: Vec<u8> = [1, 2, 3, 4].iter().flat_map(|&v| [v; 3]).collect();
        let seen: Vec<Vec<u8>> = View::flips()
            .iter()
            .map(|view| view.apply(&tile, 2).into_iter().step_by(3).collect())
            .collect();
        assert_eq!(seen, [[1, 2, 3, 4], [2, 1, 4, 3], [3, 4, 1, 2], [4, 3, 2, 1]]);
    }

    #[test]
    fn names_tell_views_apart() {
        let mut names: Vec<_> = View::dihedrals().iter().map(View::name).collect();
        for stain in [(0.1, 1), (0.1, 2), (0.2, 1)] {
            names.push(View { dihedral: 0, stain: Some(stain) }.name());
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
