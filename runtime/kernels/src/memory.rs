//! Memory on huge pages, where the system has them: streams of weights and maps then miss the address translation
//! cache 512 times less often, and the processor's prefetchers, which stop at the end of a page, run on.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// Bytes of a huge page. Other sizes exist; a hint that does not fit is ignored.
pub const HUGE_PAGE: usize = 2 << 20;

/// Every block begins on a cache line.
const LINE: usize = 64;

/// Address space of a chunk. What no block has taken of it was never touched and takes no memory. In the tests every
/// block has memory of its own, so that a sanitizer sees where it ends.
const CHUNK: usize = if cfg!(any(test, miri)) { LINE } else { 16 << 20 };

/// The layout of `bytes` bytes that begin on a huge page if they fill one, else on a cache line.
#[must_use]
pub fn layout(bytes: usize) -> Option<Layout> {
    let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { LINE };
    Layout::from_size_align(bytes.checked_next_multiple_of(LINE)?.max(LINE), align).ok()
}

/// Puts huge pages under the whole ones of `bytes` bytes from `start` on. A hint: nothing happens where the system has
/// none, or allows none. What was touched already is copied, now where the system can (Linux 6.1), else when it finds
/// the time.
///
/// # Safety
/// The bytes are one allocation of the caller's.
pub unsafe fn prefer_huge_pages(start: NonNull<u8>, bytes: usize) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        use std::ffi::{c_int, c_void};
        unsafe extern "C" {
            fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
        }
        const MADV_HUGEPAGE: c_int = 14;
        const MADV_COLLAPSE: c_int = 25;
        let whole = bytes / HUGE_PAGE * HUGE_PAGE;
        if whole > 0 && start.as_ptr().addr().is_multiple_of(HUGE_PAGE) {
            for advice in [MADV_HUGEPAGE, MADV_COLLAPSE] {
                // SAFETY: the C library's function with its declared signature, on pages that belong to the caller;
                // this advice changes no content.
                unsafe { madvise(start.as_ptr().cast(), whole, advice) };
            }
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (start, bytes);
}

/// Puts huge pages under the prepared values there are, as [`prefer_huge_pages`] does. That takes milliseconds, or a
/// tenth of a second where free memory is in small pieces: a thread can do it while others use the values.
pub fn settle() {
    let chunks = CHUNKS.lock().unwrap_or_else(PoisonError::into_inner);
    let chunks: Vec<Arc<Chunk>> = chunks.iter().filter_map(Weak::upgrade).collect();
    for chunk in chunks {
        let taken = *chunk.taken.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the chunk is an allocation that lives meanwhile, and `taken` is at most its size.
        unsafe { prefer_huge_pages(chunk.start, taken) };
    }
}

/// The chunks that blocks are cut from.
static CHUNKS: Mutex<Vec<Weak<Chunk>>> = Mutex::new(vec![]);

/// What blocks are cut from: zeros.
struct Chunk {
    memory: NonNull<u8>,
    layout: Layout,
    /// Where blocks begin: on a huge page.
    start: NonNull<u8>,
    /// Bytes from there on.
    len: usize,
    /// Bytes that blocks have taken.
    taken: Mutex<usize>,
}

// SAFETY: a chunk hands out disjoint pieces of memory that it owns.
unsafe impl Send for Chunk {}
// SAFETY: as above; the count is behind a lock.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// A chunk with room for `bytes` bytes at least. Aborts, as every allocation does, where there is no memory.
    fn new(bytes: usize) -> Self {
        let len = bytes.checked_next_multiple_of(LINE).map(|len| len.max(CHUNK));
        let align = if bytes.max(CHUNK) >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        // Zeroed memory of a small alignment comes untouched from the system, one of a large alignment would be written.
        let layout = len.and_then(|len| Layout::from_size_align(len.checked_add(align)?, 16).ok());
        let layout = layout.expect("a block of less than half of the address space");
        // SAFETY: the layout is not empty.
        let Some(memory) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        // SAFETY: there is room for an alignment beside the chunk.
        let start = unsafe { memory.add(memory.align_offset(align)) };
        Self { memory, layout, start, len: layout.size() - align, taken: Mutex::new(0) }
    }

    /// The offset of `bytes` bytes that nobody has, if there is room.
    fn take(&self, bytes: usize) -> Option<usize> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let from = *taken;
        let end = from.checked_add(bytes.checked_next_multiple_of(LINE)?)?;
        (end <= self.len).then(|| {
            *taken = end;
            from
        })
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; no block is left.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// Bytes for values that live as long as a model does, zeroed. Many blocks share huge pages, which are given back when
/// the last of them is dropped.
pub(crate) struct Block {
    start: NonNull<u8>,
    len: usize,
    _chunk: Arc<Chunk>,
}

// SAFETY: a block is memory of its own; what is shared is the chunk's life.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// `bytes` zeros.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let mut chunks = CHUNKS.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.retain(|chunk| chunk.strong_count() > 0);
        let found = chunks.iter().filter_map(Weak::upgrade).find_map(|chunk| {
            let offset = chunk.take(bytes)?;
            Some((chunk, offset))
        });
        let (chunk, offset) = found.unwrap_or_else(|| {
            let chunk = Arc::new(Chunk::new(bytes));
            chunks.push(Arc::downgrade(&chunk));
            let offset = chunk.take(bytes).expect("a new chunk has room for its first block");
            (chunk, offset)
        });
        drop(chunks);
        // SAFETY: the piece lies within the chunk, and `take` gives it to nobody else.
        let start = unsafe { chunk.start.add(offset) };
        Self { start, len: bytes, _chunk: chunk }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its bytes as signed numbers.
    pub(crate) fn as_signed(&self) -> &[i8] {
        // SAFETY: initialised, owned by this block, and borrowed with it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len) }
    }

    /// The same, to write.
    pub(crate) fn as_signed_mut(&mut self) -> &mut [i8] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len) }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block at {:p}", self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_chunk_are_lines_of_their_own_until_it_is_full() {
        let chunk = Chunk::new(4 * LINE);
        assert_eq!(chunk.take(1), Some(0));
        assert_eq!(chunk.take(LINE + 1), Some(LINE));
        assert_eq!(chunk.take(LINE + 1), None);
        assert_eq!(chunk.take(usize::MAX), None);
        assert_eq!(chunk.take(LINE), Some(3 * LINE));
        assert_eq!(chunk.take(1), None);
    }

    #[test]
    fn blocks_are_zeros_in_memory_of_their_own() {
        let sizes = [0, 1, 64, 1000, HUGE_PAGE, HUGE_PAGE + 1];
        let blocks: Vec<Block> = sizes.iter().map(|&size| Block::zeroed(size)).collect();
        for (number, (block, &size)) in blocks.iter().zip(&sizes).enumerate() {
            assert!(block.as_ptr().addr().is_multiple_of(LINE));
            // SAFETY: the block has `size` bytes, and nobody else has them.
            let bytes = unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), size) };
            assert!(bytes.iter().all(|&byte| byte == 0), "block {number} of {size} bytes");
            bytes.fill(number as u8 + 1);
        }
    }

    #[test]
    fn large_memory_begins_on_a_huge_page() {
        assert_eq!(layout(HUGE_PAGE).unwrap().align(), HUGE_PAGE);
        assert_eq!(layout(HUGE_PAGE - 1).unwrap().align(), LINE);
        assert_eq!(layout(0).unwrap().size(), LINE);
        assert!(layout(usize::MAX).is_none());
    }
}
