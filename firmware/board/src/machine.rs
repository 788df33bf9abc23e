//! The simulated machine and its constants.

use crate::fake_flash::{self, FakeFlash};
use crate::watchdog::Dog;
use core::cell::Cell;
use diffbulk_scanner::config::{AxisConfig, Config, ExposureConfig};
use diffbulk_scanner::controller::{Machine, Parts};
use diffbulk_scanner::exposure::StrobeCamera;
use diffbulk_scanner::link::session::Timing;
use diffbulk_scanner::link::units::Um;
use diffbulk_scanner::motion::StepAxis;
use diffbulk_scanner::panel::Leds;
use diffbulk_scanner::sim::{SimAxis, SimCamera, SimIn, SimOut};
use diffbulk_scanner::store::{Map, Store, StoreError};

const STAGE: AxisConfig = AxisConfig {
    nm_per_step: 500,
    travel: Um(75_000_000),
    start_speed: 2_000,
    top_speed: 30_000,
    acceleration: 1_000_000,
    backlash: 6,
    home_speed: 20_000,
    home_clear: 40,
};

/// A small stage, 75 x 25 mm, 0.5 um a step.
pub const CONFIG: Config = Config {
    x: STAGE,
    y: AxisConfig { travel: Um(25_000_000), ..STAGE },
    z: AxisConfig { nm_per_step: 100, travel: Um(1_000_000), ..STAGE },
    exposure: ExposureConfig { lead_us: 200, flash_us: 100, ready_ms: 500 },
    settle_ms: 5,
    homing_ms: 30_000,
    move_ms: 15_000,
    result_ms: 20_000,
    overload_ms: 500,
    tries: 3,
    park_ms: 60_000,
    telemetry_ms: 1_000,
    watchdog_ms: 5_000,
    link: Timing {
        hello_ms: 200,
        heartbeat_ms: 250,
        lost_ms: 2_000,
        retry_ms: 100,
        retry_most_ms: 800,
    },
};

/// What hangs on the pins.
pub struct World {
    x: SimAxis,
    y: SimAxis,
    z: SimAxis,
    camera: SimCamera,
    stop: Cell<bool>,
    lamps: [Cell<bool>; 3],
}

/// The machine's parts.
pub struct Simulated<'a>(core::marker::PhantomData<&'a World>);

type Stepper<'a> = StepAxis<SimOut<'a>, SimOut<'a>, SimIn<'a>, SimIn<'a>>;

impl<'a> Parts for Simulated<'a> {
    type X = Stepper<'a>;
    type Y = Stepper<'a>;
    type Z = Stepper<'a>;
    type Camera = StrobeCamera<SimOut<'a>, SimOut<'a>, SimIn<'a>>;
    type Lamps = Leds<SimOut<'a>, SimOut<'a>, SimOut<'a>>;
    type Stop = SimIn<'a>;
    type Flash = FakeFlash;
    type Watchdog = Dog;
    type Room = &'a mut Map;
}

impl World {
    /// Somewhere, as a stage is found when the power comes.
    pub fn new() -> Self {
        Self {
            x: SimAxis::new(1_234, 150_100, 6),
            y: SimAxis::new(567, 50_100, 6),
            z: SimAxis::new(2_000, 10_100, 6),
            camera: SimCamera::default(),
            stop: Cell::new(false),
            lamps: [const { Cell::new(false) }; 3],
        }
    }

    /// The drivers on its pins.
    pub fn machine(&self, watchdog: Dog) -> Result<Machine<Simulated<'_>>, StoreError> {
        let axis = |config, axis| {
            let axis: &SimAxis = axis;
            StepAxis::new(config, axis.step_pin(), axis.dir_pin(), axis.low_pin(), axis.high_pin())
        };
        let camera = &self.camera;
        let [green, amber, red] = &self.lamps;
        Ok(Machine {
            x: axis(CONFIG.x, &self.x),
            y: axis(CONFIG.y, &self.y),
            z: axis(CONFIG.z, &self.z),
            camera: StrobeCamera::new(
                CONFIG.exposure,
                camera.trigger_pin(),
                camera.light_pin(),
                camera.ready_pin(),
            ),
            lamps: Leds {
                green: SimOut::level(green),
                amber: SimOut::level(amber),
                red: SimOut::level(red),
            },
            stop: SimIn::level(&self.stop),
            store: Store::new(FakeFlash::new(), 0..fake_flash::LEN as u32)?,
            watchdog,
        })
    }

    /// What a person does at the bench: `s` presses the emergency stop, `r` releases it, `h` hangs the program.
    pub fn obey(&self, command: u8) {
        match command {
            b's' => self.stop.set(true),
            b'r' => self.stop.set(false),
            b'h' => loop {
                cortex_m::asm::nop();
            },
            _ => {}
        }
    }
}
