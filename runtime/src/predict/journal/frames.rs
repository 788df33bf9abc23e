//! The journal's frames, and what stands in them.

use std::io::Read;

use crate::output::Row;
use crate::predict::pipeline::{DamagedTile, Outcome};
use crate::tiling::Tile;

/// Longest frame that is believed; a longer one is a damaged length.
const MAX_FRAME: u32 = 1 << 26;

/// Reads one frame's payload; its length on disk, or `None` at the end or at a damaged frame.
pub(crate) fn read_frame(
    reader: &mut impl Read,
    payload: &mut Vec<u8>,
) -> std::io::Result<Option<u64>> {
    payload.clear();
    if reader.by_ref().take(8).read_to_end(payload)? < 8 {
        return Ok(None);
    }
    let word = |at: usize| {
        u32::from_le_bytes([payload[at], payload[at + 1], payload[at + 2], payload[at + 3]])
    };
    let (length, crc) = (word(0), word(4));
    if length > MAX_FRAME {
        return Ok(None);
    }
    payload.clear();
    let read = reader.by_ref().take(u64::from(length)).read_to_end(payload)?;
    let whole = read == length as usize && crc32fast::hash(payload) == crc;
    Ok(whole.then_some(8 + u64::from(length)))
}

/// Fills in the first eight bytes of a frame whose payload follows them.
pub(crate) fn finish_frame(frame: &mut [u8]) {
    let (head, payload) = frame.split_at_mut(8);
    head[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
}

/// What stands in place of the index in a damaged tile's payload: no tile has it.
const DAMAGED: u64 = u64::MAX;

/// The same for the name of an engine.
pub(super) const ENGINE: u64 = u64::MAX - 1;

pub(super) fn decode_engine(payload: &[u8]) -> Option<&str> {
    std::str::from_utf8(payload.strip_prefix(&ENGINE.to_le_bytes())?).ok()
}

pub(super) fn encode_outcome(outcome: &Outcome, frame: &mut Vec<u8>) {
    let DamagedTile { tile, problem } = match outcome {
        Outcome::Row(row) => return encode(row, frame),
        Outcome::Damaged(damaged) => damaged,
    };
    frame.clear();
    frame.resize(8, 0);
    for value in [DAMAGED, tile.index] {
        frame.extend_from_slice(&value.to_le_bytes());
    }
    for value in [tile.x, tile.y, tile.side] {
        frame.extend_from_slice(&value.to_le_bytes());
    }
    for text in [&tile.id, problem] {
        frame.extend_from_slice(&(text.len() as u32).to_le_bytes());
        frame.extend_from_slice(text.as_bytes());
    }
    finish_frame(frame);
}

pub(super) fn decode_outcome(payload: &[u8]) -> Option<Outcome> {
    let Some(mut bytes) = payload.strip_prefix(&DAMAGED.to_le_bytes()) else {
        return decode(payload).map(Outcome::Row);
    };
    let index = u64::from_le_bytes(take(&mut bytes)?);
    let x = f64::from_le_bytes(take(&mut bytes)?);
    let y = f64::from_le_bytes(take(&mut bytes)?);
    let side = f64::from_le_bytes(take(&mut bytes)?);
    let mut text = || {
        let length = u32::from_le_bytes(take(&mut bytes)?) as usize;
        let (text, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        std::str::from_utf8(text).ok().map(str::to_owned)
    };
    let (id, problem) = (text()?, text()?);
    let tile = Tile { index, id, x, y, side };
    bytes.is_empty().then_some(Outcome::Damaged(DamagedTile { tile, problem }))
}

/// The first bytes, which are taken off.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = bytes.split_first_chunk::<N>()?;
    *bytes = tail;
    Some(*head)
}

pub(crate) fn encode(row: &Row, frame: &mut Vec<u8>) {
    frame.clear();
    frame.resize(8, 0);
    frame.extend_from_slice(&row.tile.index.to_le_bytes());
    for value in [row.tile.x, row.tile.y, row.tile.side] {
        frame.extend_from_slice(&value.to_le_bytes());
    }
    for value in [row.tissue, row.confidence] {
        frame.extend_from_slice(&value.to_le_bytes());
    }
    frame.extend_from_slice(&(row.tile.id.len() as u32).to_le_bytes());
    frame.extend_from_slice(row.tile.id.as_bytes());
    for value in &row.expression {
        frame.extend_from_slice(&value.to_le_bytes());
    }
    finish_frame(frame);
}

pub(crate) fn decode(payload: &[u8]) -> Option<Row> {
    let mut bytes = payload;
    let index = u64::from_le_bytes(take(&mut bytes)?);
    let x = f64::from_le_bytes(take(&mut bytes)?);
    let y = f64::from_le_bytes(take(&mut bytes)?);
    let side = f64::from_le_bytes(take(&mut bytes)?);
    let tissue = f32::from_le_bytes(take(&mut bytes)?);
    let confidence = f32::from_le_bytes(take(&mut bytes)?);
    let id_length = u32::from_le_bytes(take(&mut bytes)?) as usize;
    let (id, values) = bytes.split_at_checked(id_length)?;
    let id = std::str::from_utf8(id).ok()?.to_owned();
    let (values, rest) = values.as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    let expression = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
    Some(Row { tile: Tile { index, id, x, y, side }, tissue, confidence, expression })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_any_bytes_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_outcome(&bytes);
        }
    }
}
