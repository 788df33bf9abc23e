//! What a model's graph is made of: operators, weights and multiply-accumulates.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cnn::{Conv, Deconv};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::internal::{Cost, DimLike, TypedOp};

use super::OnnxFile;
use super::typed::{guarded, typed};
use crate::Result;

/// Facts of an ONNX graph.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphSummary {
    /// ONNX intermediate representation version.
    pub ir_version: i64,
    /// Version of the standard operator set.
    pub opset: i64,
    /// Program that wrote the file, with its version.
    pub producer: String,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Values in all weight tensors.
    pub parameters: u64,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// The inputs, in words.
    pub inputs: Vec<String>,
    /// The outputs, in words.
    pub outputs: Vec<String>,
}

impl GraphSummary {
    /// Describes the graph of `file`.
    ///
    /// # Errors
    /// When an input or output is not a tensor.
    pub fn of(file: &OnnxFile) -> Result<Self> {
        let proto = file.proto();
        let graph = file.graph()?;
        let mut operators = BTreeMap::new();
        for node in &graph.node {
            *operators.entry(node.op_type.clone()).or_default() += 1;
        }
        let standard = proto
            .opset_import
            .iter()
            .find(|opset| opset.domain.is_empty() || opset.domain == "ai.onnx");
        let values = |tensor: &super::pb::TensorProto| tensor.dims.iter().product::<i64>() as u64;
        Ok(Self {
            ir_version: proto.ir_version,
            opset: standard.map_or(0, |opset| opset.version),
            producer: format!("{} {}", proto.producer_name, proto.producer_version)
                .trim()
                .to_owned(),
            file_bytes: file.bytes(),
            parameters: graph.initializer.iter().map(values).sum(),
            operators,
            inputs: file.inputs()?.iter().map(super::Value::to_string).collect(),
            outputs: file.outputs()?.iter().map(super::Value::to_string).collect(),
        })
    }
}

/// Multiply-accumulates of all convolutions and matrix products of `proto` for one input of shape
/// `input` (for a predictor [1, S, S, 3]). Element-wise operators, pooling and resampling are not
/// counted, nor is what can be computed once when loading.
///
/// # Errors
/// When the graph does not take such an input, or a shape depends on the data.
pub fn macs(proto: &super::pb::ModelProto, input: &[usize]) -> Result<u64> {
    let name = proto.graph.as_ref().map_or("graph", |graph| graph.name.as_str());
    guarded(Path::new(name), || count(&typed(proto, input)?))
}

fn count(model: &TypedModel) -> TractResult<u64> {
    let mut macs = 0;
    for node in &model.nodes {
        let op: &dyn TypedOp = node.op.as_ref();
        if !(op.is::<Conv>() || op.is::<Deconv>() || op.is::<EinSum>()) {
            continue;
        }
        let facts = model.node_input_facts(node.id)?;
        if facts.iter().all(|fact| fact.konst.is_some()) {
            continue;
        }
        for (cost, number) in op.cost(&facts)? {
            if let Cost::FMA(_) = cost {
                macs += number.to_usize()? as u64;
            }
        }
    }
    Ok(macs)
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn counts_convolutions_and_products() {
        let proto = testing::tiny_model(&testing::metadata(8, &["A", "B"]));
        // 1x1 convolution, 3 to 2 channels, over 8 x 8 positions.
        assert_eq!(macs(&proto, &[1, 8, 8, 3]).unwrap(), 8 * 8 * 3 * 2);
        let proto = testing::tiny_linear(5, 7, &[0.5; 35]);
        assert_eq!(macs(&proto, &[3, 5]).unwrap(), 3 * 5 * 7);
        assert!(macs(&proto, &[3, 6]).is_err());
    }

    #[test]
    fn summary_lists_operators_and_weights() {
        let proto = testing::tiny_model(&testing::metadata(8, &["A", "B"]));
        let file = OnnxFile::from_proto(proto, Path::new("m.onnx")).unwrap();
        let summary = GraphSummary::of(&file).unwrap();
        assert_eq!(summary.opset, 17);
        assert_eq!(summary.parameters, 6);
        assert_eq!(summary.operators["Conv"], 1);
        assert_eq!(summary.inputs, ["`image` uint8 [N, 8, 8, 3]"]);
    }
}
