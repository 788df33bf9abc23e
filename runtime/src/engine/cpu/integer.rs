//! Integer convolutions: activations are rounded to uint8 on reading, multiplied with int8 weights
//! and summed in int32.

use std::collections::HashMap;
use std::ops::Range;

use diffbulk_kernels::int8::{self, Output, Requantize};
use diffbulk_kernels::{ConvSpec, Isa, KernelError, SourceSpec};
use tract_onnx::prelude::Datum;

use super::arena::{Arena, Place};
use crate::engine::fused::{
    Bias, BufferId, Core, FusedGraph, FusedOp, Grid, IntegerConv, Step, Tables, tables,
};

/// Output values computed before they are written: few enough to stay in the second cache.
const GROUP: usize = 1 << 15;

/// The tables of an integer convolution where they are all it does.
fn only_tables(op: &FusedOp) -> Option<Tables> {
    tables(&op.steps).filter(|tables| tables.used == op.steps.len())
}

/// Turns maps into bytes that integer convolutions of one grid alone read and another makes: what is stored is what
/// the readers would round it to.
///
/// Gives those maps and their readers' grids.
pub(super) fn keep_bytes(graph: &mut FusedGraph) -> HashMap<BufferId, Grid> {
    let mut made = vec![];
    let mut grids: HashMap<BufferId, Option<Grid>> = HashMap::new();
    for op in &graph.ops {
        let grid = match &op.core {
            Core::IntegerConv(conv) => {
                let stores = only_tables(op).map_or(vec![], |tables| tables.stores);
                made.extend(stores.into_iter().map(|(id, _)| id));
                Some(conv.input)
            }
            _ => None,
        };
        let inputs: Vec<BufferId> = op.inputs.iter().map(|input| input.buffer).collect();
        for id in op.reads() {
            let grid = grid.filter(|_| inputs.contains(&id));
            let known = grids.entry(id).or_insert(grid);
            *known = known.filter(|known| Some(*known) == grid);
        }
        // An operand of a step is read as it is.
        for step in &op.steps {
            if let Step::Add { input, .. } | Step::Multiply(input) = step {
                grids.insert(input.buffer, None);
            }
        }
    }
    let mut kept = HashMap::new();
    for id in made {
        if let Some(Some(grid)) = grids.get(&id)
            && !graph.outputs.contains(&id)
        {
            graph.buffers[id].element = u8::datum_type();
            kept.insert(id, *grid);
        }
    }
    kept
}

/// What a byte is stored as.
#[derive(Debug)]
pub(super) enum Table {
    Reals(Box<[f32; 256]>),
    /// As the reals of the grid they are rounded to.
    Grid(Grid),
    /// None where it is stored as it is.
    Bytes(Option<Box<[u8; 256]>>),
}

/// A map as an integer convolution reads it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) place: Place,
    /// Its elements are the bytes themselves, not reals.
    pub(super) bytes: bool,
    /// Height, width and channels of the buffer.
    pub(super) dims: [usize; 3],
    pub(super) upsample: usize,
}

/// What becomes of the sums.
#[derive(Debug)]
pub(super) enum Finish {
    /// Bytes, and a table for every place.
    Bytes { requantize: Requantize, stores: Vec<(Place, Table)> },
    /// Reals that are rounded to bytes of a grid, and a table for every place: where the bias is no integer.
    Rounded { factors: Vec<f32>, bias: Vec<f32>, grid: Grid, stores: Vec<(Place, Table)> },
    /// Reals, for the float epilogue.
    Reals { factors: Vec<f32>, bias: Option<Vec<f32>> },
}

impl Table {
    /// Of bytes of the grid `own`: what is stored as `reals`, or as what a reader rounds them to.
    fn new(reals: Box<[f32; 256]>, own: Grid, reader: Option<Grid>) -> Self {
        let Some(grid) = reader else {
            let plain = reals.iter().enumerate().all(|(q, real)| *real == own.real(q as u8));
            return if plain { Self::Grid(own) } else { Self::Reals(reals) };
        };
        let bytes: [u8; 256] = std::array::from_fn(|q| grid.index(reals[q]));
        let same = bytes.iter().enumerate().all(|(q, byte)| q == usize::from(*byte));
        Self::Bytes((!same).then(|| Box::new(bytes)))
    }

    /// # Safety
    /// As [`run`](super::run::run), and the buffer at `place` is of the table's type.
    unsafe fn store(&self, bytes: &[u8], arena: &Arena, place: Place, range: Range<usize>) {
        match self {
            Self::Reals(table) => {
                // SAFETY: the caller's promise.
                let to = unsafe { arena.write::<f32>(place, range) };
                for (to, &byte) in to.iter_mut().zip(bytes) {
                    *to = table[usize::from(byte)];
                }
            }
            Self::Grid(Grid { scale, zero_point }) => {
                // SAFETY: the caller's promise.
                let to = unsafe { arena.write::<f32>(place, range) };
                int8::dequantize(bytes, *scale, *zero_point, to);
            }
            Self::Bytes(table) => {
                // SAFETY: the caller's promise.
                let to = unsafe { arena.write::<u8>(place, range) };
                match table {
                    None => to.copy_from_slice(bytes),
                    Some(table) => int8::look_up(table, bytes, to),
                }
            }
        }
    }
}

/// An integer convolution that is ready to run.
#[derive(Debug)]
pub(super) struct Ready {
    kernel: int8::Conv2d,
    /// What the sums of each digit of the weights are multiplied with. Where there are several, the kernel's output
    /// channels are those of the first digit, then those of the next.
    powers: Vec<f32>,
    sources: Vec<Source>,
    grid: Grid,
    pub(super) finish: Finish,
}

impl Ready {
    /// Prepares `conv` for `sources`; `place` tells where buffers lie.
    pub(super) fn new(
        isa: Isa,
        op: &FusedOp,
        conv: &IntegerConv,
        sources: Vec<Source>,
        place: impl Fn(BufferId) -> Place,
        reader: impl Fn(BufferId) -> Option<Grid>,
    ) -> Result<Self, KernelError> {
        let [height, width, _] = sources[0].dims;
        let (up, geometry) = (sources[0].upsample, &conv.conv);
        let padding = geometry.padding;
        let spec = ConvSpec {
            sources: vec![SourceSpec::new(geometry.channels)],
            height: height * up,
            width: width * up,
            out_channels: geometry.outputs,
            kernel: geometry.kernel,
            stride: geometry.stride,
            dilation: geometry.dilation,
            padding: [padding.top, padding.left, padding.bottom, padding.right],
            depthwise: geometry.groups > 1,
        };
        let products = conv.products();
        let (exact, real) = match conv.bias(&op.steps) {
            Bias::None => (None, None),
            Bias::Integers(bias) => (Some(bias), None),
            Bias::Reals(bias) => (None, Some(bias)),
        };
        let finish = match only_tables(op) {
            Some(Tables { grid, stores, .. }) => {
                let stored = |(id, reals)| (place(id), Table::new(reals, grid, reader(id)));
                let stores = stores.into_iter().map(stored).collect();
                let real = match real {
                    None if !conv.digits.is_empty() => Some(vec![0.0; geometry.outputs]),
                    real => real,
                };
                match real {
                    Some(bias) => Finish::Rounded { factors: products, bias, grid, stores },
                    None => {
                        let factors = conv.factors(grid);
                        let zero_point = grid.zero_point;
                        let requantize = Requantize { factors, zero_point, table: None };
                        Finish::Bytes { requantize, stores }
                    }
                }
            }
            None => Finish::Reals { factors: products, bias: real },
        };
        let zero = conv.input.zero_point;
        let further = conv.digits.iter().flat_map(|digit| digit.iter());
        let digits: Vec<i8> = conv.integers.iter().chain(further).copied().collect();
        let powers = conv.powers();
        let spec = ConvSpec { out_channels: geometry.outputs * powers.len(), ..spec };
        let kernel = int8::Conv2d::new(isa, &spec, zero, &digits, exact.as_deref())?;
        Ok(Self { kernel, powers, sources, grid: conv.input, finish })
    }

    /// Channels of the output.
    fn channels(&self) -> usize {
        self.kernel.spec().out_channels / self.powers.len()
    }

    /// Rows of the output.
    pub(super) fn rows(&self) -> usize {
        self.kernel.spec().out_height()
    }

    /// Rows computed together.
    fn group(&self) -> usize {
        let spec = self.kernel.spec();
        (GROUP / (spec.out_width() * spec.out_channels)).max(1)
    }

    /// Scratch: sums (and those of a digit), reals, bytes of the map, bytes of the results and the kernel's window.
    fn sizes(&self) -> [usize; 4] {
        let spec = self.kernel.spec();
        // Results of a group, or a row of a source that is being read.
        let row = self.sources.iter().map(|source| source.dims[1] * source.dims[2]).max();
        let results = (self.group() * spec.out_width() * spec.out_channels).max(row.unwrap_or(0));
        let window = self.kernel.scratch_len(self.group());
        let digits = if self.powers.len() == 1 { 0 } else { results };
        [
            self.kernel.sums_len() + digits,
            results,
            spec.source_len(&spec.sources[0]),
            results + window,
        ]
    }

    /// Floats of scratch that a thread needs.
    pub(super) fn scratch_len(&self) -> usize {
        let [sums, reals, map, bytes] = self.sizes();
        sums + reals + (map + bytes).div_ceil(4)
    }

    /// Computes output rows `rows`; `finish` is given each group's reals and its rows where there are no
    /// tables.
    ///
    /// # Safety
    /// As [`run`](super::run::run).
    pub(super) unsafe fn run(
        &self,
        arena: &Arena,
        scratch: &mut [f32],
        rows: Range<usize>,
        mut finish: impl FnMut(&[f32], Range<usize>),
    ) {
        let spec = self.kernel.spec();
        let [sums_len, reals_len, map_len, _] = self.sizes();
        let (sums, rest) = scratch.split_at_mut(sums_len);
        let (reals, rest) = rest.split_at_mut(reals_len);
        // SAFETY: int32 and bytes may hold any bits and are aligned wherever float32 is; the slices are
        // disjoint parts of the scratch.
        let (sums, bytes) = unsafe {
            let sums = std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast::<i32>(), sums.len());
            let bytes = rest.as_mut_ptr().cast::<u8>();
            (sums, std::slice::from_raw_parts_mut(bytes, rest.len() * 4))
        };
        let (map, bytes) = bytes.split_at_mut(map_len);
        let (out, window) = bytes.split_at_mut(reals_len);
        let whole = match self.sources[..] {
            // Read where it lies.
            // SAFETY: the caller's promise.
            [Source { place, bytes: true, upsample: 1, .. }] => unsafe { arena.read::<u8>(place) },
            _ => {
                // SAFETY: the caller's promise.
                unsafe { self.read(arena, map, out, &rows) };
                &*map
            }
        };
        let line = spec.out_width() * self.channels();
        for start in rows.clone().step_by(self.group()) {
            let part = start..(start + self.group()).min(rows.end);
            let values = part.len() * line;
            match &self.finish {
                Finish::Bytes { requantize, stores } => {
                    let to = &mut out[..values];
                    let mut output = Output::Bytes { to: &mut *to, requantize };
                    self.kernel.run(whole, &mut output, window, sums, part.clone());
                    let range = part.start * line..part.end * line;
                    for (place, table) in stores {
                        // SAFETY: the caller's promise; the table is of the buffer's type.
                        unsafe { table.store(to, arena, *place, range.clone()) };
                    }
                }
                Finish::Rounded { factors, bias, grid, stores } => {
                    let reals = &mut reals[..values];
                    self.reals(whole, reals, factors, window, sums, part.clone());
                    for pixel in reals.chunks_exact_mut(bias.len()) {
                        pixel.iter_mut().zip(bias).for_each(|(to, bias)| *to += bias);
                    }
                    let to = &mut out[..values];
                    int8::quantize(reals, grid.scale, grid.zero_point, to);
                    let range = part.start * line..part.end * line;
                    for (place, table) in stores {
                        // SAFETY: the caller's promise; the table is of the buffer's type.
                        unsafe { table.store(to, arena, *place, range.clone()) };
                    }
                }
                Finish::Reals { factors, bias } => {
                    let to = &mut reals[..values];
                    self.reals(whole, to, factors, window, sums, part.clone());
                    if let Some(bias) = bias {
                        for pixel in to.chunks_exact_mut(bias.len()) {
                            pixel.iter_mut().zip(bias).for_each(|(to, bias)| *to += bias);
                        }
                    }
                    finish(to, part);
                }
            }
        }
    }

    /// Sums of output rows `rows` as reals, times `factors`.
    fn reals(
        &self,
        source: &[u8],
        to: &mut [f32],
        factors: &[f32],
        window: &mut [u8],
        sums: &mut [i32],
        rows: Range<usize>,
    ) {
        if self.powers.len() == 1 {
            let mut output = Output::Reals { to, factors };
            return self.kernel.run(source, &mut output, window, sums, rows);
        }
        let (sums, digits) = sums.split_at_mut(self.kernel.sums_len());
        let digits = &mut digits[..to.len() * self.powers.len()];
        self.kernel.run(source, &mut Output::Sums(&mut *digits), window, sums, rows);
        let channels = factors.len();
        for (to, sums) in
            to.chunks_exact_mut(channels).zip(digits.chunks_exact(channels * self.powers.len()))
        {
            to.fill(0.0);
            for (sums, power) in sums.chunks_exact(channels).zip(&self.powers) {
                to.iter_mut().zip(sums).for_each(|(to, sum)| *to += *sum as f32 * power);
            }
            to.iter_mut().zip(factors).for_each(|(to, factor)| *to *= factor);
        }
    }

    /// Rounds what output rows `rows` read to bytes, in `map`.
    ///
    /// # Safety
    /// As [`run`](super::run::run).
    unsafe fn read(&self, arena: &Arena, map: &mut [u8], rounded: &mut [u8], rows: &Range<usize>) {
        let spec = self.kernel.spec();
        let channels = spec.in_channels();
        let first = (rows.start * spec.stride[0]).saturating_sub(spec.padding[0]);
        let reach = (spec.kernel[0] - 1) * spec.dilation[0] + 1;
        let last = (rows.end.saturating_sub(1) * spec.stride[0] + reach)
            .saturating_sub(spec.padding[0])
            .min(spec.height);
        let line = spec.width * channels;
        let Grid { scale, zero_point } = self.grid;
        let mut offset = 0;
        for source in &self.sources {
            let [_, width, own] = source.dims;
            for y in first..last {
                let row =
                    y / source.upsample * width * own..(y / source.upsample + 1) * width * own;
                let to = &mut map[y * line..(y + 1) * line];
                let alone = own == channels && source.upsample == 1;
                let bytes = if source.bytes {
                    // SAFETY: the caller's promise.
                    unsafe { arena.read_part::<u8>(source.place, row) }
                } else {
                    // SAFETY: the caller's promise.
                    let reals = unsafe { arena.read_part::<f32>(source.place, row) };
                    if alone {
                        int8::quantize(reals, scale, zero_point, to);
                        continue;
                    }
                    let rounded = &mut rounded[..reals.len()];
                    int8::quantize(reals, scale, zero_point, rounded);
                    &*rounded
                };
                if alone {
                    to.copy_from_slice(bytes);
                    continue;
                }
                for (x, to) in to.chunks_exact_mut(channels).enumerate() {
                    let from = &bytes[x / source.upsample * own..][..own];
                    to[offset..offset + own].copy_from_slice(from);
                }
            }
            offset += own;
        }
    }
}
