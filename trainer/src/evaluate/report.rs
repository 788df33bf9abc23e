//! The results of an evaluation: one JSON value, one Markdown table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::metrics::{Scores, bootstrap_sections, interval};
use super::splits::{Fold, Kind};

/// Draws of every bootstrap.
pub const RESAMPLES: usize = 1000;

/// One model's figures on one fold.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// The model's name.
    pub model: String,
    /// Its figures.
    #[serde(flatten)]
    pub scores: Scores,
    /// What was chosen on the training sections.
    pub chosen: serde_json::Value,
    /// Pearson of each gene where it is defined.
    pub gene_pearson: BTreeMap<String, f64>,
    /// Bootstrap draws of the mean per-gene Pearson, paired between models.
    #[serde(skip)]
    pub draws: Vec<f64>,
}

/// One fold's figures.
#[derive(Debug, Clone, Serialize)]
pub struct FoldResult {
    /// The split.
    #[serde(flatten)]
    pub fold: Fold,
    /// Whether the patient is the same.
    pub kind: Kind,
    /// Training tiles.
    pub training_tiles: usize,
    /// Genes, chosen on the training sections.
    pub genes: Vec<String>,
    /// Every model, in table order.
    pub models: Vec<Measured>,
}

/// One model's mean figures over the folds of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The model's name.
    pub model: String,
    /// Which folds.
    pub kind: Kind,
    /// Folds the model was measured on.
    pub folds: usize,
    /// Mean per-gene Pearson.
    pub pearson: Option<f64>,
    /// Its 95 % bootstrap interval over sections (where there are several) and tiles.
    pub pearson_interval: Option<[f64; 2]>,
    /// Mean per-gene Spearman.
    pub spearman: Option<f64>,
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// Pearson over all values at once.
    pub flat_pearson: Option<f64>,
}

/// How much higher one model's mean per-gene Pearson is than another's.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The model.
    pub model: String,
    /// What it is compared with: the best other model of the table on these folds.
    pub against: String,
    /// Which folds.
    pub kind: Kind,
    /// Mean difference.
    pub difference: f64,
    /// Its 95 % bootstrap interval, both models on the same draws of sections and tiles.
    pub interval: Option<[f64; 2]>,
}

/// Everything an evaluation found.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// Version of this crate.
    pub version: String,
    /// Name of the dataset's directory.
    pub dataset: String,
    /// Seed of bootstrap and training.
    pub seed: u64,
    /// What a reader must know about the splits.
    pub note: String,
    /// Mean figures.
    pub summary: Vec<Summary>,
    /// The fused predictor against the best baseline.
    pub comparisons: Vec<Comparison>,
    /// All figures.
    pub folds: Vec<FoldResult>,
}

impl Evaluation {
    /// Summarises the folds. `candidate` is the model that is compared with the best of
    /// `baselines`.
    pub fn new(
        dataset: String,
        seed: u64,
        folds: Vec<FoldResult>,
        candidate: &str,
        baselines: &[String],
    ) -> Self {
        let mut summary = Vec::new();
        let mut comparisons = Vec::new();
        for kind in [Kind::WithinPatient, Kind::AcrossPatients] {
            let of_kind: Vec<&FoldResult> = folds.iter().filter(|f| f.kind == kind).collect();
            let names = model_names(&folds);
            let means: Vec<Summary> =
                names.iter().filter_map(|name| summarise(name, kind, &of_kind, seed)).collect();
            // Only folds where the candidate was measured make a fair comparison.
            let shared: Vec<&FoldResult> =
                of_kind.iter().copied().filter(|f| find(f, candidate).is_some()).collect();
            comparisons.extend(compare(candidate, baselines, kind, &shared, seed));
            summary.extend(means);
        }
        let note = note(&folds);
        Self { version: crate::VERSION.into(), dataset, seed, note, summary, comparisons, folds }
    }

    /// The Markdown table with its legend.
    pub fn markdown(&self) -> String {
        let mut out = String::from("# Held-out figures\n\n");
        let kinds: Vec<Kind> = [Kind::WithinPatient, Kind::AcrossPatients]
            .into_iter()
            .filter(|kind| self.folds.iter().any(|f| f.kind == *kind))
            .collect();
        let mut header = vec!["model".to_owned()];
        header.extend(self.folds.iter().map(|f| f.fold.name.clone()));
        for kind in &kinds {
            let label = match kind {
                Kind::WithinPatient => "same patient",
                Kind::AcrossPatients => "across patients",
            };
            header.push(format!("Pearson, {label} [95 %]"));
            header.extend(
                ["Spearman", "MSE", "MAE", "flat Pearson"].map(|m| format!("{m}, {label}")),
            );
        }
        row(&mut out, &header);
        row(&mut out, &vec!["---".to_owned(); header.len()]);
        for model in model_names(&self.folds) {
            let mut cells = vec![model.clone()];
            let shown = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.3}"));
            for fold in &self.folds {
                cells.push(shown(find(fold, &model).and_then(|m| m.scores.pearson)));
            }
            for kind in &kinds {
                let Some(mean) = self.summary.iter().find(|s| s.model == model && s.kind == *kind)
                else {
                    cells.extend(vec!["–".to_owned(); 5]);
                    continue;
                };
                let expected = self.folds.iter().filter(|f| f.kind == *kind).count();
                let mut figure = shown(mean.pearson);
                if let Some([low, high]) = mean.pearson_interval {
                    let _ = write!(figure, " [{low:.3}, {high:.3}]");
                }
                if mean.folds < expected {
                    let _ = write!(figure, " ({} of {expected} folds)", mean.folds);
                }
                cells.push(figure);
                cells.extend([
                    shown(mean.spearman),
                    format!("{:.3}", mean.mse),
                    format!("{:.3}", mean.mae),
                    shown(mean.flat_pearson),
                ]);
            }
            row(&mut out, &cells);
        }
        let _ = write!(out, "\n{}\n", self.note);
        for c in &self.comparisons {
            let _ = write!(
                out,
                "\n{}: {} is {:+.3} in mean per-gene Pearson against the best other model, {}",
                sentence_start(c.kind.description()),
                c.model,
                c.difference,
                c.against
            );
            let _ = match c.interval {
                Some([low, high]) => writeln!(out, " (95 % interval {low:+.3} to {high:+.3})."),
                None => writeln!(out, "."),
            };
        }
        out
    }
}

fn note(folds: &[FoldResult]) -> String {
    let mut lines = vec![
        "The columns named after folds and those called Pearson hold the correlation per gene over \
         the tiles of the held-out section, averaged over genes. Flat Pearson is over all values \
         at once, dominated by differences between genes, and not comparable with it."
            .to_owned(),
    ];
    for fold in folds {
        let undefined = fold
            .models
            .iter()
            .filter(|m| m.scores.pearson.is_some())
            .map(|m| m.scores.undefined_genes)
            .max()
            .unwrap_or(0);
        lines.push(format!(
            "- {}: trained on {} ({} tiles), measured on {} ({} tiles); {}; {} genes, the most \
             variable of the training sections, {undefined} of them without a defined correlation.",
            fold.fold.name,
            fold.fold.train.join(", "),
            fold.training_tiles,
            fold.fold.test.join(", "),
            fold.models.first().map_or(0, |m| m.scores.tiles),
            fold.kind.description(),
            fold.genes.len(),
        ));
    }
    if folds.iter().any(|f| f.kind == Kind::WithinPatient) {
        lines.push(
            "Sections of one patient are sections of one tumour: those folds say how well a model \
             carries over to another section of the same tumour, not to another patient."
                .to_owned(),
        );
    }
    lines.join("\n\n").replace("\n\n- ", "\n- ").replacen("\n- ", "\n\n- ", 1)
}

fn sentence_start(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn row(out: &mut String, cells: &[String]) {
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn find<'a>(fold: &'a FoldResult, model: &str) -> Option<&'a Measured> {
    fold.models.iter().find(|m| m.model == model)
}

/// All models, in the order of the first fold that has most of them.
fn model_names(folds: &[FoldResult]) -> Vec<String> {
    let longest = folds.iter().rev().max_by_key(|f| f.models.len());
    longest.map_or(Vec::new(), |f| f.models.iter().map(|m| m.model.clone()).collect())
}

fn summarise(model: &str, kind: Kind, folds: &[&FoldResult], seed: u64) -> Option<Summary> {
    let measured: Vec<&Measured> = folds.iter().filter_map(|fold| find(fold, model)).collect();
    if measured.is_empty() {
        return None;
    }
    let count = measured.len() as f64;
    let mean =
        |value: fn(&Scores) -> f64| measured.iter().map(|m| value(&m.scores)).sum::<f64>() / count;
    // A fold without a value leaves the mean without one too: nothing is hidden by averaging.
    let defined = |value: fn(&Scores) -> Option<f64>| {
        let values: Option<Vec<f64>> = measured.iter().map(|m| value(&m.scores)).collect();
        values.map(|v| v.iter().sum::<f64>() / count)
    };
    let draws: Vec<&[f64]> = measured.iter().map(|m| m.draws.as_slice()).collect();
    Some(Summary {
        model: model.to_owned(),
        kind,
        folds: measured.len(),
        pearson: defined(|s| s.pearson),
        pearson_interval: over_sections(&draws, seed),
        spearman: defined(|s| s.spearman),
        mse: mean(|s| s.mse),
        mae: mean(|s| s.mae),
        flat_pearson: defined(|s| s.flat_pearson),
    })
}

fn over_sections(draws: &[&[f64]], seed: u64) -> Option<[f64; 2]> {
    match draws {
        [only] => interval(only),
        several => interval(&bootstrap_sections(several, RESAMPLES, seed)),
    }
}

fn compare(
    candidate: &str,
    baselines: &[String],
    kind: Kind,
    folds: &[&FoldResult],
    seed: u64,
) -> Option<Comparison> {
    let own = summarise(candidate, kind, folds, seed)?;
    let best = baselines
        .iter()
        .filter_map(|name| summarise(name, kind, folds, seed))
        .filter(|s| s.folds == own.folds)
        .max_by(|a, b| a.pearson.unwrap_or(-1.0).total_cmp(&b.pearson.unwrap_or(-1.0)))?;
    let differences: Vec<Vec<f64>> = folds
        .iter()
        .filter_map(|fold| {
            let (a, b) = (find(fold, candidate)?, find(fold, &best.model)?);
            Some(a.draws.iter().zip(&b.draws).map(|(a, b)| a - b).collect())
        })
        .collect();
    let draws: Vec<&[f64]> = differences.iter().map(Vec::as_slice).collect();
    Some(Comparison {
        model: candidate.to_owned(),
        against: best.model,
        kind,
        difference: own.pearson? - best.pearson?,
        interval: over_sections(&draws, seed),
    })
}

#[cfg(test)]
mod tests {
    use super::super::metrics::bootstrap;
    use super::*;
    use nalgebra::DMatrix;

    fn result(name: &str, kind: Kind, noise: &[(&str, f64)]) -> FoldResult {
        let truth = DMatrix::from_fn(30, 4, |i, j| ((i * 7 + j * 5) % 13) as f64);
        let models = noise.iter().map(|(model, size)| {
            let predicted = DMatrix::from_fn(30, 4, |i, j| {
                truth[(i, j)] + size * (((i * 11 + j * 3) % 17) as f64 - 8.0)
            });
            let draws = bootstrap(&predicted, &truth, 50, 1);
            let scores = Scores::new(&predicted, &truth, &draws);
            Measured {
                model: model.to_string(),
                scores,
                chosen: serde_json::Value::Null,
                gene_pearson: BTreeMap::new(),
                draws,
            }
        });
        FoldResult {
            fold: Fold {
                name: name.into(),
                train: vec!["x".into()],
                test: vec![name.into()],
                unet: None,
            },
            kind,
            training_tiles: 10,
            genes: vec!["G".into(); 4],
            models: models.collect(),
        }
    }

    #[test]
    fn the_candidate_is_compared_with_the_best_baseline_of_each_kind() {
        let folds = vec![
            result("a", Kind::WithinPatient, &[("bad", 2.0), ("good", 0.5), ("fused", 0.2)]),
            result("b", Kind::WithinPatient, &[("bad", 2.0), ("good", 0.5), ("fused", 0.2)]),
            result("c", Kind::AcrossPatients, &[("bad", 0.4), ("good", 0.5)]),
        ];
        let evaluation =
            Evaluation::new("d".into(), 1, folds, "fused", &["bad".to_owned(), "good".to_owned()]);
        assert_eq!(evaluation.comparisons.len(), 1);
        let comparison = &evaluation.comparisons[0];
        assert_eq!(comparison.against, "good");
        assert!(comparison.difference > 0.0 && comparison.interval.unwrap()[0] > 0.0);

        let markdown = evaluation.markdown();
        let table: Vec<&str> = markdown.lines().filter(|l| l.starts_with('|')).collect();
        assert_eq!(table.len(), 5);
        let columns = |line: &str| line.matches(" | ").count();
        assert!(table.iter().all(|line| columns(line) == columns(table[0])));
        assert!(table[4].contains('–'), "a model without a fold leaves its cell empty");
    }
}
