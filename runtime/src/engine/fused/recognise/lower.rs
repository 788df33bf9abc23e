//! From nodes to fused operators: every function of single values joins the operator that makes its
//! input, every other node becomes an operator of its own.

use std::collections::{BTreeSet, HashMap};

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{TractErrorContext, ensure};

use super::graph::{Graph, Id, Node, Op, is_row_major};
use crate::engine::fused::list::*;

/// A step's and an operator's buffers are value ids here until all values that need a buffer are
/// known.
struct Draft {
    name: String,
    core: Core,
    inputs: Vec<Input>,
    steps: Vec<Step>,
    outputs: Vec<Id>,
    /// The value after the last step; steps can be added to it.
    tail: Option<Id>,
    /// Values along the way: after how many steps.
    made: Vec<(usize, Id)>,
}

/// Pixels of a graph input on their way to becoming floats.
#[derive(Clone)]
struct Pixels {
    image: Id,
    scale: Option<Channels>,
    offset: Option<Channels>,
    block: usize,
    ones: bool,
}

struct Lower<'a> {
    model: &'a TypedModel,
    graph: Graph,
    uses: Vec<usize>,
    drafts: Vec<Draft>,
    /// Draft that makes each value.
    makers: HashMap<Id, usize>,
    /// What stands for a value that is not made itself: a renamed, upsampled or concatenated one.
    views: HashMap<Id, Vec<Input>>,
    pixels: HashMap<Id, Pixels>,
}

/// The list for `graph`, read from `model`.
pub(super) fn lower(model: &TypedModel, graph: Graph) -> TractResult<FusedGraph> {
    let uses = graph.uses();
    let mut lower = Lower {
        model,
        graph,
        uses,
        drafts: vec![],
        makers: HashMap::new(),
        views: HashMap::new(),
        pixels: HashMap::new(),
    };
    for node in std::mem::take(&mut lower.graph.nodes) {
        lower.node(&node).with_context(|| format!("lowering {} {:?}", node.name, node.op))?;
    }
    lower.finish()
}

impl Lower<'_> {
    fn node(&mut self, node: &Node) -> TractResult<()> {
        let output = node.outputs[0];
        if self.image(node, output) {
            return Ok(());
        }
        match &node.op {
            Op::Rename => {
                let views = self.views(node.inputs[0]);
                self.views.insert(output, views);
            }
            Op::Reshape if self.same_memory(node.inputs[0], output) => {
                let views = self.views(node.inputs[0]);
                self.views.insert(output, views);
            }
            Op::Concat => {
                let views = node.inputs.iter().flat_map(|&input| self.views(input)).collect();
                self.views.insert(output, views);
            }
            Op::Upsample(factor) => {
                let input = self.single(node.inputs[0]);
                self.views.insert(output, vec![Input { buffer: input, upsample: *factor }]);
            }
            Op::Activate(activation) => {
                self.pointwise(node.inputs[0], Step::Activate(*activation), output, &node.name);
            }
            Op::Scale(channels) if self.fits(channels, output) => {
                self.pointwise(node.inputs[0], Step::Scale(channels.clone()), output, &node.name);
            }
            Op::Offset(channels) if self.fits(channels, output) => {
                self.pointwise(node.inputs[0], Step::Offset(channels.clone()), output, &node.name);
            }
            Op::Norm { epsilon } => {
                let step = Step::Norm { epsilon: *epsilon };
                self.pointwise(node.inputs[0], step, output, &node.name);
            }
            Op::Add | Op::Subtract | Op::Multiply if self.same_shape(node) => {
                self.binary(node, output);
            }
            Op::Conv(conv) => {
                let inputs = self.all(&node.inputs);
                self.draft(node, Core::Conv(conv.clone()), inputs);
            }
            Op::Dense(dense) => {
                let inputs = self.all(&node.inputs);
                self.draft(node, Core::Dense(dense.clone()), inputs);
            }
            Op::Pool(pool) => self.unary(node, Core::Pool(pool.clone())),
            Op::Attention(attention) => self.unary(node, Core::Attention(*attention)),
            Op::GroupNorm { groups, epsilon } => {
                self.unary(node, Core::GroupNorm { groups: *groups, epsilon: *epsilon });
            }
            Op::Mean => self.mean(node, output),
            Op::Deviation => self.moments(node, output, false),
            Op::Layout => {
                let input = self.single(node.inputs[0]);
                self.unfused(node, Core::Layout, vec![input]);
            }
            _ => {
                let inputs = node.inputs.iter().map(|&input| self.single(input)).collect();
                let op = self.tract_op(node)?;
                self.unfused(node, Core::Tract(op), inputs);
            }
        }
        Ok(())
    }

    /// True when a reshape leaves every element where it is.
    fn same_memory(&self, from: Id, to: Id) -> bool {
        is_row_major(&self.graph.values[from].layout) && is_row_major(&self.graph.values[to].layout)
    }

    fn fits(&self, channels: &Channels, output: Id) -> bool {
        match channels {
            Channels::One(_) => true,
            Channels::Each(values) => {
                let map = matches!(self.graph.values[output].layout, Layout::Map { .. });
                map && values.len() == self.graph.channels(output)
            }
        }
    }

    fn same_shape(&self, node: &Node) -> bool {
        let layout = |id: Id| &self.graph.values[id].layout;
        let float = |id: Id| self.graph.values[id].element == f32::datum_type();
        node.inputs.len() == 2
            && node.inputs.iter().all(|&input| {
                float(input)
                    && layout(input) == layout(node.outputs[0])
                    && self.graph.dims(input) == self.graph.dims(node.outputs[0])
            })
    }

    /// Takes what happens to pixels before a network's first operator.
    fn image(&mut self, node: &Node, output: Id) -> bool {
        let Some(&input) = node.inputs.first() else { return false };
        if let Op::Pixels = node.op {
            let image = self.single(input);
            self.pixels
                .insert(output, Pixels { image, scale: None, offset: None, block: 1, ones: false });
            return true;
        }
        let Some(mut pixels) = self.pixels.get(&input).cloned() else { return false };
        let raw = pixels.block == 1 && !pixels.ones;
        let map = matches!(self.graph.values[output].layout, Layout::Map { .. });
        match &node.op {
            Op::Rename if raw && pixels.scale.is_none() && pixels.offset.is_none() => {}
            Op::Scale(scale) if raw && map && pixels.scale.is_none() && pixels.offset.is_none() => {
                pixels.scale = Some(scale.clone());
            }
            Op::Offset(offset) if raw && map && pixels.offset.is_none() => {
                pixels.offset = Some(offset.clone());
            }
            Op::SpaceToDepth(block) if raw && map => pixels.block = *block,
            Op::Ones if !pixels.ones && map => pixels.ones = true,
            _ => {
                self.emit_pixels(input);
                return false;
            }
        }
        self.pixels.insert(output, pixels);
        true
    }

    /// Makes the float image that `id` is.
    fn emit_pixels(&mut self, id: Id) {
        if self.makers.contains_key(&id) {
            return;
        }
        let Some(pixels) = self.pixels.get(&id).cloned() else { return };
        let affine = match (pixels.scale, pixels.offset) {
            (None, None) => None,
            (scale, offset) => {
                Some((scale.unwrap_or(Channels::One(1.0)), offset.unwrap_or(Channels::One(0.0))))
            }
        };
        let core =
            Core::Image { affine, block: pixels.block, constant: pixels.ones.then_some(1.0) };
        let name = self.graph.values[id].name.clone();
        let input = Input { buffer: pixels.image, upsample: 1 };
        self.push(name, core, vec![input], id);
    }

    fn push(&mut self, name: String, core: Core, inputs: Vec<Input>, output: Id) {
        self.makers.insert(output, self.drafts.len());
        self.drafts.push(Draft {
            name,
            core,
            inputs,
            steps: vec![],
            outputs: vec![],
            tail: Some(output),
            made: vec![(0, output)],
        });
    }

    fn draft(&mut self, node: &Node, core: Core, inputs: Vec<Input>) {
        self.push(node.name.clone(), core, inputs, node.outputs[0]);
    }

    /// A core of one map.
    fn unary(&mut self, node: &Node, core: Core) {
        let buffer = self.single(node.inputs[0]);
        self.draft(node, core, vec![Input { buffer, upsample: 1 }]);
    }

    /// A core that writes its outputs itself.
    fn unfused(&mut self, node: &Node, core: Core, inputs: Vec<Id>) {
        for &output in &node.outputs {
            self.makers.insert(output, self.drafts.len());
        }
        self.drafts.push(Draft {
            name: node.name.clone(),
            core,
            inputs: inputs.into_iter().map(|buffer| Input { buffer, upsample: 1 }).collect(),
            steps: vec![],
            outputs: node.outputs.clone(),
            tail: None,
            made: vec![],
        });
    }

    /// What to read for `id`.
    fn views(&mut self, id: Id) -> Vec<Input> {
        self.emit_pixels(id);
        match self.views.get(&id) {
            Some(views) => views.clone(),
            None => vec![Input { buffer: id, upsample: 1 }],
        }
    }

    fn all(&mut self, ids: &[Id]) -> Vec<Input> {
        ids.iter().flat_map(|&id| self.views(id)).collect()
    }

    /// A buffer that holds `id` itself.
    fn single(&mut self, id: Id) -> Id {
        match self.views(id).as_slice() {
            [Input { buffer, upsample: 1 }] => *buffer,
            views => {
                let name = self.graph.values[id].name.clone();
                self.push(name, Core::Map, views.to_vec(), id);
                self.views.remove(&id);
                id
            }
        }
    }

    /// A function of single pixels of `input`.
    fn pointwise(&mut self, input: Id, step: Step, output: Id, name: &str) {
        let views = self.views(input);
        let absorbed = match views.as_slice() {
            [Input { buffer, upsample: 1 }] => self.absorb(*buffer, step.clone(), output),
            _ => false,
        };
        if !absorbed {
            self.map(views, step, output, name);
        }
    }

    fn map(&mut self, inputs: Vec<Input>, step: Step, output: Id, name: &str) {
        self.makers.insert(output, self.drafts.len());
        self.drafts.push(Draft {
            name: name.to_owned(),
            core: Core::Map,
            inputs,
            steps: vec![step],
            outputs: vec![],
            tail: Some(output),
            made: vec![(1, output)],
        });
    }

    /// Adds `step` to the operator that makes `input`, if `input` is the last value it makes.
    fn absorb(&mut self, input: Id, step: Step, output: Id) -> bool {
        let Some(&k) = self.makers.get(&input) else { return false };
        let draft = &mut self.drafts[k];
        // An operator that normalises whole pixels knows their channels; a plain buffer has none.
        if draft.tail != Some(input) {
            return false;
        }
        draft.steps.push(step);
        draft.tail = Some(output);
        draft.made.push((draft.steps.len(), output));
        self.makers.insert(output, k);
        true
    }

    fn binary(&mut self, node: &Node, output: Id) {
        let (a, b) = (node.inputs[0], node.inputs[1]);
        // The sum joins whichever of its operators comes last, so that the other one is done.
        let place = |lower: &mut Self, id: Id| match lower.views(id).as_slice() {
            [Input { buffer, upsample: 1 }] => {
                let maker = lower.makers.get(buffer).copied();
                maker.filter(|&k| lower.drafts[k].tail == Some(*buffer))
            }
            _ => None,
        };
        let (at_a, at_b) = (place(self, a), place(self, b));
        let (main, other, swapped) = if at_b > at_a { (b, a, true) } else { (a, b, false) };
        let operand = match self.views(other).as_slice() {
            [input] => *input,
            _ => Input { buffer: self.single(other), upsample: 1 },
        };
        let step = match (&node.op, swapped) {
            (Op::Multiply, _) => Step::Multiply(operand),
            (Op::Subtract, false) => Step::Add { input: operand, scale: -1.0 },
            (Op::Subtract, true) => {
                // b is what the operator makes: -b + a.
                let negative = self.graph.value_like(output, node.name.clone());
                self.uses.push(1);
                let negate = Step::Activate(Activation::Negate);
                self.pointwise(main, negate, negative, &node.name);
                return self.pointwise(
                    negative,
                    Step::Add { input: operand, scale: 1.0 },
                    output,
                    &node.name,
                );
            }
            _ => Step::Add { input: operand, scale: 1.0 },
        };
        let ready = match self.makers.get(&operand.buffer) {
            Some(&k) => at_a.max(at_b).is_some_and(|main| k < main),
            None => true,
        };
        if ready {
            self.pointwise(main, step, output, &node.name);
        } else {
            let views = self.views(main);
            self.map(views, step, output, &node.name);
        }
    }

    fn mean(&mut self, node: &Node, output: Id) {
        let input = node.inputs[0];
        if let [Input { buffer, upsample: 1 }] = *self.views(input).as_slice()
            && let Some(&k) = self.makers.get(&buffer)
            && matches!(self.drafts[k].core, Core::GroupNorm { .. })
            && self.uses[input] == 1
            && self.absorb(buffer, Step::Pool, output)
        {
            self.drafts[k].tail = None;
            return;
        }
        self.moments(node, output, true);
    }

    /// Mean and deviation of the same map are one operator.
    fn moments(&mut self, node: &Node, output: Id, is_mean: bool) {
        let input = Input { buffer: self.single(node.inputs[0]), upsample: 1 };
        let known = self.drafts.iter().position(|draft| {
            draft.inputs == [input]
                && matches!(draft.core, Core::Moments { mean, deviation }
                    if if is_mean { !mean } else { !deviation })
        });
        if let Some(k) = known {
            self.drafts[k].core = Core::Moments { mean: true, deviation: true };
            let at = if is_mean { 0 } else { 1 };
            self.drafts[k].outputs.insert(at, output);
            self.makers.insert(output, k);
        } else {
            let core = Core::Moments { mean: is_mean, deviation: !is_mean };
            self.unfused(node, core, vec![input.buffer]);
        }
    }

    /// A graph of the one tract operator that `node` was read from.
    fn tract_op(&self, node: &Node) -> TractResult<TractOp> {
        ensure!(node.origin < self.model.nodes.len(), "it is part of a pattern");
        let origin = self.model.node(node.origin);
        let mut single = TypedModel { symbols: self.model.symbols.clone(), ..Default::default() };
        let mut wires = vec![];
        let mut input_shapes = vec![];
        for (k, outlet) in origin.inputs.iter().enumerate() {
            let id = self.graph.outlets[outlet];
            let value = &self.graph.values[id];
            wires.push(match &value.constant {
                Some(constant) => single.add_const(format!("constant{k}"), constant.clone())?,
                None => {
                    input_shapes.push(value.dims.clone());
                    single.add_source(format!("input{k}"), value.element.fact(&value.dims))?
                }
            });
        }
        let outputs = single.wire_node(&origin.name, origin.op.clone(), &wires)?;
        single.select_output_outlets(&outputs)?;
        let output_shapes =
            node.outputs.iter().map(|&output| self.graph.dims(output).to_vec()).collect();
        Ok(TractOp {
            about: origin.op.name().into_owned(),
            plan: single.into_optimized()?.into_runnable()?,
            input_shapes,
            output_shapes,
        })
    }

    fn finish(mut self) -> TractResult<FusedGraph> {
        let outputs: Vec<Id> =
            self.graph.outputs.clone().into_iter().map(|id| self.single(id)).collect();
        let mut needed: BTreeSet<Id> = self.graph.inputs.iter().chain(&outputs).copied().collect();
        for draft in &self.drafts {
            needed.extend(draft.inputs.iter().map(|input| input.buffer));
            needed.extend(&draft.outputs);
            needed.extend(draft.steps.iter().filter_map(|step| match step {
                Step::Add { input, .. } | Step::Multiply(input) => Some(input.buffer),
                _ => None,
            }));
        }
        // Numbered in the order in which they are first written.
        let mut order = self.graph.inputs.clone();
        for draft in &self.drafts {
            let made = draft.made.iter().map(|(_, id)| id).chain(&draft.outputs);
            order.extend(made.copied().filter(|id| needed.contains(id)));
        }
        let mut buffers = vec![];
        let mut ids: HashMap<Id, BufferId> = HashMap::new();
        for id in order {
            let value = &self.graph.values[id];
            ensure!(
                value.constant.is_none() && is_supported(value.element),
                "`{}` of type {:?} is not a value that a fused operator reads",
                value.name,
                value.element
            );
            ids.insert(id, buffers.len());
            check_size(&value.dims)?;
            buffers.push(BufferSpec {
                name: value.name.clone(),
                element: value.element,
                layout: value.layout.clone(),
                offset: 0,
            });
        }
        ensure!(needed.iter().all(|id| ids.contains_key(id)), "a value is read that nothing makes");
        let place = |input: Input| Input { buffer: ids[&input.buffer], ..input };
        let ops = self
            .drafts
            .into_iter()
            .map(|draft| {
                let mut steps = vec![];
                let mut made = draft.made.into_iter().peekable();
                for at in 0..=draft.steps.len() {
                    while let Some((_, id)) = made.next_if(|(after, _)| *after == at) {
                        steps.extend(ids.get(&id).map(|&buffer| Step::Store(buffer)));
                    }
                    steps.extend(draft.steps.get(at).map(|step| match step {
                        Step::Add { input, scale } => {
                            Step::Add { input: place(*input), scale: *scale }
                        }
                        Step::Multiply(input) => Step::Multiply(place(*input)),
                        other => other.clone(),
                    }));
                }
                FusedOp {
                    name: draft.name,
                    core: draft.core,
                    inputs: draft.inputs.into_iter().map(place).collect(),
                    steps,
                    outputs: draft.outputs.iter().map(|id| ids[id]).collect(),
                }
            })
            .collect();
        Ok(FusedGraph {
            ops,
            inputs: self.graph.inputs.iter().map(|id| ids[id]).collect(),
            outputs: outputs.iter().map(|id| ids[id]).collect(),
            buffers,
            arena_bytes: 0,
        })
    }
}

/// Largest buffer in elements, far from where sizes in bytes would overflow.
const MAX_LEN: usize = 1 << 31;

fn check_size(dims: &[usize]) -> TractResult<()> {
    let len = dims.iter().try_fold(1usize, |len, &dim| len.checked_mul(dim));
    ensure!(len.is_some_and(|len| len <= MAX_LEN), "a value of shape {dims:?} is too large");
    Ok(())
}

/// Types that buffers can have.
fn is_supported(element: DatumType) -> bool {
    [
        f32::datum_type(),
        u8::datum_type(),
        i8::datum_type(),
        i32::datum_type(),
        i64::datum_type(),
        bool::datum_type(),
    ]
    .contains(&element)
}

/// The whole of `model` as one operator that tract runs.
///
/// # Errors
/// When tract cannot run it, or a shape is not a number.
pub(in super::super) fn whole(model: TypedModel) -> TractResult<FusedGraph> {
    let mut buffers = vec![];
    let mut side = |outlets: &[OutletId]| -> TractResult<(Vec<BufferId>, Vec<Vec<usize>>)> {
        let mut ids = vec![];
        let mut shapes = vec![];
        for outlet in outlets {
            let fact = model.outlet_fact(*outlet)?;
            let shape = fact
                .shape
                .as_concrete()
                .with_context(|| format!("{outlet:?} has a shape that depends on the data"))?;
            check_size(shape)?;
            ids.push(buffers.len());
            shapes.push(shape.to_vec());
            ensure!(
                is_supported(fact.datum_type),
                "{:?} values are not supported",
                fact.datum_type
            );
            buffers.push(BufferSpec {
                name: model.node(outlet.node).name.clone(),
                element: fact.datum_type,
                layout: Layout::Plain(shape.to_vec()),
                offset: 0,
            });
        }
        Ok((ids, shapes))
    };
    let (inputs, input_shapes) = side(&model.inputs)?;
    let (outputs, output_shapes) = side(&model.outputs)?;
    let plan = model.into_optimized()?.into_runnable()?;
    let op = FusedOp {
        name: "graph".into(),
        core: Core::Tract(TractOp { about: "graph".into(), plan, input_shapes, output_shapes }),
        inputs: inputs.iter().map(|&buffer| Input { buffer, upsample: 1 }).collect(),
        steps: vec![],
        outputs: outputs.clone(),
    };
    Ok(FusedGraph { ops: vec![op], buffers, inputs, outputs, arena_bytes: 0 })
}
