//! From the stored bytes of one chunk to RGB pixels.
//!
//! Sources: TIFF 6.0 sections 9 (PackBits), 13 (LZW), 14 (horizontal differencing); Adobe
//! Photoshop TIFF technical notes (Deflate); TIFF Technical Note 2 (JPEG).

use flate2::{Decompress, FlushDecompress, Status};

use super::layout::{Alpha, Colour, Image};
use crate::slide::cache::Pixels;
use crate::slide::jpeg;

/// A compression that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
}

impl Compression {
    /// The compression of TIFF tag 259, or a refusal that names the one found.
    pub(super) fn from_tag(value: u64) -> Result<Self, String> {
        let name = match value {
            1 => return Ok(Self::None),
            5 => return Ok(Self::Lzw),
            7 => return Ok(Self::Jpeg),
            8 | 32946 => return Ok(Self::Deflate),
            32773 => return Ok(Self::PackBits),
            2..=4 => "CCITT fax",
            6 => "old-style JPEG",
            33003 | 33005 | 34712 => {
                return Err(format!(
                    "JPEG 2000 compression ({value}) is not read; convert the slide to JPEG tiles, \
                     for example: vips tiffsave SLIDE OUT.tif --tile --pyramid --compression jpeg \
                     --Q 90"
                ));
            }
            22610 | 34934 => "JPEG XR",
            34887 => "LERC",
            34925 => "LZMA",
            50000 => "Zstandard",
            50001 => "WebP",
            50002 | 52546 => "JPEG XL",
            _ => "unknown",
        };
        Err(format!(
            "{name} compression ({value}) is not read; convert the slide to JPEG, Deflate or LZW \
             tiles"
        ))
    }

    /// The compression in the format's own word.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lzw => "LZW",
            Self::Jpeg => "JPEG",
            Self::Deflate => "Deflate",
            Self::PackBits => "PackBits",
        }
    }

    /// Whether the predictor tag applies.
    pub(super) fn takes_predictor(self) -> bool {
        matches!(self, Self::Lzw | Self::Deflate)
    }
}

/// Decodes the stored bytes of chunk `index` of `image` to RGB: `chunk_width` x the stored rows.
pub(super) fn decode(image: &Image, index: usize, stored: &[u8]) -> Result<Pixels, String> {
    let width = image.chunk_width as usize;
    let height = image.stored_rows(index) as usize;
    if image.compression == Compression::Jpeg {
        return decode_jpeg(image, index, stored, width, height);
    }
    let mut samples = vec![0; width * height * image.samples];
    let written = match image.compression {
        Compression::None => {
            let length = stored.len().min(samples.len());
            samples[..length].copy_from_slice(&stored[..length]);
            length
        }
        Compression::Lzw => lzw(stored, &mut samples)?,
        Compression::Deflate => deflate(stored, &mut samples)?,
        Compression::PackBits => packbits(stored, &mut samples),
        Compression::Jpeg => 0,
    };
    if written < samples.len() {
        return Err(format!(
            "its data end after {written} of {} bytes; the file is damaged",
            samples.len()
        ));
    }
    if image.differenced {
        undo_differences(&mut samples, width * image.samples, image.samples);
    }
    Ok(Pixels { width, height, rgb: to_rgb(image, samples) })
}

fn decode_jpeg(
    image: &Image,
    index: usize,
    stored: &[u8],
    width: usize,
    height: usize,
) -> Result<Pixels, String> {
    let declared = match image.colour {
        Colour::YCbCr => jpeg::Declared::YCbCr,
        _ => jpeg::Declared::Rgb,
    };
    // Frames are padded to whole blocks by some writers, never by more than a block of 4:2:0.
    let limit = (width + 16, height.max(image.chunk_height as usize) + 16);
    let mut pixels = jpeg::decode(stored, image.jpeg_tables.as_deref(), declared, limit)?;
    let (x, y) = image.origin(index);
    let visible = (width.min((image.width - x) as usize), height.min((image.height - y) as usize));
    if pixels.width < visible.0 || pixels.height < visible.1 {
        return Err(format!(
            "its JPEG frame is {} x {} px where {width} x {height} px belong; the file is damaged",
            pixels.width, pixels.height
        ));
    }
    if image.colour == Colour::InvertedGrey {
        pixels.rgb.iter_mut().for_each(|value| *value = 255 - *value);
    }
    Ok(pixels)
}

fn lzw(stored: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
    let (mut read, mut written) = (0, 0);
    while written < out.len() {
        let result = decoder.decode_bytes(&stored[read..], &mut out[written..]);
        read += result.consumed_in;
        written += result.consumed_out;
        match result.status {
            Ok(weezl::LzwStatus::Ok) if result.consumed_in + result.consumed_out > 0 => {}
            Ok(_) => break,
            Err(error) => return Err(format!("damaged LZW data ({error})")),
        }
    }
    Ok(written)
}

fn deflate(stored: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let mut decoder = Decompress::new(true);
    loop {
        let (read, written) = (decoder.total_in() as usize, decoder.total_out() as usize);
        if written == out.len() {
            return Ok(written);
        }
        let status = decoder
            .decompress(&stored[read..], &mut out[written..], FlushDecompress::None)
            .map_err(|error| format!("damaged Deflate data ({error})"))?;
        let progress = (decoder.total_in() as usize, decoder.total_out() as usize);
        if status == Status::StreamEnd || progress == (read, written) {
            return Ok(progress.1);
        }
    }
}

fn packbits(stored: &[u8], out: &mut [u8]) -> usize {
    let (mut read, mut written) = (0, 0);
    while let Some(&control) = stored.get(read)
        && written < out.len()
    {
        read += 1;
        let room = out.len() - written;
        if control < 128 {
            let length = (usize::from(control) + 1).min(room).min(stored.len() - read);
            out[written..written + length].copy_from_slice(&stored[read..read + length]);
            read += usize::from(control) + 1;
            written += length;
        } else if control > 128 {
            let Some(&value) = stored.get(read) else { break };
            let length = (257 - usize::from(control)).min(room);
            out[written..written + length].fill(value);
            read += 1;
            written += length;
        }
    }
    written
}

/// Undoes horizontal differencing (predictor 2) of rows of `row` bytes.
fn undo_differences(samples: &mut [u8], row: usize, step: usize) {
    for row in samples.chunks_exact_mut(row) {
        for index in step..row.len() {
            row[index] = row[index].wrapping_add(row[index - step]);
        }
    }
}

/// Interleaved samples to RGB; transparency shows white, like the background of a slide.
fn to_rgb(image: &Image, samples: Vec<u8>) -> Vec<u8> {
    if image.colour == Colour::Rgb && image.samples == 3 {
        return samples;
    }
    let mut rgb = Vec::with_capacity(samples.len() / image.samples * 3);
    for pixel in samples.chunks_exact(image.samples) {
        let mut colour = match image.colour {
            Colour::Grey => [pixel[0]; 3],
            Colour::InvertedGrey => [255 - pixel[0]; 3],
            Colour::Rgb | Colour::YCbCr => [pixel[0], pixel[1], pixel[2]],
        };
        if image.alpha != Alpha::None {
            let alpha = u32::from(pixel[image.samples - 1]);
            let premultiplied = image.alpha == Alpha::Associated;
            for value in &mut colour {
                let own = u32::from(*value) * if premultiplied { 255 } else { alpha };
                *value = ((own + 255 * (255 - alpha) + 127) / 255).min(255) as u8;
            }
        }
        rgb.extend_from_slice(&colour);
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packbits_follows_the_example_of_the_specification() {
        // TIFF 6.0, section 9.
        let packed = [
            0xFE, 0xAA, 0x02, 0x80, 0x00, 0x2A, 0xFD, 0xAA, 0x03, 0x80, 0x00, 0x2A, 0x22, 0xF7,
            0xAA,
        ];
        let mut out = [0; 24];
        assert_eq!(packbits(&packed, &mut out), 24);
        assert_eq!(out[..9], [0xAA, 0xAA, 0xAA, 0x80, 0x00, 0x2A, 0xAA, 0xAA, 0xAA]);
        assert_eq!(packbits(&packed[..5], &mut out), 5);
    }

    #[test]
    fn unread_compressions_are_refused_by_name() {
        assert!(Compression::from_tag(33005).unwrap_err().contains("JPEG 2000"));
        assert!(Compression::from_tag(50000).unwrap_err().contains("Zstandard"));
        assert!(Compression::from_tag(4711).unwrap_err().contains("4711"));
    }
}
