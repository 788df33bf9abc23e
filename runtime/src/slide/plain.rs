//! Plain JPEG and PNG images as slides of one resolution.
//!
//! Neither format allows reading a part, so the image is decoded whole, once, when the first
//! pixels are asked for. Coarser levels are averaged from it in memory, each when it is first
//! used, so that overviews are cheap. Densities these files state are print resolutions, not
//! scales: um/px is always unknown.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use image::{DynamicImage, ImageDecoder, RgbImage};

use super::cache::Pixels;
use super::canvas::Canvas;
use super::source::Source;
use super::{Level, Slide, SlideInfo, jpeg, limits};
use crate::{Error, Result};

/// Downsampling of the levels that are made in memory.
const FACTORS: [u32; 2] = [4, 16];

/// A level is not made below this side.
const SMALLEST_SIDE: u32 = 64;

/// Which of the two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Jpeg,
    Png,
}

/// An open plain image.
#[derive(Debug)]
pub(super) struct PlainSlide {
    path: PathBuf,
    kind: Kind,
    info: SlideInfo,
    source: Source,
    /// One per level; a failure is kept, since decoding again would only fail again.
    levels: Vec<OnceLock<std::result::Result<Arc<Pixels>, String>>>,
}

impl PlainSlide {
    /// Opens `path`, whose content has been recognised as `kind`.
    pub(super) fn open(path: &Path, kind: Kind) -> Result<Self> {
        let source = Source::open(path).map_err(Error::io(path))?;
        Self::from_source(path, kind, source).map_err(|problem| Error::slide(path, problem))
    }

    fn from_source(path: &Path, kind: Kind, source: Source) -> std::result::Result<Self, String> {
        let (width, height) = size(kind, &source)?;
        if 3 * u64::from(width) * u64::from(height) > limits::PLAIN_IMAGE_BYTES {
            return Err(format!(
                "an image of {width} x {height} px is too large to decode whole; convert it to a \
                 tiled TIFF, for example: vips tiffsave IMAGE OUT.tif --tile --pyramid \
                 --compression jpeg --Q 90"
            ));
        }
        let name = match kind {
            Kind::Jpeg => "JPEG",
            Kind::Png => "PNG",
        };
        let mut levels = vec![Level {
            width,
            height,
            downsample: 1.0,
            codec: name.into(),
            chunk: (width, height),
        }];
        for factor in FACTORS {
            let (w, h) = (width.div_ceil(factor), height.div_ceil(factor));
            if w.min(h) >= SMALLEST_SIDE {
                levels.push(Level {
                    width: w,
                    height: h,
                    downsample: f64::from(factor),
                    codec: "averaged in memory".into(),
                    chunk: (w, h),
                });
            }
        }
        let cells = levels.iter().map(|_| OnceLock::new()).collect();
        let info = SlideInfo {
            format: name.into(),
            vendor: None,
            um_per_px: None,
            objective: None,
            levels,
            properties: Vec::new(),
        };
        Ok(Self { path: path.to_owned(), kind, info, source, levels: cells })
    }

    fn pixels(&self, level: usize) -> std::result::Result<Arc<Pixels>, String> {
        self.levels[level]
            .get_or_init(|| {
                if level == 0 {
                    return self.decode().map(Arc::new);
                }
                let factor = self.info.levels[level].downsample as usize;
                Ok(Arc::new(average(&*self.pixels(0)?, factor)))
            })
            .clone()
    }

    fn decode(&self) -> std::result::Result<Pixels, String> {
        let data = self.source.read(0, self.source.len())?;
        match self.kind {
            Kind::Jpeg => {
                let limit = (u16::MAX.into(), u16::MAX.into());
                jpeg::check_whole(&data)
                    .and_then(|()| jpeg::decode(&data, None, jpeg::Declared::Nothing, limit))
                    .map_err(|problem| {
                        format!("the image of {} bytes at offset 0: {problem}", data.len())
                    })
            }
            Kind::Png => {
                let failed = |error| {
                    format!(
                        "the image of {} bytes at offset 0: damaged PNG data ({error}); copy or \
                         download it again",
                        data.len()
                    )
                };
                if !png_is_whole(&data) {
                    return Err(format!(
                        "the image of {} bytes at offset 0: the PNG data have no end: the file is \
                         truncated; copy or download it again",
                        data.len()
                    ));
                }
                let decoder = png(&data).map_err(failed)?;
                let image = DynamicImage::from_decoder(decoder).map_err(failed)?;
                let (width, height) = (image.width() as usize, image.height() as usize);
                Ok(Pixels { width, height, rgb: over_white(image) })
            }
        }
    }
}

/// Width and height from the headers.
fn size(kind: Kind, source: &Source) -> std::result::Result<(u32, u32), String> {
    match kind {
        Kind::Jpeg => {
            // Metadata segments before the frame can be long, but not without end.
            let head = source.read(0, source.len().min(16 << 20))?;
            let header = jpeg::header(&head)?;
            Ok((header.width as u32, header.height as u32))
        }
        Kind::Png => {
            let head = source.read(0, source.len().min(64 << 10))?;
            let decoder = png(&head).map_err(|error| format!("damaged PNG header ({error})"))?;
            Ok(decoder.dimensions())
        }
    }
}

fn png(data: &[u8]) -> image::ImageResult<image::codecs::png::PngDecoder<Cursor<&[u8]>>> {
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(4 * limits::PLAIN_IMAGE_BYTES);
    image::codecs::png::PngDecoder::with_limits(Cursor::new(data), limits)
}

/// Whether every chunk up to the last, IEND, lies inside the data; decoders stop before it.
fn png_is_whole(data: &[u8]) -> bool {
    let mut rest = data.get(8..).unwrap_or_default();
    while let Some((head, tail)) = rest.split_at_checked(8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        // The chunk's data and its checksum.
        let Some(next) = tail.get(length.saturating_add(4)..) else { return false };
        if &head[4..] == b"IEND" {
            return true;
        }
        rest = next;
    }
    false
}

/// RGB of an image; transparency shows white, like the background of a slide.
fn over_white(image: DynamicImage) -> Vec<u8> {
    if !image.color().has_alpha() {
        return image.into_rgb8().into_raw();
    }
    let rgba = image.into_rgba8();
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.pixels() {
        let alpha = u32::from(pixel.0[3]);
        rgb.extend(
            pixel.0[..3]
                .iter()
                .map(|&value| ((u32::from(value) * alpha + 255 * (255 - alpha) + 127) / 255) as u8),
        );
    }
    rgb
}

/// Means over blocks of `factor` x `factor` pixels; blocks at the right and bottom edge hold
/// fewer.
fn average(pixels: &Pixels, factor: usize) -> Pixels {
    let (width, height) = (pixels.width.div_ceil(factor), pixels.height.div_ceil(factor));
    let mut rgb = Vec::with_capacity(3 * width * height);
    let mut sums = vec![0u32; 3 * width];
    for rows in pixels.rgb.chunks(3 * pixels.width * factor) {
        sums.fill(0);
        let count = rows.len() / (3 * pixels.width);
        for row in rows.chunks_exact(3 * pixels.width) {
            for (block, sum) in row.chunks(3 * factor).zip(sums.chunks_exact_mut(3)) {
                for pixel in block.chunks_exact(3) {
                    for (sum, &value) in sum.iter_mut().zip(pixel) {
                        *sum += u32::from(value);
                    }
                }
            }
        }
        for (column, sum) in sums.chunks_exact(3).enumerate() {
            let area = (count * factor.min(pixels.width - column * factor)) as u32;
            rgb.extend(sum.iter().map(|&sum| ((sum + area / 2) / area) as u8));
        }
    }
    Pixels { width, height, rgb }
}

impl Slide for PlainSlide {
    fn path(&self) -> &Path {
        &self.path
    }

    fn info(&self) -> &SlideInfo {
        &self.info
    }

    fn read_region(
        &self,
        level: usize,
        x: i64,
        y: i64,
        width: u32,
        height: u32,
    ) -> Result<RgbImage> {
        let mut canvas = Canvas::new(&self.path, &self.info, level, (x, y), (width, height))?;
        if canvas.visible().is_some() {
            let pixels = self.pixels(level).map_err(|problem| Error::slide(&self.path, problem))?;
            canvas.paste(&pixels, (0, 0));
        }
        Ok(canvas.finish())
    }
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder};
    use proptest::prelude::*;

    use super::*;
    use crate::slide::{open, overview};

    fn picture(x: u32, y: u32) -> [u8; 3] {
        [(x / 3) as u8, (y / 2) as u8, ((x + y) / 5) as u8]
    }

    fn rgb(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb(picture(x, y)))
    }

    fn png_file(width: u32, height: u32) -> Vec<u8> {
        let mut out = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut out);
        encoder.write_image(&rgb(width, height), width, height, ExtendedColorType::Rgb8).unwrap();
        out
    }

    fn jpeg_file(width: u32, height: u32) -> Vec<u8> {
        let mut out = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 97)
            .write_image(&rgb(width, height), width, height, ExtendedColorType::Rgb8)
            .unwrap();
        out
    }

    fn saved(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn png_and_jpeg_are_read_with_levels_made_in_memory() {
        for (bytes, tolerance, name) in
            [(png_file(530, 390), 0, "PNG"), (jpeg_file(530, 390), 6, "JPEG")]
        {
            let file = saved(&bytes);
            let slide = open(file.path()).unwrap();
            assert_eq!((slide.info().format.as_str(), slide.info().um_per_px), (name, None));
            let sizes: Vec<_> = slide.info().levels.iter().map(|l| (l.width, l.height)).collect();
            assert_eq!(sizes, [(530, 390), (133, 98)]);
            let region = slide.read_region(0, 100, 50, 200, 200).unwrap();
            for (x, y, pixel) in region.enumerate_pixels() {
                for (read, wanted) in std::iter::zip(pixel.0, picture(x + 100, y + 50)) {
                    assert!(read.abs_diff(wanted) <= tolerance);
                }
            }
            let coarse = slide.read_region(1, 20, 10, 1, 1).unwrap().get_pixel(0, 0).0;
            assert!(std::iter::zip(coarse, picture(81, 41)).all(|(a, b)| a.abs_diff(b) <= 3));
            assert_eq!(overview(&*slide, 100).unwrap().0.dimensions(), (100, 74));
        }
    }

    #[test]
    fn averages_count_only_pixels_that_exist() {
        let pixels = Pixels { width: 3, height: 1, rgb: vec![10, 0, 0, 20, 0, 0, 90, 6, 0] };
        let small = average(&pixels, 2);
        assert_eq!((small.width, small.height), (2, 1));
        assert_eq!(small.rgb, [15, 0, 0, 90, 6, 0]);
    }

    #[test]
    fn transparency_is_white() {
        let mut out = Vec::new();
        image::codecs::png::PngEncoder::new(&mut out)
            .write_image(&[7, 8, 9, 255, 0, 0, 0, 0], 2, 1, ExtendedColorType::Rgba8)
            .unwrap();
        let file = saved(&out);
        let region = open(file.path()).unwrap().read_region(0, 0, 0, 2, 1).unwrap();
        assert_eq!(region.into_raw(), [7, 8, 9, 255, 255, 255]);
    }

    #[test]
    fn a_truncated_image_is_an_error_and_stays_one() {
        for bytes in [png_file(300, 300), jpeg_file(300, 300)] {
            for length in [bytes.len() * 2 / 3, bytes.len() - 1] {
                let file = saved(&bytes[..length]);
                let slide = open(file.path()).unwrap();
                for _ in 0..2 {
                    let error = slide.read_region(0, 0, 0, 10, 10).unwrap_err().to_string();
                    assert!(error.contains("offset 0"), "{error}");
                    assert!(error.contains("truncated"), "{error}");
                }
                assert!(overview(&*slide, 50).is_err());
            }
        }
    }

    #[test]
    fn a_png_that_claims_to_be_enormous_is_refused() {
        let mut bytes = png_file(20, 20);
        bytes[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let file = saved(&bytes);
        let error = open(file.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("65536 x 65536"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn damaged_images_never_panic(
            as_png in any::<bool>(),
            length in 0.0f64..1.3,
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut bytes = if as_png { png_file(80, 60) } else { jpeg_file(80, 60) };
            for (position, value) in flips {
                let at = position.index(bytes.len());
                bytes[at] = value;
            }
            let length = ((bytes.len() as f64 * length) as usize).min(bytes.len());
            let file = saved(&bytes[..length]);
            if let Ok(slide) = open(file.path()) {
                let _ = slide.read_region(0, 0, 0, 100, 100);
            }
        }
    }
}
