//! Gradients of one training step: a batch in micro-batches, in parallel lanes.
//!
//! Each lane is one thread with its own share of the micro-batches; lanes share nothing while
//! they run, and their sums are added in order, so the result depends on the number of lanes but
//! never on timing.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::random::Stream;
use super::tiles::{Tile, TileSource};
use crate::data::augment::{StainJitter, dihedral};
use crate::diffusion::denoiser::{NOISE_MEAN, NOISE_STD};
use crate::diffusion::parameters::host;
use crate::diffusion::{Condition, Config, Denoiser, Effective, Parameters};
use crate::{Error, Result};

/// What a step does with every image, apart from which images they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Seed of all random numbers.
    pub seed: u64,
    /// Images that share one forward pass.
    pub micro_batch: usize,
    /// Threads that work on micro-batches at the same time.
    pub lanes: usize,
    /// Probability of training an image without its genes.
    pub gene_drop: f64,
    /// Dropout inside the gene encoder.
    pub dropout: f64,
    /// Strength of the stain jitter, 0 for none.
    pub stain_jitter: f32,
}

/// Gradients of the stored parameters and the mean loss of a batch.
#[derive(Debug)]
pub struct StepGradients {
    /// In the order of [`Parameters::specs`]; nothing where a parameter had no influence.
    pub gradients: Vec<Option<Tensor<1>>>,
    /// Mean over images of the uncertainty-weighted loss.
    pub loss: f64,
}

/// One image of a step before it becomes a tensor.
struct Example {
    values: Vec<f32>,
    noise: Vec<f32>,
    sigma: f32,
    expression: Option<Vec<f32>>,
}

/// Purposes of an image's random numbers.
mod purpose {
    pub const AUGMENT: u64 = 1;
    pub const SIGMA: u64 = 2;
    pub const NOISE: u64 = 3;
    pub const GENES: u64 = 4;
    pub const DROPOUT: u64 = 5;
}

/// Loads and augments a tile and draws its noise; `image` counts all images of the run.
fn example(source: &dyn TileSource, tile: Tile, image: u64, recipe: &Recipe) -> Result<Example> {
    let stream = |what: u64| Stream::keyed(recipe.seed, &[what, image]);
    let bytes = source.image(tile)?;
    let size = source.tile_px();
    if bytes.len() != size * size * 3 {
        return Err(Error::Request(format!(
            "tile {tile:?} has {} bytes, not those of a {size} px RGB image; prepare the dataset \
             again",
            bytes.len()
        )));
    }
    let mut augment = stream(purpose::AUGMENT);
    let mut bytes = dihedral(&bytes, size, (augment.bits() & 7) as u8);
    if recipe.stain_jitter > 0.0 {
        bytes = StainJitter::new(recipe.stain_jitter, augment.bits()).apply(&bytes);
    }
    let sigma = (NOISE_MEAN + NOISE_STD * stream(purpose::SIGMA).normal()).exp() as f32;
    let expression = if stream(purpose::GENES).uniform() < recipe.gene_drop {
        None
    } else {
        source.expression(tile)
    };
    let values = planar(&bytes, size);
    let noise = stream(purpose::NOISE).normals(values.len());
    Ok(Example { values, noise, sigma, expression })
}

/// RGB bytes `[H, W, 3]` as `[3, H, W]` in [-1, 1].
pub fn planar(bytes: &[u8], size: usize) -> Vec<f32> {
    let area = size * size;
    let mut values = vec![0.0; 3 * area];
    for (i, pixel) in bytes.chunks_exact(3).enumerate().take(area) {
        for (c, v) in pixel.iter().enumerate() {
            values[c * area + i] = f32::from(*v) / 127.5 - 1.0;
        }
    }
    values
}

/// Rows of the gene table a source's expression values belong to.
pub fn row_tensor(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i64> = rows.iter().map(|r| *r as i64).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// Sum of the losses of one micro-batch, differentiable in `leaves`.
fn micro_batch_loss(
    source: &dyn TileSource,
    config: &Config,
    leaves: &Effective,
    tiles: &[(u64, Tile)],
    recipe: &Recipe,
    device: &Device,
) -> Result<Tensor<1>> {
    let mut examples = tiles
        .iter()
        .map(|(image, tile)| example(source, *tile, *image, recipe))
        .collect::<Result<Vec<_>>>()?;
    // Conditioned images first: the others skip the gene encoder.
    examples.sort_by_key(|e| e.expression.is_none());
    let size = source.tile_px();
    let n = examples.len();
    let stack = |part: fn(&Example) -> &[f32]| -> Tensor<4> {
        let values: Vec<f32> = examples.iter().flat_map(|e| part(e).iter().copied()).collect();
        Tensor::from_data(TensorData::new(values, [n, 3, size, size]), device)
    };
    let x0 = stack(|e| &e.values);
    let noise = stack(|e| &e.noise);
    let sigmas: Vec<f32> = examples.iter().map(|e| e.sigma).collect();
    let sigma = Tensor::from_data(TensorData::new(sigmas, [n]), device);

    let expression: Vec<&Vec<f32>> = examples.iter().map_while(|e| e.expression.as_ref()).collect();
    let condition = (!expression.is_empty() && config.panel_size > 0).then(|| {
        let (m, genes) = (expression.len(), expression[0].len());
        let values: Vec<f32> = expression.iter().flat_map(|e| e.iter().copied()).collect();
        let stream = Stream::keyed(recipe.seed, &[purpose::DROPOUT, tiles[0].0]);
        Condition {
            values: Tensor::from_data(TensorData::new(values, [m, genes]), device),
            rows: Some(row_tensor(source.gene_rows(), device)),
            dropout: Some((recipe.dropout, stream)),
        }
    });
    let denoiser = Denoiser::new(config, leaves)?;
    Ok(denoiser.loss(x0, noise, sigma, condition.as_ref()).sum())
}

/// Summed gradients of a lane's micro-batches, by the index of the weight.
struct LaneSum {
    gradients: Vec<Option<Tensor<1>>>,
    loss: f64,
}

/// Computes the gradients of the mean loss over `tiles`, numbered from `first_image`.
pub fn gradients(
    source: &dyn TileSource,
    config: &Config,
    parameters: &Parameters,
    tiles: &[Tile],
    first_image: u64,
    recipe: &Recipe,
    device: &Device,
) -> Result<StepGradients> {
    let effective = parameters.effective();
    let names: Vec<&str> = parameters.specs().iter().map(|s| s.name.as_str()).collect();
    let numbered: Vec<(u64, Tile)> = (first_image..).zip(tiles.iter().copied()).collect();
    let micro: Vec<&[(u64, Tile)]> = numbered.chunks(recipe.micro_batch.max(1)).collect();
    let lanes = recipe.lanes.clamp(1, micro.len().max(1));
    let weight = 1.0 / tiles.len().max(1) as f64;

    let lane = |index: usize| -> Result<LaneSum> {
        let leaves = effective.differentiable();
        let mut sum = LaneSum { gradients: vec![None; names.len()], loss: 0.0 };
        for tiles in micro.iter().skip(index).step_by(lanes) {
            let loss = micro_batch_loss(source, config, &leaves, tiles, recipe, device)?;
            let mut grads = loss.clone().mul_scalar(weight).backward();
            sum.loss += f64::from(host(loss.inner())?.first().copied().unwrap_or(f32::NAN));
            for (name, total) in names.iter().zip(sum.gradients.iter_mut()) {
                if let Some(g) = leaves.leaf(name).and_then(|leaf| leaf.grad_remove(&mut grads)) {
                    *total = Some(match total.take() {
                        Some(t) => t + g,
                        None => g,
                    });
                }
            }
        }
        Ok(sum)
    };

    let sums: Vec<LaneSum> = if lanes == 1 {
        vec![lane(0)?]
    } else {
        let lane = &lane;
        std::thread::scope(|scope| {
            let handles: Vec<_> =
                (0..lanes).map(|index| scope.spawn(move || alone(|| lane(index)))).collect();
            handles
                .into_iter()
                .map(|handle| {
                    handle.join().unwrap_or_else(|_| {
                        Err(Error::Check("a training thread ended early".to_owned()))
                    })
                })
                .collect::<Result<Vec<_>>>()
        })?
    };

    let mut total: Vec<Option<Tensor<1>>> = vec![None; names.len()];
    let mut loss = 0.0;
    for sum in sums {
        loss += sum.loss;
        for (t, g) in total.iter_mut().zip(sum.gradients) {
            *t = match (t.take(), g) {
                (Some(t), Some(g)) => Some(t + g),
                (t, g) => t.or(g),
            };
        }
    }
    let mut by_name: std::collections::HashMap<&str, Tensor<1>> =
        names.iter().zip(total).filter_map(|(n, g)| g.map(|g| (*n, g))).collect();
    let gradients = parameters.pull_back(|name| by_name.remove(name));
    Ok(StepGradients { gradients, loss: loss * weight })
}

/// Runs `work` so that everything parallel inside it stays on this thread: with a lane a core,
/// splitting further only costs.
fn alone<R: Send>(work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .use_current_thread()
        .build()
        .map_err(|e| Error::Check(format!("a training thread could not be set up: {e}")))?;
    pool.install(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::tiles::Order;
    use crate::train::tiles::made_up::MadeUp;

    fn recipe(lanes: usize, micro_batch: usize) -> Recipe {
        Recipe { seed: 1, micro_batch, lanes, gene_drop: 0.5, dropout: 0.0, stain_jitter: 0.0 }
    }

    fn tiny(genes: usize) -> Config {
        let symbols = (0..genes).map(|g| format!("G{g}")).collect();
        Config::preset("tiny").unwrap().with_vocabulary(symbols)
    }

    /// Gains away from zero, so that every weight has a gradient.
    fn parameters(config: &Config, device: &Device) -> Parameters {
        let mut parameters = Parameters::initialize(config, 1, device);
        let values =
            parameters.specs().iter().zip(parameters.values()).map(|(s, v)| {
                if s.shape.is_empty() { v.clone().add_scalar(0.3) } else { v.clone() }
            });
        let values = values.collect();
        parameters.set_values(values);
        parameters
    }

    fn flat(step: &StepGradients) -> Vec<f32> {
        step.gradients.iter().flatten().flat_map(|g| host(g.clone()).unwrap()).collect()
    }

    #[test]
    fn lanes_and_micro_batches_do_not_change_the_gradient() {
        let (device, config) = (Device::flex(), tiny(6));
        let source = MadeUp::new(32, 12, 6);
        let parameters = parameters(&config, &device);
        let tiles = Order::new(&source, 0.5, 1).tiles(0, 8);
        let run = |recipe: Recipe| {
            gradients(&source, &config, &parameters, &tiles, 40, &recipe, &device).unwrap()
        };
        let whole = run(recipe(1, 8));
        let again = run(recipe(2, 2));
        assert_eq!(flat(&again), flat(&run(recipe(2, 2))), "two runs differ");
        assert!((whole.loss - again.loss).abs() < 1e-5 * whole.loss.abs());
        let (a, b) = (flat(&whole), flat(&again));
        let scale = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let worst = a.iter().zip(&b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 1e-4 * scale, "{worst} of {scale}");
    }
}
