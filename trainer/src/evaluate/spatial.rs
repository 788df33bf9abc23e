//! One gene over one section, predicted beside measured.

use std::path::Path;

use diffbulk::picture::{Anchor, ColorMap, INK, PAPER, Picture, QUIET};
use image::RgbImage;
use image::imageops::FilterType;

use super::metrics::pearson;
use crate::{Error, Result};

/// What to draw.
pub struct Section<'a> {
    /// The section's name.
    pub name: &'a str,
    /// The gene's symbol.
    pub gene: &'a str,
    /// Centres of the tiles in level-0 px.
    pub centres: Vec<(f64, f64)>,
    /// Predicted expression of every tile.
    pub predicted: Vec<f64>,
    /// Measured expression of every tile.
    pub measured: Vec<f64>,
    /// The section's image.
    pub image: Option<Background>,
}

/// A section's image, made small enough for a picture.
pub struct Background {
    image: RgbImage,
    /// Level-0 px per pixel of the image.
    downsample: f64,
}

/// Side of a map in pixels, the longer one.
const SIDE: f64 = 560.0;
const MARGIN: i64 = 24;
const TOP: i64 = 64;
const SCALE: i64 = 78;

impl Background {
    /// Reads an image file of level-0 pixels.
    pub fn read(path: &Path) -> Result<Self> {
        let problem =
            |e: &dyn std::fmt::Display| Error::data(path, format!("is no readable image ({e})"));
        let mut reader = image::ImageReader::open(path)
            .map_err(Error::io(path))?
            .with_guessed_format()
            .map_err(Error::io(path))?;
        // A section at full resolution is larger than the reader's careful default.
        reader.no_limits();
        let whole = reader.decode().map_err(|e| problem(&e))?.to_rgb8();
        let (width, height) = whole.dimensions();
        let downsample = (f64::from(width.max(height)) / (2.0 * SIDE)).max(1.0);
        let small = |side: u32| ((f64::from(side) / downsample).round() as u32).max(1);
        let image = image::imageops::thumbnail(&whole, small(width), small(height));
        Ok(Self { image, downsample })
    }
}

/// Both maps side by side with their colour bars and the correlation in the title.
pub fn draw(section: &Section) -> Result<Picture> {
    let finite = section.centres.iter().all(|(x, y)| x.is_finite() && y.is_finite());
    if section.centres.len() < 2 || !finite {
        return Err(Error::Request(format!(
            "section {} has no places for its tiles, so nothing can be drawn over it; leave out \
             --picture-gene",
            section.name
        )));
    }
    let pitch = pitch(&section.centres);
    let bounds = |value: fn(&(f64, f64)) -> f64| {
        let values = section.centres.iter().map(value);
        let (low, high) =
            values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        (low - pitch, high + pitch)
    };
    let ((left, right), (top, bottom)) = (bounds(|c| c.0), bounds(|c| c.1));
    let zoom = SIDE / (right - left).max(bottom - top);
    let (width, height) = (((right - left) * zoom) as i64, ((bottom - top) * zoom) as i64);
    let total = MARGIN + 2 * (width + SCALE + MARGIN);
    let mut picture = Picture::new(total as u32, (TOP + height + MARGIN) as u32, PAPER);
    let correlation = pearson(&section.predicted, &section.measured)
        .map_or("undefined".to_owned(), |r| format!("{r:.2}"));
    let title =
        format!("{} on held-out section {}: Pearson {correlation}", section.gene, section.name);
    picture.text(MARGIN as f32, 26.0, 18.0, INK, Anchor::Start, &title);

    let backdrop = section.image.as_ref().map(|background| {
        let scale = |v: f64| (v / background.downsample).max(0.0) as u32;
        let cut = image::imageops::crop_imm(
            &background.image,
            scale(left),
            scale(top),
            scale(right - left),
            scale(bottom - top),
        );
        image::imageops::resize(&cut.to_image(), width as u32, height as u32, FilterType::Triangle)
    });
    for (index, (what, values)) in
        [("predicted", &section.predicted), ("measured", &section.measured)].into_iter().enumerate()
    {
        let x0 = MARGIN + index as i64 * (width + SCALE + MARGIN);
        let heading = format!("{what}, ln(1 + counts per 10,000)");
        picture.text(x0 as f32, (TOP - 10) as f32, 13.0, INK, Anchor::Start, &heading);
        if let Some(backdrop) = &backdrop {
            picture.paste(backdrop, x0, TOP);
        }
        let (low, high) = range(values);
        let half = (pitch * zoom * 0.42).max(1.0) as i64;
        for ((x, y), value) in section.centres.iter().zip(values) {
            let (x, y) = (x0 + ((x - left) * zoom) as i64, TOP + ((y - top) * zoom) as i64);
            let color = ColorMap::Viridis.color((value - low) / (high - low));
            picture.rectangle([x - half, y - half, x + half, y + half], color, 0.85);
        }
        let bar = x0 + width + 10;
        for step in 0..height {
            let color = ColorMap::Viridis.color(1.0 - step as f64 / height as f64);
            picture.rectangle([bar, TOP + step, bar + 16, TOP + step + 1], color, 1.0);
        }
        for (y, value) in
            [(TOP + 10, high), (TOP + height / 2, (low + high) / 2.0), (TOP + height, low)]
        {
            let text = format!("{value:.1}");
            picture.text((bar + 21) as f32, y as f32, 12.0, QUIET, Anchor::Start, &text);
        }
    }
    Ok(picture)
}

/// Median distance of a tile to its nearest neighbour.
fn pitch(centres: &[(f64, f64)]) -> f64 {
    let mut nearest: Vec<f64> = centres
        .iter()
        .enumerate()
        .filter_map(|(i, a)| {
            let others = centres.iter().enumerate().filter(|(j, _)| *j != i);
            let distance = |b: &(f64, f64)| (a.0 - b.0).hypot(a.1 - b.1);
            others.map(|(_, b)| distance(b)).filter(|d| *d > 0.0).min_by(f64::total_cmp)
        })
        .collect();
    nearest.sort_by(f64::total_cmp);
    nearest.get(nearest.len() / 2).copied().unwrap_or(1.0)
}

/// Colour limits: the 2nd and 98th percentile, so that one extreme spot does not hide the rest.
fn range(values: &[f64]) -> (f64, f64) {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted.get((q * sorted.len().saturating_sub(1) as f64) as usize).copied();
    match (at(0.02), at(0.98)) {
        (Some(low), Some(high)) if high > low => (low, high),
        (Some(low), _) => (low, low + 1.0),
        _ => (0.0, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_and_refuses_what_has_no_places() {
        let centres: Vec<(f64, f64)> =
            (0..12).map(|i| (f64::from(i % 4) * 100.0, f64::from(i / 4) * 100.0)).collect();
        assert_eq!(pitch(&centres), 100.0);
        let values: Vec<f64> = (0..12).map(f64::from).collect();
        let section = |centres| Section {
            name: "s",
            gene: "G",
            centres,
            predicted: values.clone(),
            measured: values.clone(),
            image: Some(Background { image: RgbImage::new(40, 30), downsample: 10.0 }),
        };
        let picture = draw(&section(centres)).unwrap();
        assert!(picture.pixels().width() > 2 * 500);
        assert!(draw(&section(vec![(f64::NAN, 0.0); 12])).is_err());
    }
}
