//! The measurement in words.

use std::fmt::Write;

use super::{Measurement, Tiles};
use crate::engine::DevicePeak;

/// A table of the modes, then one of the operators.
pub fn text(measured: &Measurement) -> String {
    let mut text = String::new();
    let out = &mut text;
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "engine {}{}, {:.1} MMAC a tile, peak of {}, loaded in {:.0} ms{}",
        measured.engine,
        measured.instructions.as_ref().map(|name| format!(" ({name})")).unwrap_or_default(),
        measured.macs as f64 / 1e6,
        match measured.device {
            Some(peak) =>
                format!("the device {:.0} GFLOP/s and {:.0} GB/s", peak.gflops, peak.gbytes),
            None => format!("a core {:.0} GFLOP/s", measured.peak_gflops),
        },
        measured.load_ms,
        match measured.peak_memory_kib {
            Some(kib) => format!(", most memory {:.0} MiB", kib as f64 / 1024.0),
            None => String::new(),
        }
    );
    let _ = writeln!(
        out,
        "\n{:34} {:>9} {:>9} {:>9} {:>9} {:>6}",
        "mode", "ms/tile", "CPU ms", "tiles/s", "GFLOP/s", "peak"
    );
    let threads = measured.threads;
    let modes = [
        ("one thread".to_owned(), 1, &measured.single),
        (format!("one tile on {threads} threads"), threads, &measured.latency),
        (format!("{} sessions, a tile each", measured.sessions), threads, &measured.throughput),
    ];
    for (name, cores, tiles) in modes {
        // A device is one, whatever the threads.
        let cores = if measured.device.is_some() { 1 } else { cores };
        if let Some(tiles) = tiles {
            mode(out, &name, tiles, measured, cores);
        }
    }
    if !measured.operators.is_empty() {
        operators(out, measured);
    }
    text
}

fn mode(out: &mut String, name: &str, tiles: &Tiles, measured: &Measurement, cores: usize) {
    let gflops = 2.0 * measured.macs as f64 * tiles.per_second / 1e9;
    let _ = writeln!(
        out,
        "{name:34} {:9.2} {:>9} {:9.1} {gflops:9.1} {:>6}",
        tiles.median_ms,
        tiles.cpu_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.2}")),
        tiles.per_second,
        share(gflops, measured.peak_gflops * cores as f64),
    );
}

fn share(gflops: f64, peak: f64) -> String {
    if peak > 0.0 { format!("{:.0}%", 100.0 * gflops / peak) } else { "-".into() }
}

/// What the device's peaks allow, and where a tile's time goes.
fn device(out: &mut String, measured: &Measurement, peak: DevicePeak) {
    let bound: f64 = measured
        .operators
        .iter()
        .zip(&measured.operator_bytes)
        .map(|(op, &bytes)| {
            let arithmetic = 2e-3 * op.macs as f64 / peak.gflops;
            arithmetic.max(1e-3 * bytes as f64 / peak.gbytes)
        })
        .sum();
    let Some(shares) = measured.shares else { return };
    let outside = shares.tile_us - shares.dispatches_us;
    let _ = writeln!(
        out,
        "\na tile in a full batch: {:.2} ms, of which the device spends {:.2} on dispatches and {:.1}% elsewhere; \
         kernels one by one {:.2} (the peaks allow {:.2}); beside the device, {:.2} for handing over images and \
         commands and {:.2} for reading results",
        shares.tile_us / 1e3,
        shares.dispatches_us / 1e3,
        100.0 * (outside / shares.tile_us).max(0.0),
        shares.kernels_us / 1e3,
        bound / 1e3,
        shares.submitting_us / 1e3,
        shares.reading_us / 1e3,
    );
}

fn operators(out: &mut String, measured: &Measurement) {
    let total: f64 = measured.operators.iter().map(|op| op.microseconds).sum();
    if let Some(peak) = measured.device {
        device(out, measured, peak);
    }
    let bytes = &measured.operator_bytes;
    let moved = |k: usize, microseconds: f64| match bytes.get(k) {
        Some(&bytes) => format!(" {:>9} {:>7.2}", bytes / 1024, bytes as f64 / microseconds / 1e3),
        None => String::new(),
    };
    let heads =
        if bytes.is_empty() { String::new() } else { format!(" {:>9} {:>7}", "KiB", "GB/s") };
    let _ = writeln!(
        out,
        "\n{:>8} {:>6} {:>9} {:>6}{heads}  {:13} operator",
        "us", "share", "GFLOP/s", "peak", "kernel"
    );
    for (k, op) in measured.operators.iter().enumerate() {
        let gflops = 2e-3 * op.macs as f64 / op.microseconds;
        let (gflops, peak) = match op.macs {
            0 => ("-".into(), "-".into()),
            _ => (format!("{gflops:.1}"), share(gflops, measured.peak_gflops)),
        };
        let _ = writeln!(
            out,
            "{:8.1} {:5.1}% {gflops:>9} {peak:>6}{}  {:13} {}",
            op.microseconds,
            100.0 * op.microseconds / total,
            moved(k, op.microseconds),
            op.kernel,
            op.line
        );
    }
    let mut kernels: Vec<(&str, f64, u64)> = vec![];
    for op in &measured.operators {
        match kernels.iter_mut().find(|(kernel, _, _)| *kernel == op.kernel) {
            Some((_, time, macs)) => {
                *time += op.microseconds;
                *macs += op.macs;
            }
            None => kernels.push((&op.kernel, op.microseconds, op.macs)),
        }
    }
    kernels.sort_by(|a, b| b.1.total_cmp(&a.1));
    let _ = writeln!(out, "\n{:>8} {:>6} {:>9}  kernel", "us", "share", "GFLOP/s");
    for (kernel, time, macs) in kernels {
        let _ = writeln!(
            out,
            "{time:8.1} {:5.1}% {:9.1}  {kernel}",
            100.0 * time / total,
            2e-3 * macs as f64 / time
        );
    }
}
