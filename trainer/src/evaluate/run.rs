//! The command: every model on every fold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde_json::json;

use super::baselines::{Baseline, Tiles};
use super::metrics::{Scores, bootstrap};
use super::report::{Evaluation, FoldResult, Measured, RESAMPLES};
use super::splits::{self, Fold, Kind};
use super::{chart, spatial};
use crate::data::PairedDataset;
use crate::foundation::{Encoder, EncoderFlags, View};
use crate::predictor::Head;
use crate::train::atomic;
use crate::train::device::DeviceName;
use crate::train::finetune::features::Features;
use crate::train::finetune::material::{self, FrozenUNet, Panel};
use crate::train::finetune::recipe::Recipe;
use crate::train::finetune::{self, Job, Log, RecipeFlags, fit};
use crate::train::interrupt;
use crate::{Error, Result};

/// Name of the full model in tables.
pub const FUSED: &str = "fused";
const DIFFUSION_ONLY: &str = "diffusion only";
const ENCODER_ONLY: &str = "encoder only, same head";

/// Measure models on held-out sections, next to baselines on the same splits and genes
#[derive(Debug, clap::Args)]
pub struct EvaluateArgs {
    /// Dataset directory that `prepare` wrote
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Foundation encoder of the fused predictor, an ONNX file
    #[arg(long, value_name = "FILE")]
    encoder: PathBuf,
    #[command(flatten)]
    encoder_flags: EncoderFlags,
    /// Encoder of the baselines [default: that of the fused predictor]
    #[arg(long, value_name = "FILE")]
    baseline_encoder: Option<PathBuf>,
    /// Stage-1 model of a fold, trained without its test section; may be given for every fold.
    /// Without one only the baselines are measured
    #[arg(long = "unet", value_name = "FOLD=DIR", value_parser = parse_pair)]
    unets: Vec<(String, PathBuf)>,
    /// Folds as a JSON file: [{"name", "train", "test", "unet"}]. By default every section is
    /// left out of its patient's others, and a patient's only section of all other patients'
    #[arg(long, value_name = "FILE")]
    split: Option<PathBuf>,
    /// Measure only these folds
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    folds: Vec<String>,
    /// Directory for evaluation.md, evaluation.json and evaluation.png
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Genes of every fold: the most variable of its training sections
    #[arg(long, value_name = "N", default_value_t = 250)]
    genes: usize,
    /// Choose only among genes detected in at least this fraction of the training tiles
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    min_detected: f64,
    #[command(flatten)]
    recipe: RecipeFlags,
    /// Draw this gene, predicted and measured, over every test section
    #[arg(long, value_name = "GENE")]
    picture_gene: Vec<String>,
    /// Section images for those pictures, `<section>.jpg` or another format; without them the
    /// tiles are drawn on white
    #[arg(long, value_name = "DIR", requires = "picture_gene")]
    picture_images: Option<PathBuf>,
    /// Directory that keeps the U-Nets' maps, for this and for `finetune` [default: features in
    /// the output directory]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device to compute on
    #[arg(long, value_enum, default_value_t)]
    device: DeviceName,
}

fn parse_pair(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((fold, directory)) if !fold.is_empty() && !directory.is_empty() => {
            Ok((fold.to_owned(), directory.into()))
        }
        _ => Err("write FOLD=DIR, for example C2=unet-without-C2".into()),
    }
}

/// Runs the command.
pub fn run(args: &EvaluateArgs) -> Result<()> {
    interrupt::install()?;
    let recipe = args.recipe.resolve()?;
    let device = args.device.open()?;
    let dataset = PairedDataset::open(&args.data)?;
    let patients: BTreeMap<String, String> = (0..dataset.len())
        .map(|row| (dataset.slide(row).to_owned(), dataset.patient(row).to_owned()))
        .collect();
    let folds = folds(args, &patients)?;
    // Every fold is checked before the first is computed.
    for fold in &folds {
        fold.kind(&patients)?;
        if let Some(unet) = &fold.unet {
            fold.refuse_leak(unet, &finetune::record::unet_reference(unet)?.slides)?;
        }
    }
    let encoder = Encoder::open(&args.encoder, &args.encoder_flags)?;
    let baseline_encoder = match &args.baseline_encoder {
        Some(path) => Some(Encoder::open(path, &EncoderFlags::default())?),
        None => None,
    };
    std::fs::create_dir_all(&args.output).map_err(Error::io(&args.output))?;

    let setting = Setting {
        args,
        dataset: &dataset,
        recipe: &recipe,
        encoder: &encoder,
        baseline_encoder: baseline_encoder.as_ref(),
        device: &device,
    };
    let mut results = Vec::new();
    for fold in &folds {
        let kind = fold.kind(&patients)?;
        results.push(setting.measure(fold, kind)?);
    }
    let all = Baseline::all(baseline_encoder.is_some());
    let names: Vec<String> = all.iter().map(|b| b.name.to_owned()).collect();
    let others: Vec<String> =
        names.into_iter().chain([DIFFUSION_ONLY, ENCODER_ONLY].map(String::from)).collect();
    let evaluation =
        Evaluation::new(dataset.manifest().name.clone(), args.seed, results, FUSED, &others);
    let json = serde_json::to_string_pretty(&evaluation)
        .map_err(|e| Error::Check(format!("the evaluation cannot be written: {e}")))?;
    let markdown = evaluation.markdown();
    atomic::write(&args.output.join("evaluation.json"), json.as_bytes())?;
    atomic::write(&args.output.join("evaluation.md"), markdown.as_bytes())?;
    chart::draw(&evaluation)?.save_png(&args.output.join("evaluation.png"))?;
    print!("{markdown}");
    Ok(())
}

fn folds(args: &EvaluateArgs, patients: &BTreeMap<String, String>) -> Result<Vec<Fold>> {
    let mut folds = match &args.split {
        Some(path) => splits::read(path)?,
        None => splits::leave_one_out(patients),
    };
    let names: Vec<String> = folds.iter().map(|f| f.name.clone()).collect();
    let given = args.folds.iter().chain(args.unets.iter().map(|(name, _)| name));
    if let Some(unknown) = given.into_iter().find(|name| !names.contains(name)) {
        return Err(Error::Request(format!(
            "there is no fold {unknown}; the folds are {}",
            names.join(", ")
        )));
    }
    if !args.folds.is_empty() {
        folds.retain(|fold| args.folds.contains(&fold.name));
    }
    for fold in &mut folds {
        if let Some((_, directory)) = args.unets.iter().rev().find(|(name, _)| *name == fold.name) {
            fold.unet = Some(directory.clone());
        }
    }
    if folds.is_empty() {
        return Err(Error::Request(
            "no section can be held out: the dataset has only one; add another to it".into(),
        ));
    }
    Ok(folds)
}

/// What all folds share.
struct Setting<'a> {
    args: &'a EvaluateArgs,
    dataset: &'a PairedDataset,
    recipe: &'a Recipe,
    encoder: &'a Encoder,
    baseline_encoder: Option<&'a Encoder>,
    device: &'a Device,
}

impl Setting<'_> {
    fn measure(&self, fold: &Fold, kind: Kind) -> Result<FoldResult> {
        let of =
            |names: &[String]| self.dataset.rows_where(|slide, _| names.iter().any(|n| n == slide));
        let (training, test) = (of(&fold.train), of(&fold.test));
        let choice =
            Panel::MostVariable { count: self.args.genes, min_detected: self.args.min_detected };
        let (panel, others) =
            material::choose_genes(self.dataset, &training, &choice, self.recipe)?;
        let symbols: Vec<String> =
            panel.iter().map(|gene| self.dataset.genes()[*gene].clone()).collect();

        let train_tiles = self.tiles(&training, &panel)?;
        let test_tiles = self.tiles(&test, &panel)?;
        let measured = test_tiles.expression.clone();
        let score = |name: &str, predicted: &nalgebra::DMatrix<f64>, chosen: serde_json::Value| {
            let draws = bootstrap(predicted, &measured, RESAMPLES, self.args.seed);
            let scores = Scores::new(predicted, &measured, &draws);
            let shown = scores.pearson.map_or("undefined".into(), |r| format!("{r:.4}"));
            eprintln!("fold {}: {name}: {shown}", fold.name);
            let gene_pearson = symbols.iter().cloned().zip(scores.gene_pearson.iter().copied());
            let gene_pearson = gene_pearson.filter_map(|(gene, r)| Some((gene, r?))).collect();
            Measured { model: name.to_owned(), scores, chosen, gene_pearson, draws }
        };
        let mut models = Vec::new();
        for baseline in Baseline::all(self.baseline_encoder.is_some()) {
            let fitted = baseline.fit_predict(&train_tiles, &test_tiles);
            models.push(score(baseline.name, &fitted.predicted, json!(fitted.chosen)));
        }
        if let Some(directory) = &fold.unet {
            let unet = finetune::open_unet(directory, self.device)?;
            // In the dataset's order: folds that share a U-Net and their sections share its maps.
            let mut rows: Vec<usize> = training.iter().chain(&test).copied().collect();
            rows.sort_unstable();
            let own = self.args.output.join("features");
            let cache = self.args.cache.as_ref().unwrap_or(&own);
            let features = material::compute_features(
                self.dataset,
                &rows,
                self.recipe,
                self.args.seed,
                Some(&unet),
                Some(self.encoder),
                Some(cache),
            )?;
            let variants = [
                (ENCODER_ONLY, features.without_diffusion()),
                (DIFFUSION_ONLY, features.without_foundation()),
                (FUSED, features),
            ];
            for (name, features) in variants {
                let job = Job {
                    dataset: self.dataset,
                    rows: &rows,
                    training: &training,
                    features: &features,
                    genes: (&panel, &others),
                    recipe: self.recipe,
                    seed: self.args.seed,
                    device: self.device,
                };
                let (head, folder) = self.head(fold, name, &job, &unet)?;
                let tiles = job.tiles(&test);
                let predicted = fit::predict(&head, &features, &tiles, self.device)?;
                models.push(score(name, &predicted, json!({ "head": folder })));
                if name == FUSED {
                    self.pictures(fold, &test, &panel, &predicted, &measured)?;
                }
            }
        }
        Ok(FoldResult {
            fold: fold.clone(),
            kind,
            training_tiles: training.len(),
            genes: symbols,
            models,
        })
    }

    fn tiles(&self, rows: &[usize], panel: &[usize]) -> Result<Tiles> {
        let vectors = |encoder: &Encoder| -> Result<nalgebra::DMatrix<f64>> {
            let values = crate::foundation::features(encoder, self.dataset, rows, &View::flips())?;
            let values = values.into_iter().map(f64::from);
            Ok(nalgebra::DMatrix::from_row_iterator(rows.len(), encoder.features(), values))
        };
        let (encoder, own_encoder) = match self.baseline_encoder {
            Some(usual) => (vectors(usual)?, Some(vectors(self.encoder)?)),
            None => (vectors(self.encoder)?, None),
        };
        Ok(Tiles {
            colour: material::colour(self.dataset, rows)?,
            encoder,
            own_encoder,
            expression: material::expression(self.dataset, rows, panel),
            section: rows.iter().map(|row| self.dataset.slide(*row).to_owned()).collect(),
        })
    }

    /// The trained head of a fold and variant, and its folder's name; one that was trained before
    /// with the same recipe, data and features is read back.
    fn head(
        &self,
        fold: &Fold,
        name: &str,
        job: &Job,
        unet: &FrozenUNet,
    ) -> Result<(Head, String)> {
        let variant = match name {
            DIFFUSION_ONLY => "diffusion",
            ENCODER_ONLY => "encoder",
            _ => FUSED,
        };
        let folder = format!("heads/{}-{variant}", fold.name);
        let directory = self.args.output.join(&folder);
        let features: &Features = job.features;
        let shape = self.recipe.head(
            features.branch_channels(),
            features.foundation_dim(),
            job.genes.0.len(),
        );
        let record = material::record(
            self.dataset,
            job.training,
            job.genes.0,
            &shape,
            self.recipe,
            self.args.seed,
            (!features.branch_channels().is_empty()).then_some(unet),
            (features.foundation_dim() > 0).then_some(self.encoder),
        )?;
        if finetune::finished(&directory, &record) {
            return Ok((Head::load(&directory, self.device)?, folder));
        }
        std::fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
        let checkpoint = directory.join("checkpoint");
        let prefix = format!("fold {} {name}, ", fold.name);
        let mut log = Log::new(Some(&directory.join("metrics.jsonl")), true, &prefix)?;
        let head = job.train(Some((&checkpoint, record.key())), &mut log)?;
        record.save(&head, &directory)?;
        std::fs::remove_dir_all(&checkpoint).map_err(Error::io(&checkpoint))?;
        Ok((head, folder))
    }

    fn pictures(
        &self,
        fold: &Fold,
        test: &[usize],
        panel: &[usize],
        predicted: &nalgebra::DMatrix<f64>,
        measured: &nalgebra::DMatrix<f64>,
    ) -> Result<()> {
        for gene in &self.args.picture_gene {
            let Some(column) = panel.iter().position(|g| self.dataset.genes()[*g] == *gene) else {
                eprintln!(
                    "fold {}: {gene} is not among its {} genes; no picture of it",
                    fold.name,
                    panel.len()
                );
                continue;
            };
            for section in &fold.test {
                let (places, rows): (Vec<usize>, Vec<usize>) = test
                    .iter()
                    .enumerate()
                    .filter(|(_, row)| self.dataset.slide(**row) == section)
                    .map(|(place, row)| (place, *row))
                    .unzip();
                let values = |m: &nalgebra::DMatrix<f64>| -> Vec<f64> {
                    places.iter().map(|place| m[(*place, column)]).collect()
                };
                let picture = spatial::draw(&spatial::Section {
                    name: section,
                    gene,
                    centres: rows.iter().map(|row| self.dataset.centre(*row)).collect(),
                    predicted: values(predicted),
                    measured: values(measured),
                    image: self.section_image(section)?,
                })?;
                picture.save_png(&self.args.output.join(format!("{section}-{gene}.png")))?;
            }
        }
        Ok(())
    }

    fn section_image(&self, section: &str) -> Result<Option<spatial::Background>> {
        let Some(folder) = &self.args.picture_images else { return Ok(None) };
        let files = std::fs::read_dir(folder).map_err(Error::io(folder))?;
        let named = |path: &Path| path.file_stem().is_some_and(|stem| stem == section);
        let found = files.filter_map(|file| Some(file.ok()?.path())).find(|path| named(path));
        let Some(path) = found else {
            return Err(Error::data(
                folder,
                format!("holds no image called {section}; name the folder of section images"),
            ));
        };
        spatial::Background::read(&path).map(Some)
    }
}
