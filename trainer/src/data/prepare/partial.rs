//! A directory that appears under its final name only when it is whole.

use std::path::{Path, PathBuf};

use super::cut;
use crate::{Error, Result};

/// A directory in the making beside its final place. Dropped without [`Partial::commit`], it is
/// removed; after a kill it stays under its `.partial` name, and the next run keeps what was
/// [`cut`] of it.
pub(super) struct Partial {
    partial: PathBuf,
    target: PathBuf,
    overwrite: bool,
    done: bool,
}

impl Partial {
    /// Starts the directory that will be at `target`.
    pub(super) fn create(target: &Path, overwrite: bool) -> Result<Self> {
        if target.exists() {
            if !overwrite {
                return Err(Error::data(
                    target,
                    "exists already; give --overwrite to replace it, or another --output",
                ));
            }
            // Only what this program made may be deleted.
            let empty = std::fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
            if !empty && !target.join(crate::data::manifest::FILE).is_file() {
                return Err(Error::data(
                    target,
                    "is not a paired dataset, so it is not replaced; give another --output",
                ));
            }
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Error::Request("--output needs the name of a directory to make".into()));
        }
        name.push(".partial");
        let partial = target.with_file_name(name);
        if partial.exists() {
            keep_cut(&partial)?;
        }
        std::fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
        Ok(Self { partial, target: target.to_owned(), overwrite, done: false })
    }

    /// Where to write until [`Partial::commit`].
    pub(super) fn path(&self) -> &Path {
        &self.partial
    }

    /// Gives the directory its final name.
    pub(super) fn commit(mut self) -> Result<()> {
        let cut = self.partial.join(cut::FOLDER);
        if cut.exists() {
            std::fs::remove_dir_all(&cut).map_err(Error::io(&cut))?;
        }
        if self.overwrite && self.target.exists() {
            std::fs::remove_dir_all(&self.target).map_err(Error::io(&self.target))?;
        }
        std::fs::rename(&self.partial, &self.target).map_err(Error::io(&self.target))?;
        self.done = true;
        Ok(())
    }
}

/// Removes everything from a directory in the making but what was cut and the overviews.
fn keep_cut(partial: &Path) -> Result<()> {
    let entries = std::fs::read_dir(partial).map_err(Error::io(partial))?;
    for entry in entries {
        let entry = entry.map_err(Error::io(partial))?;
        let path = entry.path();
        if [cut::FOLDER, cut::OVERVIEWS].iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        let kind = entry.file_type().map_err(Error::io(&path))?;
        if kind.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }
            .map_err(Error::io(&path))?;
    }
    Ok(())
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            // Nothing more can be done about a failure here; the name says that it is not whole.
            let _ = std::fs::remove_dir_all(&self.partial);
        }
    }
}
