//! The exposures of a scan: asked of the camera, predicted, kept, told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diffbulk_link::message::{
    Expression, FromHost, NoResult, Reason, SURVEY, Shot, TileEvent, TileResult,
};
use diffbulk_link::units::Fraction;

use super::driving::Board;
use super::{Action, Phase, Scan};
use crate::serve::journal::{Entry, ShotKey};
use crate::serve::pixels::Picture;
use crate::serve::workers::{Failure, Predicted, Work};

/// How long a camera may take to deliver a tile while its link is up.
const CAPTURE_WAIT: Duration = Duration::from_secs(15);

/// An exposure under way.
#[derive(Debug)]
pub(super) struct Capture {
    pub(super) event: TileEvent,
    key: ShotKey,
    /// The picture has come and is being predicted.
    pub(super) queued: bool,
    pub(super) since: Instant,
}

impl Scan {
    /// The camera sent a whole picture.
    ///
    /// # Errors
    /// In words, when a survey is not what was asked for; the scan has ended then.
    pub(in crate::serve) fn picture(
        &mut self,
        picture: Picture,
    ) -> std::result::Result<(), String> {
        if picture.header.shot.attempt == SURVEY {
            return self.survey(picture);
        }
        let Phase::Running(run) = &mut self.phase else { return Ok(()) };
        let shot = picture.header.shot;
        let Some(capture) = run.captures.get_mut(&shot).filter(|capture| !capture.queued) else {
            // Late, or said twice.
            return Ok(());
        };
        let Some(job) = run.prepared.jobs.get(&capture.key.0) else { return Ok(()) };
        capture.queued = true;
        let (job, um_per_px) = (job.clone(), self.slide.um_per_px);
        let served = Arc::clone(&self.served);
        let work = Work { scan: self.key, served, shot, job, picture, um_per_px };
        self.actions.push(Action::Predict(Box::new(work)));
        Ok(())
    }

    /// The camera has no pixels for a shot, or spoiled them.
    pub(in crate::serve) fn no_picture(&mut self, shot: Shot, reason: Reason) {
        if let Phase::Running(run) = &mut self.phase
            && run.captures.get(&shot).is_some_and(|capture| !capture.queued)
        {
            run.captures.remove(&shot);
            self.no_result(shot, reason);
        }
    }

    /// The stage has settled over a tile. `under_way` counts exposures of all scans; true when
    /// the tile was put off for their number.
    pub(in crate::serve) fn tile(
        &mut self,
        event: TileEvent,
        under_way: usize,
        camera: bool,
        now: Instant,
    ) -> bool {
        let shot = event.shot;
        let Phase::Running(run) = &mut self.phase else {
            // Not ready yet, or no more: the board asks again.
            self.no_result(shot, Reason::Overload);
            return false;
        };
        if run.captures.contains_key(&shot) {
            return false;
        }
        let index = run.prepared.parts.get(run.part).and_then(|part| part.index(shot.tile));
        let Some(index) = index.filter(|_| run.board == Board::Driving) else {
            // A board that is not driving this plan stands over a tile of another.
            self.no_result(shot, Reason::Overload);
            return false;
        };
        let key = (index, shot.attempt);
        if let Some(stored) = run.prepared.journal.get(key) {
            match run.prepared.journal.read(stored) {
                Ok(entry) => {
                    let told = result(&entry, shot, &self.served.board_columns);
                    self.actions.push(Action::Board(told));
                }
                Err(error) => {
                    tracing::error!(slide = self.slide.name, "{error}");
                    self.no_result(shot, Reason::Failed);
                }
            }
            return false;
        }
        if !camera || under_way >= self.shared.queue {
            self.no_result(shot, Reason::Overload);
            self.shed += u64::from(camera);
            return camera;
        }
        run.captures.insert(shot, Capture { event, key, queued: false, since: now });
        self.actions.push(Action::Camera(FromHost::Capture(event)));
        false
    }

    /// A picture was predicted.
    pub(in crate::serve) fn predicted(&mut self, predicted: Predicted) {
        let Phase::Running(run) = &mut self.phase else { return };
        let shot = predicted.shot;
        let Some(capture) = run.captures.remove(&shot) else { return };
        let row = match predicted.row {
            Ok(row) => row,
            Err(failure) => {
                let (reason, error) = match failure {
                    Failure::Pixels(error) => (Reason::BadPixels, error),
                    Failure::Engine(error) => (Reason::Failed, error),
                };
                tracing::error!(slide = self.slide.name, tile = capture.key.0, "{error}");
                self.no_result(shot, reason);
                return;
            }
        };
        let entry = Entry {
            attempt: shot.attempt,
            scale_pm: capture.event.scale.0,
            latency_us: u32::try_from(predicted.latency.as_micros()).unwrap_or(u32::MAX),
            engine: predicted.engine.into(),
            row,
        };
        if let Err(error) = run.prepared.journal.push(&entry) {
            // Nobody is told what is not kept; the board asks again.
            self.refused(&error);
            self.no_result(shot, Reason::Overload);
            return;
        }
        self.trouble = None;
        let told = result(&entry, shot, &self.served.board_columns);
        self.actions.push(Action::Board(told.clone()));
        self.actions.push(Action::Camera(told));
    }

    /// The disk did not take something; said once until it takes the next thing.
    pub(super) fn refused(&mut self, error: &crate::Error) {
        if self.trouble.is_none() {
            tracing::error!(slide = self.slide.name, "{error}; tried again until it can be kept");
        }
        self.trouble = Some(error.to_string());
    }

    fn no_result(&mut self, shot: Shot, reason: Reason) {
        let told = FromHost::NoResult(NoResult { shot, reason });
        self.actions.push(Action::Board(told.clone()));
        self.actions.push(Action::Camera(told));
    }

    /// Gives up on pictures that do not come.
    pub(super) fn give_up(&mut self, now: Instant, camera: bool) {
        let Phase::Running(run) = &mut self.phase else { return };
        let mut late = BTreeSet::new();
        for (shot, capture) in &mut run.captures {
            if !camera || capture.queued {
                capture.since = now;
            } else if now.saturating_duration_since(capture.since) > CAPTURE_WAIT {
                late.insert(*shot);
            }
        }
        for shot in late {
            self.no_picture(shot, Reason::NoPixels);
        }
    }
}

/// What the board and the camera are told of an entry.
fn result(entry: &Entry, shot: Shot, columns: &[usize]) -> FromHost {
    let values: Vec<f32> =
        columns.iter().filter_map(|&column| entry.row.expression.get(column).copied()).collect();
    let share = |value: f32| Fraction::new(f64::from(value).clamp(0.0, 1.0)).unwrap_or_default();
    match Expression::half(&values) {
        Some(expression) => FromHost::Result(TileResult {
            shot,
            expression,
            confidence: share(entry.row.confidence),
            tissue: share(entry.row.tissue),
            latency_us: entry.latency_us,
        }),
        // More genes than the link carries, which the panel rules out.
        None => FromHost::NoResult(NoResult { shot, reason: Reason::Failed }),
    }
}
