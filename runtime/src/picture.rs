//! A small canvas for pictures with text: heat maps here, plots in the trainer.
//!
//! The font travels inside the program (see `assets/`), so pictures look the same on a machine
//! without fonts. Positions are pixels, x right, y down.

use std::sync::OnceLock;

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage, imageops};

use crate::output::atomic;
use crate::{Error, Result};

/// DejaVu Sans, Latin and Greek: the font of every picture. Licence in
/// `assets/DejaVuSans-LICENSE.txt`.
pub const FONT: &[u8] = include_bytes!("../assets/DejaVuSans-subset.ttf");

/// Near-black for text.
pub const INK: Rgb<u8> = Rgb([32, 33, 36]);

/// Grey for what explains.
pub const QUIET: Rgb<u8> = Rgb([95, 99, 104]);

/// White paper.
pub const PAPER: Rgb<u8> = Rgb([255, 255, 255]);

/// Which part of a text stands at the given position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Its start.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// A perceptually uniform colour map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColorMap {
    /// Dark blue over green to yellow.
    Viridis,
    /// Black over purple and orange to pale yellow.
    Inferno,
}

/// Every eighth entry of the tables that S. van der Walt and N. Smith published under CC0; linear
/// interpolation between them stays within 2/255 of the whole tables.
const VIRIDIS: [u32; 33] = [
    0x440154, 0x470d60, 0x48186a, 0x482374, 0x472d7b, 0x453681, 0x424086, 0x3f4989, 0x3b528b,
    0x375a8d, 0x33638d, 0x2f6a8e, 0x2c728e, 0x297a8e, 0x26818e, 0x23898e, 0x21908c, 0x1f988b,
    0x1f9f88, 0x21a685, 0x28ae80, 0x31b57b, 0x3ebc74, 0x4cc26c, 0x5dc963, 0x6ece58, 0x82d34c,
    0x96d83f, 0xabdc32, 0xc0df24, 0xd5e21a, 0xeae51a, 0xfde725,
];

const INFERNO: [u32; 33] = [
    0x000004, 0x040312, 0x0b0724, 0x150b37, 0x210c4a, 0x2e0a5a, 0x3c0965, 0x4a0c6b, 0x57106d,
    0x63146e, 0x70196e, 0x7d1e6d, 0x89226a, 0x962766, 0xa32b61, 0xaf315c, 0xbb3755, 0xc63e4d,
    0xd14644, 0xdb4f3b, 0xe35932, 0xeb6528, 0xf1711e, 0xf67f14, 0xf98d0a, 0xfb9c06, 0xfcab0f,
    0xfbba1f, 0xf9ca32, 0xf5d949, 0xf2e865, 0xf3f586, 0xfcffa4,
];

impl ColorMap {
    /// The colour of `t`, 0 to 1; what lies outside takes the nearest end, NaN the lower one.
    pub fn color(self, t: f64) -> Rgb<u8> {
        let table = match self {
            Self::Viridis => &VIRIDIS,
            Self::Inferno => &INFERNO,
        };
        let position = t.clamp(0.0, 1.0).max(0.0) * (table.len() - 1) as f64;
        let below = (position as usize).min(table.len() - 2);
        let fraction = position - below as f64;
        let channel = |shift: u32| {
            let [a, b] = [table[below], table[below + 1]].map(|c| f64::from(c >> shift & 0xff));
            (a + (b - a) * fraction).round() as u8
        };
        Rgb([channel(16), channel(8), channel(0)])
    }
}

/// A canvas.
#[derive(Debug, Clone)]
pub struct Picture {
    pixels: RgbImage,
}

impl Picture {
    /// An empty canvas.
    pub fn new(width: u32, height: u32, background: Rgb<u8>) -> Self {
        Self { pixels: RgbImage::from_pixel(width, height, background) }
    }

    /// The pixels so far.
    pub fn pixels(&self) -> &RgbImage {
        &self.pixels
    }

    /// Copies `image` with its top-left corner at (`x`, `y`); what lies outside is cut off.
    pub fn paste(&mut self, image: &RgbImage, x: i64, y: i64) {
        imageops::replace(&mut self.pixels, image, x, y);
    }

    /// Fills the rectangle from (`x0`, `y0`) up to but not including (`x1`, `y1`); `alpha` 1 covers.
    pub fn rectangle(&mut self, [x0, y0, x1, y1]: [i64; 4], color: Rgb<u8>, alpha: f32) {
        let (width, height) = (i64::from(self.pixels.width()), i64::from(self.pixels.height()));
        for y in y0.max(0)..y1.min(height) {
            for x in x0.max(0)..x1.min(width) {
                blend(self.pixels.get_pixel_mut(x as u32, y as u32), color, alpha);
            }
        }
    }

    /// Draws the outline just inside the rectangle.
    pub fn frame(&mut self, [x0, y0, x1, y1]: [i64; 4], color: Rgb<u8>, alpha: f32) {
        self.rectangle([x0, y0, x1, y0 + 1], color, alpha);
        self.rectangle([x0, y1 - 1, x1, y1], color, alpha);
        self.rectangle([x0, y0 + 1, x0 + 1, y1 - 1], color, alpha);
        self.rectangle([x1 - 1, y0 + 1, x1, y1 - 1], color, alpha);
    }

    /// Writes `text` with its baseline at `y`; `size` is the em in pixels.
    pub fn text(&mut self, x: f32, y: f32, size: f32, color: Rgb<u8>, anchor: Anchor, text: &str) {
        let x = x - offset(anchor, text_width(size, text));
        draw_glyphs(size, text, |dx, dy, coverage| {
            self.dot((x + dx).round() as i64, (y + dy).round() as i64, color, coverage);
        });
    }

    /// Writes `text` turned a quarter counter-clockwise (reading upwards) with its baseline at
    /// `x`; the anchor is along the text, so [`Anchor::Start`] puts its start at `y`.
    pub fn text_upwards(
        &mut self,
        x: f32,
        y: f32,
        size: f32,
        color: Rgb<u8>,
        anchor: Anchor,
        text: &str,
    ) {
        let y = y + offset(anchor, text_width(size, text));
        draw_glyphs(size, text, |dx, dy, coverage| {
            self.dot((x + dy).round() as i64, (y - dx).round() as i64, color, coverage);
        });
    }

    /// Writes the picture as PNG; it appears at `path` only when whole.
    pub fn save_png(&self, path: &std::path::Path) -> Result<()> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        self.pixels
            .write_to(&mut bytes, image::ImageFormat::Png)
            .map_err(|e| Error::output(path, format!("cannot be encoded as PNG: {e}")))?;
        atomic::write(path, bytes.get_ref())
    }

    fn dot(&mut self, x: i64, y: i64, color: Rgb<u8>, alpha: f32) {
        if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
            && let Some(pixel) = self.pixels.get_pixel_mut_checked(x, y)
        {
            blend(pixel, color, alpha);
        }
    }
}

/// Width in pixels of `text` written with an em of `size` pixels.
pub fn text_width(size: f32, text: &str) -> f32 {
    let scaled = font().as_scaled(scale(size));
    let mut width = 0.0;
    let mut previous = None;
    for c in text.chars() {
        let glyph = scaled.glyph_id(c);
        width += previous.map_or(0.0, |p| scaled.kern(p, glyph)) + scaled.h_advance(glyph);
        previous = Some(glyph);
    }
    width
}

/// The longest beginning of `text` that fits `width` pixels, with an ellipsis where it was cut.
pub fn fit_text(size: f32, text: &str, width: f32) -> String {
    if text_width(size, text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        if text_width(size, &format!("{kept}…")) > width {
            kept.pop();
            break;
        }
    }
    kept.push('…');
    kept
}

fn offset(anchor: Anchor, width: f32) -> f32 {
    match anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => width / 2.0,
        Anchor::End => width,
    }
}

/// Calls `dot` with offsets from the start of the baseline and the coverage of each pixel.
fn draw_glyphs(size: f32, text: &str, mut dot: impl FnMut(f32, f32, f32)) {
    let font = font();
    let scaled = font.as_scaled(scale(size));
    let mut x = 0.0;
    let mut previous = None;
    for c in text.chars() {
        let id = scaled.glyph_id(c);
        x += previous.map_or(0.0, |p| scaled.kern(p, id));
        previous = Some(id);
        let glyph = Glyph { id, scale: scale(size), position: point(x, 0.0) };
        if let Some(outline) = font.outline_glyph(glyph) {
            let bounds = outline.px_bounds();
            outline.draw(|dx, dy, coverage| {
                dot(bounds.min.x + dx as f32, bounds.min.y + dy as f32, coverage.min(1.0));
            });
        }
        x += scaled.h_advance(id);
    }
}

/// ab_glyph scales by the font's height; sizes here are ems, as everywhere else.
fn scale(size: f32) -> PxScale {
    let font = font();
    PxScale::from(size * font.height_unscaled() / font.units_per_em().unwrap_or(1000.0))
}

fn font() -> &'static FontRef<'static> {
    static PARSED: OnceLock<FontRef<'static>> = OnceLock::new();
    PARSED.get_or_init(|| FontRef::try_from_slice(FONT).expect("the font in assets/ is a font"))
}

fn blend(pixel: &mut Rgb<u8>, color: Rgb<u8>, alpha: f32) {
    for (below, above) in pixel.0.iter_mut().zip(color.0) {
        let mixed = f32::from(*below) + (f32::from(above) - f32::from(*below)) * alpha;
        *below = mixed.round().clamp(0.0, 255.0) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_has_every_sign_that_is_written() {
        for c in "ABCxyz0189+-.,:()/_%µ…≤≥−×·–αβγ".chars() {
            assert_ne!(font().glyph_id(c).0, 0, "{c}");
        }
        assert!(text_width(20.0, "ERBB2") > text_width(10.0, "ERBB2"));
        let cut = fit_text(12.0, "a very long name of a slide", 60.0);
        assert!(cut.ends_with('…') && text_width(12.0, &cut) <= 60.0, "{cut}");
        assert_eq!(fit_text(12.0, "short", 600.0), "short");
    }

    #[test]
    fn text_stays_where_it_is_put() {
        let mut picture = Picture::new(200, 60, PAPER);
        picture.text(100.0, 40.0, 24.0, INK, Anchor::Middle, "ERBB2");
        let dark = |p: &Picture| {
            let inked = p.pixels().enumerate_pixels().filter(|(.., c)| c.0[0] < 128);
            inked.map(|(x, y, _)| (x, y)).collect::<Vec<_>>()
        };
        let pixels = dark(&picture);
        let width = text_width(24.0, "ERBB2");
        assert!(pixels.len() > 100);
        for (x, y) in pixels {
            assert!((x as f32 - 100.0).abs() <= width / 2.0 + 1.0, "{x}");
            assert!((20..=41).contains(&y), "{y}");
        }
        // Upwards text is the same ink, turned.
        let mut turned = Picture::new(60, 200, PAPER);
        turned.text_upwards(40.0, 100.0, 24.0, INK, Anchor::Middle, "ERBB2");
        for (x, y) in dark(&turned) {
            assert!((20..=41).contains(&x), "{x}");
            assert!((f64::from(y) - 100.0).abs() <= f64::from(width) / 2.0 + 1.0, "{y}");
        }
        // Nothing outside the canvas is touched, and nothing panics.
        Picture::new(5, 5, PAPER).text(-30.0, 90.0, 24.0, INK, Anchor::Start, "ERBB2");
        Picture::new(5, 5, PAPER).rectangle([-9, -9, 99, 99], INK, 0.5);
        Picture::new(0, 0, PAPER).frame([0, 0, 1, 1], INK, 1.0);
    }

    #[test]
    fn colour_maps_run_from_dark_to_light() {
        for map in [ColorMap::Viridis, ColorMap::Inferno] {
            let light = |t: f64| map.color(t).0.iter().map(|c| u32::from(*c)).sum::<u32>();
            assert!(light(0.0) < light(0.5) && light(0.5) < light(1.0));
            assert_eq!(map.color(-1.0), map.color(0.0));
            assert_eq!(map.color(2.0), map.color(1.0));
            assert_eq!(map.color(f64::NAN), map.color(0.0));
        }
        assert_eq!(ColorMap::Viridis.color(1.0), Rgb([0xfd, 0xe7, 0x25]));
        assert_eq!(ColorMap::Inferno.color(0.0), Rgb([0x00, 0x00, 0x04]));
    }

    #[test]
    fn png_appears_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.png");
        let mut picture = Picture::new(8, 8, PAPER);
        picture.rectangle([2, 2, 4, 4], INK, 1.0);
        picture.save_png(&path).unwrap();
        assert_eq!(&image::open(&path).unwrap().to_rgb8(), picture.pixels());
    }
}
