//! Reading a paired dataset directory: tiles and expression, row by row.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use diffbulk::anndata::{AnnData, Csr, Matrix};

use super::expression::row_name;
use super::manifest::Manifest;
use super::normalize::{self, Unit};
use super::tiles::{TileName, TileSet, read_names};
use crate::{Error, Result};

/// Tiles with their expression. Row `i` is the same tile everywhere.
///
/// Expression is held in memory (sparse); pixels are read from the file row by row unless
/// [`PairedDataset::preload`] takes them all.
pub struct PairedDataset {
    directory: PathBuf,
    manifest: Manifest,
    tiles: TileSet,
    names: Vec<TileName>,
    centres: Vec<(f64, f64)>,
    genes: Vec<String>,
    gene_index: HashMap<String, usize>,
    values: Csr,
    /// Per row, what brings its counts to the fixed total.
    scales: Vec<f64>,
    unlabelled: Option<Unlabelled>,
}

/// Tissue tiles without expression.
pub struct Unlabelled {
    tiles: TileSet,
    names: Vec<TileName>,
}

impl PairedDataset {
    /// Opens the dataset in `directory` and checks that its files belong together.
    pub fn open(directory: &Path) -> Result<Self> {
        let manifest = Manifest::read(directory)?;
        let patches = directory.join("patches.h5");
        let (tiles, names) = open_tiles(&patches, manifest.tile_px)?;
        let path = directory.join("adata.h5ad");
        let adata = AnnData::read_h5ad(&path)?;
        adata.check().map_err(|problem| Error::data(&path, problem))?;
        let disagree = |what: String| {
            Error::data(directory, format!("{what}; the dataset is damaged, prepare it again"))
        };
        if adata.obs_names.len() != names.len() || names.len() != manifest.tiles {
            return Err(disagree(format!(
                "adata.h5ad has {} rows, patches.h5 {} tiles and dataset.json {}",
                adata.obs_names.len(),
                names.len(),
                manifest.tiles
            )));
        }
        for (row, (observation, name)) in adata.obs_names.iter().zip(&names).enumerate() {
            if *observation != row_name(name) {
                return Err(disagree(format!(
                    "row {row} is {observation} in adata.h5ad but {} in patches.h5",
                    row_name(name)
                )));
            }
        }
        let centres = match adata.embedding("spatial") {
            Some(spatial) if spatial.width >= 2 => {
                spatial.values.chunks_exact(spatial.width).map(|c| (c[0], c[1])).collect()
            }
            _ => return Err(disagree("adata.h5ad has no obsm['spatial']".into())),
        };
        let genes = adata.var_names;
        let values = match adata.x {
            Matrix::Csr(csr) => csr,
            Matrix::Dense { columns, values, .. } => {
                Csr::from_dense_rows(columns, values.chunks_exact(columns.max(1)))
            }
        };
        let mut gene_index = HashMap::with_capacity(genes.len());
        for (column, gene) in genes.iter().enumerate() {
            if gene_index.insert(gene.clone(), column).is_some() {
                return Err(disagree(format!("adata.h5ad has gene {gene} twice")));
            }
        }
        if let Some(bad) = values.values.iter().find(|v| !v.is_finite() || **v < 0.0) {
            return Err(disagree(format!("adata.h5ad holds the value {bad}")));
        }
        let scales = (0..names.len())
            .map(|row| match manifest.unit {
                Unit::Counts => {
                    let row: Vec<f32> = values.row(row).map(|(_, value)| value).collect();
                    normalize::scale(&row)
                }
                Unit::Log1p => 1.0,
            })
            .collect();
        let unlabelled = match manifest.unlabelled {
            Some(_) => {
                let path = directory.join("unlabelled.h5");
                let (tiles, names) = open_tiles(&path, manifest.tile_px)?;
                Some(Unlabelled { tiles, names })
            }
            None => None,
        };
        Ok(Self {
            directory: directory.to_owned(),
            manifest,
            tiles,
            names,
            centres,
            genes,
            gene_index,
            values,
            scales,
            unlabelled,
        })
    }

    /// Number of paired tiles.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no paired tile.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The directory it was opened from.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What `dataset.json` says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Gene symbols, one per column.
    pub fn genes(&self) -> &[String] {
        &self.genes
    }

    /// Column of the gene called `symbol`.
    pub fn gene_index(&self, symbol: &str) -> Option<usize> {
        self.gene_index.get(symbol).copied()
    }

    /// Unit of the stored values.
    pub fn unit(&self) -> Unit {
        self.manifest.unit
    }

    /// Side of the tiles in pixels.
    pub fn tile_px(&self) -> usize {
        self.manifest.tile_px
    }

    /// Micrometres per pixel of the tiles.
    pub fn um_per_px(&self) -> f64 {
        self.manifest.um_per_px
    }

    /// Slide of row `row`.
    pub fn slide(&self, row: usize) -> &str {
        &self.names[row].slide
    }

    /// Patient of row `row`.
    pub fn patient(&self, row: usize) -> &str {
        &self.names[row].patient
    }

    /// Name of row `row` within its slide.
    pub fn barcode(&self, row: usize) -> &str {
        &self.names[row].barcode
    }

    /// Centre of row `row` in level-0 px; NaN for ready-made tiles.
    pub fn centre(&self, row: usize) -> (f64, f64) {
        self.centres[row]
    }

    /// The slides, in order of first appearance.
    pub fn slides(&self) -> Vec<String> {
        let mut slides: Vec<String> = Vec::new();
        for name in &self.names {
            if !slides.contains(&name.slide) {
                slides.push(name.slide.clone());
            }
        }
        slides
    }

    /// Rows for which `keep` is true of slide and patient.
    pub fn rows_where(&self, keep: impl Fn(&str, &str) -> bool) -> Vec<usize> {
        (0..self.len()).filter(|&row| keep(self.slide(row), self.patient(row))).collect()
    }

    /// Stored values of row `row` that are not zero: column and value, in [`PairedDataset::unit`].
    pub fn stored_entries(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        self.values.row(row)
    }

    /// Stored values of row `row` over all genes, in [`PairedDataset::unit`].
    pub fn counts(&self, row: usize) -> Vec<f32> {
        self.dense(self.stored_entries(row))
    }

    /// Expression of row `row` that is not zero: column and `ln(1 + counts per 10,000)`. Stored
    /// logarithms are given as they are.
    pub fn expression_entries(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let (unit, scale) = (self.unit(), self.scales[row]);
        self.values.row(row).map(move |(gene, value)| match unit {
            Unit::Counts => (gene, normalize::log_scaled(value, scale)),
            Unit::Log1p => (gene, value),
        })
    }

    /// Expression of row `row` over all genes: `ln(1 + counts per 10,000)`.
    pub fn expression(&self, row: usize) -> Vec<f32> {
        self.dense(self.expression_entries(row))
    }

    /// Expression of `rows` x `genes` (columns), row-major. The total that counts are scaled to is
    /// over all genes of the dataset, whichever are asked for.
    pub fn expression_matrix(&self, rows: &[usize], genes: &[usize]) -> Vec<f32> {
        let mut place = vec![usize::MAX; self.genes.len()];
        for (i, &gene) in genes.iter().enumerate() {
            place[gene] = i;
        }
        let mut out = vec![0.0; rows.len() * genes.len()];
        for (i, &row) in rows.iter().enumerate() {
            for (gene, value) in self.expression_entries(row) {
                if place[gene] != usize::MAX {
                    out[i * genes.len() + place[gene]] = value;
                }
            }
        }
        out
    }

    /// Tile of row `row`: S x S x 3 RGB bytes, row-major.
    pub fn image(&self, row: usize) -> Result<Vec<u8>> {
        self.tiles.image(row)
    }

    /// The paired tiles as a set of images.
    pub fn tiles(&self) -> &TileSet {
        &self.tiles
    }

    /// Takes the pixels of all tiles, unlabelled ones too, into memory.
    pub fn preload(&self) -> Result<()> {
        self.tiles.preload()?;
        if let Some(unlabelled) = &self.unlabelled {
            unlabelled.tiles.preload()?;
        }
        Ok(())
    }

    /// Tissue tiles without expression, where the dataset has them.
    pub fn unlabelled(&self) -> Option<&Unlabelled> {
        self.unlabelled.as_ref()
    }

    fn dense(&self, entries: impl Iterator<Item = (usize, f32)>) -> Vec<f32> {
        let mut row = vec![0.0; self.genes.len()];
        for (gene, value) in entries {
            row[gene] += value;
        }
        row
    }
}

impl Unlabelled {
    /// Number of tiles.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no tile.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Slide of tile `row`; leave out those of held-out slides.
    pub fn slide(&self, row: usize) -> &str {
        &self.names[row].slide
    }

    /// Patient of tile `row`.
    pub fn patient(&self, row: usize) -> &str {
        &self.names[row].patient
    }

    /// Tile `row`: S x S x 3 RGB bytes, row-major.
    pub fn image(&self, row: usize) -> Result<Vec<u8>> {
        self.tiles.image(row)
    }
}

/// Opens a file of tiles with their names and checks that they agree.
fn open_tiles(path: &Path, tile_px: usize) -> Result<(TileSet, Vec<TileName>)> {
    let tiles = TileSet::open(path)?;
    let names = read_names(path)?;
    if tiles.len() != names.len() || tiles.tile_px() != tile_px {
        return Err(Error::data(
            path,
            format!(
                "has {} tiles of {} px and {} names, dataset.json says {tile_px} px; prepare the \
                 dataset again",
                tiles.len(),
                tiles.tile_px(),
                names.len()
            ),
        ));
    }
    Ok((tiles, names))
}

#[cfg(test)]
pub(crate) mod testing {
    //! Small datasets for tests of what reads them.

    use super::super::expression::ExpressionTable;
    use super::super::manifest::FORMAT_VERSION;
    use super::super::report::SectionReport;
    use super::super::tiles::TileWriter;
    use super::*;

    /// Side of the tiles of [`dataset`].
    pub(crate) const TILE_PX: usize = 8;

    /// A dataset of `rows` of counts; row `i` is a tile of 8 px on slide `S0` or `S1` in turn.
    pub(crate) fn dataset(genes: &[&str], rows: &[&[f32]]) -> (tempfile::TempDir, PairedDataset) {
        dataset_in(genes, rows, Unit::Counts)
    }

    /// [`dataset`] with values in `unit`.
    pub(crate) fn dataset_in(
        genes: &[&str],
        rows: &[&[f32]],
        unit: Unit,
    ) -> (tempfile::TempDir, PairedDataset) {
        let dir = tempfile::tempdir().unwrap();
        let mut tiles = TileWriter::new(TILE_PX);
        let mut table = ExpressionTable::default();
        let genes: Vec<String> = genes.iter().map(|gene| gene.to_string()).collect();
        let columns = table.add_section(&genes);
        for (i, row) in rows.iter().enumerate() {
            let image: Vec<u8> =
                (0..TILE_PX * TILE_PX * 3).map(|v| (v * 3 + i * 17) as u8).collect();
            let slide = format!("S{}", i % 2);
            let name = TileName {
                slide,
                patient: "P".into(),
                barcode: format!("{i}x0"),
                coords: [i as i64, 0],
            };
            tiles.push(&image, name).unwrap();
            let values: Vec<_> = row.iter().enumerate().map(|(g, &v)| (g as u32, v)).collect();
            table.push(&columns, &values, Some((i as f64 + 4.0, 4.0)));
        }
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            created_by: "test".into(),
            name: "test".into(),
            layout: "test".into(),
            source: "nowhere".into(),
            license: "none".into(),
            unit,
            tile_px: TILE_PX,
            um_per_px: 0.5,
            tiles: rows.len(),
            genes: genes.len(),
            images_sha256: tiles.sha256(),
            unlabelled: None,
            sections_left_out: Vec::new(),
            sections: vec![SectionReport::new("S0", "P")],
        };
        table.write(&dir.path().join("adata.h5ad"), tiles.names(), &manifest).unwrap();
        tiles.write(&dir.path().join("patches.h5"), 0.5, Some(8.0), 0).unwrap();
        manifest.write(dir.path()).unwrap();
        let data = PairedDataset::open(dir.path()).unwrap();
        (dir, data)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{dataset, dataset_in};
    use super::*;
    use crate::data::log_normalize;

    #[test]
    fn counts_are_normalised_once_and_logarithms_never() {
        let rows: [&[f32]; 2] = [&[3.0, 0.0, 1.0], &[0.0, 0.0, 2.0]];
        let (_dir, data) = dataset(&["A", "B", "C"], &rows);
        assert_eq!(data.counts(0), rows[0]);
        assert_eq!(data.expression(0), log_normalize(rows[0]));
        assert_eq!(
            data.expression_matrix(&[1, 0], &[2, 0]),
            [data.expression(1)[2], 0.0, data.expression(0)[2], data.expression(0)[0]]
        );
        let (_dir, data) = dataset_in(&["A", "B", "C"], &rows, Unit::Log1p);
        assert_eq!(data.expression(0), rows[0]);
        assert_eq!(data.unit(), Unit::Log1p);
    }

    #[test]
    fn rows_know_who_they_are() {
        let (_dir, data) = dataset(&["A"], &[&[1.0], &[2.0], &[3.0]]);
        assert_eq!(data.slides(), ["S0", "S1"]);
        assert_eq!(data.rows_where(|slide, _| slide == "S0"), [0, 2]);
        assert_eq!((data.barcode(2), data.patient(2), data.centre(2)), ("2x0", "P", (6.0, 4.0)));
        assert_eq!(data.gene_index("A"), Some(0));
        let image = data.image(1).unwrap();
        data.preload().unwrap();
        assert_eq!(data.image(1).unwrap(), image);
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let (one, _) = dataset(&["A"], &[&[1.0], &[2.0]]);
        let (two, _) = dataset(&["A"], &[&[1.0], &[2.0], &[3.0]]);
        std::fs::copy(two.path().join("adata.h5ad"), one.path().join("adata.h5ad")).unwrap();
        let error = PairedDataset::open(one.path()).err().unwrap().to_string();
        assert!(error.contains("3 rows") && error.contains("2 tiles"), "{error}");
        std::fs::remove_file(one.path().join("dataset.json")).unwrap();
        let error = PairedDataset::open(one.path()).err().unwrap().to_string();
        assert!(error.contains("diffbulk-train prepare"), "{error}");
    }

    #[test]
    fn a_newer_dataset_is_refused() {
        let (dir, data) = dataset(&["A"], &[&[1.0]]);
        let newer = Manifest { format_version: 99, ..data.manifest().clone() };
        newer.write(dir.path()).unwrap();
        let error = PairedDataset::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("newer version"), "{error}");
    }
}
