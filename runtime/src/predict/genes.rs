//! From the genes a user names to columns of the model's output.

use std::collections::{HashMap, HashSet};

use crate::{Error, Result};

/// Names that are offered for one that is not in the panel.
const SUGGESTIONS: usize = 3;

/// Columns of `panel` for the genes in `wanted`, in the order they are named, each once. Names
/// must match exactly, or but for upper and lower case where that is unambiguous.
///
/// # Errors
/// When a gene is not in the panel; the message offers the closest names.
pub fn columns(panel: &[String], wanted: &[String]) -> Result<Vec<usize>> {
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    let mut by_folded: HashMap<String, Vec<usize>> = HashMap::new();
    for (column, gene) in panel.iter().enumerate() {
        by_name.insert(gene, column);
        by_folded.entry(gene.to_uppercase()).or_default().push(column);
    }
    let mut columns = Vec::with_capacity(wanted.len());
    let mut seen = HashSet::new();
    let mut unknown = Vec::new();
    for gene in wanted {
        let gene = gene.trim();
        let folded = || match by_folded.get(&gene.to_uppercase()).map(Vec::as_slice) {
            Some([column]) => Some(*column),
            _ => None,
        };
        match by_name.get(gene).copied().or_else(folded) {
            Some(column) if seen.insert(column) => columns.push(column),
            Some(_) => {}
            None => unknown.push(gene),
        }
    }
    if !unknown.is_empty() {
        let told: Vec<String> = unknown
            .iter()
            .map(|gene| format!("{gene} (closest: {})", closest(panel, gene).join(", ")))
            .collect();
        return Err(Error::Request(format!(
            "not in the model's panel of {} genes: {}; `diffbulk info` on the model lists the panel",
            panel.len(),
            told.join("; ")
        )));
    }
    if columns.is_empty() {
        return Err(Error::Request("no gene is named; leave the option out to get all".into()));
    }
    Ok(columns)
}

/// The names in `panel` that look most like `gene`, the closest first.
pub fn closest<'a>(panel: &'a [String], gene: &str) -> Vec<&'a str> {
    let gene = gene.to_uppercase();
    let mut ranked: Vec<(usize, &str)> = panel
        .iter()
        .map(|name| {
            let folded = name.to_uppercase();
            // Sharing a beginning (ERBB, ERBB2) counts more than any other likeness.
            let shared = folded.chars().zip(gene.chars()).take_while(|(a, b)| a == b).count();
            (2 * distance(&folded, &gene) + gene.len().saturating_sub(shared), name.as_str())
        })
        .collect();
    ranked.sort();
    ranked.into_iter().take(SUGGESTIONS).map(|(_, name)| name).collect()
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn keeps_the_users_order_and_drops_repeats() {
        let panel = names(&["A", "B", "C1orf1"]);
        let wanted = names(&["C1ORF1", " A", "A"]);
        assert_eq!(columns(&panel, &wanted).unwrap(), [2, 0]);
        assert!(columns(&panel, &[]).is_err());
    }

    #[test]
    fn case_is_only_forgiven_where_it_is_unambiguous() {
        let panel = names(&["Aa", "AA"]);
        assert_eq!(columns(&panel, &names(&["AA"])).unwrap(), [1]);
        assert!(columns(&panel, &names(&["aa"])).is_err());
    }

    #[test]
    fn unknown_genes_get_suggestions() {
        let panel = names(&["EPCAM", "ERBB2", "ERBB3", "KRT19", "COL1A1"]);
        let message = columns(&panel, &names(&["ERB2", "KRT91"])).unwrap_err().to_string();
        assert!(message.contains("ERB2 (closest: ERBB2, ERBB3"), "{message}");
        assert!(message.contains("KRT91 (closest: KRT19"), "{message}");
    }

    #[test]
    fn distances() {
        assert_eq!(distance("KITTEN", "SITTING"), 3);
        assert_eq!(distance("", "AB"), 2);
        assert_eq!(distance("AB", ""), 2);
    }
}
