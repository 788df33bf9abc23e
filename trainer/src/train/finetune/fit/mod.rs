//! The training loops of stage 2.
//!
//! First the MSFE branches are trained on feature maps, together with the members or with one
//! provisional member. Then, where the recipe says so, the members are trained afresh on what the
//! finished branches make of every view, which costs next to nothing and so affords many of them.
//! Everything random is a function of the seed and of what it is for, so a run that was stopped
//! resumes to the numbers it would have had.
//!
//! [`joint`] trains branches, [`member`] one member, [`stopping`] knows the best epoch, and
//! [`values`] moves numbers between tensors and matrices.

mod joint;
mod member;
mod predict;
mod stopping;
#[cfg(test)]
mod tests;
mod values;

use burn::optim::{AdamWConfig, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};
use nalgebra::DMatrix;

pub use predict::predict;
pub use stopping::Watched;
use values::{matrix, set_norm};

use super::check_stop;
use super::checkpoint::Checkpoints;
use super::features::Features;
use super::log::Log;
use super::recipe::Recipe;
use super::targets::Targets;
use crate::evaluate::regression::Standardizer;
use crate::predictor::{Head, HeadConfig};
use crate::train::random::Stream;
use crate::{Error, Result};

/// Tiles of one step without gradients.
const PREDICTION_BATCH: usize = 32;

/// Purposes of random streams.
const ORDER: u64 = 1;
const VIEW: u64 = 2;
const DROP: u64 = 3;
const MIX: u64 = 4;
const START: u64 = 5;

/// One training of a head.
pub struct Fit<'a> {
    /// What is known of every tile.
    pub features: &'a Features,
    /// Tiles to learn from, in the order of the targets' rows.
    pub tiles: &'a [usize],
    /// What to learn.
    pub targets: &'a Targets,
    /// How.
    pub recipe: &'a Recipe,
    /// Tiles to stop by.
    pub watched: Option<Watched>,
    /// Seed of everything random.
    pub seed: u64,
    /// Where to compute; without autodiff.
    pub device: &'a Device,
    /// Where finished parts are kept, if they are.
    pub checkpoints: Option<&'a Checkpoints>,
}

impl Fit<'_> {
    /// Trains the head.
    pub fn run(&self, log: &mut Log) -> Result<Head> {
        let panel = match &self.targets.decoding {
            Some(decoding) => decoding.mean.len(),
            None => self.targets.values.ncols(),
        };
        let final_config = self.recipe.head(
            self.features.branch_channels(),
            self.features.foundation_dim(),
            panel,
        );
        final_config.check().map_err(Error::Request)?;
        let has_branches = !final_config.branch_channels.is_empty();
        let members_apart = self.recipe.epochs > 0;
        if !members_apart {
            let mut head = Head::seeded(&final_config, self.recipe.start, self.seed, self.device);
            self.set_constants(&mut head)?;
            self.set_diffusion_norm(&mut head)?;
            return self.train_jointly(head, log);
        }

        let mut whole = Head::seeded(&final_config, self.recipe.start, self.seed, self.device);
        self.set_constants(&mut whole)?;
        if has_branches {
            let config = provisional(&final_config);
            let mut branches = Head::seeded(&config, self.recipe.start, self.seed, self.device);
            self.set_constants(&mut branches)?;
            whole.block = self.train_jointly(branches, log)?.block;
            self.set_diffusion_norm(&mut whole)?;
        }
        let rows: Vec<usize> = (0..self.features.map_rows()).collect();
        let pooled = self.pooled(&whole, &rows)?;
        let starts = whole.member.clone();
        whole.member.clear();
        for (index, member) in starts.into_iter().enumerate() {
            let member = self.train_member(index, member, &whole, pooled.as_ref(), log)?;
            whole.member.push(member);
        }
        Ok(whole)
    }

    /// Constants that training does not change: components of expression, statistics of z_fm.
    fn set_constants(&self, head: &mut Head) -> Result<()> {
        if let (Some(layer), Some(decoding)) = (&mut head.components, &self.targets.decoding) {
            let (rows, columns) = decoding.axes.shape();
            let axes =
                (0..rows * columns).map(|i| decoding.axes[(i / columns, i % columns)] as f32);
            let axes = TensorData::new(axes.collect::<Vec<_>>(), [rows, columns]);
            let mean: Vec<f32> = decoding.mean.iter().map(|v| *v as f32).collect();
            let mean = TensorData::new(mean, [columns]);
            layer.weight = layer.weight.clone().map(|t| Tensor::from_data(axes, &t.device()));
            layer.bias =
                layer.bias.take().map(|bias| bias.map(|t| Tensor::from_data(mean, &t.device())));
        }
        if let Some(norm) = &mut head.foundation_norm {
            let width = self.features.foundation_dim();
            let x = DMatrix::from_fn(self.tiles.len(), width, |i, j| {
                f64::from(self.features.foundation_row(self.tiles[i])[j])
            });
            set_norm(norm, &Standardizer::fit(&x));
        }
        Ok(())
    }

    /// Statistics of z_diff under the head's present branches, over the training tiles.
    fn set_diffusion_norm(&self, head: &mut Head) -> Result<()> {
        if head.diffusion_norm.is_none() {
            return Ok(());
        }
        let Some(pooled) = self.pooled(head, self.tiles)? else { return Ok(()) };
        if let Some(norm) = &mut head.diffusion_norm {
            set_norm(norm, &Standardizer::fit(&matrix(pooled)?));
        }
        Ok(())
    }

    /// z_diff of rows before its standardisation.
    fn pooled(&self, head: &Head, rows: &[usize]) -> Result<Option<Tensor<2>>> {
        let mut parts = Vec::new();
        for rows in rows.chunks(PREDICTION_BATCH) {
            check_stop()?;
            parts.extend(head.pool(&self.features.maps(rows, self.device)));
        }
        Ok((!parts.is_empty()).then(|| Tensor::cat(parts, 0)))
    }

    fn optimizer(&self) -> ModuleOptimizer {
        AdamWConfig::new()
            .with_epsilon(1e-8)
            .with_weight_decay(self.recipe.weight_decay as f32)
            .init()
    }

    /// Learning rate at `step` of `steps`.
    fn rate(&self, base: f64, step: usize, steps: usize) -> f64 {
        if self.recipe.cosine {
            let done = step as f64 / steps.max(1) as f64;
            base * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
        } else {
            base
        }
    }

    /// Positions in `tiles` of every step of an epoch, with the feature rows of a random view.
    fn batches(&self, keys: &[u64], epoch: usize, size: usize) -> Vec<(Vec<usize>, Vec<usize>)> {
        let key = |purpose: u64| [&[purpose], keys, &[epoch as u64]].concat();
        let order = Stream::keyed(self.seed, &key(ORDER)).permutation(self.tiles.len());
        let mut views = Stream::keyed(self.seed, &key(VIEW));
        order
            .chunks(size)
            .map(|positions| {
                let row = |&p: &usize| {
                    self.features.row(self.tiles[p], views.below(self.features.views()))
                };
                (positions.to_vec(), positions.iter().map(row).collect())
            })
            .collect()
    }

    fn target_rows(&self, positions: &[usize]) -> Tensor<2> {
        let width = self.targets.values.ncols();
        let values = positions
            .iter()
            .flat_map(|&p| (0..width).map(move |j| (p, j)))
            .map(|at| self.targets.values[at] as f32);
        let data = TensorData::new(values.collect::<Vec<_>>(), [positions.len(), width]);
        Tensor::from_data(data, self.device)
    }
}

/// The head that branches are trained with when the members come later: a linear map from z_diff.
fn provisional(config: &HeadConfig) -> HeadConfig {
    HeadConfig {
        foundation_dim: 0,
        foundation_width: None,
        map_statistics: false,
        standardized: false,
        activated: false,
        hidden: Vec::new(),
        linear_skip: false,
        members: 1,
        ..config.clone()
    }
}
