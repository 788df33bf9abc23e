//! What became of every row of a source: read, kept, left out and why. Nothing is silent.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Names that the printed summary shows of each reason; `dataset.json` has them all.
const SHOWN: usize = 5;

/// The account of one section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SectionReport {
    /// Name of the section, which is its slide.
    pub slide: String,
    /// Patient it is from.
    pub patient: String,
    /// Rows of spot positions (or of tiles) in the source.
    pub spots_read: usize,
    /// Rows of expression in the source.
    pub counts_read: usize,
    /// Genes in the source.
    pub genes_read: usize,
    /// Paired tiles that were written.
    pub kept: usize,
    /// Unlabelled tiles that were written.
    pub unlabelled: usize,
    /// Width and height of the image in level-0 px, where there is a whole image.
    pub image_px: Option<(u32, u32)>,
    /// Micrometres per level-0 px of the image (or per px of ready-made tiles).
    pub image_um_per_px: Option<f64>,
    /// Rows that were left out: reason, then the name of each.
    pub skipped: BTreeMap<String, Vec<String>>,
    /// Other things a person should know.
    pub notes: Vec<String>,
}

impl SectionReport {
    /// An empty account.
    pub fn new(slide: &str, patient: &str) -> Self {
        Self {
            slide: slide.to_owned(),
            patient: patient.to_owned(),
            spots_read: 0,
            counts_read: 0,
            genes_read: 0,
            kept: 0,
            unlabelled: 0,
            image_px: None,
            image_um_per_px: None,
            skipped: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    /// Enters that the row called `name` was left out because of `reason`.
    pub fn skip(&mut self, reason: &str, name: String) {
        self.skipped.entry(reason.to_owned()).or_default().push(name);
    }

    /// Enters something worth knowing that left no row out.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Number of rows that were left out.
    pub fn skipped_rows(&self) -> usize {
        self.skipped.values().map(Vec::len).sum()
    }

    /// One line a reason and a note, indented, with the first few names of each reason.
    pub fn details(&self) -> String {
        let mut out = String::new();
        for (reason, names) in &self.skipped {
            let more = names.len().saturating_sub(SHOWN);
            let shown = names[..names.len() - more].join(", ");
            let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "    left out {}: {reason}: {shown}{tail}", names.len());
        }
        for note in &self.notes {
            let _ = writeln!(out, "    note: {note}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_count_all_and_show_a_few() {
        let mut report = SectionReport::new("B4", "B");
        for i in 0..7 {
            report.skip("tile reaches outside the image", format!("{i}x1"));
        }
        report.note("one thing".into());
        assert_eq!(report.skipped_rows(), 7);
        assert_eq!(
            report.details(),
            "    left out 7: tile reaches outside the image: 0x1, 1x1, 2x1, 3x1, 4x1 and 2 more\n    \
             note: one thing\n"
        );
    }
}
