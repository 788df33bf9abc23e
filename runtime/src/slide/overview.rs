//! A small picture of a whole slide.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images};
use image::RgbImage;

use super::{Damage, Level, Slide};
use crate::{Error, Result};

/// One thread holds about this many pixels, squared, of the level at a time.
const BLOCK_PX: f64 = 2048.0;

/// The whole slide averaged down to at most `max_px` pixels on its longer side (never enlarged),
/// and the level-0 pixels per pixel of the picture.
///
/// Reads the coarsest level that is fine enough, in parts on all cores, so memory stays small on a
/// slide that has only its finest level. What is damaged is white.
pub fn overview(slide: &dyn Slide, max_px: u32) -> Result<(RgbImage, f64)> {
    let base = &slide.info().levels[0];
    overview_at(slide, overview_downsample(base.width, base.height, max_px))
}

/// Level-0 pixels per pixel of the [`overview`] of a slide of `width` x `height` level-0 pixels.
pub fn overview_downsample(width: u32, height: u32, max_px: u32) -> f64 {
    (f64::from(width.max(height)) / f64::from(max_px.max(1))).max(1.0)
}

/// Size of the picture that [`overview_at`] makes of a slide of `width` x `height` level-0 pixels.
pub fn overview_size(width: u32, height: u32, downsample: f64) -> (u32, u32) {
    // A hair less than a whole pixel must not add a column.
    let side = |length: u32| ((f64::from(length) / downsample - 1e-6).ceil() as u32).max(1);
    (side(width), side(height))
}

/// The whole slide averaged down by `downsample` (level-0 pixels per pixel; values below 1 are
/// taken as 1), and the downsample used. The last column and row may lie partly outside the
/// slide, where it is white. What is damaged is white, too.
pub fn overview_at(slide: &dyn Slide, downsample: f64) -> Result<(RgbImage, f64)> {
    survey(slide, downsample).map(|survey| (survey.picture, survey.downsample))
}

/// A small picture of a slide and what is missing of it.
pub(crate) struct Survey {
    /// The picture.
    pub(crate) picture: RgbImage,
    /// Level-0 pixels per pixel of the picture.
    pub(crate) downsample: f64,
    /// Parts of the level it was made from that cannot be decoded, each once.
    pub(crate) damage: Vec<Damage>,
}

/// [`overview_at`], with the damage found.
pub(crate) fn survey(slide: &dyn Slide, downsample: f64) -> Result<Survey> {
    let base = &slide.info().levels[0];
    let downsample = if downsample > 1.0 { downsample } else { 1.0 };
    let (width, height) = overview_size(base.width, base.height, downsample);
    let level = best_level(slide, downsample);
    let step = downsample / slide.info().levels[level].downsample;
    let (block_width, block_height) = block(&slide.info().levels[level], step, (width, height));
    let across = width.div_ceil(block_width);
    let blocks = u64::from(across) * u64::from(height.div_ceil(block_height));
    let next = AtomicU64::new(0);
    let picture = Mutex::new((RgbImage::new(width, height), Vec::new()));
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= blocks {
                return Ok(());
            }
            let x = (index % u64::from(across)) as u32 * block_width;
            let y = (index / u64::from(across)) as u32 * block_height;
            let size = (block_width.min(width - x), block_height.min(height - y));
            let (part, damage) = shrink(slide, level, step, (x, y), size)?;
            let mut picture = picture.lock().unwrap_or_else(PoisonError::into_inner);
            image::imageops::replace(&mut picture.0, &part, x.into(), y.into());
            picture.1.extend(damage);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let (picture, mut damage) = picture.into_inner().unwrap_or_else(PoisonError::into_inner);
    damage.sort_by(|a, b| a.y.total_cmp(&b.y).then(a.x.total_cmp(&b.x)));
    damage.dedup();
    Ok(Survey { picture, downsample, damage })
}

/// Size of the parts of the picture that are made one by one: squares where the level is tiled,
/// whole rows where it is stored in rows, so that a chunk is rarely needed by two distant parts.
fn block(level: &Level, step: f64, picture: (u32, u32)) -> (u32, u32) {
    let by_rows = level.chunk.0 >= level.width;
    let columns = if by_rows { f64::from(picture.0) } else { BLOCK_PX / step };
    let rows = BLOCK_PX * BLOCK_PX / (columns * step * step);
    ((columns as u32).clamp(1, picture.0), (rows as u32).clamp(1, picture.1))
}

/// The coarsest level that is at least as fine as `downsample` level-0 pixels per pixel, within
/// one percent (a level of exactly 4 serves a request for 3.97).
pub(crate) fn best_level(slide: &dyn Slide, downsample: f64) -> usize {
    let levels = &slide.info().levels;
    (0..levels.len()).rev().find(|&i| levels[i].downsample <= downsample * 1.01).unwrap_or(0)
}

/// Averages one part of the picture, at `corner` and of `size` in pixels of the picture, each of
/// `step` pixels of the level.
fn shrink(
    slide: &dyn Slide,
    level: usize,
    step: f64,
    corner: (u32, u32),
    size: (u32, u32),
) -> Result<(RgbImage, Vec<Damage>)> {
    let span = |corner: u32, length: u32| {
        let from = f64::from(corner) * step;
        let first = from.floor();
        let end = (f64::from(corner + length) * step).ceil();
        (first as i64, (end - first).max(1.0) as u32, from - first, f64::from(length) * step)
    };
    let (x, width, left, crop_width) = span(corner.0, size.0);
    let (y, height, top, crop_height) = span(corner.1, size.1);
    let (region, damage) = slide.read_around_damage(level, x, y, width, height)?;
    let mut part = RgbImage::new(size.0, size.1);
    let crop = [left, top, crop_width, crop_height];
    resample(region, crop, FilterType::Box, size.0, size.1, &mut part)?;
    Ok((part, damage))
}

/// Resamples the part `crop` (left, top, width, height; fractions of pixels count) of `region`
/// into `out`, `width` x `height` RGB pixels.
pub(crate) fn resample(
    region: RgbImage,
    crop: [f64; 4],
    filter: FilterType,
    width: u32,
    height: u32,
    out: &mut [u8],
) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::Request(format!("resampling to {width} x {height} px failed: {error}"))
    };
    let (source_width, source_height) = region.dimensions();
    let source =
        images::Image::from_vec_u8(source_width, source_height, region.into_raw(), PixelType::U8x3)
            .map_err(|error| failed(&error))?;
    let mut target = images::Image::from_slice_u8(width, height, out, PixelType::U8x3)
        .map_err(|error| failed(&error))?;
    let [left, top, crop_width, crop_height] = crop;
    // Rounding must not push the box past the edge by a fraction of a nanopixel.
    let crop_width = crop_width.min(f64::from(source_width) - left);
    let crop_height = crop_height.min(f64::from(source_height) - top);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(filter))
        .crop(left, top, crop_width, crop_height)
        .use_alpha(false);
    Resizer::new().resize(&source, &mut target, &options).map_err(|error| failed(&error))
}
