//! Which patient a slide is from: splits are by patient, so this is asked, never guessed.

use std::collections::HashMap;
use std::path::Path;

use super::prepare::PrepareArgs;
use crate::{Error, Result};

/// How patients are found.
#[derive(Debug)]
pub(super) enum Patients {
    /// The first characters of the slide's name.
    Prefix(usize),
    /// A table of the user's.
    Table(HashMap<String, String>),
    /// Nothing is known: every slide is taken as its own patient.
    Slides,
}

impl Patients {
    /// What the user asked for.
    pub(super) fn new(args: &PrepareArgs) -> Result<Self> {
        match (&args.patients, args.patient_from_prefix) {
            (Some(path), _) => Ok(Self::Table(read_table(path)?)),
            (None, Some(0)) => {
                Err(Error::Request("--patient-from-prefix takes at least one character".into()))
            }
            (None, Some(length)) => Ok(Self::Prefix(length)),
            (None, None) => Ok(Self::Slides),
        }
    }

    /// The patient of `slide`.
    pub(super) fn of(&self, slide: &str) -> Result<String> {
        match self {
            Self::Prefix(length) => Ok(slide.chars().take(*length).collect()),
            Self::Table(table) => table.get(slide).cloned().ok_or_else(|| {
                Error::Request(format!(
                    "the --patients table has no row for slide {slide}; add one, or choose slides \
                     with --slides"
                ))
            }),
            Self::Slides => Ok(slide.to_owned()),
        }
    }
}

/// Reads a table with columns slide and patient, separated by commas or tabs.
fn read_table(path: &Path) -> Result<HashMap<String, String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let delimiter =
        if text.lines().next().is_some_and(|line| line.contains('\t')) { b'\t' } else { b',' };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let wrong = |error: csv::Error| Error::data(path, format!("is not a table ({error})"));
    let header = reader.headers().map_err(wrong)?.clone();
    let column = |name: &str| {
        header.iter().position(|column| column.eq_ignore_ascii_case(name)).ok_or_else(|| {
            Error::data(path, format!("has no column `{name}`; it needs slide and patient"))
        })
    };
    let (slide, patient) = (column("slide")?, column("patient")?);
    let mut table = HashMap::new();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let (slide, patient) = (record[slide].to_owned(), record[patient].to_owned());
        if patient.is_empty() {
            return Err(Error::data(path, format!("gives no patient for slide {slide}")));
        }
        if let Some(other) = table.insert(slide.clone(), patient.clone())
            && other != patient
        {
            return Err(Error::data(
                path,
                format!("gives two patients, {other} and {patient}, for slide {slide}"),
            ));
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<HashMap<String, String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("patients.csv");
        std::fs::write(&path, text).unwrap();
        read_table(&path)
    }

    #[test]
    fn tables_with_commas_and_tabs() {
        for text in ["slide,patient\nC2, C\nB4,B\n", "n\tPatient\tSlide\n1\tC\tC2\n2\tB\tB4\n"] {
            let patients = Patients::Table(table(text).unwrap());
            assert_eq!(patients.of("C2").unwrap(), "C");
            let error = patients.of("D1").unwrap_err().to_string();
            assert!(error.contains("D1"), "{error}");
        }
    }

    #[test]
    fn contradictions_and_gaps_are_refused() {
        assert!(table("slide,patient\nC2,C\nC2,D\n").is_err());
        assert!(table("slide,patient\nC2,\n").is_err());
        assert!(table("slide,who\nC2,C\n").is_err());
        assert!(table("slide,patient\nC2,C,3\n").is_err());
        assert!(table("slide,patient\nC2,C\nC2,C\n").is_ok());
    }

    #[test]
    fn prefixes_count_characters() {
        assert_eq!(Patients::Prefix(1).of("C2").unwrap(), "C");
        assert_eq!(Patients::Prefix(2).of("é2b").unwrap(), "é2");
        assert_eq!(Patients::Slides.of("C2").unwrap(), "C2");
    }
}
