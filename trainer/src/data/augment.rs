//! Augmentations of square RGB tiles: the eight symmetries of the square, and stain jitter.
//!
//! Tiles are plain bytes, row-major HWC, `size` x `size` x 3. Everything here is a pure function
//! of its arguments (a seed where there is chance), so that a view of a tile can be named, cached
//! and made again.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Number of symmetries of the square, the identity included.
pub const DIHEDRAL_COUNT: u8 = 8;

/// Optical density of each byte value: `-ln((v + 1) / 256)`, so that white is 0 and black finite.
static OPTICAL_DENSITY: std::sync::LazyLock<[f32; 256]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|v| -((v as f32 + 1.0) / 256.0).ln()));

/// Rows are the optical density of haematoxylin, eosin and the residual in R, G and B, each of
/// unit length (Ruifrok and Johnston, "Quantification of histochemical staining by color
/// deconvolution", 2001; the residual is their DAB vector).
const STAINS: [[f32; 3]; 3] = [[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]];

/// The tile under symmetry `index` (0 to 7): bit 2 mirrors left to right first, then bits 0 and 1
/// count quarter turns clockwise. Index 0 is the identity; only the low three bits are looked at.
///
/// # Panics
/// When `image` is not `size` x `size` x 3 bytes.
pub fn dihedral(image: &[u8], size: usize, index: u8) -> Vec<u8> {
    assert_eq!(image.len(), size * size * 3, "a tile is size x size x 3 bytes");
    let mut out = Vec::with_capacity(image.len());
    for y in 0..size {
        for x in 0..size {
            let (sx, sy) = dihedral_source(x, y, size, index);
            let at = (sy * size + sx) * 3;
            out.extend_from_slice(&image[at..at + 3]);
        }
    }
    out
}

/// Where the pixel at (`x`, `y`) of a tile under symmetry `index` comes from in the tile itself.
pub fn dihedral_source(x: usize, y: usize, size: usize, index: u8) -> (usize, usize) {
    let last = size - 1;
    // A clockwise quarter turn moves (x, y) to (last - y, x); this is its inverse, n times.
    let (x, y) = match index & 3 {
        0 => (x, y),
        1 => (y, last - x),
        2 => (last - x, last - y),
        _ => (last - y, x),
    };
    if index & 4 == 0 { (x, y) } else { (last - x, y) }
}

/// The symmetry that undoes `index`.
pub fn dihedral_inverse(index: u8) -> u8 {
    // Mirrored symmetries are their own inverses; turns are undone by turning on.
    if index & 4 == 0 { (4 - (index & 3)) & 3 } else { index & 7 }
}

/// An affine map in optical-density space that changes the amount of each stain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StainJitter {
    matrix: [[f32; 3]; 3],
    offset: [f32; 3],
}

impl StainJitter {
    /// Draws a jitter: the amount of every stain is multiplied by a number in
    /// `1 +- strength` and shifted by one in `+- strength / 5` (Tellez et al., "Whole-slide mitosis
    /// detection in H&E breast histology using PHH3 as a reference", 2018). The same seed and
    /// strength always give the same jitter; strength 0 is the identity. Useful strengths are
    /// 0.05 (subtle) to 0.3 (another laboratory).
    pub fn new(strength: f32, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut draw = |width: f32| (rng.random::<f32>() * 2.0 - 1.0) * width;
        let scale: [f32; 3] = std::array::from_fn(|_| 1.0 + draw(strength));
        let shift: [f32; 3] = std::array::from_fn(|_| draw(strength / 5.0));
        let inverse = invert(&STAINS);
        // Row vectors: amounts = od * inverse; od' = (amounts * scale + shift) * STAINS.
        let matrix = std::array::from_fn(|i| {
            std::array::from_fn(|j| (0..3).map(|k| inverse[i][k] * scale[k] * STAINS[k][j]).sum())
        });
        let offset = std::array::from_fn(|j| (0..3).map(|k| shift[k] * STAINS[k][j]).sum());
        Self { matrix, offset }
    }

    /// The jittered tile; any number of RGB pixels.
    pub fn apply(&self, image: &[u8]) -> Vec<u8> {
        let density = &*OPTICAL_DENSITY;
        let mut out = Vec::with_capacity(image.len());
        for pixel in image.chunks_exact(3) {
            let od = [0, 1, 2].map(|c| density[pixel[c] as usize]);
            for j in 0..3 {
                let value = od[0] * self.matrix[0][j]
                    + od[1] * self.matrix[1][j]
                    + od[2] * self.matrix[2][j]
                    + self.offset[j];
                // `as u8` saturates at 0 and 255.
                out.push(((-value).exp() * 256.0 - 1.0).round() as u8);
            }
        }
        out
    }
}

/// The tile with its stains jittered; see [`StainJitter::new`].
pub fn stain_jitter(image: &[u8], strength: f32, seed: u64) -> Vec<u8> {
    StainJitter::new(strength, seed).apply(image)
}

/// Inverse by cofactors; only ever called on [`STAINS`], whose determinant is far from zero.
fn invert(m: &[[f32; 3]; 3]) -> [[f32; 3]; 3] {
    let cofactor = |r: usize, c: usize| {
        let (r1, r2) = ((r + 1) % 3, (r + 2) % 3);
        let (c1, c2) = ((c + 1) % 3, (c + 2) % 3);
        m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
    };
    let determinant: f32 = (0..3).map(|c| m[0][c] * cofactor(0, c)).sum();
    std::array::from_fn(|r| std::array::from_fn(|c| cofactor(c, r) / determinant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(size: usize) -> Vec<u8> {
        (0..size * size * 3).map(|v| v as u8).collect()
    }

    #[test]
    fn every_symmetry_is_another_tile_and_its_inverse_undoes_it() {
        let tile = numbered(5);
        let views: Vec<_> = (0..DIHEDRAL_COUNT).map(|i| dihedral(&tile, 5, i)).collect();
        assert_eq!(views[0], tile);
        for (i, view) in views.iter().enumerate() {
            assert_eq!(dihedral(view, 5, dihedral_inverse(i as u8)), tile, "symmetry {i}");
            assert!(views[..i].iter().all(|other| other != view), "symmetry {i} is repeated");
        }
    }

    #[test]
    fn index_one_turns_clockwise_and_index_four_mirrors() {
        // 1 2      3 1      2 1
        // 3 4  ->  4 2  and 4 3
        let tile: Vec<u8> = [1, 2, 3, 4].iter().flat_map(|&v| [v; 3]).collect();
        let values = |index| dihedral(&tile, 2, index).into_iter().step_by(3).collect::<Vec<_>>();
        assert_eq!(values(1), [3, 1, 4, 2]);
        assert_eq!(values(2), [4, 3, 2, 1]);
        assert_eq!(values(4), [2, 1, 4, 3]);
        assert_eq!(values(5), [4, 2, 3, 1]);
    }

    #[test]
    fn stains_invert() {
        let inverse = invert(&STAINS);
        for (i, stain) in STAINS.iter().enumerate() {
            for j in 0..3 {
                let product: f32 = stain.iter().zip(&inverse).map(|(s, row)| s * row[j]).sum();
                let expected = f32::from(u8::from(i == j));
                assert!((product - expected).abs() < 1e-5, "{i} {j}: {product}");
            }
        }
    }

    #[test]
    fn no_jitter_changes_nothing() {
        let tile: Vec<u8> = (0..=255).flat_map(|v| [v, 255 - v, v / 2]).collect();
        let out = stain_jitter(&tile, 0.0, 7);
        for (a, b) in tile.iter().zip(&out) {
            assert!(a.abs_diff(*b) <= 1, "{a} became {b}");
        }
    }

    #[test]
    fn jitter_follows_its_seed_and_grows_with_strength() {
        let tile: Vec<u8> = (0..900).map(|v| (60 + v % 180) as u8).collect();
        assert_eq!(stain_jitter(&tile, 0.2, 3), stain_jitter(&tile, 0.2, 3));
        assert_ne!(stain_jitter(&tile, 0.2, 3), stain_jitter(&tile, 0.2, 4));
        let change = |strength| {
            let out = stain_jitter(&tile, strength, 3);
            tile.iter().zip(&out).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>()
        };
        assert!(change(0.02) < change(0.1) && change(0.1) < change(0.4));
    }

    #[test]
    fn more_haematoxylin_is_a_bluer_darker_pixel() {
        // A pure haematoxylin pixel scaled by 2 keeps its hue: optical densities double.
        let jitter = StainJitter {
            matrix: [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]],
            offset: [0.0; 3],
        };
        let pixel = [0, 1, 2].map(|c| ((-STAINS[0][c] * 0.5f32).exp() * 256.0 - 1.0).round() as u8);
        let expected = [0, 1, 2].map(|c| ((-STAINS[0][c]).exp() * 256.0 - 1.0).round() as u8);
        for (a, b) in jitter.apply(&pixel).iter().zip(expected) {
            assert!(a.abs_diff(b) <= 1);
        }
    }
}
