//! The epochs in which feature maps are looked at: MSFE branches, with the members or with one
//! provisional one.

use burn::module::Module;
use burn::optim::GradientsParams;
use serde_json::json;

use super::stopping::Stopping;
use super::values::finite;
use super::{DROP, Fit};
use crate::predictor::masks::Masks;
use crate::predictor::{Head, parameters};
use crate::train::finetune::check_stop;
use crate::train::finetune::checkpoint::Joint;
use crate::train::finetune::log::Log;
use crate::train::random::Stream;
use crate::{Error, Result};

impl Fit<'_> {
    /// Trains branches and members of `start` together.
    pub(super) fn train_jointly(&self, start: Head, log: &mut Log) -> Result<Head> {
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
}
