//! `prepare`: from a source in some layout to one paired dataset directory.
//!
//! The directory is made beside its final place and renamed when it is whole; `dataset.json` is
//! written last. An interrupted run leaves only a `.partial` directory, which no reader takes.

use std::path::{Path, PathBuf};

use diffbulk::slide::Slide;
use diffbulk::tiling;
use diffbulk::tissue::TissueMask;
use indicatif::{ProgressBar, ProgressStyle};

use super::expression::ExpressionTable;
use super::import::{IMPORTERS, Importer, Pixels, Request, Section, Spot, importer};
use super::manifest::{FORMAT_VERSION, Manifest, UnlabelledInfo};
use super::normalize::Unit;
use super::patients::Patients;
use super::report::SectionReport;
use super::tiles::{NO_COORDS, TileName, TileSet, TileWriter};
use super::unlabelled;
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

/// The dataset in the making.
struct Work<'a> {
    args: &'a PrepareArgs,
    importer: &'static dyn Importer,
    directory: &'a Path,
    table: ExpressionTable,
    /// Set by the first section: unit, tile size and scale of the dataset.
    shape: Option<Shape>,
    paired: Option<TileWriter>,
    unlabelled: Option<TileWriter>,
    reports: Vec<SectionReport>,
    left_out: Vec<(String, String)>,
}

/// What all sections of a dataset have in common.
#[derive(Debug, Clone, Copy)]
struct Shape {
    unit: Unit,
    tile_px: usize,
    um_per_px: f64,
    /// Side of a tile in level-0 px, as long as it is the same for all sections.
    side: Option<f64>,
}

impl<'a> Work<'a> {
    fn new(args: &'a PrepareArgs, importer: &'static dyn Importer, directory: &'a Path) -> Self {
        Self {
            args,
            importer,
            directory,
            table: ExpressionTable::default(),
            shape: None,
            paired: None,
            unlabelled: None,
            reports: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Adds the section called `name`, or enters why it cannot be used.
    fn add(&mut self, name: &str, patient: String) -> Result<()> {
        let mut report = SectionReport::new(name, &patient);
        let request =
            Request { source: &self.args.source, genes_file: self.args.genes_file.as_deref() };
        let section = match self.importer.read(&request, name, &mut report) {
            Ok(section) => section,
            // A section that was not asked for by name may be missing a file or be damaged.
            Err(error @ (Error::Data { .. } | Error::Io { .. } | Error::Runtime(_)))
                if !self.args.strict && self.args.slides.is_empty() =>
            {
                self.left_out.push((name.to_owned(), error.to_string()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match section.pixels {
            Pixels::Slide(ref slide) => self.add_slide(&section, slide.as_ref(), &mut report)?,
            Pixels::Tiles(ref tiles) => self.add_tiles(&section, tiles, &mut report)?,
        }
        if self.args.strict && report.skipped_rows() > 0 {
            return Err(Error::data(
                &self.args.source,
                format!(
                    "{} rows of slide {name} cannot be used, and --strict was given:\n{}",
                    report.skipped_rows(),
                    report.details().trim_end()
                ),
            ));
        }
        self.reports.push(report);
        Ok(())
    }

    /// Fixes what all sections have in common, or checks that this one agrees.
    fn agree(&mut self, slide: &str, next: Shape) -> Result<()> {
        let Some(shape) = &mut self.shape else {
            self.paired = Some(TileWriter::new(next.tile_px));
            self.unlabelled = self.args.unlabelled.then(|| TileWriter::new(next.tile_px));
            self.shape = Some(next);
            return Ok(());
        };
        let same_scale = (shape.um_per_px / next.um_per_px - 1.0).abs() < 1e-6;
        if shape.unit != next.unit || shape.tile_px != next.tile_px || !same_scale {
            return Err(Error::data(
                &self.args.source,
                format!(
                    "slide {slide} has {} px tiles at {} um/px in {}, those before {} px at {} \
                     um/px in {}; give --um-per-px and --tile-px, or prepare them apart",
                    next.tile_px,
                    next.um_per_px,
                    next.unit.name(),
                    shape.tile_px,
                    shape.um_per_px,
                    shape.unit.name()
                ),
            ));
        }
        if shape.side != next.side {
            shape.side = None;
        }
        Ok(())
    }

    /// Cuts the tiles of a section around its spots, and lays the unlabelled ones.
    fn add_slide(
        &mut self,
        section: &Section,
        slide: &dyn Slide,
        report: &mut SectionReport,
    ) -> Result<()> {
        let info = slide.info();
        let base = &info.levels[0];
        let image_px = (base.width, base.height);
        let mpp = self.image_scale(slide, report)?;
        let tile_px = self.args.tile_px.unwrap_or(224);
        let um_per_px = self.args.um_per_px.unwrap_or(mpp);
        let side = f64::from(tile_px) * um_per_px / mpp;
        report.image_px = Some(image_px);
        report.image_um_per_px = Some(mpp);
        if um_per_px < 0.9 * mpp {
            report.note(format!(
                "tiles of {um_per_px} um/px are enlarged from an image of {mpp} um/px; detail that \
                 is not there cannot be learned"
            ));
        }
        let unit = section.unit;
        self.agree(
            &report.slide,
            Shape { unit, tile_px: tile_px as usize, um_per_px, side: Some(side) },
        )?;

        let mut fitting: Vec<(&Spot, (f64, f64))> = Vec::new();
        for spot in &section.spots {
            let Some((cx, cy)) = spot.centre else {
                report.skip("spot without a position on the image", spot.barcode.clone());
                continue;
            };
            let corner = (cx - side / 2.0, cy - side / 2.0);
            let fits = corner.0 >= 0.0
                && corner.1 >= 0.0
                && corner.0 + side <= f64::from(image_px.0)
                && corner.1 + side <= f64::from(image_px.1);
            if !fits {
                report.skip(
                    "spot whose tile reaches outside the image",
                    format!("{} (centre {cx}, {cy})", spot.barcode),
                );
            } else if self.enough(spot, unit, report) {
                fitting.push((spot, corner));
            }
        }
        let places = match self.args.unlabelled {
            true => {
                let stride =
                    self.args.stride.unwrap_or(f64::from(tile_px)) * side / f64::from(tile_px);
                let mask = TissueMask::detect(slide, mpp)?;
                unlabelled::places(&mask, image_px, side, stride, self.args.min_tissue)
            }
            false => Vec::new(),
        };
        if fitting.is_empty() && !section.spots.is_empty() {
            report.note("no spot could be used; are the positions in pixels of this image?".into());
        }

        let bar = progress(&report.slide, fitting.len() + places.len());
        let columns = self.table.add_section(&section.genes);
        for (spot, corner) in fitting {
            let (cx, cy) = (corner.0 + side / 2.0, corner.1 + side / 2.0);
            let image = tiling::read_tile(slide, cx, cy, side, tile_px)?;
            self.push(&image, spot, corner, report)?;
            self.table.push(&columns, &spot.values, spot.centre);
            bar.inc(1);
        }
        if let Some(writer) = &mut self.unlabelled {
            for place in &places {
                let (cx, cy) = (place.x + side / 2.0, place.y + side / 2.0);
                let image = tiling::read_tile(slide, cx, cy, side, tile_px)?;
                let name = TileName {
                    slide: report.slide.clone(),
                    patient: report.patient.clone(),
                    barcode: place.name.clone(),
                    coords: [place.x.round() as i64, place.y.round() as i64],
                };
                writer.push(&image, name)?;
                bar.inc(1);
            }
            report.unlabelled = places.len();
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Takes over the tiles of a section that are cut already.
    fn add_tiles(
        &mut self,
        section: &Section,
        tiles: &TileSet,
        report: &mut SectionReport,
    ) -> Result<()> {
        let path = tiles.path();
        if self.args.unlabelled {
            return Err(Error::Request(format!(
                "--unlabelled needs whole images, and the layout {} has only ready-made tiles",
                self.importer.name()
            )));
        }
        let tile_px = tiles.tile_px();
        if self.args.tile_px.is_some_and(|asked| asked as usize != tile_px) {
            return Err(Error::data(
                path,
                format!("has ready-made tiles of {tile_px} px; leave --tile-px out"),
            ));
        }
        let Some(mpp) = self.args.mpp.or(self.args.um_per_px) else {
            return Err(missing_scale(path));
        };
        if self.args.um_per_px.is_some_and(|asked| (asked / mpp - 1.0).abs() > 1e-6) {
            return Err(Error::data(
                path,
                format!(
                    "has ready-made tiles of {mpp} um/px (--mpp), which are not resampled; leave \
                     --um-per-px out"
                ),
            ));
        }
        report.image_um_per_px = Some(mpp);
        let unit = section.unit;
        self.agree(&report.slide, Shape { unit, tile_px, um_per_px: mpp, side: None })?;
        let bar = progress(&report.slide, section.spots.len());
        let columns = self.table.add_section(&section.genes);
        for spot in &section.spots {
            if self.enough(spot, unit, report) {
                let image = tiles.image(spot.image_row)?;
                self.push(&image, spot, (f64::NAN, f64::NAN), report)?;
                self.table.push(&columns, &spot.values, None);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Whether `spot` holds enough to be used; enters it in `report` if not.
    fn enough(&self, spot: &Spot, unit: Unit, report: &mut SectionReport) -> bool {
        let total: f64 = spot.values.iter().map(|(_, value)| f64::from(*value)).sum();
        match unit {
            Unit::Counts if total < self.args.min_counts as f64 => {
                let reason = if total == 0.0 {
                    "spot without any count".to_owned()
                } else {
                    format!("spot with fewer than {} counts", self.args.min_counts)
                };
                report.skip(&reason, format!("{} ({total})", spot.barcode));
                false
            }
            Unit::Log1p if total == 0.0 => {
                report.skip("tile without any expression", spot.barcode.clone());
                false
            }
            _ => true,
        }
    }

    /// Takes one paired tile; a NaN corner stands for no place.
    fn push(
        &mut self,
        image: &[u8],
        spot: &Spot,
        corner: (f64, f64),
        report: &mut SectionReport,
    ) -> Result<()> {
        let coords = if corner.0.is_nan() {
            NO_COORDS
        } else {
            [corner.0.round() as i64, corner.1.round() as i64]
        };
        let name = TileName {
            slide: report.slide.clone(),
            patient: report.patient.clone(),
            barcode: spot.barcode.clone(),
            coords,
        };
        if let Some(writer) = &mut self.paired {
            writer.push(image, name)?;
            report.kept += 1;
        }
        Ok(())
    }

    /// Micrometres per level-0 px: the user's word, else the file's.
    fn image_scale(&self, slide: &dyn Slide, report: &mut SectionReport) -> Result<f64> {
        match (self.args.mpp, slide.info().um_per_px) {
            (Some(given), Some(found)) => {
                if (given / found - 1.0).abs() > 0.01 {
                    report.note(format!(
                        "--mpp {given} was used; the file itself says {found} um/px"
                    ));
                }
                Ok(given)
            }
            (Some(um), None) | (None, Some(um)) => Ok(um),
            (None, None) => Err(missing_scale(slide.path())),
        }
    }

    /// Writes the files; the manifest is left to the caller, to be the last.
    fn finish(self) -> Result<Manifest> {
        let reasons = || {
            let reasons: Vec<_> =
                self.left_out.iter().map(|(slide, why)| format!("\n  {slide}: {why}")).collect();
            let details: Vec<_> = self
                .reports
                .iter()
                .map(|report| format!("\n  {}:\n{}", report.slide, report.details().trim_end()))
                .collect();
            reasons.concat() + &details.concat()
        };
        let (Some(shape), Some(paired)) = (self.shape, self.paired) else {
            return Err(Error::data(
                &self.args.source,
                format!("no slide of it can be used:{}", reasons()),
            ));
        };
        if paired.names().is_empty() {
            return Err(Error::data(
                &self.args.source,
                format!("no row of it can be used:{}", reasons()),
            ));
        }
        let name = self.args.name.clone().unwrap_or_else(|| {
            let directory = self.args.source.canonicalize().unwrap_or(self.args.source.clone());
            directory.file_name().map_or("data".into(), |n| n.to_string_lossy().into_owned())
        });
        let mut reports = self.reports;
        let lacking = self.table.genes_not_everywhere();
        if lacking > 0 {
            for report in &mut reports {
                let absent = self.table.genes().len() - report.genes_read;
                report.note(format!(
                    "{absent} of the {} genes of all slides are not in this one and are zero here",
                    self.table.genes().len()
                ));
            }
        }
        let stride_px = self.args.stride.unwrap_or(shape.tile_px as f64);
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            created_by: format!("diffbulk-train {}", crate::VERSION),
            name,
            layout: self.importer.name().to_owned(),
            source: self.args.attribution.clone(),
            license: self.args.license.clone(),
            unit: shape.unit,
            tile_px: shape.tile_px,
            um_per_px: shape.um_per_px,
            tiles: paired.names().len(),
            genes: self.table.genes().len(),
            images_sha256: paired.sha256(),
            unlabelled: self.unlabelled.as_ref().map(|tiles| UnlabelledInfo {
                tiles: tiles.names().len(),
                stride_px,
                min_tissue: self.args.min_tissue,
                images_sha256: tiles.sha256(),
            }),
            sections_left_out: self.left_out,
            sections: reports,
        };
        self.table.write(&self.directory.join("adata.h5ad"), paired.names(), &manifest)?;
        let (um, side, deflate) = (shape.um_per_px, shape.side, self.args.deflate);
        paired.write(&self.directory.join("patches.h5"), um, side, deflate)?;
        if let Some(tiles) = self.unlabelled {
            tiles.write(&self.directory.join("unlabelled.h5"), um, side, deflate)?;
        }
        Ok(manifest)
    }
}

fn missing_scale(path: &Path) -> Error {
    Error::data(
        path,
        "does not tell its scale; give its micrometres per pixel with --mpp (for example --mpp \
         0.5)",
    )
}

/// A slide's name as a file name.
fn file_name(slide: &str) -> String {
    slide.chars().map(|c| if c == '/' || c == '\\' { '_' } else { c }).collect()
}

fn progress(slide: &str, tiles: usize) -> ProgressBar {
    let bar = ProgressBar::new(tiles as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{msg:>12} [{bar:40}] {pos}/{len} tiles, {eta} left")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(slide.to_owned());
    bar
}

/// A directory in the making beside its final place. Dropped without [`Partial::commit`], it is
/// removed; after a kill it stays under its `.partial` name and the next run removes it.
struct Partial {
    partial: PathBuf,
    target: PathBuf,
    overwrite: bool,
    done: bool,
}

impl Partial {
    fn create(target: &Path, overwrite: bool) -> Result<Self> {
        if target.exists() {
            if !overwrite {
                return Err(Error::data(
                    target,
                    "exists already; give --overwrite to replace it, or another --output",
                ));
            }
            // Only what this program made may be deleted.
            let empty = std::fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
            if !empty && !target.join(super::manifest::FILE).is_file() {
                return Err(Error::data(
                    target,
                    "is not a paired dataset, so it is not replaced; give another --output",
                ));
            }
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Error::Request("--output needs the name of a directory to make".into()));
        }
        name.push(".partial");
        let partial = target.with_file_name(name);
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(Error::io(&partial))?;
        }
        std::fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
        Ok(Self { partial, target: target.to_owned(), overwrite, done: false })
    }

    fn path(&self) -> &Path {
        &self.partial
    }

    fn commit(mut self) -> Result<()> {
        if self.overwrite && self.target.exists() {
            std::fs::remove_dir_all(&self.target).map_err(Error::io(&self.target))?;
        }
        std::fs::rename(&self.partial, &self.target).map_err(Error::io(&self.target))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            // Nothing more can be done about a failure here; the name says that it is not whole.
            let _ = std::fs::remove_dir_all(&self.partial);
        }
    }
}
