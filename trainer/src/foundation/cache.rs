//! Features on disk, one safetensors file for an encoder, a dataset and a view.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use super::{Encoder, View};
use crate::data::tiles::hex;
use crate::{Error, Result};

/// Name of the one tensor in the file.
const TENSOR: &str = "features";

/// What features depend on; a file is used only when all of it agrees.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    entries: HashMap<String, String>,
    rows: usize,
    features: usize,
}

impl Key {
    /// The key of `encoder` over tiles whose pixels have `images_sha256`, under `view`.
    pub(super) fn new(encoder: &Encoder, images_sha256: &str, rows: usize, view: &View) -> Self {
        let entries = [
            ("encoder", encoder.info().name.clone()),
            ("encoder_sha256", encoder.sha256().to_owned()),
            ("preprocessing", encoder.settings()),
            ("images_sha256", images_sha256.to_owned()),
            ("view", view.name()),
        ];
        let entries = entries.map(|(key, value)| (key.to_owned(), value)).into();
        Self { entries, rows, features: encoder.features() }
    }

    /// File name: the view in clear, the rest as a hash.
    fn file_name(&self) -> String {
        let mut hash = Sha256::new();
        for key in ["encoder_sha256", "preprocessing", "images_sha256", "view"] {
            hash.update(self.entries[key].as_bytes());
            hash.update([0]);
        }
        format!("{}-{}.safetensors", self.entries["view"], &hex(&hash.finalize())[..16])
    }

    /// The file under `directory`.
    pub(super) fn path(&self, directory: &Path) -> PathBuf {
        directory.join(self.file_name())
    }
}

/// Reads features from `path` if they are there, whole, and of `key`.
pub(super) fn read(path: &Path, key: &Key) -> Option<Vec<f32>> {
    let bytes = std::fs::read(path).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    if header.metadata().as_ref() != Some(&key.entries) {
        return None;
    }
    let tensors = SafeTensors::deserialize(&bytes).ok()?;
    let tensor = tensors.tensor(TENSOR).ok()?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != [key.rows, key.features] {
        return None;
    }
    let values = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    Some(values.collect())
}

/// Writes features to `path`; they appear there only when whole.
pub(super) fn write(path: &Path, key: &Key, features: &[f32]) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(Error::io(directory))?;
    }
    let bytes: Vec<u8> = features.iter().flat_map(|value| value.to_le_bytes()).collect();
    let wrong = |error: safetensors::SafeTensorError| Error::data(path, error.to_string());
    let view = TensorView::new(Dtype::F32, vec![key.rows, key.features], &bytes).map_err(wrong)?;
    // This writes beside `path` and renames.
    safetensors::serialize_to_file([(TENSOR, view)], Some(key.entries.clone()), path).map_err(wrong)
}
