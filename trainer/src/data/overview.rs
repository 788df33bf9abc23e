//! A picture of a section with its tiles, for a person to check the pairing by eye.

use std::path::Path;

use diffbulk::slide::Slide;
use image::{Rgb, RgbImage};

use crate::{Error, Result};

/// Longer side of the picture in pixels.
const PICTURE_PX: u32 = 1400;

const PAIRED: Rgb<u8> = Rgb([0, 80, 220]);
const UNLABELLED: Rgb<u8> = Rgb([20, 150, 60]);
const LEFT_OUT: Rgb<u8> = Rgb([220, 0, 0]);

/// Squares of one side length, by top-left corner in level-0 px.
pub(super) struct Squares<'a> {
    /// Side in level-0 px.
    pub(super) side: f64,
    /// Tiles with expression (blue, with their centre marked).
    pub(super) paired: &'a [(f64, f64)],
    /// Tiles without expression (green).
    pub(super) unlabelled: &'a [(f64, f64)],
    /// Tiles that reach outside the image (red).
    pub(super) left_out: &'a [(f64, f64)],
}

/// Draws `squares` over the whole `slide` and writes a PNG.
pub(super) fn write(path: &Path, slide: &dyn Slide, squares: &Squares<'_>) -> Result<()> {
    let (mut picture, downsample) = diffbulk::slide::overview(slide, PICTURE_PX)?;
    let side = squares.side / downsample;
    for (corners, colour, thickness) in [
        (squares.unlabelled, UNLABELLED, 1),
        (squares.paired, PAIRED, 2),
        (squares.left_out, LEFT_OUT, 2),
    ] {
        for (x, y) in corners {
            outline(&mut picture, x / downsample, y / downsample, side, thickness, colour);
        }
    }
    for (x, y) in squares.paired {
        let (x, y) = (x / downsample + side / 2.0, y / downsample + side / 2.0);
        outline(&mut picture, x - 1.5, y - 1.5, 3.0, 2, PAIRED);
    }
    picture
        .save_with_format(path, image::ImageFormat::Png)
        .map_err(|error| Error::data(path, format!("cannot be written ({error})")))
}

/// Outlines the square at (`x`, `y`) inwards; what lies outside the picture is not drawn.
fn outline(picture: &mut RgbImage, x: f64, y: f64, side: f64, thickness: i64, colour: Rgb<u8>) {
    let (left, top) = (x.round() as i64, y.round() as i64);
    let (right, bottom) = ((x + side).round() as i64 - 1, (y + side).round() as i64 - 1);
    let mut dot = |x: i64, y: i64| {
        let inside =
            x >= 0 && y >= 0 && x < i64::from(picture.width()) && y < i64::from(picture.height());
        if inside {
            picture.put_pixel(x as u32, y as u32, colour);
        }
    };
    for inset in 0..thickness {
        for x in left..=right {
            dot(x, top + inset);
            dot(x, bottom - inset);
        }
        for y in top..=bottom {
            dot(left + inset, y);
            dot(right - inset, y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines_stay_inside_the_picture() {
        let mut picture = RgbImage::new(10, 10);
        outline(&mut picture, -2.0, 6.0, 6.0, 1, PAIRED);
        let drawn: Vec<_> = picture
            .enumerate_pixels()
            .filter(|(_, _, p)| **p == PAIRED)
            .map(|(x, y, _)| (x, y))
            .collect();
        assert_eq!(drawn, [(0, 6), (1, 6), (2, 6), (3, 6), (3, 7), (3, 8), (3, 9)]);
    }
}
