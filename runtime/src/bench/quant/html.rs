//! The results as one page that needs nothing else: tables and drawings, no script, no address.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::report::{Layers, Map, Results, Row};

/// Layers shown a model, the noisiest.
const WORST_LAYERS: usize = 15;

/// Colours of the models, told apart by shape of the text beside them too.
const COLOURS: [&str; 8] =
    ["#3366aa", "#cc4433", "#339955", "#aa7722", "#8855aa", "#117788", "#aa3377", "#666666"];

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;\
    padding:0 1em;color:#222}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}\
    table{border-collapse:collapse;font-size:13px}td,th{padding:.25em .6em;text-align:right;\
    border-bottom:1px solid #ddd;white-space:nowrap}th{background:#f4f4f4}td:first-child,\
    th:first-child,td.text{text-align:left}.bad{color:#b22;white-space:normal}\
    .scroll{overflow-x:auto}.row{display:flex;flex-wrap:wrap;gap:1.5em}\
    figure{margin:0}figcaption{font-size:13px;color:#555}svg text{font:11px system-ui,sans-serif}";

/// The page.
pub fn page(results: &Results) -> String {
    let mut body = String::new();
    body.push_str("<h1>What quantisation costs and gains</h1>\n");
    body.push_str(&table(&results.rows));
    body.push_str("<h2>Accuracy against latency and size</h2>\n<div class=\"row\">");
    let accuracy = accuracy_name(&results.rows);
    let latency: fn(&Row) -> Option<f64> = |row| row.p50_ms;
    let size: fn(&Row) -> Option<f64> = |row| row.file_bytes.map(|bytes| bytes as f64 / 1e6);
    for (name, value) in [("median latency, ms", latency), ("file size, MB", size)] {
        body.push_str(&scatter(&results.rows, accuracy, name, value));
    }
    body.push_str("</div>\n");
    for layers in results.layers.iter().filter(|l| !l.noise.is_empty() || l.problem.is_some()) {
        body.push_str(&layer_bars(layers));
    }
    if !results.maps.is_empty() {
        body.push_str("<h2>Where predictions moved</h2>\n<p>Mean absolute difference from float32 of each tile, in the outputs' unit.</p>\n");
        results.maps.iter().for_each(|map| body.push_str(&tile_map(map)));
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

fn table(rows: &[Row]) -> String {
    let heads = [
        "model",
        "precision",
        "engine",
        "threads",
        "Pearson",
        "95 %",
        "difference",
        "95 %",
        "MAE",
        "SQNR dB",
        "largest diff",
        "tiles/s",
        "p50 ms",
        "p95",
        "p99",
        "CPU ms",
        "peak MB",
        "load ms",
        "file MB",
        "J/tile",
        "outputs",
    ];
    let mut text = String::from("<div class=\"scroll\"><table><tr>");
    for head in heads {
        let _ = write!(text, "<th>{head}</th>");
    }
    text.push_str("</tr>\n");
    for row in rows {
        let _ = write!(
            text,
            "<tr><td>{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td><td>{}</td>",
            escape(&row.model),
            escape(&row.precision),
            escape(&row.engine),
            row.threads
        );
        if let Some(problem) = &row.problem {
            let _ = writeln!(
                text,
                "<td class=\"text bad\" colspan=\"{}\">{}</td></tr>",
                heads.len() - 4,
                escape(problem)
            );
            continue;
        }
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "–".to_owned(),
        };
        let range = |low: Option<f64>, high: Option<f64>, digits: usize| match (low, high) {
            (Some(low), Some(high)) => format!("{low:.digits$} to {high:.digits$}"),
            _ => "–".to_owned(),
        };
        let cells = [
            number(row.pearson, 4),
            range(row.pearson_low, row.pearson_high, 3),
            row.pearson_difference.map_or("–".into(), |value| format!("{value:+.5}")),
            range(row.difference_low, row.difference_high, 4),
            number(row.mae, 4),
            row.sqnr_db.map_or("–".into(), |db| {
                if db >= 200.0 { "exact".into() } else { format!("{db:.1}") }
            }),
            row.largest_difference.map_or("–".into(), |value| format!("{value:.1e}")),
            number(row.tiles_per_s, 1),
            number(row.p50_ms, 1),
            number(row.p95_ms, 1),
            number(row.p99_ms, 1),
            number(row.cpu_ms, 1),
            number(row.peak_mb, 0),
            number(row.load_ms, 0),
            number(row.file_bytes.map(|bytes| bytes as f64 / 1e6), 2),
            number(row.energy_j, 3),
            row.outputs_sha256.chars().take(8).collect(),
        ];
        for cell in cells {
            let _ = write!(text, "<td>{cell}</td>");
        }
        text.push_str("</tr>\n");
    }
    text + "</table></div>\n"
}

/// Points of all rows, and a line through those that no other beats in both.
fn scatter(
    rows: &[Row],
    (accuracy_name, accuracy): (&str, fn(&Row) -> Option<f64>),
    cost_name: &str,
    cost: fn(&Row) -> Option<f64>,
) -> String {
    let points: Vec<(f64, f64, &Row)> =
        rows.iter().filter_map(|row| Some((cost(row)?, accuracy(row)?, row))).collect();
    if points.is_empty() {
        return String::new();
    }
    let (width, height, left, bottom) = (500.0, 330.0, 62.0, 40.0);
    let span = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let room = ((high - low) * 0.12).max(high.abs() * 1e-4).max(1e-9);
        (low - room, high + room)
    };
    let (x_low, x_high) = span(points.iter().map(|p| p.0).collect());
    let (y_low, y_high) = span(points.iter().map(|p| p.1).collect());
    let x = |value: f64| left + (value - x_low) / (x_high - x_low) * (width - left - 12.0);
    let y = |value: f64| {
        (height - bottom) - (value - y_low) / (y_high - y_low) * (height - bottom - 12.0)
    };
    let mut svg = format!(
        "<figure><svg width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{accuracy_name} \
         against {cost_name}\"><rect x=\"{left}\" y=\"12\" width=\"{}\" height=\"{}\" fill=\"none\" \
         stroke=\"#bbb\"/>",
        width - left - 12.0,
        height - bottom - 12.0
    );
    for step in 0..5 {
        let share = f64::from(step) / 4.0;
        let (vx, vy) = (x_low + (x_high - x_low) * share, y_low + (y_high - y_low) * share);
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{vy:.4}</text>",
            x(vx),
            height - bottom + 15.0,
            short(vx),
            left - 5.0,
            y(vy) + 4.0
        );
    }
    let mut front: Vec<(f64, f64)> = points
        .iter()
        .filter(|p| !points.iter().any(|q| q.0 <= p.0 && q.1 >= p.1 && (q.0 < p.0 || q.1 > p.1)))
        .map(|p| (p.0, p.1))
        .collect();
    front.sort_by(|a, b| a.0.total_cmp(&b.0));
    let line: Vec<String> =
        front.iter().map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py))).collect();
    let _ = write!(
        svg,
        "<polyline class=\"pareto\" points=\"{}\" fill=\"none\" stroke=\"#999\" \
         stroke-dasharray=\"4 3\"/>",
        line.join(" ")
    );
    let mut models: Vec<&str> = Vec::new();
    for (px, py, row) in &points {
        let place = models.iter().position(|known| *known == row.model).unwrap_or_else(|| {
            models.push(&row.model);
            models.len() - 1
        });
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"{}\" fill-opacity=\".8\"><title>{} on \
             {}, {} thread(s): {py:.5} at {}</title></circle>",
            x(*px),
            y(*py),
            COLOURS[place % COLOURS.len()],
            escape(&row.model),
            escape(&row.engine),
            row.threads,
            short(*px)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{cost_name}</text></svg><figcaption>\
         {accuracy_name} against {cost_name}; dashed: the Pareto front. ",
        (width + left) / 2.0,
        height - 8.0
    );
    for (place, model) in models.iter().enumerate() {
        let _ = write!(
            svg,
            "<span style=\"color:{}\">● {}</span> ",
            COLOURS[place % COLOURS.len()],
            escape(model)
        );
    }
    svg + "</figcaption></figure>\n"
}

fn layer_bars(layers: &Layers) -> String {
    let mut text = format!("<h2>Layers of {}</h2>\n", escape(&layers.model));
    if let Some(problem) = &layers.problem {
        let _ = writeln!(text, "<p class=\"bad\">{}</p>", escape(problem));
        return text;
    }
    // All layers as a strip in graph order, then the noisiest by name.
    let (width, height) = (1040.0, 110.0);
    let top = layers.noise.iter().map(|layer| layer.sqnr_db.min(80.0)).fold(1.0, f64::max);
    let step = width / layers.noise.len() as f64;
    let _ = write!(
        text,
        "<svg width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"SQNR of each layer\">"
    );
    for (index, layer) in layers.noise.iter().enumerate() {
        let tall = (layer.sqnr_db.clamp(0.0, 80.0) / top * (height - 6.0)).max(1.0);
        let colour = if layer.sqnr_db < 20.0 { "#cc4433" } else { "#3366aa" };
        let _ = write!(
            text,
            "<rect x=\"{:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{tall:.1}\" fill=\"{colour}\">\
             <title>{}: {:.1} dB</title></rect>",
            index as f64 * step,
            height - tall,
            (step * 0.85).max(0.5),
            escape(&layer.tensor),
            layer.sqnr_db
        );
    }
    text.push_str("</svg>\n<p>SQNR of every layer's values in graph order (red: below 20 dB). The noisiest:</p>\n<table><tr><th>tensor</th><th>dB</th></tr>");
    let mut worst: Vec<_> = layers.noise.iter().collect();
    worst.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    for layer in worst.iter().take(WORST_LAYERS) {
        let _ = write!(
            text,
            "<tr><td>{}</td><td>{:.1}</td></tr>",
            escape(&layer.tensor),
            layer.sqnr_db
        );
    }
    text + "</table>\n"
}

/// A tile's centre and its value.
type Dot = ((f64, f64), f64);

fn tile_map(map: &Map) -> String {
    let mut slides: BTreeMap<&str, Vec<Dot>> = BTreeMap::new();
    for (slide, centre, value) in &map.tiles {
        slides.entry(slide).or_default().push((*centre, *value));
    }
    let top = map.tiles.iter().map(|tile| tile.2).fold(0.0, f64::max).max(1e-12);
    let mut text = format!(
        "<h3>{} <small>(white 0, dark {top:.3})</small></h3>\n<div class=\"row\">",
        escape(&map.title)
    );
    for (slide, tiles) in slides {
        let fold = |pick: fn(&(f64, f64)) -> f64, start: f64, with: fn(f64, f64) -> f64| {
            tiles.iter().map(|(centre, _)| pick(centre)).fold(start, with)
        };
        let (left, right) =
            (fold(|c| c.0, f64::INFINITY, f64::min), fold(|c| c.0, f64::NEG_INFINITY, f64::max));
        let (up, down) =
            (fold(|c| c.1, f64::INFINITY, f64::min), fold(|c| c.1, f64::NEG_INFINITY, f64::max));
        let side = 190.0;
        let scale = side / (right - left).max(down - up).max(1.0);
        let dot = (side / (tiles.len() as f64).sqrt() * 0.8).clamp(2.0, 14.0);
        let _ = write!(
            text,
            "<figure><svg width=\"{0}\" height=\"{0}\" style=\"background:#f6f6f6\">",
            side + 20.0
        );
        for ((cx, cy), value) in &tiles {
            let pale = 255 - (value / top * 255.0) as u8;
            let _ = write!(
                text,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{dot:.1}\" height=\"{dot:.1}\" \
                 fill=\"rgb(255,{pale},{pale})\" stroke=\"#ddd\" stroke-width=\".5\"><title>{value:.4}\
                 </title></rect>",
                (cx - left) * scale + 10.0 - dot / 2.0,
                (cy - up) * scale + 10.0 - dot / 2.0,
            );
        }
        let _ = write!(text, "</svg><figcaption>{}</figcaption></figure>", escape(slide));
    }
    text + "</div>\n"
}

/// A number with as many digits as fit.
fn short(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::layers::LayerNoise;
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
            layers: vec![Layers {
                model: "b.onnx".into(),
                noise: vec![LayerNoise { tensor: "conv".into(), sqnr_db: 12.0 }],
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
