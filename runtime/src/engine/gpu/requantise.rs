//! What becomes of the sums of an integer convolution: bytes again, by the arithmetic that
//! [`fused`](crate::engine::fused) lays down, or reals.

use super::Lowered;
use super::map::{Frame, Map};
use super::shader::Writer;
use crate::engine::fused::{Bias, FusedOp, Grid, IntegerConv, tables};

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

/// Appends to `words` what the sums of each digit begin with; the expressions to read it.
pub(super) fn begin(
    writer: &mut Writer,
    conv: &IntegerConv,
    bias: &Bias,
    words: &mut Vec<u32>,
) -> Vec<String> {
    let mut begin = |digit: &[i8]| {
        let sums = start(conv, digit, bias);
        let first = append(writer, words, sums.into_iter().map(|sum| sum as u32));
        format!("bitcast<vec4<i32>>(weights[{first} + c4])")
    };
    digits(conv).into_iter().map(&mut begin).collect()
}

/// The digits of the weights.
pub(super) fn digits(conv: &IntegerConv) -> Vec<&[i8]> {
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
pub(super) fn finish(
    writer: &mut Writer,
    op: &FusedOp,
    conv: &IntegerConv,
    frame: Frame,
    words: &mut Vec<u32>,
) -> Lowered<Vec<String>> {
    let bias = conv.bias(&op.steps);
    let begin = begin(writer, conv, &bias, words);
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
                _ => rounded(writer, conv, tables.grid),
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

/// Expression for the numbers of `grid` that sums, `sum`, are rounded to, where the bias is in them.
pub(super) fn rounded(writer: &mut Writer, conv: &IntegerConv, grid: Grid) -> String {
    let factors = writer.constants(conv.factors(grid).into_iter());
    let zero = writer.real(f32::from(grid.zero_point));
    format!("clamp(round(sum * factors[{factors} + c4]) + {zero}, V(0.0), V(255.0))")
}

/// Expression for what the numbers `q` of grid `own` become in `table`.
pub(super) fn looked_up(writer: &mut Writer, table: &[f32; 256], own: Grid) -> String {
    if (0..=255).all(|q| table[usize::from(q)] == own.real(q)) {
        let (zero, scale) = (writer.real(f32::from(own.zero_point)), writer.real(own.scale));
        return format!("exact((V(q) - {zero}) * {scale})");
    }
    let first = writer.constants(table.iter().copied());
    let lane = |x| format!("factors[{first} + q.{x} / 4u][q.{x} % 4u]");
    format!("V({})", ["x", "y", "z", "w"].map(lane).join(", "))
}

/// Expression for the word that the numbers `q` of grid `own` become in a map of `grid`, by `table`.
pub(super) fn byte_word(
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
