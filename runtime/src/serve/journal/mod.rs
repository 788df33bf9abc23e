//! A scan's journal: every result and every decision on disk before anybody is told.
//!
//! Like `predict`'s journal (same frames, same rows, same settings), but tiles come in the order
//! the stage drives, and a tile can come several times. What a killed or restarted daemon finds
//! here is all it needs to go on: a shot that was predicted is never predicted again, and its
//! result is told again to whoever asks again.

mod index;

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use self::index::Index;
use crate::output::Row;
use crate::output::atomic::explain;
use crate::predict::journal::{Settings, decode, differences, encode, finish_frame, read_frame};
use crate::{Error, Result};

/// First bytes of the file; the last one is the version of the format.
const MAGIC: [u8; 8] = *b"DBSCAN\r\x02";

const KIND_ROW: u8 = 1;
const KIND_DECISION: u8 = 2;

/// One exposure: tile (its index in the whole grid) and attempt.
pub(super) type ShotKey = (u64, u8);

/// One predicted exposure.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// Which exposure of the tile.
    pub(super) attempt: u8,
    /// Scale that was asked for, pm/px.
    pub(super) scale_pm: u32,
    /// From the last pixel byte to the vector.
    pub(super) latency_us: u32,
    /// Engine that predicted it.
    pub(super) engine: String,
    /// The row, as the outputs take it.
    pub(super) row: Row,
}

/// Where an entry lies, and what is needed to choose among a tile's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stored {
    offset: u64,
    pub(super) scale_pm: u32,
    pub(super) confidence: f32,
}

/// The journal of one scan, locked against other processes.
#[derive(Debug)]
pub(super) struct ScanJournal {
    path: PathBuf,
    file: File,
    end: u64,
    index: Index,
    /// Decisions that the disk did not take yet.
    owed: Vec<ShotKey>,
}

impl ScanJournal {
    /// Opens the journal at `path` of a plan of `tiles` (indices in the slide's grid, ascending),
    /// continuing one of the same `settings`. One of other settings is set aside under another
    /// name, never overwritten.
    ///
    /// # Errors
    /// When another process has it open, it is another program's file, or the disk refuses.
    pub(super) fn open(path: &Path, settings: &Settings, tiles: &[u64]) -> Result<Self> {
        for _ in 0..2 {
            let mut journal = Self::lock(path, tiles)?;
            match journal.recover(settings)? {
                None => return Ok(journal),
                Some(differences) => {
                    let aside = aside(path);
                    tracing::warn!(
                        journal = %path.display(), aside = %aside.display(),
                        "an unfinished scan with other settings is here and is set aside: {}",
                        differences.join("; ")
                    );
                    drop(journal);
                    std::fs::rename(path, &aside).map_err(|error| explain(&aside, error))?;
                }
            }
        }
        Err(Error::output(path, "another scan is writing here; choose another output directory"))
    }

    fn lock(path: &Path, tiles: &[u64]) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(|error| explain(path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::output(
                    path,
                    "another process is writing this scan; stop it or choose another output \
                     directory",
                ));
            }
            // A file system without locks (some network shares) is still usable.
            Err(std::fs::TryLockError::Error(error)) => {
                tracing::warn!(journal = %path.display(), "cannot be locked: {error}");
            }
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            end: 0,
            index: Index::new(tiles.to_vec()),
            owed: Vec::new(),
        })
    }

    /// Reads what is there up to the first torn frame, or starts anew; what differs where the
    /// settings do.
    fn recover(&mut self, settings: &Settings) -> Result<Option<Vec<String>>> {
        let io = |error| explain(&self.path, error);
        let mut reader = BufReader::with_capacity(1 << 18, &self.file);
        let mut magic = Vec::new();
        (&mut reader).take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(io)?;
        match magic.split_last_chunk::<1>() {
            Some((name, version)) if MAGIC.starts_with(name) && magic.len() == MAGIC.len() => {
                if !MAGIC.ends_with(version) {
                    return Ok(Some(vec![format!("its format is version {}", version[0])]));
                }
            }
            _ if MAGIC.starts_with(&magic) => {}
            _ => return Err(Error::output(&self.path, "is no journal of a scan; move it away")),
        }
        let mut payload = Vec::new();
        let first = read_frame(&mut reader, &mut payload).map_err(io)?;
        let (true, Some(first)) = (magic.len() == MAGIC.len(), first) else {
            drop(reader);
            self.start(settings)?;
            return Ok(None);
        };
        let found: Settings = serde_json::from_slice(&payload).unwrap_or_default();
        let differences = differences(&found, settings);
        if !differences.is_empty() {
            return Ok(Some(differences));
        }
        let mut end = MAGIC.len() as u64 + first;
        while let Some(length) = read_frame(&mut reader, &mut payload).map_err(io)? {
            match payload.split_first() {
                Some((&KIND_ROW, rest)) => {
                    let Some(entry) = decode_entry(rest) else { break };
                    let stored = stored(end, &entry);
                    self.index.insert((entry.row.tile.index, entry.attempt), stored);
                }
                Some((&KIND_DECISION, &[attempt, ref index @ ..])) => {
                    let Ok(index) = index.try_into() else { break };
                    self.index.decide((u64::from_le_bytes(index), attempt));
                }
                _ => break,
            }
            end += length;
        }
        drop(reader);
        self.file.set_len(end).map_err(io)?;
        self.file.seek(SeekFrom::Start(end)).map_err(io)?;
        self.end = end;
        Ok(None)
    }

    fn start(&mut self, settings: &Settings) -> Result<()> {
        self.index.clear();
        let io = |error| explain(&self.path, error);
        self.file.set_len(0).map_err(io)?;
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        // A map of strings always serialises.
        let payload = serde_json::to_vec(settings).unwrap_or_default();
        let mut frame = vec![0; 8];
        frame.extend_from_slice(&payload);
        finish_frame(&mut frame);
        self.file.write_all(&MAGIC).map_err(io)?;
        self.file.write_all(&frame).map_err(io)?;
        self.end = (MAGIC.len() + frame.len()) as u64;
        Ok(())
    }

    /// Keeps a result; from here on it survives the death of this process. A shot that is known
    /// already is not kept twice.
    pub(super) fn push(&mut self, entry: &Entry) -> Result<()> {
        let key = (entry.row.tile.index, entry.attempt);
        if self.index.get(key).is_some() {
            return Ok(());
        }
        self.pay()?;
        let mut row = Vec::new();
        encode(&entry.row, &mut row);
        let mut frame = vec![0; 8];
        frame.push(KIND_ROW);
        frame.push(entry.attempt);
        frame.extend_from_slice(&entry.scale_pm.to_le_bytes());
        frame.extend_from_slice(&entry.latency_us.to_le_bytes());
        // Names of engines are short.
        let engine = &entry.engine.as_bytes()[..entry.engine.len().min(u8::MAX.into())];
        frame.push(engine.len() as u8);
        frame.extend_from_slice(engine);
        frame.extend_from_slice(&row[8..]);
        let offset = self.write(frame)?;
        self.index.insert(key, stored(offset, entry));
        Ok(())
    }

    /// Keeps that the board decided on a shot. What the disk does not take is kept with the next
    /// thing that it does take.
    pub(super) fn decided(&mut self, key: ShotKey) -> Result<()> {
        if self.index.decide(key) {
            self.owed.push(key);
        }
        self.pay()
    }

    /// Writes the decisions that are owed.
    fn pay(&mut self) -> Result<()> {
        while let Some(&(tile, attempt)) = self.owed.first() {
            let mut frame = vec![0; 8];
            frame.push(KIND_DECISION);
            frame.push(attempt);
            frame.extend_from_slice(&tile.to_le_bytes());
            self.write(frame)?;
            self.owed.remove(0);
        }
        Ok(())
    }

    fn write(&mut self, mut frame: Vec<u8>) -> Result<u64> {
        finish_frame(&mut frame);
        let offset = self.end;
        let written =
            self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(&frame));
        written.map_err(|error| explain(&self.path, error))?;
        self.end += frame.len() as u64;
        Ok(offset)
    }

    /// Exposures kept.
    pub(super) fn len(&self) -> u64 {
        self.index.len()
    }

    /// All exposures, by tile and attempt.
    pub(super) fn entries(&self) -> impl Iterator<Item = (ShotKey, Stored)> + '_ {
        self.index.iter()
    }

    /// Where an exposure's entry lies.
    pub(super) fn get(&self, key: ShotKey) -> Option<Stored> {
        self.index.get(key)
    }

    /// Tiles of a part of the grid that the board has decided on at least once.
    pub(super) fn tiles_decided(&self, part: std::ops::Range<u64>) -> usize {
        self.index.tiles_decided(part)
    }

    /// One entry, read back.
    pub(super) fn read(&self, stored: Stored) -> Result<Entry> {
        let damaged = || Error::output(&self.path, "cannot be read back; scan the slide again");
        let io = |error| explain(&self.path, error);
        (&self.file).seek(SeekFrom::Start(stored.offset)).map_err(io)?;
        let mut payload = Vec::new();
        read_frame(&mut &self.file, &mut payload).map_err(io)?.ok_or_else(damaged)?;
        payload.split_first().and_then(|(_, rest)| decode_entry(rest)).ok_or_else(damaged)
    }

    /// Makes everything survive a power cut too.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.pay()?;
        self.file.sync_data().map_err(|error| explain(&self.path, error))
    }

    /// Deletes the journal: its rows are in the outputs now.
    pub(super) fn remove(self) -> Result<()> {
        let Self { path, file, .. } = self;
        drop(file);
        std::fs::remove_file(&path).map_err(|error| explain(&path, error))
    }
}

fn stored(offset: u64, entry: &Entry) -> Stored {
    Stored { offset, scale_pm: entry.scale_pm, confidence: entry.row.confidence }
}

fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    let (&attempt, bytes) = bytes.split_first()?;
    let (scale, bytes) = bytes.split_first_chunk::<4>()?;
    let (latency, bytes) = bytes.split_first_chunk::<4>()?;
    let (&length, bytes) = bytes.split_first()?;
    let (engine, bytes) = bytes.split_at_checked(length.into())?;
    Some(Entry {
        attempt,
        scale_pm: u32::from_le_bytes(*scale),
        latency_us: u32::from_le_bytes(*latency),
        engine: String::from_utf8(engine.to_vec()).ok()?,
        row: decode(bytes)?,
    })
}

/// A name beside `path` that is free.
fn aside(path: &Path) -> PathBuf {
    let named = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".aside-{number}"));
        PathBuf::from(name)
    };
    (1..).map(named).find(|candidate| !candidate.exists()).unwrap_or_else(|| named(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tiling::Tile;

    fn entry(index: u64, attempt: u8) -> Entry {
        Entry {
            attempt,
            scale_pm: 499_000,
            latency_us: 7,
            engine: if index == 5 { "wgpu".into() } else { "cpu".into() },
            row: Row {
                tile: Tile { index, id: format!("t{index}"), x: 1.5, y: 2.0, side: 3.0 },
                tissue: 0.5,
                confidence: 0.25 * f32::from(attempt),
                expression: vec![index as f32, -1.0],
            },
        }
    }

    const TILES: &[u64] = &[2, 5, 9, 77];

    fn settings(model: &str) -> Settings {
        Settings::from([("model".into(), model.into())])
    }

    fn fill(path: &Path) {
        let mut journal = ScanJournal::open(path, &settings("m"), TILES).unwrap();
        for (index, attempt) in [(5, 0), (5, 1), (2, 0), (5, 0)] {
            journal.push(&entry(index, attempt)).unwrap();
            journal.decided((index, attempt)).unwrap();
        }
    }

    #[test]
    fn results_and_decisions_are_kept_once_and_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        fill(&path);
        let mut journal = ScanJournal::open(&path, &settings("m"), TILES).unwrap();
        let keys: Vec<ShotKey> = journal.entries().map(|(key, _)| key).collect();
        assert_eq!(keys, [(2, 0), (5, 0), (5, 1)]);
        assert_eq!(journal.tiles_decided(0..100), 2);
        for ((index, attempt), stored) in journal.entries() {
            assert_eq!(journal.read(stored).unwrap(), entry(index, attempt));
        }
        // Reading does not disturb appending.
        journal.push(&entry(9, 0)).unwrap();
        drop(journal);
        assert_eq!(ScanJournal::open(&path, &settings("m"), TILES).unwrap().len(), 4);
    }

    #[test]
    fn what_the_disk_refused_is_kept_with_the_next_thing_it_takes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let mut journal = ScanJournal::open(&path, &settings("m"), TILES).unwrap();
        journal.push(&entry(2, 0)).unwrap();
        // A handle that cannot write, as a full disk cannot.
        let good = std::mem::replace(&mut journal.file, File::open(&path).unwrap());
        assert!(journal.push(&entry(5, 0)).is_err());
        assert!(journal.decided((2, 0)).is_err());
        assert_eq!((journal.len(), journal.tiles_decided(0..9)), (1, 1));
        journal.file = good;
        journal.push(&entry(5, 0)).unwrap();
        drop(journal);
        let journal = ScanJournal::open(&path, &settings("m"), TILES).unwrap();
        assert_eq!((journal.len(), journal.tiles_decided(0..9)), (2, 1));
    }

    #[test]
    fn other_scans_are_set_aside_and_foreign_files_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        fill(&path);
        let other = ScanJournal::open(&path, &settings("other"), TILES).unwrap();
        assert_eq!(other.len(), 0);
        assert!(directory.path().join("j.aside-1").exists());
        assert!(ScanJournal::open(&path, &settings("other"), TILES).is_err(), "two writers");
        let old = directory.path().join("old");
        std::fs::write(&old, b"DBSCAN\r\x01 and what that version wrote").unwrap();
        assert_eq!(ScanJournal::open(&old, &settings("m"), TILES).unwrap().len(), 0);
        assert!(directory.path().join("old.aside-1").exists());
        let foreign = directory.path().join("thesis");
        std::fs::write(&foreign, "my thesis").unwrap();
        assert!(ScanJournal::open(&foreign, &settings("m"), TILES).is_err());
        assert_eq!(std::fs::read(&foreign).unwrap(), b"my thesis");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_damage_or_cut_keeps_whole_entries_only(
            at in any::<prop::sample::Index>(), xor in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("j");
            fill(&path);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= xor;
            bytes.truncate(cut.index(bytes.len() + 1));
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(mut journal) = ScanJournal::open(&path, &settings("m"), TILES) {
                for ((index, attempt), stored) in journal.entries() {
                    prop_assert_eq!(journal.read(stored).unwrap(), entry(index, attempt));
                }
                journal.push(&entry(77, 0)).unwrap();
                drop(journal);
                let journal = ScanJournal::open(&path, &settings("m"), TILES).unwrap();
                prop_assert!(journal.get((77, 0)).is_some());
            }
        }
    }
}
