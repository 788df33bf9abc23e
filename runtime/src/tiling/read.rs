//! One tile's pixels at the model's scale.

use fast_image_resize::FilterType;

use crate::slide::{Slide, best_level, resample};
use crate::{Error, Result};

/// How far from a whole pixel, and from scale 1 over the whole tile, still counts as exact: less
/// than any filter would show in 8 bits.
const EXACT_PX: f64 = 1e-3;

/// Reads the square of `side` level-0 px centred at (`cx`, `cy`) level-0 px, as `size` x `size`
/// RGB bytes (row-major HWC). What lies outside the slide is white.
///
/// The pixels come from the coarsest level that is still at least as fine as asked and are
/// resampled with a Lanczos3 filter whose support grows with the reduction (so it averages when
/// shrinking), at sub-pixel position. Where the level already has the scale asked for and the
/// tile begins on a whole pixel, the stored pixels are returned unchanged.
///
/// Fails with [`Error::Request`] for a position or size that is not a number or too large, and
/// with the slide's own error where its data are damaged.
pub fn read_tile(slide: &dyn Slide, cx: f64, cy: f64, side: f64, size: u32) -> Result<Vec<u8>> {
    let valid = cx.is_finite() && cy.is_finite() && side.is_finite() && side > 0.0 && size > 0;
    if !valid {
        return Err(Error::Request(format!(
            "no tile of {size} px can be read at ({cx}, {cy}) with side {side} px"
        )));
    }
    let level = best_level(slide, side / f64::from(size));
    let downsample = slide.info().levels[level].downsample;
    let left = (cx - side / 2.0) / downsample;
    let top = (cy - side / 2.0) / downsample;
    let side = side / downsample;

    let exact = (side - f64::from(size)).abs() < EXACT_PX
        && (left - left.round()).abs() < EXACT_PX
        && (top - top.round()).abs() < EXACT_PX;
    if exact {
        let region =
            slide.read_region(level, left.round() as i64, top.round() as i64, size, size)?;
        return Ok(region.into_raw());
    }

    // Lanczos3 reaches 3 px of the coarser of both grids; without this margin the edge of a tile
    // would depend on where the region was cut.
    let margin = (3.0 * (side / f64::from(size)).max(1.0)).ceil() + 1.0;
    let (first_x, first_y) = ((left - margin).floor(), (top - margin).floor());
    let width = (left + side + margin).ceil() - first_x;
    let height = (top + side + margin).ceil() - first_y;
    if width.max(height) > f64::from(u16::MAX) {
        return Err(Error::Request(format!(
            "a tile of {side:.0} px of level {level} is too large to read; check the um/px of the \
             slide and of the model"
        )));
    }
    let region =
        slide.read_region(level, first_x as i64, first_y as i64, width as u32, height as u32)?;
    let mut tile = vec![0; 3 * size as usize * size as usize];
    let crop = [left - first_x, top - first_y, side, side];
    resample(region, crop, FilterType::Lanczos3, size, size, &mut tile)?;
    Ok(tile)
}
