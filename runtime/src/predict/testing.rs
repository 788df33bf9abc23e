//! Synthetic slides for tests.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};

use crate::Result;
use crate::slide::{Level, Slide, SlideInfo};

/// A one-level slide in memory.
pub(crate) struct FlatSlide {
    path: PathBuf,
    info: SlideInfo,
    image: RgbImage,
}

/// A slide whose pixel (x, y) is `colour(x, y)`, at 0.5 um/px.
pub(crate) fn flat_slide(
    width: u32,
    height: u32,
    colour: impl Fn(u32, u32) -> [u8; 3],
) -> FlatSlide {
    FlatSlide {
        path: "flat.tiff".into(),
        info: SlideInfo {
            format: "memory".into(),
            vendor: None,
            um_per_px: Some(0.5),
            objective: None,
            levels: vec![Level {
                width,
                height,
                downsample: 1.0,
                codec: "none".into(),
                chunk: (width, height),
            }],
            properties: vec![],
        },
        image: RgbImage::from_fn(width, height, |x, y| Rgb(colour(x, y))),
    }
}

impl Slide for FlatSlide {
    fn path(&self) -> &Path {
        &self.path
    }

    fn info(&self) -> &SlideInfo {
        &self.info
    }

    fn read_region(
        &self,
        _level: usize,
        x: i64,
        y: i64,
        width: u32,
        height: u32,
    ) -> Result<RgbImage> {
        Ok(RgbImage::from_fn(width, height, |dx, dy| {
            let inside = |at: i64, size: u32| u32::try_from(at).ok().filter(|&at| at < size);
            let x = inside(x + i64::from(dx), self.image.width());
            let y = inside(y + i64::from(dy), self.image.height());
            match (x, y) {
                (Some(x), Some(y)) => *self.image.get_pixel(x, y),
                _ => Rgb([255; 3]),
            }
        }))
    }
}

impl FlatSlide {
    /// Makes it a slide that does not tell its scale.
    pub(crate) fn forget_scale(&mut self) {
        self.info.um_per_px = None;
    }

    /// Gives it another path.
    pub(crate) fn set_path(&mut self, path: &Path) {
        self.path = path.to_owned();
    }
}
