//! The state machine that carries a plan out.
//!
//! ```text
//!            Start, host there            all axes homed        axes stand
//!   ┌────┐ ──────────────────▶ ┌──────┐ ──────────────▶ ┌──────┐ ────────▶ ┌────────┐
//!   │Idle│                     │Homing│                 │Moving│           │Settling│
//!   └────┘ ◀─ paused, or ───┐  └──────┘           ┌───▶ └──────┘           └────────┘
//!      ▲      host gone     │                     │                            │ settled
//!      │                    │                     │ next shot                  ▼
//!      │ ClearFault    ┌────────┐  result,   ┌────────┐  picture taken   ┌────────┐
//!   ┌─────┐            │Deciding│ ◀───────── │Waiting │ ◀─────────────── │Exposing│
//!   │Fault│            └────────┘  or skip   └────────┘                  └────────┘
//!   └─────┘                 │ last tile, enough, Stop
//!      ▲ any time-out,      ▼
//!      │ switch, stop    ┌────┐
//!      └── from all ──   │Done│
//!                        └────┘
//! ```
//!
//! Every state that waits has a time-out. One [`poll`](Controller::poll) does at most one step an axis, one pin change
//! of light or camera, and, in `Deciding` alone, one write of progress to flash.

mod host;

use crate::config::{Config, ConfigError};
use crate::exposure::{Camera, CameraFault};
use crate::log::{info, warning};
use crate::motion::{Axis, AxisFault, Motion};
use crate::panel::{Lamps, Watchdog};
use crate::progress::{Progress, Verdict};
use crate::store::{Map, Store};
use core::fmt::Display;
use core::ops::DerefMut;
use diffbulk_link::message::{
    Fault, FaultCode, Level, Log, Plan, State, StopReason, Telemetry, TileEvent, text,
};
use diffbulk_link::units::Um;
use embedded_hal::digital::InputPin;
use embedded_storage::nor_flash::NorFlash;
use host::Outbox;

/// What a machine is made of.
pub trait Parts {
    /// Along a row.
    type X: Axis;
    /// From row to row.
    type Y: Axis;
    /// Focus.
    type Z: Axis;
    /// Light and camera.
    type Camera: Camera;
    /// For the people at the machine.
    type Lamps: Lamps;
    /// The emergency stop's contact; high: pressed. The stop itself must cut the motors' power without this board.
    type Stop: InputPin;
    /// For plan and progress.
    type Flash: NorFlash;
    /// For when this program hangs.
    type Watchdog: Watchdog;
    /// Where a plan's bit map lies: `&mut Map`, or a box of it.
    type Room: DerefMut<Target = Map>;
}

/// A machine's drivers.
pub struct Machine<P: Parts> {
    /// Along a row.
    pub x: P::X,
    /// From row to row.
    pub y: P::Y,
    /// Focus.
    pub z: P::Z,
    /// Light and camera.
    pub camera: P::Camera,
    /// For the people at the machine.
    pub lamps: P::Lamps,
    /// The emergency stop's contact.
    pub stop: P::Stop,
    /// For plan and progress.
    pub store: Store<P::Flash>,
    /// For when this program hangs.
    pub watchdog: P::Watchdog,
}

/// Carries out a plan. Knows the host by its messages alone; [`Scanner`](crate::Scanner) puts a session under it.
pub struct Controller<P: Parts> {
    config: Config,
    machine: Machine<P>,
    state: State,
    since_us: u64,
    /// Homing: the objective is out of the way, the stage may move.
    raised: bool,
    /// Whatever the axes say, they must be homed: their motors were without power.
    lost: bool,
    host: bool,
    host_since_us: u64,
    plan: Option<Plan>,
    map: P::Room,
    /// A plan whose bit map is still coming; then `map` is not that of `plan`.
    receiving: Option<Plan>,
    progress: Option<Progress>,
    verdict: Option<Verdict>,
    event: Option<TileEvent>,
    tries: u8,
    /// When the result is due, or when to ask again if the host had no time.
    due_us: u64,
    overloaded: bool,
    fault: Option<Fault>,
    telemetry_us: u64,
    say: Outbox,
}

impl<P: Parts> Controller<P> {
    /// In the state that flash remembers, standing still. `map` is the largest part of a controller by far, so that it
    /// is lent and not moved about on the stack.
    pub fn new(
        config: Config,
        mut machine: Machine<P>,
        mut map: P::Room,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let kept = machine.store.plan(&mut map).and_then(|plan| {
            let progress =
                plan.as_ref().map(|plan| machine.store.progress(plan.id)).transpose()?.flatten();
            Ok((plan, progress))
        });
        let (failed, (plan, progress)) = match kept {
            Ok(kept) => (None, kept),
            Err(error) => (Some(error), (None, None)),
        };
        let progress = progress.or_else(|| Progress::new(plan.as_ref()?, &map));
        let ended = progress.as_ref().is_some_and(|progress| progress.ended().is_some());
        let state = if ended { State::Done } else { State::Idle };
        machine.lamps.show(state, false);
        machine.camera.dark();
        let mut controller = Self {
            config,
            machine,
            state,
            since_us: 0,
            raised: false,
            lost: true,
            host: false,
            host_since_us: 0,
            plan,
            map,
            receiving: None,
            progress,
            verdict: None,
            event: None,
            tries: 0,
            due_us: 0,
            overloaded: false,
            fault: None,
            telemetry_us: 0,
            say: Outbox::default(),
        };
        if let Some(error) = failed {
            controller.stop(FaultCode::Storage, &error, 0);
        }
        Ok(controller)
    }

    /// What it does.
    pub fn state(&self) -> State {
        self.state
    }

    /// How far the plan has come.
    pub fn progress(&self) -> Option<&Progress> {
        self.progress.as_ref()
    }

    /// The machine, to look at.
    pub fn machine(&self) -> &Machine<P> {
        &self.machine
    }

    /// Goes on with whatever is under way. Call it as often as possible: steps are made here.
    pub fn poll(&mut self, now_us: u64) {
        match self.machine.stop.is_high() {
            Ok(false) => {}
            Ok(true) => {
                if self.fault.as_ref().is_none_or(|fault| fault.code != FaultCode::EmergencyStop) {
                    self.lost = true;
                    self.stop(
                        FaultCode::EmergencyStop,
                        &"release the emergency stop, then clear the fault",
                        now_us,
                    );
                }
            }
            Err(_) if self.state == State::Fault => {}
            Err(_) => {
                self.stop(FaultCode::Driver, &"the emergency stop's contact cannot be read", now_us)
            }
        }
        let passed_ms = now_us.saturating_sub(self.since_us) / 1000;
        match self.state {
            State::Idle => self.idle(now_us),
            State::Homing => self.homing(now_us, passed_ms),
            State::Moving => self.moving(now_us, passed_ms),
            State::Settling if passed_ms >= u64::from(self.config.settle_ms) => {
                self.machine.camera.expose(now_us);
                self.enter(State::Exposing, now_us);
            }
            State::Settling => {}
            State::Exposing => self.exposing(now_us),
            State::Waiting => self.waiting(now_us),
            State::Deciding => self.deciding(now_us),
            State::Done | State::Fault => self.machine.watchdog.feed(),
        }
        if self.host && now_us >= self.telemetry_us {
            self.telemetry_us = now_us + u64::from(self.config.telemetry_ms) * 1000;
            self.say.telemetry = true;
        }
    }

    fn idle(&mut self, now_us: u64) {
        self.machine.watchdog.feed();
        if !self.host || !self.progress.as_ref().is_some_and(Progress::is_running) {
            return;
        }
        if self.lost || self.position().is_none() {
            self.raised = false;
            self.machine.z.home(now_us);
            self.enter(State::Homing, now_us);
        } else {
            self.go(now_us);
        }
    }

    fn homing(&mut self, now_us: u64, passed_ms: u64) {
        // The objective first, so that it does not meet the slide's edge; then the stage, both axes at once.
        let moved = if self.raised {
            self.machine.x.poll(now_us).and_then(|x| Ok([x, self.machine.y.poll(now_us)?]))
        } else {
            self.machine.z.poll(now_us).map(|z| [z, Motion::Still])
        };
        match moved {
            Err(fault) => return self.axis_fault(fault, now_us),
            Ok(moved) if moved == [Motion::Still; 2] => {
                if self.raised {
                    self.lost = false;
                    return self.go(now_us);
                }
                self.raised = true;
                self.machine.x.home(now_us);
                self.machine.y.home(now_us);
                self.machine.watchdog.feed();
            }
            Ok(moved) if moved.contains(&Motion::Stepped) => self.machine.watchdog.feed(),
            Ok(_) => {}
        }
        if passed_ms > u64::from(self.config.homing_ms) {
            self.stop(FaultCode::HomingTimeout, &"homing took too long", now_us);
        }
    }

    /// On to the shot at hand.
    fn go(&mut self, now_us: u64) {
        let place = self.plan.as_ref().zip(self.progress.as_ref()).and_then(|(plan, progress)| {
            let (x, y) = plan.grid.centre(progress.shot().tile)?;
            Some((x, y, progress.how().1))
        });
        // A plan is accepted only if all of it can be reached.
        let Some((x, y, z)) = place else { return self.axis_fault(AxisFault::Beyond, now_us) };
        let machine = &mut self.machine;
        let begun = machine
            .x
            .go(x, now_us)
            .and_then(|()| machine.y.go(y, now_us))
            .and_then(|()| machine.z.go(z, now_us));
        match begun {
            Ok(()) => self.enter(State::Moving, now_us),
            Err(fault) => self.axis_fault(fault, now_us),
        }
    }

    fn moving(&mut self, now_us: u64, passed_ms: u64) {
        let machine = &mut self.machine;
        let moved = machine
            .x
            .poll(now_us)
            .and_then(|x| Ok([x, machine.y.poll(now_us)?, machine.z.poll(now_us)?]));
        match moved {
            Err(fault) => self.axis_fault(fault, now_us),
            Ok(moved) if moved == [Motion::Still; 3] => self.enter(State::Settling, now_us),
            Ok(moved) => {
                if moved.contains(&Motion::Stepped) {
                    machine.watchdog.feed();
                }
                if passed_ms > u64::from(self.config.move_ms) {
                    self.stop(FaultCode::MoveTimeout, &"a move took too long", now_us);
                }
            }
        }
    }

    fn exposing(&mut self, now_us: u64) {
        match self.machine.camera.poll(now_us) {
            Ok(false) => {}
            Ok(true) => {
                let Some((progress, (x, y, z))) = self.progress.as_ref().zip(self.position())
                else {
                    return self.axis_fault(AxisFault::NotHomed, now_us);
                };
                let (shot, (scale, _)) = (progress.shot(), progress.how());
                self.event = Some(TileEvent { shot, x, y, z, scale, time_ms: now_us / 1000 });
                self.enter(State::Waiting, now_us);
                self.ask(now_us);
            }
            Err(fault) => {
                let code = match fault {
                    CameraFault::NotReady => FaultCode::ExposureTimeout,
                    CameraFault::Pin => FaultCode::Driver,
                };
                self.stop(code, &fault, now_us);
            }
        }
    }

    /// Says, or says again, that the shot at hand wants a result.
    fn ask(&mut self, now_us: u64) {
        self.say.tile = self.event;
        self.overloaded = false;
        self.due_us = now_us + u64::from(self.config.result_ms) * 1000;
    }

    fn waiting(&mut self, now_us: u64) {
        self.machine.watchdog.feed();
        if !self.host {
            if now_us.saturating_sub(self.host_since_us) > u64::from(self.config.park_ms) * 1000 {
                info!("no host: parked");
                self.enter(State::Idle, now_us);
            }
        } else if now_us >= self.due_us {
            if self.overloaded {
                self.ask(now_us);
            } else {
                self.warn(FaultCode::ResultTimeout, &"no result in time");
                self.try_again(now_us, State::Waiting);
            }
        }
    }

    /// The shot at hand once more, from `state` on, or without it if that was tried often enough.
    fn try_again(&mut self, now_us: u64, state: State) {
        self.tries += 1;
        if self.tries >= self.config.tries {
            self.verdict = self.progress.as_ref().map(Progress::skip);
            self.enter(State::Deciding, now_us);
        } else if state == State::Exposing {
            self.machine.camera.expose(now_us);
            self.enter(State::Exposing, now_us);
        } else {
            self.ask(now_us);
        }
    }

    fn deciding(&mut self, now_us: u64) {
        let (Some(plan), Some(progress)) = (&self.plan, &mut self.progress) else {
            return self.enter(State::Idle, now_us);
        };
        if let Some(verdict) = self.verdict.take() {
            progress.apply(plan, &self.map, &verdict);
            self.tries = 0;
            // Kept before it is said: the host's record may run ahead of the board's, never behind.
            if let Err(error) = self.machine.store.keep_progress(progress) {
                return self.stop(FaultCode::Storage, &error, now_us);
            }
            self.say.decision = Some(verdict.decision);
            return;
        }
        if let Some(reason) = progress.ended() {
            self.finish(reason, now_us);
        } else if !self.host || !progress.is_running() {
            self.enter(State::Idle, now_us);
        } else if self.say.decision.is_none() {
            self.go(now_us);
        }
    }

    fn finish(&mut self, reason: StopReason, now_us: u64) {
        info!("plan done");
        self.say.summary = self.progress.as_ref().map(|progress| progress.summary(reason));
        self.enter(State::Done, now_us);
    }

    fn enter(&mut self, state: State, now_us: u64) {
        info!("{} -> {}", self.state, state);
        (self.state, self.since_us) = (state, now_us);
        self.machine.lamps.show(state, self.host);
        self.machine.watchdog.feed();
    }

    fn axis_fault(&mut self, fault: AxisFault, now_us: u64) {
        let code = match fault {
            AxisFault::NoSwitch => FaultCode::HomingTimeout,
            AxisFault::Limit | AxisFault::Beyond => FaultCode::LimitSwitch,
            AxisFault::NotHomed | AxisFault::Pin => FaultCode::Driver,
        };
        self.stop(code, &fault, now_us);
    }

    /// Light off, stage still, and so until the host clears it.
    fn stop(&mut self, code: FaultCode, why: &dyn Display, now_us: u64) {
        self.machine.camera.dark();
        self.machine.x.halt();
        self.machine.y.halt();
        self.machine.z.halt();
        self.verdict = None;
        let fault = self.describe(code, why, true);
        warning!("fault {}: {=str}", code, fault.text.as_str());
        self.say.fault = Some(fault.clone());
        self.fault = Some(fault);
        self.enter(State::Fault, now_us);
    }

    /// Tells the host of something that does not stop the scan.
    fn warn(&mut self, code: FaultCode, why: &dyn Display) {
        let fault = self.describe(code, why, false);
        warning!("{}: {=str}", code, fault.text.as_str());
        if self.say.fault.as_ref().is_none_or(|fault| !fault.stopped) {
            self.say.fault = Some(fault);
        }
    }

    fn describe(&self, code: FaultCode, why: &dyn Display, stopped: bool) -> Fault {
        Fault { code, shot: self.progress.as_ref().map(Progress::shot), stopped, text: text(why) }
    }

    fn note(&mut self, level: Level, line: &dyn Display) {
        self.say.log = Some(Log { level, text: text(line) });
    }

    fn position(&self) -> Option<(Um, Um, Um)> {
        Some((self.machine.x.position()?, self.machine.y.position()?, self.machine.z.position()?))
    }

    /// How it fares; the link's counts are filled in by who has them.
    fn telemetry(&self, now_us: u64) -> Telemetry {
        let (x, y, z) = self.position().unwrap_or_default();
        Telemetry {
            state: self.state,
            time_ms: now_us / 1000,
            x,
            y,
            z,
            decided: self.progress.as_ref().map_or(0, Progress::decided),
            bad_frames: 0,
            resent_frames: 0,
        }
    }
}
