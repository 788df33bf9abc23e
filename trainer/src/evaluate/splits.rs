//! Which sections train and which test. Splits are by section or patient, never by tile.
//!
//! A section of a patient with several is held out from that patient's others: a figure within
//! one tumour. A patient with a single section is held out from all other patients: a figure
//! across patients. A split file can say otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One split of the sections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// Its name in tables.
    pub name: String,
    /// Sections to learn from.
    pub train: Vec<String>,
    /// Sections to be measured on.
    pub test: Vec<String>,
    /// Stage-1 model that has seen no test section; without one only the baselines are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet: Option<PathBuf>,
}

/// Whether test and training sections share a patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Test sections are of a patient who has training sections.
    WithinPatient,
    /// Test sections are of other patients.
    AcrossPatients,
}

impl Kind {
    /// For readers.
    pub fn description(self) -> &'static str {
        match self {
            Self::WithinPatient => "same patient, section left out",
            Self::AcrossPatients => "across patients",
        }
    }
}

/// The folds of a dataset whose sections belong to the patients given.
pub fn leave_one_out(patients: &BTreeMap<String, String>) -> Vec<Fold> {
    let mut within = Vec::new();
    let mut across = Vec::new();
    for (section, patient) in patients {
        let of_patient = |same: bool| -> Vec<String> {
            let others = patients.iter().filter(|(s, p)| *s != section && (*p == patient) == same);
            others.map(|(s, _)| s.clone()).collect()
        };
        let siblings = of_patient(true);
        let (folds, train) = if siblings.is_empty() {
            (&mut across, of_patient(false))
        } else {
            (&mut within, siblings)
        };
        if !train.is_empty() {
            folds.push(Fold {
                name: section.clone(),
                train,
                test: vec![section.clone()],
                unet: None,
            });
        }
    }
    within.append(&mut across);
    within
}

/// Reads a split file: a JSON list of [`Fold`]s. U-Net directories are relative to the file.
pub fn read(path: &Path) -> Result<Vec<Fold>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut folds: Vec<Fold> = serde_json::from_str(&text).map_err(|e| {
        let shape = r#"[{"name": "C2", "train": ["C3"], "test": ["C2"], "unet": "unet-C2"}]"#;
        Error::data(path, format!("not a list of folds ({e}); it looks like {shape}"))
    })?;
    let base = path.parent().unwrap_or(Path::new(""));
    for fold in &mut folds {
        if let Some(unet) = &mut fold.unet {
            *unet = base.join(&*unet);
        }
    }
    Ok(folds)
}

impl Fold {
    /// Checks the fold against the dataset's sections and says of which kind it is.
    pub fn kind(&self, patients: &BTreeMap<String, String>) -> Result<Kind> {
        let refuse =
            |problem: String| Err(Error::Request(format!("fold {}: {problem}", self.name)));
        if self.train.is_empty() || self.test.is_empty() {
            return refuse("it needs training and test sections".into());
        }
        if let Some(section) =
            self.train.iter().chain(&self.test).find(|s| !patients.contains_key(*s))
        {
            let known: Vec<&str> = patients.keys().map(String::as_str).collect();
            return refuse(format!(
                "section {section} is not in the dataset, which has {}",
                known.join(", ")
            ));
        }
        if let Some(section) = self.test.iter().find(|s| self.train.contains(s)) {
            return refuse(format!("section {section} is for training and for test; choose one"));
        }
        let trained: BTreeSet<_> = self.train.iter().filter_map(|s| patients.get(s)).collect();
        let shared =
            self.test.iter().filter(|s| patients.get(*s).is_some_and(|p| trained.contains(p)));
        match shared.count() {
            0 => Ok(Kind::AcrossPatients),
            count if count == self.test.len() => Ok(Kind::WithinPatient),
            _ => refuse(
                "some test sections are of training patients and some are not; \
                 measure them in two folds"
                    .into(),
            ),
        }
    }

    /// Refuses a model that has seen a test section: its figures would be no held-out figures.
    pub fn refuse_leak(&self, what: &Path, seen: &[String]) -> Result<()> {
        match self.test.iter().find(|section| seen.contains(section)) {
            None => Ok(()),
            Some(section) => Err(Error::Request(format!(
                "fold {}: {} was trained with test section {section}; give one trained without it \
                 (pretrain --exclude {section}) or leave the fold out",
                self.name,
                what.display()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn her2st() -> BTreeMap<String, String> {
        [("B4", "B"), ("C2", "C"), ("C3", "C"), ("C5", "C")]
            .map(|(s, p)| (s.to_owned(), p.to_owned()))
            .into()
    }

    #[test]
    fn sections_are_left_out_of_their_patient_and_lone_ones_of_all() {
        let folds = leave_one_out(&her2st());
        let names: Vec<&str> = folds.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["C2", "C3", "C5", "B4"]);
        assert_eq!(folds[0].train, ["C3", "C5"]);
        assert_eq!(folds[3].train, ["C2", "C3", "C5"]);
        let kinds: Vec<Kind> = folds.iter().map(|f| f.kind(&her2st()).unwrap()).collect();
        assert_eq!(kinds[0], Kind::WithinPatient);
        assert_eq!(kinds[3], Kind::AcrossPatients);
    }

    #[test]
    fn impossible_folds_are_refused_by_name() {
        let fold = |train: &[&str], test: &[&str]| Fold {
            name: "f".into(),
            train: train.iter().map(|s| s.to_string()).collect(),
            test: test.iter().map(|s| s.to_string()).collect(),
            unet: None,
        };
        for (fold, word) in [
            (fold(&["C2"], &["C2"]), "for training and for test"),
            (fold(&["C2"], &["Z9"]), "Z9"),
            (fold(&[], &["C2"]), "needs"),
            (fold(&["C2"], &["C3", "B4"]), "two folds"),
        ] {
            let message = fold.kind(&her2st()).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_model_that_saw_the_test_section_is_refused() {
        let fold = &leave_one_out(&her2st())[0];
        let unet = Path::new("unet");
        assert!(fold.refuse_leak(unet, &["C3".into(), "C5".into()]).is_ok());
        let message = fold.refuse_leak(unet, &["C2".into()]).unwrap_err().to_string();
        assert!(message.contains("test section C2"), "{message}");
    }
}
