//! The released DiffBulk pairs: `<name>_patch.h5` with `img` (N, S, S, 3) and `<name>_gene.h5`
//! with `genes` (N, G), already `ln(1 + x)`.
//!
//! There are no whole images and no places, so tiles have no coordinates. Gene symbols come from
//! a dataset of the gene file or from a file the user names.

use std::collections::BTreeSet;
use std::path::Path;

use super::table::Lines;
use super::{Importer, Pixels, Request, Section, Spot, file_names, unique_symbols};
use crate::data::normalize::Unit;
use crate::data::report::SectionReport;
use crate::data::tiles::{TileSet, open_hdf5};
use crate::{Error, Result};

/// Datasets that gene symbols are looked for under.
const SYMBOL_DATASETS: [&str; 6] =
    ["gene_names", "gene_symbols", "symbols", "genes_names", "var_names", "panel"];

/// A natural logarithm above this is of a number no count reaches: the values are not `ln(1+x)`.
const LARGEST_LOGARITHM: f32 = 30.0;

/// Rows of expression that are read at once.
const ROWS_AT_ONCE: u64 = 256;

const PATCHES: &str = "_patch.h5";
const GENES: &str = "_gene.h5";

/// See the module.
pub(super) struct DiffbulkPairs;

impl Importer for DiffbulkPairs {
    fn name(&self) -> &'static str {
        "diffbulk-pairs"
    }

    fn about(&self) -> &'static str {
        "<name>_patch.h5 (img) and <name>_gene.h5 (genes, ln(1+x))"
    }

    fn sections(&self, source: &Path) -> Result<Vec<String>> {
        let names: BTreeSet<String> = file_names(source)?
            .iter()
            .filter_map(|name| {
                Some(name.strip_suffix(PATCHES).or_else(|| name.strip_suffix(GENES))?.to_owned())
            })
            .collect();
        if names.is_empty() {
            return Err(Error::data(
                source,
                "holds no <name>_patch.h5 or <name>_gene.h5, so it is not in the diffbulk-pairs \
                 layout; give the directory that holds them",
            ));
        }
        Ok(names.into_iter().collect())
    }

    fn read(
        &self,
        request: &Request<'_>,
        section: &str,
        report: &mut SectionReport,
    ) -> Result<Section> {
        let tiles = TileSet::open(&request.source.join(format!("{section}{PATCHES}")))?;
        let path = request.source.join(format!("{section}{GENES}"));
        let file = open_hdf5(&path)?;
        let values = file.dataset("genes").map_err(|error| {
            Error::data(&path, format!("has no dataset `genes` of expression ({error})"))
        })?;
        let wrong = |error: hdf5_pure::Error| Error::data(&path, error.to_string());
        let shape = values.shape().map_err(wrong)?;
        let [rows, genes] = shape[..] else {
            return Err(Error::data(
                &path,
                format!("`genes` has shape {shape:?}; expected (tiles, genes)"),
            ));
        };
        if rows != tiles.len() as u64 {
            return Err(Error::data(
                &path,
                format!(
                    "has {rows} rows but {} has {} tiles; rows are paired by position, so these \
                     two files do not belong together",
                    tiles.path().display(),
                    tiles.len()
                ),
            ));
        }
        let symbols = symbols(&file, &path, request.genes_file)?;
        if symbols.len() as u64 != genes {
            return Err(Error::data(
                &path,
                format!(
                    "has {genes} genes but {} symbols are given; give the list that belongs to \
                     these columns with --genes-file",
                    symbols.len()
                ),
            ));
        }
        report.genes_read = symbols.len();
        let symbols = unique_symbols(symbols, report);

        let mut spots = Vec::with_capacity(tiles.len());
        let mut start = 0;
        while start < rows {
            let count = ROWS_AT_ONCE.min(rows - start);
            let block = values.read_f32_rows(start, count).map_err(wrong)?;
            for (i, row) in block.chunks_exact(symbols.len().max(1)).enumerate() {
                let image_row = start as usize + i;
                report.spots_read += 1;
                report.counts_read += 1;
                match usable(row) {
                    Ok(values) => spots.push(Spot {
                        barcode: format!("{image_row}"),
                        centre: None,
                        image_row,
                        values,
                    }),
                    Err(Unusable::Row(reason)) => report.skip(reason, format!("row {image_row}")),
                    Err(Unusable::Unit(value)) => {
                        return Err(Error::data(
                            &path,
                            format!(
                                "row {image_row} holds {value}, which cannot be ln(1 + x); these \
                                 look like counts, and this layout holds logarithms"
                            ),
                        ));
                    }
                }
            }
            start += count;
        }
        Ok(Section { genes: symbols, unit: Unit::Log1p, spots, pixels: Pixels::Tiles(tiles) })
    }
}

/// Why a row cannot be used.
enum Unusable {
    /// Something is wrong with the row.
    Row(&'static str),
    /// The row shows that the file is not in the unit of this layout.
    Unit(f32),
}

fn usable(row: &[f32]) -> std::result::Result<Vec<(u32, f32)>, Unusable> {
    let mut values = Vec::new();
    for (gene, &value) in row.iter().enumerate() {
        if !value.is_finite() {
            return Err(Unusable::Row("row of expression with a value that is not a number"));
        }
        if value < 0.0 {
            return Err(Unusable::Row("row of expression with a negative value"));
        }
        if value > LARGEST_LOGARITHM {
            return Err(Unusable::Unit(value));
        }
        if value > 0.0 {
            values.push((gene as u32, value));
        }
    }
    Ok(values)
}

/// Gene symbols: the user's file if one is given, else a dataset of the gene file.
fn symbols(file: &hdf5_pure::File, path: &Path, given: Option<&Path>) -> Result<Vec<String>> {
    if let Some(given) = given {
        let mut lines = Lines::open(given)?;
        let mut symbols = Vec::new();
        while let Some((_, line)) = lines.next()? {
            // The first column of whatever table it is.
            let symbol = line.split([',', '\t']).next().unwrap_or_default();
            symbols.push(symbol.trim().trim_matches('"').to_owned());
        }
        return Ok(symbols);
    }
    for name in SYMBOL_DATASETS {
        if let Ok(dataset) = file.dataset(name) {
            return dataset.read_string().map_err(|error| {
                Error::data(path, format!("dataset `{name}` cannot be read as symbols ({error})"))
            });
        }
    }
    Err(Error::data(
        path,
        format!(
            "names no genes (looked for datasets {}); give the symbols of its columns, one a \
             line, with --genes-file",
            SYMBOL_DATASETS.join(", ")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use hdf5_pure::FileBuilder;

    use super::*;

    const TILE: usize = 4;

    fn write(dir: &Path, tiles: usize, genes: &[f32], columns: usize, symbols: Option<&[&str]>) {
        let mut builder = FileBuilder::new();
        let pixels: Vec<u8> = (0..tiles * TILE * TILE * 3).map(|v| v as u8).collect();
        let shape = [tiles as u64, TILE as u64, TILE as u64, 3];
        builder.create_dataset("img").with_u8_data(&pixels).with_shape(&shape);
        builder.write(dir.join("a_patch.h5")).unwrap();
        let mut builder = FileBuilder::new();
        let shape = [(genes.len() / columns) as u64, columns as u64];
        builder.create_dataset("genes").with_f32_data(genes).with_shape(&shape);
        if let Some(symbols) = symbols {
            builder.create_dataset("gene_names").with_vlen_strings(symbols);
        }
        builder.write(dir.join("a_gene.h5")).unwrap();
    }

    fn read(dir: &Path, genes_file: Option<&Path>) -> (Result<Section>, SectionReport) {
        let mut report = SectionReport::new("a", "a");
        let request = Request { source: dir, genes_file };
        let section = DiffbulkPairs.read(&request, "a", &mut report);
        (section, report)
    }

    #[test]
    fn reads_pairs_and_names_bad_rows() {
        let dir = tempfile::tempdir().unwrap();
        let values = [0.0, 1.5, 2.0, -1.0, 1.0, 0.0, f32::NAN, 0.0, 1.0, 0.5, 0.0, 0.0f32];
        write(dir.path(), 4, &values, 3, Some(&["A", "B", "A"]));
        assert_eq!(DiffbulkPairs.sections(dir.path()).unwrap(), ["a"]);
        let (section, report) = read(dir.path(), None);
        let section = section.unwrap();
        assert_eq!(section.unit, Unit::Log1p);
        assert_eq!(section.genes, ["A", "B", "A-1"]);
        let kept: Vec<_> = section.spots.iter().map(|s| (s.image_row, s.values.clone())).collect();
        assert_eq!(kept, [(0, vec![(1, 1.5), (2, 2.0)]), (3, vec![(0, 0.5)])]);
        assert_eq!(report.skipped_rows(), 2);
        assert_eq!((report.spots_read, report.genes_read), (4, 3));
    }

    #[test]
    fn symbols_come_from_the_users_file() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 2, &[0.0, 1.5, 2.0, 1.0], 2, None);
        let problem = |file: Option<&Path>| read(dir.path(), file).0.err().unwrap().to_string();
        assert!(problem(None).contains("--genes-file"));
        let list = dir.path().join("genes.txt");
        std::fs::write(&list, "A\n").unwrap();
        assert!(problem(Some(&list)).contains("2 genes but 1 symbols"));
        std::fs::write(&list, "\"A\",x\nB,y\n").unwrap();
        assert_eq!(read(dir.path(), Some(&list)).0.unwrap().genes, ["A", "B"]);
    }

    #[test]
    fn counts_and_files_that_do_not_match_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 2, &[0.0, 150.0, 2.0, 1.0], 2, Some(&["A", "B"]));
        let problem = || read(dir.path(), None).0.err().unwrap().to_string();
        assert!(problem().contains("look like counts"), "{}", problem());
        write(dir.path(), 3, &[0.0, 1.0, 2.0, 1.0], 2, Some(&["A", "B"]));
        assert!(problem().contains("2 rows") && problem().contains("3 tiles"), "{}", problem());
        std::fs::remove_file(dir.path().join("a_patch.h5")).unwrap();
        assert!(problem().contains("a_patch.h5"));
        let empty = tempfile::tempdir().unwrap();
        assert!(DiffbulkPairs.sections(empty.path()).is_err());
    }
}
