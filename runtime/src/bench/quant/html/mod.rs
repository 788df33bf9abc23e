//! The results as one page that needs nothing else: tables and drawings, no script, no address.

mod charts;

use std::collections::BTreeMap;
use std::fmt::Write;

use super::figures::percentile;
use super::report::{EXACT_DB, Results, Row};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:1240px;margin:2em auto;\
    padding:0 1em;color:#222}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}\
    h3{font-size:1em;margin:1.2em 0 .4em}small{font-weight:normal;color:#555}\
    table{border-collapse:collapse;font-size:13px}td,th{padding:.25em .6em;text-align:right;\
    border-bottom:1px solid #ddd;white-space:nowrap}th{background:#f4f4f4}td:first-child,\
    th:first-child,.text{text-align:left}.bad{color:#b22}.scroll{overflow-x:auto}\
    .row{display:flex;flex-wrap:wrap;gap:16px}figure{margin:0}figcaption{font-size:13px;\
    color:#555}svg text{font:11px system-ui,sans-serif;fill:#444}li{overflow-wrap:anywhere}\
    pre{font-size:12px;overflow-x:auto}";

/// The page.
pub fn page(results: &Results) -> String {
    let mut body = String::new();
    body.push_str("<h1>What quantisation costs and gains</h1>\n");
    body.push_str("<h2>Accuracy</h2>\n");
    body.push_str(&table(&results.rows, ACCURACY));
    body.push_str("<h2>Speed, memory and size</h2>\n");
    body.push_str(&table(&results.rows, COSTS));
    body.push_str(&failures(&results.rows));
    body.push_str("<h2>Accuracy against latency and size</h2>\n<div class=\"row\">");
    let accuracy = accuracy_name(&results.rows);
    let latency: fn(&Row) -> Option<f64> = |row| row.p50_ms;
    let size: fn(&Row) -> Option<f64> = |row| row.file_bytes.map(|bytes| bytes as f64 / 1e6);
    for (name, value) in [("median latency, ms", latency), ("file size, MB", size)] {
        body.push_str(&charts::scatter(&results.rows, accuracy, name, value));
    }
    body.push_str("</div>\n");
    body.push_str(&output_table(results));
    for layers in results.layers.iter().filter(|l| !l.noise.is_empty() || l.problem.is_some()) {
        body.push_str(&charts::layers(layers));
    }
    if !results.maps.is_empty() {
        body.push_str("<h2>Where predictions moved</h2>\n<p>Mean absolute difference from float32 of each tile, in the outputs' unit.</p>\n");
        results.maps.iter().for_each(|map| body.push_str(&charts::tiles(map)));
    }
    body.push_str("<h2>Rules</h2>\n<ul>");
    for rule in &results.rules {
        let _ = write!(body, "<li>{}</li>", escape(rule));
    }
    body.push_str("</ul>\n");
    for model in &results.models {
        if let Some(recipe) = &model.recipe {
            let text = serde_json::to_string_pretty(recipe).unwrap_or_default();
            let _ = writeln!(
                body,
                "<details><summary>Recipe of {}</summary><pre>{}</pre></details>",
                escape(&model.path.display().to_string()),
                escape(&text)
            );
        }
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>diffbulk bench quant</title><style>{STYLE}</style>\
         </head>\n<body>\n{body}</body></html>\n"
    )
}

/// Which accuracy the drawings show: correlation where something was measured, else noise.
fn accuracy_name(rows: &[Row]) -> (&'static str, fn(&Row) -> Option<f64>) {
    if rows.iter().any(|row| row.pearson.is_some()) {
        ("mean per-gene Pearson", |row| row.pearson)
    } else {
        ("SQNR, dB", |row| row.sqnr_db.map(|db| db.min(100.0)))
    }
}

/// A column: its head and what it says of a row.
type Column = (&'static str, fn(&Row) -> String);

/// What the table of accuracy says.
const ACCURACY: &[Column] = &[
    ("Pearson", |row| number(row.pearson, 4)),
    ("95 %", |row| range(row.pearson_low, row.pearson_high, 3)),
    ("against float32", |row| signed(row.pearson_difference)),
    ("95 %", |row| range(row.difference_low, row.difference_high, 4)),
    ("MAE", |row| number(row.mae, 4)),
    ("SQNR dB", |row| row.sqnr_db.map_or("–".into(), decibels)),
    ("largest diff.", |row| row.largest_difference.map_or("–".into(), |v| format!("{v:.1e}"))),
    ("SHA-256 of outputs", |row| row.outputs_sha256.chars().take(8).collect()),
];

/// What the table of costs says.
const COSTS: &[Column] = &[
    ("tiles/s", |row| number(row.tiles_per_s, 1)),
    ("p50 ms", |row| number(row.p50_ms, 1)),
    ("p95", |row| number(row.p95_ms, 1)),
    ("p99", |row| number(row.p99_ms, 1)),
    ("CPU ms/tile", |row| number(row.cpu_ms, 1)),
    ("J/tile", |row| number(row.energy_j, 3)),
    ("peak MB", |row| number(row.peak_mb, 0)),
    ("load ms", |row| number(row.load_ms, 0)),
    ("file MB", |row| number(row.file_bytes.map(|bytes| bytes as f64 / 1e6), 2)),
    ("runs", |row| row.runs.to_string()),
];

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
}

fn signed(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:+.5}"))
}

fn range(low: Option<f64>, high: Option<f64>, digits: usize) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{low:.digits$} to {high:.digits$}"),
        _ => "–".to_owned(),
    }
}

/// One line a row; what failed is told in `failures` only.
fn table(rows: &[Row], columns: &[Column]) -> String {
    let mut text = String::from(
        "<div class=\"scroll\"><table><tr><th>model</th><th class=\"text\">precision</th>\
         <th class=\"text\">engine</th><th>threads</th>",
    );
    for (head, _) in columns {
        let _ = write!(text, "<th>{head}</th>");
    }
    text.push_str("</tr>\n");
    for row in rows.iter().filter(|row| row.problem.is_none()) {
        let _ = write!(
            text,
            "<tr><td>{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td><td>{}</td>",
            escape(&row.model),
            escape(&row.precision),
            escape(&row.engine),
            row.threads
        );
        for (_, cell) in columns {
            let _ = write!(text, "<td>{}</td>", cell(row));
        }
        text.push_str("</tr>\n");
    }
    text + "</table></div>\n"
}

/// What failed, one line a reason.
fn failures(rows: &[Row]) -> String {
    let mut reasons: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for row in rows {
        if let Some(problem) = &row.problem {
            let cell = format!("{} x {}", row.engine, row.threads);
            reasons.entry((&row.model, problem)).or_default().push(cell);
        }
    }
    if reasons.is_empty() {
        return String::new();
    }
    let mut text = String::from("<h2>What failed</h2>\n<ul>");
    for ((model, problem), cells) in reasons {
        let _ = write!(
            text,
            "<li><b>{}</b> ({}): <span class=\"bad\">{}</span></li>",
            escape(model),
            escape(&cells.join(", ")),
            escape(problem)
        );
    }
    text + "</ul>\n"
}

/// Noise of single outputs: one line a model and engine.
fn output_table(results: &Results) -> String {
    if results.outputs.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "<h2>Noise of single outputs</h2>\n<div class=\"scroll\"><table><tr><th>model</th>\
         <th class=\"text\">engine</th><th>threads</th><th>lowest dB</th><th>median</th><th>highest</th>\
         <th class=\"text\">noisiest outputs</th></tr>\n",
    );
    for noise in &results.outputs {
        let row = &results.rows[noise.row];
        let mut sorted = noise.sqnr_db.clone();
        sorted.sort_by(f64::total_cmp);
        let _ = write!(
            text,
            "<tr><td>{}</td><td class=\"text\">{}</td><td>{}</td>",
            escape(&row.model),
            escape(&row.engine),
            row.threads
        );
        for share in [0.0, 0.5, 1.0] {
            let _ = write!(text, "<td>{}</td>", decibels(percentile(&sorted, share)));
        }
        let _ = writeln!(text, "<td class=\"text\">{}</td></tr>", escape(&row.worst_outputs));
    }
    text + "</table></div>\n"
}

/// A ratio in dB, in words where nothing differs.
fn decibels(db: f64) -> String {
    if db >= EXACT_DB { "exact".into() } else { format!("{db:.1}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::layers::LayerNoise;
    use super::super::report::{Layers, Map};
    use super::*;

    fn results() -> Results {
        let row = |model: &str, pearson: f64, ms: f64| Row {
            model: model.into(),
            precision: "int8".into(),
            engine: "tract".into(),
            threads: 1,
            pearson: Some(pearson),
            p50_ms: Some(ms),
            file_bytes: Some((ms * 1e6) as u64),
            sqnr_db: Some(30.0),
            ..Row::default()
        };
        let failed =
            Row { model: "broken.onnx".into(), problem: Some("a < b".into()), ..Row::default() };
        Results {
            rules: vec!["Tiles: 3 & more.".into()],
            models: Vec::new(),
            reference: 0,
            rows: vec![
                row("a.onnx", 0.35, 10.0),
                row("b.onnx", 0.34, 4.0),
                row("c.onnx", 0.30, 6.0),
                failed,
            ],
            outputs: Vec::new(),
            layers: vec![Layers {
                model: "b.onnx".into(),
                noise: vec![LayerNoise {
                    tensor: "conv".into(),
                    sqnr_db: 12.0,
                    reference: [-1.0, 2.0],
                    other: [-1.0, 2.5],
                }],
                problem: None,
            }],
            maps: vec![Map {
                title: "b.onnx on tract".into(),
                tiles: vec![("A".into(), (0.0, 0.0), 0.1), ("A".into(), (9.0, 5.0), 0.2)],
            }],
        }
    }

    #[test]
    fn the_page_holds_everything_and_needs_nothing() {
        let page = page(&results());
        for part in ["a.onnx", "Pareto", "broken.onnx", "a &lt; b", "conv: 12.0 dB", "3 &amp; more"]
        {
            assert!(page.contains(part), "{part}");
        }
        for address in ["http", "src=", "<script", "@import"] {
            assert!(!page.contains(address), "{address}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<table").count(), page.matches("</table>").count());
    }

    #[test]
    fn the_front_leaves_out_what_is_beaten() {
        let page = page(&results());
        let line = page.split("class=\"pareto\" points=\"").nth(1).unwrap();
        // Two of three points: c is slower and worse than b.
        assert_eq!(line.split('"').next().unwrap().split(' ').count(), 2);
    }
}
