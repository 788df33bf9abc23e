//! A file as protobuf decoding reads it: piece by piece, so that it never lies in memory as a whole
//! beside what is decoded from it, and hashed on the way.

use std::io::{self, Read};

use prost::bytes::{Buf, Bytes};
use sha2::{Digest, Sha256};

/// Bytes read at a time.
const PIECE: usize = 1 << 16;

/// The next `remaining` bytes of a reader. After an error it goes on with zeros, as [`Buf`] cannot
/// fail; [`Stream::finish`] tells.
pub(super) struct Stream<R> {
    reader: R,
    hash: Sha256,
    /// Not taken yet, the piece included.
    remaining: usize,
    piece: Vec<u8>,
    /// First byte of the piece that is not taken yet.
    at: usize,
    error: Option<io::Error>,
}

impl<R: Read> Stream<R> {
    pub(super) fn new(reader: R, length: usize) -> Self {
        let piece = Vec::with_capacity(PIECE.min(length));
        let mut stream =
            Self { reader, hash: Sha256::new(), remaining: length, piece, at: 0, error: None };
        stream.refill();
        stream
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// What went wrong while reading, a file that ends early included.
    pub(super) fn finish(mut self) -> io::Result<Sha256> {
        self.advance(self.remaining);
        self.error.map_or(Ok(self.hash), Err)
    }

    fn refill(&mut self) {
        let length = self.remaining.min(PIECE);
        let mut piece = std::mem::take(&mut self.piece);
        piece.resize(length, 0);
        self.read(&mut piece);
        (self.piece, self.at) = (piece, 0);
    }

    fn read(&mut self, to: &mut [u8]) {
        if self.error.is_none() {
            match self.reader.read_exact(to) {
                Ok(()) => return self.hash.update(to),
                Err(error) => self.error = Some(error),
            }
        }
        to.fill(0);
    }
}

impl<R: Read> Buf for Stream<R> {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        &self.piece[self.at..]
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "{count} of {} bytes", self.remaining);
        loop {
            let step = count.min(self.piece.len() - self.at);
            self.at += step;
            self.remaining -= step;
            count -= step;
            if self.at == self.piece.len() && self.remaining > 0 {
                self.refill();
            }
            if count == 0 {
                return;
            }
        }
    }

    /// Large tensors are read to where they stay.
    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        assert!(length <= self.remaining, "{length} of {} bytes", self.remaining);
        let mut all = vec![0; length];
        let here = length.min(self.piece.len() - self.at);
        all[..here].copy_from_slice(&self.piece[self.at..self.at + here]);
        self.read(&mut all[here..]);
        self.at += here;
        self.remaining -= length;
        if self.at == self.piece.len() && self.remaining > 0 {
            self.refill();
        }
        Bytes::from(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn gives_and_hashes_the_bytes_whatever_the_steps(
            length in 0usize..3 * PIECE,
            steps in prop::collection::vec((any::<bool>(), 0usize..PIECE + 9), 0..12),
        ) {
            let bytes: Vec<u8> = (0..length).map(|k| (k * k / 7) as u8).collect();
            let mut stream = Stream::new(&bytes[..], length);
            let mut left = &bytes[..];
            for (copy, step) in steps {
                let step = step.min(left.len());
                prop_assert_eq!(stream.remaining(), left.len());
                prop_assert_eq!(stream.chunk().is_empty(), left.is_empty());
                prop_assert!(left.starts_with(stream.chunk()));
                if copy {
                    prop_assert_eq!(&stream.copy_to_bytes(step)[..], &left[..step]);
                } else {
                    stream.advance(step);
                }
                left = &left[step..];
            }
            prop_assert_eq!(stream.finish().unwrap().finalize(), Sha256::digest(&bytes));
        }
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let bytes = [7; 100];
        let mut stream = Stream::new(&bytes[..], PIECE + 100);
        assert_eq!(stream.copy_to_bytes(PIECE + 50).len(), PIECE + 50);
        assert_eq!(stream.finish().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
