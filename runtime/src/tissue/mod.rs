//! Where there is tissue on a slide, found on a low-resolution overview.
//!
//! Stained tissue differs from everything else on a glass slide in two ways: it is dark in the
//! colours of its stains, and its darkness varies from cell to cell. A printed array of dots, a
//! glow of the illumination or an unevenly cleaned slide is pale and smooth. So the detection
//! uses local contrast first and plain darkness second, both in optical density relative to the
//! slide's own background:
//!
//! 1. An overview at [`MASK_UM_PER_PX`]; optical density per channel, less the background's
//!    (median density of the smooth bright half). Black pixels (missing scan areas) count as
//!    background.
//! 2. Contrast: standard deviation of the total density in a window of 9 px (72 um). Threshold:
//!    Otsu's on the logarithm of the contrast, within bounds that hold for any stain.
//! 3. Darkness: mean density of the same window, for tissue too even to show contrast at this
//!    scale. Threshold: Otsu's, within bounds above any glow.
//! 4. Shape: the window's reach is eroded away, specks are opened away, gaps closed, holes (fat,
//!    vessels, ducts) filled, islands under [`MIN_AREA_UM2`] dropped.
//! 5. Colour: islands that are grey or green (dirt, bubbles, pen) are dropped.
//!
//! Everything is deterministic.

mod detect;
mod morphology;

use crate::Result;
use crate::slide::{Damage, Slide, survey};

/// Scale of the mask, um per mask pixel, on slides up to [`MAX_MASK_PX`] / 8 um long.
pub const MASK_UM_PER_PX: f64 = 8.0;

/// Longest side of a mask; longer slides get a coarser one.
pub const MAX_MASK_PX: u32 = 8192;

/// Islands of tissue smaller than this are dropped as debris.
pub const MIN_AREA_UM2: f64 = 50_000.0;

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

/// Level-0 pixels per mask pixel on a slide of `width` x `height` level-0 pixels at `um_per_px`.
pub fn mask_downsample(width: u32, height: u32, um_per_px: f64) -> f64 {
    let longest = f64::from(width.max(height)) / f64::from(MAX_MASK_PX);
    (MASK_UM_PER_PX / um_per_px).max(longest).max(1.0)
}

impl TissueMask {
    /// Finds tissue on `slide`, whose level-0 scale is `um_per_px`. Where the slide is damaged
    /// nobody knows what there is: it counts as tissue, so that nothing is left out in silence.
    ///
    /// Fails with [`crate::Error::Request`] where the scale is not a positive number, and with
    /// the slide's own error where its pixels cannot be read.
    pub fn detect(slide: &dyn Slide, um_per_px: f64) -> Result<Self> {
        if !(um_per_px.is_finite() && um_per_px > 0.0) {
            return Err(crate::Error::Request(format!(
                "the scale of slide {} is {um_per_px} um/px; it must be a positive number",
                slide.path().display()
            )));
        }
        let base = &slide.info().levels[0];
        let survey = survey(slide, mask_downsample(base.width, base.height, um_per_px))?;
        let mut found = Self::in_picture(&survey.picture, survey.downsample, um_per_px);
        survey.damage.iter().for_each(|damage| found.fill(damage));
        Ok(found)
    }

    /// Finds tissue in `picture`, a whole slide averaged by `downsample` (see
    /// [`mask_downsample`]), whose level-0 scale is `um_per_px`.
    pub fn in_picture(picture: &image::RgbImage, downsample: f64, um_per_px: f64) -> Self {
        let (width, height) = picture.dimensions();
        let mask = detect::tissue(picture, downsample * um_per_px);
        Self { width, height, downsample, mask }
    }

    /// Makes tissue of every mask pixel that touches the rectangle.
    fn fill(&mut self, damage: &Damage) {
        let range = |from: f64, length: f64, size: u32| {
            let (first, end) = (from / self.downsample, (from + length) / self.downsample);
            let size = f64::from(size);
            first.floor().clamp(0.0, size) as usize..end.ceil().clamp(0.0, size) as usize
        };
        let columns = range(damage.x, damage.width, self.width);
        for row in range(damage.y, damage.height, self.height) {
            let line = &mut self.mask[row * self.width as usize..][..self.width as usize];
            line[columns.clone()].fill(true);
        }
    }

    /// Fraction (0 to 1) of the square at (`x`, `y`) with side `side` (level-0 px) that is
    /// tissue. What lies outside the slide is not tissue; mask pixels count by the part of them
    /// that lies in the square.
    pub fn fraction(&self, x: f64, y: f64, side: f64) -> f64 {
        let scale = |value: f64| value / self.downsample;
        let (left, right) = (scale(x), scale(x + side));
        let (top, bottom) = (scale(y), scale(y + side));
        let area = (right - left) * (bottom - top);
        if !(area.is_finite() && area > 0.0) {
            return 0.0;
        }
        let pixels = |from: f64, to: f64, size: u32| {
            let size = f64::from(size);
            from.floor().clamp(0.0, size) as usize..to.ceil().clamp(0.0, size) as usize
        };
        let part = |at: usize, from: f64, to: f64| {
            (to.min(at as f64 + 1.0) - from.max(at as f64)).max(0.0)
        };
        let mut tissue = 0.0;
        for row in pixels(top, bottom, self.height) {
            let height = part(row, top, bottom);
            let line = &self.mask[row * self.width as usize..][..self.width as usize];
            for column in pixels(left, right, self.width) {
                if line[column] {
                    tissue += height * part(column, left, right);
                }
            }
        }
        (tissue / area).clamp(0.0, 1.0)
    }

    /// Fraction (0 to 1) of the whole mask that is tissue.
    pub fn coverage(&self) -> f64 {
        self.mask.iter().filter(|&&tissue| tissue).count() as f64 / self.mask.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_counts_as_tissue() {
        let mut mask =
            TissueMask { width: 4, height: 3, downsample: 10.0, mask: vec![false; 4 * 3] };
        let damage = Damage { x: 12.0, y: 20.0, width: 100.0, height: 5.0, problem: String::new() };
        mask.fill(&damage);
        let found: Vec<usize> = (0..12).filter(|&i| mask.mask[i]).collect();
        assert_eq!(found, [9, 10, 11]);
    }

    #[test]
    fn fractions_weigh_partly_covered_pixels() {
        let mask = TissueMask {
            width: 2,
            height: 2,
            downsample: 10.0,
            mask: vec![true, false, true, false],
        };
        assert_eq!(mask.fraction(0.0, 0.0, 20.0), 0.5);
        assert_eq!(mask.fraction(0.0, 0.0, 10.0), 1.0);
        assert!((mask.fraction(5.0, 0.0, 10.0) - 0.5).abs() < 1e-12);
        assert_eq!(mask.fraction(-10.0, 0.0, 20.0), 0.5);
        assert_eq!(mask.fraction(100.0, 100.0, 20.0), 0.0);
        assert_eq!(mask.fraction(0.0, 0.0, 0.0), 0.0);
        assert_eq!(mask.fraction(f64::NAN, 0.0, 10.0), 0.0);
        assert_eq!(mask.coverage(), 0.5);
    }
}
