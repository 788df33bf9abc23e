//! `diffbulk serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::engine::EngineChoice;
use super::{interrupt, print};
use crate::engine;
use crate::model::{Model, locate};
use crate::predict;
use crate::serve::{
    self, Address, Loaded, Models, ObjectiveSettings, Options, Orders, ScanSettings, Token,
};
use crate::trust::{ModelVersion, Signed, Store, TrustedKeys, open_signed};
use crate::{Error, Result};

/// Predicts tile by tile while a scanner scans, and tells its board.
///
/// The board and the camera connect (or hang on serial ports) and speak the scanner link; every
/// finished scan leaves the files of `diffbulk predict` in its own directory. Addresses are
/// tcp:HOST:PORT, unix:PATH and serial:PATH[@BAUD]. SIGHUP makes it look for a newer model, SIGTERM
/// and Ctrl-C end it after the tiles under way.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Address of the first scanner's board or camera; may be given several times.
    #[arg(short, long, value_name = "ADDRESS", required = true)]
    listen: Vec<Address>,

    /// Addresses of a further scanner, separated by commas; may be given several times.
    #[arg(long, value_name = "ADDRESS,...")]
    scanner: Vec<String>,

    /// File whose first line is the token that ends on other machines have to know.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Where to tell health (/healthz) and Prometheus metrics (/metrics).
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<SocketAddr>,

    /// Directory in which every scan gets its own.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,

    /// Model to use [default: the environment variable DIFFBULK_MODEL, or the shipped model].
    #[arg(short, long, value_name = "FILE", conflicts_with = "store")]
    model: Option<PathBuf>,

    /// Use the model that is installed in this store.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,

    /// Public key whose signature on the model is believed, or a directory of them.
    #[arg(long = "key", value_name = "FILE", required_unless_present = "allow_unsigned")]
    keys: Vec<PathBuf>,

    /// Use a model without a signature, or with an unknown one.
    #[arg(long, conflicts_with_all = ["keys", "store"])]
    allow_unsigned: bool,

    /// Genes to write, separated by commas [default: all the model knows].
    #[arg(short, long, value_name = "A,B,...", value_delimiter = ',')]
    genes: Option<Vec<String>>,

    /// Output formats, separated by commas. The report run.json is always written.
    #[arg(
        short,
        long = "format",
        value_name = "F,G,...",
        value_delimiter = ',',
        default_values_t = predict::formats().map(String::from).collect::<Vec<_>>()
    )]
    formats: Vec<String>,

    /// Genes to draw heat maps of, separated by commas.
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    heatmap_genes: Option<Vec<String>>,

    /// Least fraction of a tile that has to be tissue, 0 to 1.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.25)]
    min_tissue: f64,

    /// How much neighbouring tiles overlap, as a fraction of the tile's side.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    overlap: f64,

    /// Genes the board gets, separated by commas, 16 at most [default: those the model predicts
    /// best].
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    board_genes: Option<Vec<String>>,

    /// What the board looks for: a weighted sum of its genes.
    #[arg(long, value_name = "GENE=W,...", value_delimiter = ',', value_parser = weight)]
    score: Vec<(String, f32)>,

    /// Score at which a hot spot begins.
    #[arg(long, value_name = "SCORE", requires = "score", default_value_t = 0.0)]
    hot: f32,

    /// Score below which it ends [default: as it begins].
    #[arg(long, value_name = "SCORE", requires = "score")]
    cool: Option<f32>,

    /// Hot tiles that the board may take again at the finest scale.
    #[arg(long, value_name = "N", default_value_t = 0)]
    rescans: u16,

    /// Take tiles below this confidence again with the focus moved.
    #[arg(long, value_name = "CONFIDENCE")]
    refocus_below: Option<f64>,

    /// Exposures that a tile may spend on focus.
    #[arg(long, value_name = "N", default_value_t = 2)]
    refocuses: u8,

    /// End a scan after so many hot tiles.
    #[arg(long, value_name = "N")]
    stop_after: Option<u16>,

    /// Tiles predicted at the same time [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    #[command(flatten)]
    engine: EngineChoice,

    /// Tiles under way at once; the board is told to ask again for more [default: 4 a thread].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    queue: Option<u16>,

    /// Links open at once.
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_sessions: usize,

    /// Megabytes a second that one link may send.
    #[arg(
        long, value_name = "MB", default_value_t = 200,
        value_parser = clap::value_parser!(u64).range(1..=100_000)
    )]
    max_rate: u64,

    /// End after this many scans; 0 for never.
    #[arg(long, value_name = "N", default_value_t = 0)]
    scans: u64,

    /// How log lines look: text or json.
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub(super) log: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    // Before there are other threads.
    let reload = interrupt::reload()?;
    let stop = interrupt::flag()?;
    let orders = Orders { stop, reload };
    let options = arguments.options()?;
    serve::run(&options, arguments, &orders, &mut |addresses| {
        // Tells whoever started it which port a 0 became; nobody need listen.
        let _ = print(&format!("listening: {}\n", addresses.join(" ")));
    })
}

impl Models for Arguments {
    fn load(&self, in_use: Option<&Model>) -> Result<Option<Loaded>> {
        let (model, signed) = self.model(in_use)?;
        if in_use.is_some_and(|in_use| in_use.sha256() == model.sha256()) {
            return Ok(None);
        }
        let engine = engine::open_with(&self.engine.name, &model, &self.engine.options())?;
        Ok(Some(Loaded { model, engine, expectation: signed.and_then(|s| s.expectation) }))
    }
}

impl Arguments {
    fn model(&self, in_use: Option<&Model>) -> Result<(Model, Option<Signed>)> {
        if self.allow_unsigned {
            let path = locate::locate(self.model.as_deref())?;
            tracing::warn!(model = %path.display(), "the model's signature is not looked at");
            return Ok((Model::open(&path)?, None));
        }
        let trusted = TrustedKeys::read(&self.keys)?;
        let (model, signed) = match &self.store {
            // What is installed there was allowed to be.
            Some(store) => Store::new(store).open(&trusted)?,
            None => {
                let opened = open_signed(&locate::locate(self.model.as_deref())?, &trusted)?;
                if let Some(in_use) = in_use {
                    not_older(&opened.0, in_use)?;
                }
                opened
            }
        };
        tracing::info!(
            model = model.metadata().name,
            version = model.metadata().version,
            key = signed.key,
            "the model is signed"
        );
        Ok((model, Some(signed)))
    }

    fn options(&self) -> Result<Options> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.map_or(cores, usize::from);
        let mut stations = vec![self.listen.clone()];
        for scanner in &self.scanner {
            let addresses: std::result::Result<Vec<Address>, String> =
                scanner.split(',').map(str::parse).collect();
            stations.push(addresses.map_err(Error::Request)?);
        }
        Ok(Options {
            stations,
            token: self.token_file.as_deref().map(Token::read).transpose()?,
            metrics: self.metrics,
            sessions: self.max_sessions,
            queue: self.queue.map_or(4 * threads, usize::from),
            bytes_per_second: self.max_rate * 1_000_000,
            threads,
            scans: self.scans,
            scan: ScanSettings {
                output: self.output.clone(),
                formats: self.formats.clone(),
                genes: self.genes.clone(),
                heatmap_genes: self.heatmap_genes.clone(),
                min_tissue: self.min_tissue,
                overlap: self.overlap,
                board_genes: self.board_genes.clone(),
                objective: ObjectiveSettings {
                    score: self.score.clone(),
                    enter: self.hot,
                    leave: self.cool.unwrap_or(self.hot),
                    rescans: self.rescans,
                    refocus: self.refocus_below.map(|below| (below, self.refocuses)),
                    stop_after: self.stop_after,
                },
            },
        })
    }
}

/// A daemon that runs takes no step back unless a person installs the older model.
fn not_older(model: &Model, in_use: &Model) -> Result<()> {
    let (new, old) = (model.metadata(), in_use.metadata());
    let versions = (new.version.parse::<ModelVersion>(), old.version.parse::<ModelVersion>());
    match versions {
        (Ok(version), Ok(before)) if new.name == old.name && version < before => Err(Error::model(
            model.path(),
            format!(
                "version {version} is older than {before}, which is in use; restart to go back"
            ),
        )),
        _ => Ok(()),
    }
}

fn weight(text: &str) -> std::result::Result<(String, f32), String> {
    let bad = || format!("`{text}` is no GENE=WEIGHT");
    let (gene, weight) = text.split_once('=').ok_or_else(bad)?;
    Ok((gene.to_owned(), weight.parse().map_err(|_| bad())?))
}
