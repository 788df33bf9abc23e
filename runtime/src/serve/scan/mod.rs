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

mod finish;
mod prepare;
mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use diffbulk_link::message::{
    Command, Decision, Expression, FromHost, NoResult, Objective, PlanReply, PlanStatus, Reason,
    Resume, SURVEY, Shot, Slide, StopReason, Summary, TileEvent, TileResult,
};
use diffbulk_link::units::Fraction;

pub(super) use self::finish::{Ending, Finished, finish};
pub use self::prepare::{ObjectiveSettings, ScanSettings};
pub(super) use self::prepare::{Prepared, prepare};
use self::survey::{Geometry, Surveyed, Surveying};
use super::journal::{Entry, ShotKey};
use super::pixels::Picture;
use super::workers::{Failure, Predicted, Work};
use crate::Result;

/// How long a camera may take to deliver a tile while its link is up.
const CAPTURE_WAIT: Duration = Duration::from_secs(15);

/// Between two attempts to hand a busy board its plan.
const PLAN_RETRY: Duration = Duration::from_millis(500);

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
    pub(super) objective: Objective,
    /// Columns of a row that the board gets.
    pub(super) board_columns: Vec<usize>,
    /// Exposures that may be under way at once, over all scans.
    pub(super) queue: usize,
    pub(super) threads: usize,
}

/// A slide's way through the scanner.
#[derive(Debug)]
pub(super) struct Scan {
    key: (usize, u64),
    shared: Arc<Shared>,
    slide: Geometry,
    phase: Phase,
    actions: Vec<Action>,
    shed: u64,
}

#[derive(Debug)]
enum Phase {
    Surveying(Surveying),
    Preparing,
    Running(Box<Run>),
    Writing(Summary),
    Ended { summary: Option<Summary>, at: Instant },
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

/// How the board stands to the plan.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Board {
    /// Not there, or not asked.
    Unknown,
    /// The plan was sent.
    Planning,
    /// It refused for the moment.
    Retry(Instant),
    /// It drives.
    Driving,
    /// It will never drive this plan.
    Refused,
}

#[derive(Debug)]
struct Capture {
    event: TileEvent,
    key: ShotKey,
    /// The picture has come and is being predicted.
    queued: bool,
    since: Instant,
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
    ) -> std::result::Result<Self, String> {
        let slide = Geometry::new(slide)?;
        let surveying = Surveying::new(&slide)?;
        let mut scan = Self {
            key,
            shared: Arc::clone(shared),
            slide,
            phase: Phase::Surveying(surveying),
            actions: Vec::new(),
            shed: 0,
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
            Phase::Preparing | Phase::Writing(_) | Phase::Ended { summary: None, .. } => {}
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

    /// The camera sent a whole picture.
    ///
    /// # Errors
    /// In words, when a survey is not what was asked for; the scan has ended then.
    pub(super) fn picture(&mut self, picture: Picture) -> std::result::Result<(), String> {
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
        let work = Work { scan: self.key, shot, job, picture, um_per_px };
        self.actions.push(Action::Predict(Box::new(work)));
        Ok(())
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

    /// The camera has no pixels for a shot, or spoiled them.
    pub(super) fn no_picture(&mut self, shot: Shot, reason: Reason) {
        if let Phase::Running(run) = &mut self.phase
            && run.captures.get(&shot).is_some_and(|capture| !capture.queued)
        {
            run.captures.remove(&shot);
            self.no_result(shot, reason);
        }
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
        let resumed = prepared.journal.entries().len() as u64;
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

    /// The board is there (again) and says where it stands.
    pub(super) fn board_up(&mut self, resume: Option<Resume>) {
        let Phase::Running(run) = &mut self.phase else { return };
        let Some(part) = run.prepared.parts.get(run.part) else { return };
        let decided = run.prepared.journal.tiles_decided(part.range());
        match resume {
            // The last decision may be under way still.
            Some(resume)
                if resume.plan == part.plan.id && usize::from(resume.decided) <= decided + 1 =>
            {
                run.board = Board::Driving;
                if resume.next.is_some() {
                    self.actions.push(Action::Board(FromHost::Command(Command::Start)));
                } else if decided == 0 {
                    // It has done this plan before, for another scan of the same slide.
                    self.send_plan();
                }
            }
            Some(resume) if resume.next.is_some() => {
                tracing::warn!(
                    plan = format!("{:08x}", resume.plan.0),
                    "the board holds another plan under way, which is stopped"
                );
                self.actions.push(Action::Board(FromHost::Command(Command::Stop)));
                self.send_plan();
            }
            _ => self.send_plan(),
        }
    }

    fn send_plan(&mut self) {
        let Phase::Running(run) = &mut self.phase else { return };
        let Some(part) = run.prepared.parts.get(run.part) else { return };
        run.board = Board::Planning;
        self.actions.push(Action::Board(FromHost::Plan(part.plan.clone())));
        self.actions.extend(part.pieces().map(|cells| Action::Board(FromHost::Cells(cells))));
    }

    /// What the board says to the plan.
    pub(super) fn plan_status(&mut self, status: PlanStatus, now: Instant) {
        let Phase::Running(run) = &mut self.phase else { return };
        let current = run.prepared.parts.get(run.part).map(|part| part.plan.id);
        if run.board != Board::Planning || current != Some(status.plan) {
            return;
        }
        match status.reply {
            PlanReply::Accepted => {
                run.board = Board::Driving;
                self.actions.push(Action::Board(FromHost::Command(Command::Start)));
            }
            PlanReply::Busy => {
                run.board = Board::Retry(now + PLAN_RETRY);
                self.actions.push(Action::Board(FromHost::Command(Command::Stop)));
            }
            PlanReply::OutOfOrder | PlanReply::BadId => run.board = Board::Retry(now + PLAN_RETRY),
            refused => {
                tracing::error!(
                    slide = self.slide.name, reply = ?refused,
                    "the board cannot carry out the plan; check the machine's limits"
                );
                run.board = Board::Refused;
            }
        }
    }

    /// The board is gone.
    pub(super) fn board_down(&mut self) {
        if let Phase::Running(run) = &mut self.phase
            && run.board != Board::Refused
        {
            run.board = Board::Unknown;
        }
    }

    /// The stage has settled over a tile. `under_way` counts exposures of all scans; true when
    /// the tile was put off for their number.
    pub(super) fn tile(
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
        if let Some(stored) = run.prepared.journal.entries().get(&key).copied() {
            match run.prepared.journal.read(stored) {
                Ok(entry) => {
                    let told = result(&entry, shot, &self.shared.board_columns);
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
    pub(super) fn predicted(&mut self, predicted: Predicted) {
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
            row,
        };
        if let Err(error) = run.prepared.journal.push(&entry) {
            // Nobody is told what is not kept; the board asks again.
            tracing::error!(slide = self.slide.name, "{error}");
            self.no_result(shot, Reason::Overload);
            return;
        }
        let told = result(&entry, shot, &self.shared.board_columns);
        self.actions.push(Action::Board(told.clone()));
        self.actions.push(Action::Camera(told));
    }

    fn no_result(&mut self, shot: Shot, reason: Reason) {
        let told = FromHost::NoResult(NoResult { shot, reason });
        self.actions.push(Action::Board(told.clone()));
        self.actions.push(Action::Camera(told));
    }

    /// The board decided on a shot.
    pub(super) fn decision(&mut self, decision: Decision) {
        let Phase::Running(run) = &mut self.phase else { return };
        let part = run.prepared.parts.get(run.part).filter(|_| run.board == Board::Driving);
        if let Some(index) = part.and_then(|part| part.index(decision.shot.tile))
            && let Err(error) = run.prepared.journal.decided((index, decision.shot.attempt))
        {
            tracing::error!(slide = self.slide.name, "{error}");
        }
        tracing::debug!(shot = ?decision.shot, action = ?decision.action, score = ?decision.score);
        self.actions.push(Action::Camera(FromHost::Decision(decision)));
    }

    /// The board is done with the plan.
    pub(super) fn summary(&mut self, summary: Summary) {
        let Phase::Running(run) = &mut self.phase else { return };
        let current = run.prepared.parts.get(run.part).map(|part| part.plan.id);
        if run.board != Board::Driving || current != Some(summary.plan) {
            return;
        }
        if summary.reason == StopReason::Complete && run.part + 1 < run.prepared.parts.len() {
            run.part += 1;
            run.captures.clear();
            self.send_plan();
        } else {
            self.write(summary);
        }
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

    /// The outputs are written, or cannot be.
    pub(super) fn written(&mut self, good: bool) {
        if let Phase::Writing(summary) = &self.phase {
            let summary = summary.clone();
            self.end(good.then_some(summary));
        }
    }

    fn end(&mut self, summary: Option<Summary>) {
        if let Some(summary) = &summary {
            self.actions.push(Action::Camera(FromHost::Summary(summary.clone())));
        }
        self.phase = Phase::Ended { summary, at: Instant::now() };
    }

    /// Time passes.
    pub(super) fn tick(&mut self, now: Instant, camera: bool) {
        let Phase::Running(run) = &mut self.phase else { return };
        if let Board::Retry(at) = run.board
            && now >= at
        {
            self.send_plan();
            return;
        }
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

    /// Makes what is known survive a power cut.
    pub(super) fn sync(&mut self) {
        if let Phase::Running(run) = &mut self.phase
            && let Err(error) = run.prepared.journal.sync()
        {
            tracing::error!(slide = self.slide.name, "{error}");
        }
    }
}

impl Run {
    /// Tiles of a part without a result.
    fn missing(&self, part: usize) -> usize {
        let Some(part) = self.prepared.parts.get(part) else { return 0 };
        let cells = part.plan.grid.cells().unwrap_or(0) as u16;
        let known = self.prepared.journal.entries();
        (0..cells)
            .filter_map(|cell| part.index(diffbulk_link::message::TileId(cell)))
            .filter(|index| !known.contains_key(&(*index, 0)))
            .count()
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
