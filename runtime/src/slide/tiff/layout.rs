//! One image of a TIFF: how its pixels are laid out in chunks, checked once when the file is
//! opened.

use std::sync::Arc;

use super::codec::Compression;
use super::directory::{Directory, TiffFile, tag};
use crate::slide::limits;

/// Uncompressed strips larger than this are read in parts of about this size, so that a file with
/// one strip for the whole image still allows random access.
const PLAIN_STRIP_BYTES: u64 = 1 << 20;

/// The most parts that uncompressed strips are divided into.
const PLAIN_STRIP_PARTS: u32 = 1 << 22;

/// How samples become RGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    /// One grey sample, 0 is black.
    Grey,
    /// One grey sample, 0 is white.
    InvertedGrey,
    /// Red, green, blue.
    Rgb,
    /// Luma and two chroma components (only inside JPEG data).
    YCbCr,
}

/// What an extra sample means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    /// No transparency: extra samples are ignored.
    None,
    /// Colours are already multiplied by alpha.
    Associated,
    /// Colours are as if opaque.
    Unassociated,
}

/// Pixel layout of one directory.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) samples: usize,
    pub(super) colour: Colour,
    pub(super) alpha: Alpha,
    pub(super) compression: Compression,
    /// Whether rows hold differences to the pixel on the left.
    pub(super) differenced: bool,
    pub(super) tiled: bool,
    pub(super) chunk_width: u32,
    pub(super) chunk_height: u32,
    /// Chunks per row of chunks.
    pub(super) across: usize,
    pub(super) offsets: Vec<u64>,
    pub(super) counts: Vec<u64>,
    pub(super) jpeg_tables: Option<Arc<[u8]>>,
}

/// Width and height alone, for choosing levels before the layout is understood.
pub(super) fn size(file: &TiffFile, directory: &Directory) -> Result<(u32, u32), String> {
    let side = |tag, name: &str| {
        file.integer(directory, tag)?
            .and_then(|value| u32::try_from(value).ok())
            .filter(|&value| value > 0 && value <= i32::MAX as u32)
            .ok_or_else(|| {
                format!(
                    "the image directory at offset {} states no valid {name}; the file is damaged",
                    directory.offset
                )
            })
    };
    Ok((side(tag::IMAGE_WIDTH, "width")?, side(tag::IMAGE_LENGTH, "height")?))
}

impl Image {
    /// Understands the layout of `directory`, or says which property of it is not read.
    pub(super) fn new(file: &TiffFile, directory: &Directory) -> Result<Self, String> {
        let (width, height) = size(file, directory)?;
        let integer = |tag, default| -> Result<u64, String> {
            Ok(file.integer(directory, tag)?.unwrap_or(default))
        };
        let compression = Compression::from_tag(integer(tag::COMPRESSION, 1)?)?;

        let samples = integer(tag::SAMPLES_PER_PIXEL, 1)?;
        let bits = file.numbers(directory, tag::BITS_PER_SAMPLE)?.unwrap_or_else(|| vec![1]);
        if let Some(bits) = bits.iter().find(|&&bits| bits != 8) {
            return Err(format!(
                "{bits}-bit samples are not read; convert the image to 8 bits per channel"
            ));
        }
        let format = file.numbers(directory, tag::SAMPLE_FORMAT)?.unwrap_or_default();
        if format.iter().any(|&format| format != 1 && format != 4) {
            return Err(
                "samples that are not unsigned integers are not read; convert the image to \
                        8-bit RGB"
                    .into(),
            );
        }
        let photometric = integer(tag::PHOTOMETRIC, if samples >= 3 { 2 } else { 1 })?;
        let (colour, colours) = match photometric {
            0 => (Colour::InvertedGrey, 1),
            1 => (Colour::Grey, 1),
            2 => (Colour::Rgb, 3),
            6 if compression == Compression::Jpeg => (Colour::YCbCr, 3),
            other => {
                let name = match other {
                    3 => "palette colours",
                    5 => "CMYK colours",
                    6 => "YCbCr colours outside JPEG data",
                    8..=10 => "L*a*b* colours",
                    _ => "this photometric interpretation",
                };
                return Err(format!(
                    "{name} ({other}) are not read; convert the image to 8-bit RGB"
                ));
            }
        };
        if samples < colours || samples > colours + 1 {
            return Err(format!(
                "{samples} samples per pixel are not read; convert the image to 8-bit RGB"
            ));
        }
        let extra = file.integer(directory, tag::EXTRA_SAMPLES)?.unwrap_or(0);
        let alpha = match (samples > colours, extra) {
            (true, 1) => Alpha::Associated,
            (true, 2) => Alpha::Unassociated,
            _ => Alpha::None,
        };
        let samples = samples as usize;
        if samples > 1 && integer(tag::PLANAR_CONFIGURATION, 1)? != 1 {
            return Err(
                "separate colour planes (planar configuration 2) are not read; convert the \
                        image to interleaved RGB"
                    .into(),
            );
        }
        if integer(tag::FILL_ORDER, 1)? != 1 {
            return Err("reversed bit order (fill order 2) is not read; convert the image".into());
        }
        let differenced = match (compression.takes_predictor(), integer(tag::PREDICTOR, 1)?) {
            (false, _) | (true, 1) => false,
            (true, 2) => true,
            (true, other) => {
                return Err(format!(
                    "predictor {other} is not read; convert the image with the horizontal \
                     predictor or none"
                ));
            }
        };

        let tiled = directory.has(tag::TILE_WIDTH) || directory.has(tag::TILE_OFFSETS);
        let (chunk_width, chunk_height, offsets, counts) = if tiled {
            (
                integer(tag::TILE_WIDTH, 0)?,
                integer(tag::TILE_LENGTH, 0)?,
                tag::TILE_OFFSETS,
                tag::TILE_BYTE_COUNTS,
            )
        } else {
            (
                u64::from(width),
                integer(tag::ROWS_PER_STRIP, u64::from(height))?.min(u64::from(height)),
                tag::STRIP_OFFSETS,
                tag::STRIP_BYTE_COUNTS,
            )
        };
        let kind = if tiled { "tile" } else { "strip" };
        let bytes =
            chunk_width.checked_mul(chunk_height).and_then(|n| n.checked_mul(samples as u64));
        let (Some(bytes), Ok(chunk_width), Ok(chunk_height)) =
            (bytes, u32::try_from(chunk_width), u32::try_from(chunk_height))
        else {
            return Err(format!("its {kind}s have an impossible size; the file is damaged"));
        };
        if bytes == 0 {
            return Err(format!("its {kind}s have no size; the file is damaged"));
        }
        let plain_strips = !tiled && compression == Compression::None;
        if bytes > limits::CHUNK_BYTES && !plain_strips {
            return Err(format!(
                "one {kind} of {chunk_width} x {chunk_height} px exceeds what is decoded at once; \
                 convert the image to tiles of 256 or 512 px"
            ));
        }
        let absent = || format!("it has no {kind} offsets; the file is damaged");
        let offsets = file.numbers(directory, offsets)?.ok_or_else(absent)?;
        let across = width.div_ceil(chunk_width) as usize;
        let down = height.div_ceil(chunk_height) as usize;
        let expected =
            across.checked_mul(down).filter(|&n| n <= offsets.len()).ok_or_else(|| {
                format!(
                    "it needs {across} x {down} {kind}s but has offsets of only {}; the file is \
                 damaged",
                    offsets.len()
                )
            })?;
        let counts = match file.numbers(directory, counts)? {
            Some(counts) => counts,
            // The length of uncompressed chunks is known without the tag (old writers omit it).
            None if compression == Compression::None => vec![bytes; expected],
            None => return Err(format!("it has no {kind} byte counts; the file is damaged")),
        };
        if counts.len() < expected {
            return Err(format!(
                "it has {expected} {kind}s but byte counts of only {}; the file is damaged",
                counts.len()
            ));
        }
        let mut image = Self {
            width,
            height,
            samples,
            colour,
            alpha,
            compression,
            differenced,
            tiled,
            chunk_width,
            chunk_height,
            across,
            offsets,
            counts,
            jpeg_tables: match compression {
                Compression::Jpeg => file.bytes(directory, tag::JPEG_TABLES)?.map(Arc::from),
                _ => None,
            },
        };
        image.offsets.truncate(expected);
        image.counts.truncate(expected);
        image.check_extents(file.source().len())?;
        if plain_strips {
            image.split_plain_strips()?;
        }
        Ok(image)
    }

    /// Where chunk `index` begins, in pixels of the image.
    pub(super) fn origin(&self, index: usize) -> (u32, u32) {
        (
            (index % self.across) as u32 * self.chunk_width,
            (index / self.across) as u32 * self.chunk_height,
        )
    }

    /// Rows of chunk `index` that are stored: all of a tile, what the image has left of a strip.
    pub(super) fn stored_rows(&self, index: usize) -> u32 {
        if self.tiled {
            self.chunk_height
        } else {
            self.chunk_height.min(self.height - self.origin(index).1)
        }
    }

    /// Whether the file holds no data for the chunk. Sparse files leave out blank tiles.
    pub(super) fn is_blank(&self, index: usize) -> bool {
        self.offsets[index] == 0 || self.counts[index] == 0
    }

    /// "tile 7 (column 3, row 1)" or "strip 7".
    pub(super) fn chunk_name(&self, index: usize) -> String {
        if self.tiled {
            format!("tile {index} (column {}, row {})", index % self.across, index / self.across)
        } else {
            format!("strip {index}")
        }
    }

    /// Refuses a file that ends before one of its chunks does.
    fn check_extents(&self, len: u64) -> Result<(), String> {
        for index in (0..self.offsets.len()).filter(|&index| !self.is_blank(index)) {
            let (offset, count) = (self.offsets[index], self.counts[index]);
            if offset.checked_add(count).is_none_or(|end| end > len) {
                return Err(format!(
                    "{} ({count} bytes at offset {offset}) lies beyond the end of the file ({len} \
                     bytes): the file is truncated; copy or download it again",
                    self.chunk_name(index)
                ));
            }
            if count > limits::CHUNK_BYTES && self.compression != Compression::None {
                return Err(format!(
                    "{} claims {count} bytes of compressed data; the file is damaged",
                    self.chunk_name(index)
                ));
            }
        }
        Ok(())
    }

    /// Divides large uncompressed strips into smaller ones: their rows can be addressed directly.
    fn split_plain_strips(&mut self) -> Result<(), String> {
        let row = u64::from(self.width) * self.samples as u64;
        let rows = (PLAIN_STRIP_BYTES / row).max(1).min(u64::from(self.chunk_height)) as u32;
        if rows == self.chunk_height {
            return Ok(());
        }
        // Strips do not begin at multiples of `rows` unless they are divided evenly; use the
        // largest divisor of the strip height, or whole strips of the single-strip image.
        let rows = if self.offsets.len() == 1 {
            rows
        } else {
            (1..=rows).rev().find(|rows| self.chunk_height.is_multiple_of(*rows)).unwrap_or(1)
        };
        if self.height / rows > PLAIN_STRIP_PARTS {
            return Err("its uncompressed strips cannot be read in parts; convert the image to \
                        tiles of 256 or 512 px"
                .into());
        }
        let (mut offsets, mut counts) = (Vec::new(), Vec::new());
        for index in 0..self.offsets.len() {
            let stored = self.stored_rows(index);
            let needed = u64::from(stored) * row;
            if !self.is_blank(index) && self.counts[index] < needed {
                return Err(format!(
                    "{} has {} bytes where its {stored} rows need {needed}; the file is damaged",
                    self.chunk_name(index),
                    self.counts[index]
                ));
            }
            for first in (0..stored).step_by(rows as usize) {
                let part = rows.min(stored - first);
                let skip = u64::from(first) * row;
                let blank = self.is_blank(index);
                offsets.push(if blank { 0 } else { self.offsets[index] + skip });
                let left = self.counts[index].saturating_sub(skip);
                counts.push(left.min(u64::from(part) * row));
            }
        }
        self.chunk_height = rows;
        self.offsets = offsets;
        self.counts = counts;
        Ok(())
    }
}
