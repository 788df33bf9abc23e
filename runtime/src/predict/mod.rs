//! The pipeline: read, find tissue, infer, write, on bounded queues.
//!
//! [`run`] is the whole way from a slide and a model to files. It works out what is asked
//! ([`Request`]), sends the tiles through [`pipeline`], keeps every row in the [`journal`] as soon
//! as it is known, and at the end streams the journal through the output sinks. A run that was
//! stopped, killed or failed continues behind its last whole row when it is asked again.

pub mod genes;
pub mod journal;
pub mod pipeline;
mod progress;
mod report;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tiles;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

pub use progress::{NoProgress, Progress};
pub use report::{
    DamagedReport, EngineShare, GeneMean, ModelReport, ProgramReport, RunReport, SlideReport,
    TileCounts, Timings,
};
pub use tiles::TileSource;

use self::journal::{Journal, Settings};
use self::pipeline::{DamagedTile, Job, Outcome, Pipeline};
pub(crate) use self::report::{Means, remove_outdated, rfc3339};
use self::tiles::Tiles;
use crate::engine;
use crate::model::{Model, pb::ModelProto};
use crate::output::{self, Context, Row};
use crate::slide::{self, Slide};
use crate::tiling::tile_side;
use crate::tissue::TissueMask;
use crate::{Error, Result};

/// Longer side of the overview picture that heat maps are drawn on, in pixels.
pub(crate) const OVERVIEW_PX: u32 = 1600;

/// Genes in the report's list of the highest means.
pub(crate) const TOP_GENES: usize = 10;

/// Rows between two syncs of the journal to the disk.
const ROWS_PER_SYNC: u64 = 256;

/// Name of the run's report among the output formats.
pub const REPORT_FORMAT: &str = "json";

/// File name of the run's report.
pub const REPORT_FILE: &str = "run.json";

/// What a user can ask for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The slide file.
    pub slide: PathBuf,
    /// Directory for the outputs; made when it is not there.
    pub directory: PathBuf,
    /// Micrometres per level-0 pixel, instead of the file's own.
    pub um_per_px: Option<f64>,
    /// Genes to write, in order; `None` for the whole panel.
    pub genes: Option<Vec<String>>,
    /// Output formats by name (see [`formats`]); the run's report is always written.
    pub formats: Vec<String>,
    /// Genes to draw heat maps of; `None` leaves the choice to the output.
    pub heatmap_genes: Option<Vec<String>>,
    /// Which tiles.
    pub tiles: TileSource,
    /// Least fraction of a grid tile that has to be tissue, 0 to 1.
    pub min_tissue: f64,
    /// Tiles predicted at the same time.
    pub threads: usize,
    /// Engine by name.
    pub engine: String,
    /// What is asked of it.
    pub options: engine::Options,
    /// Discard an unfinished run instead of continuing it.
    pub restart: bool,
}

/// Names of all output formats.
pub fn formats() -> impl Iterator<Item = &'static str> {
    output::FORMATS.iter().map(|format| format.name).chain([REPORT_FORMAT])
}

/// Predicts a slide and writes the outputs. Setting `stop` ends the run after the tiles that are
/// under way: the outputs are then written from what there is, and the report says so (or
/// [`Error::Interrupted`] is returned when there is nothing yet).
///
/// # Errors
/// When the slide, the model, the request or the output directory is unusable, or a stage fails;
/// rows that were predicted before a failure are kept for the next run.
pub fn run(
    request: &Request,
    model: &Model,
    stop: &AtomicBool,
    progress: &dyn Progress,
) -> Result<RunReport> {
    run_graph(request, model, Cow::Borrowed(model.file().proto()), stop, progress)
}

/// As [`run`], for a model that is not needed afterwards: its weights are let go once the engine has
/// read them.
///
/// # Errors
/// As [`run`].
pub fn run_once(
    request: &Request,
    mut model: Model,
    stop: &AtomicBool,
    progress: &dyn Progress,
) -> Result<RunReport> {
    let graph = model.release_graph();
    run_graph(request, &model, Cow::Owned(graph), stop, progress)
}

fn run_graph(
    request: &Request,
    model: &Model,
    graph: Cow<ModelProto>,
    stop: &AtomicBool,
    progress: &dyn Progress,
) -> Result<RunReport> {
    let start = (Instant::now(), SystemTime::now());
    check(request)?;
    let mut plan = Plan::new(request, model)?;
    let engine = engine::open_graph(&request.engine, model, graph, &request.options)?;
    if engine.cooperative_matrices() {
        plan.settings.insert("cooperative_matrices".into(), "used".into());
    }
    std::fs::create_dir_all(&request.directory)
        .map_err(|error| output::atomic::explain(&request.directory, error))?;
    let journal_path = Journal::path_for(&request.directory, &plan.stem);
    let mut journal = Journal::open(&journal_path, &plan.settings, request.restart)?;
    let open_s = start.0.elapsed().as_secs_f64();

    let result = plan.finish(&mut journal, &*engine, start, open_s, stop, progress);
    match result {
        Ok(report) => {
            if report.complete {
                journal.remove()?;
            }
            Ok(report)
        }
        // An empty journal is worth nothing; its removal is a courtesy.
        Err(error) if journal.rows() == 0 => {
            let _ = journal.remove();
            Err(error)
        }
        Err(error) => Err(Error::Kept {
            rows: journal.rows(),
            journal: journal_path,
            source: Box::new(error),
        }),
    }
}

/// Refuses what needs no file to be looked at.
fn check(request: &Request) -> Result<()> {
    if let Some(scale) = request.um_per_px
        && !(scale.is_finite() && scale > 0.0)
    {
        return Err(Error::Request(format!("{scale} um/px is not a scale; give for example 0.5")));
    }
    if !(0.0..=1.0).contains(&request.min_tissue) {
        return Err(Error::Request(format!(
            "a tissue fraction of {} is not between 0 and 1",
            request.min_tissue
        )));
    }
    check_formats(&request.formats)
}

/// Refuses output formats that are not known.
pub(crate) fn check_formats(wanted: &[String]) -> Result<()> {
    for format in wanted {
        if !formats().any(|known| known == format) {
            let known: Vec<&str> = formats().collect();
            return Err(Error::Request(format!(
                "there is no output format `{format}`; this build writes {}",
                known.join(", ")
            )));
        }
    }
    Ok(())
}

/// A request with every question answered.
struct Plan<'a> {
    request: &'a Request,
    model: &'a Model,
    slide: Box<dyn Slide>,
    stem: String,
    slide_report: SlideReport,
    columns: Vec<usize>,
    genes: Vec<String>,
    heatmap_genes: Option<Vec<String>>,
    tiles: Tiles,
    settings: Settings,
}

impl<'a> Plan<'a> {
    fn new(request: &'a Request, model: &'a Model) -> Result<Self> {
        let metadata = model.metadata();
        let columns = match &request.genes {
            Some(wanted) => genes::columns(&metadata.panel, wanted)?,
            None => (0..metadata.panel.len()).collect(),
        };
        let genes: Vec<String> =
            columns.iter().map(|&column| metadata.panel[column].clone()).collect();
        let heatmap_genes = match &request.heatmap_genes {
            Some(wanted) => {
                let columns = genes::columns(&genes, wanted)?;
                Some(columns.into_iter().map(|column| genes[column].clone()).collect())
            }
            None => None,
        };
        let slide = slide::open(&request.slide)?;
        let slide_report = describe(&*slide, request)?;
        let scale = slide_report.um_per_px;
        if scale > 1.5 * metadata.um_per_px {
            tracing::warn!(
                "{}: the slide's finest level has {scale} um/px, the model was trained at {}; \
                 expect worse predictions",
                request.slide.display(),
                metadata.um_per_px
            );
        }
        let side = tile_side(metadata.tile_px, metadata.um_per_px, scale)?;
        let tiles = Tiles::new(&request.tiles, slide.info(), side)?;
        let stem = request
            .slide
            .file_stem()
            .map_or_else(|| "slide".into(), |stem| stem.to_string_lossy().into_owned());
        let mut settings = Settings::from([
            ("program".into(), crate::VERSION.into()),
            ("engine".into(), request.engine.clone()),
            ("model".into(), model.sha256().into()),
            ("slide".into(), {
                let identity = &slide_report.identity;
                format!("{} bytes, {}", identity.bytes, identity.ends_sha256)
            }),
            ("um_per_px".into(), scale.to_string()),
            ("genes".into(), genes.join(",")),
            ("tiles".into(), tiles.describe()),
        ]);
        if tiles.min_tissue_applies() {
            settings.insert("min_tissue".into(), request.min_tissue.to_string());
        }
        Ok(Self {
            request,
            model,
            slide,
            stem,
            slide_report,
            columns,
            genes,
            heatmap_genes,
            tiles,
            settings,
        })
    }

    /// Everything after the checks: tissue, tiles, outputs, report.
    fn finish(
        &self,
        journal: &mut Journal,
        engine: &dyn engine::Engine,
        start: (Instant, SystemTime),
        open_s: f64,
        stop: &AtomicBool,
        progress: &dyn Progress,
    ) -> Result<RunReport> {
        let clock = Instant::now();
        progress.stage("finding tissue");
        let (thumbnail, thumbnail_downsample) = slide::overview(&*self.slide, OVERVIEW_PX)?;
        let mask = TissueMask::detect(&*self.slide, self.slide_report.um_per_px)?;
        let wanted = self.wanted(&mask);
        let to_predict = wanted.clone().count() as u64;
        let tissue_s = clock.elapsed().as_secs_f64();

        let clock = Instant::now();
        progress.tiles(to_predict, journal.resumed() + journal.damaged());
        let inference_s = self.predict(journal, engine, wanted.clone(), stop, progress)?;
        if journal.rows() == 0 && journal.damaged() > 0 && journal.damaged() == to_predict {
            return Err(Error::slide(
                self.slide.path(),
                format!(
                    "none of the {to_predict} tiles can be read, the file is damaged; copy or \
                     download it again"
                ),
            ));
        }
        let predict_s = clock.elapsed().as_secs_f64();
        let complete = journal.rows() + journal.damaged() == to_predict;
        if !complete && journal.rows() == 0 {
            return Err(Error::Interrupted);
        }

        let clock = Instant::now();
        progress.stage("writing outputs");
        let context = Context {
            directory: self.request.directory.clone(),
            stem: self.stem.clone(),
            genes: self.genes.clone(),
            heatmap_genes: self.heatmap_genes.clone(),
            model: self.model.metadata().clone(),
            model_sha256: self.model.sha256().to_owned(),
            slide_name: self.slide_report.file.clone(),
            slide: self.slide.info().clone(),
            um_per_px: self.slide_report.um_per_px,
            thumbnail,
            thumbnail_downsample,
            given: self.tiles.given(),
        };
        let Written { files, means, damaged } = self.write(journal, &context)?;
        let write_s = clock.elapsed().as_secs_f64();

        // What a stopped run looked at ends with its last row.
        let seen = if complete {
            self.tiles.len()
        } else {
            journal.last_index().map_or(0, |last| last + 1)
        };
        let predicted = journal.rows();
        let new = predicted - journal.resumed();
        let report = RunReport {
            complete,
            started: rfc3339(start.1),
            program: ProgramReport {
                version: crate::VERSION.into(),
                engine: engine.name().into(),
                threads: self.request.threads,
            },
            engines: journal.engines().iter().filter(|share| share.tiles > 0).cloned().collect(),
            model: describe_model(self.model),
            slide: self.slide_report.clone(),
            settings: self.settings.clone(),
            genes: self.genes.clone(),
            tiles: TileCounts {
                total: self.tiles.len(),
                seen,
                skipped: seen - predicted - damaged.len() as u64,
                damaged: damaged.len() as u64,
                predicted,
                resumed: journal.resumed(),
            },
            damaged,
            top_genes: means.top(&self.genes, TOP_GENES),
            timings: Timings {
                open_s,
                tissue_s,
                predict_s,
                inference_s,
                write_s,
                total_s: start.0.elapsed().as_secs_f64(),
                tiles_per_s: if predict_s > 0.0 { new as f64 / predict_s } else { 0.0 },
            },
            files: files.iter().map(|file| relative(file, &self.request.directory)).collect(),
        };
        let path = self.request.directory.join(REPORT_FILE);
        remove_outdated(&self.request.directory, &path, &report.files);
        output::write_run_report(&path, &report)?;
        progress.done();
        Ok(report)
    }

    /// The tiles to predict with their tissue, in order.
    fn wanted<'s>(&'s self, mask: &'s TissueMask) -> impl Iterator<Item = Job> + Clone + Send + 's {
        let least = if self.tiles.min_tissue_applies() { self.request.min_tissue } else { 0.0 };
        self.tiles.iter().filter_map(move |tile| {
            let tissue = mask.fraction(tile.x, tile.y, tile.side);
            (tissue >= least).then_some(Job { tile, tissue: tissue as f32 })
        })
    }

    /// Sends what is not in the journal yet through the pipeline into the journal.
    fn predict(
        &self,
        journal: &mut Journal,
        engine: &dyn engine::Engine,
        wanted: impl Iterator<Item = Job> + Send,
        stop: &AtomicBool,
        progress: &dyn Progress,
    ) -> Result<f64> {
        let last = journal.last_index();
        let left = wanted.filter(move |job| last.is_none_or(|last| job.tile.index > last));
        let pipeline = Pipeline {
            slide: &*self.slide,
            engine,
            tile_px: self.model.metadata().tile_px,
            columns: &self.columns,
            confidence: self.model.metadata().confidence.as_ref(),
            threads: self.request.threads,
            stop,
        };
        let spent = pipeline.run(left, |outcome, ran_on| {
            if let Some(engine) = ran_on {
                journal.rows_of(engine)?;
            }
            if let Outcome::Damaged(DamagedTile { tile, problem }) = &outcome {
                tracing::warn!("tile {} is left out, the slide is damaged: {problem}", tile.id);
            }
            journal.push(&outcome)?;
            let done = journal.rows() + journal.damaged();
            if done.is_multiple_of(ROWS_PER_SYNC) {
                journal.sync()?;
            }
            progress.predicted(done);
            if stop.load(Ordering::Relaxed) {
                progress.stopping();
            }
            Ok(())
        })?;
        journal.sync()?;
        Ok(spent.as_secs_f64())
    }

    /// Streams the journal through every sink.
    fn write(&self, journal: &mut Journal, context: &Context) -> Result<Written> {
        let mut damaged = Vec::new();
        let (files, means) = write_rows(&self.request.formats, context, |each| {
            journal.for_each(|outcome| match outcome {
                Outcome::Row(row) => each(row),
                Outcome::Damaged(tile) => {
                    damaged.push(DamagedReport::from(tile));
                    Ok(())
                }
            })
        })?;
        Ok(Written { files, means, damaged })
    }
}

/// What came of writing.
struct Written {
    files: Vec<PathBuf>,
    means: Means,
    damaged: Vec<DamagedReport>,
}

/// Sends the rows that `rows` gives through a sink of every one of `formats`; the files made and
/// the genes' means.
///
/// # Errors
/// The first of `rows` or of a sink; no file appears then.
pub(crate) fn write_rows(
    formats: &[String],
    context: &Context,
    rows: impl FnOnce(&mut dyn FnMut(Row) -> Result<()>) -> Result<()>,
) -> Result<(Vec<PathBuf>, Means)> {
    let mut sinks = formats
        .iter()
        .filter(|format| *format != REPORT_FORMAT)
        .map(|format| output::open(format, context))
        .collect::<Result<Vec<_>>>()?;
    let mut means = Means::new(context.genes.len());
    rows(&mut |row| {
        means.push(&row.expression);
        sinks.iter_mut().try_for_each(|sink| sink.push(&row))
    })?;
    let mut files = Vec::new();
    for sink in sinks {
        files.extend(sink.finish()?);
    }
    Ok((files, means))
}

/// The slide's facts, with the scale that is used.
fn describe(slide: &dyn Slide, request: &Request) -> Result<SlideReport> {
    let info = slide.info();
    let (um_per_px, um_per_px_from) = match (request.um_per_px, info.um_per_px) {
        (Some(scale), _) => (scale, "user"),
        (None, Some(scale)) => (scale, "file"),
        (None, None) => {
            return Err(Error::slide(
                slide.path(),
                "it does not tell its scale; give the micrometres per pixel of its finest level \
                 with --mpp (typically 0.25 for a 40x scan, 0.5 for 20x)",
            ));
        }
    };
    let Some(finest) = info.levels.first() else {
        return Err(Error::slide(slide.path(), "it has no image"));
    };
    Ok(SlideReport {
        file: file_name(slide.path()),
        identity: slide::identity(slide.path())?,
        format: info.format.clone(),
        vendor: info.vendor.clone(),
        width: finest.width,
        height: finest.height,
        um_per_px,
        um_per_px_from,
    })
}

pub(crate) fn describe_model(model: &Model) -> ModelReport {
    let metadata = model.metadata();
    ModelReport {
        name: metadata.name.clone(),
        version: metadata.version.clone(),
        file: file_name(model.path()),
        sha256: model.sha256().to_owned(),
        precision: metadata.precision.clone(),
        unit: metadata.unit.clone(),
        license: metadata.license.clone(),
        tile_px: metadata.tile_px,
        um_per_px: metadata.um_per_px,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

pub(crate) fn relative(file: &Path, directory: &Path) -> String {
    file.strip_prefix(directory).unwrap_or(file).to_string_lossy().into_owned()
}
