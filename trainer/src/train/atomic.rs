//! Files that appear under their final name only when they are whole.

use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// Writes `bytes` next to `path`, flushes them to the disk and renames.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
        Error::Request(format!("{} is not a file name; choose another output", path.display()))
    })?;
    let partial = path.with_file_name(format!(".{name}.partial"));
    let result = (|| {
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    })();
    result.map_err(|e| {
        // Nothing useful is left of a write that failed; the error that matters is `e`.
        let _ = std::fs::remove_file(&partial);
        Error::io(path)(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_no_partial_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_the_file_it_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("a.bin");
        assert!(write(&path, b"x").unwrap_err().to_string().contains("a.bin"));
    }
}
