//! What all tables share: the columns before the genes, and where the numbers come from.

use std::collections::HashSet;
use std::path::Path;

use super::{Context, Row};
use crate::{Error, Result};

/// Columns of a tile table before the genes. Positions and sizes are level-0 px.
pub(super) const FIXED: [&str; 7] = ["id", "x", "y", "width", "height", "tissue", "confidence"];

/// One column name a gene: the symbol, with `_gene` (and a number) appended where it would collide
/// with a fixed column or an earlier gene.
pub(super) fn gene_columns(genes: &[String]) -> Vec<String> {
    let mut taken: HashSet<String> = FIXED.iter().map(|name| (*name).to_owned()).collect();
    genes
        .iter()
        .map(|gene| {
            let mut name = gene.clone();
            let mut count = 1;
            while !taken.insert(name.clone()) {
                name = match count {
                    1 => format!("{gene}_gene"),
                    _ => format!("{gene}_gene{count}"),
                };
                count += 1;
            }
            name
        })
        .collect()
}

/// Key and value of everything needed to know where a table's numbers come from.
pub(super) fn provenance(context: &Context) -> Vec<(&'static str, String)> {
    vec![
        ("model", context.model.name.clone()),
        ("model_version", context.model.version.clone()),
        ("model_sha256", context.model_sha256.clone()),
        ("unit", context.model.unit.clone()),
        ("slide", context.slide_name.clone()),
        ("um_per_px", context.um_per_px.to_string()),
        ("model_um_per_px", context.model.um_per_px.to_string()),
        ("tile_px", context.model.tile_px.to_string()),
        ("version", format!("diffbulk {}", crate::VERSION)),
    ]
}

/// A row must have one value a gene.
pub(super) fn check(row: &Row, genes: usize, path: &Path) -> Result<()> {
    if row.expression.len() == genes {
        return Ok(());
    }
    Err(Error::output(
        path,
        format!("tile {} has {} values for {genes} genes", row.tile.id, row.expression.len()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gene_columns_never_collide() {
        let genes = ["ERBB2", "x", "ERBB2", "x", "x_gene"].map(str::to_owned);
        let columns = gene_columns(&genes);
        assert_eq!(columns[..4], ["ERBB2", "x_gene", "ERBB2_gene", "x_gene2"]);
        let unique: HashSet<_> = columns.iter().collect();
        assert_eq!(unique.len(), genes.len());
    }
}
