use std::path::Path;

use clap::Parser;
use image::{Rgb, RgbImage};

use super::*;
use crate::data::{PairedDataset, Unit};

const WIDTH: u32 = 120;
const HEIGHT: u32 = 90;

/// The command line of `prepare`, parsed as the program does.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: PrepareArgs,
}

fn args(source: &Path, output: &Path, rest: &str) -> PrepareArgs {
    let line = ["prepare".as_ref(), source.as_os_str(), "-o".as_ref(), output.as_os_str()];
    Line::parse_from(line.into_iter().chain(rest.split_whitespace().map(AsRef::as_ref))).args
}

/// A colour that tells where on the image a pixel is.
fn pixel(x: u32, y: u32) -> Rgb<u8> {
    Rgb([x as u8, y as u8, (x + y) as u8])
}

fn section(source: &Path, name: &str, counts: &str, spots: &str, image: bool) {
    for folder in ["counts", "spots", "images"] {
        std::fs::create_dir_all(source.join(folder)).unwrap();
    }
    std::fs::write(source.join(format!("counts/{name}.tsv")), counts).unwrap();
    std::fs::write(source.join(format!("spots/{name}_selection.tsv")), spots).unwrap();
    if image {
        let picture = RgbImage::from_fn(WIDTH, HEIGHT, pixel);
        picture.save(source.join(format!("images/{name}.png"))).unwrap();
    }
}

const SPOTS: &str = "x\ty\tpixel_x\tpixel_y\n";

/// Two whole sections with every kind of bad row, and one without an image.
fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let counts = "\tA\tB\n1x1\t3\t1\n1x2\t0\t2\n1x3\t5\t5\n1x4\t-1\t0\n1x5\t0\t0\n1x6\t1\t1\n\
                  9x9\t1\t1\n";
    let spots = format!(
        "{SPOTS}1\t1\t20.4\t30\n1\t2\t60\t40\n1\t3\t2\t40\n1\t4\t60\t60\n1\t5\t60\t70\n\
         1\t7\t60\t70\n1\t8\tx\t70\n"
    );
    section(dir.path(), "C1", counts, &spots, true);
    section(dir.path(), "D1", "\tC\tA\n2x2\t7\t1\n", &format!("{SPOTS}2\t2\t50\t50\n"), true);
    section(dir.path(), "D2", "\tC\tA\n2x2\t7\t1\n", &format!("{SPOTS}2\t2\t50\t50\n"), false);
    dir
}

#[test]
fn every_row_is_kept_or_named() {
    let (source, work) = (source(), tempfile::tempdir().unwrap());
    let output = work.path().join("data");
    let args = args(source.path(), &output, "--mpp 1 --tile-px 16 --patient-from-prefix 1");
    let manifest = prepare(&args).unwrap();
    assert_eq!((manifest.tiles, manifest.genes, manifest.unit), (3, 3, Unit::Counts));
    let report = &manifest.sections[0];
    let skipped: Vec<_> =
        report.skipped.iter().map(|(reason, names)| (reason.as_str(), names.join(";"))).collect();
    let expected = [
        ("row of counts with a negative count", "1x4 (line 5, A is -1)"),
        ("row of counts without a usable spot", "1x6;9x9"),
        ("spot whose pixel position is not a number", "1x8 (line 8)"),
        ("spot whose tile reaches outside the image", "1x3 (centre 2, 40)"),
        ("spot without a row of counts", "1x7"),
        ("spot without any count", "1x5"),
    ];
    assert_eq!(skipped, expected.map(|(reason, names)| (reason, names.to_owned())));
    assert_eq!((report.kept, report.spots_read, report.counts_read), (2, 7, 7));
    assert_eq!(manifest.sections_left_out[0].0, "D2");
    assert!(manifest.sections_left_out[0].1.contains("images"));
    let printed = summary(&manifest);
    for words in ["2 slides of 2 patients", "3 tiles of 16 px", "D2: left out", "1x6, 9x9"] {
        assert!(printed.contains(words), "{words:?} is not in\n{printed}");
    }

    let data = PairedDataset::open(&output).unwrap();
    assert_eq!(data.genes(), ["A", "B", "C"]);
    assert_eq!(data.manifest(), &manifest);
    assert_eq!((data.slide(2), data.patient(2), data.barcode(2)), ("D1", "D", "2x2"));
    assert_eq!(data.counts(0), [3.0, 1.0, 0.0]);
    assert_eq!(data.counts(2), [1.0, 0.0, 7.0]);
    assert_eq!(data.centre(0), (20.4, 30.0));
    assert!(output.join("overview/C1.png").is_file());
    assert!(data.unlabelled().is_none());
}

#[test]
fn tiles_are_the_images_own_pixels_around_the_spot() {
    let (source, work) = (source(), tempfile::tempdir().unwrap());
    let output = work.path().join("data");
    prepare(&args(source.path(), &output, "--mpp 0.5 --tile-px 16 --slides C1")).unwrap();
    let data = PairedDataset::open(&output).unwrap();
    // The centre 20.4, 30 puts the corner on the whole pixel 12, 22.
    let expected: Vec<u8> =
        (22..38).flat_map(|y| (12..28).flat_map(move |x| pixel(x, y).0)).collect();
    assert_eq!(data.image(0).unwrap(), expected);
    assert_eq!(data.um_per_px(), 0.5);
}

#[test]
fn tiles_of_another_scale_cover_the_same_ground() {
    let (source, work) = (source(), tempfile::tempdir().unwrap());
    let output = work.path().join("data");
    let line = "--mpp 0.5 --um-per-px 1 --tile-px 8 --slides D1";
    prepare(&args(source.path(), &output, line)).unwrap();
    let data = PairedDataset::open(&output).unwrap();
    let image = data.image(0).unwrap();
    assert_eq!(image.len(), 8 * 8 * 3);
    // 16 px of the image from 42 on in 8 px: pixel i covers 42 + 2i and 43 + 2i.
    for (i, value) in image.iter().step_by(3).take(8).enumerate() {
        assert!(value.abs_diff(42 + 2 * i as u8) <= 1, "{i}: {value}");
    }
}

#[test]
fn strict_refuses_and_leaves_nothing() {
    let (source, work) = (source(), tempfile::tempdir().unwrap());
    let output = work.path().join("data");
    let error = prepare(&args(source.path(), &output, "--mpp 1 --tile-px 16 --strict"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("--strict") && error.contains("1x4"), "{error}");
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 0);
}

#[test]
fn a_killed_run_goes_on_from_the_slides_it_cut() {
    let (source, work) = (source(), tempfile::tempdir().unwrap());
    let (straight, output) = (work.path().join("straight"), work.path().join("data"));
    // Noise, so that the file is larger than the ends by which it is recognised.
    let image = source.path().join("images/C1.png");
    let mut random = crate::train::random::Stream::keyed(1, &[]);
    let picture = RgbImage::from_fn(1200, 900, |_, _| {
        let bits = random.bits().to_le_bytes();
        Rgb([bits[0], bits[1], bits[2]])
    });
    picture.save(&image).unwrap();
    let line = "--mpp 1 --tile-px 16 --slides C1,D1 --unlabelled --min-tissue 0 --stride 300";
    let manifest = prepare(&args(source.path(), &straight, line)).unwrap();

    let arguments = args(source.path(), &output, line);
    let partial = Partial::create(&output, false).unwrap();
    let mut first = Work::new(&arguments, importer("legacy-st").unwrap(), partial.path());
    first.add("C1", "C1".into()).unwrap();
    drop(first);
    // As a kill leaves it.
    std::mem::forget(partial);
    // The image's pixels are not needed again: they are gone from the middle of the file.
    let mut bytes = std::fs::read(&image).unwrap();
    assert!(bytes.len() > 2 << 20, "{} bytes", bytes.len());
    let middle = bytes.len() / 2;
    bytes[middle..middle + 1000].fill(0);
    std::fs::write(&image, bytes).unwrap();
    let resumed = prepare(&arguments).unwrap();
    assert_eq!(resumed.images_sha256, manifest.images_sha256);
    assert_eq!(resumed.unlabelled, manifest.unlabelled);
    assert!(!output.join("cut").exists());
    assert!(!work.path().join("data.partial").exists());
}

#[test]
fn requests_that_cannot_be_met_say_why() {
    let (source, work) = (source(), tempfile::tempdir().unwrap());
    let output = work.path().join("data");
    let problem =
        |line: &str| prepare(&args(source.path(), &output, line)).unwrap_err().to_string();
    assert!(problem("--slides C1").contains("--mpp"));
    assert!(problem("--mpp 1 --slides C1,X9").contains("no slide called X9; it has C1, D1, D2"));
    assert!(problem("--mpp 1 --slides D2").contains("no file here"));
    assert!(problem("--mpp 0").contains("above zero"));
    assert!(problem("--mpp 1 --tile-px 224").contains("no row of it can be used"));
    assert!(problem("--mpp 1 --from diffbulk-pairs").contains("_patch.h5"));
    assert!(!output.exists());
}

#[test]
fn an_existing_directory_is_replaced_only_on_request_and_only_if_ours() {
    let (source, work) = (source(), tempfile::tempdir().unwrap());
    let output = work.path().join("data");
    let run = |rest: &str| {
        prepare(&args(source.path(), &output, &format!("--mpp 1 --tile-px 16 {rest}")))
    };
    run("--slides D1").unwrap();
    assert!(run("").unwrap_err().to_string().contains("--overwrite"));
    // What a killed run left behind is swept away.
    std::fs::create_dir(work.path().join("data.partial")).unwrap();
    assert_eq!(run("--overwrite").unwrap().tiles, 3);
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 1);
    std::fs::remove_file(output.join("dataset.json")).unwrap();
    assert!(run("--overwrite").unwrap_err().to_string().contains("not a paired dataset"));
}

#[test]
fn pairs_keep_their_unit_and_are_normalised_once() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("pairs");
    std::fs::create_dir(&source).unwrap();
    let mut builder = hdf5_pure::FileBuilder::new();
    let pixels: Vec<u8> = (0..3 * 4 * 4 * 3).map(|v| v as u8).collect();
    builder.create_dataset("img").with_u8_data(&pixels).with_shape(&[3, 4, 4, 3]);
    builder.write(source.join("s_patch.h5")).unwrap();
    let mut builder = hdf5_pure::FileBuilder::new();
    let values = [0.5f32, 1.5, 0.0, 0.0, 2.0, 0.25];
    builder.create_dataset("genes").with_f32_data(&values).with_shape(&[3, 2]);
    builder.create_dataset("gene_names").with_vlen_strings(&["A", "B"]);
    builder.write(source.join("s_gene.h5")).unwrap();

    let output = work.path().join("data");
    let from = |rest: &str| args(&source, &output, &format!("--from diffbulk-pairs {rest}"));
    let problem = |rest: &str| prepare(&from(rest)).unwrap_err().to_string();
    assert!(problem("").contains("--mpp"));
    assert!(problem("--mpp 0.5 --tile-px 8").contains("4 px"));
    assert!(problem("--mpp 0.5 --um-per-px 1").contains("not resampled"));
    assert!(problem("--mpp 0.5 --unlabelled").contains("whole images"));

    let manifest = prepare(&from("--mpp 0.5")).unwrap();
    assert_eq!((manifest.unit, manifest.tiles), (Unit::Log1p, 2));
    assert_eq!(manifest.sections[0].skipped["tile without any expression"], ["1"]);
    let data = PairedDataset::open(&output).unwrap();
    assert_eq!(data.expression(0), [0.5, 1.5]);
    assert_eq!(data.expression(1), [2.0, 0.25]);
    assert_eq!(data.image(1).unwrap(), pixels[96..]);
    assert!(data.centre(0).0.is_nan());
}

#[test]
fn unlabelled_tiles_lie_on_the_tissue() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    section(&source, "S", "\tA\n1x1\t1\n", &format!("{SPOTS}1\t1\t300\t300\n"), false);
    // A textured violet block on white, 3 mm wide at 5 um/px.
    let picture = RgbImage::from_fn(1000, 800, |x, y| {
        let inside = (150..750).contains(&x) && (150..650).contains(&y);
        let shade = ((x * 7 + y * 13 + x * y) % 60) as u8;
        if inside { Rgb([130 + shade / 2, 70 + shade, 150 + shade / 2]) } else { Rgb([245; 3]) }
    });
    picture.save(source.join("images/S.png")).unwrap();
    let output = work.path().join("data");
    let line = "--mpp 5 --tile-px 50 --unlabelled --stride 100 --min-tissue 0.9";
    let manifest = prepare(&args(&source, &output, line)).unwrap();
    let data = PairedDataset::open(&output).unwrap();
    let unlabelled = data.unlabelled().unwrap();
    assert_eq!(unlabelled.len(), manifest.sections[0].unlabelled);
    assert!((15..=36).contains(&unlabelled.len()), "{} tiles", unlabelled.len());
    for row in 0..unlabelled.len() {
        assert_eq!(unlabelled.slide(row), "S");
        let image = unlabelled.image(row).unwrap();
        let white = image.iter().filter(|v| **v == 245).count();
        assert!(white * 5 < image.len(), "tile {row} is mostly background");
    }
}
