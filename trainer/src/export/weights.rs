//! A file's float tensors, looked up with the shape that is expected.

use std::path::{Path, PathBuf};

use crate::diffusion::weights::{Array, Weights};
use crate::{Error, Result};

/// All tensors of one file, and the file's name for messages.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    weights: Weights,
}

impl Checkpoint {
    /// Tensors already in memory; `path` names them in messages.
    pub fn new(path: &Path, weights: Weights) -> Self {
        Self { path: path.to_owned(), weights }
    }

    /// Reads a safetensors file.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::new(path, Weights::load(path)?))
    }

    /// All tensors.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.weights.get(name).is_some()
    }

    /// The tensor `name`, whatever its shape.
    pub fn get(&self, name: &str) -> Result<&Array> {
        self.weights.get(name).ok_or_else(|| self.wrong(&format!("has no tensor {name}")))
    }

    /// The values of `name`, which must have `shape`.
    pub fn shaped(&self, name: &str, shape: &[usize]) -> Result<&[f32]> {
        let array = self.get(name)?;
        if array.shape == shape {
            Ok(&array.data)
        } else {
            let found = &array.shape;
            Err(self.wrong(&format!("tensor {name} has shape {found:?}, not {shape:?}")))
        }
    }

    /// The single value of `name`.
    pub fn scalar(&self, name: &str) -> Result<f32> {
        let array = self.get(name)?;
        match array.data.as_slice() {
            [value] => Ok(*value),
            _ => Err(self.wrong(&format!("tensor {name} has shape {:?}, not one", array.shape))),
        }
    }

    fn wrong(&self, problem: &str) -> Error {
        Error::model(
            &self.path,
            format!("{problem}; use the weights that its configuration belongs to"),
        )
    }
}
