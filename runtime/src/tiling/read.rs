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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use image::{Rgb, RgbImage};

    use super::*;
    use crate::slide::{Level, SlideInfo};

    /// A slide whose levels are samples of one smooth picture.
    struct Smooth(SlideInfo);

    /// The picture, at level-0 px; pixel (0, 0) covers 0 to 1.
    fn value(x: f64, y: f64) -> [f64; 3] {
        [40.0 + x / 8.0, 30.0 + y / 8.0, 128.0 + 60.0 * (x / 90.0).sin() * (y / 70.0).cos()]
    }

    fn smooth(downsamples: &[f64]) -> Smooth {
        let level = |&downsample: &f64| Level {
            width: (1600.0 / downsample) as u32,
            height: (1200.0 / downsample) as u32,
            downsample,
            codec: "none".into(),
            chunk: (256, 256),
        };
        Smooth(SlideInfo {
            format: "test".into(),
            vendor: None,
            um_per_px: Some(0.5),
            objective: None,
            levels: downsamples.iter().map(level).collect(),
            properties: Vec::new(),
        })
    }

    impl Slide for Smooth {
        fn path(&self) -> &Path {
            Path::new("smooth")
        }

        fn info(&self) -> &SlideInfo {
            &self.0
        }

        fn read_region(&self, level: usize, x: i64, y: i64, w: u32, h: u32) -> Result<RgbImage> {
            let level = &self.0.levels[level];
            Ok(RgbImage::from_fn(w, h, |i, j| {
                let (x, y) = (x + i64::from(i), y + i64::from(j));
                let outside = x < 0 || y < 0 || x >= level.width.into() || y >= level.height.into();
                if outside {
                    return Rgb([255; 3]);
                }
                let centre = |at: i64| (at as f64 + 0.5) * level.downsample;
                Rgb(value(centre(x), centre(y)).map(|value| value.round() as u8))
            }))
        }
    }

    /// Largest difference of a tile to the picture sampled at the tile's pixel centres.
    fn difference(slide: &Smooth, (cx, cy): (f64, f64), side: f64, size: u32) -> f64 {
        let tile = read_tile(slide, cx, cy, side, size).unwrap();
        assert_eq!(tile.len(), 3 * (size * size) as usize);
        let step = side / f64::from(size);
        let at = |corner: f64, index: u32| corner - side / 2.0 + (f64::from(index) + 0.5) * step;
        let mut largest: f64 = 0.0;
        for (index, pixel) in tile.chunks_exact(3).enumerate() {
            let (i, j) = (index as u32 % size, index as u32 / size);
            for (read, wanted) in std::iter::zip(pixel, value(at(cx, i), at(cy, j))) {
                largest = largest.max((f64::from(*read) - wanted).abs());
            }
        }
        largest
    }

    #[test]
    fn scale_one_on_whole_pixels_returns_the_stored_pixels() {
        let slide = smooth(&[1.0, 4.0]);
        let tile = read_tile(&slide, 300.0, 212.0, 224.0, 224).unwrap();
        assert_eq!(tile, slide.read_region(0, 188, 100, 224, 224).unwrap().into_raw());
        let tile = read_tile(&slide, 512.0, 512.0, 896.0, 224).unwrap();
        assert_eq!(tile, slide.read_region(1, 16, 16, 224, 224).unwrap().into_raw());
    }

    #[test]
    fn resampled_tiles_stay_in_place_at_any_scale_and_position() {
        let slide = smooth(&[1.0, 2.0, 4.0, 16.0]);
        for side in [112.0, 223.5, 224.449, 310.0, 448.0, 500.0, 897.0] {
            for centre in [(600.0, 500.0), (600.25, 500.5), (611.7, 533.1)] {
                let off = difference(&slide, centre, side, 224);
                assert!(off < 1.6, "side {side} at {centre:?}: {off}");
            }
        }
    }

    #[test]
    fn levels_that_do_not_halve_are_used_in_place() {
        let slide = smooth(&[1.0, 2.5]);
        assert!(difference(&slide, (700.0, 600.0), 224.0 * 3.0, 224) < 1.6);
    }

    #[test]
    fn outside_is_white_and_senseless_tiles_are_refused() {
        let slide = smooth(&[1.0]);
        let tile = read_tile(&slide, -500.0, -500.3, 230.0, 224).unwrap();
        assert!(tile.iter().all(|&value| value == 255));
        for (cx, side, size) in [
            (f64::NAN, 224.0, 224),
            (0.0, 0.0, 224),
            (0.0, -1.0, 224),
            (0.0, f64::INFINITY, 224),
            (0.0, 224.0, 0),
            (0.0, 1e7, 224),
        ] {
            assert!(read_tile(&slide, cx, 0.0, side, size).is_err(), "{cx} {side} {size}");
        }
        assert!(read_tile(&slide, 1e300, 1e300, 230.5, 224).is_ok());
    }
}
