//! Puts the graph of another ONNX file into a graph under construction.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

use super::onnx::{Graph, Value, declared_opset};
use crate::{Error, Result};

/// Operator sets whose files can be taken in as they are. Between 13 and 17 no operator that
/// occurs at inference changed its meaning.
const KNOWN_OPSETS: std::ops::RangeInclusive<i64> = 13..=23;

/// Whether and how a file can be inlined; `path` is named in messages.
pub fn check(model: &ModelProto, path: &Path) -> Result<()> {
    let opset = declared_opset(model);
    if !KNOWN_OPSETS.contains(&opset) {
        return Err(Error::model(
            path,
            format!(
                "uses ONNX operator set {opset}; convert it to one from {} to {}, for example \
                 with onnx.version_converter",
                KNOWN_OPSETS.start(),
                KNOWN_OPSETS.end()
            ),
        ));
    }
    if !model.functions.is_empty() {
        return Err(Error::model(
            path,
            "defines functions of its own; export it with them inlined (onnx.inliner)",
        ));
    }
    let external =
        |tensor: &TensorProto| tensor.data_location == Some(DataLocation::External as i32);
    if graph(model, path)?.initializer.iter().any(external) {
        return Err(Error::model(
            path,
            "keeps its weights in another file; save it as one file (onnx.save without external data)",
        ));
    }
    only_input(model, path)?;
    Ok(())
}

/// Adds the model's nodes in the graph's current scope, with `x` as its input; returns its first
/// output.
pub fn inline(target: &mut Graph, model: ModelProto, path: &Path, x: &Value) -> Result<Value> {
    check(&model, path)?;
    let input = only_input(&model, path)?.name.clone();
    let domains: Vec<_> = model
        .opset_import
        .iter()
        .filter(|import| !import.domain.is_empty() && import.domain != "ai.onnx")
        .cloned()
        .collect();
    let Some(mut source) = model.graph else {
        return Err(Error::model(path, "holds no graph"));
    };
    let Some(output) = source.output.first().map(|output| output.name.clone()) else {
        return Err(Error::model(path, "has no output; export it again"));
    };
    let prefix = |name: &str| target.path(name);
    let mut names = HashMap::from([(input, x.name().to_owned())]);
    for tensor in &mut source.initializer {
        let new = prefix(&tensor.name);
        names.insert(std::mem::replace(&mut tensor.name, new.clone()), new);
    }
    for node in &mut source.node {
        rename(node, &mut names, &prefix);
    }
    let Some(output) = names.get(&output).cloned() else {
        return Err(Error::model(path, format!("nothing computes its output {output}")));
    };
    target.splice(source.node, source.initializer, &domains);
    Ok(Value::named(output))
}

/// Gives a node's outputs new names and its inputs the names they got.
fn rename(
    node: &mut NodeProto,
    names: &mut HashMap<String, String>,
    prefix: &impl Fn(&str) -> String,
) {
    for input in node.input.iter_mut().filter(|name| !name.is_empty()) {
        if let Some(new) = names.get(input) {
            new.clone_into(input);
        }
    }
    for attribute in &mut node.attribute {
        for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            rename_body(body, names, prefix);
        }
    }
    for output in node.output.iter_mut().filter(|name| !name.is_empty()) {
        let new = prefix(output);
        names.insert(std::mem::replace(output, new.clone()), new);
    }
    node.name = prefix(&node.name);
}

/// The same in the body of a branch or loop, which also sees the names around it.
fn rename_body(
    body: &mut GraphProto,
    outer: &HashMap<String, String>,
    prefix: &impl Fn(&str) -> String,
) {
    let mut names = outer.clone();
    for input in &mut body.input {
        let new = prefix(&input.name);
        names.insert(std::mem::replace(&mut input.name, new.clone()), new);
    }
    for tensor in &mut body.initializer {
        let new = prefix(&tensor.name);
        names.insert(std::mem::replace(&mut tensor.name, new.clone()), new);
    }
    for node in &mut body.node {
        rename(node, &mut names, prefix);
    }
    for output in &mut body.output {
        if let Some(new) = names.get(&output.name) {
            new.clone_into(&mut output.name);
        }
    }
    body.value_info.clear();
}

fn graph<'a>(model: &'a ModelProto, path: &Path) -> Result<&'a GraphProto> {
    model.graph.as_ref().ok_or_else(|| Error::model(path, "holds no graph; export it again"))
}

/// The one input that is not a weight.
fn only_input<'a>(model: &'a ModelProto, path: &Path) -> Result<&'a ValueInfoProto> {
    let graph = graph(model, path)?;
    let weights: HashSet<&str> =
        graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let inputs: Vec<_> =
        graph.input.iter().filter(|input| !weights.contains(input.name.as_str())).collect();
    match inputs.as_slice() {
        [input] => Ok(input),
        inputs => Err(Error::model(
            path,
            format!(
                "has {} inputs where an image encoder has one; export only the image part",
                inputs.len()
            ),
        )),
    }
}
