//! The journal: every predicted row on disk as soon as it is known.
//!
//! Memory stays flat and nothing that was computed is lost: rows are appended in tile order to one
//! file beside the outputs, and the outputs are written from it at the end. After a crash or a
//! stop the file is still there, and a run with the same settings continues behind its last whole
//! row. Each frame is `length (u32 LE) | CRC-32 of the payload (u32 LE) | payload`, so a tail that
//! was torn by a kill or a power cut is recognised and cut off. The first frame is the
//! [`Settings`] as JSON, every other one an [`Outcome`]: a row, or a tile that is damaged; or the name
//! of the engine that the rows behind it come from.

mod frames;
mod settings;

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use self::frames::{ENGINE, decode_engine, decode_outcome, encode_outcome};
pub(crate) use self::frames::{decode, encode, finish_frame, read_frame};
pub use self::settings::Settings;
pub(crate) use self::settings::differences;
use super::pipeline::Outcome;
use super::report::EngineShare;
use crate::output::atomic::explain;
use crate::tiling::Tile;
use crate::{Error, Result};

/// First bytes of the file; the last one is the version of the format.
const MAGIC: [u8; 8] = *b"DBROWS\r\x03";

/// A journal open for appending, locked against other processes.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    rows: u64,
    damaged: u64,
    last_index: Option<u64>,
    resumed: u64,
    /// Which engine the rows come from, in their order.
    engines: Vec<EngineShare>,
    /// Reused between rows.
    frame: Vec<u8>,
}

impl Journal {
    /// Path of the journal of outputs called `stem` in `directory`.
    pub fn path_for(directory: &Path, stem: &str) -> PathBuf {
        directory.join(format!(".{stem}.rows.partial"))
    }

    /// Opens the journal at `path`: continues one with the same `settings`, or starts a new one
    /// where there is none or `restart` asks for it.
    ///
    /// # Errors
    /// When another process has it open, it belongs to other settings (the message names them), or
    /// the disk refuses.
    pub fn open(path: &Path, settings: &Settings, restart: bool) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| explain(path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::output(
                    path,
                    "another run is writing to this directory; wait for it or choose another \
                     output directory",
                ));
            }
            // A file system without locks (some network shares) is still usable.
            Err(std::fs::TryLockError::Error(error)) => {
                tracing::warn!("{}: cannot be locked ({error})", path.display());
            }
        }
        let mut journal = Self {
            path: path.to_owned(),
            file,
            rows: 0,
            damaged: 0,
            last_index: None,
            resumed: 0,
            engines: Vec::new(),
            frame: Vec::new(),
        };
        if restart || !journal.recover(settings)? {
            journal.start(settings)?;
        }
        Ok(journal)
    }

    /// Rows in the journal.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Damaged tiles in the journal.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Rows that were there when it was opened.
    pub fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Index of the last tile, predicted or damaged.
    pub fn last_index(&self) -> Option<u64> {
        self.last_index
    }

    /// Which engine the rows come from, in their order: each share is a run of rows.
    pub fn engines(&self) -> &[EngineShare] {
        &self.engines
    }

    /// The rows that follow come from `engine`.
    pub fn rows_of(&mut self, engine: &str) -> Result<()> {
        if self.engines.last().is_some_and(|share| share.engine == engine) {
            return Ok(());
        }
        let mut frame = vec![0; 8];
        frame.extend_from_slice(&ENGINE.to_le_bytes());
        frame.extend_from_slice(engine.as_bytes());
        finish_frame(&mut frame);
        self.write_frame(&frame)?;
        self.engines.push(EngineShare::new(engine));
        Ok(())
    }

    /// Appends what became of a tile; it survives the death of this process from here on.
    pub fn push(&mut self, outcome: &Outcome) -> Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        encode_outcome(outcome, &mut frame);
        let result = self.write_frame(&frame);
        self.frame = frame;
        result?;
        self.count(outcome);
        Ok(())
    }

    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Row(row) => {
                self.rows += 1;
                if let Some(share) = self.engines.last_mut() {
                    share.take(&row.tile.id);
                }
            }
            Outcome::Damaged(_) => self.damaged += 1,
        }
        self.last_index = Some(outcome.tile().index);
    }

    /// Makes the rows survive a power cut too.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|error| explain(&self.path, error))
    }

    /// Calls `each` with every outcome, in the order they were pushed.
    ///
    /// # Errors
    /// The first error of `each`, or when the journal cannot be read back.
    pub fn for_each(&mut self, mut each: impl FnMut(Outcome) -> Result<()>) -> Result<()> {
        let damaged = || Error::output(&self.path, "cannot be read back; run again with --restart");
        let io = |error| explain(&self.path, error);
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        let mut reader = BufReader::with_capacity(1 << 18, &self.file);
        let mut magic = [0; MAGIC.len()];
        reader.read_exact(&mut magic).map_err(io)?;
        let mut payload = Vec::new();
        // The settings.
        read_frame(&mut reader, &mut payload).map_err(io)?.ok_or_else(damaged)?;
        let mut left = self.rows + self.damaged;
        while left > 0 {
            read_frame(&mut reader, &mut payload).map_err(io)?.ok_or_else(damaged)?;
            if decode_engine(&payload).is_some() {
                continue;
            }
            each(decode_outcome(&payload).ok_or_else(damaged)?)?;
            left -= 1;
        }
        self.file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(())
    }

    /// Deletes the journal: its rows are in the outputs now.
    pub fn remove(self) -> Result<()> {
        let Self { path, file, .. } = self;
        // Some systems delete no open file.
        drop(file);
        std::fs::remove_file(&path).map_err(|error| explain(&path, error))
    }

    /// Reads what is there and positions behind the last whole row. False when the file is new
    /// (or never got past its first frame).
    fn recover(&mut self, settings: &Settings) -> Result<bool> {
        let io = |error| explain(&self.path, error);
        let mut reader = BufReader::with_capacity(1 << 18, &self.file);
        let mut magic = Vec::new();
        (&mut reader).take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(io)?;
        if magic.is_empty() {
            return Ok(false);
        }
        if magic[..] != MAGIC[..magic.len()] {
            return Err(Error::output(
                &self.path,
                "is no journal of this program's version; run again with --restart to replace it, \
                 or choose another output directory",
            ));
        }
        if magic.len() < MAGIC.len() {
            return Ok(false);
        }
        let mut payload = Vec::new();
        let Some(first) = read_frame(&mut reader, &mut payload).map_err(io)? else {
            return Ok(false);
        };
        let found: Settings = serde_json::from_slice(&payload).map_err(|error| {
            Error::output(&self.path, format!("its settings cannot be read ({error}); --restart"))
        })?;
        let differences = differences(&found, settings);
        if !differences.is_empty() {
            return Err(Error::output(
                &self.path,
                format!(
                    "an unfinished run with other settings is here ({}); use --restart to discard \
                     it, or choose another output directory",
                    differences.join("; ")
                ),
            ));
        }
        let mut whole = MAGIC.len() as u64 + first;
        let (mut outcomes, mut last_index, mut engines) = ([0, 0], None, Vec::new());
        while let Some(length) = read_frame(&mut reader, &mut payload).map_err(io)? {
            if let Some(engine) = decode_engine(&payload) {
                engines.push(EngineShare::new(engine));
                whole += length;
                continue;
            }
            // Tiles come in their order; anything else is not ours.
            let outcome = match decode_outcome(&payload) {
                Some(found) if last_index.is_none_or(|last| found.tile().index > last) => found,
                _ => break,
            };
            last_index = Some(outcome.tile().index);
            if let (Outcome::Row(row), Some(share)) = (&outcome, engines.last_mut()) {
                share.take(&row.tile.id);
            }
            outcomes[usize::from(matches!(outcome, Outcome::Damaged(_)))] += 1;
            whole += length;
        }
        drop(reader);
        let length = self.file.metadata().map_err(io)?.len();
        if length > whole {
            tracing::info!(
                "{}: cutting {} bytes of a torn row",
                self.path.display(),
                length - whole
            );
        }
        self.file.set_len(whole).map_err(io)?;
        self.file.seek(SeekFrom::Start(whole)).map_err(io)?;
        [self.rows, self.damaged] = outcomes;
        self.resumed = self.rows;
        self.last_index = last_index;
        self.engines = engines;
        Ok(true)
    }

    fn start(&mut self, settings: &Settings) -> Result<()> {
        let io = |error| explain(&self.path, error);
        self.file.set_len(0).map_err(io)?;
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        self.file.write_all(&MAGIC).map_err(io)?;
        // A map of strings always serialises.
        let payload = serde_json::to_vec(settings).unwrap_or_default();
        let mut frame = vec![0; 8];
        frame.extend_from_slice(&payload);
        finish_frame(&mut frame);
        self.write_frame(&frame)
    }

    /// One write call a row: after it, the bytes are the operating system's and a kill of this
    /// process cannot lose them.
    fn write_frame(&mut self, frame: &[u8]) -> Result<()> {
        self.file.write_all(frame).map_err(|error| explain(&self.path, error))
    }
}

impl Outcome {
    /// The tile it is about.
    fn tile(&self) -> &Tile {
        match self {
            Self::Row(row) => &row.tile,
            Self::Damaged(damaged) => &damaged.tile,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::output::Row;
    use crate::predict::pipeline::DamagedTile;

    fn tile(index: u64) -> Tile {
        Tile { index, id: format!("spot {index}"), x: index as f64 * 1.5, y: -2.0, side: 224.0 }
    }

    fn row(index: u64) -> Outcome {
        Outcome::Row(Row {
            tile: tile(index),
            tissue: 0.5,
            confidence: 0.25,
            expression: vec![index as f32, 1.0, f32::MIN_POSITIVE],
        })
    }

    fn damaged(index: u64) -> Outcome {
        Outcome::Damaged(DamagedTile { tile: tile(index), problem: "tile 7: broken".into() })
    }

    fn settings(model: &str) -> Settings {
        Settings::from([("model".into(), model.into()), ("genes".into(), "A,B,C".into())])
    }

    fn rows(journal: &mut Journal) -> Vec<Outcome> {
        let mut rows = vec![];
        journal
            .for_each(|row| {
                rows.push(row);
                Ok(())
            })
            .unwrap();
        rows
    }

    fn write(path: &Path, count: u64) {
        let mut journal = Journal::open(path, &settings("m"), false).unwrap();
        (0..count).for_each(|index| journal.push(&row(index)).unwrap());
    }

    #[test]
    fn rows_come_back_and_the_run_continues() {
        let directory = tempfile::tempdir().unwrap();
        let path = Journal::path_for(directory.path(), "slide");
        write(&path, 3);
        let mut journal = Journal::open(&path, &settings("m"), false).unwrap();
        assert_eq!((journal.rows(), journal.resumed(), journal.last_index()), (3, 3, Some(2)));
        journal.push(&row(9)).unwrap();
        assert_eq!(rows(&mut journal), [row(0), row(1), row(2), row(9)]);
        // Reading back does not disturb appending.
        journal.push(&row(10)).unwrap();
        assert_eq!(rows(&mut journal).len(), 5);
        journal.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn damaged_tiles_are_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        write(&path, 2);
        let mut journal = Journal::open(&path, &settings("m"), false).unwrap();
        journal.push(&damaged(4)).unwrap();
        drop(journal);
        let mut journal = Journal::open(&path, &settings("m"), false).unwrap();
        assert_eq!((journal.rows(), journal.damaged(), journal.last_index()), (2, 1, Some(4)));
        journal.push(&row(5)).unwrap();
        assert_eq!(rows(&mut journal), [row(0), row(1), damaged(4), row(5)]);
    }

    #[test]
    fn engines_are_remembered_with_their_rows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let mut journal = Journal::open(&path, &settings("m"), false).unwrap();
        for (index, engine) in ["wgpu", "wgpu", "cpu"].into_iter().enumerate() {
            journal.rows_of(engine).unwrap();
            journal.push(&row(index as u64)).unwrap();
        }
        let before = journal.engines().to_vec();
        drop(journal);
        let mut journal = Journal::open(&path, &settings("m"), false).unwrap();
        assert_eq!(journal.engines(), before);
        journal.rows_of("cpu").unwrap();
        journal.push(&row(3)).unwrap();
        assert_eq!(rows(&mut journal), [row(0), row(1), row(2), row(3)]);
        let shares: Vec<_> = journal
            .engines()
            .iter()
            .map(|s| (&*s.engine, s.tiles, s.first.as_deref(), s.last.as_deref()))
            .collect();
        let expected = [
            ("wgpu", 2, Some("spot 0"), Some("spot 1")),
            ("cpu", 2, Some("spot 2"), Some("spot 3")),
        ];
        assert_eq!(shares, expected);
    }

    #[test]
    fn a_torn_tail_of_any_length_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        write(&path, 2);
        let two = std::fs::metadata(&path).unwrap().len();
        write(&path, 0);
        let mut journal = Journal::open(&path, &settings("m"), false).unwrap();
        journal.push(&row(2)).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for length in two as usize..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut journal = Journal::open(&path, &settings("m"), false).unwrap();
            assert_eq!(journal.rows(), 2, "cut at {length}");
            journal.push(&row(7)).unwrap();
            assert_eq!(rows(&mut journal), [row(0), row(1), row(7)]);
        }
        // A file cut within its first frame is as good as new.
        for length in 0..20 {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(Journal::open(&path, &settings("m"), false).unwrap().rows(), 0);
        }
    }

    #[test]
    fn other_settings_are_named_and_restart_discards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        write(&path, 2);
        let message = Journal::open(&path, &settings("other"), false).unwrap_err().to_string();
        assert!(message.contains("model was m and is now other"), "{message}");
        assert!(message.contains("--restart"), "{message}");
        assert_eq!(Journal::open(&path, &settings("m"), false).unwrap().rows(), 2);
        assert_eq!(Journal::open(&path, &settings("other"), true).unwrap().rows(), 0);
    }

    #[test]
    fn a_foreign_file_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        std::fs::write(&path, b"my thesis").unwrap();
        assert!(Journal::open(&path, &settings("m"), false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"my thesis");
    }

    #[test]
    fn two_runs_do_not_share_a_journal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let first = Journal::open(&path, &settings("m"), false).unwrap();
        let message = Journal::open(&path, &settings("m"), false).unwrap_err().to_string();
        assert!(message.contains("another run"), "{message}");
        drop(first);
        Journal::open(&path, &settings("m"), false).unwrap();
    }

    proptest! {
        #[test]
        fn any_damage_keeps_a_prefix(at in 0usize..10_000, xor in 1u8..=255) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("j");
            write(&path, 5);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= xor;
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(mut journal) = Journal::open(&path, &settings("m"), false) {
                let rows = rows(&mut journal);
                for (index, read) in rows.iter().enumerate() {
                    prop_assert_eq!(read, &row(index as u64));
                }
            }
        }
    }
}
