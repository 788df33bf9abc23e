//! EfficientNet-Lite0 as an ONNX graph, from its PyTorch weights.
//!
//! Mobile inverted bottlenecks without squeeze and excitation, ReLU6, TensorFlow's "same" padding
//! (at stride 2 the odd zero goes after the image), batch normalisation folded into the
//! convolutions. The features are pooled from any of its maps, and what lies behind the last map
//! in use is left out.

use std::fmt;
use std::str::FromStr;

use super::onnx::{Graph, Kernel, Value, Window};
use super::weights::Checkpoint;
use crate::Result;

/// Epsilon of the network's batch normalisation.
const BATCH_NORM_EPSILON: f64 = 1e-3;
/// Channels of the first convolution.
const STEM_CHANNELS: usize = 32;
/// Channels of the last convolution.
const HEAD_CHANNELS: usize = 1280;
/// Repeats, window side, first stride, expansion and output channels of every stage.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];
/// Bottlenecks of all stages.
pub const BLOCKS: usize = 16;

/// A feature map of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Map {
    /// After the first convolution.
    Stem,
    /// After bottleneck 0 to 15.
    Block(usize),
    /// After the last convolution.
    Head,
}

/// What is taken of every channel of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// Mean over positions.
    Mean,
    /// Standard deviation over positions (divided by their number).
    Std,
}

/// One group of features: a statistic of every channel of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooled {
    /// The statistic.
    pub statistic: Statistic,
    /// The map.
    pub map: Map,
}

impl FromStr for Pooled {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is no feature; write mean:MAP or std:MAP with MAP stem, 0 to {}, or head",
                BLOCKS - 1
            )
        };
        let (statistic, map) = text.split_once(':').ok_or_else(wrong)?;
        let statistic = match statistic {
            "mean" => Statistic::Mean,
            "std" => Statistic::Std,
            _ => return Err(wrong()),
        };
        let map = match map {
            "stem" => Map::Stem,
            "head" => Map::Head,
            block => match block.parse() {
                Ok(block) if block < BLOCKS => Map::Block(block),
                _ => return Err(wrong()),
            },
        };
        Ok(Self { statistic, map })
    }
}

impl fmt::Display for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statistic = match self.statistic {
            Statistic::Mean => "mean",
            Statistic::Std => "std",
        };
        match self.map {
            Map::Stem => write!(f, "{statistic}:stem"),
            Map::Block(block) => write!(f, "{statistic}:{block}"),
            Map::Head => write!(f, "{statistic}:head"),
        }
    }
}

/// Writes the network into `graph`; returns the features `[N, F]`, in the order of `features`,
/// and F. `x` is the normalised image, `[N, 3, side, side]`.
pub fn features(
    graph: &mut Graph,
    x: &Value,
    side: usize,
    weights: &Checkpoint,
    features: &[Pooled],
) -> Result<(Value, usize)> {
    let mut network = Network { graph, weights, side };
    let last = features.iter().map(|feature| feature.map).max().unwrap_or(Map::Head);
    let mut groups: Vec<Option<(Value, usize)>> = vec![None; features.len()];
    let mut keep = |network: &mut Network<'_>, map: Map, x: &Value, channels: usize| {
        for (feature, group) in features.iter().zip(&mut groups) {
            if feature.map == map {
                *group = Some((network.pool(*feature, x), channels));
            }
        }
    };
    let mut x = network.stem(x)?;
    let mut channels = STEM_CHANNELS;
    keep(&mut network, Map::Stem, &x, channels);
    let mut block = 0;
    for (repeats, window, first_stride, expansion, out) in STAGES {
        for repeat in 0..repeats {
            if Map::Block(block) > last {
                break;
            }
            let stride = if repeat == 0 { first_stride } else { 1 };
            let shape = Bottleneck { window, stride, expansion, channels, out };
            x = network.bottleneck(&format!("_blocks.{block}"), &x, &shape)?;
            channels = out;
            keep(&mut network, Map::Block(block), &x, channels);
            block += 1;
        }
    }
    if last == Map::Head {
        let shape = [HEAD_CHANNELS, channels, 1, 1];
        x = network.convolution("_conv_head", "_bn1", &x, shape, 1, 1)?;
        x = network.graph.clip("head.relu6", &x, 0.0, 6.0);
        keep(&mut network, Map::Head, &x, HEAD_CHANNELS);
    }
    let groups: Vec<(Value, usize)> = groups.into_iter().flatten().collect();
    let width = groups.iter().map(|(_, channels)| channels).sum();
    let values: Vec<&Value> = groups.iter().map(|(value, _)| value).collect();
    Ok(match values.as_slice() {
        [value] => ((*value).clone(), width),
        values => (graph.concat("features.joined", values, 1), width),
    })
}

struct Bottleneck {
    window: usize,
    stride: usize,
    expansion: usize,
    channels: usize,
    out: usize,
}

struct Network<'a> {
    graph: &'a mut Graph,
    weights: &'a Checkpoint,
    side: usize,
}

impl Network<'_> {
    fn stem(&mut self, x: &Value) -> Result<Value> {
        let x = self.convolution("_conv_stem", "_bn0", x, [STEM_CHANNELS, 3, 3, 3], 2, 1)?;
        Ok(self.graph.clip("stem.relu6", &x, 0.0, 6.0))
    }

    fn bottleneck(&mut self, name: &str, x: &Value, shape: &Bottleneck) -> Result<Value> {
        let Bottleneck { window, stride, expansion, channels, out } = *shape;
        let wide = channels * expansion;
        let mut y = x.clone();
        if expansion > 1 {
            let (layer, norm) = (format!("{name}._expand_conv"), format!("{name}._bn0"));
            y = self.convolution(&layer, &norm, &y, [wide, channels, 1, 1], 1, 1)?;
            y = self.graph.clip(&format!("{name}.expand.relu6"), &y, 0.0, 6.0);
        }
        let (layer, norm) = (format!("{name}._depthwise_conv"), format!("{name}._bn1"));
        y = self.convolution(&layer, &norm, &y, [wide, 1, window, window], stride, wide)?;
        y = self.graph.clip(&format!("{name}.depthwise.relu6"), &y, 0.0, 6.0);
        let (layer, norm) = (format!("{name}._project_conv"), format!("{name}._bn2"));
        y = self.convolution(&layer, &norm, &y, [out, wide, 1, 1], 1, 1)?;
        if stride == 1 && channels == out {
            y = self.graph.add(&format!("{name}.sum"), x, &y);
        }
        Ok(y)
    }

    /// A convolution and the batch normalisation behind it, as one convolution with a bias.
    fn convolution(
        &mut self,
        layer: &str,
        norm: &str,
        x: &Value,
        shape: [usize; 4],
        stride: usize,
        groups: usize,
    ) -> Result<Value> {
        let [out, input, window, _] = shape;
        let weight = self.weights.shaped(&format!("{layer}.weight"), &shape)?;
        let statistic = |name: &str| self.weights.shaped(&format!("{norm}.{name}"), &[out]);
        let (scale, shift) = (statistic("weight")?, statistic("bias")?);
        let (mean, variance) = (statistic("running_mean")?, statistic("running_var")?);
        let factors: Vec<f64> = scale
            .iter()
            .zip(variance)
            .map(|(&scale, &var)| f64::from(scale) / (f64::from(var) + BATCH_NORM_EPSILON).sqrt())
            .collect();
        let data = weight
            .chunks(weight.len() / out)
            .zip(&factors)
            .flat_map(|(row, factor)| row.iter().map(move |&w| (f64::from(w) * factor) as f32))
            .collect();
        let bias: Vec<f32> = (0..out)
            .map(|o| (f64::from(shift[o]) - f64::from(mean[o]) * factors[o]) as f32)
            .collect();
        let kernel = Kernel { out, input, side: window, data };
        let output_side = self.side.div_ceil(stride);
        let zeros = ((output_side - 1) * stride + window).saturating_sub(self.side);
        let window = Window { stride, before: zeros / 2, after: zeros - zeros / 2, groups };
        self.side = output_side;
        Ok(self.graph.conv(layer, x, &kernel, Some(&bias), window))
    }

    fn pool(&mut self, feature: Pooled, x: &Value) -> Value {
        let hint = format!("features.{feature}");
        match feature.statistic {
            Statistic::Mean => self.graph.spatial_mean(&hint, x),
            Statistic::Std => self.graph.spatial_std(&hint, x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_written_as_they_are_read() {
        for text in ["mean:head", "std:stem", "mean:0", "std:15"] {
            assert_eq!(text.parse::<Pooled>().unwrap().to_string(), text);
        }
        for text in ["mean", "max:0", "mean:16", "std:tail", ""] {
            assert!(text.parse::<Pooled>().unwrap_err().contains("mean:MAP"), "{text}");
        }
    }

    #[test]
    fn stages_hold_all_blocks() {
        assert_eq!(STAGES.iter().map(|stage| stage.0).sum::<usize>(), BLOCKS);
    }
}
