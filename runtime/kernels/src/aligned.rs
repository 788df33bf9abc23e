use std::fmt;

use crate::memory::Block;

/// One cache line of floats.
const LINE: usize = 16;

/// Prepared values: floats that begin on a cache line, 0 at first, with at least one line of zeros beyond the end so that
/// a vector may be read past it.
pub(crate) struct Aligned {
    block: Block,
    len: usize,
}

impl Aligned {
    pub(crate) fn zeroed(len: usize) -> Self {
        let floats = len.next_multiple_of(LINE) + LINE;
        Self { block: Block::zeroed(floats * size_of::<f32>()), len }
    }

    pub(crate) fn copy_of(values: &[f32]) -> Self {
        let mut aligned = Self::zeroed(values.len());
        aligned.as_mut_slice().copy_from_slice(values);
        aligned
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.block.as_ptr().cast_const().cast()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: the block is aligned, initialised and holds more than `len` floats, and it is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.block.as_ptr().cast(), self.len) }
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
