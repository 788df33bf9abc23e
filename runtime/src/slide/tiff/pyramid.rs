//! Which images of a TIFF are the levels of the slide.
//!
//! A slide file also holds a thumbnail, a label and a macro photograph. The finest image is the
//! base; a level is a smaller image of the same shape that is stored the way the base is.

use super::directory::{Directory, TiffFile, tag};
use super::layout;
use super::scale;

/// An image of the file that may be a level.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Index of its directory.
    pub(super) directory: usize,
    pub(super) width: u32,
    pub(super) height: u32,
    tiled: bool,
}

/// The levels found, finest first, with the level-0 pixels per pixel of each.
pub(super) fn find(
    file: &TiffFile,
    directories: &[Directory],
) -> Result<Vec<(Candidate, f64)>, String> {
    let mut candidates = Vec::new();
    for (index, directory) in directories.iter().enumerate() {
        if !is_associated(file, directory)? {
            let (width, height) = layout::size(file, directory)?;
            let tiled = directory.has(tag::TILE_WIDTH);
            candidates.push(Candidate { directory: index, width, height, tiled });
        }
    }
    // The finest image; of equally large ones (channels, focal planes) the first.
    let area = |c: &Candidate| u64::from(c.width) * u64::from(c.height);
    let base = (0..candidates.len())
        .max_by_key(|&index| (area(&candidates[index]), std::cmp::Reverse(index)))
        .ok_or("the TIFF holds only label or macro images, no slide")?;
    let base = candidates.swap_remove(base);
    let mut levels: Vec<(Candidate, f64)> = candidates
        .into_iter()
        .filter(|level| level.tiled == base.tiled && area(level) < area(&base))
        .filter_map(|level| {
            let factor = downsample((base.width, base.height), (level.width, level.height))?;
            Some((level, factor))
        })
        .collect();
    // A stable sort, so that of equally large images the first remains.
    levels.sort_by_key(|(level, _)| std::cmp::Reverse(area(level)));
    levels.dedup_by_key(|(level, _)| (level.width, level.height));
    levels.insert(0, (base, 1.0));
    Ok(levels)
}

/// Label and macro images, by subfile type (Aperio: 1 label, 9 macro) or by description.
fn is_associated(file: &TiffFile, directory: &Directory) -> Result<bool, String> {
    let subfile = file.integer(directory, tag::NEW_SUBFILE_TYPE)?.unwrap_or(0);
    if subfile & 4 != 0 {
        return Ok(true); // a transparency mask
    }
    let description = file.text(directory, tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
    if scale::is_aperio(&description) {
        let first_lines = description.split('|').next().unwrap_or_default();
        let named = |word: &str| first_lines.lines().skip(1).any(|line| line.starts_with(word));
        return Ok(matches!(subfile, 1 | 9) || named("label") || named("macro"));
    }
    let lower = description.to_ascii_lowercase();
    Ok(subfile == 9 || lower.starts_with("label") || lower.starts_with("macro"))
}

/// Level-0 pixels per pixel of a level, or None where the shapes differ.
///
/// Writers round the sides of a level up, down or to nearest, and round again at every halving;
/// within that tolerance a whole factor is taken as exact, which keeps levels aligned.
fn downsample(base: (u32, u32), level: (u32, u32)) -> Option<f64> {
    let range = |base: u32, level: u32| {
        let (base, level) = (f64::from(base), f64::from(level));
        (base / (level + 1.0), if level > 1.0 { base / (level - 1.0) } else { f64::INFINITY })
    };
    let (x, y) = (range(base.0, level.0), range(base.1, level.1));
    let (low, high) = (x.0.max(y.0), x.1.min(y.1));
    if low > high {
        return None;
    }
    let mean =
        (f64::from(base.0) / f64::from(level.0) + f64::from(base.1) / f64::from(level.1)) / 2.0;
    let whole = mean.round();
    Some(if whole >= 1.0 && low <= whole && whole <= high { whole } else { mean })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounded_levels_keep_a_whole_factor() {
        assert_eq!(downsample((300, 250), (37, 31)), Some(8.0));
        assert_eq!(downsample((4443, 3567), (2221, 1783)), Some(2.0));
        assert_eq!(downsample((46000, 32914), (2875, 2057)), Some(16.0));
    }

    #[test]
    fn other_shapes_are_not_levels() {
        assert_eq!(downsample((46000, 32914), (1280, 431)), None);
        assert_eq!(downsample((46000, 32914), (387, 463)), None);
    }

    #[test]
    fn a_factor_that_is_not_whole_is_kept() {
        let factor = downsample((10000, 8000), (4000, 3200)).unwrap();
        assert!((factor - 2.5).abs() < 1e-9);
    }
}
