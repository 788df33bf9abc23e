//! Any ONNX file with one float input, run on the CPU: image encoders, exports under test.

use tract_onnx::prelude::*;

use super::tract::{self, Plan};
use crate::model::typed::guarded;
use crate::model::{OnnxFile, pb};
use crate::{Error, Result};

/// An ONNX file loaded for one input shape. Shared between threads; each runs its own
/// [`RunnerSession`].
#[derive(Debug, Clone)]
pub struct Runner {
    plan: Plan,
    input: Vec<usize>,
    output: usize,
    output_shape: Vec<usize>,
}

impl Runner {
    /// Loads `file` for float32 inputs of exactly `input` shape (for an image encoder
    /// [1, 3, S, S]); `output` names the output to read, `None` takes the first.
    ///
    /// # Errors
    /// When the file has another kind of input, no such output, or the engine cannot run it.
    pub fn new(file: &OnnxFile, input: &[usize], output: Option<&str>) -> Result<Self> {
        let refuse = |problem: String| Error::model(file.path(), problem);
        let inputs = file.inputs()?;
        let [declared] = inputs.as_slice() else {
            return Err(refuse(format!("it has {} inputs, not one image", inputs.len())));
        };
        if !declared.is(pb::tensor_proto::DataType::Float) {
            return Err(refuse(format!("its input {declared} is not float32")));
        }
        let names: Vec<String> = file.outputs()?.into_iter().map(|output| output.name).collect();
        let output = match output {
            None => 0,
            Some(name) => names.iter().position(|known| known == name).ok_or_else(|| {
                refuse(format!("it has no output `{name}`, only {}", names.join(", ")))
            })?,
        };
        let plan = guarded(file.path(), || tract::plan(file.proto(), input))?;
        let output_shape = guarded(file.path(), || tract::output_shape(&plan, output))?;
        Ok(Self { plan, input: input.to_vec(), output, output_shape })
    }

    /// Shape of the output.
    pub fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    /// Shape of the input.
    pub fn input_shape(&self) -> &[usize] {
        &self.input
    }

    /// A session for one thread.
    pub fn session(&self) -> Result<RunnerSession> {
        Ok(RunnerSession {
            state: self.plan.spawn().map_err(tract::failure)?,
            input: self.input.clone(),
            output: self.output,
        })
    }
}

/// One thread's running state of a [`Runner`].
#[derive(Debug)]
pub struct RunnerSession {
    state: TypedSimpleState,
    input: Vec<usize>,
    output: usize,
}

impl RunnerSession {
    /// Runs one input (row-major, of the runner's input shape) and returns the output, row-major.
    ///
    /// # Errors
    /// When `input` has another length, or the engine fails.
    pub fn run(&mut self, input: &[f32]) -> Result<Vec<f32>> {
        let values: usize = self.input.iter().product();
        if input.len() != values {
            return Err(tract::failure(format!(
                "an input has {values} values, this one {}",
                input.len()
            )));
        }
        let tensor = Tensor::from_shape(&self.input, input).map_err(tract::failure)?;
        tract::run(&mut self.state, tensor, self.output)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::testing;

    fn file(proto: pb::ModelProto) -> OnnxFile {
        OnnxFile::from_proto(proto, Path::new("linear.onnx")).unwrap()
    }

    #[test]
    fn runs_a_float_graph() {
        let file = file(testing::tiny_linear(2, 3, &[1.0, 2.0, -1.0, 0.5, 0.0, 1.0]));
        let runner = Runner::new(&file, &[2, 2], None).unwrap();
        assert_eq!(runner.output_shape(), [2, 3]);
        let mut session = runner.session().unwrap();
        let y = session.run(&[1.0, 2.0, 3.0, 0.0]).unwrap();
        assert_eq!(y, [2.0, 2.0, 1.0, 3.0, 6.0, 0.0]);
        assert!(session.run(&[1.0]).is_err());
    }

    #[test]
    fn refuses_other_inputs_and_unknown_outputs() {
        let linear = file(testing::tiny_linear(2, 1, &[1.0, 2.0]));
        let error = Runner::new(&linear, &[1, 2], Some("z")).unwrap_err().to_string();
        assert!(error.contains("no output `z`, only y"), "{error}");
        let predictor = file(testing::tiny_model(&testing::metadata(4, &["A"])));
        let error = Runner::new(&predictor, &[1, 4, 4, 3], None).unwrap_err().to_string();
        assert!(error.contains("not float32"), "{error}");
    }

    #[test]
    fn an_operator_nobody_knows_is_an_error_not_a_panic() {
        let mut proto = testing::tiny_linear(2, 1, &[1.0, 2.0]);
        proto.graph.as_mut().unwrap().node[1].op_type = "Levitate".into();
        let error = Runner::new(&file(proto), &[1, 2], None).unwrap_err().to_string();
        assert!(error.contains("linear.onnx"), "{error}");
    }
}
