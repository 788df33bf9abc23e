//! Convolutions of reals: as a matrix product, and channel by channel.

use super::elements::Elements;
use super::lower::{Context, reach};
use super::map::{Frame, Map};
use super::product::{Norm, Product};
use super::shader::{Kernel, Weights, Writer};
use super::tiling::{Choice, Extent, Tiling};
use super::{Lowered, refuse, winograd};
use crate::engine::fused::{Conv, FusedOp, Input, Step};

/// Checks the geometry of `conv` against its inputs; the size of what it makes.
pub(super) fn frame(context: &Context, op: &FusedOp, conv: &Conv) -> Lowered<Frame> {
    let first = context.first(op)?;
    let size = [first.height, first.width].map(|size| size * op.inputs[0].upsample);
    let mut channels = 0;
    for input in &op.inputs {
        let map = &context.maps[input.buffer];
        if [map.height, map.width].map(|size| size * input.upsample) != size {
            return refuse("its inputs differ in size");
        }
        channels += map.channels;
    }
    let depthwise = conv.groups > 1;
    if depthwise && !(conv.groups == conv.channels && conv.outputs == conv.channels) {
        return refuse(format!(
            "a convolution of {} groups of channels; one group, or one for each channel, is what \
             there are shaders for",
            conv.groups
        ));
    }
    let per_output = if depthwise { 1 } else { channels };
    let taps = conv.kernel[0].checked_mul(conv.kernel[1]);
    let len = taps.and_then(|taps| taps.checked_mul(per_output)?.checked_mul(conv.outputs));
    if channels != conv.channels || conv.outputs == 0 || len != Some(conv.weights.values().len()) {
        return refuse(format!(
            "{} weights for {channels} channels in and {} out of a {}x{} convolution",
            conv.weights.values().len(),
            conv.outputs,
            conv.kernel[0],
            conv.kernel[1]
        ));
    }
    let padding = conv.padding;
    Ok(Frame {
        height: reach(
            size[0],
            conv.kernel[0],
            conv.dilation[0],
            conv.stride[0],
            [padding.top, padding.bottom],
        )?,
        width: reach(
            size[1],
            conv.kernel[1],
            conv.dilation[1],
            conv.stride[1],
            [padding.left, padding.right],
        )?,
        channels: conv.outputs,
    })
}

/// The dispatches of a convolution.
pub(super) fn lower(context: &Context, op: &FusedOp, conv: &Conv) -> Lowered<Vec<Kernel>> {
    let frame = frame(context, op, conv)?;
    if conv.groups > 1 {
        return depthwise(context, op, conv, frame).map(|kernel| vec![kernel]);
    }
    if let [transformed, products] = op.outputs[..] {
        return winograd::lower(context, op, conv, frame, [transformed, products]);
    }
    product(context, op, conv, frame).map(|kernel| vec![kernel])
}

/// Weights as the shaders read them: for each tap and each input channel (padded to whole elements
/// for each source), all output channels.
fn packed(conv: &Conv, sources: &[&Map], n4: usize) -> Vec<f32> {
    let taps = conv.kernel[0] * conv.kernel[1];
    let k4: usize = sources.iter().map(|map| map.c4()).sum();
    let mut packed = vec![0.0; taps * k4 * 4 * n4 * 4];
    let weights = conv.weights.values();
    for n in 0..conv.outputs {
        let (mut channel, mut first) = (0, 0);
        for map in sources {
            for c in 0..map.channels {
                for tap in 0..taps {
                    let row = tap * k4 * 4 + first * 4 + c;
                    packed[row * n4 * 4 + n] =
                        weights[(n * conv.channels + channel + c) * taps + tap];
                }
            }
            channel += map.channels;
            first += map.c4();
        }
    }
    packed
}

/// Numbers that every convolution's shader reads.
pub(super) struct Geometry {
    size: [String; 2],
    out_width: String,
    stride: [String; 2],
    dilation: [String; 2],
    padding: [String; 2],
}

impl Geometry {
    pub(super) fn new(
        writer: &mut Writer,
        size: [usize; 2],
        out_width: usize,
        conv: &Conv,
    ) -> Self {
        Self {
            size: size.map(|n| writer.number(n)),
            out_width: writer.number(out_width),
            stride: conv.stride.map(|n| writer.number(n)),
            dilation: conv.dilation.map(|n| writer.number(n)),
            padding: [conv.padding.top, conv.padding.left].map(|n| writer.number(n)),
        }
    }

    /// Of pixels that are read one by one where they lie.
    pub(super) fn pointwise(writer: &mut Writer, [height, width]: [usize; 2]) -> Self {
        let one = || ["1u".to_owned(), "1u".to_owned()];
        let width = writer.number(width);
        Self {
            size: [writer.number(height), width.clone()],
            out_width: width,
            stride: one(),
            dilation: one(),
            padding: ["0u".to_owned(), "0u".to_owned()],
        }
    }

    /// Where pixel `pixel`'s window begins, in variables numbered `m`.
    pub(super) fn setup(&self, m: usize, pixel: &str) -> String {
        let (ow, [sy, sx], [pt, pl]) = (&self.out_width, &self.stride, &self.padding);
        format!(
            "  let p{m} = {pixel};
  let y{m} = i32(p{m} / {ow} * {sy}) - i32({pt});
  let x{m} = i32(p{m} % {ow} * {sx}) - i32({pl});\n"
        )
    }

    /// Where it reads at this tap: `at` and whether that is inside the map.
    pub(super) fn address(&self, m: usize, more: &str) -> String {
        let ([h, w], [dy, dx]) = (&self.size, &self.dilation);
        format!(
            "        let ty{m} = y{m} + ky * i32({dy});
        let tx{m} = x{m} + kx * i32({dx});
        let in{m} = ty{m} >= 0 && ty{m} < i32({h}) && tx{m} >= 0 && tx{m} < i32({w}){more};
        let at{m} = base + source.x + select(0u, ((u32(ty{m}) >> source.w) * source.z + \
             (u32(tx{m}) >> source.w)) * source.y, in{m});\n"
        )
    }
}

/// What the shaders read of each source: offset, elements of a pixel, width, shift of enlarging.
pub(super) fn rows(op: &FusedOp, sources: &[&Map]) -> Vec<[usize; 4]> {
    let row = |(input, map): (&Input, &&Map)| {
        [map.offset, map.c4(), map.width, input.upsample.trailing_zeros() as usize]
    };
    op.inputs.iter().zip(sources).map(row).collect()
}

/// What decides how fast a convolution's tilings are, in words.
pub(super) fn shape(kind: &str, op: &FusedOp, conv: &Conv, frame: Frame, k4: usize) -> String {
    let [kh, kw] = conv.kernel;
    let enlarged = op.inputs.iter().any(|input| input.upsample > 1);
    let normed = op.steps.iter().any(|step| matches!(step, Step::Norm { .. }));
    format!(
        "{kind} {}x{}x{} of {k4} {kh}x{kw}/{} from {}{}{}",
        frame.height,
        frame.width,
        frame.c4(),
        conv.stride[0],
        op.inputs.len(),
        if enlarged { " enlarged" } else { "" },
        if normed { " normed" } else { "" }
    )
}

fn product(context: &Context, op: &FusedOp, conv: &Conv, frame: Frame) -> Lowered<Kernel> {
    let mut writer = context.writer();
    let sources: Vec<&Map> = op.inputs.iter().map(|input| &context.maps[input.buffer]).collect();
    let size = [sources[0].height, sources[0].width].map(|size| size * op.inputs[0].upsample);
    let (n4, k4) = (frame.c4(), sources.iter().map(|map| map.c4()).sum());
    let norm = steps(&mut writer, &op.steps, frame, "before")?;
    let extent = Extent { pixels: frame.pixels(), n4, k4, bytes: false, normed: norm.is_some() };
    let shape = shape("conv", op, conv, frame, k4);
    let choice = Choice::product(shape, context.abilities, extent, true);
    let product = Product {
        geometry: Geometry::new(&mut writer, size, frame.width, conv),
        kernel: conv.kernel,
        sources: rows(op, &sources),
        frame,
        planes: 1,
        elements: Elements::Reals,
        norm,
    };
    let weights = Weights::Reals(packed(conv, &sources, n4));
    let mut kernel = match context.tiling(&choice) {
        Tiling::Direct { pixels } => product.direct(writer, "conv direct", weights, pixels),
        tiling => product.tiled(writer, "conv tiled", weights, tiling)?,
    };
    kernel.choice = Some(choice);
    Ok(kernel)
}

/// Functions for `steps`: `finish`, and the one named `before` for those before a pixel norm, if there is one.
pub(super) fn steps(
    writer: &mut Writer,
    steps: &[Step],
    frame: Frame,
    before: &str,
) -> Lowered<Option<Norm>> {
    let norm = steps.iter().enumerate().find_map(|(at, step)| match step {
        Step::Norm { epsilon } => Some((at, *epsilon)),
        _ => None,
    });
    let Some((at, epsilon)) = norm else {
        writer.steps("finish", steps, frame)?;
        return Ok(None);
    };
    writer.steps(before, &steps[..at], frame)?;
    writer.steps("finish", &steps[at + 1..], frame)?;
    let whole = frame.channels.is_multiple_of(4);
    Ok(Some(Norm {
        share: writer.real(1.0 / frame.channels as f32),
        epsilon: writer.real(epsilon),
        channels: (!whole).then(|| writer.number(frame.channels)),
    }))
}

fn depthwise(context: &Context, op: &FusedOp, conv: &Conv, frame: Frame) -> Lowered<Kernel> {
    let mut writer = context.writer();
    let source = context.first(op)?;
    let taps = conv.kernel[0] * conv.kernel[1];
    let c4 = frame.c4();
    let mut packed = vec![0.0; taps * c4 * 4];
    for (c, kernel) in conv.weights.values().chunks_exact(taps).enumerate() {
        for (tap, weight) in kernel.iter().enumerate() {
            packed[tap * c4 * 4 + c] = *weight;
        }
    }
    writer.steps("finish", &op.steps, frame)?;
    let product = Product {
        geometry: Geometry::new(&mut writer, [source.height, source.width], frame.width, conv),
        kernel: conv.kernel,
        sources: rows(op, &[source]),
        frame,
        planes: 1,
        elements: Elements::Reals,
        norm: None,
    };
    let shape = shape("depthwise", op, conv, frame, source.c4());
    product.by_channel(context, writer, "depthwise", Weights::Reals(packed), shape)
}
