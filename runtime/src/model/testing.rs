//! Tiny ONNX models built in memory for tests.

use std::path::Path;

use prost::Message;

use super::metadata::*;
use super::pb::{self, tensor_proto::DataType};
use super::{IMAGE_STATISTICS, INPUT, OUTPUT};

/// Plausible metadata for a tile of `tile_px` at 0.5 um/px.
pub(crate) fn metadata(tile_px: u32, panel: &[&str]) -> Metadata {
    Metadata {
        schema_version: SCHEMA_VERSION,
        name: "tiny".into(),
        version: "1".into(),
        panel: panel.iter().map(|&gene| gene.to_owned()).collect(),
        tile_px,
        um_per_px: 0.5,
        unit: "ln(1 + counts per 10,000)".into(),
        precision: "float32".into(),
        quantization: None,
        macs_per_tile: 3 * panel.len() as u64,
        license: "CC0-1.0".into(),
        training_data: vec![],
        metrics: vec![],
        gene_pearson: Default::default(),
        confidence: Some(Confidence {
            statistics: IMAGE_STATISTICS.map(String::from).to_vec(),
            mean: vec![0.5; 6],
            std: vec![0.25; 6],
        }),
        provenance: Provenance {
            crate_version: crate::VERSION.into(),
            config_sha256: String::new(),
            seed: 0,
            encoder: "none".into(),
        },
    }
}

/// Metadata as `metadata_props`.
pub(crate) fn props(metadata: &Metadata) -> Vec<pb::StringStringEntryProto> {
    let entry = |(key, value)| pb::StringStringEntryProto { key, value };
    metadata.to_props().into_iter().map(entry).collect()
}

/// A predictor of mean colour: gene k is the mean of channel k mod 3 on a 0 to 1 scale, times
/// k + 1. Goes through every operator an exported predictor starts with: Cast, Transpose, Conv.
pub(crate) fn tiny_model(metadata: &Metadata) -> pb::ModelProto {
    let genes = metadata.panel.len();
    let mut weight = vec![0.0; genes * 3];
    for gene in 0..genes {
        weight[gene * 3 + gene % 3] = (gene + 1) as f32 / 255.0;
    }
    let side = i64::from(metadata.tile_px);
    let node = vec![
        node("Cast", &[INPUT], "float", &[("to", Attribute::Int(DataType::Float as i64))]),
        node("Transpose", &["float"], "nchw", &[("perm", Attribute::Ints(&[0, 3, 1, 2]))]),
        node("Conv", &["nchw", "weight"], "genes", &[("kernel_shape", Attribute::Ints(&[1, 1]))]),
        node("GlobalAveragePool", &["genes"], "pooled", &[]),
        node("Flatten", &["pooled"], OUTPUT, &[("axis", Attribute::Int(1))]),
    ];
    let shape = [Err("N"), Ok(side), Ok(side), Ok(3)];
    model(pb::GraphProto {
        name: "tiny".into(),
        input: vec![value(INPUT, DataType::Uint8, &shape)],
        output: vec![value(OUTPUT, DataType::Float, &[Err("N"), Ok(genes as i64)])],
        initializer: vec![tensor("weight", &[genes as i64, 3, 1, 1], &weight)],
        node,
        ..Default::default()
    })
    .with_props(metadata)
}

/// A float model y = relu(x * weight) for x [N, inputs].
pub(crate) fn tiny_linear(inputs: usize, outputs: usize, weight: &[f32]) -> pb::ModelProto {
    model(pb::GraphProto {
        name: "linear".into(),
        input: vec![value("x", DataType::Float, &[Err("N"), Ok(inputs as i64)])],
        output: vec![value("y", DataType::Float, &[Err("N"), Ok(outputs as i64)])],
        initializer: vec![tensor("weight", &[inputs as i64, outputs as i64], weight)],
        node: vec![
            node("MatMul", &["x", "weight"], "product", &[]),
            node("Relu", &["product"], "y", &[]),
        ],
        ..Default::default()
    })
}

trait WithProps {
    fn with_props(self, metadata: &Metadata) -> Self;
}

impl WithProps for pb::ModelProto {
    fn with_props(mut self, metadata: &Metadata) -> Self {
        self.metadata_props = props(metadata);
        self
    }
}

fn model(graph: pb::GraphProto) -> pb::ModelProto {
    pb::ModelProto {
        ir_version: 8,
        opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: 17 }],
        producer_name: "diffbulk".into(),
        graph: Some(graph),
        ..Default::default()
    }
}

/// Writes a model to `path`.
pub(crate) fn write(proto: &pb::ModelProto, path: &Path) {
    std::fs::write(path, proto.encode_to_vec()).unwrap();
}

/// Changes the element type of a graph input or output.
pub(crate) fn set_type(info: &mut pb::ValueInfoProto, data_type: DataType) {
    if let Some(pb::type_proto::Value::TensorType(tensor)) =
        info.r#type.as_mut().and_then(|t| t.value.as_mut())
    {
        tensor.elem_type = data_type as i32;
    }
}

enum Attribute<'a> {
    Int(i64),
    Ints(&'a [i64]),
}

fn node(
    op_type: &str,
    inputs: &[&str],
    output: &str,
    attributes: &[(&str, Attribute)],
) -> pb::NodeProto {
    use pb::attribute_proto::AttributeType;
    let attribute = attributes
        .iter()
        .map(|(name, value)| {
            let mut attribute = pb::AttributeProto { name: (*name).into(), ..Default::default() };
            match value {
                Attribute::Int(i) => {
                    attribute.r#type = AttributeType::Int as i32;
                    attribute.i = *i;
                }
                Attribute::Ints(ints) => {
                    attribute.r#type = AttributeType::Ints as i32;
                    attribute.ints = ints.to_vec();
                }
            }
            attribute
        })
        .collect();
    pb::NodeProto {
        op_type: op_type.into(),
        name: output.into(),
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: vec![output.into()],
        attribute,
        ..Default::default()
    }
}

fn value(name: &str, data_type: DataType, dims: &[Result<i64, &str>]) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value as Dim};
    let dim = dims
        .iter()
        .map(|dim| Dimension {
            value: Some(match dim {
                Ok(n) => Dim::DimValue(*n),
                Err(name) => Dim::DimParam((*name).into()),
            }),
            ..Default::default()
        })
        .collect();
    pb::ValueInfoProto {
        name: name.into(),
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(pb::type_proto::Tensor {
                elem_type: data_type as i32,
                shape: Some(pb::TensorShapeProto { dim }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn tensor(name: &str, dims: &[i64], values: &[f32]) -> pb::TensorProto {
    pb::TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..Default::default()
    }
}
