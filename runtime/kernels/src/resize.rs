use std::ops::Range;

use crate::{Activation, Epilogue, Isa, Source, epilogue::finish_reference};

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
    assert!(isa.is_available(), "instruction set {isa}");
    assert_eq!(src.data.len(), height * width * channels, "enlargement input");
    assert!(src.scale.is_none_or(|s| s.len() == channels), "enlargement factors");
    assert!(rows.start <= rows.end && rows.end <= 2 * height, "rows {rows:?} of {}", 2 * height);
    assert_eq!(
        dst.len(),
        rows.len() * 2 * width * channels,
        "destination: not the rows being computed"
    );
    assert!(
        !matches!(epilogue.residual, crate::Residual::InPlace { .. }),
        "enlargement: residual in place"
    );
    epilogue.check(rows.len(), 2 * width, channels);
    if dst.is_empty() {
        return;
    }
    for (i, pixel) in dst.chunks_exact_mut(channels).enumerate() {
        let (y, x) = (rows.start + i / (2 * width), i % (2 * width));
        let from = &src.data[(y / 2 * width + x / 2) * channels..][..channels];
        for (c, (to, from)) in pixel.iter_mut().zip(from).enumerate() {
            let v = src.scale.map_or(*from, |s| from * s[c]);
            *to = if src.silu { Activation::Silu.apply(v) } else { v };
        }
    }
    finish_reference(epilogue, &[], dst, 2 * width, channels);
}
