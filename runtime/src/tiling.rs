//! The tile grid in physical units, and reading one tile at the model's scale.

use crate::Result;
use crate::slide::Slide;

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

/// Reads the square of `side` level-0 px centred at (`cx`, `cy`) level-0 px, resampled to
/// `size` x `size` RGB bytes (row-major HWC) with an area-preserving (Lanczos3 or box when
/// shrinking) filter, from the coarsest level that is still at least as fine as asked.
pub fn read_tile(slide: &dyn Slide, cx: f64, cy: f64, side: f64, size: u32) -> Result<Vec<u8>> {
    let _ = (slide, cx, cy, side, size);
    Err(crate::Error::Request("not available".into()))
}
