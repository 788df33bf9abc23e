//! Importers: each reads one existing layout of paired slides and expression, section by section.
//!
//! Adding a layout is one file with an [`Importer`] and one line in [`IMPORTERS`]. An importer
//! only reads and judges the source's rows; cutting tiles, checking that they lie on the image
//! and writing are the same for all, in [`super::prepare`].

mod diffbulk_pairs;
mod legacy_st;
mod table;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use diffbulk::slide::Slide;

use super::normalize::Unit;
use super::report::SectionReport;
use super::tiles::TileSet;
use crate::{Error, Result};

/// Every importer, in the order that help shows them.
pub static IMPORTERS: &[&dyn Importer] = &[&legacy_st::LegacySt, &diffbulk_pairs::DiffbulkPairs];

/// What the user asked for, as far as it concerns reading the source.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Directory of the source.
    pub source: &'a Path,
    /// File with gene symbols, for layouts that do not hold them.
    pub genes_file: Option<&'a Path>,
}

/// One section (slide) as its importer read it.
pub struct Section {
    /// Gene symbols, unique, one per column of the spots' values.
    pub genes: Vec<String>,
    /// Unit of the spots' values.
    pub unit: Unit,
    /// The spots that may be used, in the source's order.
    pub spots: Vec<Spot>,
    /// Where their pixels are.
    pub pixels: Pixels,
}

/// One spot: a place on a section and its expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Spot {
    /// Name, unique within the section.
    pub barcode: String,
    /// Centre in level-0 px; absent for ready-made tiles.
    pub centre: Option<(f64, f64)>,
    /// Row of the source's images, for ready-made tiles.
    pub image_row: usize,
    /// Values that are not zero, by rising column of [`Section::genes`].
    pub values: Vec<(u32, f32)>,
}

/// Where the pixels of a section's tiles come from.
pub enum Pixels {
    /// A whole image that tiles are cut from around each spot's centre.
    Slide(Box<dyn Slide>),
    /// Tiles that are cut already, found by [`Spot::image_row`].
    Tiles(TileSet),
}

/// Reads one layout.
pub trait Importer: Sync {
    /// Name on the command line.
    fn name(&self) -> &'static str;

    /// One line of help: which files make up the layout.
    fn about(&self) -> &'static str;

    /// Names of the sections in the source, sorted. Incomplete ones are named too, so that
    /// [`Importer::read`] can say what they lack. Errors when the directory does not have this
    /// layout at all.
    fn sections(&self, source: &Path) -> Result<Vec<String>>;

    /// Reads one section. Rows that cannot be used are left out and entered in `report`; an error
    /// means that nothing of the section can be used.
    fn read(
        &self,
        request: &Request<'_>,
        section: &str,
        report: &mut SectionReport,
    ) -> Result<Section>;
}

/// The importer called `name`.
pub fn importer(name: &str) -> Result<&'static dyn Importer> {
    IMPORTERS.iter().copied().find(|importer| importer.name() == name).ok_or_else(|| {
        let known: Vec<_> = IMPORTERS.iter().map(|i| i.name()).collect();
        Error::Request(format!("no layout is called `{name}`; give one of {}", known.join(", ")))
    })
}

/// Names of the files in `directory`, sorted.
fn file_names(directory: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(directory).map_err(Error::io(directory))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(Error::io(directory))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The first of `names` that is a file in `directory`.
fn first_file(directory: &Path, names: impl IntoIterator<Item = String>) -> Option<PathBuf> {
    names.into_iter().map(|name| directory.join(name)).find(|path| path.is_file())
}

/// Makes symbols unique: where one occurs more than once, the later ones get `-1`, `-2` (the
/// convention of AnnData), and the symbol is noted.
fn unique_symbols(symbols: Vec<String>, report: &mut SectionReport) -> Vec<String> {
    let mut taken: HashMap<String, usize> = HashMap::with_capacity(symbols.len());
    for symbol in &symbols {
        *taken.entry(symbol.clone()).or_default() += 1;
    }
    let repeated: Vec<_> = {
        let mut seen: Vec<_> =
            taken.iter().filter(|(_, n)| **n > 1).map(|(s, _)| s.clone()).collect();
        seen.sort();
        seen
    };
    if repeated.is_empty() {
        return symbols;
    }
    let mut used: HashMap<String, usize> = HashMap::new();
    let mut names: std::collections::HashSet<String> = taken.into_keys().collect();
    let unique = symbols
        .into_iter()
        .map(|symbol| {
            let count = used.entry(symbol.clone()).or_default();
            if *count == 0 {
                *count = 1;
                return symbol;
            }
            loop {
                let name = format!("{symbol}-{count}");
                *count += 1;
                if names.insert(name.clone()) {
                    return name;
                }
            }
        })
        .collect();
    report.note(format!(
        "{} gene symbols occur more than once and were made unique with -1, -2, ...: {}",
        repeated.len(),
        repeated.join(", ")
    ));
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_symbols_become_unique_without_meeting_others() {
        let mut report = SectionReport::new("A", "A");
        let symbols = ["A", "B", "A", "A-1", "A"].map(String::from).to_vec();
        let unique = unique_symbols(symbols, &mut report);
        assert_eq!(unique, ["A", "B", "A-2", "A-1", "A-3"]);
        assert!(report.notes[0].contains("1 gene symbols"), "{:?}", report.notes);
    }

    #[test]
    fn an_unknown_layout_names_the_known_ones() {
        let error = importer("visium-hd-9").err().expect("unknown").to_string();
        assert!(error.contains("legacy-st") && error.contains("diffbulk-pairs"), "{error}");
    }
}
