//! Heat maps: one PNG a chosen gene, tiles coloured over the slide's overview.
//!
//! Drawn genes are the ones the user asked for, or a handful that a reader of breast and other
//! carcinomas knows, or else the best predicted. Only their values are kept, four bytes a tile.

use std::path::PathBuf;

use image::{RgbImage, imageops};

use super::columns::check;
use super::{Context, Row, Sink, file_name};
use crate::Result;
use crate::picture::{Anchor, ColorMap, INK, PAPER, Picture, QUIET, fit_text, text_width};

/// Genes drawn unless the user asked for some: tumour, epithelium, keratin, stroma, immune, B cells.
const WELL_KNOWN: [&str; 6] = ["ERBB2", "EPCAM", "KRT19", "COL1A1", "CD74", "IGKC"];

/// Genes drawn at most when the user asked for many.
const MOST: usize = 24;

/// Longest side of the slide in the picture, in pixels.
const SLIDE_PX: u32 = 1000;

/// How much of a tile's colour covers the slide.
const COVER: f32 = 0.72;

const MAP: ColorMap = ColorMap::Viridis;

struct HeatmapSink {
    context: Context,
    /// Positions in the row of the genes that are drawn.
    drawn: Vec<usize>,
    /// Left, top, side of every tile in level-0 px.
    tiles: Vec<[f32; 3]>,
    /// One list a drawn gene.
    values: Vec<Vec<f32>>,
}

pub(super) fn open(context: &Context) -> Result<Box<dyn Sink>> {
    let drawn = choose(context);
    // A directory that cannot be written is better known before hours of prediction.
    for gene in &drawn {
        super::atomic::AtomicFile::create(&picture_path(context, *gene))?;
    }
    let values = vec![Vec::new(); drawn.len()];
    Ok(Box::new(HeatmapSink { context: context.clone(), drawn, tiles: Vec::new(), values }))
}

fn picture_path(context: &Context, gene: usize) -> PathBuf {
    context.file(&format!(".{}.png", file_name(&context.genes[gene])))
}

/// Which genes to draw, as positions in [`Context::genes`].
fn choose(context: &Context) -> Vec<usize> {
    let genes = &context.genes;
    if let Some(named) = &context.heatmap_genes {
        return named
            .iter()
            .filter_map(|name| genes.iter().position(|gene| gene == name))
            .collect();
    }
    if genes.len() < context.model.panel.len() || genes.len() <= WELL_KNOWN.len() {
        return (0..genes.len().min(MOST)).collect();
    }
    let position = |name: &str| genes.iter().position(|gene| gene == name);
    let mut chosen: Vec<usize> = WELL_KNOWN.iter().filter_map(|name| position(name)).collect();
    let pearson = &context.model.gene_pearson;
    let score = |gene: usize| pearson.get(&genes[gene]).copied().unwrap_or(f64::NEG_INFINITY);
    let mut rest: Vec<usize> = (0..genes.len()).filter(|gene| !chosen.contains(gene)).collect();
    rest.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
    chosen.extend(rest);
    chosen.truncate(WELL_KNOWN.len());
    chosen
}

impl Sink for HeatmapSink {
    fn push(&mut self, row: &Row) -> Result<()> {
        check(row, self.context.genes.len(), &self.context.directory)?;
        self.tiles.push([row.tile.x as f32, row.tile.y as f32, row.tile.side as f32]);
        for (gene, values) in self.drawn.iter().zip(&mut self.values) {
            values.push(row.expression[*gene]);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>> {
        let base = Base::new(&self.context, &self.tiles);
        let mut files = Vec::with_capacity(self.drawn.len());
        for (gene, values) in self.drawn.iter().zip(&self.values) {
            let path = picture_path(&self.context, *gene);
            draw(&self.context, &base, *gene, &self.tiles, values).save_png(&path)?;
            files.push(path);
        }
        Ok(files)
    }
}

/// The slide as it lies under every map: the part with tiles, grey and lightened, so that colour
/// means expression only.
struct Base {
    image: RgbImage,
    /// Left and top edge of the picture in level-0 px.
    origin: [f64; 2],
    /// Level-0 px per picture px.
    downsample: f64,
}

impl Base {
    fn new(context: &Context, tiles: &[[f32; 3]]) -> Self {
        let overview = &context.thumbnail;
        let [left, top, right, bottom] = window(context, tiles);
        let (width, height) = (right - left, bottom - top);
        let scale = f64::from(SLIDE_PX) / f64::from(width.max(height).max(1));
        let size = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        let mut image = if width == 0 || height == 0 {
            RgbImage::from_pixel(size(width), size(height), PAPER)
        } else {
            let part = imageops::crop_imm(overview, left, top, width, height).to_image();
            imageops::resize(&part, size(width), size(height), imageops::FilterType::CatmullRom)
        };
        for pixel in image.pixels_mut() {
            let [r, g, b] = pixel.0.map(f32::from);
            let grey = 0.299 * r + 0.587 * g + 0.114 * b;
            pixel.0 = [r, g, b].map(|c| (40.0 + (0.8 * grey + 0.2 * c) * 215.0 / 255.0) as u8);
        }
        let origin = [left, top].map(|v| f64::from(v) * context.thumbnail_downsample);
        Self { image, origin, downsample: context.thumbnail_downsample / scale }
    }
}

/// The part of the overview to show, left, top, right and bottom in its pixels: all tiles with a
/// margin around them, or everything where there are none.
fn window(context: &Context, tiles: &[[f32; 3]]) -> [u32; 4] {
    let (width, height) = context.thumbnail.dimensions();
    let all = [0, 0, width, height];
    let (mut low, mut high, mut side) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2], 0f64);
    for [x, y, s] in tiles.iter().map(|tile| tile.map(f64::from)) {
        for (axis, edge) in [x, y].into_iter().enumerate() {
            low[axis] = low[axis].min(edge);
            high[axis] = high[axis].max(edge + s);
        }
        side = side.max(s);
    }
    let extent = (high[0] - low[0]).max(high[1] - low[1]);
    // A few tiles far apart from nothing else still need the slide around them to be found.
    let margin = (0.08 * extent).max(2.0 * side);
    let pixel = |level0: f64, end: u32| {
        (level0 / context.thumbnail_downsample).clamp(0.0, f64::from(end)) as u32
    };
    let [left, top] = [pixel(low[0] - margin, width), pixel(low[1] - margin, height)];
    let right = pixel(high[0] + margin + context.thumbnail_downsample, width);
    let bottom = pixel(high[1] + margin + context.thumbnail_downsample, height);
    if extent.is_finite() && right > left && bottom > top {
        [left, top, right, bottom]
    } else {
        all
    }
}

/// The values the ends of the colour map stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Range {
    low: f64,
    high: f64,
    /// Whether values lie below or above.
    clipped: (bool, bool),
}

impl Range {
    /// The whole range of few values, the 1st to 99th percentile of many: a single odd tile must
    /// not wash out the picture.
    fn of(values: &[f32]) -> Option<Self> {
        let mut sorted: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f32::total_cmp);
        let (&first, &last) = (sorted.first()?, sorted.last()?);
        let cut = if sorted.len() >= 50 { (sorted.len() / 100).max(1) } else { 0 };
        let (low, high) = (sorted[cut], sorted[sorted.len() - 1 - cut]);
        Some(Self { low: low.into(), high: high.into(), clipped: (first < low, last > high) })
    }

    /// Place of `value` between the ends, 0 to 1.
    fn place(&self, value: f32) -> f64 {
        let span = self.high - self.low;
        if span > 0.0 { ((f64::from(value) - self.low) / span).clamp(0.0, 1.0) } else { 0.5 }
    }

    /// Labels of the colour bar with their places, from the bottom.
    fn ticks(&self) -> Vec<(f64, String)> {
        let span = self.high - self.low;
        let decimals = |step: f64| (1.0 - step.log10().floor()).clamp(0.0, 6.0) as usize;
        if span <= 0.0 {
            return vec![(0.5, format!("{:.*}", decimals(self.low.abs().max(1e-3)), self.low))];
        }
        (0..5)
            .map(|i| {
                let place = f64::from(i) / 4.0;
                let sign = match i {
                    0 if self.clipped.0 => "≤ ",
                    4 if self.clipped.1 => "≥ ",
                    _ => "",
                };
                let value = self.low + place * span;
                (place, format!("{sign}{value:.*}", decimals(span / 4.0)))
            })
            .collect()
    }
}

fn draw(
    context: &Context,
    base: &Base,
    gene: usize,
    tiles: &[[f32; 3]],
    values: &[f32],
) -> Picture {
    const MARGIN: i64 = 28;
    const HEADER: i64 = 96;
    const FOOTER: i64 = 64;
    const SIDE: i64 = 150;
    let (width, height) = (i64::from(base.image.width()), i64::from(base.image.height()));
    let title = &context.genes[gene];
    let fact = match context.model.gene_pearson.get(title) {
        Some(r) if r.is_finite() => format!("held-out Pearson r = {r:.2}"),
        _ => "no held-out figure for this gene".to_owned(),
    };
    let source =
        format!("{} · {} {}", context.slide_name, context.model.name, context.model.version);
    let inner = (width + SIDE).max(480).max(text_width(15.0, &fact).ceil() as i64);
    let body = height.max(180);
    let mut picture =
        Picture::new((inner + 2 * MARGIN) as u32, (HEADER + body + FOOTER) as u32, PAPER);
    let left = MARGIN as f32;
    picture.text(left, 48.0, 30.0, INK, Anchor::Start, &fit_text(30.0, title, inner as f32 * 0.6));
    let end = (MARGIN + inner) as f32;
    picture.text(end, 48.0, 15.0, INK, Anchor::End, &fact);
    picture.text(left, 76.0, 15.0, QUIET, Anchor::Start, &fit_text(15.0, &source, inner as f32));

    let range = Range::of(values);
    let mut slide = Picture::new(base.image.width(), base.image.height(), PAPER);
    slide.paste(&base.image, 0, 0);
    if let Some(range) = &range {
        for ([x, y, side], value) in tiles.iter().zip(values) {
            if value.is_finite() {
                // Edges are rounded, not sizes: neighbours meet without gap or overlap.
                let edge = |v: f32, axis: usize| {
                    ((f64::from(v) - base.origin[axis]) / base.downsample).round() as i64
                };
                let (x0, x1) = (edge(*x, 0), edge(x + side, 0));
                let (y0, y1) = (edge(*y, 1), edge(y + side, 1));
                let square = [x0, y0, x1.max(x0 + 1), y1.max(y0 + 1)];
                slide.rectangle(square, MAP.color(range.place(*value)), COVER);
            }
        }
    }
    picture.paste(slide.pixels(), MARGIN, HEADER);
    picture.frame([MARGIN, HEADER, MARGIN + width, HEADER + height], QUIET, 0.35);

    if let Some(range) = &range {
        let bar = [MARGIN + width + 26, HEADER, MARGIN + width + 46, HEADER + body.min(420)];
        color_bar(&mut picture, bar, range, &context.model.unit);
    }
    let foot = HEADER + height + 26;
    scale_bar(&mut picture, MARGIN, foot, width, context.um_per_px * base.downsample);
    let count = match tiles.len() {
        1 => "1 tile".to_owned(),
        n => format!("{n} tiles"),
    };
    let right = (MARGIN + width) as f32;
    picture.text(right, foot as f32 + 10.0, 15.0, QUIET, Anchor::End, &count);
    picture
}

fn color_bar(picture: &mut Picture, bar: [i64; 4], range: &Range, unit: &str) {
    let [x0, y0, x1, y1] = bar;
    let rows = (y1 - y0).max(2);
    for row in 0..rows {
        let place = 1.0 - row as f64 / (rows - 1) as f64;
        picture.rectangle([x0, y0 + row, x1, y0 + row + 1], MAP.color(place), 1.0);
    }
    picture.frame(bar, QUIET, 0.6);
    let ticks = range.ticks();
    let widest = ticks.iter().map(|(_, label)| text_width(14.0, label)).fold(0.0, f32::max);
    for (place, label) in ticks {
        let y = y1 as f64 - 0.5 - place * (rows - 1) as f64;
        picture.rectangle([x1, y as i64, x1 + 5, y as i64 + 1], INK, 1.0);
        // Labels at the ends stay beside the bar.
        let baseline = (y + 5.0).clamp(y0 as f64 + 10.0, y1 as f64);
        picture.text((x1 + 9) as f32, baseline as f32, 14.0, INK, Anchor::Start, &label);
    }
    let middle = (y0 + y1) as f32 / 2.0;
    let unit = fit_text(14.0, unit, rows as f32);
    let x = (x1 + 9) as f32 + widest + 22.0;
    picture.text_upwards(x, middle, 14.0, QUIET, Anchor::Middle, &unit);
}

/// A bar of a round length of about a fifth of the slide's width.
fn scale_bar(picture: &mut Picture, x: i64, y: i64, width: i64, um_per_px: f64) {
    let Some((um, label)) = round_length(width as f64 * um_per_px / 5.0) else { return };
    let pixels = ((um / um_per_px).round() as i64).max(1);
    picture.rectangle([x, y, x + pixels, y + 5], INK, 1.0);
    let beside = (x + pixels + 10) as f32;
    picture.text(beside, y as f32 + 10.0, 15.0, INK, Anchor::Start, &label);
}

/// The longest of 1, 2, 5 times a power of ten um that is at most `um`, and its name.
fn round_length(um: f64) -> Option<(f64, String)> {
    if !(um.is_finite() && um > 1e-6) {
        return None;
    }
    let decade = 10f64.powf(um.log10().floor());
    let length = [5.0, 2.0, 1.0].map(|step| step * decade).into_iter().find(|l| *l <= um)?;
    let label = if length >= 1000.0 {
        format!("{} mm", length / 1000.0)
    } else {
        format!("{} µm", (length * 1000.0).round() / 1000.0)
    };
    Some((length, label))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    fn names(context: &Context) -> Vec<&str> {
        choose(context).into_iter().map(|gene| context.genes[gene].as_str()).collect()
    }

    #[test]
    fn drawn_genes_are_asked_for_or_known_or_well_predicted() {
        let directory = tempfile::tempdir().unwrap();
        let panel = ["A", "B", "C", "D", "E", "F", "EPCAM", "ERBB2"];
        let mut context = testing::context(directory.path(), &panel);
        context.model.gene_pearson = [("D".to_owned(), 0.5), ("B".to_owned(), 0.4)].into();
        assert_eq!(names(&context), ["ERBB2", "EPCAM", "D", "B", "A", "C"]);
        context.genes = vec!["F".into(), "A".into()];
        assert_eq!(names(&context), ["F", "A"]);
    }

    #[test]
    fn one_picture_a_gene() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context(directory.path(), &["ERBB2", "HLA-A/B"]);
        let mut sink = open(&context).unwrap();
        for index in 0..200 {
            sink.push(&testing::row(index, 2)).unwrap();
        }
        let files = sink.finish().unwrap();
        assert_eq!(files.len(), 2);
        assert!(files[1].ends_with("slide.HLA-A_B.png"));
        let picture = image::open(&files[0]).unwrap().to_rgb8();
        // The slide is 200 overview pixels wide and shown 5 times as large. A tile of the last row
        // is yellow, the first one dark, and below the tiles is slide.
        let at = |x: u32, y: u32| picture.get_pixel(28 + x, 96 + y).0;
        let (first, last, slide) = (at(20, 20), at(970, 470), at(500, 590));
        assert!(last[0] > 150 && last[1] > 150 && last[2] < 150, "{last:?}");
        assert!(first[0] < 130 && first[1] < 100 && first[2] > 90, "{first:?}");
        assert!(slide.iter().all(|c| *c > 180), "{slide:?}");
    }

    #[test]
    fn the_picture_shows_where_the_tiles_are() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context(directory.path(), &["ERBB2"]);
        assert_eq!(window(&context, &[]), [0, 0, 200, 150]);
        assert_eq!(window(&context, &[[0.0, 0.0, 2000.0]]), [0, 0, 200, 150]);
        assert_eq!(window(&context, &[[500.0, 600.0, 100.0]]), [30, 40, 81, 91]);
        assert_eq!(window(&context, &[[f32::NAN, 0.0, 1.0]]), [0, 0, 200, 150]);
        let base = Base::new(&context, &[[500.0, 600.0, 100.0]]);
        assert_eq!(base.origin, [300.0, 400.0]);
        assert_eq!(base.image.width(), SLIDE_PX);
    }

    #[test]
    fn ranges_survive_odd_values() {
        assert_eq!(Range::of(&[f32::NAN]), None);
        let flat = Range::of(&[2.0, 2.0, f32::INFINITY]).unwrap();
        assert_eq!(flat.place(2.0), 0.5);
        assert_eq!(flat.ticks().len(), 1);
        let mut many: Vec<f32> = (0..1000).map(|v| v as f32 / 1000.0).collect();
        many.push(1e6);
        let range = Range::of(&many).unwrap();
        assert!(range.high < 1.0 && range.clipped == (true, true));
        let labels: Vec<String> = range.ticks().into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels[0], "≤ 0.01");
        assert_eq!(labels[4], "≥ 0.99");
    }

    #[test]
    fn scale_bars_are_round() {
        assert_eq!(round_length(1300.0), Some((1000.0, "1 mm".into())));
        assert_eq!(round_length(999.0), Some((500.0, "500 µm".into())));
        assert_eq!(round_length(0.3), Some((0.2, "0.2 µm".into())));
        assert_eq!(round_length(f64::NAN), None);
        assert_eq!(round_length(0.0), None);
    }
}
