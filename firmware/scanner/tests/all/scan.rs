//! Whole scans: what the board does with results, and what it does when something fails.

use crate::common::host::{Host, Record, result, typical};
use crate::common::pipe::Damage;
use crate::common::{Rig, objective, plan};
use diffbulk_link::message::*;
use diffbulk_link::units::{Fraction, Um, UmPerPx};

fn rig(host: Host) -> Rig {
    Rig::new(host, Damage::NONE, 1)
}

fn typical_host() -> Host {
    Host::new(1, plan(5, 5, objective(), |cell| cell != 7), typical, Record::default())
}

fn done(rig: &mut Rig) -> Summary {
    rig.until(60_000, "done", |rig| {
        rig.host().record.summary.is_some() && rig.state() == State::Done
    });
    rig.host().record.summary.clone().unwrap()
}

fn host_with(predict: fn(Shot) -> FromHost) -> Host {
    Host::new(1, plan(3, 2, objective(), |_| true), predict, Record::default())
}

#[test]
fn a_scan_goes_serpentine_and_acts_on_every_result() {
    let mut rig = rig(typical_host());
    let summary = done(&mut rig);
    assert_eq!(summary.reason, StopReason::Complete);
    let host = rig.host();
    let firsts: Vec<u16> =
        host.events.iter().filter(|e| e.shot.attempt == 0).map(|e| e.shot.tile.0).collect();
    assert_eq!(
        firsts,
        [0, 1, 2, 3, 4, 9, 8, 6, 5, 10, 11, 12, 13, 14, 19, 18, 17, 16, 15, 20, 21, 22, 23, 24]
    );
    // 10 and 21 are glass; 3, 10, 17, 24 are hot, 10 is not believed.
    assert_eq!((summary.kept, summary.skipped), (22, 2));
    assert_eq!(summary.rescans, 3);
    // 2, 7 (not in the plan), 12, 17, 22 are blurred at first.
    assert_eq!(summary.refocuses, 4);
    let best: Vec<u16> = summary.best.iter().map(|b| b.tile.0).collect();
    assert_eq!(best, [3, 17, 24, 11]);
    for event in &host.events {
        let (column, row) = (event.shot.tile.0 % 5, event.shot.tile.0 / 5);
        assert_eq!(event.x, Um(30_000 + 20_000 * i32::from(column)));
        assert_eq!(event.y, Um(40_000 + 20_000 * i32::from(row)));
    }
    let rescan =
        host.events.iter().find(|e| e.shot == Shot { tile: TileId(3), attempt: 1 }).unwrap();
    assert_eq!((rescan.scale, rescan.z), (UmPerPx(250_000), Um(100_000)));
    let refocus =
        host.events.iter().find(|e| e.shot == Shot { tile: TileId(2), attempt: 1 }).unwrap();
    assert_eq!((refocus.scale, refocus.z), (UmPerPx(500_000), Um(105_000)));
    // 17 is blurred, then hot: refocused at the plan's scale, rescanned where it was sharp.
    let third =
        host.events.iter().find(|e| e.shot == Shot { tile: TileId(17), attempt: 2 }).unwrap();
    assert_eq!((third.scale, third.z), (UmPerPx(250_000), Um(105_000)));
    assert_eq!(rig.world.camera.pictures.get() as usize, rig.host().events.len());
    assert!(!rig.world.camera.light());
}

#[test]
fn statistics_are_those_of_the_kept_tiles() {
    let mut rig = rig(typical_host());
    let summary = done(&mut rig);
    let host = rig.host();
    let kept: Vec<f32> = host
        .record
        .decisions
        .iter()
        .filter(|d| matches!(d.action, Action::Keep))
        .map(|d| match &host.record.results[&d.shot] {
            FromHost::Result(result) => result.expression.values().unwrap()[0],
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kept.len(), usize::from(summary.kept));
    let mean = kept.iter().sum::<f32>() / kept.len() as f32;
    let variance = kept.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / (kept.len() - 1) as f32;
    assert!((summary.genes[0].mean - mean).abs() < 1e-5, "{:?} {mean}", summary.genes);
    assert!((summary.genes[0].variance - variance).abs() < 1e-4, "{:?} {variance}", summary.genes);
    assert_eq!(summary.genes[1], GeneStat { mean: 1.0, variance: 0.0 });
}

#[test]
fn a_tile_that_stays_blurred_is_skipped_after_the_steps_of_focus() {
    let mut rig = rig(host_with(|shot| {
        result(shot, &[0.0, 0.0], if shot.tile.0 == 1 { 0.1 } else { 0.9 }, 1.0)
    }));
    let summary = done(&mut rig);
    let focus: Vec<i32> =
        rig.host().events.iter().filter(|e| e.shot.tile.0 == 1).map(|e| e.z.0).collect();
    assert_eq!(focus, [100_000, 105_000, 95_000, 110_000]);
    assert_eq!((summary.kept, summary.skipped, summary.refocuses), (5, 1, 3));
    let next = rig.host().events.iter().find(|e| e.shot.tile.0 == 2).unwrap().z;
    assert_eq!(next, Um(100_000), "the next tile begins at the plan's focus");
}

#[test]
fn a_scan_stops_early_when_it_has_seen_enough() {
    let objective = Objective { stop: Some(Stop { hot: 2 }), rescan: None, ..objective() };
    let plan = plan(5, 5, objective, |_| true);
    let mut rig =
        rig(Host::new(1, plan, |shot| result(shot, &[9.0, 0.0], 1.0, 1.0), Record::default()));
    let summary = done(&mut rig);
    assert_eq!(summary.reason, StopReason::Enough);
    assert_eq!(summary.kept, 2);
    assert_eq!(
        rig.host().record.decisions.last().unwrap().action,
        Action::Stop(StopReason::Enough)
    );
}

#[test]
fn rescans_are_bounded() {
    let objective =
        Objective { rescan: Some(Rescan { scale: UmPerPx(100_000), most: 2 }), ..objective() };
    let plan = plan(4, 1, objective, |_| true);
    let mut rig =
        rig(Host::new(1, plan, |shot| result(shot, &[9.0, 0.0], 1.0, 1.0), Record::default()));
    let summary = done(&mut rig);
    assert_eq!((summary.kept, summary.rescans), (4, 2));
}

#[test]
fn results_that_are_not_finite_or_of_another_panel_are_refused_and_the_tile_skipped() {
    for values in [&[f32::NAN, 0.0][..], &[0.0, f32::INFINITY], &[1.0], &[1.0, 2.0, 3.0]] {
        let bad = values.to_vec();
        let mut host = host_with(typical);
        // What is in the record is sent again and again, as by a host that will not mend.
        for tile in [1, 4] {
            let shot = Shot { tile: TileId(tile), attempt: 0 };
            host.record.results.insert(shot, result(shot, &bad, 1.0, 1.0));
        }
        let mut rig = rig(host);
        let summary = done(&mut rig);
        assert_eq!(summary.skipped, 2, "{values:?}");
        assert!(summary.best.iter().all(|b| b.score.is_finite()));
        assert!(summary.genes.iter().all(|g| g.mean.is_finite() && g.variance.is_finite()));
        let refused = rig
            .host()
            .faults
            .iter()
            .filter(|f| f.code == FaultCode::BadResult && !f.stopped)
            .count();
        assert_eq!(refused, 6, "three tries of two tiles");
    }
}

#[test]
fn a_score_that_overflows_is_refused() {
    let objective = Objective { weights: [f32::MAX, 0.0].into_iter().collect(), ..objective() };
    let plan = plan(2, 1, objective, |_| true);
    let mut rig =
        rig(Host::new(1, plan, |shot| result(shot, &[9.0, 0.0], 1.0, 1.0), Record::default()));
    assert_eq!(done(&mut rig).skipped, 2);
}

#[test]
fn a_tile_without_a_result_is_asked_for_again_and_then_skipped() {
    let mut rig = rig(host_with(|shot| match shot.tile.0 {
        // A message that is not an answer: the host has lost the shot.
        1 => FromHost::Command(Command::Start),
        2 => FromHost::NoResult(NoResult { shot, reason: Reason::NoPixels }),
        3 => FromHost::NoResult(NoResult { shot, reason: Reason::Failed }),
        _ => result(shot, &[0.0, 0.0], 1.0, 1.0),
    }));
    let summary = done(&mut rig);
    assert_eq!((summary.kept, summary.skipped), (3, 3));
    let asked =
        |rig: &mut Rig, tile| rig.host().events.iter().filter(|e| e.shot.tile.0 == tile).count();
    assert_eq!(asked(&mut rig, 1), 3);
    assert_eq!(asked(&mut rig, 2), 3);
    assert_eq!(asked(&mut rig, 3), 1);
    assert_eq!(rig.host().faults.iter().filter(|f| f.code == FaultCode::ResultTimeout).count(), 3);
    // A picture for each time the camera is to try again, none for each time the host is.
    assert_eq!(rig.world.camera.pictures.get(), 8);
}

#[test]
fn an_overloaded_host_slows_the_board_and_loses_nothing() {
    let mut host = host_with(typical);
    let busy = Shot { tile: TileId(1), attempt: 0 };
    host.record
        .results
        .insert(busy, FromHost::NoResult(NoResult { shot: busy, reason: Reason::Overload }));
    let mut rig = rig(host);
    rig.until(5000, "asked ten times", |rig| {
        rig.host().events.iter().filter(|e| e.shot == busy).count() == 10
    });
    let waits: Vec<u64> =
        rig.host().events.iter().filter(|e| e.shot == busy).map(|e| e.time_ms).collect();
    assert_eq!(waits[0], waits[9], "the same event");
    rig.host().record.results.insert(busy, typical(busy));
    assert_eq!(done(&mut rig).kept, 6);
}

#[test]
fn pause_finishes_the_tile_and_start_goes_on() {
    let mut rig = rig(typical_host());
    rig.until(5000, "third tile", |rig| rig.host().events.len() == 3);
    rig.host().say(FromHost::Command(Command::Pause));
    rig.until(5000, "idle", |rig| rig.state() == State::Idle);
    let seen = rig.host().events.len();
    rig.run(1000);
    assert_eq!(rig.host().events.len(), seen);
    rig.host().say(FromHost::Command(Command::Start));
    assert_eq!(done(&mut rig).kept, 22);
}

#[test]
fn stop_ends_the_scan_with_a_summary() {
    let mut rig = rig(typical_host());
    rig.until(5000, "third tile", |rig| rig.host().events.len() == 3);
    rig.host().say(FromHost::Command(Command::Stop));
    let summary = done(&mut rig);
    assert_eq!(summary.reason, StopReason::Commanded);
    assert!(summary.kept < 4);
    // And a new plan is taken.
    rig.host().record.summary = None;
    rig.host().plan = plan(2, 2, objective(), |_| true);
    rig.host().send_plan();
    assert_eq!(done(&mut rig).kept, 4);
}

#[test]
fn the_same_slide_can_be_scanned_again() {
    let mut rig = rig(host_with(typical));
    let first = done(&mut rig);
    rig.host().record = Record::default();
    rig.host().send_plan();
    assert_eq!(done(&mut rig), first);
}

#[test]
fn plans_that_cannot_be_carried_out_are_refused_by_name() {
    type Change<'a> = &'a dyn Fn(&mut (Plan, Vec<u8>));
    let reply = |change: Change<'_>| {
        let mut plan = plan(3, 3, objective(), |_| true);
        change(&mut plan);
        if plan.0.id != PlanId(1) {
            plan.0.id = plan.0.identify(&plan.1);
        }
        let mut rig = rig(Host::new(1, plan, typical, Record::default()));
        rig.until(1000, "a reply", |rig| !rig.host().replies.is_empty());
        rig.run(100);
        assert_eq!(rig.host().replies.len(), 1);
        (rig.host().replies[0].reply, rig.state())
    };
    assert_eq!(
        reply(&|(plan, _)| plan.grid.x = Um(3_890_000)),
        (PlanReply::Unreachable, State::Idle)
    );
    assert_eq!(reply(&|(plan, _)| plan.grid.y = Um(-1)), (PlanReply::Unreachable, State::Idle));
    assert_eq!(
        reply(&|(plan, _)| plan.grid.pitch = Um(i32::MAX)),
        (PlanReply::Unreachable, State::Idle)
    );
    assert_eq!(reply(&|(plan, _)| plan.z = Um(396_000)), (PlanReply::Unreachable, State::Idle));
    assert_eq!(reply(&|(plan, _)| plan.z = Um(4_000)), (PlanReply::Unreachable, State::Idle));
    assert_eq!(reply(&|(plan, _)| plan.grid.rows = u16::MAX), (PlanReply::BadGrid, State::Idle));
    assert_eq!(reply(&|(plan, _)| plan.tiles = 8), (PlanReply::BadTiles, State::Idle));
    assert_eq!(
        reply(&|(plan, _)| plan.objective.enter = f32::NAN),
        (PlanReply::BadObjective, State::Idle)
    );
    assert_eq!(reply(&|(plan, _)| plan.id = PlanId(1)), (PlanReply::BadId, State::Idle));
    assert_eq!(reply(&|_| {}).0, PlanReply::Accepted);
}

#[test]
fn a_plan_during_a_scan_and_one_with_a_hole_are_refused() {
    let mut rig = rig(typical_host());
    rig.until(5000, "second tile", |rig| rig.host().events.len() == 2);
    let scanned = rig.host().plan.clone();
    rig.host().plan = plan(60, 60, objective(), |_| true);
    rig.host().send_plan();
    rig.until(1000, "a reply", |rig| rig.host().replies.len() > 1);
    assert_eq!(rig.host().replies[1].reply, PlanReply::Busy);
    rig.host().plan = scanned;
    assert_eq!(done(&mut rig).kept, 22);

    let (plan, map) = plan(60, 60, objective(), |_| true);
    let id = plan.id;
    rig.host().auto = false;
    rig.host().replies.clear();
    rig.host().say(FromHost::Plan(plan));
    let cells = |from: usize| Cells {
        plan: id,
        offset: from as u16,
        map: map[from..from + 128].iter().copied().collect(),
    };
    rig.host().say(FromHost::Cells(cells(0)));
    rig.host().say(FromHost::Cells(cells(256)));
    rig.until(1000, "a reply", |rig| !rig.host().replies.is_empty());
    assert_eq!(rig.host().replies[0].reply, PlanReply::OutOfOrder);
    // The plan of before is still known, bit map and all.
    assert_eq!(rig.scanner().controller().progress().unwrap().plan(), rig.host().plan.0.id);
}

#[test]
fn the_emergency_stop_stops_everything_and_homing_follows_its_release() {
    let mut rig = rig(typical_host());
    rig.until(5000, "moving to the fifth tile", |rig| {
        rig.host().events.len() == 4 && rig.state() == State::Moving
    });
    rig.world.stop.set(true);
    rig.until(10, "fault", |rig| rig.state() == State::Fault);
    let steps = rig.world.x.steps();
    rig.run(500);
    assert_eq!(rig.world.x.steps(), steps);
    assert!(!rig.world.camera.light());
    assert!(rig.world.lamps[2].get() && !rig.world.lamps[1].get());
    let told: Vec<_> = rig.host().faults.iter().map(|f| (f.code, f.stopped)).collect();
    assert_eq!(told, [(FaultCode::EmergencyStop, true)]);
    // Still pressed: clearing does nothing.
    rig.host().say(FromHost::Command(Command::ClearFault));
    rig.run(100);
    assert_eq!(rig.state(), State::Fault);
    // Somebody moved the stage by hand meanwhile.
    rig.world.x.motor.set(2000);
    rig.world.x.carriage.set(1995);
    rig.world.stop.set(false);
    rig.host().say(FromHost::Command(Command::ClearFault));
    rig.until(1000, "homing", |rig| rig.state() == State::Homing);
    assert_eq!(done(&mut rig).kept, 22);
    assert!(
        rig.host().events.iter().all(|e| e.x == Um(30_000 + 20_000 * i32::from(e.shot.tile.0 % 5)))
    );
}

#[test]
fn faults_of_the_machine_stop_it_by_name() {
    type Break = fn(&crate::common::World);
    let cases: [(Break, FaultCode); 5] = [
        (|w| w.x.end.set(60), FaultCode::LimitSwitch),
        (|w| w.camera.dead.set(true), FaultCode::ExposureTimeout),
        (|w| w.camera.busy_for.set(10_000), FaultCode::ExposureTimeout),
        (|w| w.stop.set(true), FaultCode::EmergencyStop),
        (|w| w.memory.borrow_mut().cut_at = Some(1), FaultCode::Storage),
    ];
    for (break_it, code) in cases {
        let mut rig = rig(typical_host());
        rig.until(5000, "first tile", |rig| rig.host().events.len() == 1);
        if code == FaultCode::Storage {
            // Dead flash under a live board: the rig takes it for a power cut, so it is broken by hand.
            rig.world.memory.borrow_mut().broken = true;
        } else {
            break_it(rig.world);
        }
        rig.until(5000, "fault", |rig| rig.state() == State::Fault);
        rig.run(20);
        let fault = rig.host().faults.last().unwrap().clone();
        assert_eq!((fault.code, fault.stopped), (code, true), "{fault:?}");
        assert!((1..96).contains(&fault.text.len()), "said, and not cut: {}", fault.text);
        assert!(!rig.world.camera.light());
        rig.run(600);
        assert_eq!(rig.host().telemetry.unwrap().state, State::Fault);
    }
}

#[test]
fn homing_without_switches_is_a_fault() {
    let mut rig = rig(typical_host());
    rig.world.y.dead_switches.set(true);
    rig.until(10_000, "fault", |rig| rig.state() == State::Fault);
    rig.run(20);
    assert_eq!(rig.host().faults[0].code, FaultCode::HomingTimeout);
}

#[test]
fn a_lost_host_is_waited_for_and_the_scan_goes_on_at_the_right_tile() {
    let mut rig = rig(typical_host());
    rig.until(5000, "sixth event", |rig| rig.host().events.len() == 6);
    (rig.to_board.cut, rig.to_host.cut) = (true, true);
    rig.run(2000);
    assert_eq!(rig.state(), State::Waiting);
    assert!(!rig.world.lamps[0].get());
    assert_eq!(rig.host().downs, 1);
    let seen = rig.host().record.results.len();
    (rig.to_board.cut, rig.to_host.cut) = (false, false);
    let summary = done(&mut rig);
    assert_eq!((summary.kept, summary.skipped), (22, 2));
    assert!(rig.host().record.results.len() > seen);
    // Each decision once, and none missing.
    let decided: Vec<Shot> = rig.host().record.decisions.iter().map(|d| d.shot).collect();
    let results: Vec<Shot> = rig.host().record.results.keys().copied().collect();
    let mut sorted = decided.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, results);
}

#[test]
fn without_a_host_the_board_parks_and_comes_back() {
    let mut rig = rig(typical_host());
    rig.until(5000, "sixth event", |rig| rig.host().events.len() == 6);
    (rig.to_board.cut, rig.to_host.cut) = (true, true);
    rig.until(12_000, "parked", |rig| rig.state() == State::Idle);
    (rig.to_board.cut, rig.to_host.cut) = (false, false);
    assert_eq!(done(&mut rig).kept, 22);
}

#[test]
fn a_restarted_host_goes_on_from_its_record() {
    let mut rig = rig(typical_host());
    rig.until(5000, "sixth event", |rig| rig.host().events.len() == 6);
    let record = rig.host().record.clone();
    rig.host = None;
    rig.run(50);
    rig.host = Some(Host::new(2, plan(5, 5, objective(), |cell| cell != 7), typical, record));
    let summary = done(&mut rig);
    assert_eq!((summary.kept, summary.skipped), (22, 2));
    assert!(rig.host().replies.is_empty(), "the plan was not sent again");
}

#[test]
fn the_watchdog_is_fed_by_progress_alone() {
    let mut rig = rig(typical_host());
    rig.until(5000, "moving", |rig| rig.host().events.len() == 2 && rig.state() == State::Moving);
    rig.until(100, "settling", |rig| rig.state() == State::Settling);
    let fed = rig.world.fed.get();
    rig.step();
    assert_eq!(
        (rig.state(), rig.world.fed.get()),
        (State::Settling, fed),
        "waiting is no progress"
    );
    // Polls at one moment of time move nothing, and a board whose clock stands still must be bitten.
    rig.until(5000, "moving", |rig| rig.host().events.len() == 3 && rig.state() == State::Moving);
    let now = rig.now_us;
    let mut scanner = rig.scanner.take().unwrap();
    scanner.poll(now, &[]);
    let fed = rig.world.fed.get();
    (0..1000).for_each(|_| scanner.poll(now, &[]));
    assert_eq!(rig.world.fed.get(), fed);
}

#[test]
fn a_flash_full_of_anything_is_no_obstacle() {
    let random = |i: usize| ((i as u64 ^ 0x9e37).wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as u8;
    for pattern in [|_| 0u8, |i| (i * 31 % 251) as u8, |i| (i / 3) as u8, random] {
        let mut rig = rig(host_with(typical));
        rig.scanner = None;
        rig.world.memory.borrow_mut().fill(pattern);
        rig.start_board();
        assert_eq!(done(&mut rig).kept, 6);
    }
}

#[test]
fn tissue_below_the_objective_is_skipped_without_counting() {
    let objective = Objective { tissue: Fraction::new(0.5).unwrap(), ..objective() };
    let plan = plan(4, 1, objective, |_| true);
    let mut rig = rig(Host::new(
        1,
        plan,
        |shot| result(shot, &[9.0, 0.0], 1.0, if shot.tile.0 < 2 { 0.4 } else { 0.6 }),
        Record::default(),
    ));
    let summary = done(&mut rig);
    assert_eq!((summary.kept, summary.skipped, summary.rescans), (2, 2, 2));
}
