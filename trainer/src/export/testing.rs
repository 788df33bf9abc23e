//! Running small graphs in tests.

use tract_onnx::prelude::{IntoRunnable, RunnableModel, Tensor, TypedFact, TypedOp, tvec};

use super::macs;
use super::onnx::Model;
use crate::diffusion::Array;

/// A graph that tract can run.
pub struct Loaded {
    names: Vec<String>,
    model: std::sync::Arc<RunnableModel<TypedFact, Box<dyn TypedOp>>>,
}

impl Loaded {
    /// Optimises a graph for one tile.
    pub fn new(model: &Model) -> Self {
        let outputs = &model.graph.as_ref().unwrap().output;
        let names = outputs.iter().map(|output| output.name.clone()).collect();
        let typed = macs::typed(model).unwrap();
        Self { names, model: typed.into_optimized().unwrap().into_runnable().unwrap() }
    }

    /// Names and values of the outputs.
    pub fn run(&self, inputs: Vec<Tensor>) -> Vec<(String, Vec<f32>)> {
        let mut values = tvec![];
        values.extend(inputs.into_iter().map(Into::into));
        let outputs = self.model.run(values).unwrap();
        let read =
            |value: &Tensor| value.to_plain_array_view::<f32>().unwrap().iter().copied().collect();
        self.names.iter().cloned().zip(outputs.iter().map(|value| read(value))).collect()
    }
}

/// Values of one index of the first dimension.
pub fn row(array: &Array, index: usize) -> &[f32] {
    let length = array.data.len() / array.shape[0];
    &array.data[index * length..(index + 1) * length]
}

/// Equal within 1e-4 of the largest value.
pub fn assert_close(expected: &[f32], found: &[f32], largest: f32, name: &str) {
    assert_eq!(expected.len(), found.len(), "{name}");
    for (a, b) in expected.iter().zip(found) {
        assert!((a - b).abs() <= 1e-4 * largest, "{name}: {a} and {b}, largest {largest}");
    }
}
