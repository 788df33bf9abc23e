//! A camera's chunks put together to whole pictures.

use std::time::Instant;

use diffbulk_link::limits::PIXELS;
#[cfg(test)]
use diffbulk_link::message::Shot;
use diffbulk_link::message::{Chunk, Encoding, Pixels};

/// A whole picture.
#[derive(Debug)]
pub(super) struct Picture {
    /// What it is.
    pub(super) header: Pixels,
    /// Its bytes, as many as the header says.
    pub(super) bytes: Vec<u8>,
    /// When the last of them came.
    pub(super) arrived: Instant,
}

/// Holds at most one picture under way, so a camera has at most [`PIXELS`] bytes here.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    open: Option<(Pixels, Vec<u8>)>,
}

impl Assembler {
    /// A picture begins; one that was under way is given up.
    ///
    /// # Errors
    /// When it is larger than pictures may be, or contradicts itself.
    pub(super) fn begin(&mut self, header: Pixels) -> Result<(), String> {
        self.open = None;
        let raw = 3 * u64::from(header.width) * u64::from(header.height);
        if header.bytes == 0 || header.bytes > PIXELS {
            return Err(format!("{} bytes are not between 1 and {PIXELS}", header.bytes));
        }
        let fits = match header.encoding {
            Encoding::Rgb8 => raw == u64::from(header.bytes),
            Encoding::Jpeg => raw > 0 && raw <= u64::from(PIXELS),
        };
        if !fits {
            return Err(format!(
                "{} bytes do not make {} x {} px",
                header.bytes, header.width, header.height
            ));
        }
        // Grown as bytes come: saying a size costs nothing.
        self.open = Some((header, Vec::new()));
        Ok(())
    }

    /// The next piece; the whole picture with its last one. Pieces of pictures that were given up
    /// are passed over.
    ///
    /// # Errors
    /// When it is not the piece that comes next.
    pub(super) fn push<const N: usize>(
        &mut self,
        chunk: &Chunk<N>,
    ) -> Result<Option<Picture>, String> {
        let Some((header, bytes)) = &mut self.open else { return Ok(None) };
        if chunk.shot != header.shot {
            return Ok(None);
        }
        let whole = header.bytes as usize;
        if chunk.offset as usize != bytes.len() || bytes.len() + chunk.data.len() > whole {
            let problem = format!(
                "a piece of {} bytes at {} where {} of {whole} had come",
                chunk.data.len(),
                chunk.offset,
                bytes.len()
            );
            self.open = None;
            return Err(problem);
        }
        bytes.extend_from_slice(&chunk.data);
        if bytes.len() < whole {
            return Ok(None);
        }
        let arrived = Instant::now();
        Ok(self.open.take().map(|(header, bytes)| Picture { header, bytes, arrived }))
    }

    /// The shot whose picture is under way.
    #[cfg(test)]
    pub(super) fn shot(&self) -> Option<Shot> {
        self.open.as_ref().map(|(header, _)| header.shot)
    }

    /// Gives up what is under way.
    pub(super) fn clear(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use diffbulk_link::heapless;
    use diffbulk_link::message::TileId;
    use proptest::prelude::*;

    use super::*;

    fn header(bytes: u32, width: u16, height: u16) -> Pixels {
        Pixels {
            shot: Shot { tile: TileId(1), attempt: 0 },
            encoding: Encoding::Rgb8,
            x: Default::default(),
            y: Default::default(),
            width,
            height,
            scale: Default::default(),
            bytes,
        }
    }

    fn chunk(offset: u32, data: &[u8]) -> Chunk<16> {
        Chunk {
            shot: Shot { tile: TileId(1), attempt: 0 },
            offset,
            data: heapless::Vec::from_slice(data).unwrap(),
        }
    }

    #[test]
    fn pieces_in_order_make_a_picture_and_others_do_not() {
        let mut assembler = Assembler::default();
        assembler.begin(header(12, 2, 2)).unwrap();
        assert!(assembler.push(&chunk(0, &[1; 7])).unwrap().is_none());
        let picture = assembler.push(&chunk(7, &[2; 5])).unwrap().unwrap();
        assert_eq!(picture.bytes, [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
        assert!(assembler.push(&chunk(0, &[1])).unwrap().is_none());
        for wrong in [chunk(1, &[0]), chunk(0, &[0; 13])] {
            assembler.begin(header(12, 2, 2)).unwrap();
            assembler.push(&wrong).unwrap_err();
            assert_eq!(assembler.shot(), None);
        }
        for wrong in [header(0, 0, 0), header(11, 2, 2), header(u32::MAX, 9999, 9999)] {
            assembler.begin(wrong).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn no_pieces_make_more_than_was_said(
            sizes in proptest::collection::vec((any::<u8>(), 0usize..16), 0..200),
        ) {
            let mut assembler = Assembler::default();
            assembler.begin(header(48, 4, 4)).unwrap();
            for (offset, size) in sizes {
                if let Ok(Some(picture)) = assembler.push(&chunk(offset.into(), &[0; 16][..size])) {
                    prop_assert_eq!(picture.bytes.len(), 48);
                }
            }
        }
    }
}
