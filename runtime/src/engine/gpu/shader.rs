//! Writing the shader of one operator: a template, the numbers it is run with, and its steps as text.
//!
//! Sizes and places come from a uniform buffer instead of standing in the text, so operators of the
//! same form share one pipeline; the text is its own key.

use super::map::{Frame, Map, round_up};
use super::tiling::Choice;
use super::{Lowered, refuse};
use crate::engine::fused::{Activation, BufferId, Channels, Grid, Input, Step};

/// What is added to a byte as it is kept, so that 0 means 0.
fn centre(grid: Grid) -> f32 {
    128.0 - f32::from(grid.zero_point)
}

const PRELUDE: &str = include_str!("shaders/prelude.wgsl");
const EXACT: &str = include_str!("shaders/exact.wgsl");
const EACH: &str = include_str!("shaders/each.wgsl");

/// What shaders may use, beyond what every adapter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Abilities {
    /// Maps and weights in float16; sums stay float32.
    pub(super) half: bool,
    /// Reductions over subgroups.
    pub(super) subgroups: bool,
    /// Tiles in shared memory pay: false for adapters that emulate it.
    pub(super) shared: bool,
    /// Cooperative matrices, where they are asked for.
    pub(super) matrices: Option<Matrices>,
}

/// Cooperative matrices of an adapter: a subgroup multiplies two in the type of the maps and adds to a third of
/// float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matrices {
    /// Rows and columns.
    pub(super) side: usize,
    /// Threads of a subgroup.
    pub(super) subgroup: usize,
}

/// A shader with everything that one dispatch of it needs, but the buffers.
#[derive(Debug, Clone, Default)]
pub(super) struct Kernel {
    /// What computes it, in a word.
    pub(super) kind: &'static str,
    /// WGSL; equal texts are one pipeline.
    pub(super) source: String,
    /// Uniform words.
    pub(super) params: Vec<u32>,
    /// Weights, in the order the shader reads them.
    pub(super) weights: Weights,
    /// Biases, factors and tables.
    pub(super) factors: Vec<f32>,
    /// Workgroups in x and y; z counts tiles.
    pub(super) groups: [u32; 2],
    /// The tilings there were to choose from.
    pub(super) choice: Option<Choice>,
}

/// Constant operands as they are uploaded.
#[derive(Debug, Clone)]
pub(super) enum Weights {
    /// In the type of the maps.
    Reals(Vec<f32>),
    /// Four int8 a word.
    Words(Vec<u32>),
}

impl Default for Weights {
    fn default() -> Self {
        Self::Reals(vec![])
    }
}

/// Most workgroups in one dimension (a core limit of WebGPU).
const MOST_GROUPS: usize = 65_535;

/// Workgroups in x and y for `count` threads in groups of `size`.
pub(super) fn groups(count: usize, size: usize) -> [u32; 2] {
    let all = count.div_ceil(size).max(1);
    let rows = all.div_ceil(MOST_GROUPS);
    [all.div_ceil(rows) as u32, rows as u32]
}

/// Gathers what one shader needs.
pub(super) struct Writer<'a> {
    /// All maps by buffer.
    maps: &'a [Map],
    abilities: Abilities,
    quantised: bool,
    params: Vec<u32>,
    factors: Vec<f32>,
    functions: String,
}

impl<'a> Writer<'a> {
    /// Every shader's first numbers, which the prelude reads: elements of reals and words from a tile's maps
    /// to the next tile's, and 0. In a `quantised` graph reals are computed as in every other engine.
    pub(super) fn new(
        maps: &'a [Map],
        abilities: Abilities,
        [arena, words]: [usize; 2],
        quantised: bool,
    ) -> Self {
        let params = vec![arena as u32, words as u32, 0, 0];
        Self { maps, abilities, quantised, params, factors: vec![], functions: String::new() }
    }

    pub(super) fn abilities(&self) -> Abilities {
        self.abilities
    }

    pub(super) fn map(&self, id: BufferId) -> &'a Map {
        &self.maps[id]
    }

    /// A number; the text to read it.
    pub(super) fn number(&mut self, value: usize) -> String {
        // Sizes were checked to fit when the maps were placed.
        self.word(value as u32)
    }

    pub(super) fn word(&mut self, word: u32) -> String {
        let at = self.params.len();
        self.params.push(word);
        format!("params[{}].{}", at / 4, ["x", "y", "z", "w"][at % 4])
    }

    pub(super) fn real(&mut self, value: f32) -> String {
        // Infinity may be assumed absent in a shader.
        let value = value.clamp(-f32::MAX, f32::MAX);
        format!("bitcast<f32>({})", self.word(value.to_bits()))
    }

    /// Rows of four numbers; the index of the first.
    pub(super) fn rows(&mut self, rows: &[[usize; 4]]) -> usize {
        self.params.resize(self.params.len().next_multiple_of(4), 0);
        let first = self.params.len() / 4;
        self.params.extend(rows.iter().flatten().map(|&value| value as u32));
        first
    }

    /// Values in the factors' buffer, padded to whole elements; the text of the first's index.
    pub(super) fn constants(&mut self, values: impl Iterator<Item = f32>) -> String {
        let first = self.factors.len() / 4;
        self.factors.extend(values);
        self.factors.resize(self.factors.len().next_multiple_of(4), 0.0);
        self.number(first)
    }

    /// Adds a function to the shader.
    pub(super) fn function(&mut self, text: &str) {
        self.functions.push_str(text);
        self.functions.push('\n');
    }

    /// Expression for the channels at `c4` of `input` at `pixel` of a map like `frame`.
    pub(super) fn read(&mut self, input: Input, frame: Frame, name: &str) -> Lowered<String> {
        let map = self.map(input.buffer);
        let seen = [map.height * input.upsample, map.width * input.upsample, map.channels];
        if seen != [frame.height, frame.width, frame.channels] {
            return refuse(format!(
                "{name} reads a map of {seen:?} beside one of {:?}",
                [frame.height, frame.width, frame.channels]
            ));
        }
        let c4 = self.number(map.c4());
        let pixel = if input.upsample == 1 {
            "pixel".to_owned()
        } else {
            let (width, from) = (self.number(frame.width), self.number(map.width));
            let by = self.number(input.upsample);
            format!("(pixel / {width} / {by} * {from} + pixel % {width} / {by})")
        };
        Ok(self.element(map, &format!("{pixel} * {c4} + c4")))
    }

    /// Expression for element `index` of `map`, whose lanes past the last channel are 0.
    pub(super) fn element(&mut self, map: &Map, index: &str) -> String {
        let offset = self.number(map.offset);
        match map.grid {
            None => format!("V(arena[base + {offset} + {index}])"),
            Some(grid) => {
                let (scale, zero) = (self.real(grid.scale), self.real(centre(grid)));
                format!("of_grid(words[words_base + {offset} + {index}], {scale}, {zero})")
            }
        }
    }

    /// A function `name(v, pixel, c4) -> V` that does `steps` on a map like `frame`.
    pub(super) fn steps(&mut self, name: &str, steps: &[Step], frame: Frame) -> Lowered<()> {
        let mut text =
            format!("fn {name}(given: V, pixel: u32, c4: u32) -> V {{\n  var v = given;\n");
        for (k, step) in steps.iter().enumerate() {
            let line = self.step(step, frame)?;
            text.push_str("  ");
            text.push_str(&line);
            text.push('\n');
            if let Step::Store(id) = step
                && steps[k..].contains(&Step::Load(*id))
            {
                text.push_str(&format!("  let kept{k} = v;\n"));
            }
            if let Step::Load(id) = step {
                match steps[..k].iter().rposition(|step| *step == Step::Store(*id)) {
                    Some(stored) => text.push_str(&format!("  v = kept{stored};\n")),
                    None => return refuse("a value is taken up that was not stored"),
                }
            }
        }
        text.push_str("  return v;\n}");
        self.function(&text);
        Ok(())
    }

    fn step(&mut self, step: &Step, frame: Frame) -> Lowered<String> {
        Ok(match step {
            Step::Scale(channels) => format!("v *= {};", self.channels(channels, frame)?),
            Step::Offset(channels) => format!("v += {};", self.channels(channels, frame)?),
            Step::Add { input, scale } => {
                let other = self.read(*input, frame, "an addition")?;
                match scale {
                    1.0 => format!("v += {other};"),
                    scale => format!("v += {} * {other};", self.real(*scale)),
                }
            }
            Step::Multiply(input) => {
                format!("v *= {};", self.read(*input, frame, "a product")?)
            }
            Step::Activate(activation) => format!("v = {};", self.activation(*activation)),
            Step::Store(id) => self.store(*id, frame)?,
            Step::Load(_) => String::new(),
            Step::Norm { .. } | Step::Pool => return refuse(format!("{step:?} is out of place")),
        })
    }

    /// Statement that writes `v` to `id`.
    pub(super) fn store(&mut self, id: BufferId, frame: Frame) -> Lowered<String> {
        let map = self.map(id);
        if [map.height, map.width, map.channels] != [frame.height, frame.width, frame.channels] {
            return refuse(format!(
                "a map of {:?} is stored as one of {:?}",
                [frame.height, frame.width, frame.channels],
                [map.height, map.width, map.channels]
            ));
        }
        let value = if map.channels.is_multiple_of(4) {
            "v".to_owned()
        } else {
            format!("only(v, c4, {})", self.number(map.channels))
        };
        Ok(match map.grid {
            None => {
                let (offset, c4) = (self.number(map.offset), self.number(map.c4()));
                format!("arena[base + {offset} + pixel * {c4} + c4] = S({value});")
            }
            Some(grid) => {
                let word = format!("packed({})", self.index(&value, grid));
                self.store_word(map, &word)
            }
        })
    }

    /// Statement that writes `word`, four bytes, to `map`, which is of bytes.
    pub(super) fn store_word(&mut self, map: &Map, word: &str) -> String {
        let (offset, c4) = (self.number(map.offset), self.number(map.c4()));
        format!("words[words_base + {offset} + pixel * {c4} + c4] = {word};")
    }

    /// Expression for one value, or the channels' at `c4`.
    fn channels(&mut self, channels: &Channels, frame: Frame) -> Lowered<String> {
        Ok(match channels {
            Channels::One(value) => self.real(*value),
            Channels::Each(values) if values.len() == frame.channels => {
                let first = self.constants(values.iter().copied());
                format!("factors[{first} + c4]")
            }
            Channels::Each(values) => {
                return refuse(format!("{} factors for {} channels", values.len(), frame.channels));
            }
        })
    }

    fn activation(&mut self, activation: Activation) -> String {
        match activation {
            Activation::Silu if self.quantised => "silu_exact(v)".into(),
            Activation::Sigmoid if self.quantised => "sigmoid_exact(v)".into(),
            Activation::Silu => "silu(v)".into(),
            Activation::Sigmoid => "sigmoid(v)".into(),
            Activation::Clip { low, high } => {
                let (low, high) = (self.real(low), self.real(high));
                format!("clamp(v, V({low}), V({high}))")
            }
            Activation::Snap(grid) => {
                let index = self.index("v", grid);
                let (zero, scale) = (self.real(f32::from(grid.zero_point)), self.real(grid.scale));
                format!("exact(({index} - {zero}) * {scale})")
            }
            Activation::Sqrt => "sqrt(v)".into(),
            Activation::Reciprocal => "1.0 / v".into(),
            Activation::ReciprocalSqrt => "1.0 / sqrt(v)".into(),
            Activation::Square => "v * v".into(),
            Activation::Negate => "-v".into(),
            Activation::Abs => "abs(v)".into(),
            Activation::Exp => "exp(v)".into(),
            Activation::Tanh => "tanh(clamp(v, V(-20.0), V(20.0)))".into(),
        }
    }

    /// Expression for the numbers, 0 to 255, of the grid's values nearest to `v`.
    pub(super) fn index(&mut self, v: &str, grid: Grid) -> String {
        let (inverse, zero) = (self.real(grid.inverse()), self.real(f32::from(grid.zero_point)));
        format!("to_grid({v}, {inverse}, {zero})")
    }

    /// The shader of a function `work(i)` that `template` is, for each `i` below `count`.
    pub(super) fn each(
        mut self,
        kind: &'static str,
        template: &str,
        holes: &[(&str, String)],
        weights: Weights,
        count: usize,
    ) -> Kernel {
        let holes = [holes, &[("$WORK", self.number(count))]].concat();
        let template = [template, EACH].concat();
        self.finish(kind, &template, &holes, weights, groups(count, 64))
    }

    /// The shader: `template` with `holes` filled in (each `$NAME` with its text), behind the prelude
    /// and the functions.
    pub(super) fn finish(
        mut self,
        kind: &'static str,
        template: &str,
        holes: &[(&str, String)],
        weights: Weights,
        groups: [u32; 2],
    ) -> Kernel {
        let mut body = template.to_owned();
        // Longer names first: one may begin another.
        let mut holes: Vec<_> = holes.iter().collect();
        holes.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        for (name, text) in holes {
            body = body.replace(name, text);
        }
        self.params.resize(round_up(self.params.len().max(4), 4), 0);
        let element = if self.abilities.half { "f16" } else { "f32" };
        let mut source = String::new();
        if self.abilities.half {
            source.push_str("enable f16;\n");
        }
        if body.contains("coop_mat") {
            source.push_str("enable wgpu_cooperative_matrix;\n");
        }
        source.push_str(&format!("alias S = vec4<{element}>;\n"));
        let mut prelude = PRELUDE.replace("PARAMS", &(self.params.len() / 4).to_string());
        if matches!(weights, Weights::Words(_)) {
            prelude = prelude.replace("weights: array<S>", "weights: array<vec4<u32>>");
        }
        source.push_str(&prelude);
        if body.contains("_exact")
            || self.functions.contains("_exact")
            || body.contains("norm_factor(")
        {
            source.push_str(EXACT);
        }
        source.push_str(&self.functions);
        source.push_str(&body);
        Kernel {
            kind,
            source,
            params: self.params,
            weights,
            factors: self.factors,
            groups,
            choice: None,
        }
    }
}
