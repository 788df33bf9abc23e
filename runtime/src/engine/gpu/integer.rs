//! Convolutions of integers: maps of bytes in, products of bytes summed in int32, bytes or reals out. Sums are
//! exact, and what follows is the arithmetic that [`fused`](crate::engine::fused) lays down, so the bytes are
//! those of every other engine.
//!
//! Bytes are kept as `q - 128`, int8, because that is what `dot4I8Packed` multiplies; what that leaves
//! out, `(128 - zero point)` times the sum of an output's weights, is the same for every pixel and goes
//! into the bias.

use super::conv::{Geometry, frame, rows, shape, steps};
use super::elements::Elements;
use super::lower::Context;
use super::map::{Frame, Map};
use super::pixelwise::norm;
use super::product::{Norm, Product};
use super::requantise::{begin, digits, finish, looked_up, rounded};
use super::shader::{Abilities, Kernel, Weights, Writer};
use super::tiling::{self, Choice, Extent, Tiling};
use super::{Lowered, refuse};
use crate::engine::fused::{Bias, Core, FusedOp, Grid, IntegerConv, Step, tables};

pub(super) fn lower(context: &Context, op: &FusedOp, conv: &IntegerConv) -> Lowered<Vec<Kernel>> {
    let geometry = &conv.conv;
    let frame = frame(context, op, geometry)?;
    if conv.integers.len() != geometry.weights.values().len() || conv.scales.len() != frame.channels
    {
        return refuse("its integer weights do not fit its shape");
    }
    let sources: Vec<&Map> = op.inputs.iter().map(|input| &context.maps[input.buffer]).collect();
    if sources.iter().any(|map| map.grid != Some(conv.input)) {
        return refuse("it reads something else than bytes of its grid");
    }
    let kernel = match (geometry.groups > 1, &sources[..]) {
        (false, sources) if is_normed(op) && !shares_norm(op, conv, context.abilities) => {
            normed(context, op, conv, sources, frame)?
        }
        (false, sources) => product(context, op, conv, sources, frame)?,
        (true, [source]) if op.inputs[0].upsample == 1 => {
            depthwise(context, op, conv, source, frame)?
        }
        _ => return refuse("channels by themselves of several maps, or of an enlarged one"),
    };
    Ok(vec![kernel])
}

fn is_norm(step: &Step) -> bool {
    matches!(step, Step::Norm { .. })
}

fn is_normed(op: &FusedOp) -> bool {
    op.steps.iter().any(is_norm)
}

/// Whether the kernel of `op` takes the pixel norm that is among its steps: where a workgroup has all channels, or
/// where a pixel's sums are so few that each thread computes some pixel's own.
pub(super) fn takes_norm(op: &FusedOp, abilities: Abilities) -> bool {
    let Core::IntegerConv(conv) = &op.core else { return false };
    let bytes = tables(&op.steps).filter(|tables| tables.stores.is_empty());
    let able = conv.conv.groups == 1
        && conv.digits.is_empty()
        && !matches!(conv.bias(&op.steps), Bias::None | Bias::Reals(_))
        && bytes.is_some_and(|tables| op.steps[tables.used..].iter().any(is_norm));
    able && (conv.conv.kernel == [1, 1] || shares_norm(op, conv, abilities))
}

/// Whether workgroups have all channels of their pixels, of which they take one norm.
fn shares_norm(op: &FusedOp, conv: &IntegerConv, abilities: Abilities) -> bool {
    op.steps.iter().filter(|step| is_norm(step)).count() == 1
        && tiling::takes_norm(abilities, conv.conv.outputs.div_ceil(4))
}

/// A 1x1 convolution, rounded, then a pixel norm and what follows it.
fn normed(
    context: &Context,
    op: &FusedOp,
    conv: &IntegerConv,
    sources: &[&Map],
    frame: Frame,
) -> Lowered<Kernel> {
    let Some(tables) = tables(&op.steps) else { return refuse("its sums are not rounded") };
    let mut writer = context.writer();
    let size = [sources[0].height, sources[0].width].map(|size| size * op.inputs[0].upsample);
    let n4 = writer.number(frame.c4());
    let mut weights = packed(conv, sources, frame.c4(), 1).concat();
    let begin = begin(&mut writer, conv, &conv.bias(&op.steps), &mut weights).concat();
    let geometry = Geometry::new(&mut writer, size, frame.width, &conv.conv);
    let rows = rows(op, sources);
    let (first, count) = (writer.rows(&rows), writer.number(rows.len()));
    let number = rounded(&mut writer, conv, tables.grid);
    let value = looked_up(&mut writer, &tables.last, tables.grid);
    let zero = writer.word(word([zero(conv.input); 4]));
    writer.function(&format!(
        "fn core(pixel: u32, c4: u32) -> V {{
  let ky = 0;
  let kx = 0;
{}  var sums = {begin};
  var k = c4;
  for (var s = 0u; s < {count}; s++) {{
    let source = params[{first}u + s];
{}    for (var c = 0u; c < source.y; c++) {{
      let a = select({zero}, words[at0 + c], in0);
      let w = weights[k];
      k += {n4};
      sums += vec4<i32>(
        dot4I8Packed(a, w.x), dot4I8Packed(a, w.y), dot4I8Packed(a, w.z), dot4I8Packed(a, w.w),
      );
    }}
  }}
  let sum = V(sums);
  let q = vec4<u32>({number});
  return {value};
}}",
        geometry.setup(0, "pixel"),
        geometry.address(0, "").replace("base +", "words_base +")
    ));
    let rest = &op.steps[tables.used..];
    norm(writer, "int8 conv, norm", rest, frame, Weights::Words(weights))
}

/// Digit by digit, for each tap and four channels of a source: the words of four output channels.
fn packed(conv: &IntegerConv, sources: &[&Map], n4: usize, taps: usize) -> Vec<Vec<u32>> {
    let k4: usize = sources.iter().map(|map| map.c4()).sum();
    let channels = conv.conv.channels;
    let pack = |digit: &&[i8]| {
        let mut bytes = vec![[0i8; 4]; taps * k4 * n4 * 4];
        for n in 0..conv.conv.outputs {
            let (mut channel, mut first) = (0, 0);
            for map in sources {
                for c in 0..map.channels {
                    for tap in 0..taps {
                        bytes[(tap * k4 + first + c / 4) * n4 * 4 + n][c % 4] =
                            digit[(n * channels + channel + c) * taps + tap];
                    }
                }
                channel += map.channels;
                first += map.c4();
            }
        }
        bytes.into_iter().map(word).collect()
    };
    digits(conv).iter().map(pack).collect()
}

fn product(
    context: &Context,
    op: &FusedOp,
    conv: &IntegerConv,
    sources: &[&Map],
    frame: Frame,
) -> Lowered<Kernel> {
    let mut writer = context.writer();
    let geometry = &conv.conv;
    let size = [sources[0].height, sources[0].width].map(|size| size * op.inputs[0].upsample);
    let n4 = frame.c4();
    let planes = packed(conv, sources, n4, geometry.kernel[0] * geometry.kernel[1]);
    let (digits, plane) = (planes.len(), planes[0].len() / 4);
    let mut weights = planes.concat();
    let (begin, norm) = match is_normed(op) {
        true => before(&mut writer, op, conv, frame, &mut weights)?,
        false => (finish(&mut writer, op, conv, frame, &mut weights)?, None),
    };
    let normed = norm.is_some();
    let product = Product {
        geometry: Geometry::new(&mut writer, size, frame.width, geometry),
        kernel: geometry.kernel,
        sources: rows(op, sources),
        frame,
        planes: 1,
        elements: elements(&mut writer, conv, begin, plane),
        norm,
    };
    let k4 = sources.iter().map(|map| map.c4()).sum();
    let kind =
        if digits == 1 { "int8 conv".to_owned() } else { format!("int8 conv by {digits} digits") };
    let shape = shape(&kind, op, geometry, frame, k4);
    let extent = Extent { pixels: frame.pixels(), n4, k4, bytes: true, normed };
    let choice = match digits {
        1 => Choice::product(shape, context.abilities, extent, true),
        // All digits are multiplied with what is read once.
        _ => Choice::direct(shape, &[4, 2, 1]),
    };
    let weights = Weights::Words(weights);
    let kernel = match context.tiling(&choice) {
        Tiling::Direct { pixels } => product.direct(writer, "int8 conv direct", weights, pixels),
        tiling => product.tiled(writer, "int8 conv tiled", weights, tiling)?,
    };
    Ok(Kernel { choice: Some(choice), ..kernel })
}

/// Functions `before`, from sums as reals to what a pixel norm is taken of, and `finish` for what follows it; what
/// the sums begin with.
fn before(
    writer: &mut Writer,
    op: &FusedOp,
    conv: &IntegerConv,
    frame: Frame,
    words: &mut Vec<u32>,
) -> Lowered<(Vec<String>, Option<Norm>)> {
    let Some(tables) = tables(&op.steps) else { return refuse("its sums are not rounded") };
    let begin = begin(writer, conv, &conv.bias(&op.steps), words);
    let norm = steps(writer, &op.steps[tables.used..], frame, "before_norm")?;
    let number = rounded(writer, conv, tables.grid);
    let value = looked_up(writer, &tables.last, tables.grid);
    writer.function(&format!(
        "fn before(sum: V, pixel: u32, c4: u32) -> V {{
  let q = vec4<u32>({number});
  return before_norm({value}, pixel, c4);
}}"
    ));
    Ok((begin, norm))
}

fn depthwise(
    context: &Context,
    op: &FusedOp,
    conv: &IntegerConv,
    source: &Map,
    frame: Frame,
) -> Lowered<Kernel> {
    let mut writer = context.writer();
    let taps = conv.conv.kernel[0] * conv.conv.kernel[1];
    // For each tap, four of these words an element: one word holds four channels.
    let quads = frame.c4().div_ceil(4);
    let mut bytes = vec![[0i8; 4]; taps * quads * 4];
    for c in 0..frame.channels {
        for tap in 0..taps {
            bytes[tap * quads * 4 + c / 4][c % 4] = conv.integers[c * taps + tap];
        }
    }
    let mut weights: Vec<u32> = bytes.into_iter().map(word).collect();
    let begin = finish(&mut writer, op, conv, frame, &mut weights)?;
    if begin.len() != 1 {
        return refuse("weights of several digits, channel by channel");
    }
    let size = [source.height, source.width];
    let product = Product {
        geometry: Geometry::new(&mut writer, size, frame.width, &conv.conv),
        kernel: conv.conv.kernel,
        sources: rows(op, &[source]),
        frame,
        planes: 1,
        elements: elements(&mut writer, conv, begin, 0),
        norm: None,
    };
    let shape = shape("int8 depthwise", op, &conv.conv, frame, source.c4());
    product.by_channel(context, writer, "int8 depthwise", Weights::Words(weights), shape)
}

/// What `conv` multiplies; from one digit of its weights to the next it is `plane` elements.
fn elements(writer: &mut Writer, conv: &IntegerConv, begin: Vec<String>, plane: usize) -> Elements {
    Elements::Bytes {
        outside: writer.word(word([zero(conv.input); 4])),
        begin,
        powers: conv.powers(),
        plane: writer.number(plane),
    }
}

/// The byte that means 0, as it is kept.
fn zero(grid: Grid) -> i8 {
    (i32::from(grid.zero_point) - 128) as i8
}

fn word(bytes: [i8; 4]) -> u32 {
    u32::from_le_bytes(bytes.map(|byte| byte as u8))
}
