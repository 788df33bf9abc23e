//! Tiles cut from one slide, kept until the dataset is whole.
//!
//! Decoding an image, finding its tissue and cutting its tiles is what `prepare` spends its time
//! on. The result is written beside the dataset in the making as soon as a slide is done, so that
//! a run that was stopped does not cut it again. A file is used only for the same image and the
//! same request, and only if it is whole.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::tiles::hex;
use crate::data::unlabelled::Place;
use crate::train::atomic;
use crate::{Error, Result};

/// Folder of the files, in the directory of the dataset in the making.
pub(super) const FOLDER: &str = "cut";

/// Folder of the overview pictures, in the same directory.
pub(super) const OVERVIEWS: &str = "overview";

/// What was cut from one slide.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cut {
    /// Where the unlabelled tiles lie.
    pub(super) places: Vec<Place>,
    /// Whether it was taken over from an earlier run.
    pub(super) taken_over: bool,
    /// Pixels of the paired tiles and then of the unlabelled ones, RGB bytes.
    pub(super) tiles: Vec<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    /// What was asked of which image.
    key: String,
    places: Vec<Place>,
    tiles: usize,
    tile_bytes: usize,
    sha256: String,
}

/// The file of the slide called `name`.
fn file(directory: &Path, name: &str) -> PathBuf {
    directory.join(FOLDER).join(format!("{}.tiles", hex(&Sha256::digest(name))))
}

/// What was cut from the slide called `name` under the same `key`, if that is there and whole.
pub(super) fn read(directory: &Path, name: &str, key: &str) -> Option<Cut> {
    let bytes = std::fs::read(file(directory, name)).ok()?;
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&bytes[..end]).ok()?;
    let pixels = &bytes[end + 1..];
    let whole = header.key == key
        && header.tiles.checked_mul(header.tile_bytes) == Some(pixels.len())
        && hex(&Sha256::digest(pixels)) == header.sha256;
    let tiles = || pixels.chunks_exact(header.tile_bytes.max(1)).map(<[u8]>::to_vec).collect();
    whole.then(|| Cut { tiles: tiles(), places: header.places, taken_over: true })
}

/// Keeps what was cut from the slide called `name`.
pub(super) fn write(directory: &Path, name: &str, key: &str, cut: &Cut) -> Result<()> {
    let folder = directory.join(FOLDER);
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let pixels = cut.tiles.concat();
    let header = Header {
        key: key.to_owned(),
        places: cut.places.clone(),
        tiles: cut.tiles.len(),
        tile_bytes: cut.tiles.first().map_or(0, Vec::len),
        sha256: hex(&Sha256::digest(&pixels)),
    };
    let mut bytes = serde_json::to_vec(&header)
        .map_err(|e| Error::Check(format!("tiles of {name} cannot be kept: {e}")))?;
    bytes.push(b'\n');
    bytes.extend(pixels);
    atomic::write(&file(directory, name), &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_file_of_the_same_request_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let places = vec![Place { name: "x0_y1".into(), x: 3.0, y: 7.5 }];
        let cut = Cut { places, tiles: vec![vec![1; 12], vec![2; 12]], taken_over: true };
        write(directory.path(), "a/b", "key", &cut).unwrap();
        assert_eq!(read(directory.path(), "a/b", "key"), Some(cut));
        assert_eq!(read(directory.path(), "a/b", "other"), None);
        assert_eq!(read(directory.path(), "c", "key"), None);
        let path = file(directory.path(), "a/b");
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(read(directory.path(), "a/b", "key"), None);
        }
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        std::fs::write(&path, other).unwrap();
        assert_eq!(read(directory.path(), "a/b", "key"), None);
        let none = Cut { places: Vec::new(), tiles: Vec::new(), taken_over: true };
        write(directory.path(), "none", "key", &none).unwrap();
        assert_eq!(read(directory.path(), "none", "key"), Some(none));
    }
}
