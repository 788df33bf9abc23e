//! The memory that all operators of a session read and write.

use std::ops::Range;
use std::sync::Arc;

use diffbulk_kernels::memory::Region;
use tract_onnx::prelude::TractResult;
use tract_onnx::tract_core::internal::anyhow;

use crate::engine::fused::ALIGNMENT;

/// Where a buffer lies in an [`Arena`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// First byte.
    pub(super) offset: usize,
    /// Number of elements.
    pub(super) len: usize,
}

/// One block of memory, shared by the threads that run one tile: the contracts of its methods rule out that two of them
/// touch the same element while one writes.
pub(super) struct Arena {
    region: Arc<Region>,
    /// Where it begins in the region.
    first: usize,
    bytes: usize,
}

/// What one thread computes in.
pub(super) struct Scratch {
    region: Arc<Region>,
    floats: usize,
}

impl Scratch {
    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: the region begins with these floats, aligned and initialised, and `Arena::new` gave them to nobody
        // else.
        unsafe { std::slice::from_raw_parts_mut(self.region.start().as_ptr().cast(), self.floats) }
    }
}

impl Arena {
    /// A zeroed arena of `bytes` bytes, and a scratch of `floats` floats before it: convolutions touch many pages of it at
    /// once, so it is on huge ones.
    ///
    /// # Errors
    /// When the system has not that much memory.
    pub(super) fn new(bytes: usize, floats: usize) -> TractResult<(Self, Scratch)> {
        let memory = || {
            let first =
                floats.checked_mul(size_of::<f32>())?.checked_next_multiple_of(ALIGNMENT)?;
            let total = first.checked_add(bytes)?;
            let region = Region::zeroed(total)?;
            region.prefer_huge_pages(total);
            Some((first, Arc::new(region)))
        };
        let (first, region) = memory().ok_or_else(|| {
            anyhow!("{bytes} bytes of memory for one tile are more than there is")
        })?;
        let scratch = Scratch { region: Arc::clone(&region), floats };
        Ok((Self { region, first, bytes }, scratch))
    }

    fn at<T>(&self, place: Place, range: &Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= place.len);
        assert!(place.offset.is_multiple_of(ALIGNMENT));
        let end =
            place.len.checked_mul(size_of::<T>()).and_then(|len| len.checked_add(place.offset));
        assert!(end.is_some_and(|end| end <= self.bytes));
        // SAFETY: checked above that the element lies in the arena.
        unsafe {
            self.region.start().as_ptr().add(self.first + place.offset).cast::<T>().add(range.start)
        }
    }

    /// A buffer's elements.
    ///
    /// # Safety
    /// `T` is a number type, and nobody writes to these elements while the slice is in use.
    pub(super) unsafe fn read<T>(&self, place: Place) -> &[T] {
        // SAFETY: `at` checks the bounds; all bytes are initialised; the caller sees to the rest.
        unsafe { std::slice::from_raw_parts(self.at(place, &(0..place.len)), place.len) }
    }

    /// A part of a buffer's elements.
    ///
    /// # Safety
    /// As [`Arena::read`].
    pub(super) unsafe fn read_part<T>(&self, place: Place, range: Range<usize>) -> &[T] {
        // SAFETY: as in `read`.
        unsafe { std::slice::from_raw_parts(self.at(place, &range), range.len()) }
    }

    /// A part of a buffer's elements, to write.
    ///
    /// # Safety
    /// `T` is a number type, and nobody else reads or writes these elements while the slice is in
    /// use.
    #[expect(clippy::mut_from_ref, reason = "the caller sees to exclusive use")]
    pub(super) unsafe fn write<T>(&self, place: Place, range: Range<usize>) -> &mut [T] {
        // SAFETY: as in `read`, and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(place, &range), range.len()) }
    }
}
