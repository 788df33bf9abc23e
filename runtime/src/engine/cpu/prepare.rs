//! Prepares operators: weights packed for the kernels, buffers looked up, scratch measured.

use std::collections::HashMap;
use std::sync::Arc;

use diffbulk_kernels as kernels;
use kernels::{Conv2d, ConvSpec, InvertedResidual, Isa, KernelError, Layer, PixelNorm, SourceSpec};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{TractErrorContext, anyhow, bail, ensure};

use super::arena::Place;
use super::integer::{self, Finish};
use super::legalise::{self, Lead, is_kernel_map, is_mean_2x2};
use super::places::place;
use super::program::{About, Added, Op, Out, Plain, PlainStep, Port, Window, Work};
use super::residual;
use crate::engine::fused::{
    BufferId, Channels, Conv, Core, FusedGraph, FusedOp, Grid, Input, Layout, Padding, Step,
};

/// Elements below which an operator is not worth sharing between threads.
const SMALL: u64 = 1 << 14;
fn kernel_error(error: KernelError) -> TractError {
    anyhow!("{error}")
}

/// What operators are prepared with, and what they turn out to need.
pub(super) struct Prepare<'a> {
    graph: &'a FusedGraph,
    /// What readers of byte maps round to.
    readers: HashMap<BufferId, Grid>,
    isa: Isa,
    /// Of a quantised graph: reals are computed in an order of their own.
    quantised: bool,
    /// Floats of scratch that each thread needs.
    pub(super) scratch: usize,
    /// Operators of tract's until now.
    states: usize,
}

impl<'a> Prepare<'a> {
    /// For the operators of `graph`, whose buffers have their places.
    pub(super) fn new(
        graph: &'a FusedGraph,
        readers: HashMap<BufferId, Grid>,
        isa: Isa,
        quantised: bool,
    ) -> Self {
        Self { graph, readers, isa, quantised, scratch: 0, states: 0 }
    }

    fn place(&self, id: BufferId) -> Place {
        place(&self.graph.buffers[id])
    }

    fn dims(&self, id: BufferId) -> [usize; 3] {
        self.graph.buffers[id].layout.dims()
    }

    /// One operator.
    pub(super) fn op(&mut self, op: FusedOp) -> TractResult<Op> {
        let about = About {
            line: self.graph.describe(&op),
            kernel: self.isa.name().into(),
            macs: op.macs(&self.graph.buffers),
            name: op.name.clone(),
        };
        let size: usize =
            op.writes().map(|id| self.graph.buffers[id].layout.len()).max().unwrap_or(0);
        let alone = about.macs.max(size as u64) < SMALL;
        let mut ready = self.work(op, about)?;
        ready.alone |= alone || ready.parts <= ready.unit;
        Ok(ready)
    }

    /// An inverted residual block.
    pub(super) fn block(&mut self, links: &[FusedOp]) -> TractResult<Op> {
        let [first, middle, last] = links else { bail!("a block of {} operators", links.len()) };
        let (Core::Conv(expand), Core::Conv(depthwise), Core::Conv(project)) =
            (&first.core, &middle.core, &last.core)
        else {
            bail!("a block of other operators")
        };
        let spec = residual::spec(self.graph, middle, [expand, depthwise, project]);
        let found = [first, middle, last].map(|op| legalise::epilogue(&op.steps, Lead::Bias));
        let bias = [(0, expand), (1, depthwise), (2, project)]
            .map(|(k, conv)| found[k].lead.as_ref().map(|bias| bias.to_vec(conv.outputs)));
        let [expand, depthwise, project] =
            [(0, expand), (1, depthwise), (2, project)].map(|(k, conv)| Layer {
                weights: conv.weights.values(),
                bias: bias[k].as_deref(),
                activation: found[k].activation,
            });
        let kernel = InvertedResidual::new(self.isa, &spec, expand, depthwise, project)
            .map_err(kernel_error)?;
        self.scratch = self.scratch.max(kernel.scratch_len());
        let about = About {
            name: last.name.clone(),
            line: links.iter().map(|op| self.graph.describe(op)).collect::<Vec<_>>().join("; "),
            kernel: "residual".into(),
            macs: links.iter().map(|op| op.macs(&self.graph.buffers)).sum(),
        };
        let (parts, unit) = (kernel.out_shape()[0], kernel.row_unit());
        let [_, _, end] = found;
        let work = Work::Residual {
            kernel: Box::new(kernel),
            source: self.place(first.inputs[0].buffer),
            out: self.out(last, end)?,
        };
        Ok(Op { work, parts, unit, alone: false, about })
    }

    fn work(&mut self, op: FusedOp, mut about: About) -> TractResult<Op> {
        let source = op.inputs.first().map(|input| input.buffer);
        let source = source.with_context(|| format!("{} reads nothing", op.name))?;
        let (mut unit, mut alone) = (1, false);
        let (work, parts) = match op.core {
            Core::Image { ref affine, block, constant } => {
                let dst = stored(&op, 0)?;
                let [height, width, channels] = match &self.graph.buffers[source].layout {
                    // An image as the graph takes it, or any other bytes.
                    Layout::Plain(dims) if dims.len() == 4 => [dims[1], dims[2], dims[3]],
                    layout => layout.dims(),
                };
                let (scale, offset) = match affine {
                    Some((scale, offset)) => (scale.to_vec(channels), offset.to_vec(channels)),
                    None => (vec![1.0; channels], vec![0.0; channels]),
                };
                let kernel = kernels::ImageInput::new(
                    self.isa, height, width, channels, block, constant, &scale, &offset,
                )
                .map_err(kernel_error)?;
                let rows = kernel.out_shape()[0];
                (Work::Image { kernel, image: self.place(source), dst: self.place(dst) }, rows)
            }
            Core::Conv(ref conv) => {
                let found = legalise::epilogue(&op.steps, legalise::lead(conv));
                let kernel = self.conv(&op, conv, found.lead.as_ref())?;
                unit = kernel.row_unit();
                about.kernel = kernel.algorithm().name().into();
                self.scratch = self.scratch.max(kernel.scratch_len());
                let sources = op.inputs.iter().map(|input| self.place(input.buffer)).collect();
                let out = self.out(&op, found)?;
                let rows = kernel.spec().out_height();
                (Work::Conv { kernel: Box::new(kernel), sources, out }, rows)
            }
            Core::IntegerConv(ref conv) => {
                let sources = op.inputs.iter().map(|input| integer::Source {
                    place: self.place(input.buffer),
                    dims: self.dims(input.buffer),
                    upsample: input.upsample,
                    bytes: self.graph.buffers[input.buffer].element == u8::datum_type(),
                });
                let ready = integer::Ready::new(
                    self.isa,
                    &op,
                    conv,
                    sources.collect(),
                    |id| self.place(id),
                    |id| self.readers.get(&id).copied(),
                )
                .map_err(kernel_error)?;
                about.kernel = format!("int8 {}", self.isa.name());
                self.scratch = self.scratch.max(ready.scratch_len());
                let out = match ready.finish {
                    Finish::Bytes { .. } | Finish::Rounded { .. } => None,
                    Finish::Reals { .. } => {
                        Some(self.out(&op, legalise::epilogue(&op.steps, Lead::Bias))?)
                    }
                };
                let rows = ready.rows();
                (Work::Integer { conv: Box::new(ready), out }, rows)
            }
            Core::Map if is_kernel_map(&op, &self.graph.buffers) => {
                let found = legalise::epilogue(&op.steps, Lead::Factor);
                let dims = self.dims(source);
                let factors = found.lead.as_ref().map(|factors| factors.to_vec(dims[2]));
                let out = self.out(&op, found)?;
                let source = self.place(source);
                match op.inputs[0].upsample {
                    1 => (Work::Pointwise { source, factors, out }, dims[0]),
                    _ => (Work::Upsample { source, dims, factors, out }, 2 * dims[0]),
                }
            }
            Core::Pool(ref pool) if is_mean_2x2(pool) => {
                let out = self.out(&op, legalise::epilogue(&op.steps, Lead::None))?;
                let dims = self.dims(source);
                (Work::MeanPool { source: self.place(source), dims, out }, dims[0] / 2)
            }
            Core::Pool(pool) => {
                let dst = stored_in(&op.steps, 0, &op.name)?;
                let out_dims = self.dims(dst);
                let (dims, dst) = (self.dims(source), self.place(dst));
                let source = self.place(source);
                about.kernel = "plain".into();
                (Work::Pool { pool, source, dims, dst, out_dims }, out_dims[0])
            }
            Core::Attention(attention) => {
                let dst = stored(&op, 0)?;
                let [height, width, _] = self.dims(source);
                let kernel = kernels::Attention::new(
                    self.isa,
                    height * width,
                    attention.heads,
                    attention.dim,
                    attention.scale,
                    attention.norm,
                )
                .map_err(kernel_error)?;
                let kernel = if self.quantised { kernel.in_order() } else { kernel };
                self.scratch = self.scratch.max(kernel.scratch_len());
                let (source, dst) = (self.place(source), self.place(dst));
                let channels = attention.heads * attention.dim;
                (Work::Attention { kernel, source, dst, channels, width }, height)
            }
            Core::GroupNorm { groups, epsilon } => {
                alone = true;
                (self.group_norm(&op, source, groups, epsilon)?, 1)
            }
            Core::Moments { mean, deviation } => {
                let channels = self.dims(source)[2];
                unit = 16;
                self.scratch = self.scratch.max(channels);
                let mut outputs = op.outputs.iter().map(|&id| self.place(id));
                let mean = if mean { outputs.next() } else { None };
                let deviation = if deviation { outputs.next() } else { None };
                let source = self.place(source);
                (Work::Moments { source, channels, mean, deviation }, channels)
            }
            Core::Dense(ref dense) => {
                let bias = match op.steps.first() {
                    Some(Step::Offset(bias)) => Some(bias.to_vec(dense.outputs)),
                    _ => None,
                };
                let kernel = kernels::Dense::new(
                    self.isa,
                    dense.channels,
                    dense.outputs,
                    dense.weights.values(),
                    bias.as_deref(),
                )
                .map_err(kernel_error)?;
                unit = kernel.output_unit();
                self.scratch = self.scratch.max(dense.channels + dense.outputs);
                let skip = usize::from(bias.is_some());
                let steps = op.steps[skip..]
                    .iter()
                    .map(|step| self.plain_step(step))
                    .collect::<TractResult<_>>()?;
                let inputs = op.inputs.iter().map(|input| self.place(input.buffer)).collect();
                let outputs = dense.outputs;
                // What a normalisation over all outputs needs.
                alone = op.steps.iter().any(|step| matches!(step, Step::Norm { .. }));
                (Work::Dense { kernel, inputs, steps }, outputs)
            }
            Core::Map => {
                about.kernel = "plain".into();
                let inputs: Vec<Window> =
                    op.inputs.iter().map(|input| self.window(*input)).collect();
                let channels = inputs.iter().map(|window| window.dims[2]).sum();
                let [height, width] = [0, 1].map(|axis| inputs[0].dims[axis] * inputs[0].upsample);
                let steps = op
                    .steps
                    .iter()
                    .map(|step| self.plain_step(step))
                    .collect::<TractResult<_>>()?;
                self.scratch = self.scratch.max(channels);
                (Work::Plain(Plain { inputs, steps, width, channels }), height)
            }
            Core::Layout => {
                about.kernel = "plain".into();
                let to = *op.outputs.first().context("a layout without output")?;
                let into_map = matches!(self.graph.buffers[to].layout, Layout::Map { .. });
                let dims = self.dims(if into_map { to } else { source });
                let (from, to) = (self.place(source), self.place(to));
                ensure!(from.len == to.len, "a layout of another size");
                (Work::Layout { from, to, dims, into_map }, 1)
            }
            Core::Tract(ref tract) => {
                about.kernel = "tract".into();
                alone = true;
                let port = |id: BufferId, shape: &Vec<usize>| {
                    let buffer = &self.graph.buffers[id];
                    Port {
                        place: place(buffer),
                        element: buffer.element,
                        shape: shape.clone(),
                        map: match buffer.layout {
                            Layout::Map { height, width, channels }
                                if height * width > 1 && channels > 1 =>
                            {
                                Some([height, width, channels])
                            }
                            _ => None,
                        },
                    }
                };
                let inputs =
                    op.inputs.iter().zip(&tract.input_shapes).map(|(i, s)| port(i.buffer, s));
                let outputs = op.outputs.iter().zip(&tract.output_shapes).map(|(&i, s)| port(i, s));
                let (inputs, outputs) = (inputs.collect(), outputs.collect());
                let state = self.states;
                self.states += 1;
                (Work::Tract { op: Arc::new(tract.clone()), inputs, outputs, state }, 1)
            }
        };
        Ok(Op { work, parts, unit, alone, about })
    }

    fn conv(&self, op: &FusedOp, conv: &Conv, bias: Option<&Channels>) -> TractResult<Conv2d> {
        let first = op.inputs[0];
        let [height, width, _] = self.dims(first.buffer);
        let source = |input: &Input| SourceSpec {
            channels: self.dims(input.buffer)[2],
            upsample: input.upsample == 2,
        };
        let Padding { top, bottom, left, right } = conv.padding;
        let spec = ConvSpec {
            sources: op.inputs.iter().map(source).collect(),
            height: height * first.upsample,
            width: width * first.upsample,
            out_channels: conv.outputs,
            kernel: conv.kernel,
            stride: conv.stride,
            dilation: conv.dilation,
            padding: [top, left, bottom, right],
            depthwise: conv.groups > 1,
        };
        let bias = bias.map(|bias| bias.to_vec(conv.outputs));
        Conv2d::new(self.isa, &spec, conv.weights.values(), bias.as_deref()).map_err(kernel_error)
    }

    fn out(&self, op: &FusedOp, found: legalise::Epilogue) -> TractResult<Out> {
        ensure!(found.used == op.steps.len(), "steps are left over in {}", self.graph.describe(op));
        let store = found.store.with_context(|| format!("{} stores nothing", op.name))?;
        let [_, width, channels] = self.dims(store);
        let exact = |activation: kernels::Activation| match self.quantised {
            true => activation.exact(),
            false => activation,
        };
        Ok(Out {
            width,
            channels,
            residual: found.residual.map(|(input, scale)| Added {
                place: self.place(input.buffer),
                scale,
                enlarged: input.upsample == 2,
            }),
            norm: found.norm.map(|eps| PixelNorm { eps, gain: 1.0 }),
            activation: exact(found.activation),
            dst: self.place(store),
            second: found
                .second
                .map(|(factor, activation, id)| (factor, exact(activation), self.place(id))),
        })
    }

    fn group_norm(
        &mut self,
        op: &FusedOp,
        source: BufferId,
        groups: usize,
        epsilon: f32,
    ) -> TractResult<Work> {
        let [height, width, channels] = self.dims(source);
        let (mut scale, mut offset) = (Channels::One(1.0), Channels::One(0.0));
        let mut activation = kernels::Activation::None;
        let (mut dst, mut mean, mut pooled) = (None, None, false);
        for step in &op.steps {
            match step {
                Step::Scale(channels) => scale = channels.clone(),
                Step::Offset(channels) => offset = channels.clone(),
                Step::Pool => pooled = true,
                Step::Store(id) if pooled => mean = Some(self.place(*id)),
                Step::Store(id) => dst = Some(self.place(*id)),
                step => {
                    activation = legalise::activation(step).context("a step out of place")?;
                }
            }
        }
        let kernel = kernels::GroupNorm::new(
            self.isa,
            height * width,
            channels,
            groups,
            epsilon,
            &scale.to_vec(channels),
            &offset.to_vec(channels),
            activation,
        )
        .map_err(kernel_error)?;
        self.scratch = self.scratch.max(kernel.scratch_len());
        Ok(Work::GroupNorm { kernel, source: self.place(source), dst, mean })
    }

    fn window(&self, input: Input) -> Window {
        Window {
            place: self.place(input.buffer),
            dims: self.dims(input.buffer),
            upsample: input.upsample,
        }
    }

    fn plain_step(&self, step: &Step) -> TractResult<PlainStep> {
        Ok(match step {
            Step::Scale(channels) => PlainStep::Scale(channels.clone()),
            Step::Offset(channels) => PlainStep::Offset(channels.clone()),
            Step::Add { input, scale } => PlainStep::Add(self.window(*input), *scale),
            Step::Multiply(input) => PlainStep::Multiply(self.window(*input)),
            Step::Norm { epsilon } => PlainStep::Norm(*epsilon),
            Step::Activate(activation) => PlainStep::Activate(*activation),
            Step::Store(id) => PlainStep::Store(self.place(*id)),
            Step::Pool => bail!("a mean over pixels out of place"),
            Step::Load(_) => bail!("a value that is taken up again"),
        })
    }
}

/// The buffer that step `at` stores to.
fn stored(op: &FusedOp, at: usize) -> TractResult<BufferId> {
    stored_in(&op.steps, at, &op.name)
}

fn stored_in(steps: &[Step], at: usize, name: &str) -> TractResult<BufferId> {
    match steps {
        steps if steps.len() == at + 1 => match steps[at] {
            Step::Store(id) => Ok(id),
            _ => bail!("{name} stores nothing"),
        },
        _ => bail!("{name} has steps that its kernel does not do"),
    }
}
