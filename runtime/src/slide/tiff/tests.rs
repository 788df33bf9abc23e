//! Layouts, compressions, levels, scales and damage.

use std::io::Write;

use image::{ExtendedColorType, ImageEncoder};
use proptest::prelude::*;
use tiff::encoder::{Compression, DeflateLevel, Predictor, TiffEncoder, colortype};

use super::testing::{CLASSIC, Layout, Page, Value, write};
use super::*;
use crate::slide::{open, overview};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/cmu-1-small-region.svs")
}

/// A smooth picture with an edge, so that lossy codecs stay close to it.
fn picture(x: u32, y: u32) -> [u8; 3] {
    let edge = if x > 40 { 40 } else { 0 };
    [60 + (x / 2 % 100) as u8 + edge, 90 + (y / 2 % 100) as u8, 120 + ((x + y) / 4 % 80) as u8]
}

fn raw(rgb: &[u8], _: u32, _: u32) -> Vec<u8> {
    rgb.to_vec()
}

fn deflated(rgb: &[u8], _: u32, _: u32) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(rgb).unwrap();
    encoder.finish().unwrap()
}

/// A JFIF stream: YCbCr.
fn jfif(rgb: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut out = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 98)
        .write_image(rgb, width, height, ExtendedColorType::Rgb8)
        .unwrap();
    out
}

/// A stream without a JFIF marker, as TIFF writers store.
fn bare_jpeg(rgb: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut stream = jfif(rgb, width, height);
    assert_eq!(stream[2..4], [0xFF, 0xE0]);
    let length = usize::from(u16::from_be_bytes([stream[4], stream[5]]));
    stream.drain(2..4 + length);
    stream
}

/// A stream whose components are red, green and blue themselves: the encoder's own conversion is
/// undone beforehand.
fn rgb_jpeg(rgb: &[u8], width: u32, height: u32) -> Vec<u8> {
    let converted: Vec<u8> = rgb
        .chunks_exact(3)
        .flat_map(|pixel| {
            let [y, cb, cr] = [pixel[0], pixel[1], pixel[2]].map(f32::from);
            let (cb, cr) = (cb - 128.0, cr - 128.0);
            [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb]
                .map(|value| value.round() as u8)
        })
        .collect();
    bare_jpeg(&converted, width, height)
}

fn saved(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn refusal(bytes: &[u8]) -> String {
    let file = saved(bytes);
    open(file.path()).map(|_| ()).unwrap_err().to_string()
}

/// Largest difference of level 0 to [`picture`].
fn difference(bytes: &[u8]) -> u8 {
    difference_to(bytes, picture)
}

fn difference_to(bytes: &[u8], pixel: impl Fn(u32, u32) -> [u8; 3]) -> u8 {
    let file = saved(bytes);
    let slide = open(file.path()).unwrap();
    let level = &slide.info().levels[0];
    let region = slide.read_region(0, 0, 0, level.width, level.height).unwrap();
    region
        .enumerate_pixels()
        .flat_map(|(x, y, read)| std::iter::zip(read.0, pixel(x, y)))
        .map(|(read, wanted)| read.abs_diff(wanted))
        .max()
        .unwrap()
}

#[test]
fn both_byte_orders_and_offset_sizes_are_read() {
    for (little, big) in [(true, false), (false, false), (true, true), (false, true)] {
        let page = Page::rgb(100, 70, 8).tiles(32, picture, deflated);
        let bytes = write(&[page], Layout { little, big });
        assert_eq!(difference(&bytes), 0, "little {little} big {big}");
        let file = saved(&bytes);
        let format = open(file.path()).unwrap().info().format.clone();
        assert_eq!(format, if big { "BigTIFF" } else { "TIFF" });
    }
}

#[test]
fn files_of_an_independent_writer_are_read() {
    let (width, height) = (150, 90);
    let data: Vec<u8> =
        (0..height).flat_map(|y| (0..width).flat_map(move |x| picture(x, y))).collect();
    for (name, compression) in [
        ("none", Compression::Uncompressed),
        ("LZW", Compression::Lzw),
        ("Deflate", Compression::Deflate(DeflateLevel::Balanced)),
        ("PackBits", Compression::Packbits),
    ] {
        for predictor in [Predictor::None, Predictor::Horizontal] {
            for rows in [1, 7, height] {
                let mut out = std::io::Cursor::new(Vec::new());
                let mut encoder = TiffEncoder::new_big(&mut out)
                    .unwrap()
                    .with_compression(compression)
                    .with_predictor(match compression {
                        Compression::Lzw | Compression::Deflate(_) => predictor,
                        _ => Predictor::None,
                    });
                let mut image = encoder.new_image::<colortype::RGB8>(width, height).unwrap();
                image.rows_per_strip(rows).unwrap();
                image.write_data(&data).unwrap();
                assert_eq!(difference(&out.into_inner()), 0, "{name} rows {rows}");
            }
        }
    }
}

#[test]
fn jpeg_colours_follow_the_directory_unless_it_cannot_be_true() {
    let page =
        |photometric| Page::rgb(96, 64, 7).with(tag::PHOTOMETRIC, Value::Short(vec![photometric]));
    let file = |page: Page, encode: fn(&[u8], u32, u32) -> Vec<u8>| {
        write(&[page.tiles(32, picture, encode)], CLASSIC)
    };
    assert!(difference(&file(page(6), bare_jpeg)) <= 6, "declared YCbCr");
    assert!(difference(&file(page(2), rgb_jpeg)) <= 6, "declared RGB");
    assert!(difference(&file(page(2), jfif)) <= 6, "declared RGB, but JFIF is always YCbCr");
    let with_adobe = |transform: u8| {
        move |rgb: &[u8], width: u32, height: u32| {
            let mut stream = if transform == 0 { rgb_jpeg } else { bare_jpeg }(rgb, width, height);
            let marker =
                [0xFF, 0xEE, 0, 14, b'A', b'd', b'o', b'b', b'e', 0, 100, 0, 0, 0, 0, transform];
            stream.splice(2..2, marker);
            stream
        }
    };
    let adobe = |transform| write(&[page(2).tiles(32, picture, with_adobe(transform))], CLASSIC);
    assert!(difference(&adobe(0)) <= 6, "Adobe: no transform");
    assert!(difference(&adobe(1)) <= 6, "declared RGB, but Adobe names YCbCr");
}

#[test]
fn jpeg_tables_are_shared_between_tiles() {
    // The tables of one tile serve all, as every tile was encoded with the same quality.
    let split = |stream: &[u8]| {
        let frame = stream.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        let frame_length = usize::from(u16::from_be_bytes([stream[frame + 2], stream[frame + 3]]));
        let after = frame + 2 + frame_length;
        let scan = stream.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap();
        let tables = [&stream[..frame], &stream[after..scan], &[0xFF, 0xD9]].concat();
        let rest = [&[0xFF, 0xD8], &stream[frame..after], &stream[scan..]].concat();
        (tables, rest)
    };
    let (tables, _) = split(&bare_jpeg(&[0; 32 * 32 * 3], 32, 32));
    let page = Page::rgb(96, 64, 7)
        .with(tag::PHOTOMETRIC, Value::Short(vec![6]))
        .with(tag::JPEG_TABLES, Value::Bytes(tables))
        .tiles(32, picture, |rgb, width, height| split(&bare_jpeg(rgb, width, height)).1);
    assert!(difference(&write(std::slice::from_ref(&page), CLASSIC)) <= 6);
    let without = Page { tags: page.tags[..page.tags.len() - 3].to_vec(), ..page };
    let without = without
        .with(tag::TILE_WIDTH, Value::Long(vec![32]))
        .with(tag::TILE_LENGTH, Value::Long(vec![32]));
    let file = saved(&write(&[without], CLASSIC));
    let error = open(file.path()).unwrap().read_region(0, 40, 0, 8, 8).unwrap_err().to_string();
    assert!(error.contains("tile 1 (column 1, row 0) of level 0"), "{error}");
}

#[test]
fn grey_and_transparent_images_become_rgb() {
    let grey = |photometric| {
        let mut page = Page::rgb(20, 10, 1)
            .with(tag::PHOTOMETRIC, Value::Short(vec![photometric]))
            .with(tag::SAMPLES_PER_PIXEL, Value::Short(vec![1]))
            .with(tag::BITS_PER_SAMPLE, Value::Short(vec![8]));
        page.chunks = vec![(0..200).collect()];
        write(&[page], CLASSIC)
    };
    assert_eq!(difference_to(&grey(1), |x, y| [(y * 20 + x) as u8; 3]), 0);
    assert_eq!(difference_to(&grey(0), |x, y| [255 - (y * 20 + x) as u8; 3]), 0);

    let mut page = Page::rgb(2, 1, 1)
        .with(tag::SAMPLES_PER_PIXEL, Value::Short(vec![4]))
        .with(tag::BITS_PER_SAMPLE, Value::Short(vec![8; 4]))
        .with(tag::EXTRA_SAMPLES, Value::Short(vec![2]));
    page.chunks = vec![vec![10, 20, 30, 255, 9, 9, 9, 0]];
    let seen = |x, _| if x == 0 { [10, 20, 30] } else { [255; 3] };
    assert_eq!(difference_to(&write(&[page], CLASSIC), seen), 0);
}

#[test]
fn one_huge_uncompressed_strip_is_read_in_parts() {
    let (width, height) = (2000, 900);
    let mut page = Page::rgb(width, height, 1);
    page.chunks =
        vec![(0..height).flat_map(|y| (0..width).flat_map(move |x| picture(x, y))).collect()];
    let file = saved(&write(&[page], CLASSIC));
    let slide = TiffSlide::open(file.path()).unwrap();
    assert!(slide.images[0].chunk_height < 200);
    let region = slide.read_region(0, 1990, 890, 20, 20).unwrap();
    assert_eq!(region.get_pixel(3, 4).0, picture(1993, 894));
    assert_eq!(region.get_pixel(15, 4).0, [255; 3]);
}

#[test]
fn tiles_without_data_are_white() {
    let mut page = Page::rgb(64, 32, 8).tiles(32, picture, deflated);
    page.chunks[1].clear();
    let seen = |x, y| if x < 32 { picture(x, y) } else { [255; 3] };
    assert_eq!(difference_to(&write(&[page], CLASSIC), seen), 0);
}

#[test]
fn regions_over_the_edge_are_white_outside() {
    let file = saved(&write(&[Page::rgb(50, 40, 1).tiles(16, picture, raw)], CLASSIC));
    let slide = open(file.path()).unwrap();
    let region = slide.read_region(0, -3, -2, 60, 50).unwrap();
    assert_eq!(region.get_pixel(2, 5).0, [255; 3]);
    assert_eq!(region.get_pixel(3, 2).0, picture(0, 0));
    assert_eq!(region.get_pixel(52, 41).0, picture(49, 39));
    assert_eq!(region.get_pixel(53, 41).0, [255; 3]);
    for (x, y) in [(i64::MIN, 0), (i64::MAX, i64::MAX), (1000, -1000)] {
        let region = slide.read_region(0, x, y, 4, 4).unwrap();
        assert!(region.pixels().all(|pixel| pixel.0 == [255; 3]));
    }
    assert!(slide.read_region(1, 0, 0, 1, 1).unwrap_err().to_string().contains("level 1"));
    assert!(slide.read_region(0, 0, 0, u32::MAX, u32::MAX).is_err());
}

fn pyramid() -> Vec<Page> {
    let reduced = |factor: u32| move |x: u32, y: u32| picture(x * factor, y * factor);
    let level = |factor: u32| {
        Page::rgb(300 / factor, 250 / factor, 8)
            .with(tag::NEW_SUBFILE_TYPE, Value::Long(vec![u32::from(factor > 1)]))
            .tiles(64, reduced(factor), deflated)
    };
    vec![level(1), level(2), level(4), level(8)]
}

#[test]
fn levels_are_found_in_the_chain_and_in_sub_images() {
    let chain = pyramid();
    let mut nested = chain.clone();
    let mut base = nested.remove(0);
    base.children = nested;
    for pages in [chain, vec![base]] {
        let file = saved(&write(&pages, CLASSIC));
        let slide = open(file.path()).unwrap();
        let found: Vec<_> =
            slide.info().levels.iter().map(|l| (l.width, l.height, l.downsample)).collect();
        assert_eq!(found, [(300, 250, 1.0), (150, 125, 2.0), (75, 62, 4.0), (37, 31, 8.0)]);
        let region = slide.read_region(2, 10, 10, 2, 2).unwrap();
        assert_eq!(region.get_pixel(0, 0).0, picture(40, 40));
    }
}

#[test]
fn scales_come_from_resolution_tags_only_where_they_are_plausible() {
    let scale = |unit: u16, resolution: (u32, u32)| {
        let page = Page::rgb(32, 32, 8)
            .with(tag::RESOLUTION_UNIT, Value::Short(vec![unit]))
            .with(tag::X_RESOLUTION, Value::Rational(resolution.0, resolution.1))
            .with(tag::Y_RESOLUTION, Value::Rational(resolution.0, resolution.1))
            .tiles(32, picture, deflated);
        let file = saved(&write(&[page], CLASSIC));
        open(file.path()).unwrap().info().um_per_px
    };
    assert_eq!(scale(3, (40_000, 1)), Some(0.25));
    assert_eq!(scale(2, (50_800, 1)), Some(0.5));
    assert_eq!(scale(3, (u32::MAX, 151_551_421)), None, "72 dpi in centimetres");
    for dpi in [72, 96, 300] {
        assert_eq!(scale(2, (dpi, 1)), None);
    }
    assert_eq!(scale(1, (40_000, 1)), None);
    assert_eq!(scale(3, (40_000, 0)), None);
    assert_eq!(scale(3, (0, 1)), None);
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let with = |tag, value: u16| {
        let page = Page::rgb(32, 32, 8).tiles(32, picture, deflated);
        refusal(&write(&[page.with(tag, Value::Short(vec![value]))], CLASSIC))
    };
    for (tag, value, expected) in [
        (tag::COMPRESSION, 33003, "JPEG 2000"),
        (tag::COMPRESSION, 33005, "vips tiffsave"),
        (tag::COMPRESSION, 50000, "Zstandard"),
        (tag::PLANAR_CONFIGURATION, 2, "separate colour planes"),
        (tag::BITS_PER_SAMPLE, 16, "16-bit"),
        (tag::SAMPLE_FORMAT, 3, "unsigned"),
        (tag::PHOTOMETRIC, 3, "palette"),
        (tag::PHOTOMETRIC, 5, "CMYK"),
        (tag::PREDICTOR, 3, "predictor 3"),
        (tag::SAMPLES_PER_PIXEL, 7, "7 samples"),
        (tag::FILL_ORDER, 2, "bit order"),
        (tag::NDPI_FORMAT, 1, "Hamamatsu NDPI"),
    ] {
        let message = with(tag, value);
        assert!(message.contains(expected), "{message}");
    }
    let leica = Page::rgb(32, 32, 8)
        .with(tag::IMAGE_DESCRIPTION, Value::Text("<?xml?><scn xmlns=\"x\">".into()))
        .tiles(32, picture, deflated);
    assert!(refusal(&write(&[leica], CLASSIC)).contains("Leica SCN"));
}

#[test]
fn lies_about_sizes_are_refused_before_memory_is_taken() {
    let with = |tag, value: u32| {
        let page = Page::rgb(64, 64, 8).tiles(32, picture, deflated);
        refusal(&write(&[page.with(tag, Value::Long(vec![value]))], CLASSIC))
    };
    for (tag, value) in [
        (tag::IMAGE_WIDTH, 0),
        (tag::IMAGE_WIDTH, u32::MAX),
        (tag::IMAGE_LENGTH, 2_000_000_000),
        (tag::TILE_WIDTH, 0),
        (tag::TILE_LENGTH, u32::MAX),
        (tag::TILE_WIDTH, 1),
    ] {
        assert!(!with(tag, value).is_empty());
    }
    let mut strips = Page::rgb(1, 2_000_000_000, 1);
    strips.chunks = vec![vec![0; 64]];
    let file = saved(&write(&[strips], CLASSIC));
    // Few bytes for many rows: refused when opened or when the missing rows are read.
    if let Ok(slide) = open(file.path()) {
        assert!(slide.read_region(0, 0, 1_000_000_000, 1, 1).is_err());
    }
}

#[test]
fn directories_that_refer_to_themselves_end() {
    let mut bytes = write(&[Page::rgb(32, 32, 8).tiles(32, picture, deflated)], CLASSIC);
    let first = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&first.to_le_bytes());
    assert!(refusal(&bytes).contains("referenced twice"));
}

#[test]
fn a_jpeg_frame_larger_than_its_tile_is_refused() {
    let page = Page::rgb(32, 32, 7).with(tag::PHOTOMETRIC, Value::Short(vec![6])).tiles(
        32,
        picture,
        |_, _, _| bare_jpeg(&[9; 3 * 256 * 256], 256, 256),
    );
    let file = saved(&write(&[page], CLASSIC));
    let error = open(file.path()).unwrap().read_region(0, 0, 0, 4, 4).unwrap_err().to_string();
    assert!(error.contains("256 x 256"), "{error}");
}

/// Pixels of the region in the test below.
const PIXELS: [(u32, u32, [u8; 3]); 6] = [
    (0, 0, [245, 241, 255]),
    (37, 211, [143, 121, 212]),
    (150, 90, [166, 106, 124]),
    (239, 240, [48, 24, 62]),
    (240, 239, [82, 24, 76]),
    (399, 399, [122, 69, 122]),
];

#[test]
fn the_aperio_slide_is_understood() {
    let slide = open(&fixture()).unwrap();
    let info = slide.info();
    assert_eq!((info.format.as_str(), info.vendor.as_deref()), ("Aperio SVS", Some("Aperio")));
    assert_eq!((info.um_per_px, info.objective), (Some(0.499), Some(20.0)));
    assert_eq!(info.levels.len(), 1, "thumbnail, label and macro are no levels");
    assert_eq!((info.levels[0].width, info.levels[0].height), (2220, 2967));
    assert_eq!((info.levels[0].codec.as_str(), info.levels[0].chunk), ("JPEG", (240, 240)));

    // Values that libjpeg-turbo (through OpenSlide 1.4) decodes, within its rounding.
    let region = slide.read_region(0, 1000, 1500, 400, 400).unwrap();
    for (x, y, expected) in PIXELS {
        let read = region.get_pixel(x, y).0;
        let off = std::iter::zip(read, expected).map(|(a, b)| a.abs_diff(b)).max().unwrap();
        assert!(off <= 2, "({x}, {y}): {read:?} for {expected:?}");
    }

    let (small, downsample) = overview(&*slide, 300).unwrap();
    assert_eq!(small.dimensions(), (225, 300));
    assert!((downsample - 2967.0 / 300.0).abs() < 1e-9);
}

#[test]
fn threads_read_the_same_pixels() {
    let slide = open(&fixture()).unwrap();
    let whole = slide.read_region(0, 0, 0, 1200, 1200).unwrap();
    std::thread::scope(|scope| {
        for offset in 0..4 {
            let (slide, whole) = (&slide, &whole);
            scope.spawn(move || {
                for step in 0..8 {
                    let (x, y) = (offset * 97 + step * 61, step * 103);
                    let region = slide.read_region(0, x.into(), y.into(), 200, 150).unwrap();
                    let same = image::imageops::crop_imm(whole, x, y, 200, 150).to_image();
                    assert_eq!(region, same);
                }
            });
        }
    });
}

#[test]
fn a_truncated_slide_names_the_chunk_or_directory() {
    let bytes = std::fs::read(fixture()).unwrap();
    // Before the first directory, within it, between directories, and one byte at the end.
    for length in [100, 500_000, 1_276_000, 1_500_000, bytes.len() - 1] {
        let message = refusal(&bytes[..length]);
        assert!(message.contains("truncated") && message.contains("offset"), "{message}");
    }
    let mut moved = Page::rgb(64, 64, 8).tiles(32, picture, deflated);
    moved = moved.with(tag::MAKE, Value::Text("x".into()));
    let mut cut = write(&[moved], CLASSIC);
    // The directory is moved in front of nothing: drop the tiles instead by claiming more bytes.
    let counts = cut.windows(4).rposition(|entry| entry[..2] == 325u16.to_le_bytes()).unwrap();
    let at = u32::from_le_bytes(cut[counts + 8..counts + 12].try_into().unwrap()) as usize;
    cut[at + 8..at + 12].copy_from_slice(&1_000_000u32.to_le_bytes());
    let message = refusal(&cut);
    assert!(message.contains("tile 2 (column 0, row 1)"), "{message}");
    assert!(message.contains("1000000 bytes at offset"), "{message}");
}

#[test]
fn every_image_of_the_file_must_be_whole() {
    // A label, which is no level and not read, whose only strip is the end of the file.
    let label = |at: u32| {
        Page::rgb(30, 50, 1)
            .with(tag::NEW_SUBFILE_TYPE, Value::Long(vec![9]))
            .with(tag::STRIP_OFFSETS, Value::Long(vec![at]))
            .with(tag::STRIP_BYTE_COUNTS, Value::Long(vec![30 * 50 * 3]))
    };
    for layout in [CLASSIC, Layout { little: false, big: true }] {
        let base = Page::rgb(64, 64, 8).tiles(32, picture, deflated);
        let end = write(&[base.clone(), label(0)], layout).len();
        let mut bytes = write(&[base, label(end as u32)], layout);
        bytes.extend([7; 30 * 50 * 3]);
        assert_eq!(difference(&bytes), 0);
        for length in [bytes.len() - 1, bytes.len() - 20, end] {
            let message = refusal(&bytes[..length]);
            assert!(message.contains("truncated") && message.contains("strip 0"), "{message}");
        }
    }
}

#[test]
fn a_damaged_tile_is_named_and_can_be_read_around() {
    let mut page = Page::rgb(96, 64, 8).tiles(32, picture, deflated);
    page.chunks[4] = vec![0x55; page.chunks[4].len()];
    let file = saved(&write(&[page], CLASSIC));
    let slide = open(file.path()).unwrap();
    let error = slide.read_region(0, 0, 0, 96, 64).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("tile 4 (column 1, row 1)"), "{error}");
    let (region, damage) = slide.read_around_damage(0, 0, 0, 96, 64).unwrap();
    for (x, y, pixel) in region.enumerate_pixels() {
        let damaged = (32..64).contains(&x) && y >= 32;
        assert_eq!(pixel.0, if damaged { [255; 3] } else { picture(x, y) }, "({x}, {y})");
    }
    assert_eq!(damage.len(), 1);
    let place = (damage[0].x, damage[0].y, damage[0].width, damage[0].height);
    assert_eq!(place, (32.0, 32.0, 32.0, 32.0));
    assert!(slide.read_region(0, 0, 0, 96, 32).is_ok());
}

/// Opens and reads everything that is not too large; any result is fine, a panic is not.
fn exercise(bytes: &[u8]) {
    let file = saved(bytes);
    let Ok(slide) = open(file.path()) else { return };
    for level in 0..slide.info().levels.len() {
        let size = &slide.info().levels[level];
        let (width, height) = (size.width.min(600), size.height.min(600));
        let _ = slide.read_region(level, 0, 0, width, height);
        let (right, bottom) = (i64::from(size.width), i64::from(size.height));
        let _ = slide.read_region(level, right - 300, bottom - 300, 400, 400);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_slides_never_panic(
        length in 0.0f64..1.3,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
    ) {
        let mut bytes = std::fs::read(fixture()).unwrap();
        // Headers are a small part of the file: damage the directory and the first tiles most.
        for (index, (position, value)) in flips.into_iter().enumerate() {
            let range = match index % 3 {
                0 => 0..8000,
                1 => 1_275_900..1_278_700,
                _ => 0..bytes.len(),
            };
            bytes[range.start + position.index(range.len())] = value;
        }
        let length = ((bytes.len() as f64 * length) as usize).min(bytes.len());
        exercise(&bytes[..length]);
    }

    #[test]
    fn damaged_pyramids_never_panic(
        big in any::<bool>(),
        little in any::<bool>(),
        length in 0.0f64..1.5,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = write(&pyramid(), Layout { little, big });
        for (position, value) in flips {
            let at = position.index(bytes.len());
            bytes[at] = value;
        }
        let length = ((bytes.len() as f64 * length) as usize).min(bytes.len());
        exercise(&bytes[..length]);
    }

    #[test]
    fn damaged_jpeg_tiles_never_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let page = Page::rgb(64, 64, 7)
            .with(tag::PHOTOMETRIC, Value::Short(vec![6]))
            .tiles(64, picture, bare_jpeg);
        let mut bytes = write(&[page], CLASSIC);
        for (position, value) in flips {
            let at = position.index(bytes.len());
            bytes[at] = value;
        }
        exercise(&bytes);
    }
}
