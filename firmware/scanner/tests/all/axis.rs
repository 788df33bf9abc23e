//! The axis driver on a simulated stepper with slack.

use crate::common::{SLACK, SimStepAxis, axis_config};
use diffbulk_link::units::Um;
use diffbulk_scanner::motion::{Axis, AxisFault, Motion, StepAxis};
use diffbulk_scanner::sim::SimAxis;
use proptest::prelude::*;

fn axis(at: i32) -> (&'static SimAxis, SimStepAxis) {
    let sim: &SimAxis = Box::leak(Box::new(SimAxis::new(at, 4000, SLACK.into())));
    let axis = StepAxis::new(
        axis_config(3900),
        sim.step_pin(),
        sim.dir_pin(),
        sim.low_pin(),
        sim.high_pin(),
    );
    (sim, axis)
}

/// Polls until the axis stands; the shortest time between two steps.
fn settle(axis: &mut SimStepAxis, now: &mut u64) -> Result<u64, AxisFault> {
    let (mut last, mut shortest) = (None, u64::MAX);
    for _ in 0..10_000_000 {
        *now += 10;
        match axis.poll(*now)? {
            Motion::Still => return Ok(shortest),
            Motion::Stepped => {
                if let Some(last) = last.replace(*now) {
                    shortest = shortest.min(*now - last);
                }
            }
            Motion::Between => {}
        }
    }
    panic!("the axis never stands");
}

fn homed(at: i32) -> (&'static SimAxis, SimStepAxis, u64) {
    let (sim, mut axis) = axis(at);
    let mut now = 0;
    axis.home(now);
    settle(&mut axis, &mut now).unwrap();
    (sim, axis, now)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn homing_finds_zero_from_anywhere_and_moves_are_exact_in_spite_of_slack(
        at in -5..3990i32,
        targets in proptest::collection::vec(0..=3900i32, 1..12),
    ) {
        let (sim, mut axis, mut now) = homed(at);
        prop_assert_eq!(axis.position(), Some(Um(10_000)));
        prop_assert_eq!(sim.carriage.get(), 10);
        for target in targets {
            axis.go(Um(target * 1000), now).unwrap();
            let shortest = settle(&mut axis, &mut now);
            prop_assert!(shortest.unwrap() >= 200, "faster than the top speed");
            prop_assert_eq!(sim.carriage.get(), target);
            prop_assert_eq!(axis.position(), Some(Um(target * 1000)));
        }
    }

    #[test]
    fn an_obstacle_stops_the_axis_within_a_step(end in 500..3000i32) {
        let (sim, mut axis, mut now) = homed(40);
        sim.end.set(end);
        axis.go(Um(3_500_000), now).unwrap();
        prop_assert_eq!(settle(&mut axis, &mut now), Err(AxisFault::Limit));
        prop_assert_eq!(sim.carriage.get(), end);
        prop_assert_eq!(axis.position(), None);
        prop_assert_eq!(axis.go(Um(0), now), Err(AxisFault::NotHomed));
        let steps = sim.steps();
        prop_assert_eq!(settle(&mut axis, &mut now), Ok(u64::MAX));
        prop_assert_eq!(sim.steps(), steps, "and it stays so");
    }
}

#[test]
fn positions_are_rounded_to_the_nearest_step() {
    let (sim, mut axis, mut now) = homed(5);
    axis.go(Um(123_500), now).unwrap();
    settle(&mut axis, &mut now).unwrap();
    assert_eq!(sim.carriage.get(), 124);
}

#[test]
fn beyond_the_travel_is_refused() {
    let (_, mut axis, now) = homed(5);
    for bad in [Um(-1), Um(3_900_001), Um(i32::MAX), Um(i32::MIN)] {
        assert_eq!(axis.go(bad, now), Err(AxisFault::Beyond));
    }
}

#[test]
fn before_homing_nothing_moves() {
    let (sim, mut axis) = axis(100);
    assert_eq!(axis.go(Um(0), 0), Err(AxisFault::NotHomed));
    assert_eq!(axis.poll(10), Ok(Motion::Still));
    assert_eq!(sim.steps(), 0);
}

#[test]
fn homing_gives_up_on_a_switch_that_never_closes_or_never_opens() {
    for jammed in [false, true] {
        let (sim, mut axis) = axis(if jammed { 0 } else { 100 });
        sim.dead_switches.set(!jammed);
        sim.jammed.set(jammed);
        let mut now = 0;
        axis.home(now);
        assert_eq!(settle(&mut axis, &mut now), Err(AxisFault::NoSwitch));
        assert!(sim.steps() < 4100, "{}", sim.steps());
        assert_eq!(axis.position(), None);
    }
}

#[test]
fn a_late_poll_makes_no_steps_catch_up() {
    let (sim, mut axis, mut now) = homed(5);
    axis.go(Um(1_000_000), now).unwrap();
    axis.poll(now).unwrap();
    let steps = sim.steps();
    now += 1_000_000;
    assert_eq!(axis.poll(now), Ok(Motion::Stepped));
    assert_eq!(axis.poll(now + 1), Ok(Motion::Between));
    assert_eq!(sim.steps(), steps + 1);
}

#[test]
fn a_ramp_takes_the_time_it_should() {
    let (_, mut axis, mut now) = homed(5);
    let begin = now;
    axis.go(Um(3_010_000), now).unwrap();
    settle(&mut axis, &mut now).unwrap();
    // 3,000 steps at 5,000/s, and a little for the ramps' 26 steps at either end.
    let ms = (now - begin) / 1000;
    assert!((600..640).contains(&ms), "{ms} ms");
}
