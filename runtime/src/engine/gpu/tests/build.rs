//! Graphs from a seed, for the kernels' tests.

use tract_onnx::prelude::*;

use crate::engine::fused::*;

/// Numbers from a seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From `least` to `most`.
    pub(super) fn from(&mut self, least: usize, most: usize) -> usize {
        least + (self.next() >> 33) as usize % (most - least + 1)
    }

    pub(super) fn chance(&mut self) -> bool {
        self.from(0, 1) == 1
    }

    pub(super) fn real(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(super) fn reals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.real()).collect()
    }
}

/// A graph in the making, from one image.
pub(super) struct Build {
    pub(super) graph: FusedGraph,
    pub(super) random: Random,
}

impl Build {
    pub(super) fn new(seed: u64) -> Self {
        let graph = FusedGraph {
            ops: vec![],
            buffers: vec![],
            inputs: vec![],
            outputs: vec![],
            arena_bytes: 0,
        };
        Self { graph, random: Random::new(seed) }
    }

    pub(super) fn buffer(&mut self, element: DatumType, layout: Layout) -> BufferId {
        let name = format!("b{}", self.graph.buffers.len());
        self.graph.buffers.push(BufferSpec { name, element, layout, offset: 0 });
        self.graph.buffers.len() - 1
    }

    pub(super) fn map(&mut self, [height, width, channels]: [usize; 3]) -> BufferId {
        self.buffer(f32::datum_type(), Layout::Map { height, width, channels })
    }

    pub(super) fn op(&mut self, core: Core, inputs: &[(BufferId, usize)], steps: Vec<Step>) {
        let inputs = inputs.iter().map(|&(buffer, upsample)| Input { buffer, upsample }).collect();
        let name = format!("op{}", self.graph.ops.len());
        self.graph.ops.push(FusedOp { name, core, inputs, steps, outputs: vec![] });
    }

    /// The image, `[height, width, channels]` bytes.
    pub(super) fn image(&mut self, dims: [usize; 3]) -> BufferId {
        let dims = vec![1, dims[0], dims[1], dims[2]];
        let id = self.buffer(u8::datum_type(), Layout::Plain(dims));
        self.graph.inputs = vec![id];
        id
    }

    /// A map of reals made of the image.
    pub(super) fn source(&mut self, image: BufferId, block: usize, ones: bool) -> BufferId {
        let [h, w, c] = super::super::map::dims(&self.graph.buffers[image]);
        let channels = c * block * block + usize::from(ones);
        let map = self.map([h / block, w / block, channels]);
        let scale = Channels::Each((0..c).map(|_| self.random.real() / 64.0).collect());
        let affine = Some((scale, Channels::One(-0.5)));
        self.op(
            Core::Image { affine, block, constant: ones.then_some(1.0) },
            &[(image, 1)],
            vec![Step::Store(map)],
        );
        map
    }

    /// Steps of all kinds for a map of `dims` and the buffer that ends up as the graph's output.
    pub(super) fn steps(
        &mut self,
        dims: [usize; 3],
        like: Option<BufferId>,
        norm: bool,
    ) -> Vec<Step> {
        let mut steps = vec![];
        if self.random.chance() {
            let bias = self.random.reals(dims[2]).into();
            steps.push(Step::Offset(Channels::Each(bias)));
        }
        if let Some(buffer) = like {
            let upsample = dims[0] / self.graph.buffers[buffer].layout.dims()[0];
            let input = Input { buffer, upsample };
            steps.push(match self.random.chance() {
                true => Step::Add { input, scale: 0.75 },
                false => Step::Multiply(input),
            });
        }
        if norm {
            steps.push(Step::Norm { epsilon: 1e-3 });
        }
        let activations = [
            Activation::Clip { low: -0.5, high: 0.75 },
            Activation::Silu,
            Activation::Sigmoid,
            Activation::Clip { low: f32::NEG_INFINITY, high: 1.0 },
            Activation::Tanh,
            Activation::Square,
            Activation::Abs,
            Activation::Negate,
            Activation::Snap(Grid { scale: 0.03125, zero_point: 100 }),
        ];
        let pick = self.random.from(0, activations.len() - 1);
        steps.push(Step::Activate(activations[pick]));
        let first = self.map(dims);
        steps.push(Step::Store(first));
        let mut outputs = vec![first];
        if self.random.chance() {
            steps.push(Step::Scale(Channels::One(1.25)));
            steps.push(Step::Activate(Activation::Silu));
            let second = self.map(dims);
            steps.push(Step::Store(second));
            outputs.push(second);
        }
        let at = self.random.from(0, outputs.len() - 1);
        self.graph.outputs = vec![outputs[at]];
        steps
    }

    pub(super) fn weights(&mut self, dims: &[usize]) -> Weights {
        let len: usize = dims.iter().product();
        let taps = (len / dims[0]).max(1) as f32;
        let values: Vec<f32> = self.random.reals(len).iter().map(|v| v / taps.sqrt()).collect();
        Weights::new(Tensor::from_shape(dims, &values).unwrap().into()).unwrap()
    }
}

/// Two convolutions and an image for them.
pub(super) fn small() -> (FusedGraph, Vec<u8>) {
    let mut build = Build::new(7);
    let image = build.image([9, 11, 5]);
    let source = build.source(image, 1, true);
    let mut last = (source, 6);
    for outputs in [37, 10] {
        let weights = build.weights(&[outputs, last.1, 3, 3]);
        let conv = Conv {
            weights,
            channels: last.1,
            outputs,
            kernel: [3; 2],
            stride: [1; 2],
            dilation: [1; 2],
            padding: Padding { top: 1, bottom: 1, left: 1, right: 1 },
            groups: 1,
        };
        let made = build.map([9, 11, outputs]);
        let steps = vec![Step::Activate(Activation::Silu), Step::Store(made)];
        build.op(Core::Conv(conv), &[(last.0, 1)], steps);
        last = (made, outputs);
    }
    build.graph.outputs = vec![last.0];
    let image = (0..9 * 11 * 5).map(|_| build.random.next() as u8).collect();
    (build.graph, image)
}
