//! Open a slide of any format and read regions of it as RGB.
//!
//! Every format is one [`Slide`] implementation; [`open`] looks at the file's content (never only
//! at its name) and picks one. Coordinates are level-0 pixels, x right, y down, origin top left.
//! [`overview()`] makes a small picture of the whole, [`identity()`] recognises a file quickly.

mod cache;
mod canvas;
mod identity;
mod jpeg;
mod limits;
mod overview;
mod plain;
mod sniff;
mod source;
mod tiff;

use std::path::Path;

use image::RgbImage;
use serde::Serialize;

use crate::{Error, Result};

pub use identity::{Identity, identity};
pub(crate) use overview::{best_level, resample, survey};
pub use overview::{overview, overview_at, overview_downsample, overview_size};

/// One resolution of a slide.
#[derive(Debug, Clone, Serialize)]
pub struct Level {
    /// Width in pixels of this level.
    pub width: u32,
    /// Height in pixels of this level.
    pub height: u32,
    /// Level-0 pixels per pixel of this level (1.0 for level 0).
    pub downsample: f64,
    /// Compression of the pixel data, in the format's own word ("JPEG", "LZW", "none", "PNG").
    pub codec: String,
    /// Tile or strip size in pixels, or the whole image.
    pub chunk: (u32, u32),
}

/// What is known about a slide without decoding its pixels.
#[derive(Debug, Clone, Serialize)]
pub struct SlideInfo {
    /// File format in words ("Aperio SVS", "TIFF", "BigTIFF", "JPEG", "PNG").
    pub format: String,
    /// Scanner vendor, where the file tells.
    pub vendor: Option<String>,
    /// Micrometres per level-0 pixel, where the file tells.
    pub um_per_px: Option<f64>,
    /// Objective magnification, where the file tells.
    pub objective: Option<f64>,
    /// Levels from the finest to the coarsest; never empty.
    pub levels: Vec<Level>,
    /// Other facts of the file (for example Aperio's description), key and value.
    pub properties: Vec<(String, String)>,
}

/// A slide that regions can be read from, from several threads at once.
pub trait Slide: Send + Sync {
    /// The file it came from.
    fn path(&self) -> &Path;

    /// What is known about it.
    fn info(&self) -> &SlideInfo;

    /// Reads `width` x `height` pixels of `level` whose top-left corner is (`x`, `y`) in that
    /// level's own pixels. What lies outside the slide is white. Errors name the damaged chunk;
    /// [`Error::Damaged`] says that other regions may still be readable.
    fn read_region(
        &self,
        level: usize,
        x: i64,
        y: i64,
        width: u32,
        height: u32,
    ) -> Result<RgbImage>;

    /// The same, with damaged chunks left white and named. A reader that cannot read around
    /// damage fails as [`Slide::read_region`] does.
    fn read_around_damage(
        &self,
        level: usize,
        x: i64,
        y: i64,
        width: u32,
        height: u32,
    ) -> Result<(RgbImage, Vec<Damage>)> {
        Ok((self.read_region(level, x, y, width, height)?, Vec::new()))
    }
}

/// A rectangle of a slide whose pixels cannot be decoded, in level-0 pixels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Damage {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
    /// Which chunk, and what is wrong with it.
    pub problem: String,
}

/// Opens the slide at `path`, choosing the reader by the file's content.
///
/// Read are Aperio SVS and tiled or striped TIFF and BigTIFF (JPEG, LZW, Deflate, PackBits or
/// uncompressed; 8-bit RGB, RGBA or grey), and plain JPEG and PNG. Anything else is refused with
/// what it seems to be; a damaged file with the place of the damage.
pub fn open(path: &Path) -> Result<Box<dyn Slide>> {
    match sniff::kind(path)? {
        sniff::Kind::Tiff => Ok(Box::new(tiff::TiffSlide::open(path)?)),
        sniff::Kind::Jpeg => Ok(Box::new(plain::PlainSlide::open(path, plain::Kind::Jpeg)?)),
        sniff::Kind::Png => Ok(Box::new(plain::PlainSlide::open(path, plain::Kind::Png)?)),
        sniff::Kind::Other(what) => Err(Error::slide(
            path,
            format!("this is {what}, not a slide that is read. {}", sniff::READ),
        )),
    }
}

/// Decodes a JPEG file that must have `width` x `height` pixels.
pub(crate) fn decode_jpeg(
    bytes: &[u8],
    width: u32,
    height: u32,
) -> std::result::Result<RgbImage, String> {
    let limit = (width as usize, height as usize);
    let pixels = jpeg::decode(bytes, None, jpeg::Declared::Nothing, limit)?;
    if (pixels.width, pixels.height) != limit {
        return Err(format!(
            "a JPEG of {} x {} px where {width} x {height} were said",
            pixels.width, pixels.height
        ));
    }
    RgbImage::from_raw(width, height, pixels.rgb).ok_or_else(|| "the JPEG is not RGB".into())
}
