//! Predictions while and after training.

use burn::tensor::Device;
use nalgebra::DMatrix;

use super::values::host;
use super::{Fit, PREDICTION_BATCH};
use crate::predictor::Head;
use crate::train::finetune::features::Features;
use crate::{Error, Result};

/// Predicts expression of tiles in their plain view.
pub(super) trait Predicts {
    fn predict(&self, fit: &Fit, tiles: &[usize]) -> Result<DMatrix<f64>>;
}

impl Predicts for Head {
    fn predict(&self, fit: &Fit, tiles: &[usize]) -> Result<DMatrix<f64>> {
        predict(self, fit.features, tiles, fit.device)
    }
}

/// Predicted expression [tiles, genes] of tiles in their plain view.
pub fn predict(
    head: &Head,
    features: &Features,
    tiles: &[usize],
    device: &Device,
) -> Result<DMatrix<f64>> {
    let mut rows = Vec::new();
    for tiles in tiles.chunks(PREDICTION_BATCH) {
        let maps = features.maps(tiles, device);
        let out = head.decode(features.foundation(tiles, device), head.pool(&maps));
        let Some(out) = out else {
            return Err(Error::Request(
                "the head needs features that were not computed; give the U-Net and the encoder \
                 it was trained with"
                    .into(),
            ));
        };
        rows.extend(host(out)?);
    }
    let genes = rows.len() / tiles.len().max(1);
    Ok(DMatrix::from_row_iterator(tiles.len(), genes, rows.into_iter().map(f64::from)))
}
