//! JPEG streams as slides hold them: whole files, and the abbreviated streams of TIFF chunks.
//!
//! The entropy decoding is zune-jpeg's. What is done here is what a slide reader must decide
//! itself: joining a chunk with the shared tables of its directory, checking the frame's size
//! before pixels are allocated, and whether the three components are YCbCr or already RGB.
//! Source: ITU-T T.81 annex B (markers), TIFF Technical Note 2 (JPEG in TIFF).

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::cache::Pixels;

/// What the container says about the colours of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Declared {
    /// TIFF photometric interpretation RGB.
    Rgb,
    /// TIFF photometric interpretation YCbCr.
    YCbCr,
    /// Nothing: the stream's own markers decide (JFIF, Adobe, component names).
    Nothing,
}

/// What the markers before the first scan say.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Header {
    /// Frame width in pixels.
    pub(super) width: usize,
    /// Frame height in pixels.
    pub(super) height: usize,
    /// Identifier and sampling factors (horizontal, vertical) of every component.
    pub(super) components: Vec<(u8, u8, u8)>,
    /// Bits per component.
    pub(super) precision: u8,
    /// Whether the frame is progressive.
    pub(super) progressive: bool,
    /// Whether a JFIF marker is present.
    pub(super) jfif: bool,
    /// The colour transform of the Adobe marker: 0 none, 1 YCbCr, 2 YCCK.
    pub(super) adobe: Option<u8>,
}

/// The segments of a stream that the decoder needs, up to and including the scan data.
struct Segments {
    header: Header,
    /// Stream with start-of-image, tables, frame and scans, without application segments.
    stream: Vec<u8>,
}

/// Walks the marker segments of `bytes`, appending those that matter to `into`. Returns the
/// position of the first scan, or None where the stream ends before one (a tables-only stream).
fn walk(bytes: &[u8], into: &mut Segments) -> Result<Option<usize>, String> {
    if bytes.get(..2) != Some(&[0xFF, 0xD8]) {
        return Err("the JPEG data do not begin with a start-of-image marker".into());
    }
    let cut = || "the JPEG data end within the headers".to_owned();
    let mut at = 2;
    loop {
        // Fill bytes (0xFF) may precede a marker; anything else between segments is damage.
        let Some(&first) = bytes.get(at) else { return Ok(None) };
        if first != 0xFF {
            return Err(format!("unexpected byte {first:#04x} at {at} of the JPEG headers"));
        }
        let Some(&marker) = bytes.get(at + 1) else { return Ok(None) };
        match marker {
            0xFF => {
                at += 1;
                continue;
            }
            0xD9 => return Ok(None),
            0xD8 | 0x01 | 0xD0..=0xD7 => {
                at += 2;
                continue;
            }
            0xDA => return Ok(Some(at)),
            _ => {}
        }
        let length = bytes.get(at + 2..at + 4).ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let end = at + 2 + length;
        let body = bytes.get(at + 4..end).ok_or_else(cut)?;
        match marker {
            0xE0 => into.header.jfif |= body.starts_with(b"JFIF\0"),
            0xEE if body.starts_with(b"Adobe") && body.len() >= 12 => {
                into.header.adobe = Some(body[11]);
            }
            // Application data and comments carry nothing the pixels need.
            0xE1..=0xEF | 0xFE => {}
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                frame(marker, body, &mut into.header)?;
                into.stream.extend_from_slice(&bytes[at..end]);
            }
            _ => into.stream.extend_from_slice(&bytes[at..end]),
        }
        at = end;
    }
}

/// Whether a whole file's scans, the first of which begins at `scan`, are followed by the
/// end-of-image marker. In entropy-coded data a 0xFF is always followed by 0 or a restart marker.
fn has_end(data: &[u8], scan: usize) -> bool {
    let mut at = scan;
    while let Some(found) = data.get(at..).and_then(|rest| rest.iter().position(|b| *b == 0xFF)) {
        at += found;
        match data.get(at + 1) {
            Some(0xD9) => return true,
            // More fill bytes.
            Some(0xFF) => at += 1,
            Some(0x00 | 0x01 | 0xD0..=0xD8) => at += 2,
            // Tables and headers of a further scan.
            Some(_) => match data.get(at + 2..at + 4) {
                Some(length) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
            None => return false,
        }
    }
    false
}

/// Refuses a whole file that ends before its image does; decoders would not notice a missing end.
pub(super) fn check_whole(data: &[u8]) -> Result<(), String> {
    let mut segments = Segments { header: Header::default(), stream: Vec::new() };
    match walk(data, &mut segments)? {
        Some(scan) if has_end(data, scan) => Ok(()),
        _ => Err("the JPEG data have no end marker: the file is truncated; copy or download it \
                  again"
            .into()),
    }
}

/// Reads a start-of-frame segment.
fn frame(marker: u8, body: &[u8], header: &mut Header) -> Result<(), String> {
    if !matches!(marker, 0xC0..=0xC2) {
        return Err(format!(
            "JPEG coding process {} (lossless, hierarchical or arithmetic) is not read; convert \
             the image to baseline JPEG",
            marker - 0xC0
        ));
    }
    let short = || "the JPEG frame header is cut off".to_owned();
    let fixed = body.get(..6).ok_or_else(short)?;
    header.precision = fixed[0];
    header.height = usize::from(u16::from_be_bytes([fixed[1], fixed[2]]));
    header.width = usize::from(u16::from_be_bytes([fixed[3], fixed[4]]));
    header.progressive = marker == 0xC2;
    let components = body.get(6..6 + 3 * usize::from(fixed[5])).ok_or_else(short)?;
    header.components = components.chunks_exact(3).map(|c| (c[0], c[1] >> 4, c[1] & 15)).collect();
    Ok(())
}

/// Joins `data` with the shared `tables` of its directory into one stream to decode.
fn join(tables: Option<&[u8]>, data: &[u8]) -> Result<Segments, String> {
    let mut joined = Segments {
        header: Header::default(),
        stream: Vec::with_capacity(data.len() + tables.map_or(0, <[u8]>::len) + 2),
    };
    joined.stream.extend_from_slice(&[0xFF, 0xD8]);
    if let Some(tables) = tables
        && walk(tables, &mut joined)
            .map_err(|problem| format!("shared tables: {problem}"))?
            .is_some()
    {
        return Err("the shared JPEG tables contain image data".into());
    }
    let scan = walk(data, &mut joined)?.ok_or("the JPEG data hold no image")?;
    joined.stream.extend_from_slice(&data[scan..]);
    let header = &joined.header;
    if header.width == 0 || header.height == 0 {
        return Err("the JPEG frame states no width or height".into());
    }
    if header.precision != 8 {
        return Err(format!(
            "{}-bit JPEG is not read; convert the image to 8 bits per channel",
            header.precision
        ));
    }
    if !matches!(header.components.len(), 1 | 3) {
        return Err(format!(
            "JPEG with {} colour components (CMYK) is not read; convert the image to RGB",
            header.components.len()
        ));
    }
    Ok(joined)
}

impl Header {
    /// Whether the three components of the stream are YCbCr and must be converted.
    ///
    /// In a TIFF the directory decides, as in libtiff, except where an RGB declaration cannot
    /// be true: an Adobe marker that names YCbCr, a JFIF marker (always YCbCr), or colour
    /// components that are stored at a lower resolution than the first.
    fn is_ycbcr(&self, declared: Declared) -> bool {
        let named_rgb = self.components.iter().map(|c| c.0).eq(*b"RGB");
        let subsampled =
            self.components.windows(2).any(|pair| (pair[0].1, pair[0].2) != (pair[1].1, pair[1].2));
        match declared {
            Declared::YCbCr => !named_rgb,
            Declared::Rgb => {
                !named_rgb && (self.adobe.is_some_and(|t| t != 0) || self.jfif || subsampled)
            }
            Declared::Nothing => {
                subsampled || self.jfif || (!named_rgb && self.adobe.is_none_or(|t| t != 0))
            }
        }
    }
}

/// The header of a whole JPEG file or chunk, without decoding pixels.
pub(super) fn header(data: &[u8]) -> Result<Header, String> {
    Ok(join(None, data)?.header)
}

/// Decodes a stream to RGB. `limit` is the largest frame (width, height) that is believed.
pub(super) fn decode(
    data: &[u8],
    tables: Option<&[u8]>,
    declared: Declared,
    limit: (usize, usize),
) -> Result<Pixels, String> {
    let Segments { header, stream } = join(tables, data)?;
    let (width, height) = (header.width, header.height);
    if width > limit.0 || height > limit.1 {
        return Err(format!(
            "the JPEG frame is {width} x {height} px where at most {} x {} px belong",
            limit.0, limit.1
        ));
    }
    let raw = header.components.len() == 3 && !header.is_ycbcr(declared);
    let named_rgb = header.components.iter().map(|c| c.0).eq(*b"RGB");
    // The decoder takes three components for YCbCr unless they are named R, G, B; asking for
    // the colour space it takes them for leaves the values as they are.
    let out = if raw && !named_rgb { ColorSpace::YCbCr } else { ColorSpace::RGB };
    let options = DecoderOptions::new_fast()
        .set_max_width(width)
        .set_max_height(height)
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(out);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(stream.as_slice()), options);
    let mut rgb = decoder.decode().map_err(|error| format!("damaged JPEG data ({error:?})"))?;
    if rgb.len() != 3 * width * height {
        return Err("damaged JPEG data (unexpected amount of pixels)".into());
    }
    if named_rgb && !raw && header.components.len() == 3 {
        convert_ycbcr(&mut rgb);
    }
    Ok(Pixels { width, height, rgb })
}

/// Full-range YCbCr of ITU-R BT.601 to RGB in place (JFIF 1.02).
fn convert_ycbcr(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(3) {
        let [y, cb, cr] = [pixel[0], pixel[1], pixel[2]].map(f32::from);
        let (cb, cr) = (cb - 128.0, cr - 128.0);
        pixel[0] = (y + 1.402 * cr).round() as u8;
        pixel[1] = (y - 0.344_136 * cb - 0.714_136 * cr).round() as u8;
        pixel[2] = (y + 1.772 * cb).round() as u8;
    }
}
