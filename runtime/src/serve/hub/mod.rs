//! Who is there, and which scan they belong to: one thread that owns everything that changes.
//!
//! Links tell the hub what came in ([`Input`]); the hub passes it to the scan of their station and
//! does what that asks for. A station is one scanner: at most one board and one camera. The hub
//! never waits for a link: one whose outbox is full is too slow and is closed.

mod links;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use diffbulk_link::message::{Command, FromHost, Hello, Reason, Shot, Slide, ToHost};

use self::links::Link;
use super::health::Health;
use super::metrics::{Metrics, count};
use super::peer::Tell;
use super::pixels::Picture;
use super::scan::{Action, Ending, Finished, Prepared, Scan, Shared, finish, prepare};
use super::served::Served;
use super::workers::{Failure, Predicted, Work};
use crate::{Error, Result};

/// Between two looks at the time.
const TICK: Duration = Duration::from_millis(100);

/// How long tiles under way may take when the daemon is told to stop.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// How long an ended scan is remembered for a camera that was cut off in the last moment.
const REMEMBER: Duration = Duration::from_secs(20);

/// Number of a link, never used again.
pub(super) type LinkId = u64;

/// What reaches the hub.
#[derive(Debug)]
pub(super) enum Input {
    /// A link was opened.
    Joined {
        link: LinkId,
        station: usize,
        who: String,
        outbox: Sender<Tell>,
        close: Closer,
        /// Generation of the model that it introduces this host with.
        introduced: u64,
    },
    /// The other end introduced itself (again).
    Up { link: LinkId, hello: Box<Hello> },
    /// The other end is gone, for good where it said goodbye.
    Down { link: LinkId, goodbye: bool },
    /// The link is closed.
    Left { link: LinkId },
    /// The other end said something (never pixels).
    Said { link: LinkId, message: Box<ToHost> },
    /// The camera sent a whole picture.
    Picture { link: LinkId, picture: Box<Picture> },
    /// What it sent is none.
    BadPicture { link: LinkId, shot: Shot, problem: String },
    /// A worker is done.
    Predicted(Box<Predicted>),
    /// A survey was worked out.
    Prepared { scan: (usize, u64), prepared: Result<Box<Prepared>> },
    /// A scan's files are there, or the disk did not take them.
    Written {
        scan: (usize, u64),
        result: std::result::Result<Finished, (Option<Box<Ending>>, Error)>,
    },
    /// There is another model for the scans to come.
    Served(Arc<Served>),
    /// A person at the scanner wants something of a station's board.
    Order { station: usize, command: Command },
}

/// Asks a link's thread to end it.
#[derive(Debug, Clone)]
pub(super) struct Closer(pub(super) Arc<AtomicBool>);

impl Closer {
    pub(super) fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Station {
    board: Option<LinkId>,
    camera: Option<LinkId>,
    scan: Option<Scan>,
    scans: u64,
}

/// Owns stations and links.
pub(super) struct Hub {
    pub(super) inputs: Receiver<Input>,
    pub(super) to_self: Sender<Input>,
    pub(super) work: Sender<Work>,
    pub(super) shared: Arc<Shared>,
    /// The model of the scans to come.
    pub(super) served: Arc<Served>,
    /// How this host introduces itself to a new link, with the generation of its model.
    pub(super) hello: Arc<RwLock<(u64, Hello)>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    /// End after this many scans; 0 for never.
    pub(super) scans: u64,
    pub(super) stations: usize,
}

impl Hub {
    /// Runs until `stop` is set and what is under way is done.
    pub(super) fn run(self, stop: &AtomicBool) {
        let stations = (0..self.stations.max(1)).map(|_| Station::default()).collect();
        let mut state = State { hub: self, stations, links: HashMap::new(), stopping: None };
        let mut ticked = Instant::now();
        loop {
            state.hub.health.turn();
            match state.hub.inputs.recv_timeout(TICK) {
                Ok(input) => state.input(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if now.duration_since(ticked) >= TICK {
                ticked = now;
                state.tick(now);
            }
            let ended = state.hub.metrics.scans.load(Ordering::Relaxed);
            if state.hub.scans > 0 && ended >= state.hub.scans && state.is_idle() {
                stop.store(true, Ordering::Relaxed);
            }
            if stop.load(Ordering::Relaxed) && state.stopped(now) {
                return;
            }
        }
    }
}

struct State {
    hub: Hub,
    stations: Vec<Station>,
    links: HashMap<LinkId, Link>,
    stopping: Option<Instant>,
}

impl State {
    fn input(&mut self, input: Input) {
        match input {
            Input::Joined { link, station, who, outbox, close, introduced } => {
                self.joined(link, station, who, outbox, close, introduced);
            }
            Input::Left { link } => {
                self.down(link, false);
                if let Some(left) = self.links.remove(&link) {
                    tracing::info!(link, who = %left.who, "link closed");
                }
            }
            Input::Down { link, goodbye } => self.down(link, goodbye),
            Input::Up { link, hello } => self.up(link, *hello),
            Input::Said { link, message } => self.said(link, *message),
            Input::Picture { link, picture } => self.with_scan(link, |scan| {
                if let Err(problem) = scan.picture(*picture) {
                    tracing::error!(slide = scan.name(), "the survey is unusable: {problem}");
                }
            }),
            Input::BadPicture { link, shot, problem } => self.with_scan(link, |scan| {
                tracing::warn!(slide = scan.name(), ?shot, "bad pixels: {problem}");
                scan.no_picture(shot, Reason::BadPixels);
            }),
            Input::Predicted(predicted) => self.predicted(*predicted),
            Input::Prepared { scan: key, prepared } => {
                let resume = self.stations.get(key.0).and_then(|station| station.board);
                let resume = resume
                    .and_then(|link| self.links.get(&link)?.hello.as_ref())
                    .map(|hello| hello.resume);
                if let Some(scan) = self.scan(key)
                    && let Err(error) = scan.prepared(prepared.map(|boxed| *boxed), resume)
                {
                    tracing::error!(slide = scan.name(), "the scan cannot start: {error}");
                }
                self.act(key.0);
            }
            Input::Written { scan: key, result } => self.written(key, result),
            Input::Served(served) => {
                let mut hello = self.hub.hello.write().unwrap_or_else(PoisonError::into_inner);
                *hello = (served.generation, served.hello.clone());
                drop(hello);
                self.hub.served = served;
                (0..self.stations.len()).for_each(|number| self.introduce(number));
            }
            Input::Order { station, command } => {
                let board = self.stations.get(station).and_then(|station| station.board);
                tracing::info!(station, ?command, there = board.is_some(), "a person's order");
                self.tell(board, FromHost::Command(command));
            }
        }
    }

    fn scan(&mut self, key: (usize, u64)) -> Option<&mut Scan> {
        let scan = self.stations.get_mut(key.0)?.scan.as_mut()?;
        (scan.key() == key).then_some(scan)
    }

    /// Lets the scan of a camera's station take something.
    fn with_scan(&mut self, link: LinkId, take: impl FnOnce(&mut Scan)) {
        let Some(number) = self.links.get(&link).map(|link| link.station) else { return };
        let Some(station) = self.stations.get_mut(number) else { return };
        if station.camera == Some(link)
            && let Some(scan) = &mut station.scan
        {
            take(scan);
        }
        self.act(number);
    }

    fn said(&mut self, id: LinkId, message: ToHost) {
        let Some(link) = self.links.get(&id) else { return };
        let number = link.station;
        match &message {
            ToHost::Fault(fault) => {
                tracing::warn!(who = %link.who, code = ?fault.code, shot = ?fault.shot,
                    stopped = fault.stopped, "fault: {}", fault.text);
                return;
            }
            ToHost::Log(log) => {
                tracing::info!(who = %link.who, level = ?log.level, "{}", log.text);
                return;
            }
            ToHost::Telemetry(telemetry) => {
                tracing::trace!(who = %link.who, ?telemetry);
                return;
            }
            _ => {}
        }
        let under_way = self.under_way();
        let now = Instant::now();
        let Some(station) = self.stations.get_mut(number) else { return };
        let (board, camera) = (station.board == Some(id), station.camera == Some(id));
        if let (ToHost::Slide(slide), true) = (&message, camera) {
            self.slide(number, slide, now);
            self.act(number);
            return;
        }
        let has_camera = station.camera.is_some();
        if let Some(scan) = &mut station.scan {
            match message {
                ToHost::Tile(event) if board => {
                    let stopping = self.stopping.is_some();
                    let under_way = if stopping { usize::MAX } else { under_way };
                    if scan.tile(event, under_way, has_camera, now) {
                        count(&self.hub.metrics.shed);
                        if scan.shed().is_power_of_two() {
                            tracing::warn!(
                                slide = scan.name(),
                                times = scan.shed(),
                                under_way,
                                "overload: tiles are put off, the board asks again"
                            );
                        }
                    }
                }
                ToHost::Decision(decision) if board => scan.decision(decision),
                ToHost::Plan(status) if board => scan.plan_status(status, now),
                ToHost::Summary(summary) if board => scan.summary(summary),
                ToHost::NoPixels(none) if camera => scan.no_picture(none.shot, Reason::NoPixels),
                _ => {}
            }
        } else if let ToHost::Tile(event) = message
            && board
        {
            // There is no camera yet: the board asks again.
            let reason = Reason::Overload;
            let none = diffbulk_link::message::NoResult { shot: event.shot, reason };
            self.tell(Some(id), FromHost::NoResult(none));
        }
        self.act(number);
    }

    fn slide(&mut self, number: usize, slide: &Slide, now: Instant) {
        let Some(station) = self.stations.get_mut(number) else { return };
        if station.scan.as_ref().is_some_and(|scan| scan.ended_before(REMEMBER)) {
            station.scan = None;
        }
        if let Some(scan) = &mut station.scan {
            if scan.camera_up(slide, now) {
                return;
            }
            if !scan.is_ended() {
                tracing::warn!(
                    before = scan.name(), now = %slide.name,
                    "another slide is under the camera; the unfinished scan is kept on disk"
                );
                scan.sync();
            }
        }
        station.scans += 1;
        match Scan::new((number, station.scans), slide, &self.hub.shared, &self.hub.served) {
            Ok(scan) => {
                tracing::info!(slide = %slide.name, station = number, "slide under the camera");
                station.scan = Some(scan);
            }
            Err(problem) => {
                tracing::error!("{problem}");
                station.scan = None;
            }
        }
    }

    fn predicted(&mut self, predicted: Predicted) {
        match &predicted.row {
            Ok(_) => self.hub.metrics.tile(predicted.latency),
            Err(_) => count(&self.hub.metrics.failed),
        }
        self.hub.health.back(matches!(predicted.row, Err(Failure::Engine(_))));
        let key = predicted.scan;
        if let Some(scan) = self.scan(key) {
            scan.predicted(predicted);
        }
        self.act(key.0);
    }

    fn written(
        &mut self,
        key: (usize, u64),
        result: std::result::Result<Finished, (Option<Box<Ending>>, Error)>,
    ) {
        let ms = |seconds: Option<f64>| seconds.map_or(0.0, |s| s * 1e3);
        let metrics = Arc::clone(&self.hub.metrics);
        let ended = self.scan(key).is_none_or(|scan| {
            match &result {
                Ok(done) => tracing::info!(
                    slide = scan.name(),
                    tiles = done.tiles,
                    complete = done.complete,
                    p50_ms = ms(done.p50),
                    p99_ms = ms(done.p99),
                    "scan written"
                ),
                Err((_, error)) => {
                    count(&metrics.unwritten);
                    tracing::error!(slide = scan.name(), "not written yet: {error}");
                }
            }
            scan.written(result.map(drop), Instant::now())
        });
        if ended {
            count(&self.hub.metrics.scans);
        }
        self.act(key.0);
    }

    fn under_way(&self) -> usize {
        self.stations.iter().filter_map(|s| s.scan.as_ref()).map(Scan::under_way).sum()
    }

    /// Does what a station's scan asks for.
    fn act(&mut self, number: usize) {
        let Some(station) = self.stations.get_mut(number) else { return };
        let (board, camera) = (station.board, station.camera);
        let Some(scan) = &mut station.scan else { return };
        let (key, served) = (scan.key(), Arc::clone(scan.served()));
        for action in scan.take_actions() {
            match action {
                Action::Board(message) => self.tell(board, message),
                Action::Camera(message) => self.tell(camera, message),
                Action::Predict(work) => {
                    // The queue holds as many as may be under way.
                    if self.hub.work.try_send(*work).is_ok() {
                        self.hub.health.handed();
                    } else {
                        tracing::error!("the queue of tiles is full beyond its limit");
                    }
                }
                Action::Prepare(survey) => {
                    let (served, shared) = (served.clone(), Arc::clone(&self.hub.shared));
                    self.aside(
                        move || {
                            let (slide, surveyed) = *survey;
                            let prepared = prepare(&slide, surveyed, &served, &shared.settings);
                            Input::Prepared { scan: key, prepared: prepared.map(Box::new) }
                        },
                        move |error| Input::Prepared { scan: key, prepared: Err(error) },
                    );
                }
                Action::Write(ending) => {
                    let served = served.clone();
                    self.aside(
                        move || {
                            let result = finish(ending, &served);
                            let result = result.map_err(|(ending, error)| (Some(ending), error));
                            Input::Written { scan: key, result }
                        },
                        move |error| Input::Written { scan: key, result: Err((None, error)) },
                    );
                }
            }
        }
        let under_way = self.under_way();
        self.hub.metrics.set_queue(under_way);
        self.introduce(number);
    }

    /// Runs what takes long beside the hub; a panic there becomes an error here.
    fn aside(
        &self,
        work: impl FnOnce() -> Input + Send + 'static,
        failed: impl FnOnce(Error) -> Input + Send + 'static,
    ) {
        let (done, metrics) = (self.hub.to_self.clone(), Arc::clone(&self.hub.metrics));
        std::thread::spawn(move || {
            let input = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                .unwrap_or_else(|_| {
                    count(&metrics.panics);
                    failed(Error::Request("it failed inside; see the log".into()))
                });
            // The hub ends last.
            let _ = done.send(input);
        });
    }

    fn tick(&mut self, now: Instant) {
        for number in 0..self.stations.len() {
            let station = &mut self.stations[number];
            let camera = station.camera.is_some();
            if let Some(scan) = &mut station.scan {
                scan.tick(now, camera);
            }
            self.act(number);
        }
        let trouble = self.stations.iter().find_map(|station| station.scan.as_ref()?.trouble());
        self.hub.health.storage(trouble.map(str::to_owned));
    }

    fn is_idle(&self) -> bool {
        self.stations.iter().all(|s| s.scan.as_ref().is_none_or(Scan::is_ended))
    }

    /// Whether everything under way is done; ends the links then.
    fn stopped(&mut self, now: Instant) -> bool {
        let since = *self.stopping.get_or_insert_with(|| {
            tracing::info!("stopping");
            now
        });
        if self.under_way() > 0 && now.duration_since(since) < STOP_WAIT {
            return false;
        }
        for station in &mut self.stations {
            if let Some(scan) = &mut station.scan {
                scan.sync();
            }
        }
        for link in self.links.values() {
            link.close.close();
        }
        true
    }
}
