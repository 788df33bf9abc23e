//! Gene symbols and their rows in the embedding table.

use std::collections::HashMap;

use crate::diffusion::weights::{Array, Weights};
use crate::diffusion::{Config, parameters};
use crate::train::random::Stream;
use crate::{Error, Result};

/// Symbols in row order; new panels add rows and never move existing ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vocabulary {
    symbols: Vec<String>,
    rows: HashMap<String, usize>,
}

impl Vocabulary {
    /// A vocabulary of these symbols in this order. A symbol that appears twice is refused.
    pub fn new(symbols: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut vocabulary = Self::default();
        for symbol in symbols {
            if vocabulary.rows.contains_key(&symbol) {
                return Err(Error::Request(format!(
                    "gene '{symbol}' is in the vocabulary twice; remove one"
                )));
            }
            vocabulary.add(&symbol);
        }
        Ok(vocabulary)
    }

    /// The row of a symbol, a new last one where it is unknown.
    pub fn add(&mut self, symbol: &str) -> usize {
        if let Some(&row) = self.rows.get(symbol) {
            return row;
        }
        let row = self.symbols.len();
        self.symbols.push(symbol.to_owned());
        self.rows.insert(symbol.to_owned(), row);
        row
    }

    /// Adds a whole panel and returns the row of each of its genes.
    pub fn add_panel<'a>(&mut self, panel: impl IntoIterator<Item = &'a str>) -> Vec<usize> {
        panel.into_iter().map(|symbol| self.add(symbol)).collect()
    }

    /// The row of a known symbol.
    pub fn row(&self, symbol: &str) -> Option<usize> {
        self.rows.get(symbol).copied()
    }

    /// Symbols in row order.
    pub fn symbols(&self) -> &[String] {
        &self.symbols
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether no gene is known.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// A checkpoint widened to a larger vocabulary: known genes keep their learned rows, new ones
    /// get fresh rows decided by `seed` and their symbol.
    pub fn widen(
        &self,
        config: &Config,
        weights: &Weights,
        seed: u64,
    ) -> Result<(Config, Weights)> {
        let old = config.gene_vocabulary.clone().ok_or_else(|| {
            Error::Request(
                "the checkpoint names no genes, so a panel cannot be added to it; train from one \
                 with a gene_vocabulary"
                    .to_owned(),
            )
        })?;
        let old = Self::new(old)?;
        let name = format!("unet.emb_gene.0.{}", config.table_name());
        let width = config.gene_embed_dim;
        let table = weights.get(&name);
        let mut data = Vec::with_capacity(self.len() * width);
        for symbol in &self.symbols {
            let known = old.row(symbol).zip(table).and_then(|(row, table)| {
                table.data.get(row * width..(row + 1) * width).map(<[f32]>::to_vec)
            });
            data.extend(known.unwrap_or_else(|| {
                let key: Vec<u64> = symbol.bytes().map(u64::from).collect();
                parameters::fresh_embedding(width, &mut Stream::keyed(seed, &key))
            }));
        }
        let config = config.clone().with_vocabulary(self.symbols.clone());
        let mut weights = weights.clone();
        weights.remove(&name);
        weights.insert(
            format!("unet.emb_gene.0.{}", config.table_name()),
            Array::new(vec![self.len(), width], data),
        );
        Ok((config, weights))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_share_rows() {
        let mut vocabulary = Vocabulary::default();
        assert_eq!(vocabulary.add_panel(["ERBB2", "EPCAM"]), [0, 1]);
        assert_eq!(vocabulary.add_panel(["CD74", "ERBB2"]), [2, 0]);
        assert_eq!(vocabulary.symbols(), ["ERBB2", "EPCAM", "CD74"]);
    }

    #[test]
    fn twice_the_same_gene_is_refused() {
        let message = Vocabulary::new(["A".to_owned(), "A".to_owned()]).unwrap_err().to_string();
        assert!(message.contains("'A'"), "{message}");
    }

    #[test]
    fn widening_keeps_known_rows() {
        let config = Config::preset("tiny").unwrap().with_vocabulary(vec!["A".into(), "B".into()]);
        let width = config.gene_embed_dim;
        let mut weights = Weights::new();
        let table: Vec<f32> = (0..2 * width).map(|v| v as f32).collect();
        weights.insert("unet.emb_gene.0.embedding", Array::new(vec![2, width], table.clone()));
        let wider = Vocabulary::new(["B".to_owned(), "C".to_owned(), "A".to_owned()]).unwrap();
        let (config, weights) = wider.widen(&config, &weights, 5).unwrap();
        assert_eq!(config.panel_size, 3);
        let new = &weights.get("unet.emb_gene.0.embedding").unwrap().data;
        assert_eq!(new[..width], table[width..]);
        assert_eq!(new[2 * width..], table[..width]);
        assert!(new[width..2 * width].iter().any(|v| *v != 0.0));
    }
}
