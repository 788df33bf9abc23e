//! Tiny encoders for tests.

use std::path::Path;

use diffbulk::model::pb;
use prost::Message;

use super::encoder::{EncoderInfo, METADATA_KEY};

/// Writes an encoder whose features are the mean of each normalised channel.
pub(crate) fn write_mean_colour(path: &Path, info: Option<&EncoderInfo>, px: i64) {
    let node = |op: &str, input: &str, output: &str| pb::NodeProto {
        op_type: op.into(),
        input: vec![input.into()],
        output: vec![output.into()],
        ..Default::default()
    };
    let nodes =
        vec![node("GlobalAveragePool", "image", "pooled"), node("Flatten", "pooled", "features")];
    write(path, nodes, px, &[1, 3], info);
}

/// Writes a graph that gives its image back, which is not an encoder.
pub(crate) fn write_identity(path: &Path, px: i64) {
    let node = pb::NodeProto {
        op_type: "Relu".into(),
        input: vec!["image".into()],
        output: vec!["features".into()],
        ..Default::default()
    };
    write(path, vec![node], px, &[1, 3, px, px], None);
}

fn write(path: &Path, node: Vec<pb::NodeProto>, px: i64, out: &[i64], info: Option<&EncoderInfo>) {
    let metadata_props = info
        .map(|info| pb::StringStringEntryProto {
            key: METADATA_KEY.into(),
            value: serde_json::to_string(info).unwrap(),
        })
        .into_iter()
        .collect();
    let model = pb::ModelProto {
        ir_version: 8,
        opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(pb::GraphProto {
            name: "encoder".into(),
            node,
            input: vec![value("image", &[1, 3, px, px])],
            output: vec![value("features", out)],
            ..Default::default()
        }),
        metadata_props,
        ..Default::default()
    };
    std::fs::write(path, model.encode_to_vec()).unwrap();
}

fn value(name: &str, shape: &[i64]) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value as Size};
    let dim = shape
        .iter()
        .map(|&n| Dimension { value: Some(Size::DimValue(n)), ..Default::default() })
        .collect();
    let tensor = pb::type_proto::Tensor {
        elem_type: pb::tensor_proto::DataType::Float as i32,
        shape: Some(pb::TensorShapeProto { dim }),
    };
    let kind = pb::TypeProto {
        value: Some(pb::type_proto::Value::TensorType(tensor)),
        ..Default::default()
    };
    pb::ValueInfoProto { name: name.into(), r#type: Some(kind), ..Default::default() }
}
