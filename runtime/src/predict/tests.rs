//! Whole runs on a small picture with a tiny model.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use image::{Rgb, RgbImage};

use super::*;
use crate::model::{OnnxFile, testing};

/// Side of the model's tile in pixels, at [`SCALE`].
const TILE: u32 = 32;

/// Micrometres per pixel of model and slide.
const SCALE: f64 = 2.0;

/// A directory with a slide whose left part is tissue-coloured and whose right part is bare.
struct Bench {
    root: tempfile::TempDir,
    model: Model,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let picture = RgbImage::from_fn(640, 320, |x, y| {
            // Mottled, as tissue is.
            let mottle = ((x * 7 + y * 13) % 41) as u8;
            if (32..384).contains(&x) && (32..288).contains(&y) {
                Rgb([170 + mottle, 60 + (x / 4) as u8, 140 + mottle])
            } else {
                Rgb([244, 243, 245])
            }
        });
        picture.save(root.path().join("slide.png")).unwrap();
        let mut metadata = testing::metadata(TILE, &["RED", "GREEN", "BLUE", "RED2"]);
        metadata.um_per_px = SCALE;
        let proto = testing::tiny_model(&metadata);
        let file = OnnxFile::from_proto(proto, Path::new("tiny.onnx")).unwrap();
        Self { root, model: Model::from_file(file).unwrap() }
    }

    fn request(&self, output: &str) -> Request {
        Request {
            slide: self.root.path().join("slide.png"),
            directory: self.root.path().join(output),
            um_per_px: Some(SCALE),
            genes: None,
            formats: vec!["csv".into()],
            heatmap_genes: None,
            tiles: TileSource::Grid { overlap: 0.0 },
            min_tissue: 0.25,
            threads: 2,
            engine: "tract".into(),
            options: Default::default(),
            restart: false,
        }
    }

    fn run(&self, request: &Request) -> Result<RunReport> {
        run(request, &self.model, &AtomicBool::new(false), &NoProgress)
    }

    /// Runs and stops itself after `after` new tiles.
    fn run_and_stop(&self, request: &Request, after: u64) -> RunReport {
        let stop = AtomicBool::new(false);
        let progress = StopAfter { stop: &stop, after, start: AtomicU64::new(0) };
        run(request, &self.model, &stop, &progress).unwrap()
    }

    fn csv(&self, output: &str) -> String {
        let directory = self.root.path().join(output);
        let file = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|extension| extension == "csv"))
            .unwrap();
        std::fs::read_to_string(file).unwrap()
    }

    fn journal(&self, output: &str) -> PathBuf {
        Journal::path_for(&self.root.path().join(output), "slide")
    }
}

struct StopAfter<'a> {
    stop: &'a AtomicBool,
    after: u64,
    start: AtomicU64,
}

impl Progress for StopAfter<'_> {
    fn stage(&self, _what: &str) {}

    fn tiles(&self, _total: u64, done: u64) {
        self.start.store(done, Ordering::Relaxed);
    }

    fn predicted(&self, done: u64) {
        if done >= self.start.load(Ordering::Relaxed) + self.after {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn stopping(&self) {}
    fn done(&self) {}
}

#[test]
fn a_run_leaves_every_output_and_nothing_else() {
    let bench = Bench::new();
    let request =
        Request { formats: formats().map(String::from).collect(), ..bench.request("out") };
    let report = bench.run(&request).unwrap();
    assert!(report.complete);
    let tiles = report.tiles;
    assert_eq!(tiles.total, 20 * 10);
    assert_eq!(tiles.seen, tiles.total);
    assert_eq!(tiles.skipped + tiles.predicted, tiles.seen);
    // The tissue is 11 x 8 tiles; its outline may be found a tile wider or narrower.
    assert!((60..=120).contains(&tiles.predicted), "{tiles:?}");
    assert_eq!(report.top_genes[0].gene, "RED2");
    for file in &report.files {
        assert!(request.directory.join(file).is_file(), "{file}");
    }
    let text = std::fs::read_to_string(request.directory.join(REPORT_FILE)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["complete"], true);
    assert_eq!(json["tiles"]["predicted"], tiles.predicted);
    assert_eq!(json["model"]["sha256"], bench.model.sha256());
    assert_eq!(json["slide"]["um_per_px_from"], "user");
    let unfinished: Vec<_> = std::fs::read_dir(&request.directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("partial"))
        .collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
}

#[test]
fn a_stopped_run_is_valid_and_resumes_to_the_same_numbers() {
    let bench = Bench::new();
    bench.run(&bench.request("whole")).unwrap();
    let request = bench.request("parts");
    let first = bench.run_and_stop(&request, 10);
    assert!(!first.complete && first.tiles.predicted >= 10);
    assert!(first.tiles.seen < first.tiles.total);
    assert_eq!(bench.csv("parts").lines().count() as u64, 1 + first.tiles.predicted);
    assert!(bench.journal("parts").exists());
    let second = bench.run_and_stop(&request, 5);
    assert!(!second.complete);
    assert_eq!(second.tiles.resumed, first.tiles.predicted);
    let last = bench.run(&request).unwrap();
    assert!(last.complete);
    assert_eq!(last.tiles.resumed, second.tiles.predicted);
    assert_eq!(bench.csv("parts"), bench.csv("whole"));
    assert!(!bench.journal("parts").exists());
}

#[test]
fn a_failure_while_writing_keeps_the_rows() {
    let bench = Bench::new();
    let request = bench.request("out");
    bench.run(&request).unwrap();
    // A directory where the table should go.
    let table = std::fs::read_dir(&request.directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "csv"))
        .unwrap();
    std::fs::remove_file(&table).unwrap();
    std::fs::create_dir(&table).unwrap();
    let error = bench.run(&request).unwrap_err();
    assert!(matches!(error, Error::Kept { .. }), "{error}");
    assert!(bench.journal("out").exists());
    std::fs::remove_dir(&table).unwrap();
    let report = bench.run(&request).unwrap();
    assert_eq!(report.tiles.resumed, report.tiles.predicted);
    assert!(table.is_file());
}

#[test]
fn other_settings_do_not_mix_with_an_unfinished_run() {
    let bench = Bench::new();
    bench.run_and_stop(&bench.request("out"), 3);
    let other = Request { genes: Some(vec!["blue".into()]), ..bench.request("out") };
    let message = bench.run(&other).unwrap_err().to_string();
    assert!(message.contains("genes was") && message.contains("--restart"), "{message}");
    let report = bench.run(&Request { restart: true, ..other }).unwrap();
    assert!(report.complete && report.tiles.resumed == 0);
    assert_eq!(report.genes, ["BLUE"]);
}

#[test]
fn given_centres_keep_their_order_and_ids() {
    let bench = Bench::new();
    let centres = bench.root.path().join("spots.csv");
    // The second one lies on bare glass: nothing is skipped here.
    std::fs::write(&centres, "spot,x,y\nlast,300,200\nbare,600,20\nfirst,100,100\n").unwrap();
    let request = Request { tiles: TileSource::At(centres), threads: 3, ..bench.request("out") };
    let report = bench.run(&request).unwrap();
    assert_eq!((report.tiles.total, report.tiles.predicted, report.tiles.skipped), (3, 3, 0));
    let csv = bench.csv("out");
    let rows: Vec<&str> = csv.lines().skip(1).collect();
    for (row, id) in rows.iter().zip(["last", "bare", "first"]) {
        assert!(row.contains(id), "{csv}");
    }
}

#[test]
fn every_column_of_the_centres_is_in_the_tables() {
    let bench = Bench::new();
    let centres = bench.root.path().join("spots.tsv");
    std::fs::write(&centres, "x\ty\tpixel_x\tpixel_y\tcluster\n1\t2\t300\t200\t007\n").unwrap();
    let request = Request { tiles: TileSource::At(centres.clone()), ..bench.request("out") };
    bench.run(&request).unwrap();
    let csv = bench.csv("out");
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].contains("confidence,x_given,y_given,cluster,RED"), "{csv}");
    assert!(lines[1].starts_with("1x2,") && lines[1].contains(",1,2,007,"), "{csv}");
    // Another value is another run.
    bench.run_and_stop(&Request { restart: true, ..request.clone() }, 1);
    std::fs::write(&centres, "x\ty\tpixel_x\tpixel_y\tcluster\n1\t2\t300\t200\t008\n").unwrap();
    bench.run(&request).unwrap();
    assert!(bench.csv("out").contains(",008,"));
}

/// The bench's picture as a TIFF of Deflate strips of one tile's height, one of them damaged.
fn damaged_tiff(bench: &Bench, strip: usize) -> PathBuf {
    let picture = image::open(bench.root.path().join("slide.png")).unwrap().into_rgb8();
    let mut out = std::io::Cursor::new(Vec::new());
    let mut encoder = tiff::encoder::TiffEncoder::new(&mut out)
        .unwrap()
        .with_compression(tiff::encoder::Compression::Deflate(Default::default()));
    let mut image = encoder.new_image::<tiff::encoder::colortype::RGB8>(640, 320).unwrap();
    image.rows_per_strip(TILE).unwrap();
    image.write_data(&picture).unwrap();
    let mut bytes = out.into_inner();
    let mut decoder = tiff::decoder::Decoder::new(std::io::Cursor::new(&bytes)).unwrap();
    let starts = decoder.get_tag_u64_vec(tiff::tags::Tag::StripOffsets).unwrap();
    assert_eq!(starts.len(), 10);
    let at = starts[strip] as usize + 2;
    bytes[at..at + 64].fill(0xFF);
    let path = bench.root.path().join("damaged.tiff");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn damaged_tiles_are_left_out_counted_and_named() {
    let bench = Bench::new();
    bench.run(&bench.request("whole")).unwrap();
    let request = Request { slide: damaged_tiff(&bench, 5), ..bench.request("out") };
    let first = bench.run_and_stop(&request, 60);
    assert!(!first.complete);
    let report = bench.run(&request).unwrap();
    assert!(report.complete, "{:?}", report.tiles);
    let tiles = report.tiles;
    assert_eq!(tiles.skipped + tiles.predicted + tiles.damaged, tiles.total);
    // The damage is a strip across the whole slide; bare glass in it is not known to be bare.
    assert_eq!((tiles.damaged, report.damaged.len()), (20, 20));
    assert_eq!((report.damaged[3].id.as_str(), report.damaged[3].y), ("x3_y5", 160.0));
    assert!(report.damaged[3].problem.contains("strip 5 of level 0"), "{:?}", report.damaged[3]);
    // All others are as if nothing had happened.
    let (whole, around) = (bench.csv("whole"), bench.csv("out"));
    let whole: Vec<&str> = whole.lines().filter(|line| !line.contains("_y5,")).collect();
    let shared = around.lines().filter(|line| whole.contains(line)).count();
    assert!(shared as f64 > 0.9 * whole.len() as f64, "{shared} of {}", whole.len());
    assert!(around.lines().all(|line| !line.contains("_y5,")));
    let text = std::fs::read_to_string(request.directory.join(REPORT_FILE)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["tiles"]["damaged"], 20);
    assert_eq!(json["damaged"][0]["id"], "x0_y5");
}

#[test]
fn unusable_requests_say_what_to_do() {
    let bench = Bench::new();
    let refused = |request: Request| bench.run(&request).unwrap_err().to_string();
    let message = refused(Request { um_per_px: None, ..bench.request("out") });
    assert!(message.contains("--mpp") && message.contains("slide.png"), "{message}");
    let message = refused(Request { um_per_px: Some(-1.0), ..bench.request("out") });
    assert!(message.contains("um/px"), "{message}");
    let genes = Some(vec!["GREAN".into()]);
    let message = refused(Request { genes, ..bench.request("out") });
    assert!(message.contains("closest: GREEN"), "{message}");
    let heatmap_genes = Some(vec!["BLUE".into()]);
    let genes = Some(vec!["RED".into()]);
    let message = refused(Request { genes, heatmap_genes, ..bench.request("out") });
    assert!(message.contains("BLUE"), "{message}");
    let message = refused(Request { formats: vec!["xlsx".into()], ..bench.request("out") });
    assert!(message.contains("xlsx") && message.contains("parquet"), "{message}");
    let message = refused(Request { slide: "no/such.svs".into(), ..bench.request("out") });
    assert!(message.contains("no/such.svs"), "{message}");
    let message = refused(Request { engine: "abacus".into(), ..bench.request("out") });
    assert!(message.contains("abacus"), "{message}");
    // None of these left a directory behind.
    assert!(!bench.root.path().join("out").exists());
}

#[test]
fn a_file_in_place_of_the_output_directory_is_named() {
    let bench = Bench::new();
    std::fs::write(bench.root.path().join("out"), b"x").unwrap();
    let message = bench.run(&bench.request("out")).unwrap_err().to_string();
    assert!(message.contains("out") && message.contains("choose another"), "{message}");
}

#[test]
fn a_slide_without_tissue_is_a_complete_run_of_nothing() {
    let bench = Bench::new();
    let bare = RgbImage::from_pixel(320, 320, Rgb([245; 3]));
    bare.save(bench.root.path().join("bare.png")).unwrap();
    let slide = bench.root.path().join("bare.png");
    let formats = formats().map(String::from).collect();
    let report = bench.run(&Request { slide, formats, ..bench.request("out") }).unwrap();
    assert!(report.complete && report.tiles.predicted == 0 && report.tiles.skipped == 100);
    assert!(report.top_genes.is_empty());
}

#[test]
fn partial_outputs_of_other_formats_do_not_outlive_the_run() {
    let bench = Bench::new();
    let formats = vec!["csv".to_owned(), "geojson".to_owned()];
    let first = bench.run_and_stop(&Request { formats, ..bench.request("out") }, 3);
    assert_eq!(first.files.len(), 2);
    let keep = bench.root.path().join("out/notes.txt");
    std::fs::write(&keep, "mine").unwrap();
    let last = bench.run(&bench.request("out")).unwrap();
    for file in &first.files {
        let path = bench.root.path().join("out").join(file);
        assert_eq!(path.exists(), last.files.contains(file), "{file}");
    }
    assert!(keep.exists());
}

#[test]
fn stopping_before_the_first_tile_writes_nothing() {
    let bench = Bench::new();
    let stop = AtomicBool::new(true);
    let error = run(&bench.request("out"), &bench.model, &stop, &NoProgress).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert_eq!(std::fs::read_dir(bench.root.path().join("out")).unwrap().count(), 0);
}
