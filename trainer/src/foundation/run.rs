//! Running an encoder over the tiles of a dataset.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use super::cache::{self, Key};
use super::{Encoder, View};
use crate::data::PairedDataset;
use crate::data::tiles::TileSet;
use crate::{Error, Result};

/// Directory of cached features inside the dataset's.
const DIRECTORY: &str = "features";

/// Features of `rows` averaged over `views`: `rows.len()` x F, row-major.
///
/// What was computed before is read from the dataset's `features` directory, and what is computed
/// now is kept there; where that cannot be written, a warning says so and nothing is lost but the
/// time of the next run. All rows of the dataset are computed at once on all cores.
pub fn features(
    encoder: &Encoder,
    dataset: &PairedDataset,
    rows: &[usize],
    views: &[View],
) -> Result<Vec<f32>> {
    if views.is_empty() {
        return Err(Error::Request("features need at least one view of the tiles".into()));
    }
    let width = encoder.features();
    let mut out = vec![0.0; rows.len() * width];
    let weight = 1.0 / views.len() as f32;
    for view in views {
        let all = view_features(encoder, dataset, view)?;
        for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
            for (out, value) in out.iter_mut().zip(&all[row * width..(row + 1) * width]) {
                *out += weight * value;
            }
        }
    }
    Ok(out)
}

/// Features of all rows of `dataset` under one view: N x F, row-major; cached as in [`features`].
pub fn view_features(encoder: &Encoder, dataset: &PairedDataset, view: &View) -> Result<Vec<f32>> {
    let key = Key::new(encoder, &dataset.manifest().images_sha256, dataset.len(), view);
    let path = key.path(&dataset.directory().join(DIRECTORY));
    if let Some(features) = cache::read(&path, &key) {
        return Ok(features);
    }
    let features = compute(encoder, dataset.tiles(), view)?;
    if let Err(error) = cache::write(&path, &key, &features) {
        eprintln!("warning: features are not kept for the next run: {error}");
    }
    Ok(features)
}

/// Runs the encoder over all `tiles`, one tile a core at a time.
fn compute(encoder: &Encoder, tiles: &TileSet, view: &View) -> Result<Vec<f32>> {
    let width = encoder.features();
    let bar = ProgressBar::new(tiles.len() as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} tiles, {eta} left")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(format!("{} {}", encoder.info().name, view.name()));

    let out = Mutex::new(vec![0.0; tiles.len() * width]);
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let work = || -> Result<()> {
        let mut session = encoder.session()?;
        while !stop.load(Ordering::Relaxed) {
            let row = next.fetch_add(1, Ordering::Relaxed);
            if row >= tiles.len() {
                break;
            }
            let image = view.apply(&tiles.image(row)?, tiles.tile_px());
            let features = session.encode(&image, tiles.tile_px())?;
            if features.len() != width || features.iter().any(|value| !value.is_finite()) {
                return Err(Error::model(
                    encoder.path(),
                    format!("gives features that are not {width} finite numbers for tile {row}"),
                ));
            }
            let mut out = out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            out[row * width..(row + 1) * width].copy_from_slice(&features);
            bar.inc(1);
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(tiles.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let result = work();
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    bar.finish_and_clear();
    Ok(out.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::super::{EncoderFlags, EncoderInfo, testing};
    use super::*;
    use crate::data::color::rgb_statistics;
    use crate::data::dataset::testing::dataset;

    fn encoder(dir: &std::path::Path, scale: f32) -> Encoder {
        let info = EncoderInfo {
            name: "mean colour".into(),
            license: "CC0-1.0".into(),
            input_px: 8,
            mean: [0.0; 3],
            std: [scale; 3],
        };
        let path = dir.join("mean.onnx");
        testing::write_mean_colour(&path, Some(&info), 8);
        Encoder::open(&path, &EncoderFlags::default()).unwrap()
    }

    #[test]
    fn features_follow_rows_and_are_kept() {
        let (dir, data) = dataset(&["A"], &[&[1.0], &[2.0], &[3.0]]);
        let encoder = encoder(dir.path(), 1.0);
        let got = features(&encoder, &data, &[2, 0], &View::flips()).unwrap();
        for (features, row) in got.chunks_exact(3).zip([2, 0]) {
            let expected = rgb_statistics(&data.image(row).unwrap());
            for (a, b) in features.iter().zip(&expected[..3]) {
                assert!((a - b / 255.0).abs() < 1e-5, "{features:?} {expected:?}");
            }
        }
        let kept = || std::fs::read_dir(dir.path().join(DIRECTORY)).unwrap().count();
        assert_eq!(kept(), 4, "one file a view");
        assert_eq!(features(&encoder, &data, &[2, 0], &View::flips()).unwrap(), got);
        assert_eq!(kept(), 4);
        assert!(features(&encoder, &data, &[0], &[]).is_err());
    }

    #[test]
    fn another_preprocessing_or_a_damaged_file_is_computed_again() {
        let (dir, data) = dataset(&["A"], &[&[1.0], &[2.0]]);
        let one = view_features(&encoder(dir.path(), 1.0), &data, &View::PLAIN).unwrap();
        let other = view_features(&encoder(dir.path(), 2.0), &data, &View::PLAIN).unwrap();
        assert!((one[0] - 2.0 * other[0]).abs() < 1e-6);
        for file in std::fs::read_dir(dir.path().join(DIRECTORY)).unwrap() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        }
        assert_eq!(view_features(&encoder(dir.path(), 2.0), &data, &View::PLAIN).unwrap(), other);
    }
}
