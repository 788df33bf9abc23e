//! The rules of a benchmark in sentences, printed with its results.

use super::figures;
use super::plan::{ModelFacts, Settings};
use super::report::file_name;
use super::tiles::Tiles;

/// The rules of this benchmark, as they were for these results.
pub(super) fn rules(
    settings: &Settings,
    models: &[ModelFacts],
    reference: usize,
    tiles: &Tiles,
    tiles_sha256: &str,
) -> Vec<String> {
    let slides = tiles.slide_names();
    let mut rules = vec![
        format!(
            "Tiles: {} of {} px from slides {}; SHA-256 of their pixels {}.",
            tiles.images.len(),
            tiles.side,
            slides.join(", "),
            tiles_sha256
        ),
        format!(
            "Every cell is a process of its own, run {} times, interleaved: each cell once, then \
             each again. Before {} timed tiles come {} others. Medians over runs; latencies of all \
             runs together.",
            settings.repetitions, settings.timed, settings.warm_up
        ),
        "Threads are tiles at a time, one session each. Peak memory is the process's, its \
         program and libraries included."
            .to_owned(),
        format!(
            "Pearson: per output over the tiles of a slide, then the mean over outputs, then over \
             slides. Intervals: 95 %, {} bootstrap resamples of the tiles, seed {}; differences on \
             the same resamples.",
            figures::RESAMPLES,
            settings.seed
        ),
        "SQNR: power of what varies between tiles over power of the difference from float32."
            .to_owned(),
        format!("Machine: {}.", machine()),
        format!("diffbulk {}.", crate::VERSION),
    ];
    rules.extend(models.iter().filter_map(|model| calibration(model, &slides)));
    if let Some(model) = models.get(reference) {
        rules.push(format!("Compared with {}.", file_name(&model.path)));
        let seen: Vec<&str> =
            slides.iter().filter(|s| model.trained_on.contains(s)).map(String::as_str).collect();
        rules.push(if model.trained_on.is_empty() {
            "The model does not say what it was trained on: whether these figures are held out is \
             for you to know."
                .to_owned()
        } else if seen.is_empty() {
            "None of these slides was in its training.".to_owned()
        } else {
            format!(
                "NOT HELD OUT: it was trained on {}. Correlations are flattering; differences \
                 between precisions still tell.",
                seen.join(", ")
            )
        });
    }
    rules
}

/// The processor and its number of cores.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {cores} cores, {}", std::env::consts::OS)
}

/// What a quantised model was calibrated on, as its file says.
fn calibration(model: &ModelFacts, slides: &[String]) -> Option<String> {
    let told = model.recipe.as_ref()?.get("calibration")?;
    let text = |key: &str| told[key].as_str().unwrap_or("not stated");
    let own: Vec<&str> = told["slides"].as_array()?.iter().filter_map(|s| s.as_str()).collect();
    let seen: Vec<&str> = own.iter().copied().filter(|s| slides.iter().any(|t| t == s)).collect();
    let verdict = match seen.as_slice() {
        [] => "none of these slides".to_owned(),
        seen => format!("NOT HELD OUT: {} of these slides as well", seen.join(", ")),
    };
    Some(format!(
        "{} was calibrated on {} tiles of {} ({}; seed {}, calibrator {}, SHA-256 of their pixels \
         {}): {verdict}.",
        file_name(&model.path),
        told["tiles"],
        own.join(", "),
        text("dataset"),
        told["seed"],
        text("calibrator"),
        text("sha256"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calibration_on_benchmarked_slides_is_told() {
        let recipe = serde_json::json!({ "calibration": {
            "dataset": "HER2ST", "slides": ["C2", "C3"], "tiles": 64, "seed": 0,
            "sha256": "abc", "calibrator": "mse" } });
        let model = ModelFacts {
            path: "m-int8.onnx".into(),
            sha256: None,
            bytes: None,
            precision: "int8".into(),
            recipe: Some(recipe),
            panel: Vec::new(),
            trained_on: Vec::new(),
            problem: None,
        };
        let told = |slide: &str| calibration(&model, &[slide.to_owned()]).unwrap();
        assert!(told("C2").contains("NOT HELD OUT: C2") && told("C2").contains("64 tiles"));
        assert!(told("B4").contains("none of these slides"), "{}", told("B4"));
        assert!(calibration(&ModelFacts { recipe: None, ..model }, &[]).is_none());
    }
}
