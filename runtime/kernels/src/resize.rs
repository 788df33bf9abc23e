use std::ops::Range;

use crate::{Epilogue, Isa, Source, pointwise::map_pixels};

/// Enlarges a `height x width` map twice by nearest neighbour: output rows `rows` (of `2 * height`) into `dst`,
/// `[rows, 2 * width, channels]`. A convolution reads such a map without this
/// ([`SourceSpec::upsample`](crate::SourceSpec::upsample)). The residual must not be in place.
///
/// # Panics
/// A slice that does not fit, or an instruction set this machine lacks.
pub fn upsample_2x(
    isa: Isa,
    [height, width, channels]: [usize; 3],
    src: Source,
    epilogue: &mut Epilogue,
    dst: &mut [f32],
    rows: Range<usize>,
) {
    assert_eq!(src.data.len(), height * width * channels, "enlargement input");
    assert!(src.scale.is_none_or(|s| s.len() == channels), "enlargement factors");
    assert!(rows.start <= rows.end && rows.end <= 2 * height, "rows {rows:?} of {}", 2 * height);
    assert_eq!(
        dst.len(),
        rows.len() * 2 * width * channels,
        "destination: not the rows being computed"
    );
    if dst.is_empty() {
        return;
    }
    let from = src.data.as_ptr();
    // SAFETY: the closure halves an output row and column that are within `2 * height` and `2 * width`.
    unsafe {
        map_pixels(isa, 2 * width, channels, &src, epilogue, dst, |p| {
            let (y, x) = (rows.start + p / (2 * width), p % (2 * width));
            from.add((y / 2 * width + x / 2) * channels)
        });
    }
}
