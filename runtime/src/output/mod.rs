//! Outputs: every format is a [`Sink`] of the same [`Row`]s.
//!
//! [`FORMATS`] lists them; [`open`] starts one by name. A sink keeps its files under partial names
//! (see [`atomic`]) until [`Sink::finish`], and removes them when dropped before that. Memory is
//! bounded in every sink: `parquet` holds one row group (64 MiB at most), `csv` and `geojson` one
//! row, `h5ad` the tile table (about 150 bytes a tile) while expression waits on disk, `heatmap`
//! four bytes a tile for each gene it draws. The run's own report is [`write_run_report`].

pub mod atomic;
mod columns;
mod csv;
mod geojson;
mod h5ad;
mod heatmap;
mod parquet;
#[cfg(test)]
mod testing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::model::Metadata;
use crate::slide::SlideInfo;
use crate::{Error, Result};

/// One predicted tile.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The tile.
    pub tile: crate::tiling::Tile,
    /// Fraction of the tile that is tissue, 0 to 1.
    pub tissue: f32,
    /// How close the tile is to what the model was trained on, 0 to 1.
    pub confidence: f32,
    /// One value per gene of [`Context::genes`].
    pub expression: Vec<f32>,
}

/// What the user's file of tile centres says of every tile beside its place, as written there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// One value a column, for every tile by its index.
    pub rows: Vec<Vec<String>>,
}

impl Given {
    /// The values of a tile, one a column.
    pub fn values<'a>(&'a self, tile: &crate::tiling::Tile) -> impl Iterator<Item = &'a str> {
        let row = usize::try_from(tile.index).ok().and_then(|index| self.rows.get(index));
        let value = move |column| row.and_then(|row| row.get(column)).map_or("", String::as_str);
        (0..self.columns.len()).map(value)
    }
}

/// What every sink knows before the first row.
#[derive(Debug, Clone)]
pub struct Context {
    /// Directory the outputs go to.
    pub directory: PathBuf,
    /// File stem of the outputs, usually the slide's.
    pub stem: String,
    /// Genes that are written, in order.
    pub genes: Vec<String>,
    /// Genes to draw heat maps of, out of [`Context::genes`]; `None` leaves the choice to the
    /// heat map's own rule.
    pub heatmap_genes: Option<Vec<String>>,
    /// Metadata of the model.
    pub model: Metadata,
    /// SHA-256 of the model file, hexadecimal.
    pub model_sha256: String,
    /// The slide's file name.
    pub slide_name: String,
    /// The slide's facts.
    pub slide: SlideInfo,
    /// um per level-0 px that was used (the file's or the user's).
    pub um_per_px: f64,
    /// An overview of the slide for pictures.
    pub thumbnail: image::RgbImage,
    /// Level-0 px per thumbnail px.
    pub thumbnail_downsample: f64,
    /// Columns of the user's file of tile centres, which every table keeps.
    pub given: Arc<Given>,
}

/// Writes rows into one file format. The file appears under its final name only in
/// [`Sink::finish`].
pub trait Sink: Send {
    /// Takes the next row; rows come in tile order.
    fn push(&mut self, row: &Row) -> Result<()>;

    /// Completes the output and returns the files made.
    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>>;
}

/// One output format.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Name a user asks for it by.
    pub name: &'static str,
    /// What it is good for, in a few words.
    pub description: &'static str,
    open: fn(&Context) -> Result<Box<dyn Sink>>,
}

/// Every format there is. A new one is a file in this folder and a line here.
pub const FORMATS: &[Format] = &[
    Format {
        name: "parquet",
        description: "table of tiles for pandas, polars, DuckDB, R arrow",
        open: parquet::open,
    },
    Format { name: "csv", description: "the same table as text", open: csv::open },
    Format {
        name: "h5ad",
        description: "AnnData for scanpy and squidpy, with the slide's overview",
        open: h5ad::open,
    },
    Format {
        name: "geojson",
        description: "tiles with measurements for QuPath",
        open: geojson::open,
    },
    Format {
        name: "heatmap",
        description: "one PNG a chosen gene over the slide",
        open: heatmap::open,
    },
];

/// Starts the format called `name`. Errors name the formats there are, or the file that cannot be
/// written.
pub fn open(name: &str, context: &Context) -> Result<Box<dyn Sink>> {
    match FORMATS.iter().find(|format| format.name == name) {
        Some(format) => (format.open)(context),
        None => {
            let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
            Err(Error::Request(format!(
                "there is no output format {name:?}; choose from {}",
                names.join(", ")
            )))
        }
    }
}

/// Writes the report of a run (settings, versions, counts, timings) as indented JSON; it appears at
/// `path` only when whole.
pub fn write_run_report(path: &Path, report: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(report)
        .map_err(|e| Error::output(path, format!("the report cannot be written as JSON: {e}")))?;
    bytes.push(b'\n');
    atomic::write(path, &bytes)
}

impl Context {
    /// The output file `<stem><suffix>` in the output directory.
    fn file(&self, suffix: &str) -> PathBuf {
        self.directory.join(format!("{}{suffix}", file_name(&self.stem)))
    }
}

/// `name` as it can stand in a file name on any system.
fn file_name(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|c| if c.is_control() || "/\\:*?\"<>|".contains(c) { '_' } else { c })
        .collect();
    if clean.is_empty() { "_".to_owned() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_opens_and_leaves_nothing_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context(directory.path(), &["ERBB2", "EPCAM"]);
        for format in FORMATS {
            let mut sink = open(format.name, &context).unwrap();
            sink.push(&testing::row(0, 2)).unwrap();
            drop(sink);
            let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
            assert!(left.is_empty(), "{}: {left:?}", format.name);
        }
    }

    #[test]
    fn every_format_finishes_without_rows_and_refuses_odd_ones() {
        for format in FORMATS {
            let directory = tempfile::tempdir().unwrap();
            let context = testing::context(directory.path(), &["ERBB2", "EPCAM"]);
            let mut sink = open(format.name, &context).unwrap();
            let message = sink.push(&testing::row(0, 3)).unwrap_err().to_string();
            assert!(message.contains("3 values"), "{message}");
            let files = sink.finish().unwrap();
            assert!(!files.is_empty(), "{}", format.name);
            assert!(files.iter().all(|f| f.is_file()), "{files:?}");
        }
    }

    #[test]
    fn an_unknown_format_names_the_known() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context(directory.path(), &["ERBB2"]);
        let message = open("xlsx", &context).err().unwrap().to_string();
        assert!(message.contains("xlsx") && message.contains("geojson"), "{message}");
    }

    #[test]
    fn an_unwritable_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let taken = directory.path().join("taken");
        std::fs::write(&taken, "").unwrap();
        let context = testing::context(&taken, &["ERBB2"]);
        for format in FORMATS {
            let result = open(format.name, &context).and_then(|mut sink| {
                sink.push(&testing::row(0, 1))?;
                sink.finish()
            });
            let message = result.err().unwrap().to_string();
            assert!(message.contains("taken"), "{}: {message}", format.name);
        }
    }

    #[test]
    fn the_report_is_json() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.json");
        write_run_report(&path, &serde_json::json!({"tiles": 3})).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["tiles"], 3);
    }

    #[test]
    fn names_become_file_names() {
        assert_eq!(file_name("HLA-A/B"), "HLA-A_B");
        assert_eq!(file_name(""), "_");
    }
}
