//! The threads that predict: one engine session each, fed from one bounded queue.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use diffbulk_link::message::Shot;

use super::field::Field;
use super::hub::Input;
use super::metrics::{Metrics, count};
use super::pixels::Picture;
use super::served::Served;
use crate::Result;
use crate::engine::Session;
use crate::output::Row;
use crate::predict::pipeline::{self, Job, caught};

/// A picture that is to be predicted.
#[derive(Debug)]
pub(super) struct Work {
    /// Whose it is: station, and number of its scan.
    pub(super) scan: (usize, u64),
    /// With which model.
    pub(super) served: Arc<Served>,
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
    /// Which engine made it, where engines stand in for each other.
    pub(super) engine: &'static str,
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

/// One worker's sessions: of the model in use, and of those that scans under way began with.
#[derive(Default)]
struct Sessions(Vec<(Weak<Served>, Box<dyn Session>)>);

impl Sessions {
    fn of(&mut self, served: &Arc<Served>) -> Result<&mut dyn Session> {
        let mine = |(weak, _): &(Weak<Served>, _)| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(served));
        let at = match self.0.iter().position(mine) {
            Some(at) => at,
            None => {
                // Models that nothing is predicted with any more free their memory here.
                self.0.retain(|(served, _)| served.strong_count() > 0);
                self.0.push((Arc::downgrade(served), served.engine.session()?));
                self.0.len() - 1
            }
        };
        Ok(&mut *self.0[at].1)
    }
}

/// Starts workers for `threads` threads, which end when the queue does: more where the engine gathers tiles in batches.
///
/// # Errors
/// When the engine cannot make a session.
pub(super) fn start(
    first: &Arc<Served>,
    threads: usize,
    queue: &Receiver<Work>,
    done: &Sender<Input>,
    metrics: &Arc<Metrics>,
) -> Result<Vec<std::thread::JoinHandle<()>>> {
    let mut workers = Vec::new();
    for _ in 0..first.engine.sessions(threads).max(1) {
        let mut sessions = Sessions::default();
        sessions.of(first)?;
        workers.push(sessions);
    }
    Ok(workers
        .into_iter()
        .map(|sessions| {
            let (queue, done, metrics) = (queue.clone(), done.clone(), Arc::clone(metrics));
            std::thread::spawn(move || run(sessions, &queue, &done, &metrics))
        })
        .collect())
}

fn run(mut sessions: Sessions, queue: &Receiver<Work>, done: &Sender<Input>, metrics: &Metrics) {
    for work in queue {
        let Work { scan, served, shot, job, picture, um_per_px } = work;
        let arrived: Instant = picture.arrived;
        let mut engine = served.engine_name();
        let row = match sessions.of(&served) {
            Ok(session) => {
                let row = predict(session, &served, job, picture, um_per_px, metrics);
                engine = session.ran_on().unwrap_or(engine);
                row
            }
            Err(error) => Err(Failure::Engine(error)),
        };
        let predicted = Predicted { scan, shot, row, engine, latency: arrived.elapsed() };
        if done.send(Input::Predicted(Box::new(predicted))).is_err() {
            return;
        }
    }
}

fn predict(
    session: &mut dyn Session,
    served: &Served,
    job: Job,
    picture: Picture,
    um_per_px: f64,
    metrics: &Metrics,
) -> std::result::Result<Row, Failure> {
    let metadata = served.model.metadata();
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
                served.engine_name(),
                &served.columns,
                metadata.confidence.as_ref(),
                job,
                &image,
                &values,
            )
        })
        .map_err(Failure::Engine)
}
