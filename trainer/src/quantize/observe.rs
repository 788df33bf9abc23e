//! Runs a graph over tiles and looks at its tensors on the way.

use std::path::Path;

use diffbulk::engine::{Pixels, Probe};
use diffbulk::model::pb::ModelProto;

use super::calibrate::Histogram;
use super::graph;
use crate::Result;

/// Sets of tiles that are looked at in parallel, whatever the machine: sums do not depend on it.
const PARTS: usize = 4;

/// Tiles of RGB bytes, and how they enter the model.
#[derive(Debug, Clone, Copy)]
pub struct Tiles<'a> {
    /// Pixels of each tile, row-major HWC.
    pub images: &'a [Vec<u8>],
    /// The model's input.
    pub pixels: &'a Pixels,
    /// Names the model in errors.
    pub origin: &'a Path,
}

impl<'a> Tiles<'a> {
    /// The first `count` of them.
    pub fn first(self, count: usize) -> Self {
        Self { images: &self.images[..count.min(self.images.len())], ..self }
    }

    /// Folds the tensors called `names` of every tile into one state a part, in tile order, and
    /// returns the states.
    pub(super) fn fold<T: Send>(
        self,
        model: &ModelProto,
        names: &[String],
        start: impl Fn() -> T + Sync,
        look: impl Fn(&mut T, usize, Vec<Vec<f32>>) + Sync,
    ) -> Result<Vec<T>> {
        let probe = Probe::new(&graph::file(model, self.origin)?, self.pixels, names)?;
        let part = |part: usize| -> Result<T> {
            let mut session = probe.session()?;
            let mut state = start();
            for index in (part..self.images.len()).step_by(PARTS) {
                look(&mut state, index, session.run(&self.images[index])?);
            }
            Ok(state)
        };
        use rayon::prelude::*;
        (0..PARTS.min(self.images.len())).into_par_iter().map(part).collect()
    }

    /// The graph's first output for every tile.
    pub fn outputs(self, model: &ModelProto) -> Result<Vec<Vec<f32>>> {
        let output = graph::graph(model)?.output.iter().take(1).map(|output| output.name.clone());
        let names: Vec<String> = output.collect();
        let parts = self.fold(model, &names, Vec::new, |rows, index, mut tensors| {
            rows.push((index, tensors.swap_remove(0)));
        })?;
        let mut rows: Vec<(usize, Vec<f32>)> = parts.into_iter().flatten().collect();
        rows.sort_by_key(|(index, _)| *index);
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    /// Shape of each tensor for one tile.
    pub fn shapes(self, model: &ModelProto, names: &[String]) -> Result<Vec<Vec<usize>>> {
        Ok(Probe::new(&graph::file(model, self.origin)?, self.pixels, names)?.shapes()?)
    }

    /// Channels of each tensor: the dimension after the batch.
    pub fn channel_counts(self, model: &ModelProto, names: &[String]) -> Result<Vec<usize>> {
        let shapes = self.shapes(model, names)?;
        Ok(shapes.iter().map(|shape| shape.get(1).copied().unwrap_or(1)).collect())
    }

    /// Lowest and highest value of each tensor.
    pub fn ranges(self, model: &ModelProto, names: &[String]) -> Result<Vec<(f32, f32)>> {
        let start = || vec![(f32::INFINITY, f32::NEG_INFINITY); names.len()];
        let parts = self.fold(model, names, start, |ranges, _, tensors| {
            for (range, tensor) in ranges.iter_mut().zip(&tensors) {
                *range = tensor.iter().fold(*range, |(low, high), &v| (low.min(v), high.max(v)));
            }
        })?;
        let mut ranges = start();
        for part in parts {
            for (range, (low, high)) in ranges.iter_mut().zip(part) {
                *range = (range.0.min(low), range.1.max(high));
            }
        }
        Ok(ranges)
    }

    /// A histogram of each tensor over the range it has.
    pub fn histograms(self, model: &ModelProto, names: &[String]) -> Result<Vec<Histogram>> {
        let ranges = self.ranges(model, names)?;
        let start = || -> Vec<Histogram> {
            ranges.iter().map(|&(low, high)| Histogram::new(low, high)).collect()
        };
        let parts = self.fold(model, names, start, |histograms, _, tensors| {
            for (histogram, tensor) in histograms.iter_mut().zip(&tensors) {
                histogram.add(tensor);
            }
        })?;
        let mut histograms = start();
        for part in parts {
            histograms.iter_mut().zip(&part).for_each(|(all, part)| all.merge(part));
        }
        Ok(histograms)
    }

    /// Mean of each tensor over tiles and positions, per channel: `channels` gives the number of
    /// channels of each, which come first after the batch.
    pub fn channel_means(
        self,
        model: &ModelProto,
        names: &[String],
        channels: &[usize],
    ) -> Result<Vec<Vec<f64>>> {
        let start = || -> Vec<Vec<f64>> { channels.iter().map(|&n| vec![0.0; n]).collect() };
        let parts = self.fold(model, names, start, |means, _, tensors| {
            for (mean, tensor) in means.iter_mut().zip(&tensors) {
                let plane = (tensor.len() / mean.len()).max(1);
                for (mean, values) in mean.iter_mut().zip(tensor.chunks_exact(plane)) {
                    *mean += values.iter().map(|&v| f64::from(v)).sum::<f64>() / plane as f64;
                }
            }
        })?;
        let mut means = start();
        let count = self.images.len().max(1) as f64;
        for part in parts {
            for (mean, part) in means.iter_mut().zip(part) {
                mean.iter_mut().zip(part).for_each(|(mean, part)| *mean += part / count);
            }
        }
        Ok(means)
    }
}
