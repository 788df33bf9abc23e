//! TIFF and BigTIFF slides: Aperio SVS and generic tiled or striped pyramids.
//!
//! The directories are read once when the file is opened; after that every chunk (tile or strip)
//! is one positioned read and one decode, from any thread, through a shared cache. [`directory`]
//! reads the structure, [`pyramid`] picks the levels, [`layout`] the layout of one, [`scale`] the
//! physical scale, [`codec`] the pixels.

mod codec;
mod directory;
mod layout;
mod pyramid;
mod scale;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use image::RgbImage;

use self::directory::{Directory, TiffFile, tag};
use self::layout::Image;
use super::cache::{Cache, Pixels};
use super::canvas::Canvas;
use super::source::Source;
use super::{Damage, Level, Slide, SlideInfo, limits};
use crate::{Error, Result};

/// An open TIFF slide.
#[derive(Debug)]
pub(super) struct TiffSlide {
    path: PathBuf,
    file: TiffFile,
    info: SlideInfo,
    images: Vec<Image>,
    cache: Cache,
}

impl TiffSlide {
    /// Opens `path`, whose content has been recognised as TIFF.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let source = Source::open(path).map_err(Error::io(path))?;
        Self::from_source(path, source).map_err(|problem| Error::slide(path, problem))
    }

    fn from_source(path: &Path, source: Source) -> std::result::Result<Self, String> {
        let file = TiffFile::new(source)?;
        let directories = file.directories()?;
        let found = pyramid::find(&file, &directories)?;
        let base = &directories[found[0].0.directory];
        refuse_other_vendors(&file, base)?;
        let facts = scale::facts(&file, base)?;
        let mut properties = facts.properties;
        let (mut levels, mut images): (Vec<Level>, Vec<Image>) = Default::default();
        for (candidate, downsample) in &found {
            let (width, height) = (candidate.width, candidate.height);
            let image = match Image::new(&file, &directories[candidate.directory]) {
                Ok(image) => image,
                // Without the finest level there is no slide; a coarser one can be done without,
                // unless the file is cut off.
                Err(problem) if levels.is_empty() || problem.contains("truncated") => {
                    return Err(format!("level {} ({width} x {height}): {problem}", levels.len()));
                }
                Err(problem) => {
                    properties.push((format!("skipped level {width} x {height}"), problem));
                    continue;
                }
            };
            levels.push(Level {
                width,
                height,
                downsample: *downsample,
                codec: image.compression.name().into(),
                chunk: (image.chunk_width, image.chunk_height),
            });
            images.push(image);
        }
        // Labels, macros and what else is not read tells, too, whether the file is whole.
        for (number, directory) in directories.iter().enumerate() {
            file.check_extents(directory).map_err(|problem| {
                format!("image directory {number} at offset {}: {problem}", directory.offset)
            })?;
        }
        let format = match (facts.vendor.as_deref(), file.big) {
            (Some("Aperio"), _) => "Aperio SVS",
            (_, true) => "BigTIFF",
            (_, false) => "TIFF",
        };
        let info = SlideInfo {
            format: format.into(),
            vendor: facts.vendor,
            um_per_px: facts.um_per_px,
            objective: facts.objective,
            levels,
            properties,
        };
        let cache = Cache::new(limits::CACHE_BYTES);
        Ok(Self { path: path.to_owned(), file, info, images, cache })
    }

    /// Decodes one chunk, naming it and its place in the file where that fails.
    fn decode(&self, level: usize, index: usize) -> std::result::Result<Pixels, Failure> {
        let image = &self.images[level];
        let (offset, count) = (image.offsets[index], image.counts[index]);
        let named = |problem: String| {
            format!(
                "{} of level {level} ({count} bytes at offset {offset}): {problem}",
                image.chunk_name(index)
            )
        };
        // The chunk lies inside the file, as was checked when it was opened: if it cannot be read
        // now, so can nothing else.
        let stored =
            self.file.source().read(offset, count).map_err(|e| Failure::Unreadable(named(e)))?;
        codec::decode(image, index, &stored).map_err(|e| Failure::Damaged(named(e)))
    }

    /// Reads a region; chunks that cannot be decoded are handed to `damaged`, which may go on.
    fn region(
        &self,
        level: usize,
        corner: (i64, i64),
        size: (u32, u32),
        mut damaged: impl FnMut(Damage) -> Result<()>,
    ) -> Result<RgbImage> {
        let mut canvas = Canvas::new(&self.path, &self.info, level, corner, size)?;
        let image = &self.images[level];
        let Some(visible) = canvas.visible() else { return Ok(canvas.finish()) };
        let columns = visible.x / image.chunk_width..=(visible.right - 1) / image.chunk_width;
        let rows = visible.y / image.chunk_height..=(visible.bottom - 1) / image.chunk_height;
        for (row, column) in rows.flat_map(|row| columns.clone().map(move |column| (row, column))) {
            let index = row as usize * image.across + column as usize;
            if image.is_blank(index) {
                continue;
            }
            let origin = image.origin(index);
            match self.cache.get((level, index), || self.decode(level, index)) {
                Ok(pixels) => canvas.paste(&pixels, origin),
                Err(Failure::Unreadable(problem)) => {
                    return Err(Error::slide(&self.path, problem));
                }
                Err(Failure::Damaged(problem)) => {
                    let downsample = self.info.levels[level].downsample;
                    let [x, y, width, height] =
                        [origin.0, origin.1, image.chunk_width, image.chunk_height]
                            .map(|length| f64::from(length) * downsample);
                    damaged(Damage { x, y, width, height, problem })?;
                }
            }
        }
        Ok(canvas.finish())
    }
}

/// Why a chunk has no pixels.
#[derive(Debug)]
enum Failure {
    /// The file itself cannot be read.
    Unreadable(String),
    /// The chunk's bytes make no picture.
    Damaged(String),
}

/// Formats that dress as TIFF but need a reader of their own: read as plain TIFF their tiles
/// would be wrong without an error.
fn refuse_other_vendors(file: &TiffFile, base: &Directory) -> std::result::Result<(), String> {
    let text = |tag| file.text(base, tag).map(Option::unwrap_or_default);
    let name = if base.has(tag::NDPI_FORMAT) {
        "Hamamatsu NDPI"
    } else if text(tag::IMAGE_DESCRIPTION)?.contains("<scn") {
        "Leica SCN"
    } else if text(tag::XMP)?.contains("iScan") {
        "Ventana BIF"
    } else {
        return Ok(());
    };
    Err(format!(
        "{name} slides are not read; convert it to a tiled TIFF, for example: vips tiffsave SLIDE \
         OUT.tif --tile --pyramid --compression jpeg --Q 90"
    ))
}

impl Slide for TiffSlide {
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
        self.region(level, (x, y), (width, height), |damage| {
            Err(Error::Damaged { path: self.path.clone(), problem: damage.problem })
        })
    }

    fn read_around_damage(
        &self,
        level: usize,
        x: i64,
        y: i64,
        width: u32,
        height: u32,
    ) -> Result<(RgbImage, Vec<Damage>)> {
        let mut found = Vec::new();
        let region = self.region(level, (x, y), (width, height), |damage| {
            found.push(damage);
            Ok(())
        })?;
        Ok((region, found))
    }
}
