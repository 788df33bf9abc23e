//! A board without a machine: it stands over the next tile as soon as it likes.
//!
//! For loads that no single stage makes: several tiles under way at once, at a set rate. It keeps
//! to the plan's order, asks again for what was put off, decides to keep every result, and goes on
//! where it was when the host comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diffbulk_link::heapless;
use diffbulk_link::message::{
    Action, BoardToHost, Cells, Command, Decision, FromHost, Hello, Plan, PlanReply, PlanStatus,
    Reason, Resume, Role, Shot, StopReason, Summary, TileEvent, TileId, ToHost,
};
use diffbulk_link::session::{BoardSession, Event, Timing};

use super::Settings;
use super::endpoint::Endpoint;
use crate::{Error, Result};

/// Before a tile that was put off is asked for again.
const AGAIN: Duration = Duration::from_millis(100);

/// How a walker walks.
#[derive(Debug, Clone, Copy)]
pub struct Walk {
    /// Tiles under way at once.
    pub ahead: usize,
    /// New tiles a second; `None` for as fast as they come back.
    pub rate: Option<f64>,
}

/// The walker's state, without its link.
#[derive(Debug, Default)]
pub(crate) struct Walker {
    plan: Option<Plan>,
    map: Vec<u8>,
    driving: bool,
    /// Tiles not begun, in order, from the back.
    left: Vec<TileId>,
    under_way: BTreeMap<TileId, Option<Instant>>,
    decided: BTreeSet<TileId>,
    skipped: u16,
    summary_said: bool,
    say: Vec<BoardToHost>,
}

impl Walker {
    /// Where it goes on.
    pub(crate) fn resume(&self) -> Option<Resume> {
        let plan = self.plan.as_ref().filter(|_| self.driving || self.is_done())?;
        let next = self.under_way.keys().next().copied().or(self.left.last().copied());
        Some(Resume {
            plan: plan.id,
            decided: self.decided.len() as u16,
            next: next.map(|tile| Shot { tile, attempt: 0 }),
        })
    }

    /// All tiles are decided and that was said.
    pub(crate) fn is_done(&self) -> bool {
        self.summary_said
    }

    /// The host is there: what it may have missed is asked again.
    pub(crate) fn up(&mut self) {
        self.say.clear();
        for asked in self.under_way.values_mut() {
            *asked = None;
        }
        if self.summary_said {
            self.summary_said = false;
        }
    }

    pub(crate) fn take(&mut self, message: FromHost, now: Instant) {
        match message {
            FromHost::Plan(plan) => {
                let same = self.plan.as_ref().is_some_and(|kept| kept.id == plan.id);
                if same && self.driving && !self.is_done() {
                    self.reply(&plan, PlanReply::Accepted);
                    return;
                }
                *self = Self { plan: Some(plan), ..Self::default() };
            }
            FromHost::Cells(cells) => self.cells(&cells),
            FromHost::Command(Command::Start) => {
                self.driving = !self.left.is_empty() || self.driving;
                self.summary_said = false;
            }
            FromHost::Command(Command::Stop) => *self = Self::default(),
            FromHost::Result(result) => self.decide(result.shot, Action::Keep),
            FromHost::NoResult(none) => match none.reason {
                Reason::Overload => {
                    if let Some(asked) = self.under_way.get_mut(&none.shot.tile) {
                        *asked = Some(now + AGAIN);
                    }
                }
                _ => {
                    self.skipped += 1;
                    self.decide(none.shot, Action::Skip);
                }
            },
            _ => {}
        }
    }

    fn reply(&mut self, plan: &Plan, reply: PlanReply) {
        self.say.push(ToHost::Plan(PlanStatus { plan: plan.id, reply }));
    }

    fn cells(&mut self, cells: &Cells) {
        let Some(plan) = self.plan.clone().filter(|plan| plan.id == cells.plan) else { return };
        if self.driving || usize::from(cells.offset) != self.map.len() {
            return;
        }
        self.map.extend_from_slice(&cells.map);
        if plan.grid.bytes() != Some(self.map.len()) {
            return;
        }
        let reply = plan.check(&self.map);
        if reply == PlanReply::Accepted {
            let columns = plan.grid.columns;
            let set = |cell: &u16| self.map[usize::from(cell / 8)] & 1 << (cell % 8) != 0;
            let mut tiles: Vec<u16> =
                (0..plan.grid.cells().unwrap_or(0) as u16).filter(set).collect();
            // Serpentine: every other row backwards.
            tiles.sort_by_key(|cell| {
                let (row, column) = (cell / columns, cell % columns);
                (row, if row % 2 == 0 { column } else { columns - column })
            });
            self.left = tiles.into_iter().rev().map(TileId).collect();
        }
        self.reply(&plan, reply);
    }

    fn decide(&mut self, shot: Shot, action: Action) {
        if self.under_way.remove(&shot.tile).is_none() {
            // Late, or said twice.
            return;
        }
        self.decided.insert(shot.tile);
        self.say.push(ToHost::Decision(Decision { shot, action, score: None, hot: false }));
    }

    /// Begins another tile; false when there is none or too many are under way.
    pub(crate) fn begin(&mut self, ahead: usize) -> bool {
        if !self.driving || self.under_way.len() >= ahead {
            return false;
        }
        match self.left.pop() {
            Some(tile) => self.under_way.insert(tile, None).is_none(),
            None => false,
        }
    }

    /// The next thing to say.
    pub(crate) fn next_message(&mut self, now: Instant, time_ms: u64) -> Option<BoardToHost> {
        if !self.say.is_empty() {
            return Some(self.say.remove(0));
        }
        if !self.driving {
            return None;
        }
        let plan = self.plan.as_ref()?;
        let due = self.under_way.iter_mut().find(|(_, at)| at.is_none_or(|at| at <= now));
        if let Some((&tile, at)) = due {
            // Asked; the host answers, or the link comes up anew.
            *at = Some(now + Duration::from_secs(3600));
            let (x, y) = plan.grid.centre(tile)?;
            let shot = Shot { tile, attempt: 0 };
            let event = TileEvent { shot, x, y, z: plan.z, scale: plan.scale, time_ms };
            return Some(ToHost::Tile(event));
        }
        if self.left.is_empty() && self.under_way.is_empty() && !self.summary_said {
            self.summary_said = true;
            return Some(ToHost::Summary(Summary {
                plan: plan.id,
                reason: StopReason::Complete,
                kept: self.decided.len() as u16 - self.skipped,
                skipped: self.skipped,
                rescans: 0,
                refocuses: 0,
                best: heapless::Vec::new(),
                genes: heapless::Vec::new(),
            }));
        }
        None
    }
}

/// Walks until `stop` is set.
pub(super) fn run(settings: &Settings, walk: Walk, stop: &AtomicBool) -> Result<()> {
    let period = match walk.rate {
        Some(rate) if rate.is_finite() && rate > 0.0 => Duration::from_secs_f64(1.0 / rate),
        Some(rate) => return Err(Error::Request(format!("{rate} tiles a second is no rate"))),
        None => Duration::ZERO,
    };
    let hello = Hello {
        role: Role::Board,
        version: crate::VERSION.try_into().unwrap_or_default(),
        model: None,
        panel: heapless::Vec::new(),
        resume: None,
    };
    let session = BoardSession::new(Timing::default(), super::epoch()?, hello);
    let mut link = Endpoint::new(session, settings.host_board.clone(), settings.token.clone());
    let mut walker = Walker::default();
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if period.is_zero() {
            while walker.begin(walk.ahead) {}
        } else if now >= next {
            // A beat that finds the walker full is lost, as on a stage that has to wait.
            walker.begin(walk.ahead);
            next = (next + period).max(now - period);
        }
        link.session().hello_mut().resume = walker.resume();
        let wait = if period.is_zero() {
            Duration::from_millis(5)
        } else {
            next.saturating_duration_since(now)
        };
        match link.poll(wait.min(Duration::from_millis(5))) {
            Some(Event::Up(_)) => walker.up(),
            Some(Event::Message(message)) => walker.take(message, Instant::now()),
            Some(Event::Incompatible(drift)) => return Err(Error::Request(drift.to_string())),
            Some(Event::Down(_) | Event::Malformed) | None => {}
        }
        while link.is_up() && link.room() > 0 {
            let time_ms = link.now_ms();
            let Some(message) = walker.next_message(Instant::now(), time_ms) else { break };
            if link.send(&message).is_err() {
                break;
            }
        }
    }
    link.close();
    Ok(())
}
