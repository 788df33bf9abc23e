//! Who is there, and which scan they belong to: one thread that owns everything that changes.
//!
//! Links tell the hub what came in ([`Input`]); the hub passes it to the scan of their station and
//! does what that asks for. A station is one scanner: at most one board and one camera. The hub
//! never waits for a link: one whose outbox is full is too slow and is closed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use diffbulk_link::message::{FromHost, Hello, Reason, Role, Shot, Slide, ToHost};

use super::metrics::{Metrics, count};
use super::pixels::Picture;
use super::scan::{Action, Finished, Prepared, Scan, Shared, finish, prepare};
use super::workers::{Predicted, Predictor, Work};
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
    Joined { link: LinkId, station: usize, who: String, outbox: Sender<FromHost>, close: Closer },
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
    /// A scan's files are there.
    Written { scan: (usize, u64), result: Result<Finished> },
}

/// Asks a link's thread to end it.
#[derive(Debug, Clone)]
pub(super) struct Closer(pub(super) Arc<AtomicBool>);

impl Closer {
    pub(super) fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Link {
    station: usize,
    who: String,
    outbox: Sender<FromHost>,
    close: Closer,
    /// Set while the other end is there.
    hello: Option<Hello>,
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
    pub(super) predictor: Arc<Predictor>,
    pub(super) metrics: Arc<Metrics>,
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
            Input::Joined { link, station, who, outbox, close } => {
                tracing::info!(link, %who, "link open");
                self.links.insert(link, Link { station, who, outbox, close, hello: None });
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

    fn up(&mut self, id: LinkId, hello: Hello) {
        let Some(link) = self.links.get_mut(&id) else { return };
        tracing::info!(
            link = id, who = %link.who, role = ?hello.role, version = %hello.version,
            resume = ?hello.resume, "up"
        );
        let (role, resume, number) = (hello.role, hello.resume, link.station);
        link.hello = Some(hello);
        let Some(station) = self.stations.get_mut(number) else { return };
        let place = match role {
            Role::Board => &mut station.board,
            Role::Camera => &mut station.camera,
            Role::Host => {
                tracing::warn!(link = id, "the other end is a host too; this link is closed");
                link.close.close();
                return;
            }
        };
        let before = place.replace(id).filter(|&before| before != id);
        if role == Role::Board
            && let Some(scan) = &mut station.scan
        {
            scan.board_up(resume);
        }
        if let Some(replaced) = before.and_then(|before| self.links.get(&before)) {
            // The same end on a new link, before the old one's death was noticed.
            tracing::info!(who = %replaced.who, "link replaced by a newer one");
            replaced.close.close();
        }
        self.act(number);
    }

    fn down(&mut self, id: LinkId, goodbye: bool) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.hello = None;
        let number = link.station;
        let Some(station) = self.stations.get_mut(number) else { return };
        if station.board == Some(id) {
            station.board = None;
            if let Some(scan) = &mut station.scan {
                scan.board_down();
            }
        }
        if station.camera == Some(id) {
            station.camera = None;
            // A camera that takes its leave after the end has heard of it.
            if goodbye && station.scan.as_ref().is_some_and(Scan::is_ended) {
                station.scan = None;
            }
        }
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
        match Scan::new((number, station.scans), slide, &self.hub.shared) {
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
        let key = predicted.scan;
        if let Some(scan) = self.scan(key) {
            scan.predicted(predicted);
        }
        self.act(key.0);
    }

    fn written(&mut self, key: (usize, u64), result: Result<Finished>) {
        count(&self.hub.metrics.scans);
        let ms = |seconds: Option<f64>| seconds.map_or(0.0, |s| s * 1e3);
        if let Some(scan) = self.scan(key) {
            match &result {
                Ok(done) => tracing::info!(
                    slide = scan.name(),
                    tiles = done.tiles,
                    complete = done.complete,
                    p50_ms = ms(done.p50),
                    p99_ms = ms(done.p99),
                    "scan written"
                ),
                Err(error) => tracing::error!(slide = scan.name(), "not written: {error}"),
            }
            scan.written(result.is_ok());
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
        let key = scan.key();
        for action in scan.take_actions() {
            match action {
                Action::Board(message) => self.tell(board, message),
                Action::Camera(message) => self.tell(camera, message),
                Action::Predict(work) => {
                    // The queue holds as many as may be under way.
                    if self.hub.work.try_send(*work).is_err() {
                        tracing::error!("the queue of tiles is full beyond its limit");
                    }
                }
                Action::Prepare(survey) => {
                    let (predictor, shared) =
                        (Arc::clone(&self.hub.predictor), Arc::clone(&self.hub.shared));
                    self.aside(
                        move || {
                            let (slide, surveyed) = *survey;
                            let prepared = prepare(
                                &slide,
                                surveyed,
                                &predictor,
                                &shared.objective,
                                &shared.settings,
                            );
                            Input::Prepared { scan: key, prepared: prepared.map(Box::new) }
                        },
                        move |error| Input::Prepared { scan: key, prepared: Err(error) },
                    );
                }
                Action::Write(ending) => {
                    let predictor = Arc::clone(&self.hub.predictor);
                    self.aside(
                        move || {
                            let result = finish(*ending, &predictor);
                            Input::Written { scan: key, result }
                        },
                        move |error| Input::Written { scan: key, result: Err(error) },
                    );
                }
            }
        }
        let under_way = self.under_way();
        self.hub.metrics.set_queue(under_way);
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

    fn tell(&self, link: Option<LinkId>, message: FromHost) {
        let Some(link) = link.and_then(|link| self.links.get(&link)) else { return };
        if let Err(TrySendError::Full(_)) = link.outbox.try_send(message) {
            tracing::warn!(who = %link.who, "the other end does not take what it is sent");
            count(&self.hub.metrics.dropped);
            link.close.close();
        }
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
