//! Paired datasets as sources of training tiles.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tiles::{Tile, TileSource};
use crate::data::{GeneFilter, PairedDataset, most_variable};
use crate::genes::Vocabulary;
use crate::{Error, Result};

/// Which slides to use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slides {
    /// Only these; all where empty.
    pub include: Vec<String>,
    /// Not these.
    pub exclude: Vec<String>,
}

impl Slides {
    /// Whether a slide is used.
    pub fn contains(&self, slide: &str) -> bool {
        (self.include.is_empty() || self.include.iter().any(|s| s == slide))
            && !self.exclude.iter().any(|s| s == slide)
    }

    /// Refuses names no dataset has: a misspelt held-out slide would leak into training.
    pub fn check<'a>(&self, known: impl Iterator<Item = &'a str>) -> Result<()> {
        let known: std::collections::BTreeSet<&str> = known.collect();
        for name in self.include.iter().chain(&self.exclude) {
            if !known.contains(name.as_str()) {
                return Err(Error::Request(format!(
                    "no slide is called '{name}'; the data has {}",
                    known.iter().copied().collect::<Vec<_>>().join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// What a run took from a dataset, kept with the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSummary {
    /// Name of the dataset's directory.
    pub dataset: String,
    /// Slides used.
    pub slides: Vec<String>,
    /// Labelled tiles used.
    pub labelled: usize,
    /// Unlabelled tiles used.
    pub unlabelled: usize,
    /// Symbols of the panel the images are conditioned on.
    pub panel: Vec<String>,
}

/// The tiles of the chosen slides of one dataset.
pub struct DatasetSource {
    dataset: PairedDataset,
    rows: Vec<usize>,
    unlabelled: Vec<usize>,
    /// Expression `[rows, panel]`.
    expression: Vec<f32>,
    gene_rows: Vec<usize>,
    summary: SourceSummary,
}

impl DatasetSource {
    /// Opens a dataset, chooses its `genes` most variable genes over the chosen slides and enters
    /// them into the vocabulary.
    pub fn open(
        directory: &Path,
        slides: &Slides,
        genes: usize,
        use_unlabelled: bool,
        vocabulary: &mut Vocabulary,
    ) -> Result<Self> {
        let dataset = PairedDataset::open(directory)?;
        let rows = dataset.rows_where(|slide, _| slides.contains(slide));
        if rows.is_empty() {
            return Err(Error::data(
                directory,
                "has no labelled tile on the chosen slides; choose others with --slides or \
                 --exclude",
            ));
        }
        let unlabelled: Vec<usize> = match dataset.unlabelled() {
            Some(tiles) if use_unlabelled => {
                (0..tiles.len()).filter(|&i| slides.contains(tiles.slide(i))).collect()
            }
            None if use_unlabelled => {
                return Err(Error::data(
                    directory,
                    "holds no unlabelled tiles; prepare it with them or leave --unlabelled out",
                ));
            }
            _ => Vec::new(),
        };
        let columns = if genes > 0 {
            most_variable(&dataset, &rows, genes, &GeneFilter::default())?
        } else {
            Vec::new()
        };
        let expression = dataset.expression_matrix(&rows, &columns);
        let panel: Vec<String> = columns.iter().map(|&c| dataset.genes()[c].clone()).collect();
        let gene_rows = vocabulary.add_panel(panel.iter().map(String::as_str));
        let mut used: Vec<String> = rows.iter().map(|&r| dataset.slide(r).to_owned()).collect();
        if let Some(tiles) = dataset.unlabelled() {
            used.extend(unlabelled.iter().map(|&i| tiles.slide(i).to_owned()));
        }
        used.sort_unstable();
        used.dedup();
        let name = PathBuf::from(directory);
        let name = name.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let summary = SourceSummary {
            dataset: name,
            slides: used,
            labelled: rows.len(),
            unlabelled: unlabelled.len(),
            panel,
        };
        Ok(Self { dataset, rows, unlabelled, expression, gene_rows, summary })
    }

    /// What was taken.
    pub fn summary(&self) -> &SourceSummary {
        &self.summary
    }

    /// All slides of the dataset, used or not.
    pub fn all_slides(&self) -> Vec<String> {
        let mut slides = self.dataset.slides();
        if let Some(tiles) = self.dataset.unlabelled() {
            slides.extend((0..tiles.len()).map(|i| tiles.slide(i).to_owned()));
        }
        slides.sort_unstable();
        slides.dedup();
        slides
    }

    /// Takes all pixels into memory where they fit in `limit` bytes.
    pub fn preload_within(&self, limit: u64) -> Result<bool> {
        let tile = (self.dataset.tile_px() * self.dataset.tile_px() * 3) as u64;
        let unlabelled = self.dataset.unlabelled().map_or(0, |u| u.len());
        let fits = tile * (self.dataset.len() + unlabelled) as u64 <= limit;
        if fits {
            self.dataset.preload()?;
        }
        Ok(fits)
    }
}

impl TileSource for DatasetSource {
    fn tile_px(&self) -> usize {
        self.dataset.tile_px()
    }

    fn labelled(&self) -> usize {
        self.rows.len()
    }

    fn unlabelled(&self) -> usize {
        self.unlabelled.len()
    }

    fn image(&self, tile: Tile) -> Result<Vec<u8>> {
        match (tile, self.dataset.unlabelled()) {
            (Tile::Labelled(i), _) => self.dataset.image(self.rows[i]),
            (Tile::Unlabelled(i), Some(tiles)) => tiles.image(self.unlabelled[i]),
            (Tile::Unlabelled(_), None) => {
                Err(Error::Request("the dataset has no unlabelled tiles".to_owned()))
            }
        }
    }

    fn expression(&self, tile: Tile) -> Option<Vec<f32>> {
        let genes = self.gene_rows.len();
        match tile {
            Tile::Labelled(i) if genes > 0 => {
                Some(self.expression[i * genes..(i + 1) * genes].to_vec())
            }
            _ => None,
        }
    }

    fn gene_rows(&self) -> &[usize] {
        &self.gene_rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slides_are_chosen_and_misspellings_refused() {
        let slides = Slides { include: vec!["A".into(), "B".into()], exclude: vec!["B".into()] };
        assert!(slides.contains("A") && !slides.contains("B") && !slides.contains("C"));
        slides.check(["A", "B", "C"].into_iter()).unwrap();
        let message = slides.check(["A", "C"].into_iter()).unwrap_err().to_string();
        assert!(message.contains("'B'") && message.contains("A, C"), "{message}");
    }
}
