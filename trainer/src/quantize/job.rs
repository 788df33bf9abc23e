//! Carries a quantisation out on a model in memory.

use diffbulk::model::pb::ModelProto;
use serde_json::json;

use super::graph::{self, Kind, Layer};
use super::half::{self, Islands};
use super::measure::Reference;
use super::observe::Tiles;
use super::recipe::{Form, Precision, QuantizeFlags, Rounding};
use super::rounding::Moments;
use super::sensitivity::{self, Assignment, Budget};
use super::table::{Calibration, InputMeans, LayerPrecision, Settings};
use super::{qdq, qlinear, split, weight_only};
use crate::{Error, Result};

/// float16 stays as it is above this signal to noise ratio; below, operators become islands. Noise
/// of a ten-thousandth of the outputs' variance takes 1 - 1 / sqrt(1 + 1e-4) = 5e-5 from a
/// correlation at most.
const HALF_TARGET_DB: f64 = 40.0;

/// Tiles on which single layers and operators are compared.
const PROBING_TILES: usize = 16;

/// What a quantisation starts from.
#[derive(Debug)]
pub struct Job<'a> {
    /// The float32 model.
    pub model: &'a ModelProto,
    /// What was asked for.
    pub flags: &'a QuantizeFlags,
    /// Tiles to calibrate on.
    pub calibration: Tiles<'a>,
    /// Tiles to measure losses on.
    pub measured: Tiles<'a>,
    /// The float32 model's outputs on those.
    pub reference: &'a Reference,
    /// What may be lost.
    pub budget: Budget,
}

impl Job<'_> {
    /// The quantised model, and what was decided, for the recipe.
    ///
    /// # Errors
    /// When a graph cannot be run.
    pub fn run(
        &self,
        precision: Precision,
        rounding: Rounding,
    ) -> Result<(ModelProto, serde_json::Value)> {
        match precision {
            Precision::Float32 => Ok((self.model.clone(), json!({}))),
            Precision::Float16 => self.float16(),
            Precision::W8 => self.weight_only(8, rounding),
            Precision::W4 => self.weight_only(4, rounding),
            Precision::Int8 => self.int8(false, rounding),
            Precision::Mixed => self.int8(true, rounding),
        }
    }

    fn kept(&self, layer: &Layer) -> bool {
        self.flags.keep.iter().any(|text| layer.name.contains(text))
    }

    fn weight_only(&self, bits: u8, rounding: Rounding) -> Result<(ModelProto, serde_json::Value)> {
        let layers = graph::layers(graph::graph(self.model)?);
        let layers: Vec<Layer> = layers.into_iter().filter(|layer| !self.kept(layer)).collect();
        let means = match self.flags.no_bias_correction {
            true => None,
            false => Some(InputMeans::of(self.model, &layers, self.calibration)?),
        };
        let moments = match rounding {
            Rounding::Nearest => None,
            Rounding::Adaptive => Some(Moments::of(self.model, &layers, self.calibration)?),
        };
        let model =
            weight_only::write(self.model, &layers, bits, means.as_ref(), moments.as_ref())?;
        let details = json!({ "block": weight_only::BLOCK,
                              "bias_correction": !self.flags.no_bias_correction });
        Ok((model, details))
    }

    /// Everything in float16 but what goes out of range; then operators become islands, the best
    /// first, until the noise is low enough.
    fn float16(&self) -> Result<(ModelProto, serde_json::Value)> {
        let places = half::out_of_range(self.model, self.calibration)?;
        let probing = self.calibration.first(PROBING_TILES);
        let reference = Reference::new(self.model, probing, None)?;
        let noise = |islands: &Islands| -> Result<f64> {
            let model = half::write(self.model, islands, &places)?;
            // An operator that cannot run in float16 is as bad as one that gives nonsense.
            Ok(reference.measure(&model, probing).map_or(f64::NEG_INFINITY, |m| m.sqnr_db))
        };
        let mut islands = Islands::new();
        let mut best = noise(&islands)?;
        let mut steps = vec![json!({ "islands": [], "sqnr_db": best })];
        let operators = half::operators(self.model)?;
        while best < HALF_TARGET_DB && islands.len() < operators.len() {
            let mut found: Option<(f64, String)> = None;
            for operator in operators.difference(&islands) {
                let mut more = islands.clone();
                more.insert(operator.clone());
                let db = noise(&more)?;
                if found.as_ref().is_none_or(|(most, _)| db > *most) {
                    found = Some((db, operator.clone()));
                }
            }
            let Some((db, operator)) = found else { break };
            islands.insert(operator);
            best = db;
            steps.push(json!({ "islands": islands, "sqnr_db": db }));
        }
        if islands.len() == operators.len() {
            return Err(Error::Check(
                "no operator of the model runs in float16 within the noise that is allowed; \
                 choose another --precision"
                    .into(),
            ));
        }
        let model = half::write(self.model, &islands, &places)?;
        let graph = graph::graph(self.model)?;
        let places: Vec<&str> =
            places.iter().map(|&place| graph.node[place].name.as_str()).collect();
        Ok((
            model,
            json!({ "float32_operators": islands, "float32_nodes": places,
                           "search": steps }),
        ))
    }

    /// int8 layers; with `mixed`, only those that the budget allows.
    fn int8(&self, mixed: bool, rounding: Rounding) -> Result<(ModelProto, serde_json::Value)> {
        let flags = self.flags;
        let (model, split) = split::split(self.model, self.calibration, flags.split_above)?;
        let graph = graph::graph(&model)?;
        let layers = graph::layers(graph);
        if layers.is_empty() {
            return Err(Error::Request(
                "the model has no convolution or matrix product with constant weights".into(),
            ));
        }
        let calibrator = flags.calibrator.open();
        let mut calibration = Calibration::of(&model, &layers, self.calibration, &*calibrator)?;
        if rounding == Rounding::Adaptive {
            calibration = calibration.with_moments(Moments::of(&model, &layers, self.calibration)?);
        }
        let settings = Settings {
            weight_bits: flags.weight_bits,
            integer_outputs: !flags.float_outputs || flags.form == Form::Qlinear,
            bias_correction: !flags.no_bias_correction,
        };
        let default = |layer: &Layer| match layer.kind {
            _ if self.kept(layer) => LayerPrecision::Float,
            Kind::Gemm if flags.form == Form::Qlinear => LayerPrecision::Weights8,
            Kind::Gemm | Kind::MatMul if !flags.int8_head => LayerPrecision::Weights8,
            _ => LayerPrecision::Int8,
        };
        let write = |precision: &dyn Fn(&Layer) -> LayerPrecision| -> Result<ModelProto> {
            let table = calibration.table(graph, &layers, settings, precision)?;
            match flags.form {
                Form::Qdq => qdq::write(&model, &layers, &table),
                Form::Qlinear => qlinear::write(&model, &layers, &table),
            }
        };
        let mut assignment: Assignment =
            layers.iter().map(|layer| (layer.name.clone(), default(layer))).collect();
        let mut ranked = Vec::new();
        if mixed {
            let candidates: Vec<&Layer> =
                layers.iter().filter(|layer| default(layer) == LayerPrecision::Int8).collect();
            let probing = self.measured.first(PROBING_TILES);
            let few = Reference::new(self.model, probing, None)?;
            let macs = self.macs(&model, &candidates)?;
            ranked = sensitivity::rank(&candidates, &macs, |alone| {
                let precision = |layer: &Layer| {
                    alone.get(&layer.name).copied().unwrap_or(LayerPrecision::Float)
                };
                few.measure(&write(&precision)?, probing)
            })?;
            let without = |out: &[sensitivity::Sensitivity]| {
                let mut assignment = assignment.clone();
                for sensitive in out {
                    assignment.insert(sensitive.layer.clone(), LayerPrecision::Weights8);
                }
                assignment
            };
            let found = sensitivity::search(&ranked, self.budget, |out| {
                let assignment = without(out);
                let model = write(&|layer: &Layer| assignment[&layer.name])?;
                self.reference.measure(&model, self.measured)
            })?;
            let count = found.map_or(ranked.len(), |(count, _)| count);
            assignment = without(&ranked[..count]);
        }
        let written = write(&|layer: &Layer| assignment[&layer.name])?;
        let of = |precision: LayerPrecision| -> Vec<&String> {
            assignment.iter().filter(|(_, p)| **p == precision).map(|(name, _)| name).collect()
        };
        let (int8, weights8, float) =
            (of(LayerPrecision::Int8), of(LayerPrecision::Weights8), of(LayerPrecision::Float));
        let details = json!({
            "form": match flags.form { Form::Qdq => qdq::FORM, Form::Qlinear => qlinear::FORM },
            "settings": settings,
            "int8_layers": int8.len(),
            "int8_weights_only": weights8.len(),
            "float32_layers": float,
            "taken_out_of_int8": ranked.iter().map(|s| &s.layer)
                .filter(|name| assignment[*name] != LayerPrecision::Int8).collect::<Vec<_>>(),
            "split_concatenations": split,
            "sensitivity": ranked,
        });
        Ok((written, details))
    }

    /// Multiply-accumulates of each layer for one tile.
    fn macs(&self, model: &ModelProto, layers: &[&Layer]) -> Result<Vec<u64>> {
        let names: Vec<String> = layers.iter().map(|layer| layer.output.clone()).collect();
        let shapes = self.calibration.shapes(model, &names)?;
        let macs = |(layer, shape): (&&Layer, Vec<usize>)| {
            let row = layer.weights() / layer.outputs();
            (shape.iter().product::<usize>() * row) as u64
        };
        Ok(layers.iter().zip(shapes).map(macs).collect())
    }
}
