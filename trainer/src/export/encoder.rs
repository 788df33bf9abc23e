//! `encoder`: a frozen image encoder as an ONNX file, with what is needed to feed it.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Normal};
use serde::Serialize;

use super::efficientnet::{self, Pooled};
use super::onnx::{self, Dim, Element, Graph, Kernel, Value, Window};
use super::pytorch;
use super::weights::Checkpoint;
use crate::foundation::{EncoderInfo, METADATA_KEY};
use crate::{Error, Result};

/// An encoder's metadata: what feeds it, and what its features are.
#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    info: EncoderInfo,
    features: Vec<String>,
}

/// The networks this program can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// EfficientNet-Lite0 from its PyTorch weights.
    #[value(name = "efficientnet-lite0")]
    EfficientnetLite0,
    /// Two small convolutions with random weights, for trying out the pipeline.
    Tiny,
}

/// Arguments of `encoder`.
#[derive(Debug, Clone, Args)]
pub struct EncoderArguments {
    /// Network to write.
    #[arg(long, value_enum, default_value = "efficientnet-lite0")]
    pub network: Network,
    /// PyTorch weights (.pth) of the network; the tiny one has none.
    #[arg(long, required_if_eq("network", "efficientnet-lite0"))]
    pub weights: Option<PathBuf>,
    /// ONNX file to write.
    #[arg(short, long)]
    pub output: PathBuf,
    /// What to pool the features from: a list of mean:MAP and std:MAP, MAP being stem, a
    /// bottleneck's number from 0, or head. What lies behind the last map is left out.
    #[arg(long, value_delimiter = ',', default_value = "mean:head")]
    pub features: Vec<Pooled>,
    /// Side of the input in pixels.
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u16).range(16..=1024))]
    pub input_px: u16,
    /// Mean of red, green, blue that the network expects to be subtracted, on the 0 to 1 scale.
    #[arg(long, value_delimiter = ',', num_args = 1, default_value = "0.5,0.5,0.5")]
    pub mean: Vec<f32>,
    /// Standard deviation of red, green, blue to divide by, on the 0 to 1 scale.
    #[arg(long, value_delimiter = ',', num_args = 1, default_value = "0.5,0.5,0.5")]
    pub std: Vec<f32>,
    /// Seed of the tiny network's weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Runs `encoder`; returns a sentence for the user.
pub fn run(arguments: &EncoderArguments) -> Result<String> {
    let input_px = usize::from(arguments.input_px);
    let (mean, std) = (colours("--mean", &arguments.mean)?, colours("--std", &arguments.std)?);
    if !std.iter().all(|&v| v.is_finite() && v > 0.0) || !mean.iter().all(|v| v.is_finite()) {
        return Err(Error::Request("--std must be above zero and --mean a number".to_owned()));
    }
    let (name, license, features) = match arguments.network {
        Network::EfficientnetLite0 => (
            "EfficientNet-Lite0 (ImageNet)".to_owned(),
            "Apache-2.0",
            arguments.features.iter().map(Pooled::to_string).collect(),
        ),
        Network::Tiny => (
            format!("tiny random encoder (seed {})", arguments.seed),
            "CC0-1.0",
            vec!["mean:head".to_owned()],
        ),
    };
    let (network, weights, seed) =
        (arguments.network, arguments.weights.as_deref(), arguments.seed);
    let (mut model, width) = build(network, weights, input_px, &arguments.features, seed)?;
    let info = EncoderInfo { name, license: license.to_owned(), input_px, mean, std };
    let message = format!("{}: {}, {width} features", arguments.output.display(), info.name);
    let text = serde_json::to_string(&Described { info, features })
        .map_err(|error| Error::Request(error.to_string()))?;
    onnx::set_properties(&mut model, vec![(METADATA_KEY.to_owned(), text)]);
    onnx::write(&arguments.output, &model)?;
    Ok(message)
}

/// Builds a network for images of `side` pixels; returns it and the number of its features.
/// `weights` and `features` are EfficientNet's, `seed` the tiny network's.
pub(super) fn build(
    network: Network,
    weights: Option<&Path>,
    side: usize,
    features: &[Pooled],
    seed: u64,
) -> Result<(onnx::Model, usize)> {
    let mut graph = Graph::new("encoder", onnx::OPSET);
    let dims = [Dim::Symbol("N"), Dim::Fixed(3), Dim::Fixed(side), Dim::Fixed(side)];
    let x = graph.input("pixels", Element::F32, &dims);
    let (value, width) = match network {
        Network::EfficientnetLite0 => {
            let path = weights.ok_or_else(|| {
                Error::Request("efficientnet-lite0 needs --weights FILE.pth".to_owned())
            })?;
            let weights = Checkpoint::new(path, pytorch::read(path)?);
            efficientnet::features(&mut graph, &x, side, &weights, features)?
        }
        Network::Tiny => tiny(&mut graph, &x, seed)?,
    };
    graph.output("features", &value, Element::F32, &[Dim::Symbol("N"), Dim::Fixed(width)]);
    Ok((graph.finish(Vec::new()), width))
}

/// Three values of an option, one a colour.
fn colours(option: &str, values: &[f32]) -> Result<[f32; 3]> {
    values.try_into().map_err(|_| {
        Error::Request(format!("{option} takes three numbers, for example {option} 0.5,0.5,0.5"))
    })
}

/// Two strided convolutions with ReLU and a mean: 16 features.
fn tiny(graph: &mut Graph, x: &Value, seed: u64) -> Result<(Value, usize)> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut x = x.clone();
    let mut input = 3;
    for (layer, out) in [("conv0", 8), ("conv1", 16)] {
        let taps = input * 9;
        let normal = Normal::new(0.0, (2.0 / taps as f32).sqrt())
            .map_err(|error| Error::Request(error.to_string()))?;
        let data = (0..out * taps).map(|_| normal.sample(&mut random)).collect();
        let kernel = Kernel { out, input, side: 3, data };
        let window = Window { stride: 2, before: 1, after: 1, groups: 1 };
        x = graph.conv(layer, &x, &kernel, Some(&vec![0.0; out]), window);
        x = graph.op("Relu", &format!("{layer}.relu"), &[&x], vec![]);
        input = out;
    }
    Ok((graph.spatial_mean("features.mean", &x), input))
}
