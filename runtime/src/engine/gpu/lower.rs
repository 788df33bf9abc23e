//! From one operator of the list to its dispatches.

use super::map::{Frame, Map};
use super::shader::{Abilities, Kernel, Weights, Writer, groups};
use super::tune::Choices;
use super::{Lowered, conv, integer, refuse};
use crate::engine::fused::{
    Attention, Channels, Core, Dense, FusedGraph, FusedOp, Input, Layout, Pool, Step,
};

/// What lowering needs to know besides the operator.
pub(super) struct Context<'a> {
    pub(super) graph: &'a FusedGraph,
    /// All maps by buffer.
    pub(super) maps: &'a [Map],
    /// Elements from a tile's maps to the next tile's.
    pub(super) stride: usize,
    /// Words of an image.
    pub(super) image_words: usize,
    pub(super) abilities: Abilities,
    /// Measured tilings.
    pub(super) choices: &'a Choices,
}

/// Dispatches in order, and the words of scratch a tile needs between them.
#[derive(Debug, Default)]
pub(super) struct Dispatches {
    pub(super) kernels: Vec<Kernel>,
    pub(super) scratch: usize,
}

impl From<Kernel> for Dispatches {
    fn from(kernel: Kernel) -> Self {
        Self { kernels: vec![kernel], scratch: 0 }
    }
}

impl Context<'_> {
    /// A writer whose first number is the stride between tiles; its text.
    pub(super) fn writer(&self) -> (Writer<'_>, String) {
        let mut writer = Writer::new(self.maps, self.abilities);
        let stride = writer.number(self.stride);
        (writer, stride)
    }

    /// The map that the first input reads.
    pub(super) fn first(&self, op: &FusedOp) -> Lowered<&Map> {
        match op.inputs.first() {
            Some(input) => Ok(&self.maps[input.buffer]),
            None => refuse("it reads nothing"),
        }
    }

    /// Size of what `op`'s core makes, by what it reads.
    fn frame(&self, op: &FusedOp) -> Lowered<Frame> {
        let first = self.first(op)?;
        let up = op.inputs[0].upsample;
        let (height, width) = (first.height * up, first.width * up);
        Ok(match &op.core {
            Core::Image { block, ones, .. } => {
                if *block == 0 || !height.is_multiple_of(*block) || !width.is_multiple_of(*block) {
                    return refuse(format!("{height}x{width} pixels in blocks of {block}"));
                }
                Frame {
                    height: height / block,
                    width: width / block,
                    channels: first.channels * block * block + usize::from(*ones),
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

    /// The dispatches of `op`.
    ///
    /// # Errors
    /// What there is no shader for, or what contradicts itself.
    pub(super) fn lower(&self, op: &FusedOp) -> Lowered<Dispatches> {
        match &op.core {
            Core::Image { affine, block, .. } => {
                self.image(op, affine.as_ref(), *block).map(Dispatches::from)
            }
            Core::Conv(conv) => conv::lower(self, op, conv),
            Core::IntegerConv(conv) => integer::lower(self, op, conv),
            Core::Dense(dense) => self.dense(op, dense).map(Dispatches::from),
            Core::Map => self.map(op).map(Dispatches::from),
            Core::Pool(pool) => self.pool(op, pool).map(Dispatches::from),
            Core::Attention(attention) => self.attention(op, attention).map(Dispatches::from),
            Core::GroupNorm { groups, epsilon } => self.group_norm(op, *groups, *epsilon),
            Core::Moments { mean, deviation } => {
                let mut outputs = op.outputs.iter();
                let mut wanted = |is: bool| {
                    let steps = |id: &usize| vec![Step::Store(*id)];
                    if is { outputs.next().map(steps) } else { None }
                };
                let (mean, deviation) = (wanted(*mean), wanted(*deviation));
                let (mut writer, stride) = self.writer();
                let frame = self.first(op)?.frame();
                let value = writer.read(op.inputs[0], frame, "a mean")?;
                writer
                    .function(&format!("fn core(pixel: u32, c4: u32) -> V {{ return {value}; }}"));
                moments(writer, stride, frame, mean, deviation).map(Dispatches::from)
            }
            Core::Layout => self.layout(op).map(Dispatches::from),
            Core::Tract(tract) => refuse(format!("there is no shader for `{}`", tract.about)),
        }
    }

    fn image(
        &self,
        op: &FusedOp,
        affine: Option<&(Channels, Channels)>,
        block: usize,
    ) -> Lowered<Kernel> {
        let (mut writer, stride) = self.writer();
        let (source, frame) = (*self.first(op)?, self.frame(op)?);
        if !self.graph.inputs.contains(&op.inputs[0].buffer) {
            return refuse("pixels that are not the model's input");
        }
        let words = writer.number(self.image_words);
        let (width, channels) = (writer.number(source.width), writer.number(source.channels));
        let (by, out_width) = (writer.number(block), writer.number(frame.width));
        let last = writer.number(source.channels * block * block);
        let value = match affine {
            None => "f32(byte)".to_owned(),
            Some((scale, offset)) => {
                let mut each = |values: &Channels| {
                    if let Channels::Each(each) = values
                        && each.len() != source.channels
                    {
                        return refuse("its factors are not one a channel");
                    }
                    Ok(writer.constants((0..source.channels).map(|c| values.at(c))))
                };
                let (scale, offset) = (each(scale)?, each(offset)?);
                format!(
                    "fma(f32(byte), factors[{scale} + colour / 4u][colour % 4u], \
                     factors[{offset} + colour / 4u][colour % 4u])"
                )
            }
        };
        writer.function(&format!(
            "fn core(pixel: u32, c4: u32) -> V {{
  var v = V(0.0);
  for (var lane = 0u; lane < 4u; lane++) {{
    let c = 4u * c4 + lane;
    if (c > {last}) {{ break; }}
    // The channel of ones; what there is not is cut off by the store.
    if (c == {last}) {{ v[lane] = 1.0; continue; }}
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
        elementwise(writer, "image", &op.steps, frame, stride)
    }

    /// The inputs concatenated, then steps, with pixel norms among them.
    fn map(&self, op: &FusedOp) -> Lowered<Kernel> {
        let (mut writer, stride) = self.writer();
        let frame = self.frame(op)?;
        gather(&mut writer, &op.inputs, frame)?;
        if op.steps.iter().any(|step| matches!(step, Step::Norm { .. })) {
            return norm(writer, &op.steps, frame, stride);
        }
        elementwise(writer, "map", &op.steps, frame, stride)
    }

    fn pool(&self, op: &FusedOp, pool: &Pool) -> Lowered<Kernel> {
        let (mut writer, stride) = self.writer();
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
        let (offset, c4) = (writer.number(source.offset), writer.number(source.c4()));
        let (start, take, end) = match (pool.maximum, pool.count_padding) {
            (true, _) => ("-3.4e38", "max(v, x)", "v".to_owned()),
            (false, true) => ("0.0", "v + x", format!("v / f32({kh} * {kw})")),
            (false, false) => ("0.0", "v + x", "v / count".to_owned()),
        };
        writer.function(&format!(
            "fn core(pixel: u32, c4: u32) -> V {{
  var v = V({start});
  var count = 0.0;
  let top = pixel / {ow} * {sy};
  let left = pixel % {ow} * {sx};
  for (var ky = 0u; ky < {kh}; ky++) {{
    for (var kx = 0u; kx < {kw}; kx++) {{
      // Padding wraps round to large numbers.
      let y = top + ky - {pt};
      let x_ = left + kx - {pl};
      if (y >= {h} || x_ >= {w}) {{ continue; }}
      let x = V(arena[base + {offset} + (y * {w} + x_) * {c4} + c4]);
      v = {take};
      count += 1.0;
    }}
  }}
  return {end};
}}"
        ));
        elementwise(writer, "pool", &op.steps, frame, stride)
    }

    fn dense(&self, op: &FusedOp, dense: &Dense) -> Lowered<Kernel> {
        let (mut writer, stride) = self.writer();
        let sources: Vec<&Map> = op.inputs.iter().map(|input| &self.maps[input.buffer]).collect();
        let channels: usize = sources.iter().map(|map| map.channels).sum();
        let weights = dense.weights.values();
        if sources.iter().any(|map| map.pixels() != 1)
            || channels != dense.channels
            || weights.len() != dense.channels * dense.outputs
            || weights.is_empty()
        {
            return refuse(format!(
                "a matrix of {} values for {channels} inputs and {} outputs",
                weights.len(),
                dense.outputs
            ));
        }
        let frame = Frame { height: 1, width: 1, channels: dense.outputs };
        let k4: usize = sources.iter().map(|map| map.c4()).sum();
        // Rows of four outputs: for each element of the inputs, the four rows' four weights.
        let mut packed = vec![0.0; frame.c4() * k4 * 16];
        for (n, row) in weights.chunks_exact(dense.channels).enumerate() {
            let (mut start, mut first) = (0, 0);
            for map in &sources {
                for c in 0..map.channels {
                    let element = (n / 4 * k4 + first + c / 4) * 4 + n % 4;
                    packed[element * 4 + c % 4] = row[start + c];
                }
                start += map.channels;
                first += map.c4();
            }
        }
        writer.steps("finish", &op.steps, frame)?;
        let holes = [
            ("$STRIDE", stride),
            ("$K4", writer.number(k4)),
            ("$SOURCES", writer.number(sources.len())),
        ];
        let rows: Vec<[usize; 4]> =
            sources.iter().map(|map| [map.offset, map.c4(), 0, 0]).collect();
        let first = ("$FIRST", format!("{}u", writer.rows(&rows)));
        let template = include_str!("shaders/dense.wgsl");
        let holes = [holes.to_vec(), vec![first], over_workgroup(&mut writer, 64)].concat();
        let weights = Weights::Reals(packed);
        Ok(writer.finish("dense", template, &holes, weights, [frame.c4() as u32, 1]))
    }

    fn attention(&self, op: &FusedOp, attention: &Attention) -> Lowered<Kernel> {
        const TILE: usize = 16;
        let (mut writer, stride) = self.writer();
        let source = *self.first(op)?;
        let channels = attention.heads * attention.dim;
        if source.channels != 3 * channels
            || !attention.dim.is_multiple_of(4)
            || attention.dim > 128
            || channels == 0
        {
            return refuse(format!(
                "attention of {} heads of {} channels over {}; a head must have a multiple of 4, at \
                 most 128",
                attention.heads, attention.dim, source.channels
            ));
        }
        let frame = Frame { channels, ..source.frame() };
        writer.steps("finish", &op.steps, frame)?;
        let d4 = attention.dim / 4;
        let each = |line: &dyn Fn(usize) -> String| (0..d4).map(line).collect::<String>();
        let norm = match attention.norm {
            None => "1.0".to_owned(),
            Some(epsilon) => {
                format!(
                    "1.0 / (sqrt(squares(at) / {}.0) + {})",
                    attention.dim,
                    writer.real(epsilon)
                )
            }
        };
        let holes = [
            ("$STRIDE", stride),
            ("$OFFSET", writer.number(source.offset)),
            ("$C4", writer.number(source.c4())),
            ("$PIXELS", writer.number(source.pixels())),
            ("$HEADS", writer.number(attention.heads)),
            ("$SCALE", writer.real(attention.scale)),
            ("$NORM", norm),
            ("$D4", d4.to_string()),
            ("$TILE", TILE.to_string()),
            ("$KEYS", (TILE * d4).to_string()),
            (
                "$QUERY",
                each(&|d| {
                    format!("  let q{d} = V(arena[at + {d}u]) * scale;\n  var sum{d} = V(0.0);\n")
                }),
            ),
            (
                "$SCORE",
                format!(
                    "      var score = 0.0;\n{}",
                    each(&|d| format!("      score += dot(q{d}, keys[row + {d}u]);\n"))
                ),
            ),
            (
                "$GATHER",
                each(&|d| format!("      sum{d} = sum{d} * keep + share * values[row + {d}u];\n")),
            ),
            (
                "$STORE",
                each(&|d| format!("    finish(sum{d} / total, pixel, head * {d4}u + {d}u);\n")),
            ),
        ];
        let template = include_str!("shaders/attention.wgsl");
        let groups = [source.pixels().div_ceil(64) as u32, attention.heads as u32];
        Ok(writer.finish("attention", template, &holes, Weights::default(), groups))
    }

    /// Statistics of each group, then what is made of them.
    fn group_norm(&self, op: &FusedOp, count: usize, epsilon: f32) -> Lowered<Dispatches> {
        let source = *self.first(op)?;
        if count == 0 || !source.channels.is_multiple_of(count) {
            return refuse(format!("{count} groups of {} channels", source.channels));
        }
        let (size, frame, words) = (source.channels / count, source.frame(), 2 * count);
        let (mut writer, stride) = self.writer();
        let holes = vec![
            ("$STRIDE", stride),
            ("$OFFSET", writer.number(source.offset)),
            ("$C4", writer.number(source.c4())),
            ("$PIXELS", writer.number(source.pixels())),
            ("$SIZE", writer.number(size)),
            ("$WORDS", writer.number(words)),
            ("$EPSILON", writer.real(epsilon)),
        ];
        let template = include_str!("shaders/statistics.wgsl");
        let holes = [holes, over_workgroup(&mut writer, 256)].concat();
        let statistics =
            writer.finish("statistics", template, &holes, Weights::default(), [count as u32, 1]);

        let (mut writer, stride) = self.writer();
        let value = writer.read(op.inputs[0], frame, "a norm")?;
        let (words, size) = (writer.number(words), writer.number(size));
        let core = |name: &str, end: &str| {
            format!(
                "fn {name}(pixel: u32, c4: u32) -> V {{
  let at = vec4<u32>(tile * {words}) + 2u * ((vec4<u32>(0u, 1u, 2u, 3u) + 4u * c4) / {size});
  let mean = bitcast<V>(vec4<u32>(scratch[at.x], scratch[at.y], scratch[at.z], scratch[at.w]));
  let factor = bitcast<V>(vec4<u32>(
    scratch[at.x + 1u], scratch[at.y + 1u], scratch[at.z + 1u], scratch[at.w + 1u],
  ));
  let v = ({value} - mean) * factor;
  return {end};
}}"
            )
        };
        let pooled = op.steps.iter().position(|step| matches!(step, Step::Pool));
        let apply = match pooled {
            None => {
                writer.function(&core("core", "v"));
                elementwise(writer, "group norm", &op.steps, frame, stride)?
            }
            Some(at) => {
                writer.steps("before", &op.steps[..at], frame)?;
                writer.function(&core("core", "before(v, pixel, c4)"));
                if op.steps[..at].iter().any(|step| matches!(step, Step::Store(_))) {
                    return refuse("a store before a mean over pixels");
                }
                moments(writer, stride, frame, Some(op.steps[at + 1..].to_vec()), None)?
            }
        };
        Ok(Dispatches { kernels: vec![statistics, apply], scratch: 2 * count + 8 })
    }

    fn layout(&self, op: &FusedOp) -> Lowered<Kernel> {
        let (mut writer, stride) = self.writer();
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
            ("$STRIDE", stride),
            ("$FROM", writer.number(source.offset)),
            ("$C4", writer.number(source.c4())),
            ("$TO", writer.number(to.offset)),
            ("$COUNT", writer.number(count)),
            ("$LANE", lane),
        ];
        let template = include_str!("shaders/layout.wgsl");
        Ok(writer.finish("layout", template, &holes, Weights::default(), groups(count, 64)))
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
    stride: String,
) -> Lowered<Kernel> {
    writer.steps("finish", steps, frame)?;
    Ok(threads(writer, kind, frame, stride, Weights::default()))
}

/// One thread a pixel and four channels, for functions `core(pixel, c4)` and
/// `finish(value, pixel, c4)`.
pub(super) fn threads(
    mut writer: Writer,
    kind: &'static str,
    frame: Frame,
    stride: String,
    weights: Weights,
) -> Kernel {
    let count = frame.pixels() * frame.c4();
    let holes =
        [("$STRIDE", stride), ("$COUNT", writer.number(count)), ("$C4", writer.number(frame.c4()))];
    let template = include_str!("shaders/elementwise.wgsl");
    writer.finish(kind, template, &holes, weights, groups(count, 64))
}

/// The same with pixel norms among the steps: the threads of a pixel share its sum of squares.
fn norm(mut writer: Writer, steps: &[Step], frame: Frame, stride: String) -> Lowered<Kernel> {
    let lanes = frame.c4().next_power_of_two().min(64);
    let each = frame.c4().div_ceil(lanes);
    if each > 16 {
        return refuse(format!("a pixel norm over {} channels; at most 4096", frame.channels));
    }
    let c4 = writer.number(frame.c4());
    let whole = frame.channels.is_multiple_of(4);
    let channels = writer.number(frame.channels);
    let mut body = String::new();
    for k in 0..each {
        body.push_str(&format!(
            "  let c{k} = min(lane + {}u, {c4} - 1u);\n  let in{k} = inside && lane + {}u < {c4};\n  \
             var v{k} = core(pixel, c{k});\n",
            k * lanes,
            k * lanes
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
        body.push_str("  square = 0.0;\n");
        for k in 0..each {
            let value =
                if whole { format!("v{k}") } else { format!("only(v{k}, c{k}, {channels})") };
            body.push_str(&format!(
                "  if (in{k}) {{ let part = {value}; square += dot(part, part); }}\n"
            ));
        }
        body.push_str("  sums[thread] = square;\n  workgroupBarrier();\n");
        let mut step = lanes / 2;
        while step > 0 {
            body.push_str(&format!(
                "  if (lane < {step}u) {{ sums[thread] += sums[thread + {step}u]; }}\n  \
                 workgroupBarrier();\n"
            ));
            step /= 2;
        }
        body.push_str(&format!(
            "  let factor{number} = 1.0 / (sqrt(sums[thread - lane] / f32({channels})) + {epsilon});\n  \
             workgroupBarrier();\n"
        ));
        for k in 0..each {
            body.push_str(&format!("  v{k} *= factor{number};\n"));
        }
    }
    let holes = [
        ("$STRIDE", stride),
        ("$LANES", lanes.to_string()),
        ("$PIXELS", writer.number(frame.pixels())),
        ("$BODY", body),
    ];
    let template = include_str!("shaders/norm.wgsl");
    let groups = groups(frame.pixels(), 64 / lanes);
    Ok(writer.finish("norm", template, &holes, Weights::default(), groups))
}

/// Mean and deviation over pixels of a function `core(pixel, c4)`, each with its steps.
fn moments(
    mut writer: Writer,
    stride: String,
    frame: Frame,
    mean: Option<Vec<Step>>,
    deviation: Option<Vec<Step>>,
) -> Lowered<Kernel> {
    let lanes = (frame.c4() + 1).next_power_of_two() / 2;
    let lanes = lanes.clamp(1, 8);
    let vector = Frame { height: 1, width: 1, channels: frame.channels };
    let mut body = String::new();
    if let Some(steps) = mean {
        writer.steps("finish_mean", &steps, vector)?;
        body.push_str("  if (writes) { finish_mean(mean, 0u, c4); }\n");
    }
    if let Some(steps) = deviation {
        writer.steps("finish_deviation", &steps, vector)?;
        body.push_str(&format!(
            "  sum = V(0.0);
  for (var pixel = first; pixel < $PIXELS; pixel += 256u / {lanes}u) {{
    let d = core(pixel, c4) - mean;
    sum += d * d;
  }}
  let deviation = sqrt(over_pixels(sum, thread) / f32($PIXELS));
  if (writes) {{ finish_deviation(deviation, 0u, c4); }}\n"
        ));
    }
    let pixels = writer.number(frame.pixels());
    let holes = [
        ("$STRIDE", stride),
        ("$C4", writer.number(frame.c4())),
        ("$BODY", body.replace("$PIXELS", &pixels)),
        ("$PIXELS", pixels),
        ("$LANES", lanes.to_string()),
    ];
    let template = include_str!("shaders/moments.wgsl");
    let groups = [frame.c4().div_ceil(lanes) as u32, 1];
    Ok(writer.finish("moments", template, &holes, Weights::default(), groups))
}

/// A function that sums over a workgroup of `threads`, and the holes for its arguments.
fn over_workgroup(writer: &mut Writer, threads: usize) -> Vec<(&'static str, String)> {
    let subgroups = writer.abilities().subgroups;
    let template = match subgroups {
        true => include_str!("shaders/sum_subgroups.wgsl"),
        false => include_str!("shaders/sum.wgsl"),
    };
    writer.function(&template.replace("$THREADS", &threads.to_string()));
    let (builtins, arguments) = match subgroups {
        true => (
            "@builtin(subgroup_id) number: u32,
  @builtin(subgroup_invocation_id) lane: u32,
  @builtin(num_subgroups) subgroups: u32,",
            ", number, lane, subgroups",
        ),
        false => ("", ""),
    };
    vec![("$SUBGROUP", builtins.into()), ("$SUBGROUP_ARGUMENTS", arguments.into())]
}
