use crate::{Activation, Epilogue, Isa, Source, epilogue::finish_reference};

/// An epilogue on a map that is already there: `src` (scaled and SiLU'd as its [`Source`] says) through residual,
/// pixel norm, activation, second output and row sums into `dst`. Slices hold the rows being computed,
/// `[rows, width, channels]`; the residual must not be in place.
///
/// # Panics
/// A slice that does not fit, a residual in place, or an instruction set this machine lacks.
pub fn pointwise(
    isa: Isa,
    width: usize,
    channels: usize,
    src: Source,
    epilogue: &mut Epilogue,
    dst: &mut [f32],
) {
    assert!(isa.is_available(), "instruction set {isa}");
    assert!(
        width > 0 && channels > 0 && dst.len().is_multiple_of(width * channels),
        "pointwise: not whole rows"
    );
    assert_eq!(src.data.len(), dst.len(), "pointwise input");
    assert!(src.scale.is_none_or(|s| s.len() == channels), "pointwise factors");
    assert!(
        !matches!(epilogue.residual, crate::Residual::InPlace { .. }),
        "pointwise: the residual cannot be in place"
    );
    epilogue.check(dst.len() / (width * channels), width, channels);
    for (i, (to, from)) in dst.iter_mut().zip(src.data).enumerate() {
        let v = src.scale.map_or(*from, |s| from * s[i % channels]);
        *to = if src.silu { Activation::Silu.apply(v) } else { v };
    }
    finish_reference(epilogue, &[], dst, width, channels);
}
