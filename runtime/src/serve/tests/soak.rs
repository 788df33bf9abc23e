//! Very many tiles over a bad cable.

use super::lossy::{Faults, cable};
use super::*;

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// Resident memory over a scan, sampled by the number of tiles done.
#[derive(Default)]
struct Memory(Vec<(u32, usize)>);

impl Memory {
    fn sample(&mut self, tiles: u32) {
        self.0.push((tiles, resident()));
    }

    /// The least of the samples within these parts of the scan: what is not given back.
    fn floor(&self, from: u32, to: u32) -> usize {
        let within = self.0.iter().filter(|(tiles, _)| (from..to).contains(tiles));
        within.map(|(_, bytes)| *bytes).min().unwrap_or_default()
    }
}

/// What resident memory may grow by from a scan's second fifth to its last: what the allocator
/// keeps for itself comes and goes by some hundred KiB; a record of 40 bytes for each of 100,000
/// tiles would be more.
const FLAT: usize = 1 << 20;

/// Scans `columns` x `rows` tiles over a cable with every fault once in `rate` frames.
fn soak(columns: u32, rows: u32, rate: u64, allowed: Duration) {
    let directory = tempfile::tempdir().unwrap();
    let engine = Fake::default();
    let mut options = options(directory.path());
    options.queue = 64;
    let daemon = start(options, &engine);
    let (faults, stop) = (Arc::new(Faults::default()), Arc::new(AtomicBool::new(false)));
    let bad = directory.path().join("bad");
    let joined = {
        let (bad, good) = (bad.clone(), directory.path().join("s"));
        let (faults, stop) = (Arc::clone(&faults), Arc::clone(&stop));
        std::thread::spawn(move || cable(&bad, &good, rate, &faults, &stop))
    };
    let tiles = columns * rows;
    let (slide, clock) = (slide(columns, rows), Instant::now());
    let mut memory = Memory::default();
    let report = std::thread::scope(|scope| {
        let playing = scope.spawn(|| play(&slide, &settings(Address::Unix(bad.clone()), 24)));
        while !playing.is_finished() {
            memory.sample(engine.predicted.load(Ordering::Relaxed) as u32);
            std::thread::sleep(Duration::from_millis(20));
        }
        playing.join().unwrap()
    });
    let took = clock.elapsed();
    stop.store(true, Ordering::Relaxed);
    joined.join().unwrap();
    let fifths: Vec<usize> =
        (0..5).map(|fifth| memory.floor(fifth * tiles / 5, (fifth + 1) * tiles / 5)).collect();
    let growth = fifths[4].saturating_sub(fifths[1]);
    let said = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
    println!(
        "{tiles} tiles in {:.1} s, {} frames: {} dropped, {} damaged, {} repeated, {} delayed; \
         {} resent by the host, {} thrown away; memory by fifths of the scan {:?} KiB, at the end \
         of writing {} KiB; latency p50 {:.2} ms, p99 {:.2} ms",
        took.as_secs_f64(),
        said(&faults.frames),
        said(&faults.dropped),
        said(&faults.damaged),
        said(&faults.repeated),
        said(&faults.delayed),
        daemon.metric("resent_frames_total"),
        daemon.metric("bad_frames_total"),
        fifths.iter().map(|bytes| bytes >> 10).collect::<Vec<_>>(),
        resident() >> 10,
        report.p50_ms.unwrap(),
        report.p99_ms.unwrap(),
    );
    daemon.end().unwrap();
    assert!(took < allowed, "{took:?}");
    assert!(said(&faults.damaged) > 0 && said(&faults.delayed) > 0);
    let summary = report.summary.unwrap();
    assert_eq!(summary.skipped, 0);
    // Nothing lost, nothing double, every tile its own values.
    check_rows(directory.path(), columns, tiles);
    assert_eq!(engine.predicted.load(Ordering::Relaxed) as u32, tiles, "predicted twice");
    assert!(growth < FLAT, "memory grew by {growth} bytes from the second fifth to the last");
}

/// Columns and rows of tiles, and once in how many frames every fault happens: "320 320 200" makes
/// 102,400 tiles, which take minutes.
const SIZE: &str = "DIFFBULK_SOAK";

#[test]
fn a_bad_cable_loses_and_doubles_nothing() {
    if let Ok(size) = std::env::var(SIZE) {
        let numbers: Vec<u32> = size.split(' ').map(|number| number.parse().unwrap()).collect();
        return soak(numbers[0], numbers[1], numbers[2].into(), Duration::from_secs(1800));
    }
    // Alone in its process, because it looks at the process's memory.
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serve::tests::soak::a_bad_cable_loses_and_doubles_nothing"])
        .arg("--nocapture")
        .env(SIZE, "64 24 60")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1536 tiles in"), "{text}");
}
