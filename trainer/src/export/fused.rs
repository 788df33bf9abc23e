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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::{Device, TensorData};
    use tract_onnx::prelude::Tensor;

    use super::super::encoder::{self, Network};
    use super::super::random;
    use super::super::testing::{Loaded, assert_close};
    use super::*;
    use crate::diffusion::{Parameters, UNet};
    use crate::foundation::normalise;
    use crate::predictor::{Head, Inputs};

    fn tiny_encoder(side: usize) -> EncoderPart {
        let info = EncoderInfo {
            name: "tiny".to_owned(),
            license: "CC0-1.0".to_owned(),
            input_px: side,
            mean: [0.5, 0.4, 0.3],
            std: [0.2, 0.5, 0.6],
        };
        let (model, width) = encoder::build(Network::Tiny, None, side, &[], 5).unwrap();
        EncoderPart { model, info, width, path: "tiny.onnx".into() }
    }

    fn image(side: usize) -> Vec<u8> {
        (0..side * side * 3).map(|i| (128.0 + 127.0 * (i as f32 * 0.37).sin()) as u8).collect()
    }

    #[test]
    fn one_graph_is_the_modules_it_was_made_from() {
        let encoder = tiny_encoder(32);
        let (parts, facts) =
            random::parts("tiny", 6, Some(encoder.clone()), FeatureMode::Consistent, 7).unwrap();
        let side = facts.exported.tile_px;
        let image = image(side);

        let device = Device::flex();
        let unet = parts.unet.clone().unwrap();
        let weights = unet.weights.weights();
        let parameters = Parameters::from_weights(&unet.config, weights, &device).unwrap();
        let network = UNet::new(&unet.config, &parameters.effective()).unwrap();
        let planes =
            normalise(&image.iter().map(|&v| f32::from(v)).collect::<Vec<_>>(), [0.5; 3], [0.5; 3]);
        let shape = vec![1, 3, side, side];
        let x0 = burn::tensor::Tensor::<4>::from_data(TensorData::new(planes, shape), &device);
        let maps = network.features(x0);
        let normal = normalise(
            &image.iter().map(|&v| f32::from(v)).collect::<Vec<_>>(),
            encoder.info.mean,
            encoder.info.std,
        );
        let normal = Tensor::from_shape(&[1, 3, side, side], &normal).unwrap();
        let features = Loaded::new(&encoder.model).run(vec![normal]).remove(0).1;
        let shape = vec![1, features.len()];
        let foundation =
            burn::tensor::Tensor::<2>::from_data(TensorData::new(features, shape), &device);
        let head = Head::from_weights(
            &parts.head,
            parts.head_weights.weights(),
            Path::new("head"),
            &device,
        )
        .unwrap();
        let expected = head.forward(&Inputs { maps, foundation: Some(foundation) }).unwrap();
        let expected: Vec<f32> = expected.into_data().try_into_vec::<f32>().unwrap();

        let fused = fuse(parts).unwrap();
        let names: Vec<&String> = fused.macs.keys().collect();
        assert_eq!(names, ["encoder", "head", "unet"]);
        let input = Tensor::from_shape(&[1, side, side, 3], &image).unwrap();
        let found = Loaded::new(&fused.model).run(vec![input]);
        assert_eq!(found[0].0, OUTPUT);
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert_close(&expected, &found[0].1, largest, OUTPUT);
    }

    #[test]
    fn an_encoder_of_another_size_sees_the_image_resized() {
        let encoder = tiny_encoder(16);
        let (parts, facts) =
            random::parts("tiny", 3, Some(encoder), FeatureMode::Consistent, 1).unwrap();
        let fused = fuse(parts).unwrap();
        let side = facts.exported.tile_px;
        let input = Tensor::from_shape(&[1, side, side, 3], &image(side)).unwrap();
        let found = Loaded::new(&fused.model).run(vec![input]);
        assert!(found[0].1.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn a_unet_for_other_tiles_is_refused() {
        let (mut parts, _) = random::parts("tiny", 3, None, FeatureMode::Consistent, 1).unwrap();
        parts.tile_px = 64;
        let message = fuse(parts).unwrap_err().to_string();
        assert!(message.contains("64 px"), "{message}");
    }
}
