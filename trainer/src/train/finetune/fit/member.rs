//! The epochs of one member on what the finished branches make of every view.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use nalgebra::DMatrix;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Beta, Distribution};
use serde_json::json;

use super::predict::Predicts;
use super::stopping::Stopping;
use super::values::{finite, matrix};
use super::{DROP, Fit, MIX, START};
use crate::Result;
use crate::predictor::masks::Masks;
use crate::predictor::{Head, Member, parameters};
use crate::train::finetune::check_stop;
use crate::train::finetune::log::Log;
use crate::train::finetune::recipe::Recipe;
use crate::train::random::Stream;

impl Fit<'_> {
    /// Trains member `index` of `head` from `start`; `pooled` is z_diff of every row that has maps.
    pub(super) fn train_member(
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

/// One member under the head's branches, which stay as they are.
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

/// What a member sees of one step.
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
