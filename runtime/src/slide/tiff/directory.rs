//! TIFF and BigTIFF structure: the header, directories (IFDs) and their values.
//!
//! Sources: TIFF 6.0 (Adobe, 1992) section 2; BigTIFF design (libtiff). Values are read on
//! demand; offsets and counts are checked against the file before anything is allocated.

use std::collections::{BTreeMap, HashSet};

use crate::slide::limits;
use crate::slide::source::Source;

/// Tags this reader looks at.
pub(super) mod tag {
    pub(crate) const NEW_SUBFILE_TYPE: u16 = 254;
    pub(crate) const IMAGE_WIDTH: u16 = 256;
    pub(crate) const IMAGE_LENGTH: u16 = 257;
    pub(crate) const BITS_PER_SAMPLE: u16 = 258;
    pub(crate) const COMPRESSION: u16 = 259;
    pub(crate) const PHOTOMETRIC: u16 = 262;
    pub(crate) const FILL_ORDER: u16 = 266;
    pub(crate) const IMAGE_DESCRIPTION: u16 = 270;
    pub(crate) const MAKE: u16 = 271;
    pub(crate) const MODEL: u16 = 272;
    pub(crate) const STRIP_OFFSETS: u16 = 273;
    pub(crate) const SAMPLES_PER_PIXEL: u16 = 277;
    pub(crate) const ROWS_PER_STRIP: u16 = 278;
    pub(crate) const STRIP_BYTE_COUNTS: u16 = 279;
    pub(crate) const X_RESOLUTION: u16 = 282;
    pub(crate) const Y_RESOLUTION: u16 = 283;
    pub(crate) const PLANAR_CONFIGURATION: u16 = 284;
    pub(crate) const RESOLUTION_UNIT: u16 = 296;
    pub(crate) const SOFTWARE: u16 = 305;
    pub(crate) const PREDICTOR: u16 = 317;
    pub(crate) const TILE_WIDTH: u16 = 322;
    pub(crate) const TILE_LENGTH: u16 = 323;
    pub(crate) const TILE_OFFSETS: u16 = 324;
    pub(crate) const TILE_BYTE_COUNTS: u16 = 325;
    pub(crate) const SUB_IFDS: u16 = 330;
    pub(crate) const EXTRA_SAMPLES: u16 = 338;
    pub(crate) const SAMPLE_FORMAT: u16 = 339;
    pub(crate) const JPEG_TABLES: u16 = 347;
    pub(crate) const XMP: u16 = 700;
    /// Present in every Hamamatsu NDPI directory.
    pub(crate) const NDPI_FORMAT: u16 = 65420;
}

/// An open TIFF file: byte order, offset size and where its first directory is.
#[derive(Debug)]
pub(super) struct TiffFile {
    source: Source,
    little: bool,
    /// Whether offsets are 64-bit.
    pub(super) big: bool,
    first: u64,
}

/// One directory: the entries of one image of the file.
#[derive(Debug)]
pub(super) struct Directory {
    /// Offset of the directory in the file.
    pub(super) offset: u64,
    entries: BTreeMap<u16, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: u16,
    count: u64,
    /// The value itself where it fits, else where it is; as stored.
    field: [u8; 8],
}

/// Bytes of one value of a field type, or None for types that do not exist.
fn type_size(kind: u16) -> Option<u64> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 | 17 | 18 => 8,
        _ => return None,
    })
}

impl TiffFile {
    /// Reads the header.
    pub(super) fn new(source: Source) -> Result<Self, String> {
        let head = source.read(0, source.len().min(16))?;
        let little = match head.get(..2) {
            Some(b"II") => true,
            Some(b"MM") => false,
            _ => return Err("the file does not begin with a TIFF header".into()),
        };
        let mut file = Self { source, little, big: false, first: 0 };
        let short = "the TIFF header is cut off: the file is truncated";
        let version = head.get(2..4).ok_or(short)?;
        match file.number(version) {
            42 => file.first = file.number(head.get(4..8).ok_or(short)?),
            43 => {
                file.big = true;
                let layout = file.number(head.get(4..8).ok_or(short)?);
                // Offset size 8 and a reserved zero, in file order.
                if layout != if little { 8 } else { 8 << 16 } {
                    return Err("the BigTIFF header states an unknown offset size".into());
                }
                file.first = file.number(head.get(8..16).ok_or(short)?);
            }
            other => return Err(format!("unknown TIFF version {other} in the header")),
        }
        Ok(file)
    }

    /// The file's bytes.
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// An unsigned number of up to 8 bytes in the file's byte order.
    fn number(&self, bytes: &[u8]) -> u64 {
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        if self.little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) }
    }

    /// All directories: the main chain in file order, each followed by its sub-images.
    pub(super) fn directories(&self) -> Result<Vec<Directory>, String> {
        let mut all = Vec::new();
        let mut seen = HashSet::new();
        let mut next = self.first;
        while next != 0 {
            let (directory, after) = self.directory(next, &mut seen, all.len())?;
            // A sub-image chain may itself continue; it is followed like the main one.
            let children = self.numbers(&directory, tag::SUB_IFDS)?.unwrap_or_default();
            all.push(directory);
            for child in children {
                let mut next = child;
                while next != 0 {
                    let (directory, after) = self.directory(next, &mut seen, all.len())?;
                    all.push(directory);
                    next = after;
                }
            }
            next = after;
        }
        if all.is_empty() {
            return Err("the TIFF has no image directory: the file is incomplete".into());
        }
        Ok(all)
    }

    fn directory(
        &self,
        offset: u64,
        seen: &mut HashSet<u64>,
        count: usize,
    ) -> Result<(Directory, u64), String> {
        let context = |problem| format!("image directory {count} at offset {offset}: {problem}");
        if !seen.insert(offset) {
            return Err(context("it is referenced twice; the file is damaged".to_owned()));
        }
        if count >= limits::DIRECTORIES {
            return Err(context(format!(
                "more than {} images in one file are not read",
                limits::DIRECTORIES
            )));
        }
        let (count_size, entry_size, field_size) = if self.big { (8, 20, 8) } else { (2, 12, 4) };
        let entries = self.number(&self.source.read(offset, count_size).map_err(context)?);
        if entries > limits::DIRECTORY_ENTRIES {
            return Err(context(format!("it claims {entries} entries; the file is damaged")));
        }
        let table = self
            .source
            .read(offset.saturating_add(count_size), entries * entry_size as u64 + field_size)
            .map_err(context)?;
        let (table, next) = table.split_at(table.len() - field_size as usize);
        let mut map = BTreeMap::new();
        for raw in table.chunks_exact(entry_size) {
            let mut field = [0; 8];
            let stored = &raw[entry_size - field_size as usize..];
            field[..stored.len()].copy_from_slice(stored);
            let entry = Entry {
                kind: self.number(&raw[2..4]) as u16,
                count: self.number(&raw[4..entry_size - field_size as usize]),
                field,
            };
            map.entry(self.number(&raw[..2]) as u16).or_insert(entry);
        }
        Ok((Directory { offset, entries: map }, self.number(next)))
    }

    /// The raw bytes of a value and the size of one element, or None where the tag is absent.
    fn value(&self, directory: &Directory, tag: u16) -> Result<Option<(Vec<u8>, u16)>, String> {
        let Some(entry) = directory.entries.get(&tag) else { return Ok(None) };
        let context =
            |problem| format!("tag {tag} of the directory at {}: {problem}", directory.offset);
        let size = type_size(entry.kind)
            .ok_or_else(|| context(format!("unknown field type {}", entry.kind)))?;
        let bytes = entry
            .count
            .checked_mul(size)
            .filter(|&bytes| bytes <= limits::DIRECTORY_VALUE_BYTES)
            .ok_or_else(|| context(format!("{} values are more than is read", entry.count)))?;
        let field = &entry.field[..if self.big { 8 } else { 4 }];
        let data = if bytes <= field.len() as u64 {
            field[..bytes as usize].to_vec()
        } else {
            self.source.read(self.number(field), bytes).map_err(context)?
        };
        Ok(Some((data, entry.kind)))
    }

    /// Refuses a file that ends before a value or a chunk of this directory does.
    pub(super) fn check_extents(&self, directory: &Directory) -> Result<(), String> {
        let inside = |what: &dyn Fn() -> String, offset: u64, bytes: u64| {
            if offset.checked_add(bytes).is_some_and(|end| end <= self.source.len()) {
                return Ok(());
            }
            Err(format!(
                "{} ({bytes} bytes at offset {offset}) lies beyond the end of the file ({} \
                 bytes): the file is truncated; copy or download it again",
                what(),
                self.source.len()
            ))
        };
        let in_place = if self.big { 8 } else { 4 };
        for (tag, entry) in &directory.entries {
            // A type that is not known has a size that is not known.
            let Some(size) = type_size(entry.kind) else { continue };
            let bytes = entry.count.saturating_mul(size);
            if bytes > in_place {
                let offset = self.number(&entry.field[..in_place as usize]);
                inside(&|| format!("the value of tag {tag}"), offset, bytes)?;
            }
        }
        for (kind, offsets, counts) in [
            ("strip", tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS),
            ("tile", tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS),
        ] {
            let offsets = self.numbers(directory, offsets)?.unwrap_or_default();
            let counts = self.numbers(directory, counts)?.unwrap_or_default();
            for (index, (&offset, &count)) in std::iter::zip(&offsets, &counts).enumerate() {
                // Sparse files leave out blank chunks.
                if offset != 0 && count != 0 {
                    inside(&|| format!("{kind} {index}"), offset, count)?;
                }
            }
        }
        Ok(())
    }

    /// An array of unsigned integers.
    pub(super) fn numbers(
        &self,
        directory: &Directory,
        tag: u16,
    ) -> Result<Option<Vec<u64>>, String> {
        let Some((data, kind)) = self.value(directory, tag)? else { return Ok(None) };
        let size = match kind {
            1 | 6 | 7 => 1,
            3 => 2,
            4 | 13 => 4,
            16 | 18 => 8,
            _ => {
                return Err(format!(
                    "tag {tag} of the directory at {} has field type {kind} where whole numbers \
                     are expected; the file is damaged",
                    directory.offset
                ));
            }
        };
        Ok(Some(data.chunks_exact(size).map(|bytes| self.number(bytes)).collect()))
    }

    /// A single unsigned integer: the first of an array.
    pub(super) fn integer(&self, directory: &Directory, tag: u16) -> Result<Option<u64>, String> {
        Ok(self.numbers(directory, tag)?.and_then(|values| values.first().copied()))
    }

    /// A rational or floating-point number.
    pub(super) fn real(&self, directory: &Directory, tag: u16) -> Result<Option<f64>, String> {
        let Some((data, kind)) = self.value(directory, tag)? else { return Ok(None) };
        let part = |range: std::ops::Range<usize>| data.get(range).map(|b| self.number(b));
        Ok(match kind {
            5 => match (part(0..4), part(4..8)) {
                (Some(a), Some(b)) if b != 0 => Some(a as f64 / b as f64),
                _ => None,
            },
            11 => part(0..4).map(|bits| f64::from(f32::from_bits(bits as u32))),
            12 => part(0..8).map(f64::from_bits),
            _ => None,
        })
    }

    /// A text value without trailing zeros; bytes that are not UTF-8 are replaced.
    pub(super) fn text(&self, directory: &Directory, tag: u16) -> Result<Option<String>, String> {
        Ok(self.value(directory, tag)?.map(|(data, _)| {
            let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
            String::from_utf8_lossy(&data[..end]).trim().to_owned()
        }))
    }

    /// Uninterpreted bytes.
    pub(super) fn bytes(&self, directory: &Directory, tag: u16) -> Result<Option<Vec<u8>>, String> {
        Ok(self.value(directory, tag)?.map(|(data, _)| data))
    }
}

impl Directory {
    /// Whether the tag is present.
    pub(super) fn has(&self, tag: u16) -> bool {
        self.entries.contains_key(&tag)
    }
}
