//! One link: a thread that reads, a thread that speaks the protocol.
//!
//! Whatever the other end sends, at worst this link ends: sizes are bounded by the frames, rates
//! by a bucket, writes by a time-out, and a panic is caught and counted. Back-pressure is the
//! protocol's own: while the hub has no room nothing is taken, nothing is acknowledged, and the
//! other end's window stays shut.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use diffbulk_link::message::{FromHost, Hello, Role, ToHost};
use diffbulk_link::session::{Down, Event, HostSession, Timing};

use super::allowance::Allowance;
use super::hub::{Closer, Input, LinkId};
use super::metrics::{Metrics, count};
use super::pixels::Assembler;
use super::transport::Stream;

/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;

/// Reads that may wait for the protocol.
const READS: usize = 8;

/// Messages that may wait for the other end.
pub(super) const OUTBOX: usize = 512;

/// Longest between two looks at flags and time.
const LOOK: Duration = Duration::from_millis(50);

/// How long a link that is to end may take to deliver what is said already.
const FLUSH: Duration = Duration::from_secs(1);

/// What every link of a daemon shares.
#[derive(Debug, Clone)]
pub(super) struct LinkSettings {
    pub(super) timing: Timing,
    /// Bytes a second that a link may send; a burst of one second is allowed.
    pub(super) bytes_per_second: u64,
    /// Frames thrown away within [`NOISE_SPAN`] after which a link ends.
    pub(super) bad_frames: u32,
    /// How long an open link may be without a session before it ends. Not for serial ports, which
    /// are there whether or not anybody is at the other end.
    pub(super) no_session: Duration,
}

/// What the hub tells a link.
#[derive(Debug)]
pub(super) enum Tell {
    /// To be said to the other end.
    Say(Box<FromHost>),
    /// This host has another model: the session begins anew, on the same connection, and its
    /// handshake says so.
    Introduce(Box<Hello>),
}

/// See [`LinkSettings::bad_frames`].
const NOISE_SPAN: Duration = Duration::from_secs(10);

/// What a link needs of the daemon.
pub(super) struct Daemon {
    pub(super) hub: Sender<Input>,
    /// How this host introduces itself to a new link, with the generation of its model.
    pub(super) hello: Arc<RwLock<(u64, Hello)>>,
    pub(super) settings: LinkSettings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) started: Instant,
}

/// Runs a link to its end, which is told to the hub whatever happens.
pub(super) fn run(daemon: &Daemon, link: LinkId, station: usize, who: String, stream: Stream) {
    let (outbox, outgoing) = bounded(OUTBOX);
    let close = Closer(Arc::new(AtomicBool::new(false)));
    let (introduced, hello) = daemon.hello.read().unwrap_or_else(PoisonError::into_inner).clone();
    let joined =
        Input::Joined { link, station, who: who.clone(), outbox, close: close.clone(), introduced };
    if daemon.hub.send(joined).is_err() {
        return;
    }
    let talk =
        std::panic::AssertUnwindSafe(|| talk(daemon, link, stream, hello, &outgoing, &close));
    match std::panic::catch_unwind(talk) {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => {
            tracing::warn!(link, %who, "link ended: {problem}");
            count(&daemon.metrics.dropped);
        }
        Err(_) => {
            tracing::error!(link, %who, "the link's thread panicked; the link is closed");
            count(&daemon.metrics.panics);
        }
    }
    // The hub may have ended before its links.
    let _ = daemon.hub.send(Input::Left { link });
}

fn talk(
    daemon: &Daemon,
    link: LinkId,
    stream: Stream,
    hello: Hello,
    outgoing: &Receiver<Tell>,
    close: &Closer,
) -> Result<(), String> {
    let (bytes_out, bytes_in) = bounded::<Vec<u8>>(READS);
    let mut reader = stream.try_clone().map_err(|error| error.to_string())?;
    std::thread::scope(|scope| {
        let ended = Arc::new(AtomicBool::new(false));
        let reader_ended = Arc::clone(&ended);
        scope.spawn(move || {
            read(&mut reader, &bytes_out, &reader_ended);
        });
        let end = End { stream, ended };
        let mut talk = Talk::new(daemon, link, hello, end)?;
        talk.run(&bytes_in, outgoing, close)
    })
}

/// Ends the link, and with it the reader, when dropped: by return, error or panic.
struct End {
    stream: Stream,
    ended: Arc<AtomicBool>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.stream.shutdown();
    }
}

/// Hands on what comes in until the link or its protocol ends.
fn read(stream: &mut Stream, out: &Sender<Vec<u8>>, ended: &AtomicBool) {
    let mut buffer = vec![0; READ_BYTES];
    while !ended.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(None) => {}
            Ok(Some(0)) => break,
            Ok(Some(count)) => {
                let bytes = buffer.get(..count).unwrap_or_default().to_vec();
                if out.send(bytes).is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!("read: {error}");
                break;
            }
        }
    }
}

struct Talk<'a> {
    daemon: &'a Daemon,
    link: LinkId,
    end: End,
    session: Box<HostSession>,
    assembler: Assembler,
    camera: bool,
    /// Said by the other end and not yet taken by the hub.
    pending: Option<Input>,
    /// Bytes read and not yet looked at.
    input: Vec<u8>,
    taken: usize,
    held: Option<FromHost>,
    /// A new introduction, once what was said before it has arrived; since when.
    introduce: Option<(Box<Hello>, Instant)>,
    /// Since when there is no session.
    down: Option<Instant>,
    frame: Vec<u8>,
    out: Vec<u8>,
    allowance: Allowance,
    noise: (Instant, u32),
    counted: (u32, u32),
}

impl<'a> Talk<'a> {
    fn new(daemon: &'a Daemon, link: LinkId, hello: Hello, end: End) -> Result<Self, String> {
        let mut epoch = [0; 4];
        getrandom::fill(&mut epoch).map_err(|error| format!("no randomness: {error}"))?;
        let settings = &daemon.settings;
        let session = HostSession::new(settings.timing, u32::from_le_bytes(epoch), hello);
        Ok(Self {
            daemon,
            link,
            session: Box::new(session),
            assembler: Assembler::default(),
            camera: false,
            pending: None,
            input: Vec::new(),
            taken: 0,
            held: None,
            introduce: None,
            down: (!end.stream.is_serial()).then(Instant::now),
            frame: vec![0; HostSession::OUT],
            out: Vec::new(),
            allowance: Allowance::new(settings.bytes_per_second),
            noise: (Instant::now(), 0),
            counted: (0, 0),
            end,
        })
    }

    fn now_ms(&self) -> u64 {
        self.daemon.started.elapsed().as_millis() as u64
    }

    fn run(
        &mut self,
        bytes_in: &Receiver<Vec<u8>>,
        outgoing: &Receiver<Tell>,
        close: &Closer,
    ) -> Result<(), String> {
        let mut closing: Option<Instant> = None;
        loop {
            if !self.deliver()? {
                return Ok(());
            }
            self.speak(outgoing)?;
            self.look_for_noise()?;
            self.look_for_silence()?;
            if close.0.load(Ordering::Relaxed) {
                let since = *closing.get_or_insert_with(Instant::now);
                let said = outgoing.is_empty() && self.held.is_none() && self.session.is_flushed();
                if said || since.elapsed() > FLUSH {
                    self.session.close();
                    return self.speak(outgoing);
                }
            }
            let idle = Duration::from_millis(self.session.idle_ms(self.now_ms()).into()).min(LOOK);
            let busy = self.pending.is_some() || self.taken < self.input.len();
            if busy {
                // The hub has no room: come back soon, and take nothing meanwhile.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let wait = self.allowance.wait();
            if !wait.is_zero() {
                std::thread::sleep(wait.min(LOOK));
                continue;
            }
            let never = crossbeam_channel::never();
            let more = if self.takes() && self.held.is_none() { outgoing } else { &never };
            select! {
                recv(bytes_in) -> bytes => match bytes {
                    Ok(bytes) => {
                        self.allowance.spend(bytes.len());
                        self.input = bytes;
                        self.taken = 0;
                    }
                    // The other end hung up.
                    Err(_) => return Ok(()),
                },
                recv(more) -> message => match message {
                    Ok(message) => self.hold(message),
                    Err(_) => close.close(),
                },
                default(idle) => {}
            }
        }
    }

    /// Passes events to the hub as long as it takes them; false when it is gone.
    fn deliver(&mut self) -> Result<bool, String> {
        loop {
            if let Some(input) = self.pending.take() {
                match self.daemon.hub.try_send(input) {
                    Ok(()) => {}
                    Err(TrySendError::Full(input)) => {
                        self.pending = Some(input);
                        return Ok(true);
                    }
                    Err(TrySendError::Disconnected(_)) => return Ok(false),
                }
            }
            let now = self.now_ms();
            let mut rest = self.input.get(self.taken..).unwrap_or_default();
            let before = rest.len();
            let event = self.session.receive(now, &mut rest);
            self.taken += before - rest.len();
            match event {
                None => return Ok(true),
                Some(event) => self.pending = self.input(event)?,
            }
        }
    }

    /// What the hub has to know of an event.
    fn input(&mut self, event: Event<ToHost>) -> Result<Option<Input>, String> {
        let link = self.link;
        Ok(match event {
            Event::Up(hello) => {
                self.camera = hello.role == Role::Camera;
                self.assembler.clear();
                Some(Input::Up { link, hello: Box::new(hello) })
            }
            Event::Down(down) => {
                self.assembler.clear();
                self.held = None;
                Some(Input::Down { link, goodbye: down == Down::Closed })
            }
            Event::Incompatible(drift) => return Err(drift.to_string()),
            Event::Malformed => return Err("it sends messages that are none".into()),
            Event::Message(ToHost::Pixels(header)) if self.camera => {
                match self.assembler.begin(header) {
                    Ok(()) => None,
                    Err(problem) => Some(Input::BadPicture { link, shot: header.shot, problem }),
                }
            }
            Event::Message(ToHost::Chunk(chunk)) if self.camera => {
                match self.assembler.push(&chunk) {
                    Ok(None) => None,
                    Ok(Some(picture)) => Some(Input::Picture { link, picture: Box::new(picture) }),
                    Err(problem) => Some(Input::BadPicture { link, shot: chunk.shot, problem }),
                }
            }
            // A board has no pixels to send.
            Event::Message(ToHost::Pixels(_) | ToHost::Chunk(_)) => None,
            Event::Message(message) => Some(Input::Said { link, message: Box::new(message) }),
        })
    }

    /// Whether there is room for what the hub wants said.
    fn takes(&self) -> bool {
        self.session.room() > 0 && self.introduce.is_none()
    }

    fn hold(&mut self, tell: Tell) {
        match tell {
            Tell::Say(message) => self.held = Some(*message),
            Tell::Introduce(hello) => self.introduce = Some((hello, Instant::now())),
        }
    }

    /// Begins the session anew under another introduction, when what was said before has arrived.
    fn introduce(&mut self) {
        let ready = |since: &Instant| self.session.is_flushed() || since.elapsed() > FLUSH;
        if self.pending.is_some() || !self.introduce.as_ref().is_some_and(|(_, at)| ready(at)) {
            return;
        }
        if let Some((hello, _)) = self.introduce.take() {
            *self.session.hello_mut() = *hello;
            if self.session.is_up() {
                self.session.close();
                self.assembler.clear();
                self.pending = Some(Input::Down { link: self.link, goodbye: false });
            }
        }
    }

    /// Sends what there is to say.
    fn speak(&mut self, outgoing: &Receiver<Tell>) -> Result<(), String> {
        if !self.session.is_up() {
            // Said to a session that is no more; the hub says it again in the next one.
            self.held = None;
            while let Ok(tell) = outgoing.try_recv() {
                if let Tell::Introduce(hello) = tell {
                    self.introduce = Some((hello, Instant::now()));
                }
            }
        }
        while self.takes() {
            if self.held.is_none() {
                match outgoing.try_recv() {
                    Ok(tell) => self.hold(tell),
                    Err(_) => break,
                }
            }
            if let Some(message) = self.held.take()
                && let Err(error) = self.session.send(&message)
            {
                tracing::error!(link = self.link, "a message cannot be sent: {error}");
            }
        }
        self.introduce();
        let now = self.now_ms();
        self.out.clear();
        loop {
            match self.session.transmit(now, &mut self.frame) {
                0 => break,
                length => self.out.extend_from_slice(self.frame.get(..length).unwrap_or_default()),
            }
        }
        if self.out.is_empty() {
            return Ok(());
        }
        self.end.stream.write_all(&self.out).map_err(|error| format!("write: {error}"))
    }

    fn look_for_silence(&mut self) -> Result<(), String> {
        if self.session.is_up() || self.end.stream.is_serial() {
            self.down = None;
            return Ok(());
        }
        let most = self.daemon.settings.no_session;
        if self.down.get_or_insert_with(Instant::now).elapsed() > most {
            return Err(format!("it has had no session for {} s", most.as_secs()));
        }
        Ok(())
    }

    fn look_for_noise(&mut self) -> Result<(), String> {
        let stats = self.session.stats();
        let metrics = &self.daemon.metrics;
        let grown = |now: u32, before: u32| u64::from(now.wrapping_sub(before));
        let (bad, resent) = self.counted;
        metrics.bad_frames.fetch_add(grown(stats.bad_frames, bad), Ordering::Relaxed);
        metrics.resent_frames.fetch_add(grown(stats.resent, resent), Ordering::Relaxed);
        self.counted = (stats.bad_frames, stats.resent);
        let (since, before) = self.noise;
        if since.elapsed() > NOISE_SPAN {
            self.noise = (Instant::now(), stats.bad_frames);
        } else if stats.bad_frames.wrapping_sub(before) > self.daemon.settings.bad_frames {
            return Err(format!(
                "{} frames within {} s were damaged or none",
                stats.bad_frames.wrapping_sub(before),
                NOISE_SPAN.as_secs()
            ));
        }
        Ok(())
    }
}
