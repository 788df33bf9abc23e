//! The board's side of a scan: its plans, and what it makes of them.

use std::time::{Duration, Instant};

use diffbulk_link::message::{
    Command, Decision, FromHost, PlanReply, PlanStatus, Resume, StopReason, Summary,
};

use super::{Action, Phase, Run, Scan};

/// Between two attempts to hand a busy board its plan.
const PLAN_RETRY: Duration = Duration::from_millis(500);

/// How the board stands to the plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Board {
    /// Not there, or not asked.
    Unknown,
    /// The plan was sent.
    Planning,
    /// It refused for the moment.
    Retry(Instant),
    /// It drives.
    Driving,
    /// It will never drive this plan.
    Refused,
}

impl Scan {
    /// The board is there (again) and says where it stands.
    pub(in crate::serve) fn board_up(&mut self, resume: Option<Resume>) {
        let Phase::Running(run) = &mut self.phase else { return };
        let Some(part) = run.prepared.parts.get(run.part) else { return };
        let decided = run.prepared.journal.tiles_decided(part.range());
        match resume {
            // The last decision may be under way still.
            Some(resume)
                if resume.plan == part.plan.id && usize::from(resume.decided) <= decided + 1 =>
            {
                run.board = Board::Driving;
                if resume.next.is_none() && decided == 0 {
                    // It has done this plan before, for another scan of the same slide.
                    self.send_plan();
                } else {
                    // One that is done already says its summary again.
                    self.actions.push(Action::Board(FromHost::Command(Command::Start)));
                }
            }
            Some(resume) if resume.next.is_some() => {
                tracing::warn!(
                    plan = format!("{:08x}", resume.plan.0),
                    "the board holds another plan under way, which is stopped"
                );
                self.actions.push(Action::Board(FromHost::Command(Command::Stop)));
                self.send_plan();
            }
            _ => self.send_plan(),
        }
    }

    fn send_plan(&mut self) {
        let Phase::Running(run) = &mut self.phase else { return };
        let Some(part) = run.prepared.parts.get(run.part) else { return };
        run.board = Board::Planning;
        self.actions.push(Action::Board(FromHost::Plan(part.plan.clone())));
        self.actions.extend(part.pieces().map(|cells| Action::Board(FromHost::Cells(cells))));
    }

    /// What the board says to the plan.
    pub(in crate::serve) fn plan_status(&mut self, status: PlanStatus, now: Instant) {
        let Phase::Running(run) = &mut self.phase else { return };
        let current = run.prepared.parts.get(run.part).map(|part| part.plan.id);
        if run.board != Board::Planning || current != Some(status.plan) {
            return;
        }
        match status.reply {
            PlanReply::Accepted => {
                run.board = Board::Driving;
                self.actions.push(Action::Board(FromHost::Command(Command::Start)));
            }
            PlanReply::Busy => {
                run.board = Board::Retry(now + PLAN_RETRY);
                self.actions.push(Action::Board(FromHost::Command(Command::Stop)));
            }
            PlanReply::OutOfOrder | PlanReply::BadId => run.board = Board::Retry(now + PLAN_RETRY),
            refused => {
                tracing::error!(
                    slide = self.slide.name, reply = ?refused,
                    "the board cannot carry out the plan; check the machine's limits"
                );
                run.board = Board::Refused;
            }
        }
    }

    /// The board is gone.
    pub(in crate::serve) fn board_down(&mut self) {
        if let Phase::Running(run) = &mut self.phase
            && run.board != Board::Refused
        {
            run.board = Board::Unknown;
        }
    }

    /// The board decided on a shot.
    pub(in crate::serve) fn decision(&mut self, decision: Decision) {
        let Phase::Running(run) = &mut self.phase else { return };
        let part = run.prepared.parts.get(run.part).filter(|_| run.board == Board::Driving);
        if let Some(index) = part.and_then(|part| part.index(decision.shot.tile))
            && let Err(error) = run.prepared.journal.decided((index, decision.shot.attempt))
        {
            self.refused(&error);
        }
        tracing::debug!(shot = ?decision.shot, action = ?decision.action, score = ?decision.score);
        self.actions.push(Action::Camera(FromHost::Decision(decision)));
    }

    /// The board is done with the plan.
    pub(in crate::serve) fn summary(&mut self, summary: Summary) {
        let Phase::Running(run) = &mut self.phase else { return };
        let current = run.prepared.parts.get(run.part).map(|part| part.plan.id);
        if run.board != Board::Driving || current != Some(summary.plan) {
            return;
        }
        if summary.reason == StopReason::Complete && run.part + 1 < run.prepared.parts.len() {
            run.part += 1;
            run.captures.clear();
            self.send_plan();
        } else {
            self.write(summary);
        }
    }

    /// Sends the plan again to a board that was busy.
    pub(super) fn replan(&mut self, now: Instant) {
        if let Phase::Running(run) = &self.phase
            && let Board::Retry(at) = run.board
            && now >= at
        {
            self.send_plan();
        }
    }
}

impl Run {
    /// Tiles of a part without a result.
    pub(super) fn missing(&self, part: usize) -> usize {
        let Some(part) = self.prepared.parts.get(part) else { return 0 };
        let cells = part.plan.grid.cells().unwrap_or(0) as u16;
        let known = &self.prepared.journal;
        (0..cells)
            .filter_map(|cell| part.index(diffbulk_link::message::TileId(cell)))
            .filter(|index| known.get((*index, 0)).is_none())
            .count()
    }
}
