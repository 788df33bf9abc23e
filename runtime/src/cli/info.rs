//! `diffbulk info`.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{adapters, print};
use crate::model::{Metadata, Model};
use crate::slide::{self, Slide};
use crate::{Error, Result};

/// Width of the left column.
const LABEL: usize = 14;

/// Tells what a model or a slide is, or which graphics adapters there are.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A model (.onnx) or a slide.
    #[arg(required_unless_present = "adapters")]
    file: Option<PathBuf>,

    /// List the graphics adapters that the wgpu engine can run on.
    #[arg(long, conflicts_with = "file")]
    adapters: bool,

    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let Some(path) = &arguments.file else { return adapters::print_all(arguments.json) };
    let text = if looks_like_onnx(path)? {
        let model = Model::open(path)?;
        if arguments.json { model_json(&model)? } else { model_text(&model)? }
    } else {
        let slide = slide::open(path)?;
        if arguments.json { slide_json(&*slide)? } else { slide_text(&*slide)? }
    };
    print(&text)
}

/// True for a file that is named like a model, or that starts like one: a protobuf whose first
/// field is the IR version.
fn looks_like_onnx(path: &Path) -> Result<bool> {
    let mut file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::Request(format!("{}: there is no such file; check the path", path.display()))
        }
        _ => Error::io(path)(error),
    })?;
    let named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"));
    let mut start = [0; 1];
    let read = file.read(&mut start).map_err(Error::io(path))?;
    // Field 1, varint.
    Ok(named || (read == 1 && start[0] == 0x08))
}

fn line(text: &mut String, label: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{label:LABEL$} {value}");
}

fn model_text(model: &Model) -> Result<String> {
    let metadata = model.metadata();
    let summary = model.summary()?;
    let mut text = String::new();
    let out = &mut text;
    line(out, "model", format_args!("{} {}", metadata.name, metadata.version));
    line(out, "file", model.path().display());
    line(out, "sha256", model.sha256());
    line(out, "size", format_args!("{}B", scaled(summary.file_bytes)));
    line(
        out,
        "tile",
        format_args!(
            "{0} x {0} px at {1} um/px ({2:.0} um)",
            metadata.tile_px,
            metadata.um_per_px,
            model.tile_um()
        ),
    );
    line(out, "unit", &metadata.unit);
    line(out, "precision", &metadata.precision);
    if let Some(quantization) = &metadata.quantization {
        line(out, "quantised", quantization);
    }
    line(out, "cost", format_args!("{}MAC per tile", scaled(metadata.macs_per_tile)));
    line(out, "licence", &metadata.license);
    line(out, "schema", metadata.schema_version);

    let _ = writeln!(out, "\ngraph");
    line(out, "  input", summary.inputs.join(", "));
    line(out, "  output", summary.outputs.join(", "));
    line(out, "  parameters", scaled(summary.parameters).trim_end());
    line(
        out,
        "  format",
        format_args!("ONNX opset {}, IR version {}", summary.opset, summary.ir_version),
    );
    line(out, "  written by", &summary.producer);
    let mut operators: Vec<_> = summary.operators.iter().collect();
    operators.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let operators: Vec<String> =
        operators.iter().map(|(name, count)| format!("{name} {count}")).collect();
    line(out, "  operators", operators.join(", "));

    let _ = writeln!(out, "\ntraining data");
    for data in &metadata.training_data {
        let _ = writeln!(out, "  {}, {} ({})", data.name, data.license, data.source);
        if !data.slides.is_empty() {
            let _ = writeln!(out, "    slides: {}", data.slides.join(", "));
        }
    }
    if !metadata.metrics.is_empty() {
        let _ = writeln!(out, "\nheld-out figures");
        for metric in &metadata.metrics {
            let _ = writeln!(out, "  {:.3}  {} ({})", metric.value, metric.name, metric.split);
        }
    }
    let _ = writeln!(out, "\nmade by");
    line(out, "  program", &metadata.provenance.crate_version);
    line(out, "  encoder", &metadata.provenance.encoder);
    line(out, "  config", &metadata.provenance.config_sha256);
    line(out, "  seed", metadata.provenance.seed);

    panel(out, metadata);
    Ok(text)
}

/// A count with a decimal prefix: `1.23 G`, `4.56 M`, `7.89 k`, or as it is below 1000.
fn scaled(count: u64) -> String {
    let value = count as f64;
    match count {
        0..1_000 => format!("{count} "),
        1_000..1_000_000 => format!("{:.2} k", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", value / 1e6),
        _ => format!("{:.2} G", value / 1e9),
    }
}

/// The panel, with each gene's held-out correlation where it is known.
fn panel(text: &mut String, metadata: &Metadata) {
    let known = !metadata.gene_pearson.is_empty();
    let _ = writeln!(
        text,
        "\npanel: {} genes{}",
        metadata.panel.len(),
        if known { " (held-out Pearson)" } else { "" }
    );
    let cells: Vec<String> = metadata
        .panel
        .iter()
        .map(|gene| match metadata.gene_pearson.get(gene) {
            Some(pearson) => format!("{gene} {pearson:.2}"),
            None => gene.clone(),
        })
        .collect();
    let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0) + 2;
    let columns = (96 / width).max(1);
    for row in cells.chunks(columns) {
        let row: String = row.iter().map(|cell| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "  {}", row.trim_end());
    }
}

fn model_json(model: &Model) -> Result<String> {
    pretty(&json!({
        "kind": "model",
        "file": model.path().display().to_string(),
        "sha256": model.sha256(),
        "metadata": model.metadata(),
        "graph": model.summary()?,
    }))
}

fn slide_text(slide: &dyn Slide) -> Result<String> {
    let info = slide.info();
    let mut text = String::new();
    let out = &mut text;
    line(out, "slide", slide.path().display());
    line(out, "format", &info.format);
    line(out, "vendor", info.vendor.as_deref().unwrap_or("not told"));
    match info.um_per_px {
        Some(scale) => line(out, "um/px", scale),
        None => line(out, "um/px", "not told by the file; give --mpp to predict"),
    }
    if let Some(objective) = info.objective {
        line(out, "objective", format_args!("{objective}x"));
    }
    if let (Some(scale), Some(level)) = (info.um_per_px, info.levels.first()) {
        let mm = |px: u32| f64::from(px) * scale / 1000.0;
        line(out, "size", format_args!("{:.2} x {:.2} mm", mm(level.width), mm(level.height)));
    }
    let identity = slide::identity(slide.path())?;
    line(out, "bytes", identity.bytes);
    let _ = writeln!(out, "\nlevels");
    for (index, level) in info.levels.iter().enumerate() {
        let _ = writeln!(
            out,
            "  {index}  {} x {} px, downsample {:.3}, {} in pieces of {} x {}",
            level.width, level.height, level.downsample, level.codec, level.chunk.0, level.chunk.1
        );
    }
    if !info.properties.is_empty() {
        let _ = writeln!(out, "\nproperties");
        for (key, value) in &info.properties {
            let _ = writeln!(out, "  {key}: {}", value.trim());
        }
    }
    Ok(text)
}

fn slide_json(slide: &dyn Slide) -> Result<String> {
    pretty(&json!({
        "kind": "slide",
        "file": slide.path().display().to_string(),
        "identity": slide::identity(slide.path())?,
        "slide": slide.info(),
    }))
}

pub(super) fn pretty(value: &serde_json::Value) -> Result<String> {
    match serde_json::to_string_pretty(value) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Error::Request(format!("cannot be told as JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{OnnxFile, testing};
    use crate::predict::testing::flat_slide;

    fn model() -> Model {
        let mut metadata = testing::metadata(8, &["ERBB2", "EPCAM", "KRT19"]);
        metadata.gene_pearson.insert("ERBB2".into(), 0.61);
        let proto = testing::tiny_model(&metadata);
        Model::from_file(OnnxFile::from_proto(proto, Path::new("tiny.onnx")).unwrap()).unwrap()
    }

    #[test]
    fn a_model_is_told_in_full() {
        let text = model_text(&model()).unwrap();
        for part in
            ["tiny 1", "8 x 8 px at 0.5 um/px", "9 MAC per tile", "Conv 1", "ERBB2 0.61", "KRT19"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let json: serde_json::Value = serde_json::from_str(&model_json(&model()).unwrap()).unwrap();
        assert_eq!(json["metadata"]["panel"][1], "EPCAM");
        assert_eq!(json["graph"]["operators"]["Conv"], 1);
    }

    #[test]
    fn counts_are_scaled() {
        let shown: Vec<String> = [7, 4_560, 1_234_567, 1_230_000_000].map(scaled).to_vec();
        assert_eq!(shown, ["7 ", "4.56 k", "1.23 M", "1.23 G"]);
    }

    #[test]
    fn files_are_told_apart_by_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("renamed.bin");
        testing::write(&testing::tiny_model(&testing::metadata(8, &["A"])), &path);
        assert!(looks_like_onnx(&path).unwrap());
        std::fs::write(&path, b"II*\0").unwrap();
        assert!(!looks_like_onnx(&path).unwrap());
        std::fs::write(&path, b"").unwrap();
        assert!(!looks_like_onnx(&path).unwrap());
        assert!(looks_like_onnx(&directory.path().join("none")).is_err());
    }

    #[test]
    fn a_slide_without_scale_says_what_to_do() {
        let mut slide = flat_slide(40, 20, |_, _| [0; 3]);
        slide.forget_scale();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flat.tiff");
        std::fs::write(&path, b"x").unwrap();
        slide.set_path(&path);
        let text = slide_text(&slide).unwrap();
        assert!(text.contains("--mpp"), "{text}");
        assert!(text.contains("40 x 20 px"), "{text}");
    }
}
