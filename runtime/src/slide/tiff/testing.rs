//! Writes TIFF files of any layout, valid or not, for the tests of the reader.

use super::directory::tag;

/// A value of a directory entry.
#[derive(Clone)]
pub(super) enum Value {
    Short(Vec<u16>),
    Long(Vec<u32>),
    Rational(u32, u32),
    Text(String),
    Bytes(Vec<u8>),
}

/// One image: its entries, and its chunks, whose offsets and counts are filled in.
#[derive(Clone)]
pub(super) struct Page {
    pub(super) tags: Vec<(u16, Value)>,
    pub(super) chunks: Vec<Vec<u8>>,
    /// Images that this one references as sub-images.
    pub(super) children: Vec<Page>,
}

impl Page {
    /// An 8-bit RGB image of the given size and compression, without chunks yet.
    pub(super) fn rgb(width: u32, height: u32, compression: u16) -> Self {
        let tags = vec![
            (tag::IMAGE_WIDTH, Value::Long(vec![width])),
            (tag::IMAGE_LENGTH, Value::Long(vec![height])),
            (tag::BITS_PER_SAMPLE, Value::Short(vec![8; 3])),
            (tag::COMPRESSION, Value::Short(vec![compression])),
            (tag::PHOTOMETRIC, Value::Short(vec![2])),
            (tag::SAMPLES_PER_PIXEL, Value::Short(vec![3])),
        ];
        Self { tags, chunks: Vec::new(), children: Vec::new() }
    }

    /// The same with an entry added or replaced.
    pub(super) fn with(mut self, tag: u16, value: Value) -> Self {
        self.tags.retain(|(own, _)| *own != tag);
        self.tags.push((tag, value));
        self
    }

    /// The same with tiles of `side` px; `encode` makes the stored bytes of the RGB pixels of
    /// one, and `pixel` gives the pixels of the image.
    pub(super) fn tiles(
        mut self,
        side: u32,
        pixel: impl Fn(u32, u32) -> [u8; 3],
        encode: impl Fn(&[u8], u32, u32) -> Vec<u8>,
    ) -> Self {
        let (width, height) = self.size();
        for top in (0..height).step_by(side as usize) {
            for left in (0..width).step_by(side as usize) {
                let mut rgb = Vec::new();
                for y in top..top + side {
                    for x in left..left + side {
                        // Beyond the edge the last pixel repeats, as encoders do.
                        rgb.extend(pixel(x.min(width - 1), y.min(height - 1)));
                    }
                }
                self.chunks.push(encode(&rgb, side, side));
            }
        }
        self.with(tag::TILE_WIDTH, Value::Long(vec![side]))
            .with(tag::TILE_LENGTH, Value::Long(vec![side]))
    }

    fn size(&self) -> (u32, u32) {
        let find = |wanted| match self.tags.iter().find(|(tag, _)| *tag == wanted) {
            Some((_, Value::Long(values))) => values[0],
            _ => 0,
        };
        (find(tag::IMAGE_WIDTH), find(tag::IMAGE_LENGTH))
    }
}

/// Byte order and offset size of a file.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) little: bool,
    pub(super) big: bool,
}

/// The plain little-endian TIFF.
pub(super) const CLASSIC: Layout = Layout { little: true, big: false };

struct Writer {
    out: Vec<u8>,
    layout: Layout,
}

/// The bytes of a file with `pages` as its main chain.
pub(super) fn write(pages: &[Page], layout: Layout) -> Vec<u8> {
    let mut writer = Writer { out: Vec::new(), layout };
    writer.out.extend(if layout.little { b"II" } else { b"MM" });
    writer.number(if layout.big { 43 } else { 42 }, 2);
    if layout.big {
        writer.number(8, 2);
        writer.number(0, 2);
    }
    let mut link = writer.out.len();
    writer.offset(0);
    for page in pages {
        let (at, next) = writer.page(page);
        writer.patch(link, at);
        link = next;
    }
    writer.out
}

impl Writer {
    fn number(&mut self, value: u64, size: usize) {
        if self.layout.little {
            self.out.extend(&value.to_le_bytes()[..size]);
        } else {
            self.out.extend(&value.to_be_bytes()[8 - size..]);
        }
    }

    fn offset_size(&self) -> usize {
        if self.layout.big { 8 } else { 4 }
    }

    fn offset(&mut self, value: u64) {
        self.number(value, self.offset_size());
    }

    fn patch(&mut self, at: usize, value: u64) {
        let end = self.out.split_off(at + self.offset_size());
        self.out.truncate(at);
        self.offset(value);
        self.out.extend(end);
    }

    /// Writes a page and returns its offset and where the link to the next one is.
    fn page(&mut self, page: &Page) -> (u64, usize) {
        let mut offsets = Vec::new();
        for chunk in &page.chunks {
            offsets.push(if chunk.is_empty() { 0 } else { self.out.len() as u32 });
            self.out.extend(chunk);
        }
        let mut tags = page.tags.clone();
        let tiled = tags.iter().any(|(own, _)| *own == tag::TILE_WIDTH);
        let (at, counts) = if tiled {
            (tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS)
        } else {
            (tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS)
        };
        if !page.chunks.is_empty() {
            tags.push((at, Value::Long(offsets)));
            let lengths = page.chunks.iter().map(|chunk| chunk.len() as u32).collect();
            tags.push((counts, Value::Long(lengths)));
        }
        if !page.children.is_empty() {
            let children = page.children.iter().map(|child| self.page(child).0 as u32).collect();
            tags.push((tag::SUB_IFDS, Value::Long(children)));
        }
        tags.sort_by_key(|(tag, _)| *tag);

        let mut entries = Vec::new();
        for (tag, value) in tags {
            let (kind, count, bytes) = self.bytes(&value);
            let mut field = bytes.clone();
            if bytes.len() > self.offset_size() {
                let at = self.out.len() as u64;
                self.out.extend(&bytes);
                let mut inline = Writer { out: Vec::new(), layout: self.layout };
                inline.offset(at);
                field = inline.out;
            }
            field.resize(self.offset_size(), 0);
            entries.push((tag, kind, count, field));
        }
        let at = self.out.len() as u64;
        self.number(entries.len() as u64, if self.layout.big { 8 } else { 2 });
        for (tag, kind, count, field) in entries {
            self.number(tag.into(), 2);
            self.number(kind, 2);
            self.offset(count);
            self.out.extend(field);
        }
        let link = self.out.len();
        self.offset(0);
        (at, link)
    }

    fn bytes(&self, value: &Value) -> (u64, u64, Vec<u8>) {
        let mut writer = Writer { out: Vec::new(), layout: self.layout };
        let (kind, count) = match value {
            Value::Short(values) => {
                values.iter().for_each(|&value| writer.number(value.into(), 2));
                (3, values.len())
            }
            Value::Long(values) => {
                values.iter().for_each(|&value| writer.number(value.into(), 4));
                (4, values.len())
            }
            Value::Rational(numerator, denominator) => {
                writer.number((*numerator).into(), 4);
                writer.number((*denominator).into(), 4);
                (5, 1)
            }
            Value::Text(text) => {
                writer.out.extend(text.as_bytes());
                writer.out.push(0);
                (2, text.len() + 1)
            }
            Value::Bytes(bytes) => {
                writer.out.extend(bytes);
                (7, bytes.len())
            }
        };
        (kind, count as u64, writer.out)
    }
}
