//! Stage 2: trains a head on the frozen features of a U-Net and an encoder.
//!
//! [`features`] computes what is frozen once, for every [`recipe`]'s views; [`targets`] says what
//! is learned, [`fit`] learns it, and [`record`] is what a finished head knows of itself. Gene
//! choice, scaling, components and early stopping look at training sections only.

mod checkpoint;
pub mod features;
pub mod fit;
mod log;
pub mod material;
pub mod recipe;
pub mod record;
pub mod targets;

use burn::tensor::Device;
use std::path::{Path, PathBuf};

use checkpoint::Checkpoints;
use features::Features;
use fit::{Fit, Watched};
pub use log::Log;
use material::{FrozenUNet, Panel};
use recipe::Recipe;
use record::HeadRecord;
use targets::Targets;

use crate::data::PairedDataset;
use crate::diffusion::UNet;
use crate::foundation::{Encoder, EncoderFlags};
use crate::predictor::{CONFIG_FILE, FusionKind, Head};
use crate::train::device::DeviceName;
use crate::train::interrupt;
use crate::{Error, Result};

/// Train a head on frozen features of a U-Net and an image encoder (stage 2)
#[derive(Debug, clap::Args)]
pub struct FinetuneArgs {
    /// Dataset directory that `prepare` wrote
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Stage-1 model directory that `pretrain` wrote
    #[arg(long, value_name = "DIR", required_unless_present = "no_diffusion")]
    unet: Option<PathBuf>,
    /// Foundation encoder, an ONNX file
    #[arg(long, value_name = "FILE", required_unless_present = "no_foundation")]
    encoder: Option<PathBuf>,
    #[command(flatten)]
    encoder_flags: EncoderFlags,
    /// Directory for head.json, head.safetensors, training.json and metrics.jsonl
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Train on these slides only
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    slides: Vec<String>,
    /// Leave these slides out
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    exclude: Vec<String>,
    /// Predict so many of the most variable genes of the training slides
    #[arg(long, value_name = "N", default_value_t = 250, conflicts_with = "genes_file")]
    genes: usize,
    /// Choose only among genes detected in at least this fraction of the training tiles
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    min_detected: f64,
    /// Predict the genes of this file, one symbol a line
    #[arg(long, value_name = "FILE")]
    genes_file: Option<PathBuf>,
    #[command(flatten)]
    recipe: RecipeFlags,
    /// Do without the encoder's features
    #[arg(long, conflicts_with = "no_diffusion")]
    no_foundation: bool,
    /// Do without the U-Net's features
    #[arg(long)]
    no_diffusion: bool,
    /// Directory that keeps the U-Net's maps, as `evaluate` does [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device to compute on
    #[arg(long, value_enum, default_value_t)]
    device: DeviceName,
}

/// The recipe and what is changed of it.
#[derive(Debug, Clone, clap::Args)]
pub struct RecipeFlags {
    /// Recipe: `edge`, `published`, or a JSON file
    #[arg(long, value_name = "NAME|FILE", default_value = "edge")]
    recipe: String,
    /// Fusion, instead of the recipe's
    #[arg(long, value_enum)]
    fusion: Option<FusionKind>,
    /// Heads that are averaged, instead of the recipe's
    #[arg(long, value_name = "N")]
    members: Option<usize>,
    /// Views of every tile, instead of the recipe's
    #[arg(long, value_name = "N")]
    views: Option<usize>,
    /// Epochs of the MSFE branches, instead of the recipe's
    #[arg(long, value_name = "N")]
    joint_epochs: Option<usize>,
    /// Epochs of the members, instead of the recipe's
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
}

impl RecipeFlags {
    /// The recipe with its changes, checked.
    pub fn resolve(&self) -> Result<Recipe> {
        let mut recipe = Recipe::load(&self.recipe)?;
        let change = |value: &mut usize, flag: Option<usize>| *value = flag.unwrap_or(*value);
        change(&mut recipe.members, self.members);
        change(&mut recipe.views, self.views);
        change(&mut recipe.joint_epochs, self.joint_epochs);
        change(&mut recipe.epochs, self.epochs);
        recipe.fusion = self.fusion.unwrap_or(recipe.fusion);
        recipe.check()?;
        Ok(recipe)
    }
}

/// One head to train.
pub struct Job<'a> {
    /// Where tiles and expression come from.
    pub dataset: &'a PairedDataset,
    /// Rows of the dataset that the features are of, in their order.
    pub rows: &'a [usize],
    /// Rows to learn from, all of them among `rows`.
    pub training: &'a [usize],
    /// What is known of the tiles.
    pub features: &'a Features,
    /// Genes to predict and other genes for components, as columns.
    pub genes: (&'a [usize], &'a [usize]),
    /// How to learn.
    pub recipe: &'a Recipe,
    /// Seed of everything random.
    pub seed: u64,
    /// Where to compute.
    pub device: &'a Device,
}

impl Job<'_> {
    /// Trains the head; finished parts are kept in `checkpoints` under `key`, if given.
    pub fn train(&self, checkpoints: Option<(&Path, &str)>, log: &mut Log) -> Result<Head> {
        let (watched, training): (Vec<usize>, Vec<usize>) = match &self.recipe.early_stopping {
            None => (Vec::new(), self.training.to_vec()),
            Some(stopping) => {
                let of_section = |row: &usize| self.dataset.slide(*row) == stopping.section;
                self.training.iter().partition(|row| of_section(row))
            }
        };
        if training.is_empty() || (self.recipe.early_stopping.is_some() && watched.is_empty()) {
            return Err(Error::Request(
                "early stopping needs tiles of its section and of another training section; \
                 check the recipe's early_stopping against --slides and --exclude"
                    .into(),
            ));
        }
        let (panel, others) = self.genes;
        let all: Vec<usize> = panel.iter().chain(others).copied().collect();
        let sections: Vec<String> =
            training.iter().map(|row| self.dataset.slide(*row).to_owned()).collect();
        let measured = material::expression(self.dataset, &training, &all);
        let targets = Targets::new(self.recipe, &measured, &sections, panel.len());
        let watched = self.recipe.early_stopping.as_ref().map(|stopping| Watched {
            tiles: self.tiles(&watched),
            expression: material::expression(self.dataset, &watched, panel),
            patience: stopping.patience,
        });
        let tiles = self.tiles(&training);
        let checkpoints = checkpoints.map(|(folder, key)| Checkpoints::open(folder, key));
        let checkpoints = checkpoints.transpose()?;
        Fit {
            features: self.features,
            tiles: &tiles,
            targets: &targets,
            recipe: self.recipe,
            watched,
            seed: self.seed,
            device: self.device,
            checkpoints: checkpoints.as_ref(),
        }
        .run(log)
    }

    /// Positions of dataset rows among the features.
    pub fn tiles(&self, rows: &[usize]) -> Vec<usize> {
        let place = |row: &usize| self.rows.iter().position(|r| r == row);
        rows.iter().filter_map(place).collect()
    }
}

/// Runs the command.
pub fn run(args: &FinetuneArgs) -> Result<()> {
    let recipe = args.recipe.resolve()?;
    let device = args.device.open()?;
    let dataset = PairedDataset::open(&args.data)?;
    let rows = training_rows(&dataset, &args.slides, &args.exclude)?;
    let panel = match &args.genes_file {
        None => Panel::MostVariable { count: args.genes, min_detected: args.min_detected },
        Some(path) => Panel::Named(read_symbols(path)?),
    };
    let unet = match &args.unet {
        Some(directory) if !args.no_diffusion => Some(open_unet(directory, &device)?),
        _ => None,
    };
    let encoder = match &args.encoder {
        Some(path) if !args.no_foundation => Some(Encoder::open(path, &args.encoder_flags)?),
        _ => None,
    };
    interrupt::install()?;

    let (panel, others) = material::choose_genes(&dataset, &rows, &panel, &recipe)?;
    let branches = unet.as_ref().map_or(Vec::new(), |u| u.network.feature_channels());
    let width = encoder.as_ref().map_or(0, Encoder::features);
    let shape = recipe.head(branches, width, panel.len());
    shape.check().map_err(Error::Request)?;
    let record = material::record(
        &dataset,
        &rows,
        &panel,
        &shape,
        &recipe,
        args.seed,
        unet.as_ref(),
        encoder.as_ref(),
    )?;
    if finished(&args.output, &record) {
        println!("{} holds this head already", args.output.display());
        return Ok(());
    }
    std::fs::create_dir_all(&args.output).map_err(Error::io(&args.output))?;
    let own = args.output.join("features");
    let cache = args.cache.as_ref().unwrap_or(&own);
    let features = material::compute_features(
        &dataset,
        &rows,
        &recipe,
        args.seed,
        unet.as_ref(),
        encoder.as_ref(),
        Some(cache),
    )?;
    let job = Job {
        dataset: &dataset,
        rows: &rows,
        training: &rows,
        features: &features,
        genes: (&panel, &others),
        recipe: &recipe,
        seed: args.seed,
        device: &device,
    };
    let folder = args.output.join("checkpoint");
    let mut log = Log::new(Some(&args.output.join("metrics.jsonl")), true, "")?;
    let head = job.train(Some((&folder, record.key())), &mut log)?;
    record.save(&head, &args.output)?;
    for folder in [folder, own] {
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        }
    }
    println!(
        "{}: {} genes from {} tiles of {}; {} parameters",
        args.output.display(),
        panel.len(),
        rows.len(),
        record.slides().join(", "),
        crate::predictor::parameters::count(&head)
    );
    Ok(())
}

/// Whether a directory holds the finished head that `record` describes.
pub fn finished(directory: &Path, record: &HeadRecord) -> bool {
    directory.join(CONFIG_FILE).exists()
        && HeadRecord::load(directory).is_ok_and(|old| old.key() == record.key())
}

/// Opens a stage-1 model with the list of slides it has seen.
pub fn open_unet(directory: &Path, device: &Device) -> Result<FrozenUNet> {
    let reference = record::unet_reference(directory)?;
    Ok(FrozenUNet { network: UNet::load(directory, device)?, reference })
}

/// Stops the loop that asks if the user wants to.
pub(crate) fn check_stop() -> Result<()> {
    if interrupt::asked() { Err(Error::Interrupted) } else { Ok(()) }
}

/// Rows of the slides asked for, without those left out.
fn training_rows(
    dataset: &PairedDataset,
    slides: &[String],
    exclude: &[String],
) -> Result<Vec<usize>> {
    let known = dataset.slides();
    if let Some(slide) = slides.iter().chain(exclude).find(|s| !known.contains(s)) {
        return Err(Error::Request(format!(
            "slide {slide} is not in the dataset, which has {}",
            known.join(", ")
        )));
    }
    let wanted = |slide: &str| slides.is_empty() || slides.iter().any(|s| s == slide);
    let rows = dataset.rows_where(|slide, _| wanted(slide) && !exclude.iter().any(|s| s == slide));
    if rows.is_empty() {
        return Err(Error::Request(
            "no slide is left to train on; see --slides and --exclude".into(),
        ));
    }
    Ok(rows)
}

/// Gene symbols, one a line; empty lines and those after `#` do not count.
fn read_symbols(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut symbols: Vec<String> = Vec::new();
    for line in text.lines() {
        let symbol = line.split('#').next().unwrap_or("").trim();
        if symbols.iter().any(|s| s == symbol) {
            return Err(Error::data(path, format!("names gene {symbol} twice; remove one")));
        }
        if !symbol.is_empty() {
            symbols.push(symbol.to_owned());
        }
    }
    if symbols.is_empty() {
        return Err(Error::data(path, "names no gene; write one symbol a line"));
    }
    Ok(symbols)
}
