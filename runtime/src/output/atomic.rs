//! Files that appear under their final name only when whole.
//!
//! Everything is written to `<name>.partial` in the same directory, synced and then renamed, so
//! that a reader never sees half a file and a crash leaves at most a `.partial` that the next run
//! overwrites.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Suffix of a file that is still being written.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// A file being written beside its final place. [`AtomicFile::commit`] gives it its name; dropping
/// it without that removes it.
#[derive(Debug)]
pub struct AtomicFile {
    writer: Option<BufWriter<File>>,
    partial: PathBuf,
    path: PathBuf,
}

impl AtomicFile {
    /// Starts the file that will be at `path`, creating its directory where needed.
    pub fn create(path: &Path) -> Result<Self> {
        let partial = reserve(path)?;
        let file = File::create(&partial).map_err(|e| explain(&partial, e))?;
        Ok(Self {
            writer: Some(BufWriter::with_capacity(1 << 16, file)),
            partial,
            path: path.to_owned(),
        })
    }

    /// Where the bytes are until [`AtomicFile::commit`].
    pub fn partial_path(&self) -> &Path {
        &self.partial
    }

    /// The final name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `bytes`, naming the file in the error.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|e| explain(&self.path, e))
    }

    /// Flushes to the disk and gives the file its final name.
    pub fn commit(mut self) -> Result<PathBuf> {
        if let Some(mut writer) = self.writer.take() {
            writer.flush().map_err(|e| explain(&self.path, e))?;
            writer.get_ref().sync_all().map_err(|e| explain(&self.path, e))?;
        }
        publish(&self.partial, &self.path)?;
        Ok(self.path.clone())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.writer {
            Some(writer) => writer.write(bytes),
            None => Err(io::Error::other("the file is already complete")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // Close first: an open file cannot be removed everywhere. After a commit the partial name
        // no longer exists and there is nothing to remove.
        if let Some(writer) = self.writer.take() {
            drop(writer.into_parts());
        }
        let _ = fs::remove_file(&self.partial);
    }
}

/// A name in the directory of `path` for a writer that opens files itself. The file (if any) is
/// removed on drop unless [`PartialPath::commit`] renamed it.
#[derive(Debug)]
pub struct PartialPath {
    partial: PathBuf,
    path: PathBuf,
}

impl PartialPath {
    /// Reserves `<path>.partial`, creating the directory where needed.
    pub fn reserve(path: &Path) -> Result<Self> {
        Ok(Self { partial: reserve(path)?, path: path.to_owned() })
    }

    /// Where to write.
    pub fn partial_path(&self) -> &Path {
        &self.partial
    }

    /// Syncs the finished file and gives it its final name.
    pub fn commit(self) -> Result<PathBuf> {
        File::options()
            .write(true)
            .open(&self.partial)
            .and_then(|file| file.sync_all())
            .map_err(|e| explain(&self.path, e))?;
        publish(&self.partial, &self.path)?;
        Ok(self.path.clone())
    }
}

impl Drop for PartialPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.partial);
    }
}

/// Writes a whole file atomically.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.put(bytes)?;
    file.commit().map(drop)
}

/// An input/output error with the path and, where the cause is known, what to do.
pub fn explain(path: &Path, error: io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full; free space there or choose another output directory"
        }
        io::ErrorKind::PermissionDenied => {
            "no permission to write here; choose another output directory or change its permissions"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "the file system is read-only; choose another output directory"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a file stands where a directory is needed; choose another output directory"
        }
        io::ErrorKind::IsADirectory => {
            "a directory stands where the file goes; remove it or choose another output directory"
        }
        _ => return Error::Io { path: path.to_owned(), source: error },
    };
    Error::output(path, format!("{remedy} ({error})"))
}

/// Like [`explain`] for an error of a file format's library, which may hide an input/output error
/// in its chain.
pub fn explain_any(path: &Path, error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            let copy = match io.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(io.kind(), io.to_string()),
            };
            return explain(path, copy);
        }
        cause = current.source();
    }
    Error::output(path, error.to_string())
}

fn reserve(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::output(path, "is not a file name; give a name inside a directory"));
    };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(|e| explain(directory, e))?;
    }
    let mut name = name.to_owned();
    name.push(PARTIAL_SUFFIX);
    Ok(path.with_file_name(name))
}

fn publish(partial: &Path, path: &Path) -> Result<()> {
    fs::rename(partial, path).map_err(|e| explain(path, e))?;
    // The rename itself must reach the disk too; systems that cannot sync a directory say so and
    // lose only durability, not wholeness.
    #[cfg(unix)]
    {
        let directory = path.parent().filter(|d| !d.as_os_str().is_empty());
        if let Ok(handle) = File::open(directory.unwrap_or(Path::new("."))) {
            let _ = handle.sync_all();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_only_when_committed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/out.txt");
        let mut file = AtomicFile::create(&path).unwrap();
        file.put(b"whole").unwrap();
        assert!(!path.exists());
        assert!(file.partial_path().exists());
        assert_eq!(file.commit().unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn dropping_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.txt");
        write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.put(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        drop(PartialPath::reserve(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        write(&file, b"").unwrap();
        let message = AtomicFile::create(&file.join("out.txt")).unwrap_err().to_string();
        assert!(message.contains("file") && message.contains("choose another"), "{message}");
        let taken = directory.path().join("taken");
        fs::create_dir(&taken).unwrap();
        let message = write(&taken, b"x").unwrap_err().to_string();
        assert!(message.contains("taken") && message.contains("directory"), "{message}");
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let path = Path::new("out/table.csv");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let message = explain(path, full()).to_string();
        assert!(message.contains("table.csv") && message.contains("free space"), "{message}");
        let wrapped: Box<dyn std::error::Error + Send + Sync> =
            Box::new(io::Error::other(Box::new(full())));
        let message = explain_any(path, wrapped).to_string();
        assert!(message.contains("table.csv"), "{message}");
    }
}
