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
use super::pixelwise::threads;
use super::shader::{Kernel, Weights, Writer, groups};
use super::{Lowered, refuse};
use crate::engine::fused::{Bias, FusedOp, Grid, IntegerConv, tables};

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
        (false, sources) => product(context, op, conv, sources, frame)?,
        (true, [source]) if op.inputs[0].upsample == 1 => {
            depthwise(context, op, conv, source, frame)?
        }
        _ => return refuse("channels by themselves of several maps, or of an enlarged one"),
    };
    Ok(vec![kernel])
}

/// What is added to the sums of `q - 128` for one digit of the weights: the zero point's share, and the bias where it
/// is an integer.
fn start(conv: &IntegerConv, digit: &[i8], bias: &Bias) -> Vec<i32> {
    let row = digit.len() / conv.scales.len();
    let zero = 128 - i32::from(conv.input.zero_point);
    digit
        .chunks_exact(row)
        .enumerate()
        .map(|(n, row)| {
            let sum: i32 = row.iter().map(|&w| i32::from(w)).sum();
            let bias = if let Bias::Integers(bias) = bias { bias[n] } else { 0 };
            (zero * sum).wrapping_add(bias)
        })
        .collect()
}

/// The digits of the weights.
fn digits(conv: &IntegerConv) -> Vec<&[i8]> {
    [&conv.integers].into_iter().chain(&conv.digits).map(|digit| &digit[..]).collect()
}

/// Appends `words` to `to` where an element begins; the number of the first element.
fn append(writer: &mut Writer, to: &mut Vec<u32>, words: impl Iterator<Item = u32>) -> String {
    let first = writer.number(to.len() / 4);
    to.extend(words);
    to.resize(to.len().next_multiple_of(4), 0);
    first
}

/// A function `finish_sum(sum, pixel, c4)` that turns sums, as reals, into what is stored. What the sums of each digit
/// begin with, and tables of bytes, go behind the weights in `words`; the expressions of the former.
fn finish(
    writer: &mut Writer,
    op: &FusedOp,
    conv: &IntegerConv,
    frame: Frame,
    words: &mut Vec<u32>,
) -> Lowered<Vec<String>> {
    let bias = conv.bias(&op.steps);
    let mut begin = vec![];
    for digit in digits(conv) {
        let sums = start(conv, digit, &bias);
        let first = append(writer, words, sums.into_iter().map(|sum| sum as u32));
        begin.push(format!("bitcast<vec4<i32>>(weights[{first} + c4])"));
    }
    let real = |writer: &mut Writer| {
        let products = writer.constants(conv.products().into_iter());
        let value = format!("exact(sum * factors[{products} + c4])");
        match &bias {
            Bias::Reals(bias) => {
                let bias = writer.constants(bias.iter().copied());
                format!("({value} + factors[{bias} + c4])")
            }
            _ => value,
        }
    };
    let text = match tables(&op.steps) {
        Some(tables) => {
            let number = match &bias {
                Bias::None if !conv.digits.is_empty() => {
                    let value = real(writer);
                    writer.index(&value, tables.grid)
                }
                Bias::Reals(_) => {
                    let value = real(writer);
                    writer.index(&value, tables.grid)
                }
                _ => {
                    let factors = writer.constants(conv.factors(tables.grid).into_iter());
                    let zero = writer.real(f32::from(tables.grid.zero_point));
                    format!(
                        "clamp(round(sum * factors[{factors} + c4]) + {zero}, V(0.0), V(255.0))"
                    )
                }
            };
            let mut text = format!("  let q = vec4<u32>({number});\n");
            for (id, table) in &tables.stores {
                let map = *writer.map(*id);
                let store = match map.grid {
                    Some(grid) if map.frame() == frame => {
                        let word = byte_word(writer, table, tables.grid, grid, map, words);
                        writer.store_word(&map, &word)
                    }
                    _ => {
                        let value = looked_up(writer, table, tables.grid);
                        format!("let v = {value};\n    {}", writer.store(*id, frame)?)
                    }
                };
                text.push_str(&format!("  {{\n    {store}\n  }}\n"));
            }
            let rest = &op.steps[tables.used..];
            if !rest.is_empty() {
                let value = looked_up(writer, &tables.last, tables.grid);
                writer.steps("finish_reals", rest, frame)?;
                text.push_str(&format!("  finish_reals({value}, pixel, c4);\n"));
            }
            text
        }
        None => {
            let value = real(writer);
            // The bias is in the value already.
            let steps = &op.steps[usize::from(bias != Bias::None)..];
            writer.steps("finish_reals", steps, frame)?;
            format!("  finish_reals({value}, pixel, c4);\n")
        }
    };
    writer.function(&format!("fn finish_sum(sum: V, pixel: u32, c4: u32) {{\n{text}}}"));
    Ok(begin)
}

/// Expression for what the numbers `q` of grid `own` become in `table`.
fn looked_up(writer: &mut Writer, table: &[f32; 256], own: Grid) -> String {
    if (0..=255).all(|q| table[usize::from(q)] == own.real(q)) {
        let (zero, scale) = (writer.real(f32::from(own.zero_point)), writer.real(own.scale));
        return format!("exact((V(q) - {zero}) * {scale})");
    }
    let first = writer.constants(table.iter().copied());
    let lane = |x| format!("factors[{first} + q.{x} / 4u][q.{x} % 4u]");
    format!("V({})", ["x", "y", "z", "w"].map(lane).join(", "))
}

/// Expression for the word that the numbers `q` of grid `own` become in a map of `grid`, by `table`.
fn byte_word(
    writer: &mut Writer,
    table: &[f32; 256],
    own: Grid,
    grid: Grid,
    map: Map,
    words: &mut Vec<u32>,
) -> String {
    let bytes: [u8; 256] = std::array::from_fn(|q| grid.index(table[q]));
    let plain = bytes.iter().enumerate().all(|(q, byte)| q == usize::from(*byte));
    let held = (0..=255u8).all(|q| bytes[usize::from(q)] == q.max(bytes[0]).min(bytes[255]));
    let mut value = if plain {
        "vec4<i32>(q)".to_owned()
    } else if own == grid && held {
        let [low, high] = [bytes[0], bytes[255]].map(|q| writer.number(usize::from(q)));
        format!("vec4<i32>(clamp(q, vec4<u32>({low}), vec4<u32>({high})))")
    } else {
        let table = bytes
            .chunks_exact(4)
            .map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        let first = append(writer, words, table);
        let lane = |x| {
            format!(
                "extractBits(weights[{first} + q.{x} / 16u][q.{x} / 4u % 4u], 8u * (q.{x} % 4u), 8u)"
            )
        };
        format!("vec4<i32>(vec4<u32>({}))", ["x", "y", "z", "w"].map(lane).join(", "))
    };
    if !map.channels.is_multiple_of(4) {
        let (zero, channels) =
            (writer.number(usize::from(grid.zero_point)), writer.number(map.channels));
        value = format!("select(vec4<i32>(i32({zero})), {value}, is_channel(c4, {channels}))");
    }
    format!("pack4xI8({value} - 128)")
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
    let k4: usize = sources.iter().map(|map| map.c4()).sum();
    let (channels, taps) = (conv.conv.channels, conv.conv.kernel[0] * conv.conv.kernel[1]);
    // Digit by digit, for each tap and four channels of a source: the words of four output channels.
    let plane = taps * k4 * n4;
    let digits = digits(conv);
    let mut bytes = vec![[0i8; 4]; digits.len() * plane * 4];
    for (digit, bytes) in digits.iter().zip(bytes.chunks_exact_mut(plane * 4)) {
        for n in 0..frame.channels {
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
    }
    let count = digits.len();
    let mut weights: Vec<u32> = bytes.into_iter().map(word).collect();
    let begin = finish(&mut writer, op, conv, frame, &mut weights)?;
    let begin: Vec<String> = begin.iter().map(|begin| begin.replace("+ c4", "+ n4")).collect();
    let plane = writer.number(plane);
    let powers: Vec<String> = conv.powers().iter().map(|power| format!("{power:?}")).collect();
    let rows: Vec<[usize; 4]> = op
        .inputs
        .iter()
        .zip(sources)
        .map(|(input, map)| {
            [map.offset, map.c4(), map.width, input.upsample.trailing_zeros() as usize]
        })
        .collect();
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
