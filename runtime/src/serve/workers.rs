//! The threads that predict: one engine session each, fed from one bounded queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use diffbulk_link::message::Shot;

use super::field::Field;
use super::hub::Input;
use super::metrics::{Metrics, count};
use super::pixels::Picture;
use crate::Result;
use crate::engine::{Engine, Session};
use crate::model::Model;
use crate::output::Row;
use crate::predict::pipeline::{self, Job, caught};

/// A picture that is to be predicted.
#[derive(Debug)]
pub(super) struct Work {
    /// Whose it is: station, and number of its scan.
    pub(super) scan: (usize, u64),
    /// Which exposure.
    pub(super) shot: Shot,
    /// Which tile of the slide.
    pub(super) job: Job,
    /// What the camera sent.
    pub(super) picture: Picture,
    /// The slide's finest scale.
    pub(super) um_per_px: f64,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Predicted {
    /// As in [`Work`].
    pub(super) scan: (usize, u64),
    /// As in [`Work`].
    pub(super) shot: Shot,
    /// The row, or why there is none; the difference between bad pixels and a failed model.
    pub(super) row: std::result::Result<Row, Failure>,
    /// From the last pixel byte to here.
    pub(super) latency: Duration,
}

/// Why a picture has no row.
#[derive(Debug)]
pub(super) enum Failure {
    /// The pixels could not be used.
    Pixels(crate::Error),
    /// The engine failed.
    Engine(crate::Error),
}

/// What every worker needs of the model.
#[derive(Debug)]
pub(super) struct Predictor {
    pub(super) model: Model,
    pub(super) columns: Vec<usize>,
    pub(super) engine_name: &'static str,
}

/// Starts `threads` workers, which end when the queue does.
///
/// # Errors
/// When the engine cannot make a session.
pub(super) fn start(
    engine: &dyn Engine,
    predictor: &Arc<Predictor>,
    threads: usize,
    queue: &Receiver<Work>,
    done: &Sender<Input>,
    metrics: &Arc<Metrics>,
) -> Result<Vec<std::thread::JoinHandle<()>>> {
    let sessions = (0..threads.max(1)).map(|_| engine.session()).collect::<Result<Vec<_>>>()?;
    Ok(sessions
        .into_iter()
        .map(|session| {
            let (predictor, queue, done, metrics) =
                (Arc::clone(predictor), queue.clone(), done.clone(), Arc::clone(metrics));
            std::thread::spawn(move || run(session, &predictor, &queue, &done, &metrics))
        })
        .collect())
}

fn run(
    mut session: Box<dyn Session>,
    predictor: &Predictor,
    queue: &Receiver<Work>,
    done: &Sender<Input>,
    metrics: &Metrics,
) {
    for work in queue {
        let Work { scan, shot, job, picture, um_per_px } = work;
        let arrived: Instant = picture.arrived;
        let row = predict(&mut *session, predictor, job, picture, um_per_px, metrics);
        let predicted = Predicted { scan, shot, row, latency: arrived.elapsed() };
        if done.send(Input::Predicted(Box::new(predicted))).is_err() {
            return;
        }
    }
}

fn predict(
    session: &mut dyn Session,
    predictor: &Predictor,
    job: Job,
    picture: Picture,
    um_per_px: f64,
    metrics: &Metrics,
) -> std::result::Result<Row, Failure> {
    let metadata = predictor.model.metadata();
    let image = caught("reading", &job, || {
        Field::new(&picture.header, picture.bytes, um_per_px)?.tile(&job.tile, metadata.tile_px)
    })
    .map_err(Failure::Pixels)?;
    let panicked = std::cell::Cell::new(true);
    let values = caught("inference", &job, || {
        let values = session.predict(&image);
        panicked.set(false);
        values
    });
    if panicked.get() {
        count(&metrics.panics);
    }
    values
        .and_then(|values| {
            pipeline::row(
                predictor.engine_name,
                &predictor.columns,
                metadata.confidence.as_ref(),
                job,
                &image,
                &values,
            )
        })
        .map_err(Failure::Engine)
}
