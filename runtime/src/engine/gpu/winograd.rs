//! 3x3 convolutions of many channels by Winograd's F(4x4, 3x3): a quarter of the multiplications, for
//! transforms before and after (Lavin and Gray 2016).
//!
//! Which convolutions are computed so depends on their shape alone, never on measurements: the bits of
//! a result must not change with a cache.

use super::Lowered;
use super::lower::Context;
use super::map::{Frame, Map};
use super::pixelwise::gather;
use super::shader::{Kernel, Weights, groups};
use crate::engine::fused::{BufferSpec, Conv, FusedOp, Layout};

/// Least channels on both sides: with fewer, the transforms cost more than they save.
const CHANNELS: usize = 64;

/// Least tiles of 4x4 pixels: fewer do not fill the products' tiles.
const TILES: usize = 32;

/// Points of the transform.
const POINTS: usize = 36;

/// Tiles down and across a map of these outputs.
fn tiles(height: usize, width: usize) -> [usize; 2] {
    [height.div_ceil(4), width.div_ceil(4)]
}

/// Sizes of the transformed inputs and products of `op`, where it is worth it.
pub(super) fn scratch(conv: &Conv, op: &FusedOp, buffers: &[BufferSpec]) -> Option<[Layout; 2]> {
    let [height, width, _] = buffers[op.writes().next()?].layout.dims();
    let [down, across] = tiles(height, width);
    let fits = conv.kernel == [3; 2]
        && conv.stride == [1; 2]
        && conv.dilation == [1; 2]
        && conv.groups == 1
        && conv.channels >= CHANNELS
        && conv.outputs >= CHANNELS
        && down * across >= TILES;
    let layout = |channels| Layout::Map { height: POINTS, width: down * across, channels };
    fits.then(|| [layout(conv.channels), layout(conv.outputs)])
}

/// The three dispatches; `scratch` are the maps of [`scratch`].
pub(super) fn lower(
    context: &Context,
    op: &FusedOp,
    conv: &Conv,
    frame: Frame,
    scratch: [&Map; 2],
) -> Lowered<Vec<Kernel>> {
    let first = context.first(op)?;
    let up = op.inputs[0].upsample;
    let size =
        Frame { height: first.height * up, width: first.width * up, channels: conv.channels };
    let [down, across] = tiles(frame.height, frame.width);
    let (count, k4, n4) = (down * across, size.c4(), frame.c4());
    let fit = |map: &Map, channels| map.frame() == Frame { height: POINTS, width: count, channels };
    if !fit(scratch[0], conv.channels) || !fit(scratch[1], conv.outputs) {
        return super::refuse("its scratch is of another size");
    }

    let mut writer = context.writer();
    gather(&mut writer, &op.inputs, size)?;
    let mut body = String::new();
    for j in 0..6 {
        let column: Vec<String> =
            (0..6).map(|i| format!("pixel_at(top + {i}u, left + {j}u, c4)")).collect();
        body.push_str(&format!("  let column{j} = forward({});\n", column.join(", ")));
    }
    for i in 0..6 {
        let row: Vec<String> = (0..6).map(|j| format!("column{j}[{i}]")).collect();
        body.push_str(&format!("  let row{i} = forward({});\n", row.join(", ")));
        for j in 0..6 {
            body.push_str(&format!("  arena[to + {}u * step] = S(row{i}[{j}]);\n", i * 6 + j));
        }
    }
    let holes = [
        ("$COUNT", writer.number(count * k4)),
        ("$K4", writer.number(k4)),
        ("$ACROSS", writer.number(across)),
        ("$HEIGHT", writer.number(size.height)),
        ("$WIDTH", writer.number(size.width)),
        ("$TOP", writer.number(conv.padding.top)),
        ("$LEFT", writer.number(conv.padding.left)),
        ("$TO", writer.number(scratch[0].offset)),
        ("$BODY", body),
    ];
    let template = include_str!("shaders/winograd_in.wgsl");
    let transform =
        writer.finish("winograd in", template, &holes, Weights::default(), groups(count * k4, 64));

    let mut writer = context.writer();
    let each = |line: &dyn Fn(usize, usize) -> String| -> String {
        (0..4).flat_map(|m| (0..2).map(move |n| (m, n))).map(|(m, n)| line(m, n)).collect()
    };
    let mut multiply: String =
        (0..4).map(|m| format!("      let a{m} = left[d * 32u + row + {}u];\n", 8 * m)).collect();
    for (lane, x) in ["x", "y", "z", "w"].into_iter().enumerate() {
        for n in 0..2 {
            multiply.push_str(&format!(
                "      let b{lane}_{n} = right[(4u * d + {lane}u) * 16u + column + {}u];\n",
                8 * n
            ));
        }
        multiply.push_str(&each(&|m, n| {
            format!("      sum{m}_{n} = fma(V(a{m}.{x}), b{lane}_{n}, sum{m}_{n});\n")
        }));
    }
    let (tiles_text, n4_text) = (writer.number(count), writer.number(n4));
    let to = writer.number(scratch[1].offset);
    let store = each(&|m, n| {
        format!(
            "  if (first + row + {0}u < {tiles_text} && first4 + column + {1}u < {n4_text}) {{
    arena[base + {to} + (which * {tiles_text} + first + row + {0}u) * {n4_text} + first4 + column + {1}u] = \
             S(sum{m}_{n});
  }}\n",
            8 * m,
            8 * n
        )
    });
    let holes = [
        ("$TILES", tiles_text),
        ("$N4", n4_text),
        ("$K4", writer.number(k4)),
        ("$FROM", writer.number(scratch[0].offset)),
        ("$SETUP", each(&|m, n| format!("  var sum{m}_{n} = V(0.0);\n"))),
        ("$MULTIPLY", multiply),
        ("$STORE", store),
    ];
    let template = include_str!("shaders/winograd_multiply.wgsl");
    let blocks = [n4.div_ceil(16) as u32, (POINTS * count.div_ceil(32)) as u32];
    let weights = Weights::Reals(transformed(conv, k4, n4));
    let product = writer.finish("winograd", template, &holes, weights, blocks);

    let mut writer = context.writer();
    writer.steps("finish", &op.steps, frame)?;
    let mut body = String::new();
    for j in 0..6 {
        let column: Vec<String> =
            (0..6).map(|i| format!("V(arena[at + {}u * step])", i * 6 + j)).collect();
        body.push_str(&format!("  let column{j} = backward({});\n", column.join(", ")));
    }
    let (height, width) = (writer.number(frame.height), writer.number(frame.width));
    for i in 0..4 {
        let row: Vec<String> = (0..6).map(|j| format!("column{j}[{i}]")).collect();
        body.push_str(&format!("  let row{i} = backward({});\n", row.join(", ")));
        for j in 0..4 {
            body.push_str(&format!(
                "  if (y + {i}u < {height} && x + {j}u < {width}) {{ finish(row{i}[{j}], (y + {i}u) * \
                 {width} + x + {j}u, c4); }}\n"
            ));
        }
    }
    let holes = [
        ("$COUNT", writer.number(count * n4)),
        ("$N4", writer.number(n4)),
        ("$ACROSS", writer.number(across)),
        ("$FROM", writer.number(scratch[1].offset)),
        ("$BODY", body),
    ];
    let template = include_str!("shaders/winograd_out.wgsl");
    let back =
        writer.finish("winograd out", template, &holes, Weights::default(), groups(count * n4, 64));
    Ok(vec![transform, product, back])
}

/// `G g G'` of every kernel, `[point][input channel][output channel]`.
fn transformed(conv: &Conv, k4: usize, n4: usize) -> Vec<f32> {
    const G: [[f64; 3]; 6] = [
        [1.0 / 4.0, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];
    let mut packed = vec![0.0f32; POINTS * k4 * 4 * n4 * 4];
    for (at, kernel) in conv.weights.values().chunks_exact(9).enumerate() {
        let (n, k) = (at / conv.channels, at % conv.channels);
        for i in 0..6 {
            for j in 0..6 {
                let mut sum = 0.0;
                for (tap, &weight) in kernel.iter().enumerate() {
                    sum += G[i][tap / 3] * G[j][tap % 3] * f64::from(weight);
                }
                packed[((i * 6 + j) * k4 * 4 + k) * n4 * 4 + n] = sum as f32;
            }
        }
    }
    packed
}
