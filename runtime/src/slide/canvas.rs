//! Assembling a region from decoded pieces; what no piece covers stays white.

use std::path::Path;

use image::RgbImage;

use super::cache::Pixels;
use super::{SlideInfo, limits};
use crate::{Error, Result};

/// The part of a region that lies on the level, in pixels of the level; never empty.
#[derive(Debug, PartialEq)]
pub(super) struct Visible {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) right: u32,
    pub(super) bottom: u32,
}

/// A region of a level that is being assembled, white where nothing has been painted yet.
pub(super) struct Canvas {
    region: RgbImage,
    corner: (i64, i64),
    visible: Option<Visible>,
}

impl Canvas {
    /// A white region of `width` x `height` px whose top-left corner is `corner` in pixels of
    /// `level`, after checking the request.
    pub(super) fn new(
        path: &Path,
        info: &SlideInfo,
        level: usize,
        corner: (i64, i64),
        (width, height): (u32, u32),
    ) -> Result<Self> {
        let Some(size) = info.levels.get(level).map(|level| (level.width, level.height)) else {
            return Err(Error::Request(format!(
                "slide {} has {} levels, numbered from 0; level {level} does not exist",
                path.display(),
                info.levels.len()
            )));
        };
        if 3 * u64::from(width) * u64::from(height) > limits::REGION_BYTES {
            return Err(Error::Request(format!(
                "a region of {width} x {height} px of slide {} is too large to hold in memory; \
                 read smaller regions or a coarser level",
                path.display()
            )));
        }
        Ok(Self {
            region: RgbImage::from_pixel(width, height, image::Rgb([255; 3])),
            corner,
            visible: visible((corner.0, corner.1, width, height), size),
        })
    }

    /// The part of the region that lies on the level, if any.
    pub(super) fn visible(&self) -> Option<&Visible> {
        self.visible.as_ref()
    }

    /// Copies what of `pixels` (whose top-left corner is `origin` in the level) falls into the
    /// visible part.
    pub(super) fn paste(&mut self, pixels: &Pixels, origin: (u32, u32)) {
        let Some(visible) = &self.visible else { return };
        let end = |origin: u32, length: usize, end: u32| {
            (u64::from(origin) + length as u64).min(u64::from(end)) as u32
        };
        let (left, right) = (visible.x.max(origin.0), end(origin.0, pixels.width, visible.right));
        let (top, bottom) = (visible.y.max(origin.1), end(origin.1, pixels.height, visible.bottom));
        if left >= right || top >= bottom {
            return;
        }
        let row_bytes = self.region.width() as usize * 3;
        let length = (right - left) as usize * 3;
        // `left` and `top` are inside the region, so the differences are not negative.
        let to_x = (i64::from(left) - self.corner.0) as usize;
        for row in top..bottom {
            let to = (i64::from(row) - self.corner.1) as usize * row_bytes + to_x * 3;
            let from = ((row - origin.1) as usize * pixels.width + (left - origin.0) as usize) * 3;
            self.region.as_flat_samples_mut().samples[to..to + length]
                .copy_from_slice(&pixels.rgb[from..from + length]);
        }
    }

    /// The region as it is now.
    pub(super) fn finish(self) -> RgbImage {
        self.region
    }
}

/// The part of the region (x, y, width, height) that lies on a level of the given size.
fn visible(region: (i64, i64, u32, u32), size: (u32, u32)) -> Option<Visible> {
    let (x, y, width, height) = region;
    let clip = |at: i64, length: u32, size: u32| {
        let first = at.clamp(0, i64::from(size)) as u32;
        let end = at.saturating_add(i64::from(length)).clamp(0, i64::from(size)) as u32;
        (first < end).then_some((first, end))
    };
    let (x, right) = clip(x, width, size.0)?;
    let (y, bottom) = clip(y, height, size.1)?;
    Some(Visible { x, y, right, bottom })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_clipped_without_overflow() {
        let size = (100, 50);
        let clip = |x, y, w, h| visible((x, y, w, h), size);
        assert_eq!(clip(-5, 45, 10, 10), Some(Visible { x: 0, y: 45, right: 5, bottom: 50 }));
        assert_eq!(clip(100, 0, 10, 10), None);
        assert_eq!(clip(-10, 0, 10, 10), None);
        assert_eq!(clip(i64::MIN, i64::MAX, u32::MAX, u32::MAX), None);
    }
}
