//! A scanner over a simulated machine, a host that predicts from the tile's number, and a link between them that is
//! as bad as it is told to be.

pub mod flash;
pub mod host;
pub mod pipe;

use diffbulk_link::message::*;
use diffbulk_link::session::Timing;
use diffbulk_link::units::*;
use diffbulk_scanner::Scanner;
use diffbulk_scanner::config::{AxisConfig, Config, ExposureConfig};
use diffbulk_scanner::controller::{Machine, Parts};
use diffbulk_scanner::exposure::StrobeCamera;
use diffbulk_scanner::motion::StepAxis;
use diffbulk_scanner::panel::{Leds, Watchdog};
use diffbulk_scanner::sim::{SimAxis, SimCamera, SimIn, SimOut};
use diffbulk_scanner::store::{Map, Store};
use flash::{Flash, Memory};
use host::Host;
use pipe::{Damage, Pipe};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Everything on the board's pins, and the flash: what a restart leaves as it is.
pub struct World {
    pub x: SimAxis,
    pub y: SimAxis,
    pub z: SimAxis,
    pub camera: SimCamera,
    pub stop: Cell<bool>,
    pub lamps: [Cell<bool>; 3],
    pub memory: Rc<RefCell<Memory>>,
    pub fed: Cell<u32>,
}

pub const SLACK: u16 = 7;

impl World {
    /// Leaked, so that pins can hold on to it; a test makes a few.
    pub fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            x: SimAxis::new(321, 4000, SLACK.into()),
            y: SimAxis::new(12, 4000, SLACK.into()),
            z: SimAxis::new(150, 500, SLACK.into()),
            camera: SimCamera::default(),
            stop: Cell::new(false),
            lamps: Default::default(),
            memory: Memory::new(64 * 1024),
            fed: Cell::new(0),
        }))
    }

    pub fn machine(&'static self) -> Machine<Sim> {
        let config = config();
        let axis = |config, axis: &'static SimAxis| {
            StepAxis::new(config, axis.step_pin(), axis.dir_pin(), axis.low_pin(), axis.high_pin())
        };
        let camera = &self.camera;
        let [green, amber, red] = &self.lamps;
        Machine {
            x: axis(config.x, &self.x),
            y: axis(config.y, &self.y),
            z: axis(config.z, &self.z),
            camera: StrobeCamera::new(
                config.exposure,
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
            store: Store::new(Flash(self.memory.clone()), 0..64 * 1024).unwrap(),
            watchdog: Dog(&self.fed),
        }
    }
}

pub struct Sim;
pub type SimStepAxis = StepAxis<SimOut<'static>, SimOut<'static>, SimIn<'static>, SimIn<'static>>;

impl Parts for Sim {
    type X = SimStepAxis;
    type Y = SimStepAxis;
    type Z = SimStepAxis;
    type Camera = StrobeCamera<SimOut<'static>, SimOut<'static>, SimIn<'static>>;
    type Lamps = Leds<SimOut<'static>, SimOut<'static>, SimOut<'static>>;
    type Stop = SimIn<'static>;
    type Flash = Flash;
    type Watchdog = Dog;
    type Room = Box<Map>;
}

/// Counts its meals.
pub struct Dog(&'static Cell<u32>);

impl Watchdog for Dog {
    fn feed(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

pub fn axis_config(travel_um: i32) -> AxisConfig {
    AxisConfig {
        nm_per_step: 1000,
        travel: Um(travel_um * 1000),
        start_speed: 2_000,
        top_speed: 5_000,
        acceleration: 400_000,
        backlash: SLACK,
        home_speed: 5_000,
        home_clear: 10,
    }
}

pub fn config() -> Config {
    Config {
        x: axis_config(3900),
        y: axis_config(3900),
        z: axis_config(400),
        exposure: ExposureConfig { lead_us: 200, flash_us: 200, ready_ms: 50 },
        settle_ms: 1,
        homing_ms: 5_000,
        move_ms: 2_000,
        result_ms: 400,
        overload_ms: 50,
        tries: 3,
        park_ms: 10_000,
        telemetry_ms: 500,
        watchdog_ms: 100,
        link: Timing {
            hello_ms: 20,
            heartbeat_ms: 25,
            lost_ms: 400,
            retry_ms: 10,
            retry_most_ms: 80,
        },
    }
}

pub fn objective() -> Objective {
    Objective {
        weights: [1.0, -0.5].into_iter().collect(),
        enter: 3.0,
        leave: 2.0,
        best: 4,
        tissue: Fraction::new(0.2).unwrap(),
        rescan: Some(Rescan { scale: UmPerPx(250_000), most: 100 }),
        refocus: Some(Refocus { below: Fraction::new(0.3).unwrap(), step: Um(5_000), most: 3 }),
        stop: None,
    }
}

/// A plan of the set cells of a grid of 20 um pitch.
pub fn plan(
    columns: u16,
    rows: u16,
    objective: Objective,
    is_tile: impl Fn(u16) -> bool,
) -> (Plan, Vec<u8>) {
    let grid = Grid { columns, rows, x: Um(30_000), y: Um(40_000), pitch: Um(20_000) };
    let mut map = vec![0u8; grid.bytes().unwrap()];
    let tiles: Vec<u16> = (0..columns * rows).filter(|&cell| is_tile(cell)).collect();
    tiles.iter().for_each(|&cell| map[usize::from(cell / 8)] |= 1 << (cell % 8));
    let mut plan = Plan {
        id: PlanId(0),
        grid,
        tiles: tiles.len() as u16,
        order: Order::Serpentine,
        scale: UmPerPx(500_000),
        z: Um(100_000),
        objective,
    };
    plan.id = plan.identify(&map);
    (plan, map)
}

/// Board, host and what lies between them.
pub struct Rig {
    pub world: &'static World,
    pub scanner: Option<Scanner<Sim>>,
    pub host: Option<Host>,
    pub to_host: Pipe,
    pub to_board: Pipe,
    pub now_us: u64,
    out: Vec<u8>,
}

/// Between two polls of the board.
pub const TICK_US: u64 = 100;

impl Rig {
    pub fn new(host: Host, damage: Damage, seed: u64) -> Self {
        let world = World::new();
        let mut rig = Self {
            world,
            scanner: None,
            host: Some(host),
            to_host: Pipe::new(damage, seed),
            to_board: Pipe::new(damage, seed ^ 0x5555),
            now_us: 0,
            out: vec![0; 2048],
        };
        rig.start_board();
        rig
    }

    /// Power on.
    pub fn start_board(&mut self) {
        self.world.memory.borrow_mut().power_on();
        self.start();
    }

    /// A start, with whatever is to happen to the flash still to come.
    pub fn start(&mut self) {
        self.scanner =
            Some(Scanner::new(config(), self.world.machine(), Box::default(), "test").unwrap());
    }

    pub fn scanner(&self) -> &Scanner<Sim> {
        self.scanner.as_ref().unwrap()
    }

    pub fn state(&self) -> State {
        self.scanner().controller().state()
    }

    pub fn host(&mut self) -> &mut Host {
        self.host.as_mut().unwrap()
    }

    pub fn step(&mut self) {
        self.now_us += TICK_US;
        let now = self.now_us;
        let received = self.to_board.take(now);
        if let Some(scanner) = &mut self.scanner {
            scanner.poll(now, &received);
            // A UART would do with one frame in a while.
            let len = scanner.transmit(now, &mut self.out);
            if len > 0 {
                self.to_host.give(now, &self.out[..len]);
            }
            if self.world.memory.borrow().is_dead() {
                // Power went in the middle of a write.
                self.scanner = None;
            }
        }
        let received = self.to_host.take(now);
        if let Some(host) = &mut self.host {
            host.poll(now / 1000, &received);
            loop {
                match host.session.transmit(now / 1000, &mut self.out) {
                    0 => break,
                    len => self.to_board.give(now, &self.out[..len]),
                }
            }
        }
    }

    /// Steps until this holds; panics after so many virtual milliseconds.
    pub fn until(&mut self, within_ms: u64, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now_us + within_ms * 1000;
        while !done(self) {
            self.step();
            assert!(
                self.now_us < end,
                "{what}: not within {within_ms} ms; board {:?} {:?}, host {:?}",
                self.scanner.as_ref().map(|s| s.controller().state()),
                self.scanner.as_ref().map(|s| s.stats()),
                self.host.as_ref().map(|h| (h.session.stats(), h.faults.clone())),
            );
        }
    }

    pub fn run(&mut self, ms: u64) {
        let end = self.now_us + ms * 1000;
        while self.now_us < end {
            self.step();
        }
    }
}
