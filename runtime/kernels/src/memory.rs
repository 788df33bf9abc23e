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

/// Zeroed memory that begins on a huge page if it fills one, else on a cache line. Its owner sees to who touches it when.
#[derive(Debug)]
pub struct Region {
    memory: NonNull<u8>,
    layout: Layout,
    start: NonNull<u8>,
}

// SAFETY: a region is memory of its own, which only its owner's unsafe code touches.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `bytes` zeros, or none where there is no memory for them. What is not touched takes none.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Option<Self> {
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        // Zeroed memory of a small alignment comes untouched from the system, one of a large alignment would be written.
        let layout = Layout::from_size_align(bytes.checked_add(align)?, 16).ok()?;
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        // SAFETY: there is room for an alignment beside the bytes.
        let start = unsafe { memory.add(memory.align_offset(align)) };
        Some(Self { memory, layout, start })
    }

    /// The first byte.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Asks for huge pages under the whole ones of the first `bytes` bytes when they are touched. A hint: nothing
    /// happens where the system has none, or allows none.
    ///
    /// # Panics
    /// The region is shorter.
    pub fn prefer_huge_pages(&self, bytes: usize) {
        const MADV_HUGEPAGE: i32 = 14;
        self.advise(bytes, MADV_HUGEPAGE);
    }

    /// Puts huge pages under what was touched already, where the system can (Linux 6.1).
    fn collapse(&self, bytes: usize) {
        const MADV_COLLAPSE: i32 = 25;
        self.advise(bytes, MADV_COLLAPSE);
    }

    fn advise(&self, bytes: usize, advice: i32) {
        let before = self.start.as_ptr().addr() - self.memory.as_ptr().addr();
        assert!(bytes <= self.layout.size() - before, "{bytes} bytes of a shorter region");
        #[cfg(all(target_os = "linux", not(miri)))]
        {
            use std::ffi::{c_int, c_void};
            unsafe extern "C" {
                fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
            }
            let whole = bytes / HUGE_PAGE * HUGE_PAGE;
            if whole > 0 {
                // SAFETY: the C library's function with its declared signature, on whole pages of this region (one that
                // fills a huge page begins on one); this advice changes no content.
                unsafe { madvise(self.start.as_ptr().cast(), whole, advice) };
            }
        }
        #[cfg(not(all(target_os = "linux", not(miri))))]
        let _ = advice;
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// Puts huge pages under the prepared values there are, now where the system can, else when it finds the time. That takes
/// milliseconds, or a tenth of a second where free memory is in small pieces: a thread can do it while others use the
/// values.
pub fn settle() {
    let chunks = CHUNKS.lock().unwrap_or_else(PoisonError::into_inner);
    let chunks: Vec<Arc<Chunk>> = chunks.iter().filter_map(Weak::upgrade).collect();
    for chunk in chunks {
        let taken = *chunk.taken.lock().unwrap_or_else(PoisonError::into_inner);
        chunk.region.prefer_huge_pages(taken);
        chunk.region.collapse(taken);
    }
}

/// The chunks that blocks are cut from.
static CHUNKS: Mutex<Vec<Weak<Chunk>>> = Mutex::new(vec![]);

/// What blocks are cut from.
struct Chunk {
    region: Region,
    len: usize,
    /// Bytes that blocks have taken.
    taken: Mutex<usize>,
}

impl Chunk {
    /// A chunk with room for `bytes` bytes at least. Aborts, as every allocation does, where there is no memory.
    fn new(bytes: usize) -> Self {
        let len = bytes.saturating_add(LINE - 1) / LINE * LINE;
        let len = len.max(CHUNK);
        let Some(region) = Region::zeroed(len) else {
            handle_alloc_error(Layout::from_size_align(len, LINE).unwrap_or(Layout::new::<u8>()))
        };
        Self { region, len, taken: Mutex::new(0) }
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
        let start = unsafe { chunk.region.start().add(offset) };
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
        for bytes in [0, 1, HUGE_PAGE - 1, HUGE_PAGE, 2 * HUGE_PAGE + 1] {
            let region = Region::zeroed(bytes).unwrap();
            let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { LINE };
            assert!(region.start().as_ptr().addr().is_multiple_of(align), "{bytes}");
            // SAFETY: the region has as many bytes, all zero, and nobody else touches them.
            let content = unsafe { std::slice::from_raw_parts_mut(region.start().as_ptr(), bytes) };
            content.fill(7);
            region.prefer_huge_pages(bytes);
            region.collapse(bytes);
            assert!(content.iter().all(|&byte| byte == 7), "{bytes}");
        }
        assert!(Region::zeroed(usize::MAX).is_none());
    }
}
