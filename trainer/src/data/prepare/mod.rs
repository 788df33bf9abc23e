//! `prepare`: from a source in some layout to one paired dataset directory.
//!
//! The directory is made beside its final place and renamed when it is whole; `dataset.json` is
//! written last. An interrupted run leaves only a `.partial` directory, which no reader takes; the
//! next run goes on from the slides that were [`cut`] whole.

mod cut;
mod partial;
#[cfg(test)]
mod tests;
mod work;

use std::path::PathBuf;

use partial::Partial;
use work::Work;

use super::import::{IMPORTERS, Importer, importer};
use super::manifest::Manifest;
use super::patients::Patients;
use crate::{Error, Result};

/// Reads paired slides and counts in an existing layout and writes one paired dataset
///
/// The dataset directory holds patches.h5 and adata.h5ad in the layout of HEST (row i of both is
/// the same tile), unlabelled.h5 with --unlabelled, overview/<slide>.png to check the pairing by
/// eye, and dataset.json with the account of every row of the source. Rows that cannot be used
/// are named, counted and left out; with --strict they are refused.
#[derive(Debug, Clone, clap::Args)]
pub struct PrepareArgs {
    /// Directory of the source
    pub source: PathBuf,
    /// Dataset directory to make
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Layout of the source
    #[arg(long = "from", value_name = "LAYOUT", value_parser = layouts(), default_value = "legacy-st")]
    pub layout: String,
    /// Slides to take, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub slides: Vec<String>,
    /// Side of the tiles in pixels [default: 224, or that of ready-made tiles]
    #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub tile_px: Option<u32>,
    /// Micrometres per pixel that the tiles shall have [default: that of the images]
    #[arg(long, value_name = "UM")]
    pub um_per_px: Option<f64>,
    /// Micrometres per pixel of the source images, where the files do not tell (JPEG, PNG,
    /// ready-made tiles)
    #[arg(long, value_name = "UM")]
    pub mpp: Option<f64>,
    /// The patient is the first N characters of the slide's name
    #[arg(long, value_name = "N", conflicts_with = "patients")]
    pub patient_from_prefix: Option<usize>,
    /// Table (CSV or TSV) with columns slide and patient
    #[arg(long, value_name = "FILE")]
    pub patients: Option<PathBuf>,
    /// Gene symbols of ready-made pairs, one a line, in column order
    #[arg(long, value_name = "FILE")]
    pub genes_file: Option<PathBuf>,
    /// Leave out spots with fewer counts in all
    #[arg(long, value_name = "COUNTS", default_value_t = 1)]
    pub min_counts: u64,
    /// Also lay tiles without expression over the tissue of every section
    #[arg(long)]
    pub unlabelled: bool,
    /// Distance between unlabelled tiles in pixels of the tiles [default: the tile's side]
    #[arg(long, value_name = "PX", requires = "unlabelled")]
    pub stride: Option<f64>,
    /// Smallest fraction of an unlabelled tile that is tissue
    #[arg(long, value_name = "FRACTION", default_value_t = 0.5, requires = "unlabelled")]
    pub min_tissue: f64,
    /// Name of the data set [default: the source directory's]
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Where the data comes from: a DOI, an address or a citation; kept for attribution
    #[arg(long = "attribution", value_name = "TEXT", default_value = "not stated")]
    pub attribution: String,
    /// Licence of the data; kept for attribution
    #[arg(long, value_name = "TEXT", default_value = "not stated")]
    pub license: String,
    /// Refuse the source when any row of it cannot be used
    #[arg(long)]
    pub strict: bool,
    /// Compress the tiles with this deflate level, 1 to 9 (0: fast to read, larger)
    #[arg(long, value_name = "LEVEL", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=9))]
    pub deflate: u32,
    /// Replace the dataset directory if it exists
    #[arg(long)]
    pub overwrite: bool,
}

/// Names of the layouts with their help.
fn layouts() -> clap::builder::PossibleValuesParser {
    IMPORTERS
        .iter()
        .map(|importer| clap::builder::PossibleValue::new(importer.name()).help(importer.about()))
        .collect::<Vec<_>>()
        .into()
}

/// Prepares the dataset that `args` ask for and prints what became of the source.
pub fn run(args: &PrepareArgs) -> Result<()> {
    let manifest = prepare(args)?;
    print!("{}", summary(&manifest));
    println!("wrote {}", args.output.display());
    Ok(())
}

/// Prepares the dataset that `args` ask for; returns what `dataset.json` says.
pub fn prepare(args: &PrepareArgs) -> Result<Manifest> {
    for (flag, value) in [("--um-per-px", args.um_per_px), ("--mpp", args.mpp)] {
        if value.is_some_and(|um| !(um.is_finite() && um > 0.0)) {
            return Err(Error::Request(format!("{flag} takes micrometres per pixel, above zero")));
        }
    }
    if args.stride.is_some_and(|stride| !(stride.is_finite() && stride >= 1.0)) {
        return Err(Error::Request("--stride takes at least one pixel".into()));
    }
    if !(0.0..=1.0).contains(&args.min_tissue) {
        return Err(Error::Request("--min-tissue takes a fraction from 0 to 1".into()));
    }
    let patients = Patients::new(args)?;
    let importer = importer(&args.layout)?;
    let chosen = choose(importer, args)?;
    let partial = Partial::create(&args.output, args.overwrite)?;
    let mut work = Work::new(args, importer, partial.path());
    for name in &chosen {
        work.add(name, patients.of(name)?)?;
    }
    let mut manifest = work.finish()?;
    if matches!(patients, Patients::Slides) && manifest.sections.len() > 1 {
        for section in &mut manifest.sections {
            section.note(
                "no patients were given, so this slide counts as a patient of its own; give \
                 --patients or --patient-from-prefix where slides share one"
                    .into(),
            );
        }
    }
    manifest.write(partial.path())?;
    partial.commit()?;
    Ok(manifest)
}

/// The sections to take: those of the source that the user named, or all.
fn choose(importer: &dyn Importer, args: &PrepareArgs) -> Result<Vec<String>> {
    if !args.source.is_dir() {
        return Err(Error::data(&args.source, "there is no such directory; give the source's"));
    }
    let known = importer.sections(&args.source)?;
    if let Some(unknown) = args.slides.iter().find(|slide| !known.contains(slide)) {
        return Err(Error::data(
            &args.source,
            format!("has no slide called {unknown}; it has {}", known.join(", ")),
        ));
    }
    Ok(known.into_iter().filter(|s| args.slides.is_empty() || args.slides.contains(s)).collect())
}

/// The summary that is printed: every section, every reason, every note.
pub fn summary(manifest: &Manifest) -> String {
    let patients: std::collections::BTreeSet<&str> =
        manifest.sections.iter().map(|section| section.patient.as_str()).collect();
    let mut out = format!(
        "{}: {} slides of {} patients, {} tiles of {} px at {} um/px, {} genes ({})\n",
        manifest.name,
        manifest.sections.len(),
        patients.len(),
        manifest.tiles,
        manifest.tile_px,
        manifest.um_per_px,
        manifest.genes,
        manifest.unit.name()
    );
    for section in &manifest.sections {
        out += &format!(
            "  {} (patient {}): {} rows read, {} tiles kept, {} rows left out",
            section.slide,
            section.patient,
            section.spots_read.max(section.counts_read),
            section.kept,
            section.skipped_rows()
        );
        if manifest.unlabelled.is_some() {
            out += &format!(", {} unlabelled tiles", section.unlabelled);
        }
        out.push('\n');
        out += &section.details();
    }
    for (slide, reason) in &manifest.sections_left_out {
        out += &format!("  {slide}: left out: {reason}\n");
    }
    out
}
