#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Dense::run checked")]

use std::ops::Range;

use crate::{
    Activation, Isa, KernelError,
    aligned::Aligned,
    error::check_length,
    math::VectorActivation,
    matrix::{self, MOST_COLUMNS, MOST_ROWS, Panel, Strip, group_start, groups},
    simd::{self, Kernel, Simd},
};

/// A fully connected layer with its weights prepared: `y = activation(W x + b)`. Immutable: share it between threads.
#[derive(Debug)]
pub struct Dense {
    isa: Isa,
    inputs: usize,
    outputs: usize,
    panels: Vec<Panel>,
    /// `[panel][input][columns * lanes]`.
    weights: Aligned,
    bias: Aligned,
}

impl Dense {
    /// Prepares weights `[outputs, inputs]` and an optional bias `[outputs]`.
    ///
    /// # Errors
    /// Lengths that do not fit, or an instruction set this machine lacks.
    pub fn new(
        isa: Isa,
        inputs: usize,
        outputs: usize,
        weights: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Self, KernelError> {
        let isa = isa.require()?;
        if inputs == 0 || outputs == 0 {
            return Err(KernelError::Shape(format!(
                "dense layer of {inputs} inputs and {outputs} outputs; none may be 0"
            )));
        }
        check_length("dense weights", weights.len(), inputs * outputs)?;
        if let Some(bias) = bias {
            check_length("dense bias", bias.len(), outputs)?;
        }
        let (lanes, _, columns) = simd::block(isa);
        // Equal panels, so that outputs split over threads at their bounds.
        let width = lanes * columns;
        let panels: Vec<_> = (0..outputs)
            .step_by(width)
            .map(|start| {
                let channels = width.min(outputs - start);
                Panel { start, channels, columns: channels.div_ceil(lanes) }
            })
            .collect();
        let mut packed = Aligned::zeroed(matrix::packed_len(&panels, lanes, inputs));
        matrix::pack(&panels, lanes, inputs, |k, n| weights[n * inputs + k], packed.as_mut_slice());
        let bias = matrix::pad_bias(&panels, lanes, bias.unwrap_or(&[]));
        Ok(Self { isa, inputs, outputs, panels, weights: packed, bias })
    }

    /// The instruction set it was prepared for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Inputs a row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Outputs a row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Multiply-adds a row.
    pub fn macs(&self) -> u64 {
        self.inputs as u64 * self.outputs as u64
    }

    /// Bytes of prepared weights.
    pub fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len()) * size_of::<f32>()
    }

    /// Split points of the outputs that waste no work are multiples of this many.
    pub fn output_unit(&self) -> usize {
        let (lanes, _, columns) = simd::block(self.isa);
        lanes * columns
    }

    /// Computes outputs `outputs` of every row of `src`, `[rows, inputs]`, into `dst`, `[rows, outputs.len()]`.
    ///
    /// # Panics
    /// A slice that does not fit the shape.
    pub fn run(&self, src: &[f32], activation: Activation, dst: &mut [f32], outputs: Range<usize>) {
        assert!(src.len().is_multiple_of(self.inputs), "dense input: not whole rows");
        assert!(
            outputs.start <= outputs.end && outputs.end <= self.outputs,
            "outputs {outputs:?} of {}",
            self.outputs
        );
        let rows = src.len() / self.inputs;
        assert_eq!(dst.len(), rows * outputs.len(), "dense output");
        if dst.is_empty() {
            return;
        }
        let call = Call {
            dense: self,
            src: src.as_ptr(),
            rows,
            activation: activation.into(),
            dst: dst.as_mut_ptr(),
            outputs,
        };
        // SAFETY: source, destination and outputs were checked against the shape.
        unsafe { simd::dispatch(self.isa, call) };
    }
}

struct Call<'a> {
    dense: &'a Dense,
    src: *const f32,
    rows: usize,
    activation: VectorActivation,
    dst: *mut f32,
    outputs: Range<usize>,
}

impl Kernel for Call<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let dense = self.dense;
        let count = groups(self.rows, S::ROWS);
        // With room for a vector that begins near the end.
        let mut tile = [0.0f32; MOST_ROWS * MOST_COLUMNS + 16];
        let mut weights = dense.weights.as_ptr();
        for panel in &dense.panels {
            let width = panel.columns * S::LANES;
            let from = self.outputs.start.max(panel.start);
            let to = self.outputs.end.min(panel.start + panel.channels);
            for i in (0..count).take_while(|_| from < to) {
                let (first, end) =
                    (group_start(self.rows, count, i), group_start(self.rows, count, i + 1));
                let mut a = [std::ptr::null(); MOST_ROWS];
                for (r, a) in a.iter_mut().enumerate().take(end - first) {
                    *a = self.src.add((first + r) * dense.inputs);
                }
                Strip {
                    rows: end - first,
                    columns: panel.columns,
                    a: a.as_ptr(),
                    row_stride: MOST_ROWS,
                    k: &dense.inputs,
                    segments: 1,
                    b: weights,
                    bias: dense.bias.as_ptr().add(panel.start),
                    clip: None,
                    out: tile.as_mut_ptr(),
                    out_stride: width,
                }
                .compute::<S>();
                for r in 0..end - first {
                    let to_row = self.dst.add((first + r) * self.outputs.len());
                    for o in (from..to).step_by(S::LANES) {
                        let n = S::LANES.min(to - o);
                        let v = S::load(tile.as_ptr().add(r * width + o - panel.start));
                        S::store_first(
                            to_row.add(o - self.outputs.start),
                            n,
                            self.activation.apply::<S>(v),
                        );
                    }
                }
            }
            weights = weights.add(dense.inputs * width);
        }
    }
}
