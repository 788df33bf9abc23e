//! Fits the list to the kernels: each operator becomes one kernel call, with further operators for
//! what no kernel does on its way.

use diffbulk_kernels as kernels;

use tract_onnx::prelude::Datum;

use crate::engine::fused::{
    Activation, BufferId, BufferSpec, Channels, Conv, Core, FusedGraph, FusedOp, Input, Layout,
    Padding, Pool, Step, tables,
};

/// What a kernel does to its sums on the way out, in the kernels' order.
#[derive(Debug, Default)]
pub(super) struct Epilogue {
    /// Added to the sums (before) or multiplied with the source, as the kernel has it.
    pub(super) lead: Option<Channels>,
    /// What is added.
    pub(super) residual: Option<(Input, f32)>,
    /// Epsilon of the pixel norm.
    pub(super) norm: Option<f32>,
    pub(super) activation: kernels::Activation,
    /// Where the result goes; none where no store follows in time.
    pub(super) store: Option<BufferId>,
    /// Factor, activation and place of the second result.
    pub(super) second: Option<(f32, kernels::Activation, BufferId)>,
    /// Steps taken.
    pub(super) used: usize,
}

/// What a kernel can do before its epilogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lead {
    /// Nothing.
    None,
    /// Add a value to each channel.
    Bias,
    /// The same, and what is added after it may be enlarged.
    Conv,
    /// Multiply each channel with a value.
    Factor,
}

/// The first steps, as far as one kernel call goes.
pub(super) fn epilogue(steps: &[Step], lead: Lead) -> Epilogue {
    let mut found = Epilogue::default();
    match (steps.first(), lead) {
        (Some(Step::Offset(channels)), Lead::Bias | Lead::Conv)
        | (Some(Step::Scale(channels)), Lead::Factor) => {
            found.lead = Some(channels.clone());
            found.used += 1;
        }
        _ => {}
    }
    if let Some(Step::Add { input, scale }) = steps.get(found.used)
        && (input.upsample == 1 || is_enlarged(input, lead))
    {
        found.residual = Some((*input, *scale));
        found.used += 1;
    }
    if let Some(Step::Norm { epsilon }) = steps.get(found.used) {
        found.norm = Some(*epsilon);
        found.used += 1;
    }
    if let Some(activation) = steps.get(found.used).and_then(activation) {
        found.activation = activation;
        found.used += 1;
    }
    if let Some(Step::Store(buffer)) = steps.get(found.used) {
        found.store = Some(*buffer);
        found.used += 1;
        second(steps, &mut found);
    }
    found
}

/// What a kernel that begins with `conv` does before its epilogue.
pub(super) fn lead(conv: &Conv) -> Lead {
    if conv.groups == 1 { Lead::Conv } else { Lead::Bias }
}

/// True where the kernel reads each pixel of the map four times itself.
fn is_enlarged(input: &Input, lead: Lead) -> bool {
    lead == Lead::Conv && input.upsample == 2
}

/// `[factor] [activation] store` after the first store.
fn second(steps: &[Step], found: &mut Epilogue) {
    let mut at = found.used;
    let mut factor = 1.0;
    if let Some(Step::Scale(Channels::One(value))) = steps.get(at) {
        factor = *value;
        at += 1;
    }
    let mut then = kernels::Activation::None;
    if let Some(value) = steps.get(at).and_then(activation) {
        then = value;
        at += 1;
    }
    if let Some(Step::Store(buffer)) = steps.get(at) {
        found.second = Some((factor, then, *buffer));
        found.used = at + 1;
    }
}

/// The kernels' activation, where they have it.
pub(super) fn activation(step: &Step) -> Option<kernels::Activation> {
    match step {
        Step::Activate(Activation::Silu) => Some(kernels::Activation::Silu),
        Step::Activate(Activation::Sigmoid) => Some(kernels::Activation::Sigmoid),
        Step::Activate(Activation::Clip { low, high }) => {
            Some(kernels::Activation::Clip { low: *low, high: *high })
        }
        _ => None,
    }
}

/// `graph` with operators that the kernels can each run in one call. Buffers have no places yet.
pub(super) fn legalise(graph: FusedGraph) -> FusedGraph {
    let mut legal =
        Legal { out: FusedGraph { ops: vec![], ..graph.clone_frame() }, name: String::new() };
    for op in graph.ops {
        legal.name.clone_from(&op.name);
        legal.op(op);
    }
    legal.out
}

/// True for the pooling that has a kernel of its own.
pub(super) fn is_mean_2x2(pool: &Pool) -> bool {
    !pool.maximum
        && pool.kernel == [2, 2]
        && pool.stride == [2, 2]
        && pool.padding == Padding::default()
}

/// True for a map that the kernels can begin with.
pub(super) fn is_kernel_map(op: &FusedOp, buffers: &[BufferSpec]) -> bool {
    let [Input { buffer, upsample: 1 | 2 }] = op.inputs[..] else { return false };
    let [height, width, _] = buffers[buffer].layout.dims();
    let float_map = matches!(buffers[buffer].layout, Layout::Map { .. })
        && buffers[buffer].element == f32::datum_type();
    float_map && height * width > 1 && epilogue(&op.steps, Lead::Factor).used > 0
}

struct Legal {
    out: FusedGraph,
    /// Of the operator in work.
    name: String,
}

impl Legal {
    fn op(&mut self, mut op: FusedOp) {
        match &op.core {
            Core::Conv(conv) => {
                let depthwise = conv.groups > 1;
                let most = if depthwise { 1 } else { 2 };
                for input in &mut op.inputs {
                    if !(input.upsample == 1 || (input.upsample == 2 && !depthwise)) {
                        *input = self.gathered(&[*input]);
                    }
                }
                if op.inputs.len() > most {
                    op.inputs = vec![self.gathered(&op.inputs)];
                }
                let lead = lead(conv);
                self.with_epilogue(op, lead);
            }
            Core::IntegerConv(_) => match tables(&op.steps) {
                Some(tables) => self.with_tables(op, tables.used),
                None => self.with_epilogue(op, Lead::Bias),
            },
            Core::Pool(pool) if is_mean_2x2(pool) => self.with_epilogue(op, Lead::None),
            Core::Image { .. } | Core::Attention(_) | Core::Pool(_) => self.storing(op, 0),
            Core::GroupNorm { .. } => {
                let mut at = 0;
                let is =
                    |at: usize, accept: fn(&Step) -> bool| op.steps.get(at).is_some_and(accept);
                at += usize::from(is(at, |step| matches!(step, Step::Scale(_))));
                at += usize::from(is(at, |step| matches!(step, Step::Offset(_))));
                at += usize::from(is(at, |step| activation(step).is_some()));
                at += usize::from(is(at, |step| matches!(step, Step::Pool)));
                self.storing(op, at);
            }
            Core::Map => self.map(op.inputs, op.steps),
            Core::Dense(_) | Core::Moments { .. } | Core::Layout | Core::Tract(_) => {
                self.out.ops.push(op);
            }
        }
    }

    /// A buffer like what comes out of `op`.
    fn temporary(&mut self, layout: Layout) -> BufferId {
        self.out.buffers.push(BufferSpec {
            name: self.name.clone(),
            element: f32::datum_type(),
            layout,
            offset: 0,
        });
        self.out.buffers.len() - 1
    }

    /// The inputs, upsampled and concatenated, in a buffer of their own.
    fn gathered(&mut self, inputs: &[Input]) -> Input {
        let mut channels = 0;
        let mut size = [0; 2];
        for input in inputs {
            let [height, width, count] = self.out.buffers[input.buffer].layout.dims();
            size = [height * input.upsample, width * input.upsample];
            channels += count;
        }
        let layout = Layout::Map { height: size[0], width: size[1], channels };
        let buffer = self.temporary(layout);
        self.map(inputs.to_vec(), vec![Step::Store(buffer)]);
        Input { buffer, upsample: 1 }
    }

    /// A core whose kernel stores after `at` steps and can do nothing more.
    fn storing(&mut self, mut op: FusedOp, at: usize) {
        let stored = match op.steps.get(at) {
            Some(Step::Store(buffer)) => *buffer,
            _ => {
                let buffer = self.temporary(self.out.output_layout(&op));
                op.steps.insert(at, Step::Store(buffer));
                buffer
            }
        };
        let rest = op.steps.split_off(at + 1);
        self.out.ops.push(op);
        if !rest.is_empty() {
            self.map(vec![Input { buffer: stored, upsample: 1 }], rest);
        }
    }

    /// An integer convolution whose first `used` steps are tables.
    fn with_tables(&mut self, mut op: FusedOp, used: usize) {
        let rest = op.steps.split_off(used);
        let last = match op.steps.last() {
            Some(Step::Store(buffer)) => *buffer,
            _ => {
                let layout = self.out.buffers_layout(&op, &rest);
                let buffer = self.temporary(layout);
                op.steps.push(Step::Store(buffer));
                buffer
            }
        };
        self.out.ops.push(op);
        if !rest.is_empty() {
            self.map(vec![Input { buffer: last, upsample: 1 }], rest);
        }
    }

    /// A core whose kernel has an epilogue.
    fn with_epilogue(&mut self, mut op: FusedOp, lead: Lead) {
        for k in 0..op.steps.len() {
            if let Step::Add { input, scale } = op.steps[k].clone()
                && input.upsample != 1
                && !(is_enlarged(&input, lead) && self::epilogue(&op.steps[..=k], lead).used > k)
            {
                let input = self.gathered(&[input]);
                op.steps[k] = Step::Add { input, scale };
            }
        }
        let mut found = epilogue(&op.steps, lead);
        if found.store.is_none() {
            let buffer = self.temporary(self.out.output_layout(&op));
            op.steps.insert(found.used, Step::Store(buffer));
            found = epilogue(&op.steps, lead);
        }
        let rest = op.steps.split_off(found.used);
        self.out.ops.push(op);
        let last = found.second.map(|(_, _, buffer)| buffer).or(found.store);
        if let (false, Some(buffer)) = (rest.is_empty(), last) {
            self.map(vec![Input { buffer, upsample: 1 }], rest);
        }
    }

    /// Steps alone: the kernels' where the first store is within reach of one call, else the plain
    /// interpreter does all of them.
    fn map(&mut self, inputs: Vec<Input>, mut steps: Vec<Step>) {
        for step in &mut steps {
            if let Step::Add { input, .. } = step
                && input.upsample != 1
            {
                *input = self.gathered(&[*input]);
            }
        }
        let op =
            FusedOp { name: self.name.clone(), core: Core::Map, inputs, steps, outputs: vec![] };
        if is_kernel_map(&op, &self.out.buffers) {
            self.with_epilogue(op, Lead::Factor);
        } else {
            self.out.ops.push(op);
        }
    }
}

impl FusedGraph {
    /// The graph without its operators.
    fn clone_frame(&self) -> Self {
        Self {
            ops: vec![],
            buffers: self.buffers.clone(),
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            arena_bytes: 0,
        }
    }

    /// Layout of what `op` makes, whose steps go on with `rest`.
    fn buffers_layout(&self, op: &FusedOp, rest: &[Step]) -> Layout {
        let stores = op.steps.iter().chain(rest).filter_map(|step| match step {
            Step::Store(buffer) => Some(*buffer),
            _ => None,
        });
        stores.take(1).last().map_or(Layout::vector(0), |id| self.buffers[id].layout.clone())
    }

    /// Layout of what comes out of the core of `op`.
    fn output_layout(&self, op: &FusedOp) -> Layout {
        // Every operator stores somewhere; before a pooling over all pixels nothing is inserted.
        op.writes().next().map_or(Layout::vector(0), |buffer| self.buffers[buffer].layout.clone())
    }
}
