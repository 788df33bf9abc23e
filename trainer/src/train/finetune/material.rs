//! Everything a head is trained and measured on: tiles, their features and their expression.

use diffbulk::model::{Confidence, IMAGE_STATISTICS, TrainingData, image_statistics};
use indicatif::{ProgressBar, ProgressStyle};
use nalgebra::DMatrix;
use std::path::Path;

use super::check_stop;
use super::features::{Features, diffusion_maps, views};
use super::recipe::Recipe;
use super::record::{EncoderReference, HeadRecord, UNetReference};
use crate::data::color::{rgb_statistics, statistic_names};
use crate::data::{GeneFilter, PairedDataset, most_variable};
use crate::diffusion::UNet;
use crate::evaluate::regression::Standardizer;
use crate::export::record::TrainingRecord;
use crate::foundation::{Encoder, View, view_features};
use crate::predictor::HeadConfig;
use crate::{Error, Result};

/// A stage-1 model with its facts.
pub struct FrozenUNet {
    /// The network.
    pub network: UNet,
    /// What it was trained on.
    pub reference: UNetReference,
}

/// Features of `rows` of the dataset in the views of a recipe, by the models given.
#[allow(clippy::too_many_arguments, reason = "one call site a command, each argument named there")]
pub fn compute_features(
    dataset: &PairedDataset,
    rows: &[usize],
    recipe: &Recipe,
    seed: u64,
    unet: Option<&FrozenUNet>,
    encoder: Option<&Encoder>,
    cache: Option<&Path>,
) -> Result<Features> {
    let views = views(recipe, seed);
    let foundation = match encoder {
        Some(encoder) => foundation_vectors(dataset, rows, &views, encoder)?,
        None => Vec::new(),
    };
    let (levels, maps) = match unet {
        Some(unet) => {
            let views = &views[..recipe.diffusion_views.min(views.len())];
            let bar = ProgressBar::new((rows.len() * views.len()) as u64);
            let template = "U-Net features {wide_bar} {pos}/{len} {per_sec} {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            let key = format!("{} {}", unet.reference.sha256, dataset.manifest().images_sha256);
            let maps = diffusion_maps(dataset, rows, views, &unet.network, &key, cache, || {
                bar.inc(1);
                check_stop()
            });
            bar.finish_and_clear();
            maps?
        }
        None => (Vec::new(), Vec::new()),
    };
    Features::new(rows.len(), views.len(), levels, maps, foundation)
}

/// Vectors of `rows` in all views, one view after the other.
fn foundation_vectors(
    dataset: &PairedDataset,
    rows: &[usize],
    views: &[View],
    encoder: &Encoder,
) -> Result<Vec<f32>> {
    let width = encoder.features();
    let mut vectors = Vec::with_capacity(rows.len() * views.len() * width);
    for view in views {
        let all = view_features(encoder, dataset, view)?;
        rows.iter().for_each(|row| vectors.extend_from_slice(&all[row * width..][..width]));
    }
    Ok(vectors)
}

/// Columns of the panel, then of the other genes that components are taken from: the most
/// variable of the training rows.
pub fn choose_genes(
    dataset: &PairedDataset,
    training: &[usize],
    panel: &Panel,
    recipe: &Recipe,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let filter = |min_detected| GeneFilter { min_detected, ..GeneFilter::default() };
    let panel = match panel {
        Panel::MostVariable { count, min_detected } => {
            most_variable(dataset, training, *count, &filter(*min_detected))?
        }
        Panel::Named(symbols) => {
            let column = |symbol: &String| {
                dataset.gene_index(symbol).ok_or_else(|| {
                    Error::Request(format!(
                        "gene {symbol} is not among the dataset's {}; check its spelling",
                        dataset.genes().len()
                    ))
                })
            };
            symbols.iter().map(column).collect::<Result<Vec<_>>>()?
        }
    };
    let mut others = Vec::new();
    if recipe.components.is_some() && recipe.component_genes > panel.len() {
        // A dataset of few genes has fewer to offer; all of them is then the best there is.
        let available = recipe.component_genes.min(dataset.genes().len());
        let ranked = (1..=available)
            .rev()
            .step_by((available / 20).max(1))
            .find_map(|count| most_variable(dataset, training, count, &filter(0.0)).ok());
        let more = recipe.component_genes - panel.len();
        let new = ranked.into_iter().flatten().filter(|gene| !panel.contains(gene));
        others = new.take(more).collect();
    }
    Ok((panel, others))
}

/// Which genes to predict.
#[derive(Debug, Clone, PartialEq)]
pub enum Panel {
    /// The most variable genes of the training tiles.
    MostVariable {
        /// Their number.
        count: usize,
        /// Smallest fraction of training tiles a gene is detected in.
        min_detected: f64,
    },
    /// These.
    Named(Vec<String>),
}

/// Expression of rows and columns as a matrix.
pub fn expression(dataset: &PairedDataset, rows: &[usize], genes: &[usize]) -> DMatrix<f64> {
    let values = dataset.expression_matrix(rows, genes);
    DMatrix::from_row_iterator(rows.len(), genes.len(), values.into_iter().map(f64::from))
}

/// Colour statistics of rows [rows, statistics].
pub fn colour(dataset: &PairedDataset, rows: &[usize]) -> Result<DMatrix<f64>> {
    let mut values = Vec::new();
    for &row in rows {
        values.extend(rgb_statistics(&dataset.image(row)?).into_iter().map(f64::from));
    }
    let width = statistic_names().len();
    Ok(DMatrix::from_row_iterator(rows.len(), width, values))
}

/// The record of a head of this shape trained on rows of the dataset.
#[allow(clippy::too_many_arguments, reason = "one call site a command, each argument named there")]
pub fn record(
    dataset: &PairedDataset,
    training: &[usize],
    panel: &[usize],
    shape: &HeadConfig,
    recipe: &Recipe,
    seed: u64,
    unet: Option<&FrozenUNet>,
    encoder: Option<&Encoder>,
) -> Result<HeadRecord> {
    let manifest = dataset.manifest();
    let mut statistics = Vec::new();
    for &row in training {
        statistics.extend(image_statistics(&dataset.image(row)?));
    }
    let statistics = DMatrix::from_row_iterator(training.len(), IMAGE_STATISTICS.len(), statistics);
    let statistics = Standardizer::fit(&statistics);
    let mut slides: Vec<String> = training.iter().map(|r| dataset.slide(*r).to_owned()).collect();
    slides.sort();
    slides.dedup();
    HeadRecord {
        exported: TrainingRecord {
            panel: panel.iter().map(|g| dataset.genes()[*g].clone()).collect(),
            tile_px: dataset.tile_px(),
            um_per_px: dataset.um_per_px(),
            unit: "ln(1 + counts per 10,000)".into(),
            training_data: vec![TrainingData {
                name: manifest.name.clone(),
                source: manifest.source.clone(),
                license: manifest.license.clone(),
                slides,
            }],
            seed,
            config_sha256: String::new(),
            confidence: Some(Confidence {
                statistics: IMAGE_STATISTICS.map(String::from).to_vec(),
                mean: statistics.mean().to_vec(),
                std: statistics.scale().to_vec(),
            }),
        },
        images_sha256: manifest.images_sha256.clone(),
        unet: unet.map(|unet| unet.reference.clone()),
        encoder: encoder.map(|encoder| EncoderReference {
            name: encoder.info().name.clone(),
            license: encoder.info().license.clone(),
            sha256: encoder.sha256().to_owned(),
            features: encoder.features(),
        }),
        recipe: recipe.clone(),
        trained_by: format!("diffbulk-trainer {}", crate::VERSION),
    }
    .seal(shape)
}
