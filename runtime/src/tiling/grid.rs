//! A regular grid of tiles over a whole slide.

use super::Tile;
use crate::{Error, Result};

/// More tiles than any slide has; a request beyond is a mistake in a scale.
const MAX_TILES: f64 = 1e9;

/// Side in level-0 px of a tile of `tile_px` pixels at `tile_um_per_px`, on a slide of
/// `slide_um_per_px`. All scales are um/px and must be positive.
pub fn tile_side(tile_px: u32, tile_um_per_px: f64, slide_um_per_px: f64) -> Result<f64> {
    for (name, scale) in [("the model", tile_um_per_px), ("the slide", slide_um_per_px)] {
        if !(scale.is_finite() && scale > 0.0) {
            return Err(Error::Request(format!(
                "the scale of {name} is {scale} um/px; it must be a positive number"
            )));
        }
    }
    let side = f64::from(tile_px) * tile_um_per_px / slide_um_per_px;
    // Scales written with few digits (0.5 against 0.50001) must not shift every tile by a
    // fraction of a pixel.
    let whole = side.round();
    let side = if (side - whole).abs() < 1e-6 * side { whole } else { side };
    if side < 1.0 {
        return Err(Error::Request(format!(
            "a tile of {tile_px} px at {tile_um_per_px} um/px would be {side:.3} px of the slide \
             at {slide_um_per_px} um/px; check both scales"
        )));
    }
    Ok(side)
}

/// Square tiles in rows and columns from the top-left corner of the slide, row by row.
///
/// The grid covers the slide: the last column and row may reach beyond its edge, where tiles
/// read white.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    side: f64,
    stride: f64,
    columns: u64,
    rows: u64,
}

impl Grid {
    /// A grid of tiles of `side` level-0 px over a slide of `width` x `height` level-0 px.
    /// Neighbours overlap by the fraction `overlap` of their side (0 for none, below 1).
    pub fn new(width: u32, height: u32, side: f64, overlap: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&overlap) {
            return Err(Error::Request(format!(
                "an overlap of {overlap} makes no grid; give a fraction of the tile from 0 up to, \
                 not including, 1"
            )));
        }
        if !(side.is_finite() && side >= 1.0) {
            return Err(Error::Request(format!(
                "a tile side of {side} px makes no grid; it must be at least 1 px"
            )));
        }
        let stride = side * (1.0 - overlap);
        let count = |length: u32| {
            // A remainder below a thousandth of a pixel is rounding, not uncovered slide.
            let beyond_first = (f64::from(length) - side - 1e-3).max(0.0);
            (beyond_first / stride).ceil() + 1.0
        };
        let (columns, rows) = (count(width), count(height));
        if columns * rows > MAX_TILES {
            return Err(Error::Request(format!(
                "{columns} x {rows} tiles of {side:.1} px every {stride:.3} px are too many; check \
                 the um/px of the slide and the overlap"
            )));
        }
        Ok(Self { side, stride, columns: columns as u64, rows: rows as u64 })
    }

    /// Tiles per row.
    pub fn columns(&self) -> u64 {
        self.columns
    }

    /// Rows of tiles.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Side of a tile in level-0 px.
    pub fn side(&self) -> f64 {
        self.side
    }

    /// Distance between neighbouring tiles in level-0 px.
    pub fn stride(&self) -> f64 {
        self.stride
    }

    /// Number of tiles.
    pub fn len(&self) -> u64 {
        self.columns * self.rows
    }

    /// Never true: a grid has at least one tile.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tile `index` in row-major order, or None beyond the last.
    pub fn tile(&self, index: u64) -> Option<Tile> {
        if index >= self.len() {
            return None;
        }
        let (column, row) = (index % self.columns, index / self.columns);
        Some(Tile {
            index,
            id: format!("x{column}_y{row}"),
            x: column as f64 * self.stride,
            y: row as f64 * self.stride,
            side: self.side,
        })
    }

    /// All tiles, row by row.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> + '_ {
        (0..self.len()).filter_map(|index| self.tile(index))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sides_follow_the_physical_size() {
        assert_eq!(tile_side(224, 0.5, 0.25).unwrap(), 448.0);
        assert_eq!(tile_side(224, 0.69, 0.69).unwrap(), 224.0);
        assert!((tile_side(224, 0.5, 0.499).unwrap() - 224.4489).abs() < 1e-3);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(tile_side(224, 0.5, bad).is_err());
            assert!(tile_side(224, bad, 0.5).is_err());
        }
        assert!(tile_side(224, 0.001, 10.0).is_err());
    }

    #[test]
    fn tiles_are_numbered_row_by_row() {
        let grid = Grid::new(500, 250, 224.0, 0.0).unwrap();
        assert_eq!((grid.columns(), grid.rows(), grid.len()), (3, 2, 6));
        let tile = grid.tile(4).unwrap();
        assert_eq!((tile.id.as_str(), tile.x, tile.y, tile.side), ("x1_y1", 224.0, 224.0, 224.0));
        assert_eq!(tile.centre(), (336.0, 336.0));
        assert_eq!(grid.tiles().count(), 6);
        assert_eq!(grid.tile(6), None);
    }

    #[test]
    fn an_exact_fit_adds_no_column_and_a_small_slide_has_one_tile() {
        assert_eq!(Grid::new(448, 224, 224.0, 0.0).unwrap().len(), 2);
        assert_eq!(Grid::new(448, 224, 224.0, 0.5).unwrap().len(), 3);
        assert_eq!(Grid::new(10, 10, 224.0, 0.0).unwrap().len(), 1);
    }

    #[test]
    fn senseless_grids_are_refused() {
        assert!(Grid::new(100, 100, 10.0, 1.0).is_err());
        assert!(Grid::new(100, 100, 10.0, -0.1).is_err());
        assert!(Grid::new(100, 100, f64::NAN, 0.0).is_err());
        assert!(Grid::new(u32::MAX, u32::MAX, 1.0, 0.0).is_err());
    }

    proptest! {
        #[test]
        fn every_pixel_is_covered(
            width in 1u32..5000, height in 1u32..5000, side in 16.0f64..700.0,
            overlap in 0.0f64..0.9,
        ) {
            let grid = Grid::new(width, height, side, overlap).unwrap();
            let last = grid.tile(grid.len() - 1).unwrap();
            prop_assert!(last.x + side > f64::from(width) - 0.01);
            prop_assert!(last.y + side > f64::from(height) - 0.01);
            prop_assert!(last.x < f64::from(width) && last.y < f64::from(height));
        }
    }
}
