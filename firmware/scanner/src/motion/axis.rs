//! The driver of a step/direction axis with a limit switch at either end.

use super::{Axis, AxisFault, Motion, Ramp};
use crate::config::AxisConfig;
use diffbulk_link::units::Um;
use embedded_hal::digital::{InputPin, OutputPin};

/// A stepper behind a step/direction driver. Pins are active high; wrap what is wired otherwise.
///
/// A pulse goes up in one [`poll`](Axis::poll) and down in a later one, so it is as long as polls are apart and the
/// fastest speed is half the rate of polls. After a reversal, [`AxisConfig::backlash`] steps are added that take up
/// the slack of the gear and count for nothing.
#[derive(Debug)]
pub struct StepAxis<Step, Dir, Low, High> {
    config: AxisConfig,
    step: Step,
    dir: Dir,
    low: Low,
    high: High,
    /// Steps from the low switch; meaningless unless `homed`.
    position: i32,
    homed: bool,
    /// Direction of the last step, which is the side the gear's slack lies on.
    forward: Option<bool>,
    pulse: bool,
    due_us: u64,
    run: Option<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    aim: Aim,
    forward: bool,
    done: u32,
    /// Steps at most; those below `slack` move nothing.
    total: u32,
    slack: u32,
}

/// What a run is for. Homing goes through the last four in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Go,
    /// Fast, until the switch closes.
    Seek,
    /// Back until it opens, and a little further.
    Release,
    /// Slowly, until it closes: this is 0.
    Approach,
    /// Away from the switch, so that it is open at rest.
    Clear,
}

impl<Step: OutputPin, Dir: OutputPin, Low: InputPin, High: InputPin>
    StepAxis<Step, Dir, Low, High>
{
    /// An axis of unknown position, standing still.
    pub fn new(config: AxisConfig, step: Step, dir: Dir, low: Low, high: High) -> Self {
        Self {
            config,
            step,
            dir,
            low,
            high,
            position: 0,
            homed: false,
            forward: None,
            pulse: false,
            due_us: 0,
            run: None,
        }
    }

    fn begin(&mut self, aim: Aim, forward: bool, distance: u32, now_us: u64) {
        let slack =
            if self.forward == Some(!forward) { u32::from(self.config.backlash) } else { 0 };
        self.run = Some(Run { aim, forward, done: 0, total: slack + distance, slack });
        self.due_us = now_us;
    }

    fn begin_homing(&mut self, aim: Aim, now_us: u64) {
        let clear = u32::from(self.config.home_clear);
        let spare = 2 * u32::from(self.config.backlash) + 4 * clear;
        let (forward, distance) = match aim {
            // The carriage may stand beyond its travel, short of the far switch.
            Aim::Seek => (false, self.config.steps() + self.config.steps() / 32 + spare),
            Aim::Release | Aim::Approach => (aim == Aim::Release, 2 * clear + spare),
            _ => (true, clear),
        };
        self.begin(aim, forward, distance, now_us);
    }

    /// What follows before the next step of a run, if not the step itself.
    fn turn(&mut self, run: &Run, now_us: u64) -> Result<Option<Motion>, AxisFault> {
        let low = self.low.is_high().map_err(|_| AxisFault::Pin)?;
        let high = self.high.is_high().map_err(|_| AxisFault::Pin)?;
        let over = run.done == run.total;
        match run.aim {
            Aim::Seek | Aim::Approach if low => {
                if run.aim == Aim::Approach {
                    self.position = 0;
                }
                self.begin_homing(
                    if run.aim == Aim::Seek { Aim::Release } else { Aim::Clear },
                    now_us,
                );
                return Ok(Some(Motion::Between));
            }
            Aim::Release if !low && run.done >= run.slack + u32::from(self.config.home_clear) => {
                self.begin_homing(Aim::Approach, now_us);
                return Ok(Some(Motion::Between));
            }
            Aim::Go | Aim::Clear if over => {
                self.homed |= run.aim == Aim::Clear;
                self.run = None;
                return Ok(Some(Motion::Still));
            }
            _ if over => return Err(AxisFault::NoSwitch),
            _ => {}
        }
        let blocked = if run.forward { high } else { low };
        if blocked { Err(AxisFault::Limit) } else { Ok(None) }
    }
}

impl<Step: OutputPin, Dir: OutputPin, Low: InputPin, High: InputPin> Axis
    for StepAxis<Step, Dir, Low, High>
{
    fn home(&mut self, now_us: u64) {
        self.homed = false;
        // Which side the slack lies on is not known either, so it is taken up both ways.
        self.forward = Some(true);
        self.begin_homing(Aim::Seek, now_us);
    }

    fn go(&mut self, to: Um, now_us: u64) -> Result<(), AxisFault> {
        if !self.homed {
            return Err(AxisFault::NotHomed);
        }
        if !self.reaches(to) {
            return Err(AxisFault::Beyond);
        }
        let nm = self.config.nm_per_step;
        // Within the travel, so positive and below 2^31.
        let steps = ((to.0.unsigned_abs() + nm / 2) / nm) as i32;
        let distance = steps - self.position;
        if distance != 0 {
            self.begin(Aim::Go, distance > 0, distance.unsigned_abs(), now_us);
        }
        Ok(())
    }

    fn poll(&mut self, now_us: u64) -> Result<Motion, AxisFault> {
        if self.pulse {
            self.step.set_low().map_err(|_| AxisFault::Pin)?;
            self.pulse = false;
        }
        let Some(run) = self.run else { return Ok(Motion::Still) };
        if now_us < self.due_us {
            return Ok(Motion::Between);
        }
        match self.turn(&run, now_us) {
            Ok(None) => {}
            Ok(Some(motion)) => return Ok(motion),
            Err(fault) => {
                self.halt();
                return Err(fault);
            }
        }
        if run.forward { self.dir.set_high() } else { self.dir.set_low() }
            .map_err(|_| AxisFault::Pin)?;
        self.step.set_high().map_err(|_| AxisFault::Pin)?;
        self.pulse = true;
        self.forward = Some(run.forward);
        if run.done >= run.slack {
            self.position += if run.forward { 1 } else { -1 };
        }
        let ramp = match run.aim {
            Aim::Go => Ramp::new(&self.config),
            Aim::Seek => Ramp::limited(&self.config, self.config.home_speed),
            _ => Ramp::limited(&self.config, self.config.home_speed.min(self.config.start_speed)),
        };
        // From now and not from when it was due: a late poll slows a move down, it never makes steps catch up.
        self.due_us = now_us + u64::from(ramp.interval_us(run.done, run.total - 1 - run.done));
        self.run = Some(Run { done: run.done + 1, ..run });
        Ok(Motion::Stepped)
    }

    fn halt(&mut self) {
        if self.run.take().is_some() {
            self.homed = false;
        }
        if core::mem::take(&mut self.pulse) {
            // A pin that fails here fails again at the next move, and is told then.
            let _ = self.step.set_low();
        }
    }

    fn position(&self) -> Option<Um> {
        let nm = i32::try_from(self.config.nm_per_step).ok()?;
        self.homed.then(|| self.position.checked_mul(nm)).flatten().map(Um)
    }

    fn reaches(&self, to: Um) -> bool {
        (0..=self.config.travel.0).contains(&to.0)
    }
}
