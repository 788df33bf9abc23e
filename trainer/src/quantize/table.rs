//! The table of scales: everything a calibration decides, whatever form it is written in.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use diffbulk::model::pb::{GraphProto, ModelProto};
use serde::Serialize;

use super::calibrate::Calibrator;
use super::graph::{self, Layer};
use super::observe::Tiles;
use super::rounding::Moments;
use super::scheme::{Affine, Channels, bias_floor};
use crate::Result;

/// Arithmetic of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerPrecision {
    /// int8 weights, uint8 activations.
    Int8,
    /// int8 weights that are turned back into floats.
    Weights8,
    /// As it was.
    Float,
}

/// What is decided before the first tile is seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Settings {
    /// Bits of a weight: 8, or 7 for CPUs without a dot-product instruction.
    pub weight_bits: u8,
    /// Whether outputs of int8 layers are integers too.
    pub integer_outputs: bool,
    /// Whether the mean error of each layer's weights is taken out of its bias.
    pub bias_correction: bool,
}

/// The numbers of one quantised layer.
#[derive(Debug, Clone)]
pub struct LayerScales {
    /// Its arithmetic.
    pub precision: LayerPrecision,
    /// Its weights; absent where it stays float.
    pub weights: Option<Channels>,
    /// Its bias in reals, corrected; absent where it has none and needs none.
    pub bias: Option<Vec<f32>>,
}

/// Scales of activations and weights.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Integers of each activation, by tensor.
    pub activations: BTreeMap<String, Affine>,
    /// Layers, by name.
    pub layers: BTreeMap<String, LayerScales>,
}

/// What was seen of the activations: enough for any table over the same model and tiles.
#[derive(Debug)]
pub struct Calibration {
    ranges: BTreeMap<String, Affine>,
    means: InputMeans,
    moments: Option<Moments>,
    /// Layers that were quantised before: a search asks for the same ones again and again.
    made: Mutex<BTreeMap<(String, LayerPrecision), LayerScales>>,
}

/// Mean of each layer's input, per channel.
#[derive(Debug)]
pub struct InputMeans(BTreeMap<String, Vec<f64>>);

impl InputMeans {
    /// Looks at the inputs of all `layers`.
    pub fn of(model: &ModelProto, layers: &[Layer], tiles: Tiles) -> Result<Self> {
        let inputs: BTreeMap<String, usize> =
            layers.iter().map(|layer| (layer.input.clone(), layer.inputs())).collect();
        let (names, channels): (Vec<String>, Vec<usize>) = inputs.into_iter().unzip();
        let means = tiles.channel_means(model, &names, &channels)?;
        Ok(Self(names.into_iter().zip(means).collect()))
    }

    /// The bias of `layer` that makes up for what the errors of its weights (`back` in the place
    /// of `data`) take from its mean output; `bias` itself where the input was not seen.
    pub fn corrected(
        &self,
        layer: &Layer,
        bias: Option<Vec<f32>>,
        data: &[f32],
        back: &[f32],
    ) -> Option<Vec<f32>> {
        let Some(mean) = self.0.get(&layer.input) else { return bias };
        let shift = weight_shift(layer, data, back, mean);
        let bias = bias.unwrap_or_else(|| vec![0.0; layer.outputs()]);
        Some(bias.iter().zip(shift).map(|(b, shift)| b + shift as f32).collect())
    }
}

impl Calibration {
    /// Looks at inputs and outputs of all `layers`.
    pub fn of(
        model: &ModelProto,
        layers: &[Layer],
        tiles: Tiles,
        calibrator: &dyn Calibrator,
    ) -> Result<Self> {
        let mut names: Vec<String> =
            layers.iter().flat_map(|layer| [layer.input.clone(), layer.seen.clone()]).collect();
        names.sort();
        names.dedup();
        let histograms = tiles.histograms(model, &names)?;
        let ranges = {
            use rayon::prelude::*;
            let range = |histogram| {
                let (low, high) = calibrator.range(histogram);
                Affine::over(low, high)
            };
            let ranges: Vec<Affine> = histograms.par_iter().map(range).collect();
            names.into_iter().zip(ranges).collect()
        };
        let means = InputMeans::of(model, layers, tiles)?;
        Ok(Self { ranges, means, moments: None, made: Mutex::default() })
    }

    /// Rounds weights with `moments` from here on.
    pub fn with_moments(self, moments: Moments) -> Self {
        Self { moments: Some(moments), made: Mutex::default(), ..self }
    }

    /// The table when every layer has the arithmetic that `precision` says; `settings` have to be
    /// the same in every call.
    pub fn table(
        &self,
        graph: &GraphProto,
        layers: &[Layer],
        settings: Settings,
        precision: impl Fn(&Layer) -> LayerPrecision,
    ) -> Result<Table> {
        let mut table = Table::default();
        for layer in layers {
            let precision = precision(layer);
            if precision == LayerPrecision::Int8 {
                let mut seen = vec![&layer.input];
                if settings.integer_outputs {
                    seen.push(&layer.seen);
                }
                for name in seen {
                    if let Some(affine) = self.ranges.get(name) {
                        table.activations.insert(name.clone(), *affine);
                    }
                }
            }
            let key = (layer.name.clone(), precision);
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            let scales = match made.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let scales = self.layer(graph, layer, settings, precision)?;
                    made.insert(key, scales.clone());
                    scales
                }
            };
            table.layers.insert(layer.name.clone(), scales);
        }
        Ok(table)
    }

    fn layer(
        &self,
        graph: &GraphProto,
        layer: &Layer,
        settings: Settings,
        precision: LayerPrecision,
    ) -> Result<LayerScales> {
        let bias = layer.bias.as_ref().map(|name| graph::constant(graph, name)).transpose()?;
        if precision == LayerPrecision::Float {
            return Ok(LayerScales { precision, weights: None, bias });
        }
        let data = graph::constant(graph, &layer.weight)?;
        let (bits, floor) = match (precision, self.ranges.get(&layer.input)) {
            (LayerPrecision::Int8, Some(&input)) => {
                (settings.weight_bits, bias.as_ref().map_or(Vec::new(), |b| bias_floor(b, input)))
            }
            _ => (8, Vec::new()),
        };
        let mut weights = Channels::of(&data, &layer.shape, layer.axis, bits, &floor);
        if let Some(moments) = &self.moments {
            weights.round(layer, &data, bits, moments);
        }
        let bias = match settings.bias_correction {
            true => self.means.corrected(layer, bias, &data, &weights.dequantize()),
            false => bias,
        };
        Ok(LayerScales { precision, weights: Some(weights), bias })
    }
}

/// Per output channel, what the weights' errors take from the mean output:
/// sum over inputs of E[x] (W - Wq).
fn weight_shift(layer: &Layer, data: &[f32], back: &[f32], mean: &[f64]) -> Vec<f64> {
    let outputs = layer.outputs();
    let window: usize = layer.shape.iter().skip(2).product();
    let mut shift = vec![0.0; outputs];
    for (index, (w, q)) in data.iter().zip(back).enumerate() {
        let (first, second) = (index / window / layer.shape[1], index / window % layer.shape[1]);
        let (output, input) = if layer.axis == 0 { (first, second) } else { (second, first) };
        let group = output * layer.groups / outputs;
        let input = group * layer.shape[1 - layer.axis] + input;
        shift[output] += mean[input] * (f64::from(*w) - f64::from(*q));
    }
    shift
}
