//! Tiles to calibrate and to measure on: a seeded choice from a paired dataset.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::measure::Truth;
use super::recipe::QuantizeFlags;
use crate::data::PairedDataset;
use crate::train::random::Stream;
use crate::{Error, Result};

/// Tiles, and what is known of them.
pub struct Material {
    /// Name of the dataset.
    pub dataset: String,
    /// Slides the tiles may be of.
    pub slides: Vec<String>,
    /// Side of a tile in pixels.
    pub tile_px: usize,
    /// Pixels of the calibration tiles, row-major HWC.
    pub calibration: Vec<Vec<u8>>,
    /// SHA-256 of the calibration tiles' pixels, in order.
    pub sha256: String,
    /// Pixels of the tiles that losses are measured on: others than those.
    pub measured: Vec<Vec<u8>>,
    /// What was measured of them, where the dataset has all genes.
    pub truth: Option<Truth>,
}

impl Material {
    /// Takes a seeded set of tiles of the dataset in `data`; `panel` names the model's outputs.
    ///
    /// # Errors
    /// When the dataset cannot be read, has no such slide, or fewer than two tiles.
    pub fn open(data: &Path, flags: &QuantizeFlags, panel: &[String]) -> Result<Self> {
        let dataset = PairedDataset::open(data)?;
        let slides = dataset.slides();
        if let Some(unknown) = flags.slides.iter().find(|slide| !slides.contains(slide)) {
            return Err(Error::Request(format!(
                "the dataset has no slide {unknown}, only {}",
                slides.join(", ")
            )));
        }
        let chosen =
            |slide: &str| flags.slides.is_empty() || flags.slides.iter().any(|s| s == slide);
        let mut rows = dataset.rows_where(|slide, _| chosen(slide));
        if rows.len() < 2 {
            return Err(Error::data(data, "has fewer than two tiles to calibrate and measure on"));
        }
        let mut stream = Stream::keyed(flags.quantize_seed, &[0x7175_616e]);
        for last in (1..rows.len()).rev() {
            rows.swap(last, stream.below(last + 1));
        }
        // Small datasets are halved, so that nothing is measured on what it was calibrated on.
        let count = usize::from(flags.calibration_tiles).min(rows.len() / 2);
        let (calibration, rest) = rows.split_at(count);
        let measured = &rest[..rest.len().min(usize::from(flags.measured_tiles))];
        let images = |rows: &[usize]| -> Result<Vec<Vec<u8>>> {
            rows.iter().map(|&row| dataset.image(row)).collect()
        };
        let calibration = images(calibration)?;
        let mut hash = Sha256::new();
        calibration.iter().for_each(|image| hash.update(image));
        let genes: Option<Vec<usize>> = panel.iter().map(|gene| dataset.gene_index(gene)).collect();
        let truth = genes.filter(|genes| !genes.is_empty()).map(|genes| Truth {
            values: dataset
                .expression_matrix(measured, &genes)
                .chunks_exact(genes.len())
                .map(<[f32]>::to_vec)
                .collect(),
            slides: measured.iter().map(|&row| dataset.slide(row).to_owned()).collect(),
        });
        Ok(Self {
            dataset: dataset.manifest().name.clone(),
            slides: slides.into_iter().filter(|slide| chosen(slide)).collect(),
            tile_px: dataset.tile_px(),
            sha256: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            calibration,
            measured: images(measured)?,
            truth,
        })
    }
}
