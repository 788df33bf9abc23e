//! How much memory a file may ask for. Everything a slide file says about sizes is checked
//! against these before it is believed.

/// Decoded bytes of one tile or strip.
pub(super) const CHUNK_BYTES: u64 = 1 << 30;

/// Decoded bytes of a plain JPEG or PNG, which is held in memory whole.
pub(super) const PLAIN_IMAGE_BYTES: u64 = 2 << 30;

/// Bytes of one region handed to a caller.
pub(super) const REGION_BYTES: u64 = 2 << 30;

/// Bytes of one array in a TIFF directory (offsets of 8 million tiles).
pub(super) const DIRECTORY_VALUE_BYTES: u64 = 64 << 20;

/// Directories (pages and sub-images) of one TIFF.
pub(super) const DIRECTORIES: usize = 4096;

/// Entries of one TIFF directory.
pub(super) const DIRECTORY_ENTRIES: u64 = 4096;

/// Budget of the cache of decoded chunks of one slide.
pub(super) const CACHE_BYTES: usize = 128 << 20;
