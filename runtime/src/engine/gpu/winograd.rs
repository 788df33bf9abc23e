//! 3x3 convolutions of many channels by Winograd's F(4x4, 3x3): a quarter of the multiplications, for
//! transforms before and after (Lavin and Gray 2016).
//!
//! Which convolutions are computed so depends on their shape alone, never on measurements: the bits of
//! a result must not change with a cache.

use super::Lowered;
use super::conv::Geometry;
use super::elements::Elements;
use super::lower::Context;
use super::map::{Frame, Map};
use super::pixelwise::gather;
use super::product::Product;
use super::shader::{Kernel, Weights};
use super::tiling::{Choice, Extent};
use crate::engine::fused::{BufferId, BufferSpec, Conv, FusedOp, Layout, Step};

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
    scratch: [BufferId; 2],
) -> Lowered<Vec<Kernel>> {
    let [transformed, products] = scratch.map(|id| &context.maps[id]);
    let first = context.first(op)?;
    let up = op.inputs[0].upsample;
    let size =
        Frame { height: first.height * up, width: first.width * up, channels: conv.channels };
    let [down, across] = tiles(frame.height, frame.width);
    let (count, k4, n4) = (down * across, size.c4(), frame.c4());
    let fit = |map: &Map, channels| map.frame() == Frame { height: POINTS, width: count, channels };
    if !fit(transformed, conv.channels) || !fit(products, conv.outputs) {
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
        ("$TO", writer.number(transformed.offset)),
        ("$BODY", body),
    ];
    let template = include_str!("shaders/winograd_in.wgsl");
    let transform = writer.each("winograd in", template, &holes, Weights::default(), count * k4);

    let product = product(context, conv, scratch, [count, k4, n4])?;

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
        ("$FROM", writer.number(products.offset)),
        ("$BODY", body),
    ];
    let template = include_str!("shaders/winograd_out.wgsl");
    let back = writer.each("winograd out", template, &holes, Weights::default(), count * n4);
    Ok(vec![transform, product, back])
}

/// The products of each point's transformed tiles and weights.
fn product(
    context: &Context,
    conv: &Conv,
    [from, to]: [BufferId; 2],
    [count, k4, n4]: [usize; 3],
) -> Lowered<Kernel> {
    let mut writer = context.writer();
    let whole = Frame { height: POINTS, width: count, channels: conv.outputs };
    writer.steps("finish", &[Step::Store(to)], whole)?;
    let extent = Extent { pixels: POINTS * count, n4, k4, bytes: false, normed: false };
    let shape = format!("winograd {count}x{n4} of {k4}");
    let choice = Choice::product(shape, context.abilities, extent, false);
    let product = Product {
        geometry: Geometry::pointwise(&mut writer, [POINTS, count]),
        kernel: [1; 2],
        sources: vec![[context.maps[from].offset, k4, count, 0]],
        frame: Frame { height: 1, ..whole },
        planes: POINTS,
        elements: Elements::Reals,
        norm: None,
    };
    let weights = Weights::Reals(transformed(conv, k4, n4));
    let kernel = product.tiled(writer, "winograd", weights, context.tiling(&choice))?;
    Ok(Kernel { choice: Some(choice), ..kernel })
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
