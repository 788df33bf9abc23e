//! The daemon as a whole, over real sockets: with a fast fake engine and a walking board.

mod changes;
mod links;
mod lossy;
mod misuse;
mod soak;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diffbulk_link::heapless;
use diffbulk_link::message::Role;
use diffbulk_link::units::{Um, UmPerPx};

use super::*;
use crate::engine::{Engine, Session};
use crate::model::{Metadata, Model, OnnxFile, testing};
use crate::predict::testing::{FlatSlide, flat_slide};
use crate::scan_sim::{self, Board, Report, Settings, Walk};

/// Side of the tiny model's tile.
const TILE: u32 = 8;

/// Of every tile of a test's slide.
const BLUE: u8 = 77;

/// Gives the middle pixel's colour, and breaks where it is told to.
#[derive(Debug, Default, Clone)]
struct Fake {
    /// Tiles predicted.
    predicted: Arc<AtomicUsize>,
    /// How long a tile takes.
    takes: Duration,
    /// Columns of tiles (red) for which it panics.
    panics_at: Option<u8>,
    /// Rows of tiles (green) from which on another engine stands in.
    stands_in_from: Option<u8>,
    /// Which engine predicted the last tile.
    ran_on: Option<&'static str>,
}

impl Engine for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        Ok(Box::new(self.clone()))
    }
}

impl Session for Fake {
    fn predict_into(&mut self, image: &[u8], values: &mut Vec<f32>) -> Result<()> {
        let middle = 3 * (TILE * TILE / 2 + TILE / 2) as usize;
        if image[middle + 2] != BLUE {
            // The self-test's tile.
            *values = vec![1.0, 2.0, 3.0];
            return Ok(());
        }
        self.predicted.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.takes);
        assert!(self.panics_at != Some(image[middle]), "a tile that breaks the engine");
        let stands_in = self.stands_in_from.is_some_and(|row| image[middle + 1] >= row);
        self.ran_on = self.stands_in_from.map(|_| if stands_in { "another" } else { "fake" });
        values.clear();
        values.extend(image[middle..middle + 3].iter().map(|&value| f32::from(value)));
        Ok(())
    }

    fn ran_on(&self) -> Option<&'static str> {
        self.ran_on
    }
}

fn metadata() -> Metadata {
    testing::metadata(TILE, &["RED", "GREEN", "BLUE"])
}

/// The tiny model under some version.
fn model(version: &str) -> Model {
    let mut metadata = metadata();
    metadata.version = version.into();
    let proto = testing::tiny_model(&metadata);
    Model::from_file(OnnxFile::from_proto(proto, Path::new("tiny.onnx")).unwrap()).unwrap()
}

/// A store with one model, which a test changes.
struct Shelf(Arc<Mutex<(&'static str, Fake)>>);

impl Models for Shelf {
    fn load(&self, in_use: Option<&Model>) -> Result<Option<Loaded>> {
        let (version, engine) = self.0.lock().unwrap().clone();
        let model = model(version);
        if in_use.is_some_and(|in_use| in_use.sha256() == model.sha256()) {
            return Ok(None);
        }
        let wrong = crate::trust::selftest::Expectation::of(&[7.0, 0.0, 9.0]).unwrap();
        let expectation = (version == BROKEN).then_some(wrong);
        Ok(Some(Loaded { model, engine: Box::new(engine), expectation }))
    }
}

/// Version of a model that fails its self-test.
const BROKEN: &str = "66";

/// A slide whose tile at (column, row) has the colour (column, row, [`BLUE`]).
fn slide(columns: u32, rows: u32) -> FlatSlide {
    let mut slide =
        flat_slide(columns * TILE, rows * TILE, |x, y| [(x / TILE) as u8, (y / TILE) as u8, BLUE]);
    slide.set_path(Path::new("tiles.svs"));
    slide
}

/// A daemon on a thread of its own.
struct Running {
    directory: PathBuf,
    addresses: Vec<String>,
    orders: Orders,
    shelf: Arc<Mutex<(&'static str, Fake)>>,
    thread: std::thread::JoinHandle<Result<()>>,
}

fn options(directory: &Path) -> Options {
    let socket = directory.join("s");
    Options {
        stations: vec![vec![Address::Unix(socket)]],
        token: None,
        metrics: Some("127.0.0.1:0".parse().unwrap()),
        sessions: 8,
        queue: 8,
        bytes_per_second: 1 << 30,
        threads: 2,
        scans: 0,
        scan: ScanSettings {
            output: directory.to_owned(),
            formats: vec!["csv".into()],
            genes: None,
            heatmap_genes: None,
            min_tissue: 0.0,
            overlap: 0.0,
            board_genes: None,
            objective: ObjectiveSettings::default(),
        },
    }
}

fn start(options: Options, engine: &Fake) -> Running {
    let orders = Orders::default();
    let addresses = Arc::new(Mutex::new(Vec::new()));
    let shelf = Arc::new(Mutex::new(("1", engine.clone())));
    let (obeyed, told, models) =
        (orders.clone(), Arc::clone(&addresses), Shelf(Arc::clone(&shelf)));
    let directory = options.scan.output.clone();
    let thread = std::thread::spawn(move || {
        let mut ready = |listening: &[String]| *told.lock().unwrap() = listening.to_vec();
        run(&options, &models, &obeyed, &mut ready)
    });
    let start = Instant::now();
    while addresses.lock().unwrap().is_empty() && !thread.is_finished() {
        assert!(start.elapsed() < Duration::from_secs(20), "the daemon does not get ready");
        std::thread::sleep(Duration::from_millis(2));
    }
    let addresses = addresses.lock().unwrap().clone();
    Running { directory, addresses, orders, shelf, thread }
}

impl Running {
    fn end(self) -> Result<()> {
        self.orders.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }

    fn socket(&self) -> Address {
        Address::Unix(self.directory.join("s"))
    }

    fn get(&self, path: &str) -> String {
        use std::io::{Read, Write};
        let address = self.addresses.last().unwrap();
        let address = address.trim_start_matches("http://").trim_end_matches("/metrics");
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let line = text.lines().find(|line| line.starts_with(&format!("diffbulk_{name} ")));
        let line = line.unwrap_or_else(|| panic!("{name}\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Puts another model on the shelf and waits until the daemon has dealt with it.
    fn replace(&self, version: &'static str) {
        let dealt = || self.metric("reloads_total") + self.metric("reload_failures_total");
        let before = dealt();
        self.shelf.lock().unwrap().0 = version;
        self.orders.reload.store(true, Ordering::Relaxed);
        wait_for("the reload", || dealt() > before);
    }
}

/// Waits for something, at most for a minute.
fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn settings(host: Address, ahead: usize) -> Settings {
    let mut settings = Settings::new(host.clone(), host, &metadata(), false);
    settings.board = Board::Walker(Walk { ahead, rate: None });
    settings
}

/// Plays `slide` to the end, at most for a minute.
fn play(slide: &FlatSlide, settings: &Settings) -> Report {
    let stop = AtomicBool::new(false);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while !done.load(Ordering::Relaxed) {
                if start.elapsed() > Duration::from_secs(900) {
                    stop.store(true, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let report = scan_sim::run(slide, 0.5, settings, &stop);
        done.store(true, Ordering::Relaxed);
        report.unwrap()
    })
}

/// Tile ids and their first two genes, in the order of the file.
fn rows(directory: &Path) -> Vec<(String, f32, f32)> {
    let path = directory.join("tiles-diffbulk/tiles.csv");
    let mut reader = csv::Reader::from_path(path).unwrap();
    let headers = reader.headers().unwrap().clone();
    let at = |name: &str| headers.iter().position(|found| found == name).unwrap();
    let (id, red, green) = (at("id"), at("RED"), at("GREEN"));
    reader
        .records()
        .map(|record| {
            let record = record.unwrap();
            (record[id].into(), record[red].parse().unwrap(), record[green].parse().unwrap())
        })
        .collect()
}

/// Every tile once, in order, with its own values.
fn check_rows(directory: &Path, columns: u32, tiles: u32) {
    let rows = rows(directory);
    assert_eq!(rows.len() as u32, tiles);
    for (index, (id, red, green)) in rows.into_iter().enumerate() {
        let (column, row) = (index as u32 % columns, index as u32 / columns);
        assert_eq!(id, format!("x{column}_y{row}"));
        assert_eq!((red, green), ((column % 256) as f32, (row % 256) as f32), "{id}");
    }
}

#[test]
fn a_scan_ends_with_the_files_of_predict() {
    let directory = tempfile::tempdir().unwrap();
    // Structure that resampling would show, and a stain that the tissue mask takes.
    let colour = |x: u32, y: u32| -> [u8; 3] {
        let shade = ((x / 3 + y / 2) % 2 * 60) as u8;
        if (200..900).contains(&x) && (150..700).contains(&y) {
            [120 + shade, 70 + shade, 150 + shade]
        } else {
            [242, 241, 243]
        }
    };
    let stored = directory.path().join("slide.png");
    image::RgbImage::from_fn(1100, 900, |x, y| image::Rgb(colour(x, y))).save(&stored).unwrap();
    let formats: Vec<String> = crate::predict::formats().map(String::from).collect();
    let request = crate::predict::Request {
        slide: stored.clone(),
        directory: directory.path().join("predict"),
        um_per_px: Some(0.453_1),
        genes: None,
        formats: formats.clone(),
        heatmap_genes: None,
        tiles: crate::predict::TileSource::Grid { overlap: 0.0 },
        min_tissue: 0.25,
        threads: 2,
        engine: crate::engine::ENGINES[0].name.into(),
        options: Default::default(),
        restart: false,
    };
    let mut wide = testing::metadata(64, &["RED", "GREEN", "BLUE"]);
    wide.um_per_px = 0.61;
    let proto = testing::tiny_model(&wide);
    let wide_model =
        Model::from_file(OnnxFile::from_proto(proto, Path::new("wide.onnx")).unwrap()).unwrap();
    let never = AtomicBool::new(false);
    crate::predict::run(&request, &wide_model, &never, &crate::predict::NoProgress).unwrap();

    let mut options = options(directory.path());
    (options.scan.formats, options.scan.min_tissue, options.scans) = (formats, 0.25, 1);
    let host = options.stations[0][0].clone();
    struct One(Model);
    impl Models for One {
        fn load(&self, _: Option<&Model>) -> Result<Option<Loaded>> {
            let (model, name) = (self.0.clone(), crate::engine::ENGINES[0].name);
            let engine = crate::engine::open(name, &model)?;
            Ok(Some(Loaded { model, engine, expectation: None }))
        }
    }
    let slide = crate::slide::open(&stored).unwrap();
    std::thread::scope(|scope| {
        let one = One(wide_model);
        let serving = scope.spawn(move || run(&options, &one, &Orders::default(), &mut |_| ()));
        let mut settings = Settings::new(host.clone(), host, &wide, false);
        settings.board = Board::Walker(Walk { ahead: 3, rate: None });
        let report = scan_sim::run(&*slide, 0.453_1, &settings, &never).unwrap();
        assert!(report.summary.is_some());
        serving.join().unwrap().unwrap();
    });
    let (predicted, scanned) =
        (directory.path().join("predict"), directory.path().join("slide-diffbulk"));
    let mut compared = 0;
    for entry in std::fs::read_dir(&predicted).unwrap() {
        let name = entry.unwrap().file_name();
        if name == "run.json" {
            continue;
        }
        let read = |directory: &Path| std::fs::read(directory.join(&name)).unwrap();
        assert!(read(&predicted) == read(&scanned), "{name:?} differs");
        compared += 1;
    }
    assert!(compared >= 5, "{compared}");
    let report = std::fs::read(scanned.join("run.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["complete"], true);
    assert!(report["scan"]["latency_ms"]["p99"].as_f64().unwrap() > 0.0);
    assert!(report["tiles"]["predicted"].as_u64().unwrap() > 20, "{report}");
}

#[test]
fn a_daemon_that_is_stopped_in_the_middle_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Fake { takes: Duration::from_millis(3), ..Fake::default() };
    let slide = slide(20, 20);
    let first = start(options(directory.path()), &engine);
    let host = first.socket();
    let report = std::thread::scope(|scope| {
        let playing = scope.spawn(|| play(&slide, &settings(host, 4)));
        wait_for("the first hundred", || engine.predicted.load(Ordering::Relaxed) >= 100);
        first.end().unwrap();
        assert!(!directory.path().join("tiles-diffbulk/tiles.csv").exists());
        let second = start(options(directory.path()), &engine);
        let report = playing.join().unwrap();
        second.end().unwrap();
        report
    });
    assert!(report.summary.is_some() && report.connections > 1, "{report:?}");
    check_rows(directory.path(), 20, 400);
    // What was predicted before the stop was not predicted again.
    assert_eq!(engine.predicted.load(Ordering::Relaxed), 400);
}

#[test]
fn more_than_the_queue_is_put_off_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Fake { takes: Duration::from_millis(8), ..Fake::default() };
    let mut options = options(directory.path());
    options.queue = 2;
    let daemon = start(options, &engine);
    let report = play(&slide(8, 8), &settings(daemon.socket(), 16));
    assert!(report.put_off > 0, "{report:?}");
    assert!(daemon.metric("tiles_shed_total") > 0.0);
    assert!(daemon.metric("queue_tiles_most") <= 2.0);
    daemon.end().unwrap();
    check_rows(directory.path(), 8, 64);
}

#[test]
fn a_tile_that_breaks_the_engine_is_left_out_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Fake { panics_at: Some(3), ..Fake::default() };
    let daemon = start(options(directory.path()), &engine);
    let report = play(&slide(6, 6), &settings(daemon.socket(), 2));
    assert_eq!((report.results, report.failed), (30, 6), "{report:?}");
    assert_eq!(daemon.metric("panics_total"), 6.0);
    daemon.end().unwrap();
    let rows = rows(directory.path());
    assert!(rows.len() == 30 && rows.iter().all(|(_, red, _)| *red != 3.0));
    let report = std::fs::read(directory.path().join("tiles-diffbulk/run.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["complete"], false);
    assert_eq!(report["scan"]["skipped_by_board"], 6);
}
