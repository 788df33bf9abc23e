//! `quantize`: a quantised file from a float32 one.

use std::path::PathBuf;

use diffbulk::model::{KEY_PREFIX, Metadata, OnnxFile};
use prost::Message;

use super::recipe::{Precision, QuantizeFlags, Quantized, quantize};
use crate::export::onnx;
use crate::{Error, Result};

/// Write a quantised file of a float32 ONNX model, one image in and one vector out
#[derive(Debug, Clone, clap::Args)]
pub struct QuantizeArguments {
    /// Float32 ONNX model
    model: PathBuf,
    /// ONNX file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Arithmetic of the written file
    #[arg(long, value_enum)]
    precision: Precision,
    #[command(flatten)]
    flags: QuantizeFlags,
}

/// Runs `quantize`; returns what to tell the user.
///
/// # Errors
/// When the model cannot be read or run, and when the result loses more than allowed.
pub fn run(arguments: &QuantizeArguments) -> Result<String> {
    if arguments.precision == Precision::Float32 {
        return Err(Error::Request("the model is float32 already; choose a --precision".into()));
    }
    let path = &arguments.model;
    let file = OnnxFile::open(path)?;
    let mut model = file.proto().clone();
    let ours = file.props().any(|(key, _)| key.starts_with(KEY_PREFIX));
    let metadata = ours
        .then(|| Metadata::from_props(file.props()))
        .transpose()
        .map_err(|problem| Error::model(path, problem.to_string()))?;
    if let Some(metadata) = &metadata
        && metadata.precision != Precision::Float32.name()
    {
        return Err(Error::model(
            path,
            format!("is {} already; give the float32 file it was made from", metadata.precision),
        ));
    }
    let panel = metadata.as_ref().map_or(&[][..], |metadata| &metadata.panel);
    let quantized = quantize(&model, arguments.precision, &arguments.flags, panel, path)?;
    let told = told(arguments.precision, &quantized);
    model = quantized.model;
    match metadata {
        Some(metadata) => {
            let metadata = label(metadata, arguments.precision, quantized.recipe);
            onnx::set_properties(&mut model, metadata.to_props());
        }
        None => {
            let mut properties: Vec<(String, String)> =
                file.props().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            properties.push(("quantization".into(), quantized.recipe.to_string()));
            onnx::set_properties(&mut model, properties);
        }
    }
    onnx::write(&arguments.output, &model)?;
    let bytes = model.encoded_len() as f64;
    Ok(format!(
        "{}: {:.2} MB, {:.3} of float32's size\n{told}",
        arguments.output.display(),
        bytes / 1e6,
        bytes / file.bytes() as f64
    ))
}

/// The metadata of a quantised model.
pub fn label(metadata: Metadata, precision: Precision, recipe: serde_json::Value) -> Metadata {
    Metadata { precision: precision.name().to_owned(), quantization: Some(recipe), ..metadata }
}

/// What a quantisation cost, in words.
pub fn told(precision: Precision, quantized: &Quantized) -> String {
    let measured = &quantized.measured;
    format!(
        "  {}: loses {:+.5} (measured on {} training tiles), {:.1} dB, largest difference {:.1e} \
         of the largest output",
        precision.name(),
        measured.drop,
        measured.tiles,
        measured.sqnr_db,
        measured.largest
    )
}
