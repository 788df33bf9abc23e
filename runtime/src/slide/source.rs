//! Positioned reads from one open file, from several threads at once.

use std::fs::File;
use std::path::Path;

/// A file that is read by offset; no shared cursor, so threads do not wait for each other.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    len: u64,
}

impl Source {
    /// Opens `path` for reading.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    /// Length of the file in bytes when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads exactly `len` bytes at `offset`. The range is checked against the file's length
    /// before anything is allocated, so a lying count cannot exhaust memory.
    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, String> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(format!(
                "{len} bytes at offset {offset} lie beyond the end of the file ({} bytes): the \
                 file is truncated; copy or download it again",
                self.len
            ));
        }
        let size = usize::try_from(len).map_err(|_| format!("{len} bytes do not fit in memory"))?;
        let mut bytes = vec![0; size];
        self.fill(&mut bytes, offset)
            .map_err(|error| format!("reading {len} bytes at offset {offset} failed: {error}"))?;
        Ok(bytes)
    }

    #[cfg(unix)]
    fn fill(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, offset)
    }

    #[cfg(windows)]
    fn fill(&self, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let read = std::os::windows::fs::FileExt::seek_read(&self.file, bytes, offset)?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            offset += read as u64;
            bytes = &mut bytes[read..];
        }
        Ok(())
    }
}
