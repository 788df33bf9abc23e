//! A list of fused operators as dispatches with all places planned: what is uploaded once, and what is
//! run for every batch. Made without a device, so it can be checked without one.

use std::collections::HashMap;
use std::ops::Range;

use tract_onnx::prelude::Datum;
use tract_onnx::tract_core::internal::f16;

use super::legalise::legalise;
use super::lower::Context;
use super::map::{self, Map, Places};
use super::reduce::statistics_words;
use super::shader::{Abilities, Kernel, Weights};
use super::tiling::Choice;
use super::tune::Choices;
use super::{Lowered, bytes, refuse};
use crate::engine::fused::{BufferId, Core, FusedGraph, FusedOp};

/// Multiple of every binding's first byte (a core limit of WebGPU).
const BINDING: usize = 256;

/// Least bytes of a binding, so that none is empty.
const LEAST: usize = 16;

/// Everything to be run for a batch of tiles.
pub(super) struct Program {
    pub(super) dispatches: Vec<Dispatch>,
    /// Different shaders.
    pub(super) sources: Vec<String>,
    /// Weights and factors of all dispatches.
    pub(super) constants: Vec<u8>,
    /// Numbers of all dispatches.
    pub(super) params: Vec<u8>,
    /// Elements of a tile's maps.
    pub(super) arena: usize,
    /// Words of a tile: its maps of bytes, and what operators need for themselves.
    pub(super) words: usize,
    /// Bytes of an image, and the words they take.
    pub(super) image: [usize; 2],
    /// Where the predictions lie.
    pub(super) output: Map,
    /// What its shaders use.
    pub(super) abilities: Abilities,
    /// The operators, in the order of the list.
    pub(super) ops: Vec<About>,
}

/// One shader on one piece of work.
#[derive(Debug, Clone)]
pub(super) struct Dispatch {
    /// Operator that it is part of.
    pub(super) op: usize,
    /// Index into [`Program::sources`].
    pub(super) source: usize,
    pub(super) weights: Range<usize>,
    pub(super) factors: Range<usize>,
    pub(super) params: Range<usize>,
    /// Workgroups in x and y.
    pub(super) groups: [u32; 2],
}

/// An operator in words.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) name: String,
    pub(super) line: String,
    pub(super) kernel: String,
    /// Multiply-accumulates of the direct form.
    pub(super) macs: u64,
    /// The tilings there were to choose from.
    pub(super) choice: Option<Choice>,
    /// Bytes that must be read and written at least: maps and weights, each once.
    pub(super) bytes: u64,
}

impl Program {
    /// Lowers `graph`, convolutions tiled by `choices` where they are among them.
    ///
    /// # Errors
    /// The operator there is no shader for, or what contradicts itself.
    pub(super) fn new(graph: FusedGraph, abilities: Abilities, choices: &Choices) -> Lowered<Self> {
        Self::keeping(graph, abilities, choices, &[]).map(|(program, _)| program)
    }

    /// The same, with the places of all maps; those in `kept` are not written over.
    ///
    /// # Errors
    /// As [`Program::new`].
    pub(super) fn keeping(
        graph: FusedGraph,
        abilities: Abilities,
        choices: &Choices,
        kept: &[BufferId],
    ) -> Lowered<(Self, Vec<Map>)> {
        let mut graph = legalise(graph, abilities);
        let grids = bytes::keep(&mut graph);
        let ([image], [output]) = (&graph.inputs[..], &graph.outputs[..]) else {
            return refuse("it has not one input and one output");
        };
        let (image, output) = (&graph.buffers[*image], *output);
        if image.element != u8::datum_type() {
            return refuse(format!("its input holds {:?}, not bytes", image.element));
        }
        let reserved = graph.ops.iter().map(|op| match op.core {
            Core::GroupNorm { groups, .. } => statistics_words(groups),
            _ => 1,
        });
        let reserved = reserved.max().unwrap_or(1);
        let Places { maps, arena, words } =
            map::place(&graph, abilities.half, &grids, reserved, kept)?;
        let image = [image.layout.len(), image.layout.len().div_ceil(4)];
        let context = Context {
            graph: &graph,
            maps: &maps,
            strides: [arena, words],
            reserved,
            image_words: image[1],
            quantised: graph.is_quantised(),
            abilities,
            choices,
        };
        let element = if abilities.half { 2 } else { 4 };
        let mut program = Self {
            dispatches: vec![],
            sources: vec![],
            constants: vec![],
            params: vec![],
            arena,
            words,
            image,
            output: maps[output],
            abilities,
            ops: vec![],
        };
        let mut known = HashMap::new();
        for (k, op) in graph.ops.iter().enumerate() {
            let line = graph.describe(op);
            let kernels = context.lower(op).map_err(|why| format!("operator {line}: {why}"))?;
            let size = |id: BufferId| {
                let element = if maps[id].grid.is_some() { 1 } else { element };
                4 * element * maps[id].pixels() * maps[id].c4()
            };
            let traffic: usize = op.reads().chain(op.writes()).map(size).sum();
            let start = program.constants.len();
            let choice = kernels.iter().find_map(|kernel| kernel.choice.clone());
            let kinds: Vec<&str> = kernels.iter().map(|kernel| kernel.kind).collect();
            for kernel in kernels {
                program.push(k, kernel, &mut known);
            }
            program.ops.push(About {
                name: op.name.clone(),
                line,
                kernel: kinds.join(", "),
                choice,
                macs: macs(op, &graph),
                bytes: (traffic + program.constants.len() - start) as u64,
            });
        }
        Ok((program, maps))
    }

    fn push(&mut self, op: usize, kernel: Kernel, known: &mut HashMap<String, usize>) {
        let next = self.sources.len();
        let source = *known.entry(kernel.source.clone()).or_insert(next);
        if source == next {
            self.sources.push(kernel.source);
        }
        let weights = match (kernel.weights, self.abilities.half) {
            (Weights::Reals(values), false) => {
                append(&mut self.constants, values.iter().map(|value| value.to_le_bytes()))
            }
            (Weights::Reals(values), true) => {
                let halves = values.iter().map(|value| f16::from_f32(*value).to_le_bytes());
                append(&mut self.constants, halves)
            }
            (Weights::Words(words), _) => {
                append(&mut self.constants, words.iter().map(|word| word.to_le_bytes()))
            }
        };
        let factors = kernel.factors.iter().map(|value| value.to_le_bytes());
        let factors = append(&mut self.constants, factors);
        let params = append(&mut self.params, kernel.params.iter().map(|word| word.to_le_bytes()));
        let groups = kernel.groups;
        self.dispatches.push(Dispatch { op, source, weights, factors, params, groups });
    }

    /// Bytes of one tile's maps of reals.
    pub(super) fn arena_bytes(&self) -> usize {
        self.arena * if self.abilities.half { 8 } else { 16 }
    }

    /// All operators in words.
    pub(super) fn list(&self) -> String {
        let mut text = String::new();
        for (k, op) in self.ops.iter().enumerate() {
            text.push_str(&format!("{k:>3}  {}  [{}]\n", op.line, op.kernel));
        }
        text.push_str(&format!(
            "{} operators in {} dispatches of {} shaders, {:.1} MMAC, {} KiB of maps a tile, {} KiB of \
             constants",
            self.ops.len(),
            self.dispatches.len(),
            self.sources.len(),
            self.ops.iter().map(|op| op.macs).sum::<u64>() as f64 / 1e6,
            (self.arena_bytes() + 4 * self.words).div_ceil(1024),
            self.constants.len().div_ceil(1024)
        ));
        text
    }
}

/// Multiply-accumulates of the direct form, whatever scratch the operator writes besides.
fn macs(op: &FusedOp, graph: &FusedGraph) -> u64 {
    match op.core {
        Core::Conv(_) => FusedOp { outputs: vec![], ..op.clone() }.macs(&graph.buffers),
        _ => op.macs(&graph.buffers),
    }
}

/// Appends `values` where a binding may begin; where they lie.
fn append<const N: usize>(
    bytes: &mut Vec<u8>,
    values: impl Iterator<Item = [u8; N]>,
) -> Range<usize> {
    bytes.resize(bytes.len().next_multiple_of(BINDING), 0);
    let start = bytes.len();
    values.for_each(|value| bytes.extend(value));
    let len = (bytes.len() - start).next_multiple_of(LEAST).max(LEAST);
    bytes.resize(start + len, 0);
    start..start + len
}
