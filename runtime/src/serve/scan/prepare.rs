//! From a survey to a scan that can run: tissue, tiles, plans, journal.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use diffbulk_link::units::UmPerPx;

use super::survey::{Geometry, Surveyed};
use crate::model::hex;
use crate::output::Context;
use crate::predict::journal::Settings;
use crate::predict::pipeline::Job;
use crate::serve::journal::ScanJournal;
use crate::serve::planning::{self, Part};
use crate::serve::served::Served;
use crate::slide::{Level, SlideInfo};
use crate::tiling::{Grid, tile_side};
use crate::tissue::TissueMask;
use crate::{Error, Result};

/// What the operator asks of every scan.
#[derive(Debug, Clone)]
pub struct ScanSettings {
    /// Directory in which every scan gets its own.
    pub output: PathBuf,
    /// Output formats by name.
    pub formats: Vec<String>,
    /// Genes to write, in order; `None` for the whole panel.
    pub genes: Option<Vec<String>>,
    /// Genes to draw heat maps of.
    pub heatmap_genes: Option<Vec<String>>,
    /// Least fraction of a tile that has to be tissue.
    pub min_tissue: f64,
    /// Overlap of neighbouring tiles, as a fraction of their side.
    pub overlap: f64,
    /// Genes the board gets; `None` for those predicted best.
    pub board_genes: Option<Vec<String>>,
    /// What the board looks for; weights are by gene of the board's panel.
    pub objective: ObjectiveSettings,
}

/// What the board looks for, before it is known which genes it gets.
#[derive(Debug, Clone, Default)]
pub struct ObjectiveSettings {
    /// Weight of a gene in the score; the others count nothing.
    pub score: Vec<(String, f32)>,
    /// Score at which a hot spot begins.
    pub enter: f32,
    /// Score below which it ends.
    pub leave: f32,
    /// Hot tiles that may be taken again at the finest scale.
    pub rescans: u16,
    /// Confidence below which a tile is focused anew, and how often at most.
    pub refocus: Option<(f64, u8)>,
    /// Hot tiles after which the scan ends.
    pub stop_after: Option<u16>,
}

/// A scan that can run.
#[derive(Debug)]
pub(in crate::serve) struct Prepared {
    pub(in crate::serve) tiles: u64,
    pub(in crate::serve) jobs: HashMap<u64, Job>,
    pub(in crate::serve) parts: Vec<Part>,
    pub(in crate::serve) scale: UmPerPx,
    pub(in crate::serve) context: Context,
    pub(in crate::serve) settings: Settings,
    pub(in crate::serve) survey_sha256: String,
    pub(in crate::serve) journal: ScanJournal,
}

/// Works it all out. Takes seconds on a large slide.
///
/// # Errors
/// When the slide and the model do not fit, or the output directory is unusable.
pub(in crate::serve) fn prepare(
    slide: &Geometry,
    surveyed: Surveyed,
    served: &Served,
    settings: &ScanSettings,
) -> Result<Prepared> {
    let metadata = served.model.metadata();
    let side = tile_side(metadata.tile_px, metadata.um_per_px, slide.um_per_px)?;
    let grid = Grid::new(slide.width, slide.height, side, settings.overlap)?;
    let (picture, downsample) = &surveyed.mask;
    let mask = TissueMask::in_picture(picture, *downsample, slide.um_per_px);
    let jobs = planning::wanted(&grid, &mask, settings.min_tissue);
    let scale = UmPerPx::new(metadata.um_per_px).ok_or_else(|| {
        Error::Request(format!("{} um/px is no scale for a camera", metadata.um_per_px))
    })?;
    let mut objective = served.objective.clone();
    if let Some(rescan) = &mut objective.rescan {
        rescan.scale = UmPerPx::new(slide.um_per_px).unwrap_or(scale);
    }
    let parts = planning::parts(&grid, &jobs, slide.um_per_px, scale, &objective)?;
    let genes: Vec<String> =
        served.columns.iter().map(|&column| metadata.panel[column].clone()).collect();
    let survey_sha256 = {
        use sha2::Digest;
        let mut digest = sha2::Sha256::new();
        digest.update(surveyed.mask.0.as_raw());
        digest.update(surveyed.overview.0.as_raw());
        hex(&digest.finalize())
    };
    let mut journal_settings = Settings::from([
        ("program".into(), crate::VERSION.into()),
        ("engine".into(), served.engine_name().into()),
        ("model".into(), served.model.sha256().into()),
        ("slide".into(), format!("{} x {} px, survey {survey_sha256}", slide.width, slide.height)),
        ("um_per_px".into(), slide.um_per_px.to_string()),
        ("genes".into(), genes.join(",")),
        (
            "tiles".into(),
            format!(
                "grid of {} x {}, side {} px, every {} px",
                grid.columns(),
                grid.rows(),
                grid.side(),
                grid.stride()
            ),
        ),
        ("min_tissue".into(), settings.min_tissue.to_string()),
        (
            "plans".into(),
            parts
                .iter()
                .map(|part| format!("{:08x}", part.plan.id.0))
                .collect::<Vec<_>>()
                .join(","),
        ),
    ]);
    if served.engine.cooperative_matrices() {
        journal_settings.insert("cooperative_matrices".into(), "used".into());
    }
    let heatmap_genes = match &settings.heatmap_genes {
        Some(wanted) => {
            let columns = crate::predict::genes::columns(&genes, wanted)?;
            Some(columns.into_iter().map(|column| genes[column].clone()).collect())
        }
        None => None,
    };
    let stem = stem(&slide.name);
    let directory = settings.output.join(format!("{stem}-diffbulk"));
    std::fs::create_dir_all(&directory)
        .map_err(|error| crate::output::atomic::explain(&directory, error))?;
    let planned: Vec<u64> = jobs.iter().map(|job| job.tile.index).collect();
    let journal = directory.join(format!(".{stem}.scan.partial"));
    let journal = ScanJournal::open(&journal, &journal_settings, &planned)?;
    let level = Level {
        width: slide.width,
        height: slide.height,
        downsample: 1.0,
        codec: "camera".into(),
        chunk: (slide.width, slide.height),
    };
    let (thumbnail, thumbnail_downsample) = surveyed.overview;
    let context = Context {
        directory,
        stem,
        genes,
        heatmap_genes,
        model: metadata.clone(),
        model_sha256: served.model.sha256().to_owned(),
        slide_name: slide.name.clone(),
        slide: SlideInfo {
            format: "live scan".into(),
            vendor: None,
            um_per_px: Some(slide.um_per_px),
            objective: None,
            levels: vec![level],
            properties: Vec::new(),
        },
        um_per_px: slide.um_per_px,
        thumbnail,
        thumbnail_downsample,
        given: Arc::default(),
    };
    Ok(Prepared {
        tiles: grid.len(),
        jobs: jobs.into_iter().map(|job| (job.tile.index, job)).collect(),
        parts,
        scale,
        context,
        settings: journal_settings,
        survey_sha256,
        journal,
    })
}

/// A slide's name without its suffix, fit for a directory's name whatever the camera said.
fn stem(name: &str) -> String {
    let stem = std::path::Path::new(name).file_stem().map(|stem| stem.to_string_lossy());
    let stem: String = stem
        .as_deref()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_alphanumeric() || "-_. ".contains(c) { c } else { '_' })
        .collect();
    let stem = stem.trim_matches(['.', ' ']);
    if stem.is_empty() { "slide".into() } else { stem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slides_name_never_leaves_the_output_directory() {
        assert_eq!(stem("cmu-1-small-region.svs"), "cmu-1-small-region");
        for bad in ["../../etc/passwd", "..", "/", "", ".hidden", "a\0b"] {
            let stem = stem(bad);
            assert!(!stem.contains('/') && !stem.starts_with('.') && !stem.is_empty(), "{bad:?}");
        }
    }
}
