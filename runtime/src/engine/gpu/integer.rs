//! Convolutions of integers: maps of bytes in, products of bytes summed in int32, bytes or reals out. Sums are
//! exact, and what follows is the arithmetic that [`fused`](crate::engine::fused) lays down, so the bytes are
//! those of every other engine.
//!
//! Bytes are kept as `q - 128`, int8, because that is what `dot4I8Packed` multiplies; what that leaves
//! out, `(128 - zero point)` times the sum of an output's weights, is the same for every pixel and goes
//! into the bias.

use super::conv::{Geometry, frame};
use super::lower::Context;
use super::map::{Frame, Map};
use super::pixelwise::{norm, threads};
use super::requantise::{append, digits, finish, looked_up, rounded, start};
use super::shader::{Kernel, Weights, groups};
use super::{Lowered, refuse};
use crate::engine::fused::{Bias, Core, FusedOp, Grid, Input, IntegerConv, Step, tables};

/// Pixels a thread.
const PIXELS: usize = 4;

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
        (false, sources) if takes_norm(op) => normed(context, op, conv, sources, frame)?,
        (false, sources) => product(context, op, conv, sources, frame)?,
        (true, [source]) if op.inputs[0].upsample == 1 => {
            depthwise(context, op, conv, source, frame)?
        }
        _ => return refuse("channels by themselves of several maps, or of an enlarged one"),
    };
    Ok(vec![kernel])
}

/// Whether a pixel norm among the steps of `op` is taken by the same threads: where a pixel's sums are few enough that
/// each thread computes some pixel's own.
pub(super) fn takes_norm(op: &FusedOp) -> bool {
    let Core::IntegerConv(conv) = &op.core else { return false };
    let norms = |step: &Step| matches!(step, Step::Norm { .. });
    let simple = conv.conv.kernel == [1, 1] && conv.conv.groups == 1 && conv.digits.is_empty();
    let bytes = tables(&op.steps).filter(|tables| tables.stores.is_empty());
    simple
        && conv.bias(&op.steps) != Bias::None
        && !matches!(conv.bias(&op.steps), Bias::Reals(_))
        && bytes.is_some_and(|tables| op.steps[tables.used..].iter().any(norms))
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
    let sums = start(conv, &conv.integers, &conv.bias(&op.steps));
    let begin = append(&mut writer, &mut weights, sums.into_iter().map(|sum| sum as u32));
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
{}  var sums = bitcast<vec4<i32>>(weights[{begin} + c4]);
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

/// What the shaders read of each source: first word, words a pixel, width, shift of enlarging.
fn rows(op: &FusedOp, sources: &[&Map]) -> Vec<[usize; 4]> {
    let row = |(input, map): (&Input, &&Map)| {
        [map.offset, map.c4(), map.width, input.upsample.trailing_zeros() as usize]
    };
    op.inputs.iter().zip(sources).map(row).collect()
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
    let size = [sources[0].height, sources[0].width].map(|size| size * op.inputs[0].upsample);
    let n4 = frame.c4();
    let planes = packed(conv, sources, n4, conv.conv.kernel[0] * conv.conv.kernel[1]);
    let (count, plane) = (planes.len(), planes[0].len() / 4);
    let mut weights = planes.concat();
    let begin = finish(&mut writer, op, conv, frame, &mut weights)?;
    let begin: Vec<String> = begin.iter().map(|begin| begin.replace("+ c4", "+ n4")).collect();
    let plane = writer.number(plane);
    let powers: Vec<String> = conv.powers().iter().map(|power| format!("{power:?}")).collect();
    let rows = rows(op, sources);
    let first = writer.rows(&rows);
    let geometry = Geometry::new(&mut writer, size, frame.width, &conv.conv);
    let pixels = writer.number(frame.pixels());
    let [kh, kw] = conv.conv.kernel.map(|n| format!("i32({})", writer.number(n)));
    let zero = writer.word(word([zero(conv.input); 4]));
    let lines = |line: &dyn Fn(usize) -> String| -> String { (0..PIXELS).map(line).collect() };
    let each = |line: &dyn Fn(usize) -> String| -> String { (0..count).map(line).collect() };
    let holes = [
        ("$N4", writer.number(n4)),
        ("$PIXELS", pixels.clone()),
        ("$KH", kh),
        ("$KW", kw),
        ("$SOURCES", writer.number(rows.len())),
        ("$FIRST", format!("{first}u")),
        ("$TM", PIXELS.to_string()),
        (
            "$SETUP",
            lines(&|m| {
                let pixel = format!("min(first + {m}u, {pixels} - 1u)");
                let sums = each(&|k| format!("  var sum{m}_{k} = {};\n", begin[k]));
                geometry.setup(m, &pixel) + &sums
            }),
        ),
        ("$ADDRESS", lines(&|m| geometry.address(m, "").replace("base +", "words_base +"))),
        (
            "$WEIGHTS",
            each(&|k| match k {
                0 => "          let w0 = weights[k];\n".into(),
                _ => format!("          let w{k} = weights[k + {k}u * {plane}];\n"),
            }),
        ),
        (
            "$MULTIPLY",
            lines(&|m| {
                format!("        let a{m} = select({zero}, words[at{m} + c], in{m});\n")
                    + &each(&|k| {
                        format!(
                            "        sum{m}_{k} += vec4<i32>(
          dot4I8Packed(a{m}, w{k}.x), dot4I8Packed(a{m}, w{k}.y),
          dot4I8Packed(a{m}, w{k}.z), dot4I8Packed(a{m}, w{k}.w),
        );\n"
                        )
                    })
            }),
        ),
        (
            "$STORE",
            lines(&|m| {
                // Powers of two: no product is rounded.
                let sum: Vec<String> = (0..count)
                    .map(|k| match count {
                        1 => format!("V(sum{m}_{k})"),
                        _ => format!("V(sum{m}_{k}) * {}", powers[k]),
                    })
                    .collect();
                let sum =
                    sum.into_iter().reduce(|so_far, next| format!("exact({so_far} + {next})"));
                let sum = sum.unwrap_or_default();
                format!("  if (first + {m}u < {pixels}) {{ finish_sum({sum}, p{m}, n4); }}\n")
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
    source: &Map,
    frame: Frame,
) -> Lowered<Kernel> {
    let mut writer = context.writer();
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
    let [begin] = &begin[..] else {
        return refuse("weights of several digits, channel by channel");
    };
    let first = writer.rows(&[[source.offset, c4, source.width, 0]]);
    let size = [source.height, source.width];
    let geometry = Geometry::new(&mut writer, size, frame.width, &conv.conv);
    let [kh, kw] = conv.conv.kernel.map(|n| writer.number(n));
    let (zero, quads) = (writer.word(word([zero(conv.input); 4])), writer.number(quads));
    writer.function(&format!(
        "fn core(pixel: u32, c4: u32) -> vec4<i32> {{
  let source = params[{first}];
{}  var sum = {begin};
  var w = c4 / 4u;
  for (var ky = 0; ky < i32({kh}); ky++) {{
    for (var kx = 0; kx < i32({kw}); kx++) {{
{}        let a = unpack4xI8(select({zero}, words[at0 + c4], in0));
        sum += a * unpack4xI8(weights[w][c4 % 4u]);
        w += {quads};
    }}
  }}
  return sum;
}}
fn finish(sum: vec4<i32>, pixel: u32, c4: u32) {{ finish_sum(V(sum), pixel, c4); }}",
        geometry.setup(0, "pixel"),
        geometry.address(0, "").replace("base +", "words_base +")
    ));
    Ok(threads(writer, "int8 depthwise", frame, Weights::Words(weights)))
}

/// The byte that means 0, as it is kept.
fn zero(grid: Grid) -> i8 {
    (i32::from(grid.zero_point) - 128) as i8
}

fn word(bytes: [i8; 4]) -> u32 {
    u32::from_le_bytes(bytes.map(|byte| byte as u8))
}
