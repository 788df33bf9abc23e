//! Line-by-line reading of tab-separated text, plain or gzip, with names for what is wrong.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

/// Longest line that is read: a hostile file must not fill the memory.
const LONGEST_LINE: u64 = 64 << 20;

/// Lines of a text file with their numbers.
pub(super) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    number: usize,
}

impl Lines {
    /// Opens `path`; gzip is known by its first bytes, not by the name.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = BufReader::new(File::open(path).map_err(Error::io(path))?);
        let head = file.fill_buf().map_err(Error::io(path))?;
        let reader: Box<dyn BufRead> = if head.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        Ok(Self { path: path.to_owned(), reader, number: 0 })
    }

    /// The next line that is not blank, without its end, and its number from 1.
    pub(super) fn next(&mut self) -> Result<Option<(usize, String)>> {
        loop {
            let mut bytes = Vec::new();
            let read = (&mut self.reader)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut bytes)
                .map_err(|source| {
                    Error::data(
                        &self.path,
                        format!(
                            "cannot be read past line {} ({source}); the file is damaged, fetch \
                             it again",
                            self.number
                        ),
                    )
                })?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if read as u64 == LONGEST_LINE {
                return Err(self.wrong("is longer than 64 MiB; this is not a table"));
            }
            let Ok(text) = String::from_utf8(bytes) else {
                return Err(self.wrong("is not UTF-8 text; this is not a table"));
            };
            let text = text.trim_end_matches(['\n', '\r']);
            if !text.trim().is_empty() {
                return Ok(Some((self.number, text.to_owned())));
            }
        }
    }

    /// An error about the line that was read last.
    pub(super) fn wrong(&self, problem: &str) -> Error {
        Error::data(&self.path, format!("line {} {problem}", self.number))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(path: &Path) -> Result<Vec<(usize, String)>> {
        let mut lines = Lines::open(path)?;
        let mut out = Vec::new();
        while let Some(line) = lines.next()? {
            out.push(line);
        }
        Ok(out)
    }

    #[test]
    fn plain_and_gzip_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let text = "a\tb\r\n\n1\t2\n3\t4";
        let plain = dir.path().join("plain.tsv");
        std::fs::write(&plain, text).unwrap();
        let packed = dir.path().join("packed.tsv");
        let file = File::create(&packed).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap();
        let lines = all(&plain).unwrap();
        assert_eq!(lines, [(1, "a\tb".into()), (3, "1\t2".into()), (4, "3\t4".into())]);
        assert_eq!(all(&packed).unwrap(), lines);
    }

    #[test]
    fn a_cut_gzip_says_that_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.tsv.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for i in 0..10_000u32 {
            writeln!(encoder, "{}", i.wrapping_mul(2_654_435_761)).unwrap();
        }
        let bytes = encoder.finish().unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = all(&path).unwrap_err().to_string();
        assert!(error.contains("damaged") && error.contains("cut.tsv.gz"), "{error}");
    }

    #[test]
    fn binary_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("binary.tsv");
        std::fs::write(&path, [0xff, 0xfe, 0x00, 0x0a]).unwrap();
        assert!(all(&path).unwrap_err().to_string().contains("not UTF-8"));
    }
}
