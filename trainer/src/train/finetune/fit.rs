//! The training loops of stage 2.
//!
//! First the MSFE branches are trained on feature maps, together with the members or with one
//! provisional member. Then, where the recipe says so, the members are trained afresh on what the
//! finished branches make of every view, which costs next to nothing and so affords many of them.
//! Everything random is a function of the seed and of what it is for, so a run that was stopped
//! resumes to the numbers it would have had.

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};
use nalgebra::DMatrix;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Beta, Distribution};
use serde_json::json;

use super::check_stop;
use super::checkpoint::{Checkpoints, Joint};
use super::features::Features;
use super::log::Log;
use super::recipe::Recipe;
use super::targets::Targets;
use crate::evaluate::metrics::{mean_defined, pearson};
use crate::evaluate::regression::Standardizer;
use crate::predictor::masks::Masks;
use crate::predictor::{Head, HeadConfig, Member, parameters};
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

    fn train_jointly(&self, start: Head, log: &mut Log) -> Result<Head> {
        let epochs = self.recipe.joint_epochs;
        let mut optimizer = self.optimizer();
        let mut head = start.train();
        let mut stopping = Stopping::new(self.watched.as_ref());
        let mut first = 0;
        if let Some(saved) = self.checkpoints.map(|c| c.joint()).transpose()?.flatten() {
            let path = std::path::Path::new("checkpoint");
            head = parameters::with_parameters(head, &saved.weights, path)?;
            head = parameters::with_identities(head, &saved.identities);
            if !saved.optimizer.is_empty() {
                let bytes = burn::tensor::Bytes::from_bytes_vec(saved.optimizer);
                optimizer = optimizer.from_bytes(bytes).map_err(|e| {
                    Error::Check(format!("the checkpoint's optimizer cannot be read: {e}; delete the checkpoint folder and run again"))
                })?;
            }
            stopping.best = saved.best;
            stopping.since = saved.since_best;
            if let Some(best) = saved.best_weights {
                stopping.weights = Some(best);
            }
            first = saved.epoch;
        }
        let steps = epochs * self.tiles.len().div_ceil(self.recipe.joint_batch);
        log.begin("joint", epochs, first);
        for epoch in first..epochs {
            if stopping.is_over() {
                break;
            }
            let started = std::time::Instant::now();
            let mut total = 0.0;
            let batches = self.batches(&[], epoch, self.recipe.joint_batch);
            for (index, (positions, rows)) in batches.iter().enumerate() {
                check_stop()?;
                let step = epoch * batches.len() + index;
                let maps = self.features.maps(rows, self.device);
                let (foundation, diffusion) =
                    head.standardize(self.features.foundation(rows, self.device), head.pool(&maps));
                let target = self.target_rows(positions);
                let losses = head.member.iter().enumerate().filter_map(|(m, member)| {
                    let mut stream = Stream::keyed(self.seed, &[DROP, step as u64, m as u64]);
                    let out = member.forward(
                        foundation.clone(),
                        diffusion.clone(),
                        &mut Masks::new(&mut stream),
                    )?;
                    Some((out - target.clone()).square().mean())
                });
                let Some(loss) = losses.reduce(|a, b| a + b) else { continue };
                let loss = loss / head.member.len() as f32;
                total += finite(&loss, "joint", epoch)? * positions.len() as f64;
                let gradients = GradientsParams::from_grads(loss.backward(), &head);
                let rate = self.rate(self.recipe.joint_learning_rate, step, steps);
                head = optimizer.step(rate, head, gradients);
            }
            let watched = self.watch(&mut stopping, &head.valid(), parameters::parameters)?;
            log.epoch(json!({
                "phase": "joint", "epoch": epoch + 1,
                "loss": total / self.tiles.len().max(1) as f64,
                "watched_pearson": watched,
                "seconds": started.elapsed().as_secs_f64(),
            }))?;
            if let Some(checkpoints) = self.checkpoints {
                let optimizer = optimizer
                    .into_bytes()
                    .map_err(|e| Error::Check(format!("the optimizer cannot be saved: {e}")))?;
                checkpoints.save_joint(&Joint {
                    epoch: epoch + 1,
                    weights: parameters::parameters(&head),
                    identities: parameters::identities(&head),
                    optimizer: optimizer.to_vec(),
                    best: stopping.best,
                    since_best: stopping.since,
                    best_weights: stopping.weights.clone(),
                })?;
            }
        }
        log.end();
        let mut head = head.valid();
        if let Some(best) = stopping.weights {
            head = parameters::with_parameters(head, &best, std::path::Path::new("best epoch"))?;
        }
        Ok(head)
    }

    /// Mean per-gene Pearson on the watched tiles, remembered if it is the best.
    fn watch<M>(
        &self,
        stopping: &mut Stopping,
        head: &M,
        weights: impl Fn(&M) -> crate::diffusion::Weights,
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

    fn train_member(
        &self,
        index: usize,
        start: Member,
        head: &Head,
        pooled: Option<&Tensor<2>>,
        log: &mut Log,
    ) -> Result<Member> {
        let saved = self.checkpoints.map(|c| c.member(index)).transpose()?.flatten();
        if let Some(weights) = saved {
            let path = std::path::Path::new("checkpoint");
            return parameters::with_parameters(start, &weights, path);
        }
        let epochs = self.recipe.epochs;
        let keys = [START, index as u64];
        let mut optimizer = self.optimizer();
        let mut member = start.train();
        let mut stopping = Stopping::new(self.watched.as_ref());
        let mut last = 0.0;
        let started = std::time::Instant::now();
        let steps = epochs * self.tiles.len().div_ceil(self.recipe.batch);
        log.begin(&format!("member {}", index + 1), epochs, 0);
        for epoch in 0..epochs {
            if stopping.is_over() {
                break;
            }
            check_stop()?;
            let mut total = 0.0;
            let batches = self.batches(&keys, epoch, self.recipe.batch);
            for (number, (positions, rows)) in batches.iter().enumerate() {
                let step = epoch * batches.len() + number;
                let place = [index as u64, step as u64];
                let mut stream = Stream::keyed(self.seed, &[MIX, place[0], place[1]]);
                let (foundation, diffusion) = head.standardize(
                    self.features.foundation(rows, self.device),
                    pooled.map(|p| self.select(p, rows)),
                );
                let mut batch =
                    Batch { foundation, diffusion, target: self.target_rows(positions) };
                batch.disturb(self.recipe, &mut stream, self.device);
                let mut stream = Stream::keyed(self.seed, &[DROP, place[0] + 1, place[1]]);
                let out =
                    member.forward(batch.foundation, batch.diffusion, &mut Masks::new(&mut stream));
                let Some(out) = out else { continue };
                let loss = (out - batch.target).square().mean();
                total += finite(&loss, "member", epoch)? * positions.len() as f64;
                let gradients = GradientsParams::from_grads(loss.backward(), &member);
                let rate = self.rate(self.recipe.learning_rate, step, steps);
                member = optimizer.step(rate, member, gradients);
            }
            last = total / self.tiles.len().max(1) as f64;
            let alone = OneMember { head, pooled, member: member.valid() };
            let watched =
                self.watch(&mut stopping, &alone, |a| parameters::parameters(&a.member))?;
            if watched.is_some() {
                log.epoch(json!({
                    "phase": "member", "member": index + 1, "epoch": epoch + 1,
                    "loss": last, "watched_pearson": watched,
                }))?;
            } else {
                log.tick();
            }
        }
        log.end();
        log.line(json!({
            "phase": "member", "member": index + 1, "loss": last,
            "watched_pearson": stopping.best,
            "seconds": started.elapsed().as_secs_f64(),
        }))?;
        let mut member = member.valid();
        if let Some(best) = stopping.weights {
            member =
                parameters::with_parameters(member, &best, std::path::Path::new("best epoch"))?;
        }
        if let Some(checkpoints) = self.checkpoints {
            checkpoints.save_member(index, &parameters::parameters(&member))?;
        }
        Ok(member)
    }

    /// Rows of the table of z_diff.
    fn select(&self, table: &Tensor<2>, rows: &[usize]) -> Tensor<2> {
        let indices: Vec<i64> = rows.iter().map(|r| self.features.map_row(*r) as i64).collect();
        let indices = TensorData::new(indices, [rows.len()]);
        table.clone().select(0, Tensor::from_data(indices, self.device))
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

/// Predicts expression of tiles in their plain view.
trait Predicts {
    fn predict(&self, fit: &Fit, tiles: &[usize]) -> Result<DMatrix<f64>>;
}

impl Predicts for Head {
    fn predict(&self, fit: &Fit, tiles: &[usize]) -> Result<DMatrix<f64>> {
        predict(self, fit.features, tiles, fit.device)
    }
}

struct OneMember<'a> {
    head: &'a Head,
    pooled: Option<&'a Tensor<2>>,
    member: Member,
}

impl Predicts for OneMember<'_> {
    fn predict(&self, fit: &Fit, tiles: &[usize]) -> Result<DMatrix<f64>> {
        let (foundation, diffusion) = self.head.standardize(
            fit.features.foundation(tiles, fit.device),
            self.pooled.map(|p| fit.select(p, tiles)),
        );
        let out = self.member.forward(foundation, diffusion, &mut Masks::none());
        let out = match out {
            Some(out) => matrix(out)?,
            None => DMatrix::zeros(tiles.len(), fit.targets.values.ncols()),
        };
        Ok(fit.targets.decode(&out))
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

struct Batch {
    foundation: Option<Tensor<2>>,
    diffusion: Option<Tensor<2>>,
    target: Tensor<2>,
}

impl Batch {
    /// Mixes pairs and adds noise, as the recipe says.
    fn disturb(&mut self, recipe: &Recipe, stream: &mut Stream, device: &Device) {
        let [rows, _] = self.target.dims();
        if recipe.mixup > 0.0
            && let Ok(beta) = Beta::new(recipe.mixup, recipe.mixup)
        {
            let mut random = StdRng::seed_from_u64(stream.bits());
            let shares: Vec<f32> = (0..rows).map(|_| beta.sample(&mut random) as f32).collect();
            let shares = Tensor::<2>::from_data(TensorData::new(shares, [rows, 1]), device);
            let partners: Vec<i64> =
                stream.permutation(rows).into_iter().map(|i| i as i64).collect();
            let partners = TensorData::new(partners, [rows]);
            let mix = |x: Tensor<2>| {
                let partners = Tensor::from_data(partners.clone(), device);
                let other = x.clone().select(0, partners);
                other.clone() + (x - other) * shares.clone()
            };
            self.foundation = self.foundation.take().map(mix);
            self.diffusion = self.diffusion.take().map(mix);
            self.target = mix(self.target.clone());
        }
        if recipe.noise > 0.0 {
            let mut noisy = |x: Tensor<2>| {
                let shape = x.dims();
                let noise = stream.normals(shape[0] * shape[1]);
                let noise = Tensor::<2>::from_data(TensorData::new(noise, shape), device);
                x + noise * recipe.noise as f32
            };
            self.foundation = self.foundation.take().map(&mut noisy);
            self.diffusion = self.diffusion.take().map(&mut noisy);
        }
    }
}

/// The best epoch on watched tiles.
struct Stopping {
    patience: Option<usize>,
    best: Option<f64>,
    since: usize,
    weights: Option<crate::diffusion::Weights>,
}

impl Stopping {
    fn new(watched: Option<&Watched>) -> Self {
        Self { patience: watched.map(|w| w.patience), best: None, since: 0, weights: None }
    }

    fn see(&mut self, value: f64, weights: impl FnOnce() -> crate::diffusion::Weights) {
        if self.best.is_none_or(|best| value > best) {
            (self.best, self.since, self.weights) = (Some(value), 0, Some(weights()));
        } else {
            self.since += 1;
        }
    }

    fn is_over(&self) -> bool {
        self.patience.is_some_and(|patience| self.since >= patience.max(1))
    }
}

fn finite(loss: &Tensor<1>, phase: &str, epoch: usize) -> Result<f64> {
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

fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor
        .into_data()
        .convert::<f32>()
        .try_into_vec::<f32>()
        .map_err(|e| Error::Check(format!("a tensor cannot be read back: {e:?}")))
}

fn matrix(tensor: Tensor<2>) -> Result<DMatrix<f64>> {
    let [rows, columns] = tensor.dims();
    Ok(DMatrix::from_row_iterator(rows, columns, host(tensor)?.into_iter().map(f64::from)))
}

fn set_norm(norm: &mut crate::predictor::Standardization, statistics: &Standardizer) {
    let data = |values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let length = values.len();
        TensorData::new(values, [length])
    };
    norm.mean = norm.mean.clone().map(|t| Tensor::from_data(data(statistics.mean()), &t.device()));
    norm.scale =
        norm.scale.clone().map(|t| Tensor::from_data(data(statistics.scale()), &t.device()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::f16;

    const TILES: usize = 48;

    /// Two hidden factors: one shows in the maps, one in the foundation vectors.
    fn factors(tile: usize) -> [f64; 2] {
        let mut stream = Stream::keyed(9, &[tile as u64]);
        [stream.normal(), stream.normal()]
    }

    fn features() -> Features {
        let levels = vec![[4, 2, 2], [3, 4, 4]];
        let mut maps = Vec::new();
        let mut foundation = Vec::new();
        for view in 0..2 {
            for tile in 0..TILES {
                let [a, b] = factors(tile);
                let mut noise = Stream::keyed(5, &[view, tile as u64]);
                for value in 0..(4 * 4 + 3 * 16) {
                    let wave = (value as f64 * 1.3).sin();
                    maps.push(f16::from_f64(a * wave + 0.05 * noise.normal()));
                }
                for value in 0..5 {
                    foundation.push((b * (value as f64 - 2.0) + 0.05 * noise.normal()) as f32);
                }
            }
        }
        Features::new(TILES, 2, levels, maps, foundation).unwrap()
    }

    fn expression(tiles: &[usize]) -> DMatrix<f64> {
        DMatrix::from_fn(tiles.len(), 6, |i, gene| {
            let [a, b] = factors(tiles[i]);
            2.0 + if gene % 2 == 0 { a } else { b } * (1.0 + gene as f64 * 0.2)
        })
    }

    fn recipe() -> Recipe {
        Recipe {
            branch_out: 8,
            groups: 2,
            standardized: true,
            components: Some(2),
            members: 2,
            joint_epochs: 4,
            epochs: 12,
            batch: 8,
            joint_batch: 8,
            joint_learning_rate: 2e-2,
            learning_rate: 1e-2,
            dropout: 0.1,
            input_dropout: 0.05,
            noise: 0.05,
            mixup: 0.4,
            ..Recipe::default()
        }
    }

    fn train(recipe: &Recipe, features: &Features, folder: Option<&std::path::Path>) -> Head {
        let tiles: Vec<usize> = (0..32).collect();
        let sections = vec!["a".to_owned(); tiles.len()];
        let targets = Targets::new(recipe, &expression(&tiles), &sections, 6);
        let checkpoints = folder.map(|f| Checkpoints::open(f, "key").unwrap());
        let watched = recipe.early_stopping.as_ref().map(|stopping| Watched {
            tiles: (32..40).collect(),
            expression: expression(&(32..40).collect::<Vec<_>>()),
            patience: stopping.patience,
        });
        let fit = Fit {
            features,
            tiles: &tiles,
            targets: &targets,
            recipe,
            watched,
            seed: 3,
            device: &Device::flex(),
            checkpoints: checkpoints.as_ref(),
        };
        fit.run(&mut Log::new(None, false, "").unwrap()).unwrap()
    }

    fn held_out_pearson(head: &Head, features: &Features) -> Vec<Option<f64>> {
        let tiles: Vec<usize> = (40..TILES).collect();
        let predicted = predict(head, features, &tiles, &Device::flex()).unwrap();
        let draws = crate::evaluate::metrics::Scores::new(&predicted, &expression(&tiles), &[]);
        draws.gene_pearson
    }

    #[test]
    fn every_way_of_training_learns_what_its_features_show() {
        let features = features();
        let jointly = Recipe { epochs: 0, joint_epochs: 25, ..recipe() };
        for recipe in [recipe(), jointly] {
            let fused = held_out_pearson(&train(&recipe, &features, None), &features);
            assert!(fused.iter().all(|r| r.unwrap() > 0.8), "{fused:?}");
        }
        let maps = features.without_foundation();
        let only_maps = held_out_pearson(&train(&recipe(), &maps, None), &maps);
        assert!(only_maps[0].unwrap() > 0.8 && only_maps[1].unwrap() < 0.8, "{only_maps:?}");
        let vectors = features.without_diffusion();
        let only_vectors = held_out_pearson(&train(&recipe(), &vectors, None), &vectors);
        assert!(only_vectors[1].unwrap() > 0.8, "{only_vectors:?}");
        assert!(only_vectors[0].unwrap() < 0.8, "{only_vectors:?}");
    }

    #[test]
    fn a_stopped_training_resumes_to_the_same_numbers() {
        let features = features();
        let whole = Recipe { epochs: 0, joint_epochs: 3, ..recipe() };
        let part = Recipe { joint_epochs: 1, ..whole.clone() };
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("checkpoint");
        train(&part, &features, Some(&folder));
        let resumed = train(&whole, &features, Some(&folder)).to_weights();
        let straight = train(&whole, &features, None).to_weights();
        assert_eq!(resumed, straight);

        let members = recipe();
        let straight = train(&members, &features, None).to_weights();
        let folder = folder.with_file_name("members");
        train(&members, &features, Some(&folder));
        std::fs::remove_file(folder.join("member-2.safetensors")).unwrap();
        assert_eq!(train(&members, &features, Some(&folder)).to_weights(), straight);
    }

    #[test]
    fn early_stopping_keeps_the_best_epoch() {
        let stopping = super::super::recipe::EarlyStopping { section: "w".into(), patience: 2 };
        let recipe =
            Recipe { epochs: 60, joint_epochs: 2, early_stopping: Some(stopping), ..recipe() };
        let features = features();
        let head = train(&recipe, &features, None);
        assert!(held_out_pearson(&head, &features).iter().all(|r| r.unwrap() > 0.7));
    }

    #[test]
    fn a_head_comes_back_from_its_files() {
        let features = features();
        let head = train(&recipe(), &features, None);
        let again = Head::from_weights(
            head.config(),
            &head.to_weights(),
            std::path::Path::new("head.safetensors"),
            &Device::flex(),
        )
        .unwrap();
        let tiles: Vec<usize> = (0..TILES).collect();
        let device = Device::flex();
        assert_eq!(
            predict(&head, &features, &tiles, &device).unwrap(),
            predict(&again, &features, &tiles, &device).unwrap()
        );
        assert!(head.to_weights().get("member2.gate.0.weight").is_some());
    }
}
