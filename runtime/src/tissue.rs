//! Where there is tissue on a slide, found on a low-resolution overview.

use crate::Result;
use crate::slide::Slide;

/// A binary tissue mask over the whole slide at low resolution.
#[derive(Debug, Clone)]
pub struct TissueMask {
    /// Mask width in mask pixels.
    pub width: u32,
    /// Mask height in mask pixels.
    pub height: u32,
    /// Level-0 px per mask px.
    pub downsample: f64,
    /// Row-major, true where there is tissue.
    pub mask: Vec<bool>,
}

impl TissueMask {
    /// Finds tissue on `slide`, whose level-0 scale is `um_per_px`.
    pub fn detect(slide: &dyn Slide, um_per_px: f64) -> Result<Self> {
        let _ = (slide, um_per_px);
        Err(crate::Error::Request("not available".into()))
    }

    /// Fraction (0 to 1) of the square at (`x`, `y`) with side `side` (level-0 px) that is tissue.
    pub fn fraction(&self, x: f64, y: f64, side: f64) -> f64 {
        let _ = (x, y, side);
        0.0
    }
}
