//! A small picture of a whole slide.

use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images};
use image::RgbImage;

use super::Slide;
use crate::{Error, Result};

/// Source bytes that one thread holds at a time.
const BAND_BYTES: u64 = 32 << 20;

/// The whole slide averaged down to at most `max_px` pixels on its longer side (never enlarged),
/// and the level-0 pixels per pixel of the picture.
///
/// Reads the coarsest level that is fine enough, in horizontal bands on all cores, so memory
/// stays small on a slide that has only its finest level.
pub fn overview(slide: &dyn Slide, max_px: u32) -> Result<(RgbImage, f64)> {
    let base = &slide.info().levels[0];
    let longer = f64::from(base.width.max(base.height));
    overview_at(slide, longer / f64::from(max_px.max(1)))
}

/// The whole slide averaged down by `downsample` (level-0 pixels per pixel; values below 1 are
/// taken as 1), and the downsample used. The last column and row may lie partly outside the
/// slide, where it is white.
pub fn overview_at(slide: &dyn Slide, downsample: f64) -> Result<(RgbImage, f64)> {
    let base = &slide.info().levels[0];
    let downsample = if downsample > 1.0 { downsample } else { 1.0 };
    // A hair less than a whole pixel must not add a column.
    let side = |length: u32| ((f64::from(length) / downsample - 1e-6).ceil() as u32).max(1);
    let (width, height) = (side(base.width), side(base.height));
    let level = best_level(slide, downsample);
    let step = downsample / slide.info().levels[level].downsample;
    let mut picture = RgbImage::new(width, height);

    let source_row = f64::from(width) * step * step * 3.0;
    let rows = ((BAND_BYTES as f64 / source_row) as usize).clamp(1, height as usize);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rows = rows.min((height as usize).div_ceil(threads));
    let bands: std::sync::Mutex<_> = std::sync::Mutex::new(
        picture.chunks_mut(rows * width as usize * 3).enumerate().collect::<Vec<_>>().into_iter(),
    );
    let work = || -> Result<()> {
        loop {
            let next = bands.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((index, band)) = next else { return Ok(()) };
            let height = band.len() / (3 * width as usize);
            let top = (index * rows) as f64 * step;
            shrink(slide, level, top, step, width, height as u32, band)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok((picture, downsample))
}

/// The coarsest level that is at least as fine as `downsample` level-0 pixels per pixel, within
/// one percent (a level of exactly 4 serves a request for 3.97).
pub(crate) fn best_level(slide: &dyn Slide, downsample: f64) -> usize {
    let levels = &slide.info().levels;
    (0..levels.len()).rev().find(|&i| levels[i].downsample <= downsample * 1.01).unwrap_or(0)
}

/// Averages one band of the picture from rows of a level, starting at row `top` of the level.
fn shrink(
    slide: &dyn Slide,
    level: usize,
    top: f64,
    step: f64,
    width: u32,
    height: u32,
    band: &mut [u8],
) -> Result<()> {
    let first = top.floor() as i64;
    let rows = ((top + f64::from(height) * step).ceil() as i64 - first).max(1) as u32;
    let columns = ((f64::from(width) * step).ceil() as u32).max(1);
    let region = slide.read_region(level, 0, first, columns, rows)?;
    let crop = [0.0, top - first as f64, f64::from(width) * step, f64::from(height) * step];
    resample(region, crop, FilterType::Box, width, height, band)
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
