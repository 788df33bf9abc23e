//! From one operator of the list to its dispatches.

use super::map::{Frame, Map};
use super::reduce::moments;
use super::shader::{Abilities, Kernel, Writer};
use super::tiling::{Choice, Tiling};
use super::tune::Choices;
use super::{Lowered, conv, integer, refuse};
use crate::engine::fused::{Core, FusedGraph, FusedOp, Step};

/// What lowering needs to know besides the operator.
pub(super) struct Context<'a> {
    pub(super) graph: &'a FusedGraph,
    /// All maps by buffer.
    pub(super) maps: &'a [Map],
    /// Elements of reals and words from a tile's maps to the next tile's.
    pub(super) strides: [usize; 2],
    /// Words that an operator has for itself.
    pub(super) reserved: usize,
    /// Words of an image.
    pub(super) image_words: usize,
    pub(super) abilities: Abilities,
    /// The graph has integer convolutions.
    pub(super) quantised: bool,
    /// Measured tilings.
    pub(super) choices: &'a Choices,
}

impl Context<'_> {
    /// A writer for one shader.
    pub(super) fn writer(&self) -> Writer<'_> {
        Writer::new(self.maps, self.abilities, self.strides, self.quantised)
    }

    /// The tiling that was measured to be the fastest, or the usual one.
    pub(super) fn tiling(&self, choice: &Choice) -> Tiling {
        let known = self.choices.get(&choice.shape);
        known.copied().filter(|tiling| choice.tilings.contains(tiling)).unwrap_or(choice.tilings[0])
    }

    /// The map that the first input reads.
    pub(super) fn first(&self, op: &FusedOp) -> Lowered<&Map> {
        match op.inputs.first() {
            Some(input) => Ok(&self.maps[input.buffer]),
            None => refuse("it reads nothing"),
        }
    }

    /// Size of what `op`'s core makes, by what it reads.
    pub(super) fn frame(&self, op: &FusedOp) -> Lowered<Frame> {
        let first = self.first(op)?;
        let up = op.inputs[0].upsample;
        let (height, width) = (first.height * up, first.width * up);
        Ok(match &op.core {
            Core::Image { block, constant, .. } => {
                if *block == 0 || !height.is_multiple_of(*block) || !width.is_multiple_of(*block) {
                    return refuse(format!("{height}x{width} pixels in blocks of {block}"));
                }
                Frame {
                    height: height / block,
                    width: width / block,
                    channels: first.channels * block * block + usize::from(constant.is_some()),
                }
            }
            Core::Pool(pool) => Frame {
                height: reach(
                    height,
                    pool.kernel[0],
                    1,
                    pool.stride[0],
                    [pool.padding.top, pool.padding.bottom],
                )?,
                width: reach(
                    width,
                    pool.kernel[1],
                    1,
                    pool.stride[1],
                    [pool.padding.left, pool.padding.right],
                )?,
                channels: first.channels,
            },
            Core::Map => {
                let mut channels = 0;
                for input in &op.inputs {
                    let map = &self.maps[input.buffer];
                    if [map.height, map.width].map(|size| size * input.upsample) != [height, width]
                    {
                        return refuse("its inputs differ in size");
                    }
                    channels += map.channels;
                }
                Frame { height, width, channels }
            }
            _ => first.frame(),
        })
    }

    /// The dispatches of `op`, in order.
    ///
    /// # Errors
    /// What there is no shader for, or what contradicts itself.
    pub(super) fn lower(&self, op: &FusedOp) -> Lowered<Vec<Kernel>> {
        match &op.core {
            Core::Image { affine, block, constant } => self
                .image(op, affine.as_ref(), *block, constant.unwrap_or_default())
                .map(|kernel| vec![kernel]),
            Core::Conv(conv) => conv::lower(self, op, conv),
            Core::IntegerConv(conv) => integer::lower(self, op, conv),
            Core::Dense(dense) => self.dense(op, dense).map(|kernel| vec![kernel]),
            Core::Map => self.map(op).map(|kernel| vec![kernel]),
            Core::Pool(pool) => self.pool(op, pool).map(|kernel| vec![kernel]),
            Core::Attention(attention) => self.attention(op, attention).map(|kernel| vec![kernel]),
            Core::GroupNorm { groups, epsilon } => self.group_norm(op, *groups, *epsilon),
            Core::Moments { mean, deviation } => {
                let mut outputs = op.outputs.iter();
                let mut wanted = |is: bool| {
                    let steps = |id: &usize| vec![Step::Store(*id)];
                    if is { outputs.next().map(steps) } else { None }
                };
                let (mean, deviation) = (wanted(*mean), wanted(*deviation));
                let mut writer = self.writer();
                let frame = self.first(op)?.frame();
                let value = writer.read(op.inputs[0], frame, "a mean")?;
                writer
                    .function(&format!("fn core(pixel: u32, c4: u32) -> V {{ return {value}; }}"));
                moments(writer, frame, mean, deviation).map(|kernel| vec![kernel])
            }
            Core::Layout => self.layout(op).map(|kernel| vec![kernel]),
            Core::Tract(tract) => refuse(format!("there is no shader for `{}`", tract.about)),
        }
    }
}

/// Positions of a window along one axis.
///
/// # Errors
/// When it does not fit once.
pub(super) fn reach(
    size: usize,
    kernel: usize,
    dilation: usize,
    stride: usize,
    padding: [usize; 2],
) -> Lowered<usize> {
    let span = kernel.saturating_sub(1).saturating_mul(dilation).saturating_add(1);
    match (size + padding[0] + padding[1]).checked_sub(span) {
        Some(room) if stride > 0 && kernel > 0 && dilation > 0 => Ok(room / stride + 1),
        _ => refuse(format!("a window of {kernel} by {stride} over {size}")),
    }
}
