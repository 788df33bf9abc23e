//! When training stops: the best epoch on tiles that are watched instead of learned from.

use nalgebra::DMatrix;

use super::Fit;
use super::predict::Predicts;
use crate::Result;
use crate::diffusion::Weights;
use crate::evaluate::metrics::{mean_defined, pearson};

/// Tiles that are watched for early stopping.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Tiles of the features.
    pub tiles: Vec<usize>,
    /// Their measured expression [tiles, panel].
    pub expression: DMatrix<f64>,
    /// Epochs without a gain before training stops.
    pub patience: usize,
}

/// The best epoch on watched tiles.
pub(super) struct Stopping {
    patience: Option<usize>,
    pub(super) best: Option<f64>,
    pub(super) since: usize,
    pub(super) weights: Option<Weights>,
}

impl Stopping {
    pub(super) fn new(watched: Option<&Watched>) -> Self {
        Self { patience: watched.map(|w| w.patience), best: None, since: 0, weights: None }
    }

    pub(super) fn see(&mut self, value: f64, weights: impl FnOnce() -> Weights) {
        if self.best.is_none_or(|best| value > best) {
            (self.best, self.since, self.weights) = (Some(value), 0, Some(weights()));
        } else {
            self.since += 1;
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.patience.is_some_and(|patience| self.since >= patience.max(1))
    }
}

impl Fit<'_> {
    /// Mean per-gene Pearson on the watched tiles, remembered if it is the best.
    pub(super) fn watch<M>(
        &self,
        stopping: &mut Stopping,
        head: &M,
        weights: impl Fn(&M) -> Weights,
    ) -> Result<Option<f64>>
    where
        M: Predicts,
    {
        let Some(watched) = &self.watched else { return Ok(None) };
        let predicted = head.predict(self, &watched.tiles)?;
        let rows = watched.tiles.len();
        let column = |m: &DMatrix<f64>, g: usize| m.as_slice()[g * rows..][..rows].to_vec();
        let genes: Vec<Option<f64>> = (0..predicted.ncols())
            .map(|g| pearson(&column(&predicted, g), &column(&watched.expression, g)))
            .collect();
        let value = mean_defined(&genes).unwrap_or(-1.0);
        stopping.see(value, || weights(head));
        Ok(Some(value))
    }
}
