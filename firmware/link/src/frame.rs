//! Frames: `COBS(payload, CRC-32 in little endian) 0x00`. The CRC is over the payload's length (32 bits, little
//! endian, not sent) and the payload.
//!
//! CRC-32/ISO-HDLC finds every burst of up to 32 bits and lets one in 2^32 of longer damage through. Without the length
//! a payload whose beginning is followed by that beginning's own CRC, as `ff ff ff` by `00 ff ff ff`, would be a good
//! frame when it is cut there. The zero byte is a frame's end and nothing else, so a reader that lost its place finds
//! it again at the next one.

use cobs::{CobsEncoder, DecodeResult, DecoderState};
use crc::{CRC_32_ISO_HDLC, Crc, Digest};
use thiserror::Error;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
const CRC_BYTES: usize = 4;

/// Why a frame was thrown away. A reader gives at most one of these a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FrameError {
    /// The zero byte came where COBS does not end.
    #[error(
        "a frame ends in the middle of a COBS run: bytes were lost or damaged; the next frame is read again"
    )]
    Cobs,
    /// More bytes than any frame of this link has.
    #[error(
        "a frame is longer than this link allows: a zero byte was lost; the next frame is read again"
    )]
    TooLong,
    /// Shorter than its own CRC.
    #[error("a frame is shorter than its CRC; the next frame is read again")]
    TooShort,
    /// The CRC-32 does not match.
    #[error("a frame's CRC-32 does not match its bytes; the next frame is read again")]
    Crc,
}

/// `buf` has no room for the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[error("the buffer for an outgoing frame is too small: give it `max_len(payload)` bytes")]
pub struct NoRoom;

/// Longest frame of a payload of `payload` bytes, its zero included.
pub const fn max_len(payload: usize) -> usize {
    cobs::max_encoding_length(payload + CRC_BYTES) + 1
}

/// Writes the frame whose payload is the concatenation of `parts`, and returns its length.
pub fn encode(parts: &[&[u8]], buf: &mut [u8]) -> Result<usize, NoRoom> {
    let len = parts.iter().map(|part| part.len()).sum();
    if buf.len() < max_len(len) {
        return Err(NoRoom);
    }
    let mut crc = seal(len);
    for part in parts {
        crc.update(part);
    }
    let mut cobs = CobsEncoder::new(buf);
    for part in parts {
        cobs.push(part).map_err(|_| NoRoom)?;
    }
    cobs.push(&crc.finalize().to_le_bytes()).map_err(|_| NoRoom)?;
    let end = cobs.finalize();
    *buf.get_mut(end).ok_or(NoRoom)? = 0;
    Ok(end + 1)
}

/// The CRC of a payload of this length, before its bytes.
fn seal(len: usize) -> Digest<'static, u32> {
    let mut crc = CRC.digest();
    crc.update(&(len as u32).to_le_bytes());
    crc
}

/// CRC-32 of `parts` one after the other, without their length.
pub fn crc32(parts: &[&[u8]]) -> u32 {
    let mut crc = CRC.digest();
    for part in parts {
        crc.update(part);
    }
    crc.finalize()
}

/// Finds frames in a stream of bytes. `N` bounds payload and CRC of a frame.
#[derive(Debug)]
pub struct FrameReader<const N: usize> {
    cobs: DecoderState,
    buf: [u8; N],
    len: usize,
    /// Set after [`FrameError::TooLong`]: everything up to the next zero belongs to that frame.
    skipping: bool,
}

impl<const N: usize> Default for FrameReader<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> FrameReader<N> {
    /// At the start of a frame.
    pub const fn new() -> Self {
        Self { cobs: DecoderState::Idle, buf: [0; N], len: 0, skipping: false }
    }

    /// Takes bytes off the front of `input` up to the end of one frame: its payload, or why there is none.
    /// `None`: `input` is used up.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<&[u8], FrameError>> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            if self.skipping {
                self.skipping = byte != 0;
                continue;
            }
            match self.cobs.feed(byte) {
                Ok(DecodeResult::NoData) => {}
                Ok(DecodeResult::DataContinue(byte)) => match self.buf.get_mut(self.len) {
                    Some(slot) => {
                        *slot = byte;
                        self.len += 1;
                    }
                    None => {
                        self.restart();
                        self.skipping = true;
                        return Some(Err(FrameError::TooLong));
                    }
                },
                Ok(DecodeResult::DataComplete) => {
                    let len = self.restart();
                    return Some(self.checked(len));
                }
                Err(_) => {
                    self.restart();
                    return Some(Err(FrameError::Cobs));
                }
            }
        }
        None
    }

    /// Forgets a half-read frame; for a new connection.
    pub fn reset(&mut self) {
        self.restart();
        self.skipping = false;
    }

    fn restart(&mut self) -> usize {
        self.cobs = DecoderState::Idle;
        core::mem::take(&mut self.len)
    }

    fn checked(&self, len: usize) -> Result<&[u8], FrameError> {
        let (payload, crc) =
            self.buf[..len].split_last_chunk::<CRC_BYTES>().ok_or(FrameError::TooShort)?;
        let mut sealed = seal(payload.len());
        sealed.update(payload);
        if sealed.finalize() == u32::from_le_bytes(*crc) {
            Ok(payload)
        } else {
            Err(FrameError::Crc)
        }
    }
}
