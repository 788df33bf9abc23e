//! The tile grid in physical units, and reading one tile at the model's scale.
//!
//! A model looks at squares of `tile_px` pixels at its own um/px. On a slide with another scale
//! the same square has another number of level-0 pixels; [`tile_side`] converts. [`Grid`] lays
//! such squares over a slide, [`centres`] reads positions from a user's file, [`read_tile`]
//! brings the pixels to the model's scale.

pub mod centres;
mod grid;
mod read;

pub use grid::{Grid, tile_side};
pub use read::read_tile;

/// One tile to predict. Positions and sizes are level-0 pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct Tile {
    /// Position in the order of the grid or of the given centres, from 0.
    pub index: u64,
    /// The user's own id, or `x<column>_y<row>` on a grid.
    pub id: String,
    /// Left edge in level-0 px.
    pub x: f64,
    /// Top edge in level-0 px.
    pub y: f64,
    /// Side in level-0 px (tiles are square).
    pub side: f64,
}

impl Tile {
    /// Centre in level-0 px.
    pub fn centre(&self) -> (f64, f64) {
        (self.x + self.side / 2.0, self.y + self.side / 2.0)
    }
}
