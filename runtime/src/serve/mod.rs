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
mod field;
mod hub;
mod journal;
mod metrics;
mod peer;
mod pixels;
mod planning;
mod scan;
mod status;
#[cfg(all(test, unix))]
mod tests;
mod transport;
mod workers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use diffbulk_link::heapless;
use diffbulk_link::limits::GENES;
use diffbulk_link::message::{Hello, Model as LinkModel, Objective, Refocus, Rescan, Role, Stop};
use diffbulk_link::session::Timing;
use diffbulk_link::units::{Fraction, Um, UmPerPx};

pub use address::{Address, DEFAULT_BAUD};
pub use admission::{Token, present};
pub use metrics::{Latencies, Metrics};
pub use scan::{ObjectiveSettings, ScanSettings};
pub use transport::Stream;

use self::hub::Hub;
use self::peer::{Daemon, LinkSettings};
use self::scan::Shared;
use self::transport::Listener;
use self::workers::Predictor;
use crate::engine::Engine;
use crate::model::Model;
use crate::{Error, Result};

/// Inputs that may wait for the hub.
const INPUTS: usize = 256;

/// Between two looks for new links.
const ACCEPT_POLL: Duration = Duration::from_millis(20);

/// Between two attempts to open a serial port that is not there.
const SERIAL_RETRY: Duration = Duration::from_secs(1);

/// Step between two focus positions that are tried.
const REFOCUS_STEP_UM: f64 = 1.0;

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

/// Runs until `stop` is set (or the asked number of scans is done): what is under way is then
/// finished and kept. `ready` is told the addresses once everything listens.
///
/// # Errors
/// When an address cannot be listened at, or the settings do not fit the model.
pub fn run(
    options: &Options,
    model: Model,
    engine: &dyn Engine,
    stop: &AtomicBool,
    ready: &mut dyn FnMut(&[String]),
) -> Result<()> {
    crate::predict::check_formats(&options.scan.formats)?;
    let metadata = model.metadata().clone();
    let columns = match &options.scan.genes {
        Some(wanted) => crate::predict::genes::columns(&metadata.panel, wanted)?,
        None => (0..metadata.panel.len()).collect(),
    };
    let written: Vec<String> =
        columns.iter().map(|&column| metadata.panel[column].clone()).collect();
    let named = options.scan.board_genes.as_deref();
    let board_columns = planning::panel(named, &written, &metadata.gene_pearson)?;
    let board_genes: Vec<&str> = board_columns.iter().map(|&c| written[c].as_str()).collect();
    let objective = objective(&options.scan.objective, &board_genes)?;
    let hello = hello(&model, &board_genes);
    let metrics = Arc::new(Metrics::default());
    let predictor = Arc::new(Predictor { model, columns, engine_name: engine.name() });
    let shared = Arc::new(Shared {
        settings: options.scan.clone(),
        objective,
        board_columns,
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
    let workers = workers::start(engine, &predictor, options.threads, &queue, &to_hub, &metrics)?;
    drop(queue);
    let daemon = Daemon {
        hub: to_hub.clone(),
        settings: LinkSettings {
            hello,
            timing: Timing::default(),
            bytes_per_second: options.bytes_per_second,
            bad_frames: 5000,
        },
        metrics: Arc::clone(&metrics),
        started: Instant::now(),
    };
    let hub = Hub {
        inputs,
        to_self: to_hub,
        work,
        shared,
        predictor: Arc::clone(&predictor),
        metrics: Arc::clone(&metrics),
        scans: options.scans,
        stations: options.stations.len(),
    };
    let name = format!("{} {}", metadata.name, metadata.version);
    let number = AtomicU64::new(1);
    std::thread::scope(|scope| {
        let (number, daemon, metrics) = (&number, &daemon, &metrics);
        for place in places {
            let entry = Entry { daemon, number, options, stop };
            scope.spawn(move || entry.run(scope, place));
        }
        if let Some(status) = &status {
            let health = move || (true, format!("ok\nmodel {name}\n"));
            scope.spawn(move || status::serve(status, metrics, &health, stop));
        }
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

/// What boards and cameras are told about this host.
fn hello(model: &Model, genes: &[&str]) -> Hello {
    // Longer names are cut: they are for people.
    fn text<const N: usize>(text: &str) -> heapless::String<N> {
        let mut short = heapless::String::new();
        for c in text.chars() {
            if short.push(c).is_err() {
                break;
            }
        }
        short
    }
    let mut sha256 = [0; 32];
    for (byte, pair) in sha256.iter_mut().zip(model.sha256().as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    Hello {
        role: Role::Host,
        version: text(crate::VERSION),
        model: Some(LinkModel { name: text(&model.metadata().name), sha256 }),
        panel: genes.iter().map(|gene| text(gene)).collect(),
        resume: None,
    }
}

/// What the board looks for, in the order of its genes.
fn objective(settings: &ObjectiveSettings, genes: &[&str]) -> Result<Objective> {
    let mut weights = heapless::Vec::<f32, GENES>::new();
    for gene in genes {
        let weight = settings.score.iter().find(|(name, _)| name.eq_ignore_ascii_case(gene));
        // As many as genes, which fit.
        let _ = weights.push(weight.map_or(0.0, |(_, weight)| *weight));
    }
    for (name, weight) in &settings.score {
        if !genes.iter().any(|gene| gene.eq_ignore_ascii_case(name)) {
            return Err(Error::Request(format!(
                "the score names {name}, which the board does not get; it gets {} (choose with \
                 --board-genes)",
                genes.join(", ")
            )));
        }
        if !weight.is_finite() {
            return Err(Error::Request(format!("{weight} is no weight for {name}")));
        }
    }
    if !(settings.enter.is_finite() && settings.leave <= settings.enter) {
        return Err(Error::Request(format!(
            "a hot spot cannot begin at {} and end below {}",
            settings.enter, settings.leave
        )));
    }
    let refocus = match settings.refocus {
        Some((below, most)) => Some(Refocus {
            below: Fraction::new(below).ok_or_else(|| {
                Error::Request(format!("a confidence of {below} is not between 0 and 1"))
            })?,
            step: Um::new(REFOCUS_STEP_UM).unwrap_or_default(),
            most,
        }),
        None => None,
    };
    Ok(Objective {
        weights,
        enter: settings.enter,
        leave: settings.leave,
        best: diffbulk_link::limits::BEST as u8,
        tissue: Fraction::ZERO,
        // The slide's finest scale is filled in when it is known.
        rescan: (settings.rescans > 0)
            .then_some(Rescan { scale: UmPerPx(1), most: settings.rescans }),
        refocus,
        stop: settings.stop_after.map(|hot| Stop { hot }),
    })
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
