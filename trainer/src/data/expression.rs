//! The expression of all sections in one table, and `adata.h5ad`.

use std::collections::HashMap;
use std::path::Path;

use diffbulk::anndata::{AnnData, Column, Csr, Embedding, Matrix, Value};

use super::manifest::Manifest;
use super::tiles::TileName;
use crate::Result;

/// Rows of several sections over the union of their genes; a gene that a section does not have is
/// zero there.
#[derive(Debug, Default)]
pub(super) struct ExpressionTable {
    genes: Vec<String>,
    index: HashMap<String, u32>,
    csr: Csr,
    centres: Vec<f64>,
    /// Number of sections each gene is in.
    sections_with: Vec<usize>,
    sections: usize,
}

impl ExpressionTable {
    /// Takes the genes of the next section; returns the table's column of each.
    pub(super) fn add_section(&mut self, genes: &[String]) -> Vec<u32> {
        self.sections += 1;
        genes
            .iter()
            .map(|gene| {
                let column = *self.index.entry(gene.clone()).or_insert_with(|| {
                    self.genes.push(gene.clone());
                    self.sections_with.push(0);
                    self.genes.len() as u32 - 1
                });
                self.sections_with[column as usize] += 1;
                column
            })
            .collect()
    }

    /// Takes one row: values by the section's columns, and the centre in level-0 px.
    pub(super) fn push(
        &mut self,
        columns: &[u32],
        values: &[(u32, f32)],
        centre: Option<(f64, f64)>,
    ) {
        let mut entries: Vec<(u32, f32)> =
            values.iter().map(|&(gene, value)| (columns[gene as usize], value)).collect();
        entries.sort_by_key(|(column, _)| *column);
        self.csr.push_row(entries);
        let (x, y) = centre.unwrap_or((f64::NAN, f64::NAN));
        self.centres.extend([x, y]);
    }

    /// Genes of all sections, in order of first appearance.
    pub(super) fn genes(&self) -> &[String] {
        &self.genes
    }

    /// Number of genes that some section lacks.
    pub(super) fn genes_not_everywhere(&self) -> usize {
        self.sections_with.iter().filter(|&&n| n < self.sections).count()
    }

    /// Writes `adata.h5ad`; `names` are those of the rows, in order.
    pub(super) fn write(mut self, path: &Path, names: &[TileName], info: &Manifest) -> Result<()> {
        self.csr.columns = self.genes.len();
        let column =
            |value: fn(&TileName) -> &str| -> Vec<&str> { names.iter().map(value).collect() };
        let text = |value: &str| Value::Text(value.to_owned());
        let mut uns = vec![
            ("name".to_owned(), text(&info.name)),
            ("source".to_owned(), text(&info.source)),
            ("license".to_owned(), text(&info.license)),
            ("unit".to_owned(), text(info.unit.name())),
            ("um_per_px".to_owned(), Value::Number(info.um_per_px)),
            ("tile_px".to_owned(), Value::Integer(info.tile_px as i64)),
            ("created_by".to_owned(), text(&info.created_by)),
        ];
        if info.unit == super::Unit::Log1p {
            // Where scanpy looks before it takes a logarithm again.
            uns.push(("log1p".to_owned(), Value::Map(Vec::new())));
        }
        let adata = AnnData {
            x: Matrix::Csr(self.csr),
            obs_names: names.iter().map(row_name).collect(),
            obs: vec![
                ("slide".to_owned(), Column::categorical(&column(|name| &name.slide))),
                ("patient".to_owned(), Column::categorical(&column(|name| &name.patient))),
                (
                    "barcode".to_owned(),
                    Column::Text(names.iter().map(|name| name.barcode.clone()).collect()),
                ),
            ],
            var_names: self.genes,
            var: Vec::new(),
            obsm: vec![Embedding { name: "spatial".to_owned(), width: 2, values: self.centres }],
            uns,
        };
        Ok(adata.write_h5ad(path)?)
    }
}

/// Name of a row over all slides.
pub(super) fn row_name(name: &TileName) -> String {
    format!("{}_{}", name.slide, name.barcode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_meet_on_the_union_of_their_genes() {
        let mut table = ExpressionTable::default();
        let genes = |names: &[&str]| names.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let first = table.add_section(&genes(&["A", "B"]));
        table.push(&first, &[(0, 1.0), (1, 2.0)], Some((5.0, 6.0)));
        let second = table.add_section(&genes(&["C", "A"]));
        table.push(&second, &[(0, 3.0), (1, 4.0)], None);
        assert_eq!(table.genes(), ["A", "B", "C"]);
        assert_eq!(table.genes_not_everywhere(), 2);
        assert_eq!(table.csr.row(0).collect::<Vec<_>>(), [(0, 1.0), (1, 2.0)]);
        assert_eq!(table.csr.row(1).collect::<Vec<_>>(), [(0, 4.0), (2, 3.0)]);
        assert_eq!(table.centres[..2], [5.0, 6.0]);
        assert!(table.centres[2].is_nan());
    }
}
