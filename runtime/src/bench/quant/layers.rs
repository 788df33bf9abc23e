//! Inside two graphs of the same model: how far each layer's values have moved.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::figures::decibel;
use crate::engine::{Normalization, Pixels, Probe};
use crate::model::{OnnxFile, pb};
use crate::{Error, Result};

/// Operators whose outputs are compared.
const COMPARED: [&str; 7] =
    ["Conv", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "DequantizeLinear", "Add"];

/// Signal to noise of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerNoise {
    /// Name of the tensor in both graphs.
    pub tensor: String,
    /// In dB, over all values of the compared tiles.
    pub sqnr_db: f64,
}

/// Compares the layers that both files have under the same names, on `images`; in graph order.
///
/// # Errors
/// When a file cannot be run, or nothing in them has the same name.
pub fn compare(
    reference: &Path,
    other: &Path,
    side: usize,
    normalization: Normalization,
    images: &[Vec<u8>],
) -> Result<Vec<LayerNoise>> {
    let (a, b) = (OnnxFile::open(reference)?, OnnxFile::open(other)?);
    let known: BTreeSet<&String> = layers(&b)?.collect();
    let names: Vec<String> = layers(&a)?.filter(|name| known.contains(name)).cloned().collect();
    if names.is_empty() {
        return Err(Error::model(
            other,
            format!("no layer has the name of one in {}", reference.display()),
        ));
    }
    let probe = |file: &OnnxFile| -> Result<Probe> {
        Probe::new(file, &Pixels::of(file, side, normalization)?, &names)
    };
    let (a, b) = (probe(&a)?, probe(&b)?);
    let (mut a, mut b) = (a.session()?, b.session()?);
    let mut sums = vec![(0.0, 0.0); names.len()];
    for image in images {
        let pairs = a.run(image)?.into_iter().zip(b.run(image)?);
        for ((signal, noise), (a, b)) in sums.iter_mut().zip(pairs) {
            for (a, b) in a.iter().zip(&b) {
                *signal += f64::from(*a).powi(2);
                *noise += f64::from(a - b).powi(2);
            }
        }
    }
    let noise = |(tensor, (signal, noise))| LayerNoise { tensor, sqnr_db: decibel(signal, noise) };
    Ok(names.into_iter().zip(sums).map(noise).collect())
}

fn layers(file: &OnnxFile) -> Result<impl Iterator<Item = &String>> {
    let compared = |node: &&pb::NodeProto| COMPARED.contains(&node.op_type.as_str());
    Ok(file.graph()?.node.iter().filter(compared).filter_map(|node| node.output.first()))
}
