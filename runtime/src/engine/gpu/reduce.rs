//! Operators whose results depend on whole maps or vectors: matrices, group norms, means and deviations,
//! attention.

use super::lower::Context;
use super::map::{Frame, Map};
use super::pixelwise::elementwise;
use super::product::lines;
use super::shader::{Kernel, Weights, Writer};
use super::tiling::{Choice, Tiling};
use super::{Lowered, refuse};
use crate::engine::fused::{Attention, Dense, FusedOp, Step};

impl Context<'_> {
    pub(super) fn dense(&self, op: &FusedOp, dense: &Dense) -> Lowered<Kernel> {
        let mut writer = self.writer();
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
        let choice = Choice::rows(format!("matrix {} of {k4}", frame.c4()), frame.c4());
        let Tiling::Rows { elements } = self.tiling(&choice) else {
            return refuse("a matrix has rows alone");
        };
        let n4 = writer.number(frame.c4());
        let [builtins, (_, arguments)] = over_workgroup(&mut writer, 64);
        let rows: Vec<[usize; 4]> =
            sources.iter().map(|map| [map.offset, map.c4(), 0, 0]).collect();
        let holes = vec![
            ("$K4", writer.number(k4)),
            ("$SOURCES", writer.number(sources.len())),
            ("$FIRST", format!("{}u", writer.rows(&rows))),
            (
                "$SETUP",
                lines(elements, |e| {
                    format!(
                        "  var sum{e} = V(0.0);
  var row{e} = min(group.x * {elements}u + {e}u, {n4} - 1u) * $K4;\n"
                    )
                }),
            ),
            (
                "$MULTIPLY",
                lines(elements, |e| {
                    format!(
                        "      let w{e} = (row{e} + k) * 4u;
      sum{e} += V(
        dot(V(weights[w{e}]), x), dot(V(weights[w{e} + 1u]), x),
        dot(V(weights[w{e} + 2u]), x), dot(V(weights[w{e} + 3u]), x),
      );\n"
                    )
                }),
            ),
            ("$NEXT", lines(elements, |e| format!("    row{e} += source.y;\n"))),
            (
                "$STORE",
                lines(elements, |e| {
                    format!(
                        "  let total{e} = over_workgroup(sum{e}, thread{arguments});
  if (thread == 0u && group.x * {elements}u + {e}u < {n4}) {{
    finish(total{e}, 0u, group.x * {elements}u + {e}u);
  }}\n"
                    )
                }),
            ),
        ];
        let template = include_str!("shaders/dense.wgsl");
        let holes = [holes, vec![builtins]].concat();
        let groups = [frame.c4().div_ceil(elements) as u32, 1];
        let kernel = writer.finish("dense", template, &holes, Weights::Reals(packed), groups);
        Ok(Kernel { choice: Some(choice), ..kernel })
    }

    /// Statistics of each group, then what is made of them.
    pub(super) fn group_norm(
        &self,
        op: &FusedOp,
        count: usize,
        epsilon: f32,
    ) -> Lowered<Vec<Kernel>> {
        let source = *self.first(op)?;
        if count == 0 || !source.channels.is_multiple_of(count) {
            return refuse(format!("{count} groups of {} channels", source.channels));
        }
        if statistics_words(count) > self.reserved {
            return refuse(format!("no place for the statistics of {count} groups"));
        }
        let (size, frame) = (source.channels / count, source.frame());
        let mut writer = self.writer();
        let c4 = writer.number(source.c4());
        let holes = vec![
            ("$VALUE", writer.element(&source, &format!("(i / width) * {c4} + c4"))),
            ("$PIXELS", writer.number(source.pixels())),
            ("$SIZE", writer.number(size)),
            ("$EPSILON", writer.real(epsilon)),
        ];
        let template = include_str!("shaders/statistics.wgsl");
        let holes = [holes, over_workgroup(&mut writer, 256).to_vec()].concat();
        let statistics =
            writer.finish("statistics", template, &holes, Weights::default(), [count as u32, 1]);

        let mut writer = self.writer();
        let value = writer.read(op.inputs[0], frame, "a norm")?;
        let size = writer.number(size);
        let core = |name: &str, end: &str| {
            format!(
                "fn {name}(pixel: u32, c4: u32) -> V {{
  let at = vec4<u32>(words_base) + 2u * ((vec4<u32>(0u, 1u, 2u, 3u) + 4u * c4) / {size});
  let mean = bitcast<V>(vec4<u32>(words[at.x], words[at.y], words[at.z], words[at.w]));
  let factor = bitcast<V>(vec4<u32>(
    words[at.x + 1u], words[at.y + 1u], words[at.z + 1u], words[at.w + 1u],
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
                elementwise(writer, "group norm", &op.steps, frame)?
            }
            Some(at) => {
                writer.steps("before", &op.steps[..at], frame)?;
                writer.function(&core("core", "before(v, pixel, c4)"));
                if op.steps[..at].iter().any(|step| matches!(step, Step::Store(_))) {
                    return refuse("a store before a mean over pixels");
                }
                moments(writer, frame, Some(op.steps[at + 1..].to_vec()), None)?
            }
        };
        Ok(vec![statistics, apply])
    }

    pub(super) fn attention(&self, op: &FusedOp, attention: &Attention) -> Lowered<Kernel> {
        let mut writer = self.writer();
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
        let shape = format!(
            "attention {} of {}x{}{}",
            source.pixels(),
            attention.heads,
            d4,
            if self.quantised { " exact" } else { "" }
        );
        let choice = Choice::queries(shape, d4, !self.quantised);
        let Tiling::Queries { threads, keys } = self.tiling(&choice) else {
            return refuse("attention is cut by queries alone");
        };
        let groups = [source.pixels().div_ceil(threads) as u32, attention.heads as u32];
        if self.quantised {
            let epsilon = attention.norm.map_or("0.0".into(), |epsilon| writer.real(epsilon));
            let norm = if attention.norm.is_some() { "norm_of(at)" } else { "1.0" };
            let holes = [
                ("$ELEMENT", writer.element(&source, "i")),
                ("$C4", writer.number(source.c4())),
                ("$PIXELS", writer.number(source.pixels())),
                ("$HEADS", writer.number(attention.heads)),
                ("$SCALE", writer.real(attention.scale)),
                ("$NORM", norm.into()),
                ("$SHARE", writer.real(1.0 / attention.dim as f32)),
                ("$EPSILON", epsilon),
                ("$D4", d4.to_string()),
                ("$THREADS", threads.to_string()),
            ];
            let template = include_str!("shaders/attention_exact.wgsl");
            let kernel = writer.finish("attention", template, &holes, Weights::default(), groups);
            return Ok(Kernel { choice: Some(choice), ..kernel });
        }
        let each = |line: &dyn Fn(usize) -> String| lines(d4, line);
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
            ("$ELEMENT", writer.element(&source, "i")),
            ("$C4", writer.number(source.c4())),
            ("$PIXELS", writer.number(source.pixels())),
            ("$HEADS", writer.number(attention.heads)),
            ("$SCALE", writer.real(attention.scale)),
            ("$NORM", norm),
            ("$D4", d4.to_string()),
            ("$THREADS", threads.to_string()),
            ("$TILE", keys.to_string()),
            ("$KEYS", (keys * d4).to_string()),
            (
                "$QUERY",
                each(&|d| {
                    format!("  let q{d} = element(at + {d}u) * scale;\n  var sum{d} = V(0.0);\n")
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
        let kernel = writer.finish("attention", template, &holes, Weights::default(), groups);
        Ok(Kernel { choice: Some(choice), ..kernel })
    }
}

/// Words that the statistics of `count` groups take; lanes past the last group read what lies behind.
pub(super) fn statistics_words(count: usize) -> usize {
    2 * count + 8
}

/// Mean and deviation over pixels of a function `core(pixel, c4)`, each with its steps.
pub(super) fn moments(
    mut writer: Writer,
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
fn over_workgroup(writer: &mut Writer, threads: usize) -> [(&'static str, String); 2] {
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
    [("$SUBGROUP", builtins.into()), ("$SUBGROUP_ARGUMENTS", arguments.into())]
}
