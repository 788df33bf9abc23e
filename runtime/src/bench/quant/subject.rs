//! The model of a cell, whatever kind it is.

use std::path::Path;

use crate::engine::{self, Engine, Normalization, Pixels, Probe, ProbeSession, Session};
use crate::model::{KEY_PREFIX, Model, OnnxFile};
use crate::{Error, Result};

/// A model loaded into an engine.
pub enum Subject {
    /// A DiffBulk predictor.
    Predictor(Box<dyn Engine>),
    /// Another image model.
    Any(Box<Probe>),
}

/// One thread's running state.
pub enum SubjectSession {
    /// Of a DiffBulk predictor.
    Predictor(Box<dyn Session>),
    /// Of another image model.
    Any(Box<ProbeSession>),
}

impl Subject {
    /// Loads the file at `path` into the engine called `engine`, for tiles of `side` pixels.
    ///
    /// # Errors
    /// When it cannot be loaded, or takes other tiles.
    pub fn open(
        path: &Path,
        engine: &str,
        side: usize,
        normalization: Normalization,
    ) -> Result<Self> {
        let file = OnnxFile::open(path)?;
        if file.props().any(|(key, _)| key.starts_with(KEY_PREFIX)) {
            let model = Model::from_file(file)?;
            if model.metadata().tile_px as usize != side {
                return Err(Error::model(
                    path,
                    format!("takes tiles of {} px, not {side}", model.metadata().tile_px),
                ));
            }
            return Ok(Self::Predictor(engine::open(engine, &model)?));
        }
        let pixels = Pixels::of(&file, side, normalization)?;
        Ok(Self::Any(Box::new(Probe::outputs(engine, &file, &pixels)?)))
    }

    /// A session for one thread.
    pub fn session(&self) -> Result<SubjectSession> {
        Ok(match self {
            Self::Predictor(engine) => SubjectSession::Predictor(engine.session()?),
            Self::Any(probe) => SubjectSession::Any(Box::new(probe.session()?)),
        })
    }
}

impl SubjectSession {
    /// The output vector of one tile.
    pub fn run(&mut self, image: &[u8]) -> Result<Vec<f32>> {
        match self {
            Self::Predictor(session) => session.predict(image),
            Self::Any(session) => session
                .run(image)?
                .into_iter()
                .next()
                .ok_or_else(|| Error::Request("the model has no output".into())),
        }
    }
}
