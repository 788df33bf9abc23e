//! Operators that make each pixel from few others: images, copies, poolings, changes of layout, and
//! steps alone, pixel norms among them.

use super::lower::Context;
use super::map::{Frame, Map};
use super::shader::{Kernel, Weights, Writer, groups};
use super::{Lowered, refuse};
use crate::engine::fused::{Channels, FusedOp, Input, Layout, Pool, Step};

impl Context<'_> {
    pub(super) fn image(
        &self,
        op: &FusedOp,
        affine: Option<&(Channels, Channels)>,
        block: usize,
        constant: f32,
    ) -> Lowered<Kernel> {
        let mut writer = self.writer();
        let (source, frame) = (*self.first(op)?, self.frame(op)?);
        if !self.graph.inputs.contains(&op.inputs[0].buffer) {
            return refuse("pixels that are not the model's input");
        }
        let words = writer.number(self.image_words);
        let (width, channels) = (writer.number(source.width), writer.number(source.channels));
        let (by, out_width) = (writer.number(block), writer.number(frame.width));
        let last = writer.number(source.channels * block * block);
        let constant = writer.real(constant);
        let value = match affine {
            None => "f32(byte)".to_owned(),
            Some((scale, offset)) => {
                for values in [scale, offset] {
                    if let Channels::Each(each) = values
                        && each.len() != source.channels
                    {
                        return refuse("its factors are not one a channel");
                    }
                }
                // A table, computed here: the same on every device.
                let values = (0..source.channels).flat_map(|c| {
                    let (scale, offset) = (scale.at(c), offset.at(c));
                    (0..256).map(move |byte| (byte as f32).mul_add(scale, offset))
                });
                let first = writer.constants(values);
                format!("factors[{first} + colour * 64u + byte / 4u][byte % 4u]")
            }
        };
        writer.function(&format!(
            "fn core(pixel: u32, c4: u32) -> V {{
  var v = V(0.0);
  for (var lane = 0u; lane < 4u; lane++) {{
    let c = 4u * c4 + lane;
    if (c > {last}) {{ break; }}
    // The channel of one value; what there is not is cut off by the store.
    if (c == {last}) {{ v[lane] = {constant}; continue; }}
    let colour = c % {channels};
    let inner = c / {channels};
    let y = pixel / {out_width} * {by} + inner / {by};
    let x = pixel % {out_width} * {by} + inner % {by};
    let at = (y * {width} + x) * {channels} + colour;
    let byte = (images[tile * {words} + at / 4u] >> (8u * (at % 4u))) & 255u;
    v[lane] = {value};
  }}
  return v;
}}"
        ));
        elementwise(writer, "image", &op.steps, frame)
    }

    /// The inputs concatenated, then steps, with pixel norms among them.
    pub(super) fn map(&self, op: &FusedOp) -> Lowered<Kernel> {
        let mut writer = self.writer();
        let frame = self.frame(op)?;
        gather(&mut writer, &op.inputs, frame)?;
        if op.steps.iter().any(|step| matches!(step, Step::Norm { .. })) {
            return norm(writer, "norm", &op.steps, frame, Weights::default());
        }
        elementwise(writer, "map", &op.steps, frame)
    }

    pub(super) fn pool(&self, op: &FusedOp, pool: &Pool) -> Lowered<Kernel> {
        let mut writer = self.writer();
        let (source, frame) = (*self.first(op)?, self.frame(op)?);
        let mut numbers = [
            source.height,
            source.width,
            frame.width,
            pool.stride[0],
            pool.stride[1],
            pool.padding.top,
            pool.padding.left,
            pool.kernel[0],
            pool.kernel[1],
        ]
        .map(|number| writer.number(number))
        .into_iter();
        let mut number = || numbers.next().unwrap_or_default();
        let [h, w, ow, sy, sx, pt, pl, kh, kw] = std::array::from_fn(|_| number());
        let c4 = writer.number(source.c4());
        let value = writer.element(&source, &format!("(y * {w} + x_) * {c4} + c4"));
        const SUM: [&str; 2] = ["row + x", "v + row"];
        let (start, take, end) = match (pool.maximum, pool.count_padding) {
            (true, _) => ("-3.4e38", ["max(row, x)", "max(v, row)"], "v".to_owned()),
            (false, true) => ("0.0", SUM, format!("v * (1.0 / f32({kh} * {kw}))")),
            (false, false) => ("0.0", SUM, "v * (1.0 / count)".to_owned()),
        };
        // Row by row, as the processor's kernel for 2x2 pixels has it.
        let [take, join] = take;
        writer.function(&format!(
            "fn core(pixel: u32, c4: u32) -> V {{
  var v = V({start});
  var count = 0.0;
  let top = pixel / {ow} * {sy};
  let left = pixel % {ow} * {sx};
  for (var ky = 0u; ky < {kh}; ky++) {{
    var row = V({start});
    for (var kx = 0u; kx < {kw}; kx++) {{
      // Padding wraps round to large numbers.
      let y = top + ky - {pt};
      let x_ = left + kx - {pl};
      if (y >= {h} || x_ >= {w}) {{ continue; }}
      let x = {value};
      row = {take};
      count += 1.0;
    }}
    v = {join};
  }}
  return {end};
}}"
        ));
        if op.steps.iter().any(|step| matches!(step, Step::Norm { .. })) {
            return norm(writer, "pool, norm", &op.steps, frame, Weights::default());
        }
        elementwise(writer, "pool", &op.steps, frame)
    }

    pub(super) fn layout(&self, op: &FusedOp) -> Lowered<Kernel> {
        let mut writer = self.writer();
        let source = *self.first(op)?;
        let Some(&output) = op.outputs.first() else { return refuse("it writes nothing") };
        let to = self.maps[output];
        if source.pixels() * source.channels != to.pixels() * to.channels {
            return refuse("its input and output differ in size");
        }
        let plain = |id: usize| matches!(self.graph.buffers[id].layout, Layout::Plain(_));
        let lane = match (plain(op.inputs[0].buffer), plain(output)) {
            (true, false) => {
                let (c4, channels) = (writer.number(to.c4()), writer.number(to.channels));
                let pixels = writer.number(to.pixels());
                format!(
                    "    let c = 4u * (i % {c4}) + lane;
    if (c < {channels}) {{ v[lane] = plain(c * {pixels} + i / {c4}); }}"
                )
            }
            (false, true) => {
                let (len, pixels) = (writer.number(to.channels), writer.number(source.pixels()));
                format!(
                    "    let at = 4u * i + lane;
    if (at < {len}) {{ v[lane] = map(at % {pixels}, at / {pixels}); }}"
                )
            }
            _ => return refuse("a change between two layouts of the same kind"),
        };
        let count = to.pixels() * to.c4();
        let holes = [
            ("$FROM", writer.number(source.offset)),
            ("$C4", writer.number(source.c4())),
            ("$TO", writer.number(to.offset)),
            ("$LANE", lane),
        ];
        let template = include_str!("shaders/layout.wgsl");
        Ok(writer.each("layout", template, &holes, Weights::default(), count))
    }
}

/// A function `core(pixel, c4) -> V` for the channels of all `inputs` one after the other.
pub(super) fn gather(writer: &mut Writer, inputs: &[Input], frame: Frame) -> Lowered<()> {
    if let [input] = inputs {
        let value = writer.read(*input, frame, "a copy")?;
        writer.function(&format!("fn core(pixel: u32, c4: u32) -> V {{ return {value}; }}"));
        return Ok(());
    }
    let maps: Vec<Map> = inputs.iter().map(|input| *writer.map(input.buffer)).collect();
    let (_, before_last) = maps.split_last().map_or((None, &[][..]), |(l, rest)| (Some(l), rest));
    let whole = before_last.iter().all(|map| map.channels.is_multiple_of(4));
    let mut text = String::new();
    let mut start = 0;
    for (k, (input, map)) in inputs.iter().zip(&maps).enumerate() {
        let part = Frame { channels: map.channels, ..frame };
        let value = writer.read(*input, part, "a concatenation")?;
        text.push_str(&format!("fn part{k}(pixel: u32, c4: u32) -> V {{ return {value}; }}\n"));
        start += map.channels;
    }
    let (unit, kind) = if whole { ("c4", "V") } else { ("c", "f32") };
    let name = if whole { "core" } else { "one" };
    text.push_str(&format!("fn {name}(pixel: u32, {unit}: u32) -> {kind} {{\n"));
    let end = start;
    start = 0;
    for (k, map) in maps.iter().enumerate() {
        let by = if whole { 4 } else { 1 };
        let (first, past) =
            (writer.number(start / by), writer.number((start + map.channels).div_ceil(by)));
        let part = match whole {
            true => format!("part{k}(pixel, c4 - {first})"),
            false => format!("part{k}(pixel, (c - {first}) / 4u)[(c - {first}) % 4u]"),
        };
        text.push_str(&format!("  if ({unit} < {past}) {{ return {part}; }}\n"));
        start += map.channels;
    }
    text.push_str(&format!("  return {kind}(0.0);\n}}\n"));
    if !whole {
        text.push_str(
            "fn core(pixel: u32, c4: u32) -> V {
  let c = 4u * c4;
  return V(one(pixel, c), one(pixel, c + 1u), one(pixel, c + 2u), one(pixel, c + 3u));
}\n",
        );
    }
    if end != frame.channels {
        return refuse("a concatenation of another size");
    }
    writer.function(&text);
    Ok(())
}

/// A function `core(pixel, c4)`, then `steps`, one thread a pixel and four channels.
pub(super) fn elementwise(
    mut writer: Writer,
    kind: &'static str,
    steps: &[Step],
    frame: Frame,
) -> Lowered<Kernel> {
    writer.steps("finish", steps, frame)?;
    let count = frame.pixels() * frame.c4();
    let holes = [("$C4", writer.number(frame.c4()))];
    let template = include_str!("shaders/elementwise.wgsl");
    Ok(writer.each(kind, template, &holes, Weights::default(), count))
}

/// The same with pixel norms among the steps: four threads of a pixel share its sum of squares, which is so taken in
/// the order of every engine.
pub(super) fn norm(
    mut writer: Writer,
    kind: &'static str,
    steps: &[Step],
    frame: Frame,
    weights: Weights,
) -> Lowered<Kernel> {
    const LANES: usize = 4;
    let each = frame.c4().div_ceil(LANES);
    if each > 64 {
        return refuse(format!("a pixel norm over {} channels; at most 1024", frame.channels));
    }
    let c4 = writer.number(frame.c4());
    let whole = frame.channels.is_multiple_of(4);
    let channels = writer.number(frame.channels);
    let mut body = String::new();
    for k in 0..each {
        body.push_str(&format!(
            "  let c{k} = min(lane + {}u, {c4} - 1u);\n  let in{k} = inside && lane + {}u < {c4};\n  \
             var v{k} = core(pixel, c{k});\n",
            k * LANES,
            k * LANES
        ));
    }
    let parts = steps.split_inclusive(|step| matches!(step, Step::Norm { .. }));
    for (number, part) in parts.enumerate() {
        let (steps, epsilon) = match part.split_last() {
            Some((Step::Norm { epsilon }, steps)) => (steps, Some(*epsilon)),
            _ => (part, None),
        };
        let name = format!("part{number}");
        if !steps.is_empty() {
            writer.steps(&format!("steps_{name}"), steps, frame)?;
            for k in 0..each {
                body.push_str(&format!(
                    "  if (in{k}) {{ v{k} = steps_{name}(v{k}, pixel, c{k}); }}\n"
                ));
            }
        }
        let Some(epsilon) = epsilon else { continue };
        let epsilon = writer.real(epsilon);
        let share = writer.real(1.0 / frame.channels as f32);
        body.push_str("  square = V(0.0);\n");
        for k in 0..each {
            let value =
                if whole { format!("v{k}") } else { format!("only(v{k}, c{k}, {channels})") };
            body.push_str(&format!(
                "  if (in{k}) {{ let part = {value}; square = exact(square + exact(part * part)); }}\n"
            ));
        }
        body.push_str(&format!(
            "  sums[thread] = square;
  workgroupBarrier();
  let of{number} = thread - lane;
  let factor{number} = norm_factor(
    array<V, 4>(sums[of{number}], sums[of{number} + 1u], sums[of{number} + 2u], sums[of{number} + 3u]),
    {share}, {epsilon},
  );
  workgroupBarrier();\n"
        ));
        for k in 0..each {
            body.push_str(&format!("  v{k} = exact(v{k} * factor{number});\n"));
        }
    }
    let holes = [("$PIXELS", writer.number(frame.pixels())), ("$BODY", body)];
    let template = include_str!("shaders/norm.wgsl");
    let groups = groups(frame.pixels(), 64 / LANES);
    Ok(writer.finish(kind, template, &holes, weights, groups))
}
