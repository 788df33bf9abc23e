//! tract's typed graph as [`Graph`].
//!
//! The graph is taken as tract's loader types it, before its optimisation passes: those drop batch
//! axes and turn 1x1 convolutions into matrix products, which serves tract's own kernels, and take
//! three times as long as loading.

mod constants;
mod operators;

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{AxisOp, DimLike, TractErrorContext, TypedOp};
use tract_onnx::tract_core::ops::cnn;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::identity::Identity;
use tract_onnx::tract_core::ops::quant::{DequantizeLinearF32, QuantizeLinearU8};
use tract_onnx::tract_core::ops::source::TypedSource;

use super::graph::{Graph, Id, Node, Op, Value, is_row_major, layout_of};
use crate::engine::fused::list::*;

/// Reads `model`, whose shapes must all be numbers.
pub(super) fn import(model: &TypedModel) -> TractResult<Graph> {
    let mut import = Import { model, graph: Graph::default(), maps: HashMap::new() };
    for id in model.eval_order()? {
        import.node(id).with_context(|| format!("reading node {}", model.node(id)))?;
    }
    import.outputs()?;
    let mut graph = import.graph;
    graph.index();
    graph.sweep();
    Ok(graph)
}

struct Import<'a> {
    model: &'a TypedModel,
    graph: Graph,
    /// Copies of graph inputs in the order of a map.
    maps: HashMap<Id, Id>,
}

impl Import<'_> {
    fn node(&mut self, id: usize) -> TractResult<()> {
        let node = self.model.node(id);
        let inputs: Vec<Id> = node.inputs.iter().map(|outlet| self.graph.outlets[outlet]).collect();
        if let Some(constants) = constants::folded(&self.graph, node, &inputs)? {
            for (slot, tensor) in constants.into_iter().enumerate() {
                self.value(OutletId::new(id, slot), Some(tensor))?;
            }
            return Ok(());
        }
        let mut outputs = vec![];
        for slot in 0..node.outputs.len() {
            outputs.push(self.value(OutletId::new(id, slot), None)?);
        }
        if node.op_is::<TypedSource>() {
            self.input(outputs[0]);
            return Ok(());
        }
        match self.read(node, &inputs, &outputs)? {
            Read::Same(value) => {
                self.graph.outlets.insert(OutletId::new(id, 0), value);
            }
            Read::As(op, reads) => self.push(&node.name, op, reads, outputs, id),
            Read::Biased(op, reads, bias) => {
                let sums = self.graph.value_like(outputs[0], node.name.clone());
                self.push(&node.name, op, reads, vec![sums], id);
                self.push(&node.name, Op::Offset(bias), vec![sums], outputs, id);
            }
        }
        Ok(())
    }

    fn push(&mut self, name: &str, op: Op, inputs: Vec<Id>, outputs: Vec<Id>, origin: usize) {
        self.graph.nodes.push(Node { name: name.to_owned(), op, inputs, outputs, origin });
    }

    fn value(&mut self, outlet: OutletId, constant: Option<Arc<Tensor>>) -> TractResult<Id> {
        let (element, dims) = match &constant {
            Some(tensor) => (tensor.datum_type(), tensor.shape().to_vec()),
            None => {
                let fact = self.model.outlet_fact(outlet)?;
                let dims = fact.shape.iter().map(|dim| dim.to_usize()).collect::<Result<_, _>>()?;
                (fact.datum_type, dims)
            }
        };
        let id = self.graph.value(Value {
            name: self.model.node(outlet.node).name.clone(),
            element,
            layout: layout_of(&dims),
            dims,
            constant,
        });
        self.graph.outlets.insert(outlet, id);
        Ok(id)
    }

    /// The grid of a node that makes uint8 values, if all that read them turn them back.
    fn snapped(&self, node: &TypedNode) -> Option<Grid> {
        let op = node.op.downcast_ref::<ElementWiseOp>()?;
        let quantize = op.0.downcast_ref::<QuantizeLinearU8>()?;
        let outlet = OutletId::new(node.id, 0);
        let readers = &node.outputs.first()?.successors;
        let scale = |inlet: &InletId| {
            let back = self.model.node(inlet.node).op.downcast_ref::<DequantizeLinearF32>()?;
            let same = back.zero_point == i32::from(quantize.zero_point)
                && (back.scale * quantize.scale - 1.0).abs() < 1e-5;
            same.then_some(back.scale)
        };
        let scales: Vec<f32> = readers.iter().map(scale).collect::<Option<_>>()?;
        let (&first, rest) = scales.split_first()?;
        let alone = !self.model.outputs.contains(&outlet) && rest.iter().all(|s| *s == first);
        let source = self.graph.outlets.get(node.inputs.first()?)?;
        let floats = self.graph.values[*source].element == f32::datum_type();
        (alone && floats).then_some(Grid { scale: first, zero_point: quantize.zero_point })
    }

    /// A graph input is row-major; what reads it as a map reads a copy in that order.
    fn input(&mut self, id: Id) {
        self.graph.inputs.push(id);
        let value = &mut self.graph.values[id];
        if !is_row_major(&value.layout) {
            value.layout = Layout::Plain(value.dims.clone());
        }
    }

    /// Outputs of the graph are row-major.
    fn outputs(&mut self) -> TractResult<()> {
        for outlet in &self.model.outputs {
            let id = self.graph.outlets[outlet];
            let value = self.graph.values[id].clone();
            let output = if is_row_major(&value.layout) {
                id
            } else {
                let layout = Layout::Plain(value.dims.clone());
                let output = self.graph.value(Value { layout, ..value.clone() });
                self.layout(id, output, &value.name);
                output
            };
            self.graph.outputs.push(output);
        }
        Ok(())
    }

    fn layout(&mut self, from: Id, to: Id, name: &str) {
        self.push(name, Op::Layout, vec![from], vec![to], usize::MAX);
    }

    /// `id` in the layout of its dimensions: a graph input may have to be copied into it.
    fn as_map(&mut self, id: Id) -> Id {
        let value = self.graph.values[id].clone();
        let layout = layout_of(&value.dims);
        if layout == value.layout {
            return id;
        }
        if let Some(&map) = self.maps.get(&id) {
            return map;
        }
        let name = value.name.clone();
        let map = self.graph.value(Value { layout, ..value });
        self.layout(id, map, &name);
        self.maps.insert(id, map);
        map
    }

    fn read(&mut self, node: &TypedNode, inputs: &[Id], outputs: &[Id]) -> TractResult<Read> {
        let op: &dyn TypedOp = node.op.as_ref();
        if let (Some(axis_op), [input], [output]) = (op.downcast_ref::<AxisOp>(), inputs, outputs) {
            return Ok(self.axis_op(axis_op, *input, *output));
        }
        if let (true, [input]) = (op.is::<Identity>(), inputs) {
            return Ok(Read::Same(*input));
        }
        let live: Vec<Id> =
            inputs.iter().copied().filter(|&id| self.graph.constant(id).is_none()).collect();
        let [output] = outputs else { return Ok(Read::As(Op::Other, live)) };
        if let (Some(grid), [input]) = (self.snapped(node), live.as_slice()) {
            // From here on the integers are the reals they stand for.
            let map = self.as_map(*input);
            let layout = self.graph.values[map].layout.clone();
            let value = &mut self.graph.values[*output];
            (value.element, value.layout) = (f32::datum_type(), layout);
            return Ok(Read::As(Op::Activate(Activation::Snap(grid)), vec![map]));
        }
        if let (true, [input]) = (op.is::<DequantizeLinearF32>(), inputs)
            && self.graph.values[*input].element == f32::datum_type()
        {
            return Ok(Read::Same(*input));
        }
        if let Some(conv) = op.downcast_ref::<cnn::Conv>()
            && let Some((conv, bias)) = operators::conv(&self.graph, conv, inputs, *output)?
        {
            let map = self.as_map(inputs[0]);
            return Ok(match bias {
                Some(bias) => Read::Biased(Op::Conv(conv), vec![map], bias),
                None => Read::As(Op::Conv(conv), vec![map]),
            });
        }
        let found = operators::operation(&self.graph, op, inputs, &live, *output)?;
        Ok(match found {
            Some(Op::Other) | None => Read::As(Op::Other, live),
            Some(Op::Pixels) => {
                // A cast leaves every element where it is.
                let layout = self.graph.values[inputs[0]].layout.clone();
                self.graph.values[*output].layout = layout;
                Read::As(Op::Pixels, live)
            }
            Some(op) => {
                let live = live.into_iter().map(|id| self.as_map(id)).collect();
                Read::As(op, live)
            }
        })
    }

    fn axis_op(&mut self, op: &AxisOp, input: Id, output: Id) -> Read {
        let from = self.graph.values[input].clone();
        let AxisOp::Move(source, target) = op else {
            return if from.dims == self.graph.values[output].dims {
                Read::Same(input)
            } else {
                Read::As(Op::Reshape, vec![input])
            };
        };
        let mut order: Vec<usize> = (0..from.dims.len()).collect();
        let axis = order.remove(*source);
        order.insert(*target, axis);
        let is_plain = matches!(from.layout, Layout::Plain(_));
        if order == [0, 3, 1, 2] && is_plain && from.dims[0] == 1 {
            // Rows, columns, channels: just how a map lies.
            return Read::As(Op::Rename, vec![input]);
        }
        let input = self.as_map(input);
        Read::As(Op::Transpose(order), vec![input])
    }
}

enum Read {
    /// The value is its input.
    Same(Id),
    As(Op, Vec<Id>),
    /// The operation, then an offset for each channel.
    Biased(Op, Vec<Id>, Channels),
}
