//! The list of fused operators in words, one line an operator.

use std::fmt;

use super::list::*;

impl fmt::Display for FusedGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (k, op) in self.ops.iter().enumerate() {
            writeln!(f, "{k:>3}  {}", self.describe(op))?;
        }
        let used: usize = self.buffers.iter().map(BufferSpec::bytes).sum();
        write!(
            f,
            "{} operators, {} not recognised, {} buffers of {} KiB in an arena of {} KiB, {:.1} MMAC",
            self.ops.len(),
            self.unrecognised().count(),
            self.buffers.len(),
            used.div_ceil(1024),
            self.arena_bytes.div_ceil(1024),
            self.macs() as f64 / 1e6
        )
    }
}

impl FusedGraph {
    /// One operator: what it reads, its core, what its values pass through.
    pub fn describe(&self, op: &FusedOp) -> String {
        let inputs: Vec<String> = op.inputs.iter().map(|input| self.input(*input)).collect();
        let mut text = format!("{} | {}", inputs.join(" + "), op.core);
        for step in &op.steps {
            text.push_str(" | ");
            text.push_str(&self.step(step));
        }
        for output in &op.outputs {
            text.push_str(" | ");
            text.push_str(&self.buffer(*output));
        }
        format!("{text}   ({})", op.name)
    }

    fn input(&self, input: Input) -> String {
        let buffer = format!("{} {}", name(input.buffer), self.buffers[input.buffer].layout);
        if input.upsample == 1 { buffer } else { format!("{buffer} x{}", input.upsample) }
    }

    fn buffer(&self, id: BufferId) -> String {
        format!("-> {} {}", name(id), self.buffers[id].layout)
    }

    fn step(&self, step: &Step) -> String {
        let operand = |input: &Input| match input.upsample {
            1 => name(input.buffer),
            n => format!("{} x{n}", name(input.buffer)),
        };
        match step {
            Step::Scale(Channels::One(factor)) => format!("* {factor}"),
            Step::Scale(Channels::Each(_)) => "* channels".into(),
            Step::Offset(Channels::One(value)) => format!("+ {value}"),
            Step::Offset(Channels::Each(_)) => "+ channels".into(),
            Step::Add { input, scale } if *scale == 1.0 => format!("+ {}", operand(input)),
            Step::Add { input, scale } => format!("+ {scale} * {}", operand(input)),
            Step::Multiply(input) => format!("* {}", operand(input)),
            Step::Norm { epsilon } => format!("pixel norm {epsilon}"),
            Step::Activate(activation) => activation.to_string(),
            Step::Pool => "mean over pixels".into(),
            Step::Store(id) => self.buffer(*id),
            Step::Load(id) => name(*id),
        }
    }
}

fn name(id: BufferId) -> String {
    format!("b{id}")
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map { height: 1, width: 1, channels } => write!(f, "{channels}"),
            Self::Map { height, width, channels } => write!(f, "{height}x{width}x{channels}"),
            Self::Plain(dims) => write!(f, "{dims:?}"),
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clip { low, high } => write!(f, "clip {low}..{high}"),
            Self::Snap(grid) => write!(f, "round to {} * (q - {})", grid.scale, grid.zero_point),
            Self::Silu => f.write_str("silu"),
            Self::Sigmoid => f.write_str("sigmoid"),
            Self::Sqrt => f.write_str("sqrt"),
            Self::Reciprocal => f.write_str("reciprocal"),
            Self::ReciprocalSqrt => f.write_str("reciprocal sqrt"),
            Self::Square => f.write_str("square"),
            Self::Negate => f.write_str("negate"),
            Self::Abs => f.write_str("abs"),
            Self::Exp => f.write_str("exp"),
            Self::Tanh => f.write_str("tanh"),
        }
    }
}

impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image { affine, block, constant } => {
                write!(f, "image")?;
                if *block > 1 {
                    write!(f, " blocks {block}")?;
                }
                if affine.is_some() {
                    write!(f, " affine")?;
                }
                match constant {
                    Some(1.0) => write!(f, " ones"),
                    Some(value) => write!(f, " and {value}"),
                    None => Ok(()),
                }
            }
            Self::Conv(conv) => {
                let [kh, kw] = conv.kernel;
                let kind = match conv.groups {
                    1 => "conv",
                    groups if groups == conv.channels && groups == conv.outputs => "depthwise",
                    _ => "grouped conv",
                };
                write!(f, "{kind} {kh}x{kw}")?;
                if conv.stride != [1, 1] {
                    write!(f, " /{}", conv.stride[0])?;
                }
                if conv.dilation != [1, 1] {
                    write!(f, " dilated {}", conv.dilation[0])?;
                }
                write!(f, " {}>{}", conv.channels, conv.outputs)
            }
            Self::IntegerConv(integer) => write!(f, "int8 {}", Self::Conv(integer.conv.clone())),
            Self::Dense(dense) => write!(f, "dense {}>{}", dense.channels, dense.outputs),
            Self::Map => f.write_str("map"),
            Self::Pool(pool) => {
                let kind = if pool.maximum { "max" } else { "mean" };
                write!(f, "{kind} pool {}x{} /{}", pool.kernel[0], pool.kernel[1], pool.stride[0])
            }
            Self::Attention(attention) => {
                write!(f, "attention {} heads of {}", attention.heads, attention.dim)
            }
            Self::GroupNorm { groups, epsilon } => write!(f, "group norm {groups} {epsilon}"),
            Self::Moments { mean: true, deviation: true } => f.write_str("mean and deviation"),
            Self::Moments { mean: true, .. } => f.write_str("mean"),
            Self::Moments { .. } => f.write_str("deviation"),
            Self::Layout => f.write_str("layout"),
            Self::Tract(op) => write!(f, "tract {}", op.about),
        }
    }
}
