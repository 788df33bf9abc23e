//! A board's or camera's end of a link that connects, and connects again.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use diffbulk_link::session::{Event, SendError, Session};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::serve::{Address, Stream, Token, present};

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(200);

/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;

/// Reads that may wait.
const READS: usize = 8;

/// One end that goes on across broken connections. Nothing here blocks longer than asked for.
pub(super) struct Endpoint<Tx, Rx, const FRAME: usize, const SLOT: usize, const WINDOW: usize> {
    session: Box<Session<Tx, Rx, FRAME, SLOT, WINDOW>>,
    address: Address,
    token: Option<Token>,
    open: Option<Open>,
    tried: Option<Instant>,
    input: Vec<u8>,
    taken: usize,
    frame: Vec<u8>,
    out: Vec<u8>,
    started: Instant,
    /// Connections made.
    pub(super) connections: u64,
}

struct Open {
    stream: Stream,
    bytes: Receiver<Vec<u8>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stream.shutdown();
    }
}

impl<Tx, Rx, const FRAME: usize, const SLOT: usize, const WINDOW: usize>
    Endpoint<Tx, Rx, FRAME, SLOT, WINDOW>
where
    Tx: Serialize,
    Rx: DeserializeOwned,
{
    pub(super) fn new(
        session: Session<Tx, Rx, FRAME, SLOT, WINDOW>,
        address: Address,
        token: Option<Token>,
    ) -> Self {
        Self {
            session: Box::new(session),
            address,
            token,
            open: None,
            tried: None,
            input: Vec::new(),
            taken: 0,
            frame: vec![0; Session::<Tx, Rx, FRAME, SLOT, WINDOW>::OUT],
            out: Vec::new(),
            started: Instant::now(),
            connections: 0,
        }
    }

    /// The session, for its hello.
    pub(super) fn session(&mut self) -> &mut Session<Tx, Rx, FRAME, SLOT, WINDOW> {
        &mut self.session
    }

    /// Messages that would be taken now.
    pub(super) fn room(&self) -> usize {
        self.session.room()
    }

    /// Whether there is a session.
    pub(super) fn is_up(&self) -> bool {
        self.session.is_up()
    }

    /// Queues a message.
    pub(super) fn send(&mut self, message: &Tx) -> Result<(), SendError> {
        self.session.send(message)
    }

    /// Milliseconds since this end began.
    pub(super) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Sends what is queued and returns the next event, waiting for one no longer than `wait`.
    pub(super) fn poll(&mut self, wait: Duration) -> Option<Event<Rx>> {
        self.connect();
        self.transmit();
        if let Some(event) = self.receive() {
            return Some(event);
        }
        let idle = Duration::from_millis(self.session.idle_ms(self.now_ms()).into());
        let wait = wait.min(idle);
        match self.open.as_ref().map(|open| open.bytes.recv_timeout(wait)) {
            None => std::thread::sleep(wait.min(RETRY)),
            Some(Ok(bytes)) => {
                self.input = bytes;
                self.taken = 0;
            }
            Some(Err(RecvTimeoutError::Timeout)) => {}
            Some(Err(RecvTimeoutError::Disconnected)) => self.open = None,
        }
        let event = self.receive();
        self.transmit();
        event
    }

    /// Says goodbye once everything is delivered, or after a second.
    pub(super) fn close(mut self) {
        let end = Instant::now() + Duration::from_secs(1);
        while !self.session.is_flushed() && self.is_up() && Instant::now() < end {
            let _ = self.poll(Duration::from_millis(20));
        }
        self.session.close();
        self.transmit();
    }

    fn receive(&mut self) -> Option<Event<Rx>> {
        let mut rest = self.input.get(self.taken..).unwrap_or_default();
        let before = rest.len();
        let event = self.session.receive(self.started.elapsed().as_millis() as u64, &mut rest);
        self.taken += before - rest.len();
        event
    }

    fn transmit(&mut self) {
        let Some(open) = &mut self.open else { return };
        let now = self.started.elapsed().as_millis() as u64;
        self.out.clear();
        loop {
            match self.session.transmit(now, &mut self.frame) {
                0 => break,
                length => self.out.extend_from_slice(self.frame.get(..length).unwrap_or_default()),
            }
        }
        if !self.out.is_empty() && open.stream.write_all(&self.out).is_err() {
            self.open = None;
        }
    }

    fn connect(&mut self) {
        if self.open.is_some() || self.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
            return;
        }
        self.tried = Some(Instant::now());
        match self.dial() {
            Ok(open) => {
                self.session.reconnected();
                (self.input, self.taken) = (Vec::new(), 0);
                self.open = Some(open);
                self.connections += 1;
            }
            Err(error) => tracing::debug!("{error}"),
        }
    }

    fn dial(&self) -> crate::Result<Open> {
        let mut stream = Stream::connect(&self.address)?;
        if let Some(token) = &self.token {
            present(&mut stream, token)?;
        }
        let io = |error| crate::Error::Request(format!("{}: {error}", self.address));
        let mut reader = stream.try_clone().map_err(io)?;
        let (out, bytes) = bounded(READS);
        std::thread::spawn(move || {
            let mut buffer = vec![0; READ_BYTES];
            loop {
                match reader.read(&mut buffer) {
                    Ok(None) => {
                        // An empty piece finds out whether anybody still listens.
                        if out.is_empty() && out.send(Vec::new()).is_err() {
                            return;
                        }
                    }
                    Ok(Some(0)) | Err(_) => return,
                    Ok(Some(count)) => {
                        if out.send(buffer.get(..count).unwrap_or_default().to_vec()).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Open { stream, bytes })
    }
}
