//! The fused predictor: U-Net features, encoder features and head in one graph.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tract_onnx::pb::ModelProto;

use super::head::{self, Features};
use super::inline;
use super::macs;
use super::onnx::{Dim, Element, Graph, OPSET, Value, declared_opset};
use super::unet;
use super::weights::Checkpoint;
use crate::diffusion::{Config, FeatureMode};
use crate::foundation::EncoderInfo;
use crate::predictor::HeadConfig;
use crate::{Error, Result};

/// Name of the graph's input, uint8 `[N, side, side, 3]`.
pub const INPUT: &str = "image";
/// Name of the graph's output, float32 `[N, genes]`.
pub const OUTPUT: &str = "expression";

/// The U-Net of a fused predictor.
#[derive(Debug, Clone)]
pub struct UnetPart {
    /// Architecture.
    pub config: Config,
    /// Weights.
    pub weights: Checkpoint,
    /// Which forward the head was trained on.
    pub mode: FeatureMode,
}

/// The encoder of a fused predictor.
#[derive(Debug, Clone)]
pub struct EncoderPart {
    /// Its graph.
    pub model: ModelProto,
    /// How it is fed.
    pub info: EncoderInfo,
    /// Features per tile.
    pub width: usize,
    /// The file it came from, for messages.
    pub path: PathBuf,
}

/// Everything that goes into a fused predictor.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Side of the square tile in pixels.
    pub tile_px: usize,
    /// Absent for a head without diffusion features.
    pub unet: Option<UnetPart>,
    /// Absent for a head without foundation features.
    pub encoder: Option<EncoderPart>,
    /// Shape of the head.
    pub head: HeadConfig,
    /// Weights of the head.
    pub head_weights: Checkpoint,
}

/// A graph and what it costs.
#[derive(Debug, Clone)]
pub struct Fused {
    /// The model, without metadata.
    pub model: ModelProto,
    /// Multiply-accumulates of one tile, by part: `unet`, `encoder`, `head`.
    pub macs: BTreeMap<String, u64>,
}

impl Fused {
    /// Multiply-accumulates of everything that runs for one tile.
    pub fn total_macs(&self) -> u64 {
        self.macs.values().sum()
    }
}

/// Builds the graph and counts its work.
///
/// # Errors
/// If the parts do not belong together; the message names the part.
pub fn fuse(parts: Parts) -> Result<Fused> {
    let opset = parts.encoder.as_ref().map_or(OPSET, |encoder| declared_opset(&encoder.model));
    let mut graph = Graph::new("fused_predictor", opset);
    let side = parts.tile_px;
    let dims = [Dim::Symbol("N"), Dim::Fixed(side), Dim::Fixed(side), Dim::Fixed(3)];
    let image = graph.input(INPUT, Element::U8, &dims);
    let pixels = graph.scoped("input", |graph| {
        let planes = graph.transpose("planes", &image, &[0, 3, 1, 2]);
        graph.to_f32("pixels", &planes)
    });
    let maps = match &parts.unet {
        Some(unet) => {
            check_unet(unet, side)?;
            graph.scoped("unet", |graph| {
                unet::features(graph, &pixels, &unet.config, &unet.weights, unet.mode)
            })?
        }
        None => Vec::new(),
    };
    let foundation = match parts.encoder {
        Some(encoder) => {
            Some(graph.scoped("encoder", |graph| encode(graph, &pixels, side, encoder))?)
        }
        None => None,
    };
    let (config, weights) = (&parts.head, &parts.head_weights);
    let expression = graph.scoped("head", |graph| {
        head::expression(graph, &maps, foundation.as_ref(), config, weights)
    })?;
    let dims = [Dim::Symbol("N"), Dim::Fixed(config.genes)];
    graph.output(OUTPUT, &expression, Element::F32, &dims);
    let model = graph.finish(Vec::new());
    let macs = macs::typed(&model).and_then(|typed| macs::by_part(&typed)).map_err(|error| {
        Error::Check(format!("the exported graph does not hold together: {error:#}"))
    })?;
    Ok(Fused { model, macs })
}

fn check_unet(unet: &UnetPart, side: usize) -> Result<()> {
    if unet.config.img_resolution != side || unet.config.img_channels != 3 {
        return Err(Error::Request(format!(
            "the U-Net takes {0} x {0} px images of {1} channels and the tiles are {side} px RGB; \
             export a U-Net trained on such tiles",
            unet.config.img_resolution, unet.config.img_channels
        )));
    }
    Ok(())
}

/// Normalises the image, brings it to the encoder's size and runs the encoder on it.
fn encode(
    graph: &mut Graph,
    pixels: &Value,
    side: usize,
    encoder: EncoderPart,
) -> Result<Features> {
    let EncoderPart { model, info, width, path } = encoder;
    let slope: Vec<f32> = info.std.iter().map(|std| 1.0 / (255.0 * std)).collect();
    let offset: Vec<f32> = info.mean.iter().zip(&info.std).map(|(m, s)| -m / s).collect();
    let slope = graph.f32("normalise.slope", &[1, 3, 1, 1], &slope);
    let offset = graph.f32("normalise.offset", &[1, 3, 1, 1], &offset);
    let x = graph.mul("normalise.scaled", pixels, &slope);
    let mut x = graph.add("normalise", &x, &offset);
    if info.input_px != side {
        x = graph.resize("resize", &x, side, info.input_px);
    }
    let features = inline::inline(graph, model, &path, &x)?;
    // Whatever trails the features ([N, F, 1, 1]) is flattened away.
    Ok(Features { value: graph.flatten("flat", &features), width })
}
