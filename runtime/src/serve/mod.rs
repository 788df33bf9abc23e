//! `diffbulk serve`: predictions tile by tile while the slide is being scanned.
//!
//! ```text
//! board  --tcp/unix/serial-- peer \            / worker (engine session)
//!                                  hub: scans <
//! camera --tcp/unix/serial-- peer /     |      \ worker
//!                                    journal -> predict's outputs
//! ```
//!
//! [`peer`] speaks the link's protocol with one end, [`hub`] knows who is there, [`scan`] is one
//! slide's way through the scanner, [`workers`] predict with the same engine and the same code as
//! `predict`. Plain threads: a scanner has two links and as many workers as cores, which needs no
//! async runtime. `docs/operating.md` beside this crate is for who runs it.

mod address;
mod admission;
mod allowance;
mod field;
mod health;
mod hub;
mod journal;
mod metrics;
mod peer;
mod pixels;
mod planning;
mod scan;
#[cfg(unix)]
mod serial;
mod served;
mod status;
#[cfg(all(test, unix))]
mod tests;
mod transport;
mod workers;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use diffbulk_link::session::Timing;

pub use address::{Address, DEFAULT_BAUD};
pub use admission::{Token, present};
pub use metrics::{Latencies, Metrics};
pub use scan::{ObjectiveSettings, ScanSettings};
pub use served::{Loaded, Models};
pub use transport::Stream;

use self::health::Health;
use self::hub::{Hub, Input};
use self::peer::{Daemon, LinkSettings};
use self::scan::Shared;
use self::served::Served;
use self::status::Status;
use self::transport::Listener;
use crate::{Error, Result};

/// Inputs that may wait for the hub.
const INPUTS: usize = 256;

/// Between two looks for new links.
const ACCEPT_POLL: Duration = Duration::from_millis(20);

/// Between two looks whether a newer model is asked for.
const RELOAD_POLL: Duration = Duration::from_millis(100);

/// How long an open link may be without a session: a board that restarts and a camera that is slow
/// to start need some seconds, who wants to keep places occupied would take for ever.
const NO_SESSION: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 15 });

/// Between two attempts to open a serial port that is not there.
const SERIAL_RETRY: Duration = Duration::from_secs(1);

/// Where and how the daemon listens, and what it allows.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where links come in: addresses of the first scanner, of the second, and so on.
    pub stations: Vec<Vec<Address>>,
    /// Needed for TCP beyond this machine.
    pub token: Option<Token>,
    /// Where health and metrics are told; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// Links open at once.
    pub sessions: usize,
    /// Exposures under way at once, over all scanners.
    pub queue: usize,
    /// Bytes a second that one link may send.
    pub bytes_per_second: u64,
    /// Tiles predicted at the same time.
    pub threads: usize,
    /// End after this many scans; 0 for never.
    pub scans: u64,
    /// How every scan is made and written.
    pub scan: ScanSettings,
}

/// What the outside asks of a running daemon.
#[derive(Debug, Default, Clone)]
pub struct Orders {
    /// Finish what is under way, keep it, and end.
    pub stop: Arc<AtomicBool>,
    /// Look whether there is a newer model; taken back when that begins.
    pub reload: Arc<AtomicBool>,
}

/// Runs until [`Orders::stop`] is set (or the asked number of scans is done): what is under way is
/// then finished and kept. `ready` is told the addresses once everything listens.
///
/// # Errors
/// When there is no model, an address cannot be listened at, or the settings do not fit the model.
pub fn run(
    options: &Options,
    models: &dyn Models,
    orders: &Orders,
    ready: &mut dyn FnMut(&[String]),
) -> Result<()> {
    crate::predict::check_formats(&options.scan.formats)?;
    let first = models
        .load(None)?
        .ok_or_else(|| Error::Request("there is no model to predict with".into()))?;
    let first = Arc::new(Served::new(1, first, &options.scan)?);
    let (metrics, health) = (Arc::new(Metrics::default()), Arc::new(Health::default()));
    health.model(first.name());
    let shared = Arc::new(Shared {
        settings: options.scan.clone(),
        queue: options.queue.max(1),
        threads: options.threads,
    });

    let places = listen(options)?;
    let status = options.metrics.map(status::bind).transpose()?;
    let mut told: Vec<String> = places.iter().map(Place::name).collect();
    if let Some(address) = status.as_ref().and_then(|status| status.local_addr().ok()) {
        told.push(format!("http://{address}/metrics"));
    }
    let (to_hub, inputs) = bounded(INPUTS);
    let (work, queue) = bounded(shared.queue);
    let workers = workers::start(&first, options.threads, &queue, &to_hub, &metrics)?;
    drop(queue);
    let hello = Arc::new(RwLock::new((first.generation, first.hello.clone())));
    let daemon = Daemon {
        hub: to_hub.clone(),
        hello: Arc::clone(&hello),
        settings: LinkSettings {
            timing: Timing::default(),
            bytes_per_second: options.bytes_per_second,
            bad_frames: 5000,
            no_session: NO_SESSION,
        },
        metrics: Arc::clone(&metrics),
        started: Instant::now(),
    };
    let hub = Hub {
        inputs,
        to_self: to_hub.clone(),
        work,
        shared,
        served: Arc::clone(&first),
        hello,
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
        scans: options.scans,
        stations: options.stations.len(),
    };
    let stop = &*orders.stop;
    let number = AtomicU64::new(1);
    std::thread::scope(|scope| {
        let (number, daemon, metrics, health) = (&number, &daemon, &metrics, &health);
        for place in places {
            let entry = Entry { daemon, number, options, stop };
            scope.spawn(move || entry.run(scope, place));
        }
        if let Some(listener) = status {
            let local = options.metrics.is_some_and(|address| address.ip().is_loopback());
            let orders = local.then(|| to_hub.clone());
            let status = Status { listener, metrics, health, orders };
            scope.spawn(move || status.serve(stop));
        }
        let reload = Reload { options, models, orders, to_hub, metrics: metrics.as_ref(), health };
        scope.spawn(move || reload.run(first));
        ready(&told);
        tracing::info!(listening = told.join(" "), "ready");
        hub.run(stop);
        // Whatever ended the hub ends the rest.
        stop.store(true, Ordering::Relaxed);
    });
    for worker in workers {
        // A worker catches its own panics.
        let _ = worker.join();
    }
    Ok(())
}

/// Replaces the model when told to.
struct Reload<'a> {
    options: &'a Options,
    models: &'a dyn Models,
    orders: &'a Orders,
    to_hub: Sender<Input>,
    metrics: &'a Metrics,
    health: &'a Health,
}

impl Reload<'_> {
    fn run(self, mut in_use: Arc<Served>) {
        while !self.orders.stop.load(Ordering::Relaxed) {
            if !self.orders.reload.swap(false, Ordering::Relaxed) {
                std::thread::sleep(RELOAD_POLL);
                continue;
            }
            let next = std::panic::AssertUnwindSafe(|| self.next(&in_use));
            match std::panic::catch_unwind(next) {
                Ok(Ok(Some(served))) => {
                    let served = Arc::new(served);
                    tracing::info!(before = in_use.name(), now = served.name(), "model replaced");
                    metrics::count(&self.metrics.reloads);
                    self.health.model(served.name());
                    in_use = Arc::clone(&served);
                    if self.to_hub.send(Input::Served(served)).is_err() {
                        return;
                    }
                }
                Ok(Ok(None)) => {
                    tracing::info!(model = in_use.name(), "the model in use is the newest one");
                    self.health.model(in_use.name());
                }
                Ok(Err(error)) => self.failed(&in_use, &error.to_string()),
                Err(_) => {
                    metrics::count(&self.metrics.panics);
                    self.failed(&in_use, "loading it failed inside; see the log");
                }
            }
        }
    }

    fn next(&self, in_use: &Served) -> Result<Option<Served>> {
        self.models
            .load(Some(&in_use.model))?
            .map(|loaded| Served::new(in_use.generation + 1, loaded, &self.options.scan))
            .transpose()
    }

    fn failed(&self, in_use: &Served, why: &str) {
        tracing::error!(stays = in_use.name(), "the model is not replaced: {why}");
        metrics::count(&self.metrics.reload_failures);
        self.health.not_reloaded(why.to_owned());
    }
}

/// One address that links come from.
enum Place {
    Listening { station: usize, listener: Listener, token: Option<Token> },
    Serial { station: usize, address: Address },
}

impl Place {
    fn name(&self) -> String {
        match self {
            Self::Listening { listener, .. } => listener.local(),
            Self::Serial { address, .. } => address.to_string(),
        }
    }
}

fn listen(options: &Options) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for (station, addresses) in options.stations.iter().enumerate() {
        for address in addresses {
            let token = if address.is_local()? {
                None
            } else {
                Some(options.token.clone().ok_or_else(|| {
                    Error::Request(format!(
                        "{address} is reached from other machines, which needs a shared token: \
                         give --token-file, or listen at 127.0.0.1"
                    ))
                })?)
            };
            places.push(match Listener::bind(address)? {
                Some(listener) => Place::Listening { station, listener, token },
                None => Place::Serial { station, address: address.clone() },
            });
        }
    }
    if places.is_empty() {
        return Err(Error::Request("there is no address to listen at; give --listen".into()));
    }
    Ok(places)
}

/// Lets links in.
struct Entry<'a> {
    daemon: &'a Daemon,
    number: &'a AtomicU64,
    options: &'a Options,
    stop: &'a AtomicBool,
}

impl<'a> Entry<'a> {
    fn run<'s>(&self, scope: &'s std::thread::Scope<'s, 'a>, place: Place)
    where
        'a: 's,
    {
        match place {
            Place::Listening { station, listener, token } => {
                while !self.stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok(Some((stream, who))) => {
                            let (link, token) = (self.next(), token.clone());
                            let (daemon, most) = (self.daemon, self.options.sessions);
                            scope.spawn(move || {
                                admit(daemon, link, station, who, stream, token.as_ref(), most);
                            });
                        }
                        Ok(None) => std::thread::sleep(ACCEPT_POLL),
                        Err(error) => {
                            tracing::warn!(at = listener.local(), "accept: {error}");
                            std::thread::sleep(SERIAL_RETRY);
                        }
                    }
                }
            }
            Place::Serial { station, address } => {
                let mut quiet = false;
                while !self.stop.load(Ordering::Relaxed) {
                    match Stream::connect(&address) {
                        Ok(stream) => {
                            quiet = false;
                            let who = address.to_string();
                            let _open = metrics::Counted::new(&self.daemon.metrics.sessions);
                            peer::run(self.daemon, self.next(), station, who, stream);
                        }
                        Err(error) if !quiet => {
                            tracing::warn!("{error}; tried again every second");
                            quiet = true;
                        }
                        Err(_) => {}
                    }
                    std::thread::sleep(SERIAL_RETRY);
                }
            }
        }
    }

    fn next(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }
}

fn admit(
    daemon: &Daemon,
    link: u64,
    station: usize,
    who: String,
    mut stream: Stream,
    token: Option<&Token>,
    most: usize,
) {
    let refuse = |problem: &str| {
        tracing::warn!(link, %who, "refused: {problem}");
        metrics::count(&daemon.metrics.refused);
    };
    // Counted before the token is asked for: who does not know it takes no more room than others.
    let open = metrics::Counted::new(&daemon.metrics.sessions);
    if open.others >= most as u64 {
        refuse("as many links as are allowed are open");
        stream.shutdown();
        return;
    }
    if let Some(token) = token
        && let Err(problem) = admission::admit(&mut stream, token)
    {
        refuse(&problem);
        stream.shutdown();
        return;
    }
    peer::run(daemon, link, station, who, stream);
}
