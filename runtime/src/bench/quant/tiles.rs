//! The tiles of a dataset and what was measured on them: HEST's patches and an AnnData file beside.

use std::path::Path;

use hdf5_pure::File;

use crate::anndata::{AnnData, Matrix};
use crate::{Error, Result};

/// Total that counts are scaled to before the logarithm.
const COUNTS_TOTAL: f64 = 10_000.0;

/// Tiles in memory, and their expression.
#[derive(Debug, Clone, Default)]
pub struct Tiles {
    /// Side in pixels.
    pub side: usize,
    /// RGB bytes of each tile, row-major HWC.
    pub images: Vec<Vec<u8>>,
    /// Slide of each tile.
    pub slides: Vec<String>,
    /// Centre of each tile in level-0 px, where the dataset tells.
    pub centres: Vec<Option<(f64, f64)>>,
    /// Genes measured.
    pub genes: Vec<String>,
    /// ln(1 + counts per 10,000) of each tile, one value a gene; empty without an AnnData file.
    pub expression: Vec<Vec<f32>>,
}

impl Tiles {
    /// Reads `patches.h5` and `adata.h5ad` of the dataset in `directory`: all tiles of `slides`
    /// (every slide where none is named), at most `limit`, spread evenly.
    ///
    /// # Errors
    /// When a file cannot be read or they contradict each other, and when no tile is left.
    pub fn read(directory: &Path, slides: &[String], limit: usize) -> Result<Self> {
        let path = directory.join("patches.h5");
        let refuse = |problem: String| Error::Request(format!("{}: {problem}", path.display()));
        if !path.is_file() {
            return Err(refuse(
                "there is no such file; give the directory that `diffbulk-train prepare` wrote"
                    .into(),
            ));
        }
        let file = File::open_streaming(&path).map_err(|error| refuse(error.to_string()))?;
        let img = file.dataset("img").map_err(|error| refuse(error.to_string()))?;
        let shape = img.shape().map_err(|error| refuse(error.to_string()))?;
        let (count, side) = match shape[..] {
            [count, height, width, 3] if height == width => (count as usize, height as usize),
            _ => return Err(refuse(format!("img has shape {shape:?}, not [N, S, S, 3]"))),
        };
        let strings = |name: &str| -> Option<Vec<String>> {
            file.dataset(name).ok()?.read_string().ok().filter(|names| names.len() == count)
        };
        let of_tile = strings("slide").unwrap_or_else(|| vec!["all".to_owned(); count]);
        if let Some(unknown) = slides.iter().find(|slide| !of_tile.contains(slide)) {
            return Err(refuse(format!("has no slide {unknown}")));
        }
        let mut rows: Vec<usize> =
            (0..count).filter(|&row| slides.is_empty() || slides.contains(&of_tile[row])).collect();
        if rows.len() > limit {
            rows = (0..limit).map(|index| rows[index * rows.len() / limit]).collect();
        }
        if rows.is_empty() {
            return Err(refuse("has no tile of these slides".into()));
        }
        let bytes = (side * side * 3) as u64;
        let mut images = Vec::with_capacity(rows.len());
        for &row in &rows {
            let image =
                img.read_raw_rows(row as u64, 1).map_err(|error| refuse(error.to_string()))?;
            if image.len() as u64 != bytes {
                return Err(refuse(format!("tile {row} has {} bytes", image.len())));
            }
            images.push(image);
        }
        let mut tiles = Self {
            side,
            images,
            slides: rows.iter().map(|&row| of_tile[row].clone()).collect(),
            centres: vec![None; rows.len()],
            ..Self::default()
        };
        tiles.measured(directory, &rows, count)?;
        Ok(tiles)
    }

    /// Adds what was measured, where there is an AnnData file.
    fn measured(&mut self, directory: &Path, rows: &[usize], count: usize) -> Result<()> {
        let path = directory.join("adata.h5ad");
        if !path.is_file() {
            return Ok(());
        }
        let adata = AnnData::read_h5ad(&path)?;
        if adata.obs_names.len() != count {
            return Err(Error::Request(format!(
                "{} has {} rows and patches.h5 {count} tiles; prepare the dataset again",
                path.display(),
                adata.obs_names.len()
            )));
        }
        if let Some(spatial) = adata.embedding("spatial").filter(|spatial| spatial.width >= 2) {
            for (centre, &row) in self.centres.iter_mut().zip(rows) {
                let at = &spatial.values[row * spatial.width..];
                *centre = (at[0].is_finite() && at[1].is_finite()).then_some((at[0], at[1]));
            }
        }
        let logarithms = stored_logarithms(directory);
        let genes = adata.var_names.len();
        for &row in rows {
            let mut values = vec![0.0f32; genes];
            match &adata.x {
                Matrix::Csr(csr) => csr.row(row).for_each(|(gene, value)| values[gene] += value),
                Matrix::Dense { columns, values: dense, .. } => {
                    values.copy_from_slice(&dense[row * columns..(row + 1) * columns]);
                }
            }
            if !logarithms {
                let total: f64 = values.iter().map(|&value| f64::from(value)).sum();
                let scale = if total > 0.0 { COUNTS_TOTAL / total } else { 0.0 };
                for value in &mut values {
                    *value = (f64::from(*value) * scale).ln_1p() as f32;
                }
            }
            self.expression.push(values);
        }
        self.genes = adata.var_names;
        Ok(())
    }

    /// Measured values of `panel` for every tile, or `None` where a gene was not measured.
    pub fn truth(&self, panel: &[String]) -> Option<Vec<Vec<f32>>> {
        if self.expression.is_empty() || panel.is_empty() {
            return None;
        }
        let columns: Vec<usize> = panel
            .iter()
            .map(|gene| self.genes.iter().position(|known| known == gene))
            .collect::<Option<_>>()?;
        Some(
            self.expression
                .iter()
                .map(|row| columns.iter().map(|&column| row[column]).collect())
                .collect(),
        )
    }

    /// The slides, in order of first appearance.
    pub fn slide_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for slide in &self.slides {
            if !names.contains(slide) {
                names.push(slide.clone());
            }
        }
        names
    }
}

/// Whether the dataset says that its values are logarithms already.
fn stored_logarithms(directory: &Path) -> bool {
    std::fs::read(directory.join("dataset.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
        .is_some_and(|manifest| manifest["unit"] == "log1p")
}
