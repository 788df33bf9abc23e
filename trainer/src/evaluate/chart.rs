//! The evaluation as a picture: mean per-gene Pearson of every model with its interval, and the
//! folds as dots.

use diffbulk::picture::{Anchor, INK, PAPER, Picture, QUIET, text_width};
use image::Rgb;

use super::report::{Evaluation, Summary};
use super::splits::Kind;
use crate::{Error, Result};

const BAR: Rgb<u8> = Rgb([160, 174, 193]);
const OWN: Rgb<u8> = Rgb([38, 110, 160]);
const GRID: Rgb<u8> = Rgb([225, 227, 230]);
const DOT: Rgb<u8> = Rgb([20, 20, 20]);
const ROW: i64 = 30;
const PANEL: i64 = 420;
const MARGIN: i64 = 24;
const TOP: i64 = 70;

/// Draws the mean figures of every model, a panel a kind of fold.
pub fn draw(evaluation: &Evaluation) -> Result<Picture> {
    let kinds: Vec<Kind> = [Kind::WithinPatient, Kind::AcrossPatients]
        .into_iter()
        .filter(|kind| evaluation.summary.iter().any(|s| s.kind == *kind))
        .collect();
    let mut models: Vec<&str> = Vec::new();
    for summary in &evaluation.summary {
        if !models.contains(&summary.model.as_str()) {
            models.push(&summary.model);
        }
    }
    if models.is_empty() {
        return Err(Error::Request("there is no figure to draw; measure at least one fold".into()));
    }
    let label = models.iter().map(|m| text_width(13.0, m)).fold(0.0, f32::max).ceil() as i64;
    let left = MARGIN + label + 12;
    let width = left + kinds.len() as i64 * (PANEL + MARGIN);
    let height = TOP + models.len() as i64 * ROW + 56;
    let mut picture = Picture::new(width as u32, height as u32, PAPER);
    let title = format!("{}: mean per-gene Pearson on held-out sections", evaluation.dataset);
    picture.text(MARGIN as f32, 28.0, 17.0, INK, Anchor::Start, &title);

    let top_value = evaluation
        .summary
        .iter()
        .flat_map(|s| s.pearson_interval.map(|i| i[1]).or(s.pearson))
        .chain(evaluation.folds.iter().flat_map(|f| &f.models).filter_map(|m| m.scores.pearson))
        .fold(0.1, f64::max);
    let limit = (top_value * 10.0).ceil() / 10.0;
    for (index, kind) in kinds.iter().enumerate() {
        let x0 = left + index as i64 * (PANEL + MARGIN);
        panel(&mut picture, evaluation, &models, *kind, x0, limit);
    }
    for (row, model) in models.iter().enumerate() {
        let y = TOP + row as i64 * ROW + 19;
        picture.text((left - 10) as f32, y as f32, 13.0, INK, Anchor::End, model);
    }
    let legend = "bar: mean over folds; line: 95 % bootstrap interval over sections and tiles; \
                  dots: folds; no bar: undefined";
    picture.text(MARGIN as f32, (height - 12) as f32, 12.0, QUIET, Anchor::Start, legend);
    Ok(picture)
}

fn panel(
    picture: &mut Picture,
    evaluation: &Evaluation,
    models: &[&str],
    kind: Kind,
    x0: i64,
    limit: f64,
) {
    let place = |value: f64| x0 + (value.max(0.0) / limit * PANEL as f64) as i64;
    let bottom = TOP + models.len() as i64 * ROW;
    let folds: Vec<_> = evaluation.folds.iter().filter(|f| f.kind == kind).collect();
    let names: Vec<&str> = folds.iter().map(|f| f.fold.name.as_str()).collect();
    let heading = format!("{} ({})", kind.description(), names.join(", "));
    picture.text(x0 as f32, (TOP - 16) as f32, 13.0, INK, Anchor::Start, &heading);
    let ticks = (limit * 10.0).round() as i64;
    for tick in 0..=ticks {
        let x = place(tick as f64 / 10.0);
        picture.rectangle([x, TOP, x + 1, bottom], GRID, 1.0);
        let text = format!("{:.1}", tick as f64 / 10.0);
        picture.text(x as f32, (bottom + 16) as f32, 12.0, QUIET, Anchor::Middle, &text);
    }
    for (row, model) in models.iter().enumerate() {
        let y = TOP + row as i64 * ROW;
        let of_model = |s: &&Summary| s.model == **model && s.kind == kind;
        let Some(summary) = evaluation.summary.iter().find(of_model) else { continue };
        if let Some(value) = summary.pearson {
            let color = if *model == super::run::FUSED { OWN } else { BAR };
            picture.rectangle([x0, y + 6, place(value), y + ROW - 6], color, 1.0);
            let end = summary.pearson_interval.map_or(value, |i| i[1]);
            let text = format!("{value:.3}");
            let x = place(end.max(value)) + 8;
            picture.text(x as f32, (y + 19) as f32, 12.0, INK, Anchor::Start, &text);
        }
        if let Some([low, high]) = summary.pearson_interval {
            let middle = y + ROW / 2;
            picture.rectangle([place(low), middle - 1, place(high) + 1, middle + 1], INK, 0.8);
        }
        if folds.len() > 1 {
            for fold in &folds {
                let measured = fold.models.iter().find(|m| m.model == *model);
                if let Some(value) = measured.and_then(|m| m.scores.pearson) {
                    let (x, middle) = (place(value), y + ROW / 2);
                    picture.rectangle([x - 2, middle - 2, x + 2, middle + 2], DOT, 0.9);
                }
            }
        }
    }
}
