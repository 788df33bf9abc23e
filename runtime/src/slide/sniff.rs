//! What a file is, by its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// What is read, for messages that refuse something else.
pub(super) const READ: &str = "Read are Aperio SVS, tiled or striped TIFF and BigTIFF, JPEG and \
                               PNG; convert the slide to one of these (for example with: vips \
                               tiffsave SLIDE OUT.tif --tile --pyramid --compression jpeg --Q 90)";

/// The reader a file needs, or what it is instead.
#[derive(Debug, PartialEq)]
pub(super) enum Kind {
    Tiff,
    Jpeg,
    Png,
    Other(String),
}

/// Looks at the beginning of the file at `path`.
pub(super) fn kind(path: &Path) -> Result<Kind> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    if file.metadata().map_err(Error::io(path))?.is_dir() {
        return Ok(Kind::Other("a directory".into()));
    }
    let mut head = Vec::new();
    file.by_ref().take(4096).read_to_end(&mut head).map_err(Error::io(path))?;
    Ok(of(&head))
}

fn of(head: &[u8]) -> Kind {
    let known: [(&[u8], &str); 12] = [
        (b"\0\0\0\x0CjP  ", "a JPEG 2000 image"),
        (b"\xFF\x4F\xFF\x51", "a JPEG 2000 codestream"),
        (b"BM", "a BMP image"),
        (b"GIF8", "a GIF image"),
        (b"RIFF", "a WebP image or another RIFF file"),
        (b"\x89HDF\r\n\x1A\n", "an HDF5 file"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1F\x8B", "a gzip-compressed file"),
        (b"%PDF", "a PDF document"),
        (b"PAR1", "a Parquet file"),
        (b"ZISRAWFILE", "a Zeiss CZI slide"),
        (b"SQLite format 3", "a database"),
    ];
    if matches!(head.get(..4), Some(b"II*\0" | b"MM\0*" | b"II+\0" | b"MM\0+")) {
        return Kind::Tiff;
    }
    if head.starts_with(&[0xFF, 0xD8, 0xFF]) {
        return Kind::Jpeg;
    }
    if head.starts_with(b"\x89PNG\r\n\x1A\n") {
        return Kind::Png;
    }
    if head.is_empty() {
        return Kind::Other("an empty file".into());
    }
    if let Some((_, name)) = known.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Kind::Other((*name).into());
    }
    if head.get(128..132) == Some(b"DICM") {
        return Kind::Other("a DICOM file".into());
    }
    let text = match std::str::from_utf8(head) {
        Ok(text) => Some(text),
        // The last character may be cut by the end of what was read.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    match text {
        Some(text) if !text.chars().any(|c| c.is_control() && !c.is_whitespace()) => {
            Kind::Other("a text file".into())
        }
        _ => Kind::Other("an unknown kind of file".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_content() {
        assert_eq!(of(b"II*\0\x10\0\0\0"), Kind::Tiff);
        assert_eq!(of(b"MM\0+\0\x08"), Kind::Tiff);
        assert_eq!(of(&[0xFF, 0xD8, 0xFF, 0xE0]), Kind::Jpeg);
        assert_eq!(of("spot\tgène\n".as_bytes()), Kind::Other("a text file".into()));
        assert_eq!(of(&"é".as_bytes()[..1]), Kind::Other("a text file".into()));
        assert_eq!(of(b""), Kind::Other("an empty file".into()));
        assert_eq!(of(&[0, 1, 2, 3, 0xFE]), Kind::Other("an unknown kind of file".into()));
    }
}
