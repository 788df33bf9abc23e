//! The slide before it is scanned: a coarse picture for tissue and one for people.

use std::collections::VecDeque;

use diffbulk_link::limits::PIXELS;
use diffbulk_link::message::{SURVEY, Shot, Slide, Survey, TileId};
use image::RgbImage;

use crate::predict::OVERVIEW_PX;
use crate::serve::field::decode;
use crate::serve::pixels::Picture;
use crate::slide::{overview_downsample, overview_size};
use crate::tissue::mask_downsample;

/// Most bytes of a survey's pictures; a slide that needs more has a wrong scale.
const MOST_BYTES: u64 = 256 << 20;

/// A slide under the camera.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Geometry {
    /// File name or the like.
    pub(in crate::serve) name: String,
    /// Level-0 px.
    pub(in crate::serve) width: u32,
    /// Level-0 px.
    pub(in crate::serve) height: u32,
    /// um per level-0 px.
    pub(in crate::serve) um_per_px: f64,
}

impl Geometry {
    /// From what a camera says.
    ///
    /// # Errors
    /// When it cannot be.
    pub(in crate::serve) fn new(slide: &Slide) -> Result<Self, String> {
        let um_per_px = slide.scale.get();
        let pixels = |um: f64| {
            let pixels = (um / um_per_px).round();
            (pixels >= 1.0 && pixels < f64::from(u32::MAX)).then_some(pixels as u32)
        };
        match (pixels(slide.width.get()), pixels(slide.height.get())) {
            (Some(width), Some(height)) if um_per_px > 0.0 => {
                Ok(Self { name: slide.name.to_string(), width, height, um_per_px })
            }
            _ => Err(format!(
                "slide `{}` of {} x {} um at {um_per_px} um/px cannot be",
                slide.name,
                slide.width.get(),
                slide.height.get()
            )),
        }
    }
}

/// Both pictures, as they come in.
#[derive(Debug)]
pub(in crate::serve) struct Surveying {
    pictures: [Growing; 2],
    /// What is still to be asked for.
    asked: VecDeque<(usize, Survey)>,
}

#[derive(Debug)]
struct Growing {
    downsample: f64,
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

/// What a survey saw.
#[derive(Debug)]
pub(in crate::serve) struct Surveyed {
    /// For the tissue mask, and its downsample.
    pub(in crate::serve) mask: (RgbImage, f64),
    /// For people, and its downsample.
    pub(in crate::serve) overview: (RgbImage, f64),
}

impl Surveying {
    /// What has to be asked for.
    ///
    /// # Errors
    /// When the slide is too large to be one.
    pub(in crate::serve) fn new(slide: &Geometry) -> Result<Self, String> {
        let (width, height) = (slide.width, slide.height);
        let downsamples = [
            mask_downsample(width, height, slide.um_per_px),
            overview_downsample(width, height, OVERVIEW_PX),
        ];
        let pictures = downsamples.map(|downsample| {
            let (width, height) = overview_size(width, height, downsample);
            Growing { downsample, width, height, rgb: Vec::new() }
        });
        let bytes: u64 =
            pictures.iter().map(|p| 3 * u64::from(p.width) * u64::from(p.height)).sum();
        if bytes > MOST_BYTES || pictures.iter().any(|p| p.width.max(p.height) > u16::MAX.into()) {
            return Err(format!("slide `{}` is too large; check its um/px", slide.name));
        }
        let mut asked = VecDeque::new();
        for (which, picture) in pictures.iter().enumerate() {
            let rows_each = (PIXELS / (3 * picture.width)).max(1);
            let mut row = 0;
            while row < picture.height {
                let rows = rows_each.min(picture.height - row);
                let part = TileId(asked.len() as u16);
                let downsample = picture.downsample;
                let survey = Survey { part, downsample, row: row as u16, rows: rows as u16 };
                asked.push_back((which, survey));
                row += rows;
            }
        }
        Ok(Self { pictures, asked })
    }

    /// What the camera has to send next.
    pub(in crate::serve) fn next(&self) -> Option<Survey> {
        self.asked.front().map(|(_, survey)| *survey)
    }

    /// Takes what the camera sent; true when the survey is whole.
    ///
    /// # Errors
    /// When it is not what was asked for.
    pub(in crate::serve) fn push(&mut self, picture: Picture) -> Result<bool, String> {
        let Some((which, survey)) = self.asked.front() else { return Ok(true) };
        if picture.header.shot != (Shot { tile: survey.part, attempt: SURVEY }) {
            return Ok(false);
        }
        let growing = &mut self.pictures[*which];
        let (width, height) = (picture.header.width, picture.header.height);
        if u32::from(width) != growing.width || height != survey.rows {
            return Err(format!(
                "a survey of {width} x {height} px came where {} x {} were asked for",
                growing.width, survey.rows
            ));
        }
        let rgb = decode(picture.header.encoding, width.into(), height.into(), picture.bytes)?;
        growing.rgb.extend_from_slice(&rgb);
        self.asked.pop_front();
        Ok(self.asked.is_empty())
    }

    /// The pictures of a whole survey.
    pub(in crate::serve) fn finish(self) -> Option<Surveyed> {
        let [mask, overview] = self.pictures.map(|growing| {
            let Growing { downsample, width, height, rgb } = growing;
            RgbImage::from_raw(width, height, rgb).map(|picture| (picture, downsample))
        });
        Some(Surveyed { mask: mask?, overview: overview? })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use diffbulk_link::heapless::String as Text;
    use diffbulk_link::message::{Encoding, Pixels};
    use diffbulk_link::units::{Um, UmPerPx};

    use super::*;

    fn slide(width: f64, height: f64, scale: u32) -> Slide {
        Slide {
            name: Text::try_from("s").unwrap(),
            width: Um::new(width).unwrap(),
            height: Um::new(height).unwrap(),
            scale: UmPerPx(scale),
        }
    }

    #[test]
    fn sizes_come_back_exactly_and_nonsense_is_refused() {
        let geometry = Geometry::new(&slide(2220.0 * 0.499, 2967.0 * 0.499, 499_000)).unwrap();
        assert_eq!((geometry.width, geometry.height, geometry.um_per_px), (2220, 2967, 0.499));
        assert!(Geometry::new(&slide(1.0, 1.0, 0)).is_err());
        assert!(Geometry::new(&slide(0.0, 1.0, 499_000)).is_err());
        assert!(Geometry::new(&slide(-5.0, 1.0, 499_000)).is_err());
        let huge = Geometry { name: "x".into(), width: 1 << 31, height: 1 << 31, um_per_px: 1e-3 };
        let _ = Surveying::new(&huge);
    }

    #[test]
    fn strips_make_two_pictures() {
        let geometry = Geometry { name: "s".into(), width: 4000, height: 3000, um_per_px: 0.5 };
        let mut surveying = Surveying::new(&geometry).unwrap();
        let mut parts = 0;
        while let Some(survey) = surveying.next() {
            let (width, _) = overview_size(4000, 3000, survey.downsample);
            let bytes = 3 * width * u32::from(survey.rows);
            assert!(bytes <= PIXELS);
            let header = Pixels {
                shot: Shot { tile: survey.part, attempt: SURVEY },
                encoding: Encoding::Rgb8,
                x: Um(0),
                y: Um(0),
                width: width as u16,
                height: survey.rows,
                scale: UmPerPx(1),
                bytes,
            };
            let bytes = vec![parts as u8; bytes as usize];
            let whole = surveying.push(Picture { header, bytes, arrived: Instant::now() }).unwrap();
            parts += 1;
            assert_eq!(whole, surveying.next().is_none());
        }
        assert_eq!(parts, 3);
        let surveyed = surveying.finish().unwrap();
        assert_eq!(surveyed.mask.0.dimensions(), (250, 188));
        assert_eq!(surveyed.overview.0.dimensions(), (1600, 1200));
        assert_eq!(surveyed.overview.0.get_pixel(0, 1199).0, [2; 3]);
    }
}
