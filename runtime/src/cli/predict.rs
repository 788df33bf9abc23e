//! `diffbulk predict`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::engine::EngineChoice;
use super::{interrupt, print, progress};
use crate::model::{Model, locate};
use crate::predict::{self, Request, RunReport, TileSource};
use crate::{Error, Result};

/// Predicts a slide's expression and writes tables, pictures and a report.
///
/// A run that was stopped (Ctrl-C) or killed continues where it was when the same command is given
/// again.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Slide to read: Aperio SVS, tiled or striped TIFF and BigTIFF, JPEG or PNG.
    slide: PathBuf,

    /// Directory for the outputs [default: <slide's name>-diffbulk].
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Model to use [default: the environment variable DIFFBULK_MODEL, or the shipped model].
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,

    /// Micrometres per pixel of the slide's finest level, where the file does not tell (or tells
    /// wrong).
    #[arg(long, value_name = "UM")]
    mpp: Option<f64>,

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

    /// Genes to draw heat maps of, separated by commas [default: the named
    /// genes, or else well-known and well-predicted ones].
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    heatmap_genes: Option<Vec<String>>,

    /// Predict at the tile centres in FILE instead of on a grid: CSV or TSV with columns x and y
    /// in level-0 pixels and any id columns, or a HEST patches .h5. Ids and order are kept, and
    /// no tile is skipped.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["overlap", "min_tissue"])]
    at: Option<PathBuf>,

    /// Least fraction of a tile that has to be tissue, 0 to 1.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.25)]
    min_tissue: f64,

    /// How much neighbouring grid tiles overlap, as a fraction of the tile's side: 0 lays them
    /// side by side, 0.5 puts one every half tile.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    overlap: f64,

    /// Tiles predicted at the same time [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    #[command(flatten)]
    engine: EngineChoice,

    /// Discard an unfinished run in the output directory instead of continuing it.
    #[arg(long)]
    restart: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let stop = interrupt::flag()?;
    let model = Model::open(&locate::locate(arguments.model.as_deref())?)?;
    let request = arguments.request();
    let report = predict::run_once(&request, model, &stop, &*progress::for_terminal())?;
    print(&summary(&report, &request.directory))?;
    if report.complete { Ok(()) } else { Err(Error::Interrupted) }
}

impl Arguments {
    fn request(&self) -> Request {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Request {
            slide: self.slide.clone(),
            directory: self.output.clone().unwrap_or_else(|| default_directory(&self.slide)),
            um_per_px: self.mpp,
            genes: self.genes.clone(),
            formats: self.formats.clone(),
            heatmap_genes: self.heatmap_genes.clone(),
            tiles: match &self.at {
                Some(file) => TileSource::At(file.clone()),
                None => TileSource::Grid { overlap: self.overlap },
            },
            min_tissue: self.min_tissue,
            threads: self.threads.map_or_else(cores, usize::from),
            engine: self.engine.name.clone(),
            options: self.engine.options(),
            restart: self.restart,
        }
    }
}

/// `<slide's name>-diffbulk` in the current directory.
fn default_directory(slide: &Path) -> PathBuf {
    let stem = slide.file_stem().unwrap_or_default().to_string_lossy();
    PathBuf::from(format!("{stem}-diffbulk"))
}

fn summary(report: &RunReport, directory: &Path) -> String {
    let tiles = &report.tiles;
    let mut text = format!(
        "{}: {} of {} tiles predicted with {} {}, {} skipped (too little tissue)",
        report.slide.file,
        tiles.predicted,
        tiles.total,
        report.model.name,
        report.model.version,
        tiles.skipped,
    );
    if tiles.damaged > 0 {
        let _ = write!(text, ", {} left out (the slide is damaged there)", tiles.damaged);
    }
    if tiles.resumed > 0 {
        let _ = write!(text, ", {} taken over from an earlier run", tiles.resumed);
    }
    let _ = writeln!(
        text,
        "\ntime: {} ({:.1} tiles/s; tissue {}, tiles {} of which the model {}, writing {})",
        duration(report.timings.total_s),
        report.timings.tiles_per_s,
        duration(report.timings.tissue_s),
        duration(report.timings.predict_s),
        duration(report.timings.inference_s),
        duration(report.timings.write_s),
    );
    if !report.top_genes.is_empty() {
        let genes: Vec<String> =
            report.top_genes.iter().map(|top| format!("{} {:.2}", top.gene, top.mean)).collect();
        let _ = writeln!(text, "highest means ({}): {}", report.model.unit, genes.join(", "));
    }
    if tiles.predicted == 0 && tiles.damaged == 0 {
        text.push_str(
            "no tile holds enough tissue; if the slide does have tissue, lower --min-tissue\n",
        );
    }
    if !report.complete {
        let _ = writeln!(text, "unfinished: the files hold the first {} tiles", tiles.predicted);
    }
    let _ = writeln!(text, "files in {}:", directory.display());
    for file in report.files.iter().map(String::as_str).chain([predict::REPORT_FILE]) {
        let _ = writeln!(text, "  {file}");
    }
    text
}

/// Seconds in words a person reads: `0.8 s`, `42 s`, `3 min 5 s`, `2 h 10 min`.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown time".into();
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let shown: Vec<String> =
            [0.84, 42.4, 185.0, 7830.0, f64::INFINITY].into_iter().map(duration).collect();
        assert_eq!(shown, ["0.8 s", "42 s", "3 min 5 s", "2 h 10 min", "unknown time"]);
    }

    #[test]
    fn outputs_go_beside_the_user_not_the_slide() {
        assert_eq!(default_directory(Path::new("/data/a.b.svs")), Path::new("a.b-diffbulk"));
    }
}
