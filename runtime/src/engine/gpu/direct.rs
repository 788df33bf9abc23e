//! Convolutions from global memory: the products of [`Product`] where there is no shared memory worth using,
//! and convolutions channel by channel.

use super::elements::Elements;
use super::lower::Context;
use super::product::{Product, lines};
use super::shader::{Kernel, Weights, Writer};
use super::tiling::{Choice, Tiling};
use super::{Lowered, refuse};

/// Pixels a thread of a convolution channel by channel.
const DEPTHWISE: [usize; 3] = [1, 2, 4];

impl Product {
    /// The kernel with `pixels` pixels and four channels a thread.
    pub(super) fn direct(
        &self,
        mut writer: Writer,
        kind: &'static str,
        weights: Weights,
        pixels: usize,
    ) -> Kernel {
        debug_assert!(self.norm.is_none(), "a thread has not all channels of a pixel");
        let rows = self.elements.rows();
        let digits = self.elements.digits();
        let n4 = writer.number(self.frame.c4());
        let brought = match &self.elements {
            Elements::Reals => lines(rows, |lane| {
                format!("          let w{lane} = V(weights[k + {lane}u * {n4}]);\n")
            }),
            Elements::Bytes { plane, .. } => lines(digits, |digit| match digit {
                0 => "          let w0 = weights[k];\n".to_owned(),
                _ => format!("          let w{digit} = weights[k + {digit}u * {plane}];\n"),
            }),
        };
        let multiply = lines(pixels, |m| {
            let value = self.elements.fetch(&format!("at{m} + c"), &format!("in{m}"));
            let value = format!("          let a{m} = {};\n", self.elements.value(&value));
            let line = |digit: usize, lane: usize, right: usize| {
                let (sum, left) = (format!("sum{m}_{digit}"), format!("a{m}"));
                let line = self.elements.multiply(&sum, &left, lane, &format!("w{right}"));
                format!("          {line}\n")
            };
            value
                + &match self.elements {
                    Elements::Reals => lines(rows, |lane| line(0, lane, lane)),
                    Elements::Bytes { .. } => lines(digits, |digit| line(digit, 0, digit)),
                }
        });
        let holes = [
            ("$WEIGHTS", brought),
            ("$MULTIPLY", multiply),
            ("$ROWS", rows.to_string()),
            ("$SOURCES", writer.number(self.sources.len())),
        ];
        let template = include_str!("shaders/direct.wgsl");
        self.each_thread(writer, kind, template, &holes, weights, pixels)
    }

    /// The kernel of a convolution channel by channel.
    pub(super) fn by_channel(
        &self,
        context: &Context,
        mut writer: Writer,
        kind: &'static str,
        weights: Weights,
        shape: String,
    ) -> Lowered<Kernel> {
        let choice = Choice::direct(shape, &DEPTHWISE);
        let Tiling::Direct { pixels } = context.tiling(&choice) else {
            return refuse("channels by themselves have no tiles in shared memory");
        };
        let c4 = self.frame.c4();
        let (weight, step) = match self.elements {
            Elements::Reals => ("V(weights[k + c4])".to_owned(), writer.number(c4)),
            // One word holds four channels.
            Elements::Bytes { .. } => {
                let word = "unpack4xI8(weights[k + c4 / 4u][c4 % 4u])";
                (word.to_owned(), writer.number(c4.div_ceil(4)))
            }
        };
        let multiply = lines(pixels, |m| match self.elements {
            Elements::Reals => {
                format!(
                    "      if (in{m}) {{ sum{m}_0 = fma(V(arena[at{m} + c4]), w, sum{m}_0); }}\n"
                )
            }
            Elements::Bytes { .. } => {
                let value = self.elements.fetch(&format!("at{m} + c4"), &format!("in{m}"));
                format!("      sum{m}_0 += unpack4xI8({value}) * w;\n")
            }
        });
        let holes = [("$WEIGHT", weight), ("$STEP", step), ("$MULTIPLY", multiply)];
        let template = include_str!("shaders/depthwise.wgsl");
        let kernel = self.each_thread(writer, kind, template, &holes, weights, pixels);
        Ok(Kernel { choice: Some(choice), ..kernel })
    }

    /// `template` with `holes` filled in, and what every thread does with its `pixels` pixels.
    fn each_thread(
        &self,
        mut writer: Writer,
        kind: &'static str,
        template: &str,
        holes: &[(&'static str, String)],
        weights: Weights,
        pixels: usize,
    ) -> Kernel {
        let digits = self.elements.digits();
        let all = writer.number(self.frame.pixels());
        let setup = lines(pixels, |m| {
            let sums = lines(digits, |digit| {
                format!("  var sum{m}_{digit} = {};\n", self.elements.empty())
            });
            self.geometry.setup(m, &format!("min(first + {m}u, {all} - 1u)")) + &sums
        });
        let address = lines(pixels, |m| self.elements.place(self.geometry.address(m, "")));
        let store = lines(pixels, |m| {
            let sums: Vec<String> = (0..digits).map(|digit| format!("sum{m}_{digit}")).collect();
            format!(
                "  if (first + {m}u < {all}) {{ let pixel = p{m}; {} }}\n",
                self.elements.finish(&sums)
            )
        });
        let [kh, kw] = self.kernel.map(|n| format!("i32({})", writer.number(n)));
        let mut holes = holes.to_vec();
        holes.extend([
            ("$TM", pixels.to_string()),
            ("$N4", writer.number(self.frame.c4())),
            ("$SETUP", setup),
            ("$ADDRESS", address),
            ("$STORE", store),
            ("$KH", kh),
            ("$KW", kw),
            ("$FIRST", format!("{}u", writer.rows(&self.sources))),
        ]);
        let count = self.frame.pixels().div_ceil(pixels) * self.frame.c4();
        writer.each(kind, template, &holes, weights, count)
    }
}
