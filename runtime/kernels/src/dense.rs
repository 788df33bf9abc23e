use std::ops::Range;

use crate::{Activation, Isa, KernelError, error::check_length};

/// A fully connected layer with its weights prepared: `y = activation(W x + b)`. Immutable: share it between threads.
#[derive(Debug)]
pub struct Dense {
    isa: Isa,
    inputs: usize,
    outputs: usize,
    weights: Vec<f32>,
    bias: Vec<f32>,
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
        let bias = bias.map_or_else(|| vec![0.0; outputs], <[f32]>::to_vec);
        Ok(Self { isa, inputs, outputs, weights: weights.to_vec(), bias })
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
        16
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
        for (x, y) in src.chunks_exact(self.inputs).zip(dst.chunks_exact_mut(outputs.len())) {
            for (y, o) in y.iter_mut().zip(outputs.clone()) {
                let row = &self.weights[o * self.inputs..][..self.inputs];
                *y = activation
                    .apply(self.bias[o] + row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>());
            }
        }
    }
}
