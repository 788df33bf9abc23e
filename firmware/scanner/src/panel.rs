//! What a person at the machine sees, and the watchdog.

use diffbulk_link::message::State;
use embedded_hal::digital::OutputPin;

/// Shows how the machine fares.
pub trait Lamps {
    /// Called when state or link change.
    fn show(&mut self, state: State, host: bool);
}

/// Green: the host is there. Amber: the stage may move. Red: a fault, until it is cleared.
#[derive(Debug)]
pub struct Leds<Green, Amber, Red> {
    /// On with the host.
    pub green: Green,
    /// On while the stage may move.
    pub amber: Amber,
    /// On during a fault.
    pub red: Red,
}

impl<Green: OutputPin, Amber: OutputPin, Red: OutputPin> Lamps for Leds<Green, Amber, Red> {
    fn show(&mut self, state: State, host: bool) {
        let moving = !matches!(state, State::Idle | State::Done | State::Fault);
        // A dead lamp is no reason to stop.
        let _ = self.green.set_state(host.into());
        let _ = self.amber.set_state(moving.into());
        let _ = self.red.set_state((state == State::Fault).into());
    }
}

/// Restarts the board unless it is fed within [`Config::watchdog_ms`](crate::config::Config::watchdog_ms).
pub trait Watchdog {
    /// Puts the bite off.
    fn feed(&mut self);
}
