//! The tensors of a state dictionary, from either container.

use std::collections::HashMap;
use std::path::Path;

use super::pickle::{self, Item};
use super::zip;
use crate::diffusion::weights::{Array, Weights};
use crate::{Error, Result};

/// First value of a file in the older container.
const LEGACY_MAGIC: [u8; 15] =
    [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
/// A tensor larger than this is refused.
const MAX_ELEMENTS: usize = 1 << 31;

/// Reads the float32 tensors of a weight file that holds a state dictionary; integer tensors
/// (counters) are left out.
pub fn read(path: &Path) -> Result<Weights> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    parse(&bytes).map_err(|problem| {
        Error::model(
            path,
            format!("cannot be read as PyTorch weights: {problem}; give the file that torch.save wrote for a state_dict"),
        )
    })
}

fn parse(bytes: &[u8]) -> Result<Weights, String> {
    let (state, storages) = if bytes.starts_with(b"PK") {
        from_archive(bytes)?
    } else if bytes.starts_with(&LEGACY_MAGIC) {
        from_stream(bytes)?
    } else {
        return Err("it is neither a zip archive nor the older stream".to_owned());
    };
    let Item::Dict(entries) = state else {
        return Err("it does not hold a dictionary of tensors".to_owned());
    };
    let mut weights = Weights::new();
    for (key, value) in &entries {
        let Item::Text(name) = key else {
            return Err("a tensor's name is not a string".to_owned());
        };
        let array =
            tensor(value, &storages).map_err(|problem| format!("tensor {name}: {problem}"))?;
        if let Some(array) = array {
            weights.insert(name.clone(), array);
        }
    }
    Ok(weights)
}

type Storages<'a> = HashMap<String, &'a [u8]>;

fn from_archive(bytes: &[u8]) -> Result<(Item, Storages<'_>), String> {
    let mut storages = HashMap::new();
    let mut state = None;
    for entry in zip::entries(bytes)? {
        // Entries are `<archive name>/data.pkl` and `<archive name>/data/<key>`.
        match entry.name.split_once('/').map(|(_, rest)| rest) {
            Some("data.pkl") => state = Some(pickle::load(entry.bytes)?.0),
            Some("byteorder") if entry.bytes != b"little" => {
                return Err("it was written on a big-endian machine".to_owned());
            }
            Some(rest) => {
                if let Some(key) = rest.strip_prefix("data/") {
                    storages.insert(key.to_owned(), entry.bytes);
                }
            }
            None => {}
        }
    }
    Ok((state.ok_or("the archive has no data.pkl")?, storages))
}

/// Magic, protocol and system records, the state, the storages' keys, then for each of them its
/// length (64-bit) and its values.
fn from_stream(bytes: &[u8]) -> Result<(Item, Storages<'_>), String> {
    let mut rest = bytes;
    let mut next = || {
        let (item, length) = pickle::load(rest)?;
        rest = &rest[length..];
        Ok::<Item, String>(item)
    };
    next()?;
    if next()? != Item::Int(1001) {
        return Err("its protocol is not 1001".to_owned());
    }
    next()?;
    let state = next()?;
    let Item::List(keys) = next()? else {
        return Err("it does not list its storages".to_owned());
    };
    let sizes = element_sizes(&state);
    let mut storages = HashMap::new();
    for key in keys {
        let Item::Text(key) = key else {
            return Err("a storage's key is not a string".to_owned());
        };
        let size = *sizes.get(&key).ok_or_else(|| format!("storage {key} belongs to nothing"))?;
        let (count, values) = rest.split_first_chunk::<8>().ok_or("it is cut short")?;
        let length = usize::try_from(i64::from_le_bytes(*count))
            .ok()
            .and_then(|count| count.checked_mul(size))
            .filter(|&length| length <= values.len())
            .ok_or_else(|| format!("it is cut short in storage {key}"))?;
        let (content, after) = values.split_at(length);
        storages.insert(key, content);
        rest = after;
    }
    Ok((state, storages))
}

/// Bytes per element of every storage that the state names.
fn element_sizes(state: &Item) -> HashMap<String, usize> {
    let mut sizes = HashMap::new();
    let mut pending = vec![state];
    while let Some(item) = pending.pop() {
        match item {
            Item::List(items) => pending.extend(items),
            Item::Dict(pairs) => pending.extend(pairs.iter().flat_map(|(k, v)| [k, v])),
            Item::Call(function, arguments) => pending.extend([&**function, &**arguments]),
            Item::Stored(identity) => {
                if let Some((kind, key)) = storage(identity) {
                    sizes.insert(key.to_owned(), kind.size());
                }
            }
            _ => {}
        }
    }
    sizes
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Float,
    Other(usize),
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Self::Float => 4,
            Self::Other(size) => size,
        }
    }
}

/// Kind and key of a storage's identity: `("storage", class, key, device, length, ...)`.
fn storage(identity: &Item) -> Option<(Kind, &str)> {
    let Item::List(parts) = identity else { return None };
    match parts.as_slice() {
        [Item::Text(tag), Item::Global(class), Item::Text(key), ..] if tag == "storage" => {
            let kind = match class.strip_prefix("torch.")? {
                "FloatStorage" => Kind::Float,
                "LongStorage" | "DoubleStorage" => Kind::Other(8),
                "IntStorage" => Kind::Other(4),
                "HalfStorage" | "BFloat16Storage" | "ShortStorage" => Kind::Other(2),
                "BoolStorage" | "ByteStorage" | "CharStorage" => Kind::Other(1),
                _ => return None,
            };
            Some((kind, key))
        }
        _ => None,
    }
}

/// The tensor a call to PyTorch's rebuild function stands for; `None` for one that is not float32.
fn tensor(item: &Item, storages: &Storages<'_>) -> Result<Option<Array>, String> {
    let Item::Call(function, arguments) = item else {
        return Err("is not a tensor".to_owned());
    };
    let (Item::Global(name), Item::List(arguments)) = (&**function, &**arguments) else {
        return Err("is not a tensor".to_owned());
    };
    match (name.as_str(), arguments.as_slice()) {
        ("torch._utils._rebuild_parameter", [data, ..]) => tensor(data, storages),
        (
            "torch._utils._rebuild_tensor_v2",
            [Item::Stored(identity), Item::Int(offset), Item::List(shape), Item::List(strides), ..],
        ) => {
            let (kind, key) = storage(identity).ok_or("its storage is of no known kind")?;
            if kind != Kind::Float {
                return Ok(None);
            }
            let bytes = storages.get(key).ok_or_else(|| format!("its storage {key} is missing"))?;
            gather(bytes, lengths(&[Item::Int(*offset)])?[0], &lengths(shape)?, &lengths(strides)?)
                .map(Some)
        }
        _ => Err(format!("is made by {name}, which is not known")),
    }
}

fn lengths(items: &[Item]) -> Result<Vec<usize>, String> {
    items
        .iter()
        .map(|item| match item {
            Item::Int(value) => {
                usize::try_from(*value).map_err(|_| "has a negative length".to_owned())
            }
            _ => Err("has a length that is not a number".to_owned()),
        })
        .collect()
}

/// Values of a strided view, in row-major order.
fn gather(
    bytes: &[u8],
    offset: usize,
    shape: &[usize],
    strides: &[usize],
) -> Result<Array, String> {
    if shape.len() != strides.len() || shape.len() > 8 {
        return Err("has a shape that does not fit its strides".to_owned());
    }
    let count = shape
        .iter()
        .try_fold(1usize, |count, &length| count.checked_mul(length))
        .filter(|&count| count <= MAX_ELEMENTS)
        .ok_or("is larger than any tensor this program reads")?;
    let mut last = offset;
    for (&length, &stride) in shape.iter().zip(strides) {
        last = stride
            .checked_mul(length.saturating_sub(1))
            .and_then(|far| last.checked_add(far))
            .ok_or("reaches beyond its storage")?;
    }
    if count > 0 && last.checked_mul(4).is_none_or(|byte| byte + 4 > bytes.len()) {
        return Err("reaches beyond its storage".to_owned());
    }
    let mut data = Vec::with_capacity(count.min(bytes.len()));
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let at: usize = 4 * (offset + index.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>());
        data.push(f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(Array::new(shape.to_vec(), data))
}
