//! The end of a scan: the usual files, from the journal.

use std::time::{Instant, SystemTime};

use diffbulk_link::message::{StopReason, Summary};
use serde::Serialize;

use super::prepare::Prepared;
use super::survey::Geometry;
use crate::output::{self, Context, Row};
use crate::predict::{
    self, EngineShare, ProgramReport, REPORT_FILE, RunReport, SlideReport, TileCounts, Timings,
    write_rows,
};
use crate::serve::journal::{ScanJournal, ShotKey, Stored};
use crate::serve::metrics::Latencies;
use crate::serve::served::Served;
use crate::slide::Identity;
use crate::{Error, Result};

/// Formats in which exposures at a finer scale are written, where asked for.
const RESCAN_FORMATS: [&str; 2] = ["parquet", "csv"];

/// What a scan's report says beyond a run's.
#[derive(Debug, Clone, Serialize)]
pub(in crate::serve) struct ScanReport {
    #[serde(flatten)]
    run: RunReport,
    scan: ScanPart,
}

#[derive(Debug, Clone, Serialize)]
struct ScanPart {
    /// Why it ended: `complete`, `enough`, `commanded`.
    ended: &'static str,
    /// Exposures predicted, all attempts.
    exposures: u64,
    /// Exposures at a finer scale, in `<stem>-rescans.*`.
    rescans: u64,
    /// Tiles of the plan that the board left without a result.
    skipped_by_board: u64,
    /// Times a tile was put off because the queue was full.
    shed: u64,
    /// From the last pixel byte to the vector, milliseconds.
    latency_ms: LatencyReport,
    /// The board's own account.
    board: Option<BoardReport>,
}

#[derive(Debug, Clone, Serialize)]
struct LatencyReport {
    count: u64,
    p50: Option<f64>,
    p99: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct BoardReport {
    kept: u16,
    skipped: u16,
    rescans: u16,
    refocuses: u16,
    /// Tile ids with their scores, the best first.
    best: Vec<(String, f32)>,
}

/// What a scan came to, for the log.
#[derive(Debug)]
pub(in crate::serve) struct Finished {
    /// Every tile of the plan has a row.
    pub(in crate::serve) complete: bool,
    /// Tiles written.
    pub(in crate::serve) tiles: u64,
    /// Latencies, seconds.
    pub(in crate::serve) p50: Option<f64>,
    /// Latencies, seconds.
    pub(in crate::serve) p99: Option<f64>,
}

/// All that the end of a scan needs.
#[derive(Debug)]
pub(in crate::serve) struct Ending {
    pub(in crate::serve) slide: Geometry,
    pub(in crate::serve) prepared: Prepared,
    pub(in crate::serve) summary: Summary,
    /// Ids of the board's best tiles.
    pub(in crate::serve) best: Vec<(String, f32)>,
    pub(in crate::serve) formats: Vec<String>,
    pub(in crate::serve) threads: usize,
    pub(in crate::serve) shed: u64,
    pub(in crate::serve) resumed: u64,
    pub(in crate::serve) started: (Instant, SystemTime),
}

/// Writes the outputs and then removes the journal.
///
/// # Errors
/// When an output cannot be written; the scan comes back with its journal, to be written again.
pub(in crate::serve) fn finish(
    mut ending: Box<Ending>,
    served: &Served,
) -> std::result::Result<Finished, (Box<Ending>, Error)> {
    match write(&mut ending, served) {
        Ok(finished) => {
            if let Err(error) = ending.prepared.journal.remove() {
                // The outputs are whole; the next scan of this slide finds every tile known.
                tracing::warn!("{error}");
            }
            Ok(finished)
        }
        Err(error) => Err((ending, error)),
    }
}

fn write(ending: &mut Ending, served: &Served) -> Result<Finished> {
    let clock = Instant::now();
    let predict_s = ending.started.0.elapsed().as_secs_f64();
    let Prepared { tiles, jobs, scale, context, settings, survey_sha256, journal, .. } =
        &mut ending.prepared;
    journal.sync()?;
    let (journal, scale_pm) = (&*journal, scale.0);
    let latency = Latencies::default();
    let mut predicted = 0;
    let mut engines: Vec<EngineShare> = Vec::new();
    let (mut files, means) = write_rows(&ending.formats, context, |each| {
        for stored in chosen(journal, scale_pm) {
            let entry = journal.read(stored)?;
            latency.push(std::time::Duration::from_micros(entry.latency_us.into()));
            match engines.iter_mut().find(|share| share.engine == entry.engine) {
                Some(share) => share.tiles += 1,
                None => engines.push(EngineShare { tiles: 1, ..EngineShare::new(&entry.engine) }),
            }
            each(entry.row)?;
            predicted += 1;
        }
        Ok(())
    })?;
    let rescans: Vec<(u8, Stored)> = journal
        .entries()
        .filter(|(_, stored)| stored.scale_pm != scale_pm)
        .map(|((_, attempt), stored)| (attempt, stored))
        .collect();
    files.extend(write_rescans(&ending.formats, context, journal, &rescans, &latency)?);

    let tiles = *tiles;
    let wanted = jobs.len() as u64;
    let complete = predicted == wanted;
    let report = ScanReport {
        run: RunReport {
            complete,
            started: predict::rfc3339(ending.started.1),
            program: ProgramReport {
                version: crate::VERSION.into(),
                engine: served.engine_name().into(),
                threads: ending.threads,
            },
            engines,
            model: predict::describe_model(&served.model),
            slide: SlideReport {
                file: ending.slide.name.clone(),
                identity: Identity {
                    bytes: 3 * u64::from(ending.slide.width) * u64::from(ending.slide.height),
                    ends_sha256: survey_sha256.clone(),
                },
                format: context.slide.format.clone(),
                vendor: None,
                width: ending.slide.width,
                height: ending.slide.height,
                um_per_px: ending.slide.um_per_px,
                um_per_px_from: "camera",
            },
            settings: settings.clone(),
            genes: context.genes.clone(),
            tiles: TileCounts {
                total: tiles,
                seen: tiles - (wanted - predicted),
                skipped: tiles - wanted,
                damaged: 0,
                predicted,
                resumed: ending.resumed,
            },
            damaged: Vec::new(),
            top_genes: means.top(&context.genes, predict::TOP_GENES),
            timings: Timings {
                predict_s,
                write_s: clock.elapsed().as_secs_f64(),
                total_s: ending.started.0.elapsed().as_secs_f64(),
                tiles_per_s: (predicted - ending.resumed.min(predicted)) as f64
                    / predict_s.max(1e-9),
                ..Timings::default()
            },
            files: files.iter().map(|file| predict::relative(file, &context.directory)).collect(),
        },
        scan: ScanPart {
            ended: match ending.summary.reason {
                StopReason::Complete => "complete",
                StopReason::Enough => "enough",
                StopReason::Commanded => "commanded",
            },
            exposures: latency.count(),
            rescans: rescans.len() as u64,
            skipped_by_board: wanted - predicted,
            shed: ending.shed,
            latency_ms: LatencyReport {
                count: latency.count(),
                p50: latency.quantile(0.5).map(|s| s * 1e3),
                p99: latency.quantile(0.99).map(|s| s * 1e3),
            },
            board: Some(BoardReport {
                kept: ending.summary.kept,
                skipped: ending.summary.skipped,
                rescans: ending.summary.rescans,
                refocuses: ending.summary.refocuses,
                best: ending.best.clone(),
            }),
        },
    };
    let path = context.directory.join(REPORT_FILE);
    predict::remove_outdated(&context.directory, &path, &report.run.files);
    output::write_run_report(&path, &report)?;
    Ok(Finished {
        complete,
        tiles: predicted,
        p50: latency.quantile(0.5),
        p99: latency.quantile(0.99),
    })
}

/// Of several exposures of a tile at the plan's scale the most credible one, tile by tile.
fn chosen(journal: &ScanJournal, scale_pm: u32) -> impl Iterator<Item = Stored> + '_ {
    let mut entries =
        journal.entries().filter(move |(_, stored)| stored.scale_pm == scale_pm).peekable();
    std::iter::from_fn(move || {
        let ((tile, _), mut best) = entries.next()?;
        let same = |entry: &(ShotKey, Stored)| entry.0.0 == tile;
        while let Some((_, other)) = entries.next_if(same) {
            if other.confidence > best.confidence {
                best = other;
            }
        }
        Some(best)
    })
}

/// Exposures at another scale than the plan's, in files of their own: a table of one row a tile
/// stays one.
fn write_rescans(
    formats: &[String],
    context: &Context,
    journal: &ScanJournal,
    rescans: &[(u8, Stored)],
    latency: &Latencies,
) -> Result<Vec<std::path::PathBuf>> {
    let formats: Vec<String> = formats
        .iter()
        .filter(|format| RESCAN_FORMATS.contains(&format.as_str()))
        .cloned()
        .collect();
    if rescans.is_empty() {
        return Ok(Vec::new());
    }
    let context = Context { stem: format!("{}-rescans", context.stem), ..context.clone() };
    let (files, _) = write_rows(&formats, &context, |each| {
        for (attempt, stored) in rescans {
            let entry = journal.read(*stored)?;
            latency.push(std::time::Duration::from_micros(entry.latency_us.into()));
            let mut row: Row = entry.row;
            row.tile.id = format!("{}#{attempt}", row.tile.id);
            each(row)?;
        }
        Ok(())
    })?;
    Ok(files)
}
