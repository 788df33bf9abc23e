//! What the host says to the controller, and what the controller has to say.

use super::{Controller, Parts};
use crate::exposure::Camera;
use crate::motion::Axis;
use crate::panel::Lamps;
use crate::progress::{Progress, focus_offset};
use diffbulk_link::message::{
    BoardToHost, Cells, Command, Decision, Fault, FaultCode, FromHost, Level, Log, NoResult, Plan,
    PlanId, PlanReply, PlanStatus, Reason, Resume, State, StopReason, Summary, TileEvent,
    TileResult, ToHost,
};
use embedded_hal::digital::InputPin;

/// Messages waiting for room in the session, one of each kind.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) fault: Option<Fault>,
    pub(super) plan: Option<PlanStatus>,
    pub(super) decision: Option<Decision>,
    pub(super) tile: Option<TileEvent>,
    pub(super) summary: Option<Summary>,
    pub(super) log: Option<Log>,
    pub(super) telemetry: bool,
}

/// Sends what `slot` holds, and empties it if it was taken.
fn offer<T: Clone>(
    slot: &mut Option<T>,
    wrap: fn(T) -> BoardToHost,
    send: &mut dyn FnMut(&BoardToHost) -> bool,
) {
    if let Some(message) = slot
        && send(&wrap(message.clone()))
    {
        *slot = None;
    }
}

impl<P: Parts> Controller<P> {
    /// Where this board goes on, for the handshake.
    pub fn resume(&self) -> Option<Resume> {
        self.progress.as_ref().map(Progress::resume)
    }

    /// The host is there: what it may have missed is said again.
    pub fn host_up(&mut self, now_us: u64) {
        (self.host, self.host_since_us) = (true, now_us);
        self.machine.lamps.show(self.state, true);
        self.telemetry_us = now_us;
        self.say.fault = self.fault.clone();
        let Some(progress) = &self.progress else { return };
        self.say.decision = progress.last();
        match progress.ended() {
            Some(reason) => self.say.summary = Some(progress.summary(reason)),
            None if self.state == State::Waiting => {
                self.tries = 0;
                self.ask(now_us);
            }
            None => {}
        }
    }

    /// The host is gone. The shot under way is finished as far as it goes without.
    pub fn host_down(&mut self, now_us: u64) {
        (self.host, self.host_since_us) = (false, now_us);
        self.machine.lamps.show(self.state, false);
        self.say = Outbox::default();
        if self.receiving.take().is_some() {
            self.restore_map();
        }
    }

    /// The host said something.
    pub fn take(&mut self, now_us: u64, message: FromHost) {
        match message {
            FromHost::Plan(plan) => self.take_plan(plan),
            FromHost::Cells(cells) => self.take_cells(&cells, now_us),
            FromHost::Result(result) => self.take_result(&result, now_us),
            FromHost::NoResult(none) => self.take_none(none, now_us),
            FromHost::Command(command) => self.command(command, now_us),
            // For the camera.
            FromHost::Survey(_)
            | FromHost::Capture(_)
            | FromHost::Decision(_)
            | FromHost::Summary(_) => {}
        }
    }

    /// Hands over what there is to say, most important first; `send` returns whether it took a message.
    pub fn speak(&mut self, now_us: u64, send: &mut dyn FnMut(&BoardToHost) -> bool) {
        if !self.host {
            return;
        }
        let say = &mut self.say;
        offer(&mut say.fault, ToHost::Fault, send);
        offer(&mut say.plan, ToHost::Plan, send);
        offer(&mut say.decision, ToHost::Decision, send);
        if say.decision.is_none() {
            // Never before the decision that led to it.
            offer(&mut say.tile, ToHost::Tile, send);
            offer(&mut say.summary, ToHost::Summary, send);
        }
        offer(&mut say.log, ToHost::Log, send);
        if say.telemetry && send(&ToHost::Telemetry(self.telemetry(now_us))) {
            self.say.telemetry = false;
        }
    }

    fn reply(&mut self, plan: PlanId, reply: PlanReply) {
        self.say.plan = Some(PlanStatus { plan, reply });
    }

    fn take_plan(&mut self, plan: Plan) {
        let ended = self.progress.as_ref().is_none_or(|progress| progress.ended().is_some());
        let idle = matches!(self.state, State::Idle | State::Done);
        if !ended
            && self.receiving.is_none()
            && self.plan.as_ref().is_some_and(|kept| kept.id == plan.id)
        {
            self.reply(plan.id, PlanReply::Accepted);
        } else if !idle || self.progress.as_ref().is_some_and(Progress::is_running) {
            self.reply(plan.id, PlanReply::Busy);
        } else if plan.grid.bytes().is_none() {
            self.reply(plan.id, PlanReply::BadGrid);
        } else {
            self.map.clear();
            self.receiving = Some(plan);
        }
    }

    fn take_cells(&mut self, cells: &Cells, now_us: u64) {
        let Some(plan) = self.receiving.as_ref().filter(|plan| plan.id == cells.plan) else {
            // Those of a plan that was accepted or refused by its header are no news.
            if self.receiving.is_some() {
                self.reply(cells.plan, PlanReply::OutOfOrder);
            }
            return;
        };
        let whole = plan.grid.bytes().unwrap_or(0);
        if usize::from(cells.offset) < self.map.len() {
            return;
        }
        if usize::from(cells.offset) != self.map.len()
            || self.map.extend_from_slice(&cells.map).is_err()
        {
            self.refuse(PlanReply::OutOfOrder);
        } else if self.map.len() >= whole {
            let reply = match plan.check(&self.map) {
                PlanReply::Accepted if !self.reaches(plan) => PlanReply::Unreachable,
                reply => reply,
            };
            if reply == PlanReply::Accepted { self.accept(now_us) } else { self.refuse(reply) }
        }
    }

    fn accept(&mut self, now_us: u64) {
        let Some(plan) = self.receiving.take() else { return };
        let Some(progress) = Progress::new(&plan, &self.map) else { return };
        // Progress first: an old one of the same plan must not be found under the new one.
        let store = &mut self.machine.store;
        let kept = store.keep_progress(&progress).and_then(|()| store.keep_plan(&plan, &self.map));
        self.reply(plan.id, if kept.is_ok() { PlanReply::Accepted } else { PlanReply::NotKept });
        match kept {
            Ok(()) => (self.plan, self.progress) = (Some(plan), Some(progress)),
            Err(error) => {
                (self.plan, self.progress) = (None, None);
                self.warn(FaultCode::Storage, &error);
            }
        }
        self.enter(State::Idle, now_us);
    }

    fn refuse(&mut self, reply: PlanReply) {
        if let Some(plan) = self.receiving.take() {
            self.reply(plan.id, reply);
        }
        self.restore_map();
    }

    /// Makes the bit map that of the plan kept, after another's was begun.
    fn restore_map(&mut self) {
        match self.machine.store.plan(&mut self.map) {
            Ok(plan) => {
                if plan != self.plan {
                    self.progress = None;
                }
                self.plan = plan;
            }
            Err(error) => {
                (self.plan, self.progress) = (None, None);
                self.warn(FaultCode::Storage, &error);
            }
        }
    }

    fn reaches(&self, plan: &Plan) -> bool {
        let machine = &self.machine;
        let (mut first, mut last) = ((u16::MAX, u16::MAX), (0, 0));
        for cell in 0..plan.grid.cells().unwrap_or(0) as u16 {
            if self.map.get(usize::from(cell / 8)).is_some_and(|byte| byte & 1 << (cell % 8) != 0)
                && let Some((column, row)) = plan.grid.place(diffbulk_link::message::TileId(cell))
            {
                first = (first.0.min(column), first.1.min(row));
                last = (last.0.max(column), last.1.max(row));
            }
        }
        let corner = |(column, row)| {
            plan.grid
                .tile(column, row)
                .and_then(|tile| plan.grid.centre(tile))
                .is_some_and(|(x, y)| machine.x.reaches(x) && machine.y.reaches(y))
        };
        let focus = |tried| {
            let refocus = plan.objective.refocus.filter(|refocus| tried < refocus.most);
            refocus.is_none_or(|refocus| {
                let z =
                    focus_offset(refocus.step, tried).and_then(|offset| plan.z.checked_add(offset));
                z.is_some_and(|z| machine.z.reaches(z))
            })
        };
        let most = plan.objective.refocus.map_or(0, |refocus| refocus.most);
        // The farthest tries on either side are the last two.
        let focused = machine.z.reaches(plan.z) && (most.saturating_sub(2)..most).all(focus);
        corner(first) && corner(last) && focused
    }

    fn take_result(&mut self, result: &TileResult, now_us: u64) {
        let (Some(plan), Some(progress)) = (&self.plan, &self.progress) else { return };
        if self.state != State::Waiting || result.shot != progress.shot() {
            // Late, or said twice.
            return;
        }
        match progress.judge(plan, result) {
            Ok(verdict) => {
                self.verdict = Some(verdict);
                self.enter(State::Deciding, now_us);
            }
            Err(refused) => {
                self.warn(FaultCode::BadResult, &refused);
                self.try_again(now_us, State::Waiting);
            }
        }
    }

    fn take_none(&mut self, none: NoResult, now_us: u64) {
        let Some(progress) = self.progress.as_ref() else { return };
        if self.state != State::Waiting || none.shot != progress.shot() {
            return;
        }
        match none.reason {
            // The board goes as fast as the host can follow.
            Reason::Overload => {
                self.say.tile = None;
                self.overloaded = true;
                self.due_us = now_us + u64::from(self.config.overload_ms) * 1000;
            }
            Reason::NoPixels | Reason::BadPixels => self.try_again(now_us, State::Exposing),
            Reason::NoTissue | Reason::Failed => {
                self.verdict = Some(progress.skip());
                self.enter(State::Deciding, now_us);
            }
        }
    }

    fn command(&mut self, command: Command, now_us: u64) {
        if command == Command::ClearFault {
            return self.clear_fault(now_us);
        }
        let Some(progress) = self.progress.as_mut().filter(|_| self.receiving.is_none()) else {
            return self
                .note(Level::Warn, &"there is no plan to start, pause or stop: send one first");
        };
        match command {
            Command::Start => progress.run(true),
            Command::Pause => progress.run(false),
            Command::Stop => progress.end(StopReason::Commanded),
            Command::ClearFault => {}
        }
        if let Err(error) = self.machine.store.keep_progress(progress) {
            return self.stop(FaultCode::Storage, &error, now_us);
        }
        if let Some(reason) = progress.ended() {
            self.machine.x.halt();
            self.machine.y.halt();
            self.machine.z.halt();
            self.machine.camera.dark();
            self.verdict = None;
            if self.state == State::Fault {
                self.say.summary = self.progress.as_ref().map(|progress| progress.summary(reason));
            } else {
                self.finish(reason, now_us);
            }
        }
    }

    fn clear_fault(&mut self, now_us: u64) {
        if self.state != State::Fault {
            return;
        }
        if self.machine.stop.is_high().unwrap_or(true) {
            return self
                .note(Level::Warn, &"the emergency stop is still pressed: release it first");
        }
        self.fault = None;
        self.tries = 0;
        let ended = self.progress.as_ref().is_some_and(|progress| progress.ended().is_some());
        self.enter(if ended { State::Done } else { State::Idle }, now_us);
    }
}
