//! Controller and session together.

use crate::config::{Config, ConfigError};
use crate::controller::{Controller, Machine, Parts};
use crate::log::{info, warning};
use diffbulk_link::heapless::Vec;
use diffbulk_link::message::{Hello, Role, ToHost, text};
use diffbulk_link::session::{BoardSession, Event, Stats};

/// A scanner's board: bytes from the host in, bytes to the host out, pins in between.
///
/// ```text
/// loop { scanner.poll(now_us, &received); while uart is free { send(scanner.transmit(now_us, &mut out)) } }
/// ```
pub struct Scanner<P: Parts> {
    controller: Controller<P>,
    session: BoardSession,
}

impl<P: Parts> Scanner<P> {
    /// Room that [`transmit`](Self::transmit) needs.
    pub const OUT: usize = BoardSession::OUT;

    /// Takes up what flash remembers. Nothing moves before the host is there and the plan is under way.
    /// `map` is room for a plan's bit map, `version` the firmware's.
    pub fn new(
        config: Config,
        mut machine: Machine<P>,
        map: P::Room,
        version: &str,
    ) -> Result<Self, ConfigError> {
        // Without flash every start has the same epoch: the host then takes two seconds to notice a restart.
        let starts = machine.store.count_start().unwrap_or(0);
        let controller = Controller::new(config, machine, map)?;
        let hello = Hello {
            role: Role::Board,
            version: text(version),
            model: None,
            panel: Vec::new(),
            resume: controller.resume(),
        };
        let session = BoardSession::new(config.link, starts.wrapping_add(1) << 16, hello);
        info!("start {}", starts);
        Ok(Self { controller, session })
    }

    /// Takes bytes the host sent, if any, and goes on with whatever is under way.
    pub fn poll(&mut self, now_us: u64, mut input: &[u8]) {
        while let Some(event) = self.session.receive(now_us / 1000, &mut input) {
            match event {
                Event::Up(hello) => {
                    info!("host {=str}", hello.version.as_str());
                    self.controller.host_up(now_us);
                }
                Event::Down(why) => {
                    warning!("host gone: {}", why);
                    self.controller.host_down(now_us);
                }
                Event::Message(message) => self.controller.take(now_us, message),
                Event::Incompatible(drift) => {
                    warning!("host of another version: {}", drift);
                }
                Event::Malformed => warning!("malformed message"),
            }
        }
        self.controller.poll(now_us);
        let Self { controller, session } = self;
        let stats = session.stats();
        controller.speak(now_us, &mut |message| match message {
            ToHost::Telemetry(telemetry) => {
                let mut telemetry = *telemetry;
                (telemetry.bad_frames, telemetry.resent_frames) = (stats.bad_frames, stats.resent);
                session.send(&ToHost::Telemetry(telemetry)).is_ok()
            }
            _ => session.send(message).is_ok(),
        });
        session.hello_mut().resume = controller.resume();
    }

    /// Writes one frame for the host, if there is one, and returns its length.
    pub fn transmit(&mut self, now_us: u64, out: &mut [u8]) -> usize {
        self.session.transmit(now_us / 1000, out)
    }

    /// The controller, to look at.
    pub fn controller(&self) -> &Controller<P> {
        &self.controller
    }

    /// What happened on the link.
    pub fn stats(&self) -> Stats {
        self.session.stats()
    }
}
