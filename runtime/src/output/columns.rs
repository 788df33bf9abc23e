//! What all tables share: the columns before the genes, and where the numbers come from.

use std::collections::HashSet;
use std::path::Path;

use super::{Context, Row};
use crate::{Error, Result};

/// Columns of a tile table before the genes. Positions and sizes are level-0 px.
pub(super) const FIXED: [&str; 7] = ["id", "x", "y", "width", "height", "tissue", "confidence"];

/// Names of what an AnnData file has of every tile besides, which no other column may take.
const RESERVED: [&str; 2] = ["um_per_px", "_index"];

/// Column names of a table after the fixed ones, all different.
pub(super) struct Names {
    /// Of the columns of the user's file of tile centres: their own, with `_given` (and a number)
    /// appended where it would collide.
    pub(super) given: Vec<String>,
    /// Of the genes: the symbol, with `_gene` (and a number) appended where it would collide.
    pub(super) genes: Vec<String>,
}

impl Names {
    pub(super) fn new(context: &Context) -> Self {
        let mut taken: HashSet<String> =
            FIXED.iter().chain(&RESERVED).map(|name| (*name).to_owned()).collect();
        let given = context.given.columns.iter().map(|name| {
            let name = if name.is_empty() { "unnamed" } else { name };
            unique(name, "given", &mut taken)
        });
        let given = given.collect();
        // A gene called like something only AnnData has keeps its symbol.
        RESERVED.iter().for_each(|name| {
            taken.remove(*name);
        });
        let genes = context.genes.iter().map(|gene| unique(gene, "gene", &mut taken)).collect();
        Self { given, genes }
    }
}

/// `name`, made different from all `taken` ones, of which it is one from here on.
fn unique(name: &str, kind: &str, taken: &mut HashSet<String>) -> String {
    let mut own = name.to_owned();
    let mut count = 1;
    while !taken.insert(own.clone()) {
        own = match count {
            1 => format!("{name}_{kind}"),
            _ => format!("{name}_{kind}{count}"),
        };
        count += 1;
    }
    own
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
    use std::sync::Arc;

    use super::super::Given;
    use super::*;

    #[test]
    fn columns_never_collide() {
        let directory = Path::new("anywhere");
        let genes = ["ERBB2", "x", "ERBB2", "x", "x_gene", "cluster"];
        let mut context = super::super::testing::context(directory, &genes);
        let columns = ["barcode", "x", "x", "", "um_per_px", "cluster"].map(str::to_owned).to_vec();
        context.given = Arc::new(Given { columns, rows: Vec::new() });
        let names = Names::new(&context);
        assert_eq!(names.genes[..4], ["ERBB2", "x_gene", "ERBB2_gene", "x_gene2"]);
        let given = ["barcode", "x_given", "x_given2", "unnamed", "um_per_px_given", "cluster"];
        assert_eq!(names.given, given);
        let unique: HashSet<_> = names.genes.iter().chain(&names.given).collect();
        assert_eq!(unique.len(), genes.len() + 6);
    }
}
