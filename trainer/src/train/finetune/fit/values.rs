//! Numbers between tensors and matrices.

use burn::tensor::{Tensor, TensorData};
use nalgebra::DMatrix;

use crate::evaluate::regression::Standardizer;
use crate::predictor::Standardization;
use crate::{Error, Result};

/// The loss of a step, which must be a number.
pub(super) fn finite(loss: &Tensor<1>, phase: &str, epoch: usize) -> Result<f64> {
    let value = host(loss.clone().without_autodiff())?.first().copied().unwrap_or(f32::NAN);
    if value.is_finite() {
        Ok(f64::from(value))
    } else {
        Err(Error::Check(format!(
            "the loss is no number any more ({phase} epoch {}); lower the learning rate",
            epoch + 1
        )))
    }
}

/// A tensor's values.
pub(super) fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor
        .into_data()
        .convert::<f32>()
        .try_into_vec::<f32>()
        .map_err(|e| Error::Check(format!("a tensor cannot be read back: {e:?}")))
}

/// A tensor as a matrix.
pub(super) fn matrix(tensor: Tensor<2>) -> Result<DMatrix<f64>> {
    let [rows, columns] = tensor.dims();
    Ok(DMatrix::from_row_iterator(rows, columns, host(tensor)?.into_iter().map(f64::from)))
}

/// Makes the statistics those of a standardisation.
pub(super) fn set_norm(norm: &mut Standardization, statistics: &Standardizer) {
    let data = |values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let length = values.len();
        TensorData::new(values, [length])
    };
    norm.mean = norm.mean.clone().map(|t| Tensor::from_data(data(statistics.mean()), &t.device()));
    norm.scale =
        norm.scale.clone().map(|t| Tensor::from_data(data(statistics.scale()), &t.device()));
}
