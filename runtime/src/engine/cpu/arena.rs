//! The memory that all operators of a session read and write.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;

use crate::engine::fused::ALIGNMENT;

/// Where a buffer lies in an [`Arena`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// First byte.
    pub(super) offset: usize,
    /// Number of elements.
    pub(super) len: usize,
}

/// One block of memory, shared by the threads that run one tile.
pub(super) struct Arena {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the arena is plain memory that it owns; the contracts of its methods rule out that two
// threads touch the same element while one of them writes.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// A zeroed arena of `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Self { start, bytes },
            None => handle_alloc_error(layout),
        }
    }

    fn layout(bytes: usize) -> Layout {
        // Rounded up so that it is never empty; the size was computed from buffers in memory.
        Layout::from_size_align(bytes.next_multiple_of(ALIGNMENT).max(ALIGNMENT), ALIGNMENT)
            .unwrap_or_else(|_| panic!("an arena of {bytes} bytes"))
    }

    fn at<T>(&self, place: Place, range: &Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= place.len);
        assert!(place.offset.is_multiple_of(ALIGNMENT));
        assert!(place.offset + place.len * size_of::<T>() <= self.bytes);
        // SAFETY: checked above that the element lies in the arena.
        unsafe { self.start.as_ptr().add(place.offset).cast::<T>().add(range.start) }
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

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
    }
}
