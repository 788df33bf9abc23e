//! From an overview picture to a tissue mask; see the module above for the method.

use image::RgbImage;

use super::MIN_AREA_UM2;
use super::morphology::{Plane, close, erode, fill_holes, islands, open};

/// Side of the contrast window, mask pixels.
const WINDOW: usize = 9;

/// Bounds of the contrast threshold (standard deviation of total optical density). Printed
/// arrays, glow and scratches of bare glass stay below 0.025, adipose tissue begins at 0.06.
const CONTRAST_BOUNDS: (f32, f32) = (0.03, 0.08);

/// Bounds of the darkness threshold (mean total optical density above background). The strongest
/// glow seen beside a section is 0.15.
const DARKNESS_BOUNDS: (f32, f32) = (0.25, 0.45);

/// A background darker than this per channel is not bare glass: the picture is full of tissue.
const MAX_BACKGROUND: f32 = 0.15;

/// Values up to this in all channels are missing scan areas, not stain.
const BLACK: u8 = 44;

/// Radii in mask pixels: erosion of the window's reach, opening, closing.
const ERODE: usize = 3;
const OPEN: usize = 4;
const CLOSE: usize = 6;

/// Holes in tissue up to this are filled (0.25 mm2).
const HOLE_UM2: f64 = 250_000.0;

/// An island is stained where green is absorbed at least this much of the strongest channel (pen
/// and dyes other than haematoxylin, eosin or DAB absorb it less) ...
const MIN_GREEN: f32 = 0.6;

/// ... and the channels differ by at least this part of the strongest (grey dirt does not).
const MIN_CHROMA: f32 = 0.15;

/// Mask of the tissue in `picture`, which has `um_per_px`; row-major.
pub(super) fn tissue(picture: &RgbImage, um_per_px: f64) -> Vec<bool> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let density = stain_density(picture);
    let total = Plane {
        width,
        height,
        values: density.iter().map(|channels| channels.iter().sum()).collect::<Vec<f32>>(),
    };
    let (mean, contrast) = window_statistics(&total);

    let logarithms: Vec<f32> = contrast.iter().map(|&value| (value + 1e-3).log10()).collect();
    let contrast_limit = (10f32.powf(otsu(&logarithms, -3.0, 0.0)) - 1e-3)
        .clamp(CONTRAST_BOUNDS.0, CONTRAST_BOUNDS.1);
    let darkness_limit = otsu(&mean, 0.0, 1.5).clamp(DARKNESS_BOUNDS.0, DARKNESS_BOUNDS.1);

    let mut mask = Plane {
        width,
        height,
        values: std::iter::zip(&contrast, &mean)
            .map(|(&contrast, &mean)| contrast > contrast_limit || mean > darkness_limit)
            .collect(),
    };
    mask = close(&open(&erode(&mask, ERODE), OPEN), CLOSE);
    let area = um_per_px * um_per_px;
    fill_holes(&mut mask, HOLE_UM2 / area);

    let mut kept = vec![false; width * height];
    for island in islands(&mask, true) {
        if island.len() as f64 * area >= MIN_AREA_UM2 && is_stained(&island, &density) {
            for index in island {
                kept[index] = true;
            }
        }
    }
    kept
}

/// Optical density -log10((v + 1) / 256) of every channel above the background's, not negative.
fn stain_density(picture: &RgbImage) -> Vec<[f32; 3]> {
    let table: Vec<f32> = (0..256).map(|v| -((v as f32 + 1.0) / 256.0).log10()).collect();
    let mut density: Vec<[f32; 3]> =
        picture.pixels().map(|pixel| pixel.0.map(|value| table[usize::from(value)])).collect();
    let background = background(&density, picture.width() as usize, picture.height() as usize);
    for (channels, pixel) in density.iter_mut().zip(picture.pixels()) {
        let black = pixel.0.iter().all(|&value| value <= BLACK);
        for (value, background) in channels.iter_mut().zip(background) {
            *value = if black { 0.0 } else { (*value - background).max(0.0) };
        }
    }
    density
}

/// Density of the bare glass: the median of the smooth half of the brighter pixels.
fn background(density: &[[f32; 3]], width: usize, height: usize) -> [f32; 3] {
    let total = Plane { width, height, values: density.iter().map(|c| c.iter().sum()).collect() };
    let (mean, contrast) = window_statistics(&total);
    let bright_limit = quantile(mean.clone(), 0.6);
    let bright = || mean.iter().enumerate().filter(|&(_, &mean)| mean <= bright_limit);
    let smooth_limit = quantile(bright().map(|(index, _)| contrast[index]).collect(), 0.5);
    let smooth: Vec<usize> =
        bright().map(|(index, _)| index).filter(|&index| contrast[index] <= smooth_limit).collect();
    std::array::from_fn(|channel| {
        let values = smooth.iter().map(|&index| density[index][channel]).collect();
        quantile(values, 0.5).min(MAX_BACKGROUND)
    })
}

/// The value below which the fraction `at` of `values` lies; 0 where there are none.
fn quantile(mut values: Vec<f32>, at: f64) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    let rank = ((values.len() - 1) as f64 * at) as usize;
    *values.select_nth_unstable_by(rank, f32::total_cmp).1
}

/// Mean and standard deviation in the window around every pixel; the window is cut at the edge.
fn window_statistics(plane: &Plane<f32>) -> (Vec<f32>, Vec<f32>) {
    let squares = plane.values.iter().map(|value| value * value).collect();
    let squares = Plane { width: plane.width, height: plane.height, values: squares };
    let mean = box_mean(plane);
    let contrast = box_mean(&squares)
        .into_iter()
        .zip(&mean)
        .map(|(square, mean)| (square - mean * mean).max(0.0).sqrt())
        .collect();
    (mean, contrast)
}

/// Mean over the window, one axis after the other.
fn box_mean(plane: &Plane<f32>) -> Vec<f32> {
    let (width, height) = (plane.width, plane.height);
    let mut rows = vec![0.0; width * height];
    let mut out = vec![0.0; width * height];
    let run = |length: usize, input: &dyn Fn(usize) -> f32, output: &mut dyn FnMut(usize, f32)| {
        // Sums in f64: differences of running f32 sums would drift over a long row.
        let half = WINDOW / 2;
        let mut sum: f64 = (0..half.min(length)).map(|at| f64::from(input(at))).sum();
        for at in 0..length {
            if at + half < length {
                sum += f64::from(input(at + half));
            }
            if at > half {
                sum -= f64::from(input(at - half - 1));
            }
            let count = (at + half).min(length - 1) - at.saturating_sub(half) + 1;
            output(at, (sum / count as f64) as f32);
        }
    };
    for y in 0..height {
        let row = &plane.values[y * width..][..width];
        run(width, &|x| row[x], &mut |x, value| rows[y * width + x] = value);
    }
    for x in 0..width {
        run(height, &|y| rows[y * width + x], &mut |y, value| out[y * width + x] = value);
    }
    out
}

/// Otsu's threshold: the value that splits `values` (counted in 128 bins from `low` to `high`)
/// into the two classes with the largest variance between them.
fn otsu(values: &[f32], low: f32, high: f32) -> f32 {
    const BINS: usize = 128;
    let step = (high - low) / BINS as f32;
    let mut counts = [0u64; BINS];
    for &value in values {
        if (low..=high).contains(&value) {
            counts[(((value - low) / step) as usize).min(BINS - 1)] += 1;
        }
    }
    let centre = |bin: usize| f64::from(low) + (bin as f64 + 0.5) * f64::from(step);
    let all: u64 = counts.iter().sum();
    let moment: f64 = counts.iter().enumerate().map(|(bin, &n)| n as f64 * centre(bin)).sum();
    let (mut below, mut below_moment) = (0u64, 0.0);
    let (mut best, mut best_variance) = (0, -1.0);
    for (bin, &count) in counts.iter().enumerate() {
        below += count;
        below_moment += count as f64 * centre(bin);
        let above = all - below;
        if below == 0 || above == 0 {
            continue;
        }
        let difference = below_moment / below as f64 - (moment - below_moment) / above as f64;
        let variance = below as f64 * above as f64 * difference * difference;
        if variance > best_variance {
            (best, best_variance) = (bin, variance);
        }
    }
    low + (best + 1) as f32 * step
}

/// Whether the mean colour of an island is one of a stain of tissue.
fn is_stained(island: &[usize], density: &[[f32; 3]]) -> bool {
    let mut sum = [0f64; 3];
    for &index in island {
        for (sum, &value) in sum.iter_mut().zip(&density[index]) {
            *sum += f64::from(value);
        }
    }
    let [red, green, blue] = sum.map(|sum| sum as f32);
    let strongest = red.max(green).max(blue);
    let weakest = red.min(green).min(blue);
    green >= MIN_GREEN * red.max(blue) && strongest - weakest >= MIN_CHROMA * strongest
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    /// Pink-violet cells 3 px apart on paler stroma.
    fn stained(x: u32, y: u32) -> Rgb<u8> {
        if (x / 3 + y / 2).is_multiple_of(2) { Rgb([120, 70, 150]) } else { Rgb([215, 160, 205]) }
    }

    fn inside(x: u32, y: u32) -> bool {
        (80..180).contains(&x) && (60..140).contains(&y)
    }

    fn agreement(mask: &[bool], expected: impl Fn(u32, u32) -> bool) -> f64 {
        let right = mask
            .iter()
            .enumerate()
            .filter(|&(i, &tissue)| tissue == expected(i as u32 % 300, i as u32 / 300))
            .count();
        right as f64 / mask.len() as f64
    }

    #[test]
    fn tissue_is_kept_and_dots_and_glow_are_not() {
        let picture = RgbImage::from_fn(300, 200, |x, y| {
            if inside(x, y) {
                return stained(x, y);
            }
            // A glow that fades from the left, and grey dots of 13 px every 25 px.
            let glow = (60.0 * (-(x as f32) / 60.0).exp()) as u8;
            let (dx, dy) = (x as i32 % 25 - 12, y as i32 % 25 - 12);
            let dot = if dx * dx + dy * dy < 40 { 9 } else { 0 };
            Rgb([240 - dot, 238 - dot - glow, 238 - dot - glow / 3])
        });
        let mask = tissue(&picture, 8.0);
        assert!(agreement(&mask, inside) > 0.97, "{}", agreement(&mask, inside));
    }

    #[test]
    fn grey_dirt_green_pen_and_black_scan_gaps_are_not_tissue() {
        for colour in [[90, 90, 90], [40, 150, 70], [5, 5, 5]] {
            let picture = RgbImage::from_fn(300, 200, |x, y| {
                if !inside(x, y) {
                    return Rgb([242, 241, 243]);
                }
                let shade = ((x / 3 + y / 2) % 2 * 30) as u8;
                Rgb(colour.map(|value: u8| value + if colour[0] > 5 { shade } else { 0 }))
            });
            let mask = tissue(&picture, 8.0);
            assert!(!mask.contains(&true), "{colour:?}");
        }
    }

    #[test]
    fn even_dark_tissue_is_kept_and_bare_glass_is_empty() {
        let picture = RgbImage::from_fn(300, 200, |x, y| {
            if inside(x, y) { Rgb([190, 120, 170]) } else { Rgb([242, 241, 243]) }
        });
        assert!(agreement(&tissue(&picture, 8.0), inside) > 0.97);
        let glass = RgbImage::from_fn(300, 200, |x, y| {
            let noise = ((x * 7919 + y * 104_729) % 5) as u8;
            Rgb([238 + noise, 236 + noise, 240 - noise])
        });
        assert!(!tissue(&glass, 8.0).contains(&true));
    }

    #[test]
    fn a_picture_full_of_tissue_is_all_tissue() {
        let picture = RgbImage::from_fn(300, 200, stained);
        assert!(tissue(&picture, 8.0).iter().all(|&tissue| tissue));
    }

    #[test]
    fn tiny_pictures_are_handled() {
        for (width, height) in [(1, 1), (3, 1), (1, 40), (9, 9)] {
            let picture = RgbImage::from_pixel(width, height, Rgb([255; 3]));
            assert!(!tissue(&picture, 8.0).contains(&true));
        }
    }
}
