//! Drawings of the page, as SVG.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::escape;
use crate::bench::quant::report::{Layers, Map, Row};

/// Layers shown a model, the noisiest.
const WORST_LAYERS: usize = 15;

/// Layers below this stand out.
const NOISY_DB: f64 = 20.0;

/// Colours of the models.
const COLOURS: [&str; 8] =
    ["#3366aa", "#cc4433", "#339955", "#aa7722", "#8855aa", "#117788", "#aa3377", "#666666"];

/// Where a drawing's area lies, in px.
struct Frame {
    width: f64,
    height: f64,
    left: f64,
    bottom: f64,
}

const TOP: f64 = 12.0;
const RIGHT: f64 = 14.0;

/// An axis from its lowest to its highest tick.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// Round ticks around `values`, with room at both ends; below zero only where a value is.
    fn around(values: &[f64]) -> Self {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let room = ((high - low) * 0.1).max(high.abs() * 1e-4).max(1e-9);
        let lowest = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
        let step = round_step((high + room - lowest) / 5.0);
        Self {
            low: (lowest / step).floor() * step,
            high: ((high + room) / step).ceil() * step,
            step,
        }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|k| self.low + k as f64 * self.step)
    }

    /// A tick in as many digits as tell it from the next.
    fn label(&self, tick: f64) -> String {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        format!("{tick:.digits$}")
    }
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= least).unwrap_or(least)
}

impl Frame {
    fn x(&self, axis: &Axis, value: f64) -> f64 {
        let inner = self.width - self.left - RIGHT;
        self.left + (value - axis.low) / (axis.high - axis.low) * inner
    }

    fn y(&self, axis: &Axis, value: f64) -> f64 {
        let inner = self.height - self.bottom - TOP;
        self.height - self.bottom - (value - axis.low) / (axis.high - axis.low) * inner
    }
}

/// Points of all rows, and a line through those that no other beats in both.
pub fn scatter(
    rows: &[Row],
    (accuracy_name, accuracy): (&str, fn(&Row) -> Option<f64>),
    cost_name: &str,
    cost: fn(&Row) -> Option<f64>,
) -> String {
    let points: Vec<(f64, f64, &Row)> = rows
        .iter()
        .filter(|row| row.problem.is_none())
        .filter_map(|row| Some((cost(row)?, accuracy(row)?, row)))
        .filter(|point| point.0.is_finite() && point.1.is_finite())
        .collect();
    if points.is_empty() {
        return String::new();
    }
    let frame = Frame { width: 536.0, height: 340.0, left: 72.0, bottom: 44.0 };
    let x_axis = Axis::around(&points.iter().map(|p| p.0).collect::<Vec<_>>());
    let y_axis = Axis::around(&points.iter().map(|p| p.1).collect::<Vec<_>>());
    let (right, floor) = (frame.width - RIGHT, frame.height - frame.bottom);
    let mut svg = format!(
        "<figure><svg width=\"{}\" height=\"{}\" role=\"img\" aria-label=\"{accuracy_name} against \
         {cost_name}\">",
        frame.width, frame.height
    );
    for tick in x_axis.ticks() {
        let x = frame.x(&x_axis, tick);
        let _ = write!(
            svg,
            "<path d=\"M{x:.1} {TOP}V{floor}\" stroke=\"#eee\"/><text x=\"{x:.1}\" y=\"{}\" \
             text-anchor=\"middle\">{}</text>",
            floor + 15.0,
            x_axis.label(tick)
        );
    }
    for tick in y_axis.ticks() {
        let y = frame.y(&y_axis, tick);
        let _ = write!(
            svg,
            "<path d=\"M{} {y:.1}H{right}\" stroke=\"#eee\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            frame.left,
            frame.left - 6.0,
            y + 4.0,
            y_axis.label(tick)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{cost_name}</text><text \
         transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{accuracy_name}</text>",
        (right + frame.left) / 2.0,
        frame.height - 8.0,
        (floor + TOP) / 2.0
    );
    let beaten = |p: &(f64, f64, &Row)| {
        points.iter().any(|q| q.0 <= p.0 && q.1 >= p.1 && (q.0 < p.0 || q.1 > p.1))
    };
    let mut front: Vec<(f64, f64)> =
        points.iter().filter(|p| !beaten(p)).map(|p| (p.0, p.1)).collect();
    front.sort_by(|a, b| a.0.total_cmp(&b.0));
    front.dedup();
    let line: Vec<String> = front
        .iter()
        .map(|(px, py)| format!("{:.1},{:.1}", frame.x(&x_axis, *px), frame.y(&y_axis, *py)))
        .collect();
    let _ = write!(
        svg,
        "<polyline class=\"pareto\" points=\"{}\" fill=\"none\" stroke=\"#888\" \
         stroke-dasharray=\"5 3\"/>",
        line.join(" ")
    );
    let (mut models, mut engines): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (px, py, row) in &points {
        let _ = write!(
            svg,
            "<path d=\"{}\" fill=\"{}\" fill-opacity=\".75\" stroke=\"#fff\"><title>{} on {}, {} \
             thread(s): {py:.5} at {px:.2}</title></path>",
            shape(place(&mut engines, &row.engine), frame.x(&x_axis, *px), frame.y(&y_axis, *py)),
            COLOURS[place(&mut models, &row.model) % COLOURS.len()],
            escape(&row.model),
            escape(&row.engine),
            row.threads,
        );
    }
    svg.push_str("</svg><figcaption>Dashed: the Pareto front. ");
    for (k, model) in models.iter().enumerate() {
        let colour = COLOURS[k % COLOURS.len()];
        let _ = write!(svg, "<span style=\"color:{colour}\">■ {}</span> ", escape(model));
    }
    for (k, engine) in engines.iter().enumerate() {
        let _ = write!(
            svg,
            " <svg width=\"14\" height=\"12\"><path d=\"{}\" fill=\"#555\"/></svg>{}",
            shape(k, 7.0, 7.0),
            escape(engine)
        );
    }
    svg + "</figcaption></figure>\n"
}

/// The place of `name` among the names seen so far.
fn place<'a>(known: &mut Vec<&'a str>, name: &'a str) -> usize {
    known.iter().position(|other| *other == name).unwrap_or_else(|| {
        known.push(name);
        known.len() - 1
    })
}

/// The outline of a mark around a point: each engine has its own.
fn shape(kind: usize, x: f64, y: f64) -> String {
    match kind % 4 {
        0 => format!("M{:.1} {y:.1}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z", x - 5.0),
        1 => format!("M{:.1} {:.1}h9v9h-9Z", x - 4.5, y - 4.5),
        2 => format!("M{x:.1} {:.1}l5.5 10h-11Z", y - 6.0),
        _ => format!("M{x:.1} {:.1}l6 6l-6 6l-6 -6Z", y - 6.0),
    }
}

/// All layers as a strip in graph order, then the noisiest by name.
pub fn layers(layers: &Layers) -> String {
    let mut text = format!("<h2>Layers of {}</h2>\n", escape(&layers.model));
    if let Some(problem) = &layers.problem {
        let _ = writeln!(text, "<p class=\"bad\">{}</p>", escape(problem));
        return text;
    }
    let frame = Frame { width: 1088.0, height: 150.0, left: 44.0, bottom: 10.0 };
    let top = layers.noise.iter().map(|layer| layer.sqnr_db.min(80.0)).fold(NOISY_DB, f64::max);
    let axis = Axis { low: 0.0, high: (top / 20.0).ceil() * 20.0, step: 20.0 };
    let step = (frame.width - frame.left - RIGHT) / layers.noise.len() as f64;
    let _ = write!(
        text,
        "<svg width=\"{}\" height=\"{}\" role=\"img\" aria-label=\"SQNR of each layer\">",
        frame.width, frame.height
    );
    for tick in axis.ticks() {
        let y = frame.y(&axis, tick);
        let _ = write!(
            text,
            "<path d=\"M{} {y:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{tick:.0} dB</text>",
            frame.left,
            frame.width - RIGHT,
            frame.left - 4.0,
            y + 4.0
        );
    }
    for (index, layer) in layers.noise.iter().enumerate() {
        let y = frame.y(&axis, layer.sqnr_db.clamp(0.5, axis.high));
        let colour = if layer.sqnr_db < NOISY_DB { "#cc4433" } else { "#3366aa" };
        let _ = write!(
            text,
            "<rect x=\"{:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{:.1}\" fill=\"{colour}\">\
             <title>{}: {:.1} dB</title></rect>",
            frame.left + index as f64 * step,
            (step * 0.85).max(0.5),
            frame.height - frame.bottom - y,
            escape(&layer.tensor),
            layer.sqnr_db
        );
    }
    let _ = write!(
        text,
        "</svg>\n<p>SQNR of the values of every layer that both graphs have, in graph order (red: below \
         {NOISY_DB} dB). The noisiest, with the range of their values in both graphs:</p>\n<div \
         class=\"scroll\"><table><tr><th>tensor</th><th>SQNR dB</th><th>float32 from</th><th>to</th>\
         <th>here from</th><th>to</th></tr>"
    );
    let mut worst: Vec<_> = layers.noise.iter().collect();
    worst.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    for layer in worst.iter().take(WORST_LAYERS) {
        let _ = write!(text, "<tr><td>{}</td><td>{:.1}</td>", escape(&layer.tensor), layer.sqnr_db);
        for end in layer.reference.iter().chain(&layer.other) {
            let _ = write!(text, "<td>{end:.3}</td>");
        }
        text.push_str("</tr>");
    }
    text + "</table></div>\n"
}

/// A tile's centre and its value.
type Dot = ((f64, f64), f64);

/// Where on the slides predictions moved.
pub fn tiles(map: &Map) -> String {
    let mut slides: BTreeMap<&str, Vec<Dot>> = BTreeMap::new();
    for (slide, centre, value) in &map.tiles {
        slides.entry(slide).or_default().push((*centre, *value));
    }
    let top = map.tiles.iter().map(|tile| tile.2).fold(0.0, f64::max).max(1e-12);
    let mut text = format!("<h3>{} <small>0 <svg width=\"122\" height=\"10\">", escape(&map.title));
    for step in 0..12 {
        let _ = write!(
            text,
            "<rect x=\"{}\" width=\"10\" height=\"10\" fill=\"{}\"/>",
            step * 10,
            shade(f64::from(step) / 11.0)
        );
    }
    let _ = write!(text, "</svg> {top:.3}</small></h3>\n<div class=\"row\">");
    for (slide, tiles) in slides {
        let bound = |pick: fn(&(f64, f64)) -> f64| {
            let values = tiles.iter().map(|(centre, _)| pick(centre));
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)))
        };
        let ((left, right), (up, down)) = (bound(|c| c.0), bound(|c| c.1));
        let side = 180.0;
        let scale = side / (right - left).max(down - up).max(1.0);
        let dot = (side / (tiles.len() as f64).sqrt() * 0.8).clamp(2.0, 14.0);
        let _ = write!(
            text,
            "<figure><svg width=\"{0}\" height=\"{0}\" style=\"background:#f6f6f6\">",
            side + 20.0
        );
        for ((cx, cy), value) in &tiles {
            let _ = write!(
                text,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{dot:.1}\" height=\"{dot:.1}\" fill=\"{}\" \
                 stroke=\"#ccc\" stroke-width=\".5\"><title>{value:.4}</title></rect>",
                (cx - left) * scale + 10.0 - dot / 2.0,
                (cy - up) * scale + 10.0 - dot / 2.0,
                shade(value / top)
            );
        }
        let _ = write!(text, "</svg><figcaption>{}</figcaption></figure>", escape(slide));
    }
    text + "</div>\n"
}

/// White to dark red.
fn shade(share: f64) -> String {
    let share = share.clamp(0.0, 1.0);
    let mix = |dark: f64| 255.0 + (dark - 255.0) * share;
    format!("rgb({:.0},{:.0},{:.0})", mix(150.0), mix(10.0), mix(20.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round() {
        let axis = Axis::around(&[4.0, 62.0, 355.0]);
        assert_eq!((axis.low, axis.high, axis.step), (0.0, 400.0, 100.0));
        assert_eq!(axis.ticks().count(), 5);
        let fine = Axis::around(&[0.3873, 0.3882]);
        assert!(fine.low < 0.3873 && fine.high > 0.3882 && fine.label(fine.low).len() <= 6);
        let one = Axis::around(&[0.35]);
        assert!(one.low < 0.35 && one.high > 0.35);
    }

    #[test]
    fn shades_go_from_white_to_dark() {
        assert_eq!(shade(0.0), "rgb(255,255,255)");
        assert_eq!(shade(7.0), "rgb(150,10,20)");
    }
}
