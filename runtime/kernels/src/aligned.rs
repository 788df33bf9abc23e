use std::fmt;

/// One cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

/// Floats that begin on a cache line, 0 at first, with at least one line of zeros beyond the end so that a vector may
/// be read past it.
pub(crate) struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    pub(crate) fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16) + 1], len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.lines.as_ptr().cast()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: the lines hold at least `len` contiguous floats, and they are borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl fmt::Debug for Aligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[f32; {}]", self.len)
    }
}

/// The part of a scratch slice that begins on a cache line, of `len` floats.
///
/// # Panics
/// The slice has less than `len + 15` floats.
pub(crate) fn align_scratch(scratch: &mut [f32], len: usize) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(64).min(15);
    &mut scratch[skip..skip + len]
}
