//! A machine made of memory: what hangs on the pins when no stage does.
//!
//! Drivers step and read these pins as they would real ones; behind them a carriage follows its motor with slack,
//! switches close at the ends, a camera is busy for a while. Everything is a [`Cell`], so that pins can share it
//! without an allocator.

use core::cell::Cell;
use core::convert::Infallible;
use embedded_hal::digital::{ErrorType, InputPin, OutputPin};

/// A stepper, its carriage and two limit switches.
#[derive(Debug)]
pub struct SimAxis {
    /// Steps the motor stands at; the carriage lies up to `slack` below.
    pub motor: Cell<i32>,
    /// Where the carriage is; the low switch is closed up to 0.
    pub carriage: Cell<i32>,
    /// Where the high switch closes.
    pub end: Cell<i32>,
    /// Steps of the gear's slack.
    pub slack: i32,
    /// The switches are broken and never close.
    pub dead_switches: Cell<bool>,
    /// The motor turns and the carriage does not.
    pub jammed: Cell<bool>,
    dir: Cell<bool>,
    step: Cell<bool>,
    steps: Cell<u32>,
}

impl SimAxis {
    /// A carriage `at` steps from the low switch, the high one `end` steps away.
    pub const fn new(at: i32, end: i32, slack: i32) -> Self {
        Self {
            motor: Cell::new(at),
            carriage: Cell::new(at),
            end: Cell::new(end),
            slack,
            dead_switches: Cell::new(false),
            jammed: Cell::new(false),
            dir: Cell::new(false),
            step: Cell::new(false),
            steps: Cell::new(0),
        }
    }

    /// Steps made since the beginning.
    pub fn steps(&self) -> u32 {
        self.steps.get()
    }

    /// The step pin.
    pub fn step_pin(&self) -> SimOut<'_> {
        SimOut(Wire::Step(self))
    }

    /// The direction pin.
    pub fn dir_pin(&self) -> SimOut<'_> {
        SimOut(Wire::Level(&self.dir))
    }

    /// The low limit switch.
    pub fn low_pin(&self) -> SimIn<'_> {
        SimIn(Sense::Low(self))
    }

    /// The high limit switch.
    pub fn high_pin(&self) -> SimIn<'_> {
        SimIn(Sense::High(self))
    }

    fn set_step(&self, high: bool) {
        if self.step.replace(high) || !high {
            return;
        }
        self.steps.set(self.steps.get().wrapping_add(1));
        let motor = self.motor.get() + if self.dir.get() { 1 } else { -1 };
        self.motor.set(motor);
        if !self.jammed.get() {
            self.carriage.set(self.carriage.get().clamp(motor - self.slack, motor));
        }
    }
}

/// A camera and its light.
#[derive(Debug, Default)]
pub struct SimCamera {
    /// Reads of the ready pin for which the camera is busy after a picture.
    pub busy_for: Cell<u32>,
    /// The camera never gets ready again.
    pub dead: Cell<bool>,
    /// Pictures taken with light.
    pub pictures: Cell<u32>,
    trigger: Cell<bool>,
    light: Cell<bool>,
    lit: Cell<bool>,
    busy: Cell<u32>,
}

impl SimCamera {
    /// The trigger pin.
    pub fn trigger_pin(&self) -> SimOut<'_> {
        SimOut(Wire::Trigger(self))
    }

    /// The light's pin.
    pub fn light_pin(&self) -> SimOut<'_> {
        SimOut(Wire::Light(self))
    }

    /// The ready output.
    pub fn ready_pin(&self) -> SimIn<'_> {
        SimIn(Sense::Ready(self))
    }

    /// Whether the light shines.
    pub fn light(&self) -> bool {
        self.light.get()
    }

    fn set_trigger(&self, high: bool) {
        if self.trigger.replace(high) && !high && self.lit.take() {
            self.pictures.set(self.pictures.get() + 1);
            self.busy.set(self.busy_for.get());
        }
    }

    fn set_light(&self, high: bool) {
        self.light.set(high);
        if high && self.trigger.get() {
            self.lit.set(true);
        }
    }

    fn is_ready(&self) -> bool {
        let busy = self.busy.get();
        self.busy.set(busy.saturating_sub(1));
        busy == 0 && !self.dead.get()
    }
}

#[derive(Debug)]
enum Wire<'a> {
    Level(&'a Cell<bool>),
    Step(&'a SimAxis),
    Trigger(&'a SimCamera),
    Light(&'a SimCamera),
}

/// An output pin of the simulated machine.
#[derive(Debug)]
pub struct SimOut<'a>(Wire<'a>);

impl<'a> SimOut<'a> {
    /// A pin whose level can be looked at.
    pub fn level(level: &'a Cell<bool>) -> Self {
        Self(Wire::Level(level))
    }

    fn set(&self, high: bool) {
        match self.0 {
            Wire::Level(level) => level.set(high),
            Wire::Step(axis) => axis.set_step(high),
            Wire::Trigger(camera) => camera.set_trigger(high),
            Wire::Light(camera) => camera.set_light(high),
        }
    }
}

impl ErrorType for SimOut<'_> {
    type Error = Infallible;
}

impl OutputPin for SimOut<'_> {
    fn set_low(&mut self) -> Result<(), Infallible> {
        self.set(false);
        Ok(())
    }

    fn set_high(&mut self) -> Result<(), Infallible> {
        self.set(true);
        Ok(())
    }
}

#[derive(Debug)]
enum Sense<'a> {
    Level(&'a Cell<bool>),
    Low(&'a SimAxis),
    High(&'a SimAxis),
    Ready(&'a SimCamera),
}

/// An input pin of the simulated machine.
#[derive(Debug)]
pub struct SimIn<'a>(Sense<'a>);

impl<'a> SimIn<'a> {
    /// A pin that reads what it is set to.
    pub fn level(level: &'a Cell<bool>) -> Self {
        Self(Sense::Level(level))
    }
}

impl ErrorType for SimIn<'_> {
    type Error = Infallible;
}

impl InputPin for SimIn<'_> {
    fn is_high(&mut self) -> Result<bool, Infallible> {
        Ok(match self.0 {
            Sense::Level(level) => level.get(),
            Sense::Low(axis) => axis.carriage.get() <= 0 && !axis.dead_switches.get(),
            Sense::High(axis) => axis.carriage.get() >= axis.end.get() && !axis.dead_switches.get(),
            Sense::Ready(camera) => camera.is_ready(),
        })
    }

    fn is_low(&mut self) -> Result<bool, Infallible> {
        self.is_high().map(|high| !high)
    }
}
