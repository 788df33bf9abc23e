//! The stored entries of a zip archive, which is all PyTorch writes.

/// One entry: its name and its bytes.
pub struct Entry<'a> {
    /// Path inside the archive.
    pub name: String,
    /// Content.
    pub bytes: &'a [u8],
}

const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
/// The end record's fixed part.
const END_LENGTH: usize = 22;

/// Lists the entries of an archive.
pub fn entries(bytes: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let (count, mut at) = directory(bytes)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        if !starts(bytes, at, CENTRAL) {
            return Err("the archive's directory is damaged".to_owned());
        }
        if u16_at(bytes, at + 10)? != 0 {
            return Err("the archive is compressed; PyTorch stores its tensors plain".to_owned());
        }
        let mut length = u64::from(u32_at(bytes, at + 24)?);
        let mut offset = u64::from(u32_at(bytes, at + 42)?);
        let name_length = usize::from(u16_at(bytes, at + 28)?);
        let extra_length = usize::from(u16_at(bytes, at + 30)?);
        let comment_length = usize::from(u16_at(bytes, at + 32)?);
        let mut stored = u64::from(u32_at(bytes, at + 20)?);
        let name = slice(bytes, at + 46, name_length)?;
        let name = std::str::from_utf8(name).map_err(|_| "an entry's name is not UTF-8")?;
        let extra = slice(bytes, at + 46 + name_length, extra_length)?;
        wide_fields(extra, [&mut length, &mut stored, &mut offset]);
        let (length, offset) = (to_usize(length)?, to_usize(offset)?);
        if !starts(bytes, offset, LOCAL) {
            return Err(format!("entry {name} of the archive is not where its directory says"));
        }
        let local_name = usize::from(u16_at(bytes, offset + 26)?);
        let local_extra = usize::from(u16_at(bytes, offset + 28)?);
        let content = slice(bytes, offset + 30 + local_name + local_extra, length)?;
        entries.push(Entry { name: name.to_owned(), bytes: content });
        at += 46 + name_length + extra_length + comment_length;
    }
    Ok(entries)
}

/// Number of entries and where their list begins.
fn directory(bytes: &[u8]) -> Result<(u64, usize), String> {
    let last = bytes.len().checked_sub(END_LENGTH).ok_or("the file is too short for an archive")?;
    // A comment of up to 64 KiB may follow the end record.
    let first = last.saturating_sub(usize::from(u16::MAX));
    let end = (first..=last)
        .rev()
        .find(|&at| starts(bytes, at, END))
        .ok_or("the archive has no end; the file is cut short")?;
    let mut count = u64::from(u16_at(bytes, end + 10)?);
    let mut start = u64::from(u32_at(bytes, end + 16)?);
    if let Some(locator) = end.checked_sub(20).filter(|&at| starts(bytes, at, LOCATOR64)) {
        let wide = to_usize(u64_at(bytes, locator + 8)?)?;
        if starts(bytes, wide, END64) {
            count = u64_at(bytes, wide + 32)?;
            start = u64_at(bytes, wide + 48)?;
        }
    }
    Ok((count, to_usize(start)?))
}

/// Replaces fields that did not fit 32 bits by those of the zip64 extra field.
fn wide_fields(mut extra: &[u8], fields: [&mut u64; 3]) {
    while extra.len() >= 4 {
        let kind = u16::from_le_bytes([extra[0], extra[1]]);
        let length = usize::from(u16::from_le_bytes([extra[2], extra[3]]));
        let Some(body) = extra.get(4..4 + length) else { return };
        if kind == 1 {
            let mut values = body.chunks_exact(8);
            for field in fields {
                if *field == u64::from(u32::MAX)
                    && let Some(value) = values.next()
                    && let Ok(value) = value.try_into()
                {
                    *field = u64::from_le_bytes(value);
                }
            }
            return;
        }
        extra = &extra[4 + length..];
    }
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], String> {
    at.checked_add(length)
        .and_then(|end| bytes.get(at..end))
        .ok_or_else(|| "the archive is cut short".to_owned())
}

fn starts(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    slice(bytes, at, magic.len()).is_ok_and(|found| found == magic)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let mut array = [0; N];
    array.copy_from_slice(slice(bytes, at, N)?);
    Ok(array)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, String> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn to_usize(value: u64) -> Result<usize, String> {
    // Leaves room for the additions above.
    usize::try_from(value)
        .ok()
        .filter(|&v| v < usize::MAX / 2)
        .ok_or_else(|| "the archive points beyond any file".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Stored entries as PyTorch writes them: extra fields that pad, sizes and offsets in the
    /// directory, the wide fields where `wide` asks for them, and a comment at the end.
    fn archive(files: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let mut directory = Vec::new();
        for (name, content) in files {
            let offset = out.len() as u32;
            let crc = crc32(content);
            let length = content.len() as u32;
            let sizes = |out: &mut Vec<u8>| {
                out.extend(crc.to_le_bytes());
                out.extend(length.to_le_bytes());
                out.extend((if wide { u32::MAX } else { length }).to_le_bytes());
                out.extend((name.len() as u16).to_le_bytes());
            };
            out.extend(LOCAL);
            out.extend([0; 10]);
            sizes(&mut out);
            out.extend(7u16.to_le_bytes());
            out.extend(name.as_bytes());
            out.extend([0x46, 0x42, 3, 0, b'Z', b'Z', b'Z']);
            out.extend(*content);

            directory.extend(CENTRAL);
            directory.extend([0; 12]);
            sizes(&mut directory);
            let extra: Vec<u8> = if wide {
                let fields = [u64::from(length), u64::from(offset)];
                let body = fields.iter().flat_map(|field| field.to_le_bytes());
                [1, 0, 16, 0].into_iter().chain(body).collect()
            } else {
                Vec::new()
            };
            directory.extend((extra.len() as u16).to_le_bytes());
            directory.extend([0; 10]);
            directory.extend((if wide { u32::MAX } else { offset }).to_le_bytes());
            directory.extend(name.as_bytes());
            directory.extend(extra);
        }
        let (start, size) = (out.len() as u64, directory.len() as u64);
        out.extend(directory);
        if wide {
            let at = out.len() as u64;
            out.extend(END64);
            out.extend([0; 28]);
            out.extend((files.len() as u64).to_le_bytes());
            out.extend(size.to_le_bytes());
            out.extend(start.to_le_bytes());
            out.extend(LOCATOR64);
            out.extend([0; 4]);
            out.extend(at.to_le_bytes());
            out.extend([1, 0, 0, 0]);
        }
        let count = if wide { u16::MAX } else { files.len() as u16 };
        out.extend(END);
        out.extend([0; 6]);
        out.extend(count.to_le_bytes());
        out.extend((size as u32).to_le_bytes());
        out.extend((if wide { u32::MAX } else { start as u32 }).to_le_bytes());
        out.extend(4u16.to_le_bytes());
        out.extend(b"note");
        out
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }

    const FILES: [(&str, &[u8]); 3] =
        [("a/data.pkl", b"pickle"), ("a/data/0", &[1, 2, 3, 4, 5]), ("a/empty", b"")];

    #[test]
    fn entries_come_back_by_name() {
        for wide in [false, true] {
            let bytes = archive(&FILES, wide);
            let found: Vec<_> =
                entries(&bytes).unwrap().into_iter().map(|e| (e.name, e.bytes)).collect();
            let expected: Vec<_> = FILES.iter().map(|(n, b)| ((*n).to_owned(), *b)).collect();
            assert_eq!(found, expected, "wide {wide}");
        }
    }

    #[test]
    fn what_is_cut_short_or_compressed_says_so() {
        for wide in [false, true] {
            let bytes = archive(&FILES, wide);
            // The comment's length is not checked: only the end record matters.
            for length in 0..bytes.len() - 4 {
                assert!(entries(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
            }
        }
        let mut compressed = archive(&FILES, false);
        let at = compressed.windows(4).position(|w| w == CENTRAL).unwrap();
        compressed[at + 10] = 8;
        assert!(entries(&compressed).err().unwrap().contains("compressed"));
        let mut moved = archive(&FILES, false);
        moved[at + 42] = 1;
        assert!(entries(&moved).err().unwrap().contains("a/data.pkl"));
    }

    proptest! {
        #[test]
        fn damaged_archives_never_panic(
            wide in any::<bool>(),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = archive(&FILES, wide);
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let length = cut.index(bytes.len() + 1);
            let _ = entries(&bytes[..length]);
            let _ = entries(&bytes);
        }
    }
}
