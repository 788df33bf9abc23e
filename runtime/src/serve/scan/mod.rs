//! One scan, from a slide under the camera to its files, as a state machine.
//!
//! ```text
//! camera says which slide -> survey -> (prepare: tissue, tiles, plans, journal) -> run -> write
//! run:  board settles over a tile -> camera sends it -> predicted -> kept -> board and camera told
//! ```
//!
//! Nothing here blocks or talks: what came in goes in, what is to be done comes out as
//! [`Action`]s. All that must outlive this process is in the journal before anybody is told, so
//! board, camera and host may vanish and return in any order: who returns is told where things
//! stand, and a shot that was predicted once is answered from the journal.

mod driving;
mod exposures;
mod finish;
mod prepare;
mod survey;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use diffbulk_link::message::{FromHost, Resume, Shot, Slide, StopReason, Summary};

use self::driving::Board;
use self::exposures::Capture;
pub(super) use self::finish::{Ending, Finished, finish};
pub use self::prepare::{ObjectiveSettings, ScanSettings};
pub(super) use self::prepare::{Prepared, prepare};
use self::survey::{Geometry, Surveyed, Surveying};
use super::pixels::Picture;
use super::served::Served;
use super::workers::Work;
use crate::{Error, Result};

/// Between two attempts to write the outputs of a scan that the disk did not take.
const WRITE_RETRY: Duration = Duration::from_secs(2);

/// What has to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Tell the board.
    Board(FromHost),
    /// Tell the camera.
    Camera(FromHost),
    /// Predict a picture.
    Predict(Box<Work>),
    /// Work the survey out.
    Prepare(Box<(Geometry, Surveyed)>),
    /// Write the outputs.
    Write(Box<Ending>),
}

/// What every scan of this daemon shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: ScanSettings,
    /// Exposures that may be under way at once, over all scans.
    pub(super) queue: usize,
    pub(super) threads: usize,
}

/// A slide's way through the scanner.
#[derive(Debug)]
pub(super) struct Scan {
    key: (usize, u64),
    shared: Arc<Shared>,
    /// The model it began with, and ends with.
    served: Arc<Served>,
    slide: Geometry,
    phase: Phase,
    actions: Vec<Action>,
    shed: u64,
    /// What the disk did not take, until it takes the next thing.
    trouble: Option<String>,
}

#[derive(Debug)]
enum Phase {
    Surveying(Surveying),
    Preparing,
    Running(Box<Run>),
    Writing(Summary),
    /// The disk did not take the outputs; the journal has everything.
    Unwritten {
        ending: Box<Ending>,
        again: Instant,
    },
    Ended {
        summary: Option<Summary>,
        at: Instant,
    },
}

#[derive(Debug)]
struct Run {
    prepared: Prepared,
    part: usize,
    board: Board,
    captures: BTreeMap<Shot, Capture>,
    resumed: u64,
    started: (Instant, SystemTime),
}

impl Scan {
    /// A slide was put under the camera.
    ///
    /// # Errors
    /// When it cannot be one.
    pub(super) fn new(
        key: (usize, u64),
        slide: &Slide,
        shared: &Arc<Shared>,
        served: &Arc<Served>,
    ) -> std::result::Result<Self, String> {
        let slide = Geometry::new(slide)?;
        let surveying = Surveying::new(&slide)?;
        let mut scan = Self {
            key,
            shared: Arc::clone(shared),
            served: Arc::clone(served),
            slide,
            phase: Phase::Surveying(surveying),
            actions: Vec::new(),
            shed: 0,
            trouble: None,
        };
        scan.ask_survey();
        Ok(scan)
    }

    /// Station and number.
    pub(super) fn key(&self) -> (usize, u64) {
        self.key
    }

    /// The slide's name.
    pub(super) fn name(&self) -> &str {
        &self.slide.name
    }

    /// The model it is predicted with.
    pub(super) fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// What the disk does not take.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// What has to be done since the last call.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Exposures under way.
    pub(super) fn under_way(&self) -> usize {
        match &self.phase {
            Phase::Running(run) => run.captures.len(),
            _ => 0,
        }
    }

    /// Times a tile was put off.
    pub(super) fn shed(&self) -> u64 {
        self.shed
    }

    /// Whether the outputs are written, or never will be.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// Whether it ended more than `ago`.
    pub(super) fn ended_before(&self, ago: Duration) -> bool {
        matches!(&self.phase, Phase::Ended { at, .. } if at.elapsed() > ago)
    }

    /// The camera is there (again) with this slide; false when it is another one.
    pub(super) fn camera_up(&mut self, slide: &Slide, now: Instant) -> bool {
        if Geometry::new(slide).as_ref() != Ok(&self.slide) {
            return false;
        }
        match &mut self.phase {
            Phase::Surveying(surveying) => match Surveying::new(&self.slide) {
                Ok(fresh) => {
                    *surveying = fresh;
                    self.ask_survey();
                }
                Err(_) => return false,
            },
            Phase::Running(run) => {
                for capture in run.captures.values_mut().filter(|capture| !capture.queued) {
                    capture.since = now;
                    self.actions.push(Action::Camera(FromHost::Capture(capture.event)));
                }
            }
            Phase::Ended { summary: Some(summary), .. } => {
                self.actions.push(Action::Camera(FromHost::Summary(summary.clone())));
            }
            Phase::Preparing
            | Phase::Writing(_)
            | Phase::Unwritten { .. }
            | Phase::Ended { summary: None, .. } => {}
        }
        true
    }

    fn ask_survey(&mut self) {
        if let Phase::Surveying(surveying) = &self.phase
            && let Some(survey) = surveying.next()
        {
            self.actions.push(Action::Camera(FromHost::Survey(survey)));
        }
    }

    fn survey(&mut self, picture: Picture) -> std::result::Result<(), String> {
        let Phase::Surveying(surveying) = &mut self.phase else { return Ok(()) };
        match surveying.push(picture) {
            Ok(false) => self.ask_survey(),
            Ok(true) => {
                let Phase::Surveying(surveying) =
                    std::mem::replace(&mut self.phase, Phase::Preparing)
                else {
                    return Ok(());
                };
                match surveying.finish() {
                    Some(surveyed) => {
                        self.actions.push(Action::Prepare(Box::new((self.slide.clone(), surveyed))))
                    }
                    None => self.end(None),
                }
            }
            Err(problem) => {
                self.end(None);
                return Err(problem);
            }
        }
        Ok(())
    }

    /// The survey was worked out.
    ///
    /// # Errors
    /// Passes on why it could not be; the scan has ended then.
    pub(super) fn prepared(
        &mut self,
        prepared: Result<Prepared>,
        board: Option<Option<Resume>>,
    ) -> Result<()> {
        if !matches!(self.phase, Phase::Preparing) {
            return Ok(());
        }
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                self.end(None);
                return Err(error);
            }
        };
        let resumed = prepared.journal.len();
        tracing::info!(
            slide = self.slide.name,
            tiles = prepared.jobs.len(),
            of = prepared.tiles,
            plans = prepared.parts.len(),
            resumed,
            "scan planned"
        );
        let mut run = Box::new(Run {
            prepared,
            part: 0,
            board: Board::Unknown,
            captures: BTreeMap::new(),
            resumed,
            started: (Instant::now(), SystemTime::now()),
        });
        // Parts that are whole already need not be driven again.
        while run.part + 1 < run.prepared.parts.len() && run.missing(run.part) == 0 {
            run.part += 1;
        }
        let empty = run.prepared.parts.is_empty();
        self.phase = Phase::Running(run);
        if empty {
            self.write(Summary {
                plan: Default::default(),
                reason: StopReason::Complete,
                kept: 0,
                skipped: 0,
                rescans: 0,
                refocuses: 0,
                best: Default::default(),
                genes: Default::default(),
            });
        } else if let Some(resume) = board {
            self.board_up(resume);
        }
        Ok(())
    }

    fn write(&mut self, summary: Summary) {
        let writing = Phase::Writing(summary.clone());
        let Phase::Running(run) = std::mem::replace(&mut self.phase, writing) else { return };
        let Run { prepared, part, resumed, started, .. } = *run;
        let best = summary
            .best
            .iter()
            .filter_map(|best| {
                let index = prepared.parts.get(part)?.index(best.tile)?;
                Some((prepared.jobs.get(&index)?.tile.id.clone(), best.score))
            })
            .collect();
        self.actions.push(Action::Write(Box::new(Ending {
            slide: self.slide.clone(),
            prepared,
            summary,
            best,
            formats: self.shared.settings.formats.clone(),
            threads: self.shared.threads,
            shed: self.shed,
            resumed,
            started,
        })));
    }

    /// The outputs are written, or the disk did not take them: then they are tried again, for as
    /// long as it takes. False while that goes on.
    pub(super) fn written(
        &mut self,
        result: std::result::Result<(), (Option<Box<Ending>>, Error)>,
        now: Instant,
    ) -> bool {
        let Phase::Writing(summary) = &self.phase else { return false };
        match result {
            Ok(()) => {
                let summary = summary.clone();
                self.trouble = None;
                self.end(Some(summary));
            }
            Err((Some(ending), error)) => {
                self.trouble = Some(error.to_string());
                self.phase = Phase::Unwritten { ending, again: now + WRITE_RETRY };
                return false;
            }
            Err((None, error)) => {
                self.trouble = Some(error.to_string());
                self.end(None);
            }
        }
        true
    }

    fn end(&mut self, summary: Option<Summary>) {
        if let Some(summary) = &summary {
            self.actions.push(Action::Camera(FromHost::Summary(summary.clone())));
        }
        self.phase = Phase::Ended { summary, at: Instant::now() };
    }

    /// Time passes.
    pub(super) fn tick(&mut self, now: Instant, camera: bool) {
        self.replan(now);
        self.give_up(now, camera);
        if matches!(&self.phase, Phase::Unwritten { again, .. } if *again <= now) {
            let at = Phase::Ended { summary: None, at: now };
            if let Phase::Unwritten { ending, .. } = std::mem::replace(&mut self.phase, at) {
                self.phase = Phase::Writing(ending.summary.clone());
                self.actions.push(Action::Write(ending));
            }
        }
    }

    /// Makes what is known survive a power cut.
    pub(super) fn sync(&mut self) {
        if let Phase::Running(run) = &mut self.phase
            && let Err(error) = run.prepared.journal.sync()
        {
            tracing::error!(slide = self.slide.name, "{error}");
        }
    }
}
