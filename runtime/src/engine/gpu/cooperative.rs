//! Products by cooperative matrices: a subgroup multiplies two of an adapter's own size together.

use super::product::{Block, Keep, Product, grid, lines};
use super::shader::{Kernel, Matrices, Weights, Writer};

impl Product {
    /// Each subgroup multiplies `matrices` cooperative matrices down and across. They are read from and written
    /// to shared memory only, at places that follow from the tiling and from a number of the subgroup that is
    /// held below the number of `subgroups`.
    pub(super) fn cooperative(
        &self,
        mut writer: Writer,
        weights: Weights,
        of: Matrices,
        subgroups: [usize; 2],
        matrices: [usize; 2],
        depth: usize,
    ) -> Kernel {
        let Matrices { side, subgroup } = of;
        let count = subgroups[0] * subgroups[1];
        let block = Block {
            threads: count * subgroup,
            rows: subgroups[0] * matrices[0] * side,
            columns: subgroups[1] * matrices[1] * side / 4,
            depth,
        };
        let (rows, width, channels) = (block.rows, block.columns * 4, depth * 4);
        let kind = if writer.abilities().half { "f16" } else { "f32" };
        let shared = format!(
            "var<workgroup> left: array<{kind}, {}>;
var<workgroup> right: array<{kind}, {}>;
var<workgroup> sums: array<f32, {}>;\n",
            rows * channels,
            channels * width,
            rows * width
        );
        let matrix = |kind: &str, role: &str| format!("coop_mat{side}x{side}<{kind}, {role}>");
        let place = |m: usize, n: usize| {
            format!("&sums[(row + {}u) * {width}u + column + {}u], {width}u", m * side, n * side)
        };
        let begin = format!(
            "  let part = min(number, {}u);
  let row = part / {}u * {}u;
  let column = part % {}u * {}u;
  for (var i = thread; i < {}u; i += {}u) {{ sums[i] = 0.0; }}
  workgroupBarrier();
{}",
            count - 1,
            subgroups[1],
            matrices[0] * side,
            subgroups[1],
            matrices[1] * side,
            rows * width,
            block.threads,
            grid(matrices[0], matrices[1], |m, n| format!(
                "  var sum{m}_{n} = coopLoadT<{}>({});\n",
                matrix("f32", "C"),
                place(m, n)
            ))
        );
        let multiply = lines(matrices[0], |m| {
            format!(
                "            let a{m} = coopLoadT<{}>(&left[(row + {}u) * {channels}u + d * {side}u], \
                 {channels}u);\n",
                matrix(kind, "A"),
                m * side
            )
        }) + &lines(matrices[1], |n| {
            format!(
                "            let b{n} = coopLoadT<{}>(&right[d * {side}u * {width}u + column + {}u], {width}u);\n",
                matrix(kind, "B"),
                n * side
            )
        }) + &grid(matrices[0], matrices[1], |m, n| {
            format!("            sum{m}_{n} = coopMultiplyAdd(a{m}, b{n}, sum{m}_{n});\n")
        });
        let n4 = writer.number(self.frame.c4());
        let store = format!(
            "{}  workgroupBarrier();
  for (var i = thread; i < {}u; i += {}u) {{
    let pixel = first + i / {}u;
    let c4 = first4 + i % {}u;
    let sum = V(sums[4u * i], sums[4u * i + 1u], sums[4u * i + 2u], sums[4u * i + 3u]);
    if (pixel < end && c4 < {n4}) {{ {} }}
  }}\n",
            grid(matrices[0], matrices[1], |m, n| format!(
                "  coopStoreT(sum{m}_{n}, {});\n",
                place(m, n)
            )),
            rows * block.columns,
            block.threads,
            block.columns,
            block.columns,
            self.elements.finish(&["sum".to_owned()])
        );
        let holes = vec![
            ("$SHARED", shared),
            ("$SUBGROUP", "@builtin(subgroup_id) number: u32,".to_owned()),
            ("$BEGIN", begin),
            ("$STEPS", (channels / side).to_string()),
            ("$MULTIPLY", multiply),
            ("$STORE", store),
        ];
        let each = |to: &str, at: &str| {
            lines(4, |lane| {
                format!("{to}[{at} + {lane}u] = value.{}; ", ["x", "y", "z", "w"][lane])
            })
        };
        let keep = Keep {
            left: &|pixel, value| {
                let at = format!("({pixel}) * {channels}u + 4u * depth");
                format!("{{ let value = {value}; {}}}", each("left", &at))
            },
            right: &|value| format!("let value = {value}; {}", each("right", "4u * i")),
        };
        self.write(writer, "matrices", &block, &keep, holes, weights)
    }
}
