//! A tile's picture as it came from the camera, seen as a small window on the slide.
//!
//! The model's tile is cut from it by the very function that reads tiles from stored slides, in
//! the slide's own coordinates. Where a camera delivers the pixels a stored slide has, the model
//! therefore sees the same bytes.

use std::path::{Path, PathBuf};

use diffbulk_link::message::{Encoding, Pixels};
use image::RgbImage;

use crate::slide::{Level, Slide, SlideInfo};
use crate::tiling::{Tile, read_tile};
use crate::{Error, Result};

/// How far from a whole pixel a picture's corner still counts as on it: positions come in whole
/// nanometres.
const SNAP_PX: f64 = 0.02;

/// A picture with its place on the slide.
#[derive(Debug)]
pub(super) struct Field {
    path: PathBuf,
    info: SlideInfo,
    /// Left and top edge in the picture's own pixels.
    corner: (i64, i64),
    /// Part of a pixel that the corner lies beyond `corner`.
    rest: (f64, f64),
    pixels: RgbImage,
}

impl Field {
    /// The picture `bytes` that `header` describes, on a slide of `um_per_px` at its finest.
    ///
    /// # Errors
    /// When the bytes are not what the header says.
    pub(super) fn new(header: &Pixels, bytes: Vec<u8>, um_per_px: f64) -> Result<Self> {
        let refuse = |problem: String| {
            Error::Request(format!("the pixels of tile {}: {problem}", header.shot.tile.0))
        };
        let (width, height) = (u32::from(header.width), u32::from(header.height));
        let pixels = decode(header.encoding, width, height, bytes).map_err(refuse)?;
        let scale = header.scale.get();
        if !(scale > 0.0 && um_per_px > 0.0) {
            return Err(refuse("their scale is not positive".into()));
        }
        let place = |edge: f64| {
            let at = edge / scale;
            if (at - at.round()).abs() < SNAP_PX {
                (at.round() as i64, 0.0)
            } else {
                (at.floor() as i64, at - at.floor())
            }
        };
        let (x, y) = (place(header.x.get()), place(header.y.get()));
        let downsample = scale / um_per_px;
        // A finest level of exactly the slide's scale is level 0 itself.
        let downsample = if (downsample - 1.0).abs() < 1e-6 { 1.0 } else { downsample };
        let level =
            Level { width, height, downsample, codec: "camera".into(), chunk: (width, height) };
        Ok(Self {
            path: format!("tile {}", header.shot.tile.0).into(),
            info: SlideInfo {
                format: "camera".into(),
                vendor: None,
                um_per_px: Some(um_per_px),
                objective: None,
                levels: vec![level],
                properties: Vec::new(),
            },
            corner: (x.0, y.0),
            rest: (x.1, y.1),
            pixels,
        })
    }

    /// `tile` at the model's scale, `tile_px` x `tile_px` RGB bytes.
    ///
    /// # Errors
    /// When the picture does not hold the whole tile.
    pub(super) fn tile(&self, tile: &Tile, tile_px: u32) -> Result<Vec<u8>> {
        let downsample = self.info.levels[0].downsample;
        let inside = |from: f64, corner: i64, rest: f64, size: u32| {
            let from = from / downsample - corner as f64 - rest;
            from > -0.5 && from + tile.side / downsample < f64::from(size) + 0.5
        };
        if !inside(tile.x, self.corner.0, self.rest.0, self.pixels.width())
            || !inside(tile.y, self.corner.1, self.rest.1, self.pixels.height())
        {
            return Err(Error::Request(format!(
                "the picture of tile {} ({} x {} px) does not cover the tile",
                tile.id,
                self.pixels.width(),
                self.pixels.height()
            )));
        }
        let (x, y) = tile.centre();
        // A corner between pixels moves the tile the other way.
        let shift = (self.rest.0 * downsample, self.rest.1 * downsample);
        read_tile(self, x - shift.0, y - shift.1, tile.side, tile_px)
    }
}

impl Slide for Field {
    fn path(&self) -> &Path {
        &self.path
    }

    fn info(&self) -> &SlideInfo {
        &self.info
    }

    /// What lies outside the picture repeats its edge: resampling reaches a few pixels beyond a
    /// tile, and a picture without margin must not get a white frame.
    fn read_region(&self, _: usize, x: i64, y: i64, width: u32, height: u32) -> Result<RgbImage> {
        let at = |position: i64, corner: i64, size: u32| {
            (position - corner).clamp(0, i64::from(size) - 1) as u32
        };
        let (w, h) = self.pixels.dimensions();
        Ok(RgbImage::from_fn(width, height, |dx, dy| {
            let column = at(x + i64::from(dx), self.corner.0, w);
            let row = at(y + i64::from(dy), self.corner.1, h);
            *self.pixels.get_pixel(column, row)
        }))
    }
}

/// RGB of `bytes`, which must have `width` x `height` pixels.
pub(super) fn decode(
    encoding: Encoding,
    width: u32,
    height: u32,
    bytes: Vec<u8>,
) -> std::result::Result<RgbImage, String> {
    if width == 0 || height == 0 {
        return Err("they are empty".into());
    }
    match encoding {
        Encoding::Rgb8 => {
            let count = bytes.len();
            RgbImage::from_raw(width, height, bytes)
                .filter(|_| count as u64 == 3 * u64::from(width) * u64::from(height))
                .ok_or_else(|| format!("{count} bytes are not {width} x {height} px of RGB"))
        }
        Encoding::Jpeg => crate::slide::decode_jpeg(&bytes, width, height),
    }
}

#[cfg(test)]
mod tests {
    use diffbulk_link::message::{Shot, TileId};
    use diffbulk_link::units::{Um, UmPerPx};

    use super::*;
    use crate::predict::testing::flat_slide;

    fn header(x: f64, y: f64, width: u16, height: u16, um_per_px: f64) -> Pixels {
        Pixels {
            shot: Shot { tile: TileId(3), attempt: 0 },
            encoding: Encoding::Rgb8,
            x: Um::new(x * um_per_px).unwrap(),
            y: Um::new(y * um_per_px).unwrap(),
            width,
            height,
            scale: UmPerPx::new(um_per_px).unwrap(),
            bytes: 3 * u32::from(width) * u32::from(height),
        }
    }

    #[test]
    fn a_window_with_margin_gives_the_bytes_of_the_whole_slide() {
        let um_per_px = 0.499;
        let slide = flat_slide(900, 700, |x, y| [(x * 3) as u8, (y * 5) as u8, (x * y / 7) as u8]);
        for (x, y) in [(0.0, 0.0), (309.7395, 154.2), (620.1, 480.33)] {
            let tile = Tile { index: 0, id: "t".into(), x, y, side: 309.739_478_957_915_8 };
            let (cx, cy) = tile.centre();
            let whole = read_tile(&slide, cx, cy, tile.side, 64).unwrap();
            let (left, top) = (x.floor() as i64 - 40, y.floor() as i64 - 40);
            let window = slide.read_region(0, left, top, 400, 400).unwrap();
            let header = header(left as f64, top as f64, 400, 400, um_per_px);
            let field = Field::new(&header, window.into_raw(), um_per_px).unwrap();
            assert!(field.tile(&tile, 64).unwrap() == whole, "at ({x}, {y})");
        }
    }

    #[test]
    fn pictures_that_are_not_what_they_say_are_refused() {
        let tile = Tile { index: 0, id: "t".into(), x: 0.0, y: 0.0, side: 20.0 };
        let field = Field::new(&header(5.0, 0.0, 40, 40, 0.5), vec![0; 4800], 0.5).unwrap();
        assert!(field.tile(&tile, 16).unwrap_err().to_string().contains("cover"));
        let field = Field::new(&header(0.0, 0.0, 20, 20, 0.5), vec![7; 1200], 0.5).unwrap();
        assert!(field.tile(&tile, 16).unwrap().iter().all(|&value| value == 7));
        assert!(Field::new(&header(0.0, 0.0, 20, 20, 0.5), vec![0; 1199], 0.5).is_err());
        assert!(Field::new(&header(0.0, 0.0, 0, 20, 0.5), vec![], 0.5).is_err());
        let mut jpeg = header(0.0, 0.0, 20, 20, 0.5);
        jpeg.encoding = Encoding::Jpeg;
        assert!(Field::new(&jpeg, vec![0xff, 0xd8, 0xff], 0.5).is_err());
        jpeg.scale = UmPerPx(0);
        jpeg.encoding = Encoding::Rgb8;
        assert!(Field::new(&jpeg, vec![0; 1200], 0.5).is_err());
    }
}
