//! The one error type of the trainer. Every message names the thing, what is wrong with it and
//! what to do about it.

use std::path::{Path, PathBuf};

/// Result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while preparing, training, evaluating or exporting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A data file or directory cannot be used.
    #[error("{path}: {problem}")]
    Data {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A checkpoint, head or model file cannot be used.
    #[error("model {path}: {problem}")]
    Model {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Request(String),
    /// A check of numbers failed.
    #[error("{0}")]
    Check(String),
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] diffbulk::Error),
    /// The user asked to stop.
    #[error("stopped on request; run the same command again to resume")]
    Interrupted,
}

impl Error {
    /// A data error for `path`.
    pub fn data(path: &Path, problem: impl Into<String>) -> Self {
        Self::Data { path: path.to_owned(), problem: problem.into() }
    }

    /// A model error for `path`.
    pub fn model(path: &Path, problem: impl Into<String>) -> Self {
        Self::Model { path: path.to_owned(), problem: problem.into() }
    }

    /// An input/output error that names its file: `map_err(Error::io(path))`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
