//! The list of fused operators: what an engine executes, in order.
//!
//! Every operator is a core (a convolution, an attention, a pooling) that makes a map, and the
//! [`Step`]s its values pass through, one pixel at a time, on their way to one or more buffers. So a
//! residual block's `conv, add, clip` and the SiLU its successor wants are one operator with two
//! stores. Nothing here is specific to a processor.

use std::fmt;
use std::sync::Arc;

use tract_onnx::prelude::*;

/// Index into [`FusedGraph::buffers`].
pub type BufferId = usize;

/// A model as a list of fused operators.
#[derive(Debug, Clone)]
pub struct FusedGraph {
    /// Executed in this order.
    pub ops: Vec<FusedOp>,
    /// What they read and write.
    pub buffers: Vec<BufferSpec>,
    /// Buffers the caller fills, in the model's order.
    pub inputs: Vec<BufferId>,
    /// Buffers the caller reads, in the model's order.
    pub outputs: Vec<BufferId>,
    /// Bytes of the arena that holds all buffers; each buffer's place is [`BufferSpec::offset`].
    pub arena_bytes: usize,
}

/// One fused operator.
#[derive(Debug, Clone)]
pub struct FusedOp {
    /// Name of the graph node that its core comes from.
    pub name: String,
    /// What it computes.
    pub core: Core,
    /// What it reads. Several inputs of a [`Core::Conv`], [`Core::Dense`] or [`Core::Map`] are read
    /// as if concatenated along channels.
    pub inputs: Vec<Input>,
    /// What its values pass through, in order. Without a [`Step::Store`] in cores that write their
    /// outputs themselves.
    pub steps: Vec<Step>,
    /// Buffers that the core writes itself: of [`Core::Moments`], [`Core::Layout`] and
    /// [`Core::Tract`].
    pub outputs: Vec<BufferId>,
}

/// A buffer as an operator reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// Which.
    pub buffer: BufferId,
    /// Each pixel stands for `upsample` x `upsample` pixels (nearest neighbour); 1 is the map itself.
    pub upsample: usize,
}

/// What a buffer holds.
#[derive(Debug, Clone, PartialEq)]
pub struct BufferSpec {
    /// Name of the graph value.
    pub name: String,
    /// Type of its elements.
    pub element: DatumType,
    /// How they lie.
    pub layout: Layout,
    /// First byte in the arena, a multiple of [`ALIGNMENT`].
    pub offset: usize,
}

/// Alignment of every buffer in the arena, in bytes.
pub const ALIGNMENT: usize = 64;

/// Order of a buffer's elements.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Layout {
    /// A map of one image, `[height, width, channels]`, row-major; a vector is 1 x 1 pixels.
    Map {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Channels.
        channels: usize,
    },
    /// Any tensor, row-major in the graph's own axis order.
    Plain(Vec<usize>),
}

/// The core of an operator.
#[derive(Debug, Clone)]
pub enum Core {
    /// uint8 pixels `[height, width, channels]` as float, blocks of `block` x `block` pixels gathered
    /// into channels (row in block, column in block, channel), then a channel of one value.
    Image {
        /// Factor and offset for each image channel.
        affine: Option<(Channels, Channels)>,
        /// Side of the block; 1 leaves pixels where they are.
        block: usize,
        /// Value of a channel that is appended, if one is: 1 as files have it.
        constant: Option<f32>,
    },
    /// Convolution over the channels of all inputs.
    Conv(Conv),
    /// The same with integers: inputs rounded to uint8, int8 weights, int32 sums.
    IntegerConv(IntegerConv),
    /// Matrix times the concatenated input vectors.
    Dense(Dense),
    /// The inputs themselves: steps alone, a copy, a concatenation, an upsampling.
    Map,
    /// Pooling over windows.
    Pool(Pool),
    /// Self-attention over all pixels of a map whose channels are queries, keys and values, each of
    /// `heads` x `dim` channels.
    Attention(Attention),
    /// Normalisation of groups of channels over all pixels, then a mean over all pixels if `pooled`
    /// (after the steps before [`Step::Pool`]).
    GroupNorm {
        /// Number of groups.
        groups: usize,
        /// Added to the variance.
        epsilon: f32,
    },
    /// Mean and standard deviation (population) of each channel over all pixels, as vectors: one
    /// output each, the mean first where both are asked for.
    Moments {
        /// The mean is wanted.
        mean: bool,
        /// The standard deviation is wanted.
        deviation: bool,
    },
    /// Change of layout between [`Layout::Plain`] and [`Layout::Map`] of the same values.
    Layout,
    /// An operator, or a whole graph, that was not recognised: tract runs it.
    Tract(TractOp),
}

/// Convolution weights and geometry.
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    /// `[outputs, channels / groups, kernel height, kernel width]`.
    pub weights: Weights,
    /// Input channels of all inputs together.
    pub channels: usize,
    /// Output channels.
    pub outputs: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Vertical and horizontal dilation.
    pub dilation: [usize; 2],
    /// Rows of zeros above and below, columns of zeros left and right.
    pub padding: Padding,
    /// Groups of channels that do not mix.
    pub groups: usize,
}

/// Base of the digits of an integer weight of more than 8 bits.
pub const BASE: i32 = 128;

/// A convolution whose weights are integers times one scale an output channel, of inputs that are
/// rounded to a [`Grid`].
#[derive(Debug, Clone, PartialEq)]
pub struct IntegerConv {
    /// The same convolution of reals; padding is the real 0. Its weights are those of the file, before they
    /// were fitted to a changed [constant](Core::Image).
    pub conv: Conv,
    /// The weights as integers, in the same order.
    pub integers: Arc<[i8]>,
    /// Where 8 bits are too few: further digits of the integers, to base [`BASE`], the last of them ones.
    pub digits: Vec<Arc<[i8]>>,
    /// Real weight over integer weight, one an output channel.
    pub scales: Arc<[f32]>,
    /// What all inputs are rounded to.
    pub input: Grid,
}

/// 256 evenly spaced values: `scale * (q - zero_point)` for q from 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Distance of neighbours.
    pub scale: f32,
    /// The q that means 0.
    pub zero_point: u8,
}

impl Grid {
    /// What reals are multiplied with to be rounded.
    pub fn inverse(self) -> f32 {
        1.0 / self.scale
    }

    /// The q whose value is nearest to `x`: half to even, saturating.
    pub fn index(self, x: f32) -> u8 {
        let steps = (x * self.inverse()).round_ties_even();
        (steps + f32::from(self.zero_point)).clamp(0.0, 255.0) as u8
    }

    /// The value of `q`.
    pub fn real(self, q: u8) -> f32 {
        self.scale * (f32::from(q) - f32::from(self.zero_point))
    }
}

/// Zeros around a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

/// A matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// `[outputs, channels]`.
    pub weights: Weights,
    /// Values of all inputs together.
    pub channels: usize,
    /// Rows of the matrix.
    pub outputs: usize,
}

/// Pooling geometry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Maximum instead of mean.
    pub maximum: bool,
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Around the map; a mean counts only pixels of the map, unless `count_padding`.
    pub padding: Padding,
    /// Count padded pixels in a mean.
    pub count_padding: bool,
}

/// Attention geometry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Channels a head.
    pub dim: usize,
    /// Epsilon of the root mean square that each query, key and value is divided by, if it is.
    pub norm: Option<f32>,
    /// Factor on the scores before the softmax.
    pub scale: f32,
}

/// One value for all channels, or one each.
#[derive(Debug, Clone, PartialEq)]
pub enum Channels {
    /// The same for all.
    One(f32),
    /// One a channel.
    Each(Arc<[f32]>),
}

impl Channels {
    /// The value of channel `c`.
    pub fn at(&self, c: usize) -> f32 {
        match self {
            Self::One(value) => *value,
            Self::Each(values) => values[c],
        }
    }

    /// All values for `channels` channels.
    pub fn to_vec(&self, channels: usize) -> Vec<f32> {
        (0..channels).map(|c| self.at(c)).collect()
    }
}

/// What an operator's values pass through.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Multiply.
    Scale(Channels),
    /// Add.
    Offset(Channels),
    /// Add `scale` times the same pixel of another buffer.
    Add {
        /// Read at the same pixel.
        input: Input,
        /// Factor on it.
        scale: f32,
    },
    /// Multiply with the same pixel of another buffer.
    Multiply(Input),
    /// Divide each pixel by the root mean square of its channels:
    /// `x / (sqrt(mean(x^2)) + epsilon)`.
    Norm {
        /// Added to the root.
        epsilon: f32,
    },
    /// An activation.
    Activate(Activation),
    /// Mean over all pixels; what follows sees a vector.
    Pool,
    /// Write to a buffer of the shape at this point.
    Store(BufferId),
    /// Go on with the value that this operator wrote to a buffer.
    Load(BufferId),
}

/// A function of one value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// Limits; -inf or inf where there is none.
    Clip {
        /// Lower.
        low: f32,
        /// Upper.
        high: f32,
    },
    /// The nearest value of a grid.
    Snap(Grid),
    /// Square root.
    Sqrt,
    /// `1 / x`.
    Reciprocal,
    /// `1 / sqrt(x)`.
    ReciprocalSqrt,
    /// `x * x`.
    Square,
    /// `-x`.
    Negate,
    /// `|x|`.
    Abs,
    /// Exponential.
    Exp,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// The value at `x`.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Clip { low, high } => {
                // Comparisons hand NaN on, as tract does.
                let x = if x < low { low } else { x };
                if x > high { high } else { x }
            }
            Self::Snap(grid) => grid.real(grid.index(x)),
            Self::Sqrt => x.sqrt(),
            Self::Reciprocal => x.recip(),
            Self::ReciprocalSqrt => x.sqrt().recip(),
            Self::Square => x * x,
            Self::Negate => -x,
            Self::Abs => x.abs(),
            Self::Exp => x.exp(),
            Self::Tanh => x.tanh(),
        }
    }
}

/// Constant float32 values, shared with the model they were read from.
#[derive(Clone, PartialEq)]
pub struct Weights(Arc<Tensor>);

impl Weights {
    /// Takes a float32 tensor.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn new(tensor: Arc<Tensor>) -> TractResult<Self> {
        tensor.try_as_plain_ram()?.as_slice::<f32>()?;
        Ok(Self(tensor))
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        // `new` has seen that the tensor is one of float32 values.
        self.0.try_as_plain_ram().ok().and_then(|view| view.as_slice().ok()).unwrap_or(&[])
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        self.0.shape()
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights{:?}", self.shape())
    }
}

/// A graph that tract runs, its inputs and outputs in order.
#[derive(Clone)]
pub struct TractOp {
    /// What it is made of, in a word.
    pub about: String,
    /// tract's plan, shared by all sessions.
    pub plan: Arc<TypedSimplePlan>,
    /// Shape of each input in the graph's own axis order.
    pub input_shapes: Vec<Vec<usize>>,
    /// Shape of each output in the graph's own axis order.
    pub output_shapes: Vec<Vec<usize>>,
}

impl fmt::Debug for TractOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TractOp({})", self.about)
    }
}

impl Layout {
    /// A vector of `n` values.
    pub fn vector(n: usize) -> Self {
        Self::Map { height: 1, width: 1, channels: n }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Map { height, width, channels } => height * width * channels,
            Self::Plain(dims) => dims.iter().product(),
        }
    }

    /// True when there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Height, width and channels; a plain buffer is one pixel.
    pub fn dims(&self) -> [usize; 3] {
        match self {
            Self::Map { height, width, channels } => [*height, *width, *channels],
            Self::Plain(_) => [1, 1, self.len()],
        }
    }
}

impl BufferSpec {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.layout.len() * self.element.size_of()
    }
}

impl FusedOp {
    /// All buffers it reads.
    pub fn reads(&self) -> impl Iterator<Item = BufferId> + '_ {
        let operands = self.steps.iter().filter_map(|step| match step {
            Step::Add { input, .. } | Step::Multiply(input) => Some(input.buffer),
            _ => None,
        });
        self.inputs.iter().map(|input| input.buffer).chain(operands)
    }

    /// All buffers it writes.
    pub fn writes(&self) -> impl Iterator<Item = BufferId> + '_ {
        let stores = self.steps.iter().filter_map(|step| match step {
            Step::Store(buffer) => Some(*buffer),
            _ => None,
        });
        self.outputs.iter().copied().chain(stores)
    }

    /// Multiply-accumulates of the core for one run, counted as for a direct convolution.
    pub fn macs(&self, buffers: &[BufferSpec]) -> u64 {
        let pixels = |id: BufferId| {
            let [height, width, _] = buffers[id].layout.dims();
            (height * width) as u64
        };
        match &self.core {
            Core::Conv(conv) | Core::IntegerConv(IntegerConv { conv, .. }) => {
                let per_pixel = conv.weights.values().len() as u64;
                self.writes().next().map_or(0, |output| pixels(output) * per_pixel)
            }
            Core::Dense(dense) => (dense.channels * dense.outputs) as u64,
            Core::Attention(attention) => {
                let n = self.inputs.first().map_or(0, |input| pixels(input.buffer));
                2 * n * n * (attention.heads * attention.dim) as u64
            }
            _ => 0,
        }
    }
}

impl FusedGraph {
    /// Multiply-accumulates of all operators.
    pub fn macs(&self) -> u64 {
        self.ops.iter().map(|op| op.macs(&self.buffers)).sum()
    }

    /// Operators that were not recognised.
    pub fn unrecognised(&self) -> impl Iterator<Item = &FusedOp> {
        self.ops.iter().filter(|op| matches!(op.core, Core::Tract(_)))
    }
}
