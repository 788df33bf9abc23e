//! Section after section: cutting tiles, checking that they lie on the image, collecting rows.

use std::path::Path;

use diffbulk::slide::Slide;
use diffbulk::tiling;
use diffbulk::tissue::TissueMask;
use indicatif::{ProgressBar, ProgressStyle};

use super::PrepareArgs;
use super::cut::{self, Cut};
use crate::data::expression::ExpressionTable;
use crate::data::import::{Importer, Pixels, Request, Section, Spot};
use crate::data::manifest::{FORMAT_VERSION, Manifest, UnlabelledInfo};
use crate::data::normalize::Unit;
use crate::data::overview::{self, Squares};
use crate::data::report::SectionReport;
use crate::data::tiles::{NO_COORDS, TileName, TileSet, TileWriter};
use crate::data::unlabelled;
use crate::{Error, Result};

/// The dataset in the making.
pub(super) struct Work<'a> {
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
    /// Nothing yet; files go into `directory`.
    pub(super) fn new(
        args: &'a PrepareArgs,
        importer: &'static dyn Importer,
        directory: &'a Path,
    ) -> Self {
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
    pub(super) fn add(&mut self, name: &str, patient: String) -> Result<()> {
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
        let side = tiling::tile_side(tile_px, um_per_px, mpp)?;
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

        let mut paired = Vec::new();
        let mut outside = Vec::new();
        let mut fitting: Vec<(&Spot, (f64, f64))> = Vec::new();
        for spot in &section.spots {
            let Some((cx, cy)) = spot.centre else {
                report.skip("spot without a position on the image", spot.barcode.clone());
                continue;
            };
            // A whole pixel, so that the stored coordinates say exactly what was read.
            let corner = ((cx - side / 2.0).round(), (cy - side / 2.0).round());
            let fits = corner.0 >= 0.0
                && corner.1 >= 0.0
                && corner.0 + side <= f64::from(image_px.0)
                && corner.1 + side <= f64::from(image_px.1);
            if !fits {
                report.skip(
                    "spot whose tile reaches outside the image",
                    format!("{} (centre {cx}, {cy})", spot.barcode),
                );
                outside.push(corner);
            } else if self.enough(spot, unit, report) {
                fitting.push((spot, corner));
            }
        }
        if fitting.is_empty() && !section.spots.is_empty() {
            report.note("no spot could be used; are the positions in pixels of this image?".into());
        }

        let corners: Vec<(f64, f64)> = fitting.iter().map(|(_, corner)| *corner).collect();
        let Cut { places, tiles, taken_over } =
            self.cut(slide, &report.slide, &corners, &outside, (tile_px, side), mpp)?;
        let columns = self.table.add_section(&section.genes);
        let mut images = tiles.iter();
        for ((spot, corner), image) in fitting.into_iter().zip(&mut images) {
            self.push(image, spot, corner, report)?;
            self.table.push(&columns, &spot.values, spot.centre);
            paired.push(corner);
        }
        if let Some(writer) = &mut self.unlabelled {
            for (place, image) in places.iter().zip(images) {
                let name = TileName {
                    slide: report.slide.clone(),
                    patient: report.patient.clone(),
                    barcode: place.name.clone(),
                    coords: [place.x.round() as i64, place.y.round() as i64],
                };
                writer.push(image, name)?;
            }
            report.unlabelled = places.len();
        }

        let directory = self.directory.join(cut::OVERVIEWS);
        std::fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
        let path = directory.join(format!("{}.png", file_name(&report.slide)));
        if taken_over && path.exists() {
            return Ok(());
        }
        let unlabelled: Vec<_> = places.iter().map(|place| (place.x, place.y)).collect();
        let squares =
            Squares { side, paired: &paired, unlabelled: &unlabelled, left_out: &outside };
        overview::write(&path, slide, &squares)
    }

    /// The tiles at `corners` and, where they are asked for, unlabelled ones over the tissue; taken
    /// over from an earlier run that was stopped, if it got so far.
    fn cut(
        &self,
        slide: &dyn Slide,
        name: &str,
        corners: &[(f64, f64)],
        outside: &[(f64, f64)],
        (tile_px, side): (u32, f64),
        mpp: f64,
    ) -> Result<Cut> {
        let identity = diffbulk::slide::identity(slide.path())?;
        let laid = self.args.unlabelled.then(|| {
            let stride = self.args.stride.unwrap_or(f64::from(tile_px)) * side / f64::from(tile_px);
            (stride, self.args.min_tissue)
        });
        // Tissue detection and resampling are this program's: another version cuts anew.
        let key = format!(
            "{} {} {} {tile_px} {side} {mpp} {laid:?} {corners:?} {outside:?}",
            crate::VERSION,
            identity.bytes,
            identity.ends_sha256
        );
        if let Some(cut) = cut::read(self.directory, name, &key) {
            eprintln!("{name}: {} tiles taken over from a run that was stopped", cut.tiles.len());
            return Ok(cut);
        }
        let places = match laid {
            Some((stride, min_tissue)) => {
                let mask = TissueMask::detect(slide, mpp)?;
                let base = &slide.info().levels[0];
                let image_px = (base.width, base.height);
                unlabelled::places(&mask, image_px, side, stride, min_tissue)
            }
            None => Vec::new(),
        };
        let bar = progress(name, corners.len() + places.len());
        let all = corners.iter().copied().chain(places.iter().map(|place| (place.x, place.y)));
        let tiles = all.map(|(x, y)| {
            bar.inc(1);
            Ok(tiling::read_tile(slide, x + side / 2.0, y + side / 2.0, side, tile_px)?)
        });
        let tiles = tiles.collect::<Result<Vec<_>>>()?;
        bar.finish_and_clear();
        let cut = Cut { places, tiles, taken_over: false };
        cut::write(self.directory, name, &key, &cut)?;
        Ok(cut)
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
            Unit::Counts if total == 0.0 && self.args.min_counts > 0 => {
                report.skip("spot without any count", spot.barcode.clone());
                false
            }
            Unit::Counts if total < self.args.min_counts as f64 => {
                let reason = format!("spot with fewer than {} counts", self.args.min_counts);
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
    pub(super) fn finish(self) -> Result<Manifest> {
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
