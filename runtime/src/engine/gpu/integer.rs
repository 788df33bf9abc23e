//! Convolutions of integers: a dispatch that rounds the inputs to bytes, and one that sums products
//! of bytes. Sums are exact, so they equal the processor's.
//!
//! Bytes are kept as `q - 128`, int8, because that is what `dot4I8Packed` multiplies; what that leaves
//! out, `(128 - zero point)` times the sum of an output's weights, is the same for every pixel and goes
//! into the bias.

use super::conv::{Geometry, frame};
use super::lower::{Context, Dispatches};
use super::map::Frame;
use super::pixelwise::{gather, threads};
use super::shader::{Kernel, Weights, Writer, groups};
use super::{Lowered, refuse};
use crate::engine::fused::{Activation, Channels, FusedOp, Grid, IntegerConv, Step};

/// Pixels a thread.
const PIXELS: usize = 4;

pub(super) fn lower(context: &Context, op: &FusedOp, conv: &IntegerConv) -> Lowered<Dispatches> {
    let geometry = &conv.conv;
    let frame = frame(context, op, geometry)?;
    if conv.integers.len() != geometry.weights.values().len() || conv.scales.len() != frame.channels
    {
        return refuse("its integer weights do not fit its shape");
    }
    let source = context.first(op)?;
    let size = Frame { channels: geometry.channels, ..source.frame() };
    // Where the inputs are rounded, one word an element.
    let words = size.pixels() * size.c4();
    let (mut writer, stride) = context.writer();
    gather(&mut writer, &op.inputs, size)?;
    let (c4, all) = (writer.number(size.c4()), writer.number(words));
    let index = writer.index("v", conv.input);
    writer.function(&format!(
        "fn finish(v: V, pixel: u32, c4: u32) {{
  let q = vec4<i32>({index}) - 128;
  scratch[tile * {all} + pixel * {c4} + c4] = pack4xI8(q);
}}"
    ));
    let round = threads(writer, "round", size, stride, Weights::default());
    let sum = if geometry.groups > 1 {
        depthwise(context, op, conv, size, frame)?
    } else {
        product(context, op, conv, size, frame)?
    };
    Ok(Dispatches { kernels: vec![round, sum], scratch: words })
}

/// What is added to the sums of `q - 128`: the zero point's share, and the bias where it is an integer.
fn start(conv: &IntegerConv, bias: Option<&[i32]>) -> Vec<i32> {
    let row = conv.integers.len() / conv.scales.len();
    let zero = 128 - i32::from(conv.input.zero_point);
    conv.integers
        .chunks_exact(row)
        .enumerate()
        .map(|(n, row)| {
            let sum: i32 = row.iter().map(|&w| i32::from(w)).sum();
            (zero * sum).wrapping_add(bias.map_or(0, |bias| bias[n]))
        })
        .collect()
}

/// A function `finish_sum(sum, pixel, c4)` that turns integer sums into what is stored. What the sums
/// begin with goes behind the weights in `words`; the expression of it.
fn finish(
    writer: &mut Writer,
    op: &FusedOp,
    conv: &IntegerConv,
    frame: Frame,
    words: &mut Vec<u32>,
) -> Lowered<String> {
    let bias = match op.steps.first() {
        Some(Step::Offset(bias)) => Some(bias),
        _ => None,
    };
    let integer = bias.map(|bias| conv.integer_bias(bias));
    let exact = integer.clone().flatten();
    let begin = writer.number(words.len() / 4);
    words.extend(start(conv, exact.as_deref()).iter().map(|&sum| sum as u32));
    words.resize(words.len().next_multiple_of(4), 0);
    let products: Vec<f32> = conv.scales.iter().map(|scale| scale * conv.input.scale).collect();
    let whole = matches!(integer, None | Some(Some(_)));
    let tables = tables(&op.steps).filter(|_| whole);
    let text = match tables {
        Some(tables) => {
            let factors = products.iter().map(|product| product / tables.grid.scale);
            let factors = writer.constants(factors);
            let zero = writer.real(f32::from(tables.grid.zero_point));
            let mut stores = String::new();
            let looked_up = |writer: &mut Writer, table: &[f32; 256]| {
                let first = writer.constants(table.iter().copied());
                let lane = |x| format!("factors[{first} + q.{x} / 4u][q.{x} % 4u]");
                format!("V({})", ["x", "y", "z", "w"].map(lane).join(", "))
            };
            for (id, table) in &tables.stores {
                let value = looked_up(writer, table);
                let store = writer.store(*id, frame)?;
                stores.push_str(&format!("  {{\n    let v = {value};\n    {store}\n  }}\n"));
            }
            let rest = &op.steps[tables.used..];
            if !rest.is_empty() {
                let value = looked_up(writer, &tables.last);
                writer.steps("finish_reals", rest, frame)?;
                stores.push_str(&format!("  finish_reals({value}, pixel, c4);\n"));
            }
            format!(
                "  let q = vec4<u32>(clamp(round(V(sum) * factors[{factors} + c4]) + {zero}, V(0.0), \
                 V(255.0)));\n{stores}"
            )
        }
        None => {
            let factors = writer.constants(products.into_iter());
            // An integer bias is in the sums already.
            let steps = if exact.is_some() { &op.steps[1..] } else { &op.steps[..] };
            writer.steps("finish_reals", steps, frame)?;
            format!("  finish_reals(V(sum) * factors[{factors} + c4], pixel, c4);\n")
        }
    };
    writer.function(&format!("fn finish_sum(sum: vec4<i32>, pixel: u32, c4: u32) {{\n{text}}}"));
    Ok(format!("bitcast<vec4<i32>>(weights[{begin} + c4])"))
}

fn product(
    context: &Context,
    op: &FusedOp,
    conv: &IntegerConv,
    size: Frame,
    frame: Frame,
) -> Lowered<Kernel> {
    let (mut writer, stride) = context.writer();
    let (k4, n4) = (size.c4(), frame.c4());
    let taps = conv.conv.kernel[0] * conv.conv.kernel[1];
    // For each tap and four input channels: the words of four output channels.
    let mut bytes = vec![[0i8; 4]; taps * k4 * n4 * 4];
    for n in 0..frame.channels {
        for c in 0..size.channels {
            for tap in 0..taps {
                bytes[(tap * k4 + c / 4) * n4 * 4 + n][c % 4] =
                    conv.integers[(n * size.channels + c) * taps + tap];
            }
        }
    }
    let mut weights: Vec<u32> = bytes.into_iter().map(word).collect();
    let begin = finish(&mut writer, op, conv, frame, &mut weights)?.replace("+ c4", "+ n4");
    let first = writer.rows(&[[0, k4, size.width, 0]]);
    let geometry = Geometry::new(&mut writer, [size.height, size.width], frame.width, &conv.conv);
    let pixels = writer.number(frame.pixels());
    let [kh, kw] = conv.conv.kernel.map(|n| format!("i32({})", writer.number(n)));
    let words = writer.number(size.pixels() * k4);
    let zero = writer.word(word([zero(conv.input); 4]));
    let lines = |line: &dyn Fn(usize) -> String| -> String { (0..PIXELS).map(line).collect() };
    let holes = [
        ("$STRIDE", stride),
        ("$N4", writer.number(n4)),
        ("$PIXELS", pixels.clone()),
        ("$KH", kh),
        ("$KW", kw),
        ("$FIRST", format!("{first}u")),
        ("$TM", PIXELS.to_string()),
        (
            "$SETUP",
            lines(&|m| {
                let pixel = format!("min(first + {m}u, {pixels} - 1u)");
                geometry.setup(m, &pixel) + &format!("  var sum{m} = {begin};\n")
            }),
        ),
        (
            "$ADDRESS",
            lines(&|m| {
                geometry.address(m, "").replace("base + source.x", &format!("tile * {words}"))
            }),
        ),
        (
            "$MULTIPLY",
            lines(&|m| {
                format!(
                    "        let a{m} = select({zero}, scratch[at{m} + c], in{m});
        sum{m} += vec4<i32>(
          dot4I8Packed(a{m}, w.x), dot4I8Packed(a{m}, w.y),
          dot4I8Packed(a{m}, w.z), dot4I8Packed(a{m}, w.w),
        );\n"
                )
            }),
        ),
        (
            "$STORE",
            lines(&|m| {
                format!("  if (first + {m}u < {pixels}) {{ finish_sum(sum{m}, p{m}, n4); }}\n")
            }),
        ),
    ];
    let template = include_str!("shaders/integer_conv.wgsl");
    let count = frame.pixels().div_ceil(PIXELS) * n4;
    Ok(writer.finish("int8 conv", template, &holes, Weights::Words(weights), groups(count, 64)))
}

fn depthwise(
    context: &Context,
    op: &FusedOp,
    conv: &IntegerConv,
    size: Frame,
    frame: Frame,
) -> Lowered<Kernel> {
    let (mut writer, stride) = context.writer();
    let c4 = frame.c4();
    let taps = conv.conv.kernel[0] * conv.conv.kernel[1];
    // For each tap, four of these words an element: one word holds four channels.
    let quads = c4.div_ceil(4);
    let mut bytes = vec![[0i8; 4]; taps * quads * 4];
    for c in 0..frame.channels {
        for tap in 0..taps {
            bytes[tap * quads * 4 + c / 4][c % 4] = conv.integers[c * taps + tap];
        }
    }
    let mut weights: Vec<u32> = bytes.into_iter().map(word).collect();
    let begin = finish(&mut writer, op, conv, frame, &mut weights)?;
    let first = writer.rows(&[[0, c4, size.width, 0]]);
    let geometry = Geometry::new(&mut writer, [size.height, size.width], frame.width, &conv.conv);
    let [kh, kw] = conv.conv.kernel.map(|n| writer.number(n));
    let words = writer.number(size.pixels() * c4);
    let (zero, quads) = (writer.word(word([zero(conv.input); 4])), writer.number(quads));
    writer.function(&format!(
        "fn core(pixel: u32, c4: u32) -> vec4<i32> {{
  let source = params[{first}];
{}  var sum = {begin};
  var w = c4 / 4u;
  for (var ky = 0; ky < i32({kh}); ky++) {{
    for (var kx = 0; kx < i32({kw}); kx++) {{
{}        let a = unpack4xI8(select({zero}, scratch[at0 + c4], in0));
        sum += a * unpack4xI8(weights[w][c4 % 4u]);
        w += {quads};
    }}
  }}
  return sum;
}}
fn finish(sum: vec4<i32>, pixel: u32, c4: u32) {{ finish_sum(sum, pixel, c4); }}",
        geometry.setup(0, "pixel"),
        geometry.address(0, "").replace("base + source.x", &format!("tile * {words}"))
    ));
    Ok(threads(writer, "int8 depthwise", frame, stride, Weights::Words(weights)))
}

/// The byte that means 0, as it is kept.
fn zero(grid: Grid) -> i8 {
    (i32::from(grid.zero_point) - 128) as i8
}

fn word(bytes: [i8; 4]) -> u32 {
    u32::from_le_bytes(bytes.map(|byte| byte as u8))
}

/// The steps of an operator as far as every value depends on nothing but one byte.
pub(super) struct Tables {
    /// What the sums are rounded to.
    pub(super) grid: Grid,
    /// What each byte is stored as, and where.
    pub(super) stores: Vec<(usize, Box<[f32; 256]>)>,
    /// What each byte has become after these steps.
    pub(super) last: Box<[f32; 256]>,
    /// Steps taken.
    pub(super) used: usize,
}

/// `[offset] [clip] snap`, then functions of one value and stores.
pub(super) fn tables(steps: &[Step]) -> Option<Tables> {
    let mut at = usize::from(matches!(steps.first(), Some(Step::Offset(_))));
    if let Some(Step::Activate(Activation::Clip { low, high })) = steps.get(at) {
        at += 1;
        // Rounding saturates at the grid's ends: a clip that reaches both changes nothing.
        match steps.get(at) {
            Some(Step::Activate(Activation::Snap(grid)))
                if grid.index(*low) == 0 && grid.index(*high) == 255 => {}
            _ => return None,
        }
    }
    let Some(Step::Activate(Activation::Snap(grid))) = steps.get(at) else { return None };
    at += 1;
    let mut last: Box<[f32; 256]> = Box::new(std::array::from_fn(|q| grid.real(q as u8)));
    let mut stores = vec![];
    for step in &steps[at..] {
        match step {
            Step::Activate(activation) => last.iter_mut().for_each(|x| *x = activation.apply(*x)),
            Step::Scale(Channels::One(factor)) => last.iter_mut().for_each(|x| *x *= factor),
            Step::Offset(Channels::One(offset)) => last.iter_mut().for_each(|x| *x += offset),
            Step::Store(buffer) => stores.push((*buffer, last.clone())),
            _ => break,
        }
        at += 1;
    }
    Some(Tables { grid: *grid, stores, last, used: at })
}
