//! Convolutions of reals: as a matrix product, and channel by channel.

use super::lower::{Context, reach};
use super::map::{Frame, Map};
use super::pixelwise::elementwise;
use super::shader::{Kernel, Weights, Writer, groups};
use super::tiling::{Tiling, shape};
use super::{Lowered, refuse, winograd};
use crate::engine::fused::{Conv, FusedOp};

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
        let scratch = [transformed, products].map(|id| &context.maps[id]);
        return winograd::lower(context, op, conv, frame, scratch);
    }
    let k4: usize = op.inputs.iter().map(|input| context.maps[input.buffer].c4()).sum();
    let shape = shape(op, conv, frame, k4);
    let tiling =
        context.choices.get(&shape).copied().unwrap_or_else(|| {
            Tiling::usual(context.abilities.shared, frame.pixels(), frame.c4(), k4)
        });
    let mut kernel = product(context, op, conv, frame, tiling)?;
    kernel.shape = Some(shape);
    Ok(vec![kernel])
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

fn product(
    context: &Context,
    op: &FusedOp,
    conv: &Conv,
    frame: Frame,
    tiling: Tiling,
) -> Lowered<Kernel> {
    let mut writer = context.writer();
    let sources: Vec<&Map> = op.inputs.iter().map(|input| &context.maps[input.buffer]).collect();
    let size = [sources[0].height, sources[0].width].map(|size| size * op.inputs[0].upsample);
    let n4 = frame.c4();
    let weights = Weights::Reals(packed(conv, &sources, n4));
    let rows: Vec<[usize; 4]> = op
        .inputs
        .iter()
        .zip(&sources)
        .map(|(input, map)| {
            [map.offset, map.c4(), map.width, input.upsample.trailing_zeros() as usize]
        })
        .collect();
    let first = format!("{}u", writer.rows(&rows));
    writer.steps("finish", &op.steps, frame)?;
    let geometry = Geometry::new(&mut writer, size, frame.width, conv);
    let n4_text = writer.number(n4);
    let pixels_text = writer.number(frame.pixels());
    let kernel = conv.kernel.map(|n| format!("i32({})", writer.number(n)));
    let [kh, kw] = kernel;
    let mut holes = vec![
        ("$N4", n4_text.clone()),
        ("$PIXELS", pixels_text.clone()),
        ("$KH", kh),
        ("$KW", kw),
        ("$SOURCES", writer.number(rows.len())),
        ("$FIRST", first),
    ];
    let lines =
        |count: usize, line: &dyn Fn(usize) -> String| -> String { (0..count).map(line).collect() };
    match tiling {
        Tiling::Direct { pixels } => {
            holes.extend([
                ("$TM", pixels.to_string()),
                (
                    "$SETUP",
                    lines(pixels, &|m| {
                        let pixel = format!("min(first + {m}u, {pixels_text} - 1u)");
                        geometry.setup(m, &pixel) + &format!("  var sum{m} = V(0.0);\n")
                    }),
                ),
                ("$ADDRESS", lines(pixels, &|m| geometry.address(m, ""))),
                (
                    "$MULTIPLY",
                    lines(pixels, &|m| {
                        format!(
                            "          let a{m} = select(V(0.0), V(arena[at{m} + c]), in{m});
          sum{m} = fma(V(a{m}.x), b0, sum{m});
          sum{m} = fma(V(a{m}.y), b1, sum{m});
          sum{m} = fma(V(a{m}.z), b2, sum{m});
          sum{m} = fma(V(a{m}.w), b3, sum{m});\n"
                        )
                    }),
                ),
                (
                    "$STORE",
                    lines(pixels, &|m| {
                        format!(
                            "  if (first + {m}u < {pixels_text}) {{ finish(sum{m}, p{m}, n4); }}\n"
                        )
                    }),
                ),
            ]);
            let template = include_str!("shaders/conv_direct.wgsl");
            let count = frame.pixels().div_ceil(pixels) * n4;
            Ok(writer.finish("conv direct", template, &holes, weights, groups(count, 64)))
        }
        Tiling::Shared { threads: [down, across], pixels, elements, depth } => {
            let (bm, bn4, threads) = (down * pixels, across * elements, down * across);
            let (left, right) = (bm * depth, 4 * depth * bn4);
            // Each thread fetches elements of one depth, of pixels `threads / depth` apart.
            let fetched = left.div_ceil(threads);
            let step = threads / depth;
            let brought = right.div_ceil(threads);
            holes.extend([
                ("$BM", bm.to_string()),
                ("$BN4", bn4.to_string()),
                ("$BK4", depth.to_string()),
                ("$TM", pixels.to_string()),
                ("$TN", elements.to_string()),
                ("$WN", across.to_string()),
                ("$THREADS", threads.to_string()),
                ("$LEFT", left.to_string()),
                ("$RIGHT", right.to_string()),
                (
                    "$SETUP",
                    lines(fetched, &|m| {
                        let pixel =
                            format!("first + thread / {depth}u + {}u", m * step);
                        geometry.setup(m, &pixel)
                    }) + &lines(pixels, &|m| {
                        lines(elements, &|n| format!("  var sum{m}_{n} = V(0.0);\n"))
                    }),
                ),
                (
                    "$ADDRESS",
                    lines(fetched, &|m| geometry.address(m, &format!(" && p{m} < {pixels_text}"))),
                ),
                (
                    "$LOAD_LEFT",
                    lines(fetched, &|m| {
                        let load = format!(
                            "          left[depth * {bm}u + thread / {depth}u + {}u] = \
                             select(S(), arena[at{m} + select(0u, c + depth, full)], in{m} && full);\n",
                            m * step
                        );
                        guarded(&load, left, threads, m)
                    }),
                ),
                (
                    "$LOAD_RIGHT",
                    lines(brought, &|s| {
                        let load = format!(
                            "          {{
            let i = thread + {}u;
            let r = i / {bn4}u;
            let n = first4 + i % {bn4}u;
            let is = n < {n4_text} && r < 4u * (source.y - c);
            right[i] = select(S(), weights[select(0u, (k + r) * {n4_text} + n, is)], is);
          }}\n",
                            s * threads
                        );
                        guarded(&load, right, threads, s)
                    }),
                ),
                (
                    "$MULTIPLY",
                    lines(pixels, &|m| {
                        format!("            let a{m} = V(left[d * {bm}u + row + {}u]);\n", m * down)
                    }) + &lines(4, &|lane| {
                        let load = lines(elements, &|n| {
                            format!(
                                "            let b{lane}_{n} = V(right[(4u * d + {lane}u) * {bn4}u + \
                                 column + {}u]);\n",
                                n * across
                            )
                        });
                        let x = ["x", "y", "z", "w"][lane];
                        load + &lines(pixels, &|m| {
                            lines(elements, &|n| {
                                format!(
                                    "            sum{m}_{n} = fma(V(a{m}.{x}), b{lane}_{n}, sum{m}_{n});\n"
                                )
                            })
                        })
                    }),
                ),
                (
                    "$STORE",
                    lines(pixels, &|m| {
                        lines(elements, &|n| {
                            format!(
                                "  {{
    let pixel = first + row + {}u;
    let c4 = first4 + column + {}u;
    if (pixel < {pixels_text} && c4 < {n4_text}) {{ finish(sum{m}_{n}, pixel, c4); }}
  }}\n",
                                m * down,
                                n * across
                            )
                        })
                    }),
                ),
            ]);
            let template = include_str!("shaders/conv_tiled.wgsl");
            let groups = [n4.div_ceil(bn4) as u32, frame.pixels().div_ceil(bm) as u32];
            Ok(writer.finish("conv tiled", template, &holes, weights, groups))
        }
    }
}

/// Part `part` of a tile of `all` elements that `threads` threads fill.
fn guarded(load: &str, all: usize, threads: usize, part: usize) -> String {
    if (part + 1) * threads <= all {
        load.to_owned()
    } else {
        format!("          if (thread + {}u < {all}u) {{\n{load}          }}\n", part * threads)
    }
}

/// One thread a pixel and four channels.
fn depthwise(context: &Context, op: &FusedOp, conv: &Conv, frame: Frame) -> Lowered<Kernel> {
    let mut writer = context.writer();
    let source = *context.first(op)?;
    let taps = conv.kernel[0] * conv.kernel[1];
    let c4 = frame.c4();
    let mut packed = vec![0.0; taps * c4 * 4];
    for (c, kernel) in conv.weights.values().chunks_exact(taps).enumerate() {
        for (tap, weight) in kernel.iter().enumerate() {
            packed[tap * c4 * 4 + c] = *weight;
        }
    }
    let geometry = Geometry::new(&mut writer, [source.height, source.width], frame.width, conv);
    let [kh, kw] = conv.kernel.map(|n| writer.number(n));
    let first = writer.rows(&[[source.offset, source.c4(), source.width, 0]]);
    writer.function(&format!(
        "fn core(pixel: u32, c4: u32) -> V {{
  let source = params[{first}];
{}  var sum = V(0.0);
  var w = c4;
  for (var ky = 0; ky < i32({kh}); ky++) {{
    for (var kx = 0; kx < i32({kw}); kx++) {{
{}        if (in0) {{ sum = fma(V(arena[at0 + c4]), V(weights[w]), sum); }}
      w += source.y;
    }}
  }}
  return sum;
}}",
        geometry.setup(0, "pixel"),
        geometry.address(0, "")
    ));
    let mut kernel = elementwise(writer, "depthwise", &op.steps, frame)?;
    kernel.weights = Weights::Reals(packed);
    Ok(kernel)
}
