//! How far a plan has come: what is kept in flash after every decision, and the rules that move it on.

use crate::findings::{self, BestTiles, Welford};
use crate::order::{self, Place};
use diffbulk_link::limits::GENES;
use diffbulk_link::message::{
    Action, Decision, Plan, PlanId, Resume, SURVEY, Shot, StopReason, Summary, TileResult,
};
use diffbulk_link::units::{Um, UmPerPx};
use heapless::Vec;
use postcard::experimental::max_size::MaxSize;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A result that must not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Refused {
    /// It has another number of genes than the objective has weights.
    #[error(
        "a result of another panel: the plan needs one weight for each gene of the host's panel"
    )]
    Panel,
    /// A gene, or the score, is not a finite number.
    #[error("a result that is not finite: predict the tile again")]
    NotFinite,
}

/// How far a plan has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, MaxSize)]
pub struct Progress {
    plan: PlanId,
    running: bool,
    ended: Option<StopReason>,
    /// The shot at hand, and how it is taken.
    shot: Shot,
    forward: bool,
    scale: UmPerPx,
    z: Um,
    /// What was spent on the tile at hand.
    rescanned: bool,
    refocused: u8,
    kept: u16,
    skipped: u16,
    rescans: u16,
    refocuses: u16,
    hot_tiles: u16,
    hot: bool,
    genes: Vec<Welford, GENES>,
    best: BestTiles,
    /// Said again when the host comes back: it may have been lost with the session.
    last: Option<Decision>,
}

impl Progress {
    /// At the plan's first tile; `None` if it has none.
    pub fn new(plan: &Plan, map: &[u8]) -> Option<Self> {
        let at = order::first(&plan.grid, map)?;
        Some(Self {
            plan: plan.id,
            running: false,
            ended: None,
            shot: Shot { tile: at.tile, attempt: 0 },
            forward: at.forward,
            scale: plan.scale,
            z: plan.z,
            rescanned: false,
            refocused: 0,
            kept: 0,
            skipped: 0,
            rescans: 0,
            refocuses: 0,
            hot_tiles: 0,
            hot: false,
            genes: plan.objective.weights.iter().map(|_| Welford::default()).collect(),
            best: BestTiles::default(),
            last: None,
        })
    }

    /// Whose.
    pub fn plan(&self) -> PlanId {
        self.plan
    }

    /// Whether the plan was started, and neither paused nor ended.
    pub fn is_running(&self) -> bool {
        self.running && self.ended.is_none()
    }

    /// Starts or pauses.
    pub fn run(&mut self, running: bool) {
        self.running = running;
    }

    /// Why the plan ended, if it has.
    pub fn ended(&self) -> Option<StopReason> {
        self.ended
    }

    /// Ends the plan.
    pub fn end(&mut self, reason: StopReason) {
        self.ended.get_or_insert(reason);
    }

    /// The shot at hand.
    pub fn shot(&self) -> Shot {
        self.shot
    }

    /// Scale and focus it is taken at.
    pub fn how(&self) -> (UmPerPx, Um) {
        (self.scale, self.z)
    }

    /// Tiles decided.
    pub fn decided(&self) -> u16 {
        self.kept + self.skipped
    }

    /// The last decision.
    pub fn last(&self) -> Option<Decision> {
        self.last
    }

    /// For the handshake.
    pub fn resume(&self) -> Resume {
        let next = self.ended.is_none().then_some(self.shot);
        Resume { plan: self.plan, decided: self.decided(), next }
    }

    /// For the host, once the plan has ended.
    pub fn summary(&self, reason: StopReason) -> Summary {
        Summary {
            plan: self.plan,
            reason,
            kept: self.kept,
            skipped: self.skipped,
            rescans: self.rescans,
            refocuses: self.refocuses,
            best: self.best.sorted(),
            genes: findings::stats(&self.genes, self.kept),
        }
    }

    /// What follows from a result, in this order: too little tissue, skip; too little confidence, focus elsewhere, and
    /// skip once that was tried; hot, take again at a finer scale, once; else keep, and stop if that was enough.
    pub fn judge(&self, plan: &Plan, result: &TileResult) -> Result<Verdict, Refused> {
        let objective = &plan.objective;
        let values = result.expression.values().map_err(|_| Refused::NotFinite)?;
        if values.len() != objective.weights.len() {
            return Err(Refused::Panel);
        }
        let score = findings::score(objective, &values).ok_or(Refused::NotFinite)?;
        let mut hot = findings::is_hot(objective, self.hot, score);
        let blurred = objective.refocus.filter(|refocus| result.confidence < refocus.below);
        let action = if result.tissue < objective.tissue {
            Action::Skip
        } else if let Some(refocus) = blurred {
            let offset = focus_offset(refocus.step, self.refocused);
            match offset.filter(|_| self.refocused < refocus.most && self.may_try_again()) {
                Some(offset) => Action::Refocus(offset),
                None => Action::Skip,
            }
        } else if let Some(rescan) = objective.rescan
            && hot
            && !self.rescanned
            && self.rescans < rescan.most
            && self.may_try_again()
        {
            Action::Rescan(rescan.scale)
        } else if objective.stop.is_some_and(|stop| hot && self.hot_tiles + 1 >= stop.hot) {
            Action::Stop(StopReason::Enough)
        } else {
            Action::Keep
        };
        if matches!(action, Action::Skip | Action::Refocus(_)) {
            // Not believed, so it neither begins nor ends a hot spot.
            hot = self.hot;
        }
        Ok(Verdict {
            decision: Decision { shot: self.shot, action, score: Some(score), hot },
            values,
        })
    }

    /// Whether another attempt has a number: the last one is not an exposure's.
    fn may_try_again(&self) -> bool {
        self.shot.attempt + 1 < SURVEY
    }

    /// Goes on without a result.
    pub fn skip(&self) -> Verdict {
        let decision =
            Decision { shot: self.shot, action: Action::Skip, score: None, hot: self.hot };
        Verdict { decision, values: Vec::new() }
    }

    /// Carries a verdict out: counts the tile and goes on to the next shot, or ends.
    pub fn apply(&mut self, plan: &Plan, map: &[u8], verdict: &Verdict) {
        let Verdict { decision, values } = verdict;
        self.last = Some(*decision);
        match decision.action {
            Action::Rescan(scale) => {
                self.scale = scale;
                self.rescanned = true;
                self.rescans += 1;
                self.shot.attempt += 1;
                return;
            }
            Action::Refocus(offset) => {
                self.z = plan.z.checked_add(offset).unwrap_or(plan.z);
                self.refocused += 1;
                self.refocuses = self.refocuses.saturating_add(1);
                self.shot.attempt += 1;
                return;
            }
            Action::Keep | Action::Stop(_) => {
                self.kept += 1;
                self.hot = decision.hot;
                self.hot_tiles += u16::from(decision.hot);
                self.genes
                    .iter_mut()
                    .zip(values)
                    .for_each(|(gene, &value)| gene.add(value, self.kept));
                if let Some(score) = decision.score {
                    self.best.add(decision.shot.tile, score, plan.objective.best);
                }
            }
            Action::Skip => self.skipped += 1,
        }
        (self.scale, self.z, self.rescanned, self.refocused) = (plan.scale, plan.z, false, 0);
        let at = Place { tile: self.shot.tile, forward: self.forward };
        match (decision.action, order::next(&plan.grid, map, plan.order, at)) {
            (Action::Stop(reason), _) => self.end(reason),
            (_, None) => self.end(StopReason::Complete),
            (_, Some(next)) => {
                self.shot = Shot { tile: next.tile, attempt: 0 };
                self.forward = next.forward;
            }
        }
    }
}

/// A decision and what it counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What the host is told.
    pub decision: Decision,
    values: Vec<f32, GENES>,
}

/// Where the next try lies from the plan's focus: +1, -1, +2, -2 ... steps. `None` beyond the range.
pub fn focus_offset(step: Um, tried: u8) -> Option<Um> {
    let far = step.checked_mul(u16::from(tried / 2) + 1)?;
    if tried.is_multiple_of(2) { Some(far) } else { far.0.checked_neg().map(Um) }
}
