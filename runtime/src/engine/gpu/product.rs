//! Products of matrices from tiles in shared memory, the left side gathered from maps on the way:
//! convolutions of reals and of bytes, and the products of Winograd's transforms. Multiplied by each thread
//! for itself, or by subgroups with cooperative matrices.

use super::conv::Geometry;
use super::elements::Elements;
use super::map::Frame;
use super::shader::{Kernel, Weights, Writer};
use super::tiling::Tiling;
use super::{Lowered, refuse};

/// What is multiplied, and with what.
pub(super) struct Product {
    /// Where the window of each pixel lies.
    pub(super) geometry: Geometry,
    /// Taps of a window, down and across.
    pub(super) kernel: [usize; 2],
    /// Of each source: offset, elements of a pixel, width, shift of enlarging.
    pub(super) sources: Vec<[usize; 4]>,
    /// Size of what one product makes.
    pub(super) frame: Frame,
    /// Products one after the other, each of `frame.pixels()` pixels by weights of its own.
    pub(super) planes: usize,
    pub(super) elements: Elements,
    /// The pixel norm that comes before `finish`; `before` computes what it is taken of.
    pub(super) norm: Option<Norm>,
}

/// A pixel norm.
pub(super) struct Norm {
    /// One over the number of channels.
    pub(super) share: String,
    pub(super) epsilon: String,
    /// Channels, where the last element is not full of them.
    pub(super) channels: Option<String>,
}

/// Text of `line` for each of `count`.
pub(super) fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(line).collect()
}

/// Text of `line` for each of `rows` x `columns`.
pub(super) fn grid(rows: usize, columns: usize, line: impl Fn(usize, usize) -> String) -> String {
    lines(rows, |m| lines(columns, |n| line(m, n)))
}

/// What a workgroup computes.
pub(super) struct Block {
    pub(super) threads: usize,
    /// Pixels.
    pub(super) rows: usize,
    /// Elements of outputs.
    pub(super) columns: usize,
    /// Elements of channels a step.
    pub(super) depth: usize,
}

impl Product {
    /// The kernel, cut by `tiling` into tiles in shared memory.
    ///
    /// # Errors
    /// When `tiling` is none of shared memory.
    pub(super) fn tiled(
        &self,
        writer: Writer,
        kind: &'static str,
        weights: Weights,
        tiling: Tiling,
    ) -> Lowered<Kernel> {
        match (tiling, writer.abilities().matrices) {
            (Tiling::Shared { threads, pixels, elements, depth }, _) => {
                Ok(self.shared(writer, kind, weights, threads, [pixels, elements], depth))
            }
            (Tiling::Cooperative { subgroups, matrices, depth }, Some(of)) => {
                Ok(self.cooperative(writer, weights, of, subgroups, matrices, depth))
            }
            _ => refuse(format!("{tiling:?} has no tiles in shared memory")),
        }
    }

    /// Each thread computes `pixels` pixels of `elements` elements, `down` and `across` threads apart.
    fn shared(
        &self,
        mut writer: Writer,
        kind: &'static str,
        weights: Weights,
        [down, across]: [usize; 2],
        [pixels, elements]: [usize; 2],
        depth: usize,
    ) -> Kernel {
        let block = Block {
            threads: down * across,
            rows: down * pixels,
            columns: across * elements,
            depth,
        };
        let (rows, columns, lanes) = (block.rows, block.columns, self.elements.rows());
        let (left, right) = (rows * depth, lanes * depth * columns);
        let [left_type, right_type] = self.elements.types();
        let mut shared = format!(
            "var<workgroup> left: array<{left_type}, {left}>;
var<workgroup> right: array<{right_type}, {right}>;\n"
        );
        if self.norm.is_some() {
            shared.push_str(&format!("var<workgroup> squares: array<V, {}>;\n", rows * columns));
        }
        let multiply = lines(pixels, |m| {
            let element = format!("left[d * {rows}u + row + {}u]", m * down);
            format!("            let a{m} = {};\n", self.elements.value(&element))
        }) + &lines(lanes, |lane| {
            let load = lines(elements, |n| {
                let at = format!(
                    "right[({lanes}u * d + {lane}u) * {columns}u + column + {}u]",
                    n * across
                );
                format!("            let b{lane}_{n} = {};\n", self.elements.value(&at))
            });
            load + &grid(pixels, elements, |m, n| {
                let line = self.elements.multiply(
                    &format!("sum{m}_{n}"),
                    &format!("a{m}"),
                    lane,
                    &format!("b{lane}_{n}"),
                );
                format!("            {line}\n")
            })
        });
        let begin = format!(
            "  let row = thread / {across}u;
  let column = thread % {across}u;\n"
        );
        let sums = grid(pixels, elements, |m, n| {
            format!("  var sum{m}_{n} = {};\n", self.elements.empty())
        });
        let n4 = writer.number(self.frame.c4());
        let store = match &self.norm {
            None => grid(pixels, elements, |m, n| {
                let finish = self.elements.finish(&[format!("sum{m}_{n}")]);
                format!(
                    "  {{
    let pixel = first + row + {}u;
    let c4 = first4 + column + {}u;
    if (pixel < end && c4 < {n4}) {{ {finish} }}
  }}\n",
                    m * down,
                    n * across
                )
            }),
            Some(norm) => {
                let sum = |m, n| self.elements.real(&[format!("sum{m}_{n}")]);
                norm.store(sum, [down, across], [pixels, elements], columns, &n4)
            }
        };
        let holes = vec![
            ("$SHARED", shared),
            ("$SUBGROUP", String::new()),
            ("$BEGIN", begin + &sums),
            ("$STEPS", depth.to_string()),
            ("$MULTIPLY", multiply),
            ("$STORE", store),
        ];
        let keep = Keep {
            left: &|pixel, value| format!("left[depth * {rows}u + {pixel}] = {value};"),
            right: &|value| format!("right[i] = {value};"),
        };
        self.write(writer, kind, &block, &keep, holes, weights)
    }

    /// The shader with `holes` filled in, and those that do not depend on who multiplies.
    pub(super) fn write(
        &self,
        mut writer: Writer,
        kind: &'static str,
        block: &Block,
        keep: &Keep,
        mut holes: Vec<(&'static str, String)>,
        weights: Weights,
    ) -> Kernel {
        let &Block { threads, rows, columns, depth } = block;
        let lanes = self.elements.rows();
        let n4 = writer.number(self.frame.c4());
        let pixels = writer.number(self.frame.pixels());
        let k4: usize = self.sources.iter().map(|source| source[1]).sum();
        let plane = match self.planes {
            1 => format!(
                "  let first = group.y * {rows}u;
  let end = {pixels};
  var k = 0u;"
            ),
            _ => format!(
                "  let blocks = ({pixels} + {rows}u - 1u) / {rows}u;
  let plane = group.y / blocks;
  let first = plane * {pixels} + group.y % blocks * {rows}u;
  let end = (plane + 1u) * {pixels};
  var k = plane * {};",
                writer.number(self.kernel[0] * self.kernel[1] * k4 * lanes)
            ),
        };
        // Each thread fetches elements of one depth, of pixels `threads / depth` apart.
        let (left, right) = (rows * depth, lanes * depth * columns);
        let pixel = |m: usize| format!("thread / {depth}u + {}u", m * (threads / depth));
        let fetched = left.div_ceil(threads);
        let setup = lines(fetched, |m| self.geometry.setup(m, &format!("first + {}", pixel(m))));
        let address = lines(fetched, |m| {
            self.elements.place(self.geometry.address(m, &format!(" && p{m} < end")))
        });
        let load_left = lines(fetched, |m| {
            let at = format!("at{m} + select(0u, c + depth, full)");
            let value = self.elements.fetch(&at, &format!("in{m} && full"));
            let keep = (keep.left)(&pixel(m), &value);
            guarded(&format!("          {keep}\n"), left, threads, m)
        });
        let [_, right_type] = self.elements.types();
        let load_right = lines(right.div_ceil(threads), |s| {
            let value =
                format!("select({right_type}(), weights[select(0u, (k + r) * {n4} + n, is)], is)");
            let load = format!(
                "          {{
            let i = thread + {}u;
            let r = i / {columns}u;
            let n = first4 + i % {columns}u;
            let is = n < {n4} && r < {lanes}u * (source.y - c);
            {}
          }}\n",
                s * threads,
                (keep.right)(&value)
            );
            guarded(&load, right, threads, s)
        });
        let [kh, kw] = self.kernel.map(|n| format!("i32({})", writer.number(n)));
        holes.extend([
            ("$PLANE", plane),
            ("$SETUP", setup),
            ("$ADDRESS", address),
            ("$LOAD_LEFT", load_left),
            ("$LOAD_RIGHT", load_right),
            ("$THREADS", threads.to_string()),
            ("$BM", rows.to_string()),
            ("$BN4", columns.to_string()),
            ("$BK4", depth.to_string()),
            ("$ROWS", lanes.to_string()),
            ("$KH", kh),
            ("$KW", kw),
            ("$SOURCES", writer.number(self.sources.len())),
            ("$FIRST", format!("{}u", writer.rows(&self.sources))),
        ]);
        let template = include_str!("shaders/product.wgsl");
        let blocks = self.planes * self.frame.pixels().div_ceil(rows);
        let groups = [self.frame.c4().div_ceil(columns) as u32, blocks as u32];
        writer.finish(kind, template, &holes, weights, groups)
    }
}

/// How what was fetched is kept in shared memory.
pub(super) struct Keep<'a> {
    /// By the number of the pixel in the block, and the value.
    pub(super) left: &'a dyn Fn(&str, &str) -> String,
    /// By the value, of row `r` and element `i`.
    pub(super) right: &'a dyn Fn(&str) -> String,
}

impl Norm {
    /// What becomes of the sums: each thread's squares go to shared memory, where every thread finds all of a
    /// pixel's; added up in the order of every engine.
    fn store(
        &self,
        sum: impl Fn(usize, usize) -> String,
        [down, across]: [usize; 2],
        [pixels, elements]: [usize; 2],
        columns: usize,
        n4: &str,
    ) -> String {
        let Self { share, epsilon, channels } = self;
        let before = grid(pixels, elements, |m, n| {
            let value = format!("value{m}_{n}");
            let part = match channels {
                None => value.clone(),
                Some(channels) => format!("only({value}, c4, {channels})"),
            };
            let sum = sum(m, n);
            format!(
                "  var {value} = V(0.0);
  {{
    let pixel = first + row + {}u;
    let c4 = first4 + column + {}u;
    if (pixel < end && c4 < {n4}) {{
      {value} = before({sum}, pixel, c4);
      let part = {part};
      squares[(row + {}u) * {columns}u + column + {}u] = exact(part * part);
    }}
  }}\n",
                m * down,
                n * across,
                m * down,
                n * across
            )
        });
        let after = lines(pixels, |m| {
            let finish = lines(elements, |n| {
                format!(
                    "    if (column + {0}u < {n4}) {{ finish(exact(value{m}_{n} * factor), pixel, column + {0}u); }}\n",
                    n * across
                )
            });
            format!(
                "  if (first + row + {0}u < end) {{
    let pixel = first + row + {0}u;
    var parts = array<V, 4>(V(0.0), V(0.0), V(0.0), V(0.0));
    for (var c = 0u; c < {n4}; c++) {{
      parts[c % 4u] = exact(parts[c % 4u] + squares[(row + {0}u) * {columns}u + c]);
    }}
    let factor = norm_factor(parts, {share}, {epsilon});
{finish}  }}\n",
                m * down
            )
        });
        format!("{before}  workgroupBarrier();\n{after}")
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
