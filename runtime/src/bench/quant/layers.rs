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
    /// Lowest and highest value in the reference's graph.
    pub reference: [f32; 2],
    /// Lowest and highest value in the other's.
    pub other: [f32; 2],
}

/// What is summed up of one tensor.
#[derive(Debug, Clone, Copy)]
struct Sums {
    signal: f64,
    noise: f64,
    reference: [f32; 2],
    other: [f32; 2],
}

impl Sums {
    const EMPTY: Self = Self {
        signal: 0.0,
        noise: 0.0,
        reference: [f32::INFINITY, f32::NEG_INFINITY],
        other: [f32::INFINITY, f32::NEG_INFINITY],
    };

    fn add(&mut self, reference: &[f32], other: &[f32]) {
        let reach = |[low, high]: [f32; 2], value: f32| [low.min(value), high.max(value)];
        for (&a, &b) in reference.iter().zip(other) {
            self.signal += f64::from(a).powi(2);
            self.noise += f64::from(a - b).powi(2);
            self.reference = reach(self.reference, a);
            self.other = reach(self.other, b);
        }
    }
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
    let mut sums = vec![Sums::EMPTY; names.len()];
    for image in images {
        for (sums, (a, b)) in sums.iter_mut().zip(a.run(image)?.iter().zip(&b.run(image)?)) {
            sums.add(a, b);
        }
    }
    let noise = |(tensor, sums): (String, Sums)| LayerNoise {
        tensor,
        sqnr_db: decibel(sums.signal, sums.noise),
        reference: sums.reference,
        other: sums.other,
    };
    Ok(names.into_iter().zip(sums).map(noise).collect())
}

fn layers(file: &OnnxFile) -> Result<impl Iterator<Item = &String>> {
    let compared = |node: &&pb::NodeProto| COMPARED.contains(&node.op_type.as_str());
    Ok(file.graph()?.node.iter().filter(compared).filter_map(|node| node.output.first()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_by_hand() {
        let mut sums = Sums::EMPTY;
        sums.add(&[3.0, -4.0], &[3.5, -4.0]);
        sums.add(&[0.0], &[1.0]);
        assert_eq!((sums.signal, sums.noise), (25.0, 1.25));
        assert_eq!((sums.reference, sums.other), ([-4.0, 3.0], [-4.0, 3.5]));
    }
}
