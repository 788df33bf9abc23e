//! The one error type of the runtime. Every message names the thing, what is wrong with it and
//! what to do about it.

use std::path::{Path, PathBuf};

/// Result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, split by who is to blame: the slide, the model, the request, or the system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The slide file cannot be read as a slide.
    #[error("slide {path}: {problem}")]
    Slide {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Part of a slide cannot be decoded; the rest may be.
    #[error("slide {path}: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part, what is wrong and what to do.
        problem: String,
    },
    /// The model file cannot be used.
    #[error("model {path}: {problem}")]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The request makes no sense for this slide or model.
    #[error("{0}")]
    Request(String),
    /// The engine failed while running.
    #[error("engine {engine}: {problem}")]
    Engine {
        /// Name of the engine.
        engine: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// An AnnData file cannot be read or written.
    #[error("h5ad {path}: {problem}")]
    AnnData {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// An output could not be written.
    #[error("output {path}: {problem}")]
    Output {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A run failed after some tiles, whose rows are kept.
    #[error(
        "stopped after {rows} tiles, which are kept in {journal}; once the cause is gone, run the \
         same command again to continue"
    )]
    Kept {
        /// Tiles that are kept.
        rows: u64,
        /// The file they are kept in.
        journal: PathBuf,
        /// Why it stopped.
        source: Box<Error>,
    },
    /// The user asked to stop.
    #[error("stopped on request; run the same command again to resume")]
    Interrupted,
}

impl Error {
    /// A slide error for `path`.
    pub fn slide(path: &Path, problem: impl Into<String>) -> Self {
        Self::Slide { path: path.to_owned(), problem: problem.into() }
    }

    /// A model error for `path`.
    pub fn model(path: &Path, problem: impl Into<String>) -> Self {
        Self::Model { path: path.to_owned(), problem: problem.into() }
    }

    /// An output error for `path`.
    pub fn output(path: &Path, problem: impl Into<String>) -> Self {
        Self::Output { path: path.to_owned(), problem: problem.into() }
    }

    /// An input/output error that names its file: `map_err(Error::io(path))`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
