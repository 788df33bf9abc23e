//! Any ONNX image model with some of its inner tensors exposed: what calibration, error analysis
//! and comparisons of two graphs look at.

use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{Runnable, State};
use tract_onnx::tract_hir::internal::DimLike;

use super::pixels::Pixels;
use super::{cpu, find, tract};
use crate::model::typed::guarded;
use crate::model::{OnnxFile, pb};
use crate::{Error, Result};

/// A model loaded so that it gives the tensors that were asked for. Shared between threads; each
/// runs its own [`ProbeSession`].
#[derive(Debug, Clone)]
pub struct Probe {
    runnable: Arc<dyn Runnable>,
    pixels: Pixels,
}

impl Probe {
    /// Loads `file` for tiles as `pixels` says. `tensors` are names of values anywhere in the main
    /// graph; they come out in this order, all as float32. tract runs it.
    ///
    /// # Errors
    /// When a tensor does not exist, or tract cannot run the graph.
    pub fn new(file: &OnnxFile, pixels: &Pixels, tensors: &[String]) -> Result<Self> {
        Self::on(tract::NAME, file, pixels, tensors)
    }

    /// The same on the engine called `engine`.
    ///
    /// # Errors
    /// When there is no such engine, and as [`Probe::new`].
    pub fn on(engine: &str, file: &OnnxFile, pixels: &Pixels, tensors: &[String]) -> Result<Self> {
        find(engine)?;
        if ![cpu::NAME, tract::NAME].contains(&engine) {
            return Err(Error::Request(format!(
                "engine {engine} runs DiffBulk models only; {} and {} run any",
                cpu::NAME,
                tract::NAME
            )));
        }
        let mut proto = file.proto().clone();
        let graph =
            proto.graph.as_mut().ok_or_else(|| Error::model(file.path(), "it has no graph"))?;
        for name in tensors {
            let known = graph.node.iter().any(|node| node.output.contains(name))
                || graph.input.iter().any(|input| input.name == *name);
            if !known {
                return Err(Error::model(file.path(), format!("it has no tensor `{name}`")));
            }
        }
        let exposed =
            |name: &String| pb::ValueInfoProto { name: name.clone(), ..Default::default() };
        graph.output = tensors.iter().map(exposed).collect();
        let shape = pixels.shape();
        let runnable = guarded(file.path(), || match engine {
            cpu::NAME => cpu::runnable(&proto, &shape),
            _ => Ok(Box::new(tract::plan(&proto, &shape)?)),
        })?;
        Ok(Self { runnable: runnable.into(), pixels: pixels.clone() })
    }

    /// Loads `file` into `engine` for its own outputs.
    ///
    /// # Errors
    /// As [`Probe::on`].
    pub fn outputs(engine: &str, file: &OnnxFile, pixels: &Pixels) -> Result<Self> {
        let names: Vec<String> = file.outputs()?.into_iter().map(|output| output.name).collect();
        Self::on(engine, file, pixels, &names)
    }

    /// Shape of each tensor for one tile.
    ///
    /// # Errors
    /// When the engine does not know a shape before it runs.
    pub fn shapes(&self) -> Result<Vec<Vec<usize>>> {
        let shape = |index: usize| -> TractResult<Vec<usize>> {
            let shape = &self.runnable.output_fact(index)?.shape;
            Ok(shape.iter().map(DimLike::to_usize).collect::<Result<_, _>>()?)
        };
        (0..self.runnable.output_count()).map(|k| shape(k).map_err(tract::failure)).collect()
    }

    /// A session for one thread.
    pub fn session(&self) -> Result<ProbeSession> {
        let state = self.runnable.spawn().map_err(tract::failure)?;
        Ok(ProbeSession { state, pixels: self.pixels.clone() })
    }
}

/// One thread's running state of a [`Probe`].
#[derive(Debug)]
pub struct ProbeSession {
    state: Box<dyn State>,
    pixels: Pixels,
}

impl ProbeSession {
    /// Runs one tile (row-major HWC RGB bytes); the tensors come out row-major.
    ///
    /// # Errors
    /// When `image` has another size, or the engine fails.
    pub fn run(&mut self, image: &[u8]) -> Result<Vec<Vec<f32>>> {
        let input = self.pixels.tensor(image)?;
        let outputs = self.state.run(tvec!(input.into())).map_err(tract::failure)?;
        outputs.iter().map(|value| floats(value).map_err(tract::failure)).collect()
    }
}

fn floats(tensor: &Tensor) -> TractResult<Vec<f32>> {
    let tensor = tensor.cast_to::<f32>()?;
    Ok(tensor.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::pixels::Normalization;
    use super::*;
    use crate::model::testing;

    #[test]
    fn inner_tensors_come_out_in_the_order_asked_for() {
        let proto = testing::tiny_model(&testing::metadata(4, &["A", "B", "C"]));
        let file = OnnxFile::from_proto(proto, Path::new("tiny.onnx")).unwrap();
        let pixels = Pixels::of(&file, 4, Normalization::default()).unwrap();
        let wanted = ["pooled", "nchw", "expression"].map(String::from);
        for engine in ["tract", "cpu"] {
            let probe = Probe::on(engine, &file, &pixels, &wanted).unwrap();
            assert_eq!(probe.shapes().unwrap()[1], [1, 3, 4, 4]);
            let mut session = probe.session().unwrap();
            let tensors = session.run(&[51; 48]).unwrap();
            assert_eq!(tensors.iter().map(Vec::len).collect::<Vec<_>>(), [3, 48, 3]);
            assert!(tensors[1].iter().all(|&value| value == 51.0));
            assert_eq!(tensors[0], tensors[2]);
            assert!(session.run(&[0; 5]).is_err());
        }
        let error = Probe::new(&file, &pixels, &["ghost".into()]).unwrap_err().to_string();
        assert!(error.contains("no tensor `ghost`"), "{error}");
        for other in ["abacus", "auto"] {
            assert!(Probe::on(other, &file, &pixels, &wanted).is_err());
        }
    }

    #[test]
    fn a_model_for_other_tiles_is_refused() {
        let proto = testing::tiny_model(&testing::metadata(4, &["A"]));
        let file = OnnxFile::from_proto(proto, Path::new("tiny.onnx")).unwrap();
        let error = Pixels::of(&file, 8, Normalization::default()).unwrap_err().to_string();
        assert!(error.contains("8 x 8"), "{error}");
    }
}
