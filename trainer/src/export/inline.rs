//! Puts the graph of another ONNX file into a graph under construction.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

use super::onnx::{Graph, Value, declared_opset};
use crate::{Error, Result};

/// Operator sets whose files can be taken in as they are. No operator that an encoder has at
/// inference changed its meaning between them in a way that the declared set does not tell.
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
    // Exporters may leave nodes without names, or give two the same; what a node computes is
    // always named, and by one node only.
    let name = node.output.iter().find(|name| !name.is_empty());
    node.name = name.cloned().unwrap_or_else(|| prefix(&node.name));
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

#[cfg(test)]
mod tests {
    use tract_onnx::pb;
    use tract_onnx::prelude::Tensor;

    use super::super::onnx::{Dim, Element};
    use super::super::testing::Loaded;
    use super::*;

    /// `2 * mean over positions`, with the axes of the mean as an input (operator set 18) and no
    /// node named.
    fn doubled_mean(opset: i64) -> ModelProto {
        let mut graph = Graph::new("encoder", opset);
        let dims = [Dim::Symbol("N"), Dim::Fixed(2), Dim::Fixed(4), Dim::Fixed(4)];
        let x = graph.input("pixels", Element::F32, &dims);
        let axes = graph.i64s("axes", &[2, 3]);
        let keep = vec![("keepdims", super::super::onnx::Attribute::Int(0))];
        let mean = graph.op("ReduceMean", "mean", &[&x, &axes], keep);
        let twice = graph.add("twice", &mean, &mean);
        graph.output("features", &twice, Element::F32, &[Dim::Symbol("N"), Dim::Fixed(2)]);
        let mut model = graph.finish(Vec::new());
        if let Some(graph) = &mut model.graph {
            graph.node.iter_mut().for_each(|node| node.name.clear());
        }
        model
    }

    #[test]
    fn unnamed_nodes_of_newer_operator_sets_are_taken_in() {
        for opset in [18, 20, 23] {
            let model = doubled_mean(opset);
            let mut graph = Graph::new("whole", declared_opset(&model));
            let dims = [Dim::Symbol("N"), Dim::Fixed(2), Dim::Fixed(4), Dim::Fixed(4)];
            let x = graph.input("image", Element::F32, &dims);
            let path = Path::new("encoder.onnx");
            let inlined = graph.scoped("encoder", |graph| inline(graph, model, path, &x)).unwrap();
            graph.output("out", &inlined, Element::F32, &[Dim::Symbol("N"), Dim::Fixed(2)]);
            let whole = graph.finish(Vec::new());
            let names: Vec<&str> =
                whole.graph.iter().flat_map(|g| &g.node).map(|node| node.name.as_str()).collect();
            let unique: HashSet<_> = names.iter().collect();
            assert_eq!(unique.len(), names.len(), "{names:?}");
            let values: Vec<f32> = (0..32).map(|v| v as f32).collect();
            let input = Tensor::from_shape(&[1, 2, 4, 4], &values).unwrap();
            assert_eq!(Loaded::new(&whole).run(vec![input])[0].1, [15.0, 47.0]);
        }
    }

    #[test]
    fn other_operator_sets_are_refused_by_number() {
        let mut model = doubled_mean(18);
        for version in [12, 99] {
            model.opset_import = vec![pb::OperatorSetIdProto { domain: String::new(), version }];
            let message = check(&model, Path::new("old.onnx")).unwrap_err().to_string();
            assert!(message.contains(&version.to_string()) && message.contains("old.onnx"));
        }
    }
}
