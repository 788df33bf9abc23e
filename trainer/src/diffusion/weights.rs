//! Named f32 arrays: what a checkpoint file holds, on the host and without a backend.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// One array in row-major order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Array {
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Values, last dimension fastest.
    pub data: Vec<f32>,
}

impl Array {
    /// An array of this shape. Panics in debug builds where the sizes disagree.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Self { shape, data }
    }

    /// Square root of the sum of squares, summed in double precision.
    pub fn norm(&self) -> f64 {
        self.data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
    }

    /// Largest magnitude, NaN if any value is NaN.
    pub fn max_abs(&self) -> f32 {
        self.data.iter().fold(0.0, |m: f32, v| if v.is_nan() { f32::NAN } else { m.max(v.abs()) })
    }
}

/// Arrays by name, as in a safetensors file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights {
    arrays: BTreeMap<String, Array>,
}

impl Weights {
    /// No arrays.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads every array of a safetensors file; f32, f64, f16, bf16 and u8 become f32.
    pub fn load(path: &Path) -> Result<Self> {
        Ok(Self::load_with(path)?.0)
    }

    /// Like [`Weights::load`], with the string metadata of the file's header.
    pub fn load_with(path: &Path) -> Result<(Self, HashMap<String, String>)> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| {
            Error::model(
                path,
                format!("is not a whole safetensors file: {e}; restore or retrain it"),
            )
        })?;
        let mut arrays = BTreeMap::new();
        for (name, view) in file.iter() {
            let array = read_view(&view).ok_or_else(|| {
                Error::model(
                    path,
                    format!("tensor '{name}' has type {:?}; store it as float32", view.dtype()),
                )
            })?;
            arrays.insert(name.to_owned(), array);
        }
        let metadata = SafeTensors::read_metadata(&bytes)
            .ok()
            .and_then(|(_, header)| header.metadata().clone())
            .unwrap_or_default();
        Ok((Self { arrays }, metadata))
    }

    /// Writes a safetensors file under its final name only when it is whole.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.save_with(path, None)
    }

    /// Like [`Weights::save`], with string metadata in the file's header.
    pub fn save_with(&self, path: &Path, metadata: Option<HashMap<String, String>>) -> Result<()> {
        let bytes: BTreeMap<&str, Vec<u8>> = self
            .arrays
            .iter()
            .map(|(name, a)| {
                (name.as_str(), a.data.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
            })
            .collect();
        let mut views = Vec::with_capacity(bytes.len());
        for (name, data) in &bytes {
            let shape = self.arrays[*name].shape.clone();
            let view = TensorView::new(Dtype::F32, shape, data).map_err(|e| {
                Error::model(path, format!("tensor '{name}' cannot be stored: {e}"))
            })?;
            views.push((*name, view));
        }
        let whole = safetensors::serialize(views, metadata)
            .map_err(|e| Error::model(path, format!("cannot be written: {e}")))?;
        crate::train::atomic::write(path, &whole)
    }

    /// The array of this name.
    pub fn get(&self, name: &str) -> Option<&Array> {
        self.arrays.get(name)
    }

    /// Adds or replaces an array.
    pub fn insert(&mut self, name: impl Into<String>, array: Array) {
        self.arrays.insert(name.into(), array);
    }

    /// Removes and returns an array.
    pub fn remove(&mut self, name: &str) -> Option<Array> {
        self.arrays.remove(name)
    }

    /// Names and arrays, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Array)> {
        self.arrays.iter().map(|(n, a)| (n.as_str(), a))
    }

    /// Number of arrays.
    pub fn len(&self) -> usize {
        self.arrays.len()
    }

    /// Whether there is no array.
    pub fn is_empty(&self) -> bool {
        self.arrays.is_empty()
    }
}

fn read_view(view: &TensorView<'_>) -> Option<Array> {
    let bytes = view.data();
    let data: Vec<f32> = match view.dtype() {
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Dtype::F64 => bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32)
            .collect(),
        Dtype::BF16 => bytes
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
            .collect(),
        Dtype::F16 => {
            bytes.chunks_exact(2).map(|b| half_to_f32(u16::from_le_bytes([b[0], b[1]]))).collect()
        }
        Dtype::U8 => bytes.iter().map(|b| f32::from(*b)).collect(),
        _ => return None,
    };
    Some(Array { shape: view.shape().to_vec(), data })
}

/// IEEE 754 binary16 to binary32.
fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((bits >> 10) & 0x1f);
    let fraction = f32::from(bits & 0x3ff);
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_survive_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let mut weights = Weights::new();
        weights.insert("a.b", Array::new(vec![2, 3], vec![1.0, -2.5, 0.0, 1e-30, 7.0, -0.0]));
        weights.insert("gain", Array::new(vec![], vec![0.25]));
        weights.save(&path).unwrap();
        assert_eq!(Weights::load(&path).unwrap(), weights);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.safetensors");
        std::fs::write(&path, b"not tensors").unwrap();
        let message = Weights::load(&path).unwrap_err().to_string();
        assert!(message.contains("broken.safetensors"), "{message}");
    }

    #[test]
    fn half_precision_is_exact() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x3555, 0.333_251_95), (0x0001, 5.960_464_5e-8)]
        {
            assert_eq!(half_to_f32(bits), value);
        }
    }
}
