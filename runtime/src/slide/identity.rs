//! A quick identity of a slide file, for provenance and for recognising it on resume.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Bytes hashed at each end of the file.
const END_BYTES: u64 = 1 << 20;

/// What identifies a slide file without reading all of it (whole-slide files reach many GB).
///
/// The digest is SHA-256 over the first MiB of the file followed by the last MiB of it; a file of
/// at most 2 MiB is hashed whole, once. Together with the size this tells slides apart (headers,
/// offset tables and the first and last tiles differ); it is no proof against deliberate
/// changes in the middle of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// SHA-256 of both ends, hexadecimal.
    pub ends_sha256: String,
}

/// The identity of the file at `path`.
pub fn identity(path: &Path) -> Result<Identity> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let bytes = file.metadata().map_err(Error::io(path))?.len();
    let mut hasher = Sha256::new();
    let mut feed = |file: &mut File, count: u64| -> std::io::Result<()> {
        let mut buffer = Vec::new();
        file.take(count).read_to_end(&mut buffer)?;
        hasher.update(&buffer);
        Ok(())
    };
    if bytes <= 2 * END_BYTES {
        feed(&mut file, bytes).map_err(Error::io(path))?;
    } else {
        feed(&mut file, END_BYTES).map_err(Error::io(path))?;
        file.seek(SeekFrom::Start(bytes - END_BYTES)).map_err(Error::io(path))?;
        feed(&mut file, END_BYTES).map_err(Error::io(path))?;
    }
    let ends_sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Identity { bytes, ends_sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_files_are_hashed_whole_and_large_ones_at_both_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slide");
        std::fs::write(&path, b"abc").unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(identity(&path).unwrap(), Identity { bytes: 3, ends_sha256: known.into() });

        let mut content = vec![0u8; 3 << 20];
        std::fs::write(&path, &content).unwrap();
        let before = identity(&path).unwrap();
        content[(3 << 20) - 1] = 1;
        std::fs::write(&path, &content).unwrap();
        assert_ne!(identity(&path).unwrap(), before);
        assert!(identity(&directory.path().join("absent")).is_err());
    }
}
