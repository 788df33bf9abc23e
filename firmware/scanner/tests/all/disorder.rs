//! Whatever comes, in whatever order: nothing dangerous happens on the way, and the scan ends as it should once the
//! machine is left in peace.

use crate::common::host::{Host, Record, result, typical};
use crate::common::pipe::Damage;
use crate::common::{Rig, objective, plan};
use diffbulk_link::message::*;
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Act {
    Wait(u16),
    Say(Command),
    /// A result nobody asked for, or the right one before its time.
    Result(Shot, f32),
    None(Shot, Reason),
    Plan(u16),
    Cells(u16, u8),
    PressStop,
    ReleaseStop,
    CutLink,
    JoinLink,
    RestartBoard,
    RestartHost,
    CameraDies,
    CameraLives,
    PowerCut(u16),
}

fn act() -> impl Strategy<Value = Act> {
    let shot = (0..30u16, 0..3u8).prop_map(|(tile, attempt)| Shot { tile: TileId(tile), attempt });
    let value = prop_oneof![Just(f32::NAN), Just(f32::INFINITY), -10f32..10.0];
    let reason = proptest::sample::select(vec![
        Reason::Overload,
        Reason::NoTissue,
        Reason::NoPixels,
        Reason::Failed,
    ]);
    let command =
        proptest::sample::select(vec![Command::Start, Command::Pause, Command::ClearFault]);
    prop_oneof![
        6 => (0..400u16).prop_map(Act::Wait),
        3 => command.prop_map(Act::Say),
        2 => (shot.clone(), value).prop_map(|(shot, value)| Act::Result(shot, value)),
        1 => (shot, reason).prop_map(|(shot, reason)| Act::None(shot, reason)),
        1 => any::<u16>().prop_map(Act::Plan),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(offset, byte)| Act::Cells(offset, byte)),
        1 => Just(Act::PressStop),
        1 => Just(Act::ReleaseStop),
        1 => Just(Act::CutLink),
        1 => Just(Act::JoinLink),
        1 => Just(Act::RestartBoard),
        1 => Just(Act::RestartHost),
        1 => Just(Act::CameraDies),
        1 => Just(Act::CameraLives),
        1 => (1..200u16).prop_map(Act::PowerCut),
    ]
}

fn host(epoch: u32, record: Record) -> Host {
    Host::new(epoch, plan(5, 5, objective(), |cell| cell != 7), typical, record)
}

fn perform(rig: &mut Rig, act: Act, epoch: &mut u32) {
    match act {
        Act::Wait(ms) => peaceful(rig, ms.into()),
        Act::Say(command) => rig.host().say(FromHost::Command(command)),
        Act::Result(shot, value) => rig.host().say(result(shot, &[value, 1.0], 1.0, 1.0)),
        Act::None(shot, reason) => rig.host().say(FromHost::NoResult(NoResult { shot, reason })),
        Act::Plan(tiles) => {
            let (plan, _) = plan(6, 6, objective(), |cell| cell % 3 == 0);
            rig.host().say(FromHost::Plan(Plan { tiles, ..plan }));
        }
        Act::Cells(offset, byte) => {
            let plan = rig.host().plan.0.id;
            rig.host().say(FromHost::Cells(Cells {
                plan,
                offset,
                map: [byte; 3].into_iter().collect(),
            }));
        }
        Act::PressStop => rig.world.stop.set(true),
        Act::ReleaseStop => rig.world.stop.set(false),
        Act::CutLink => (rig.to_board.cut, rig.to_host.cut) = (true, true),
        Act::JoinLink => (rig.to_board.cut, rig.to_host.cut) = (false, false),
        Act::RestartBoard => rig.start_board(),
        Act::RestartHost => {
            *epoch += 1;
            let record = rig.host().record.clone();
            rig.host = Some(host(*epoch, record));
        }
        Act::CameraDies => rig.world.camera.dead.set(true),
        Act::CameraLives => rig.world.camera.dead.set(false),
        Act::PowerCut(after) => {
            let next = rig.world.memory.borrow().changes + u64::from(after);
            rig.world.memory.borrow_mut().cut_at = Some(next);
        }
    }
}

/// Lets time pass, and looks at every moment of it.
fn peaceful(rig: &mut Rig, ms: u64) {
    let end = rig.now_us + ms * 1000;
    let mut lit_since = None;
    while rig.now_us < end {
        let steps = |rig: &Rig| [&rig.world.x, &rig.world.y, &rig.world.z].map(|axis| axis.steps());
        let (before, pressed) = (steps(rig), rig.world.stop.get());
        rig.step();
        if rig.scanner.is_none() {
            rig.start_board();
            continue;
        }
        let state = rig.state();
        if !matches!(state, State::Moving | State::Homing) || pressed {
            // The step that ends a move is made in the poll that leaves the state.
            assert!(
                before == steps(rig) || (state == State::Settling && !pressed),
                "a step in {state:?}"
            );
        }
        if pressed {
            assert_eq!(state, State::Fault);
        }
        if rig.world.camera.light() {
            assert_eq!(state, State::Exposing, "light");
            let since = *lit_since.get_or_insert(rig.now_us);
            assert!(rig.now_us - since <= 300, "a flash too long");
        } else {
            lit_since = None;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_dangerous_happens_and_the_scan_ends_as_it_should(acts in vec(act(), 1..40)) {
        let mut rig = Rig::new(host(1, Record::default()), Damage::NONE, 1);
        let mut epoch = 1;
        for act in acts {
            perform(&mut rig, act, &mut epoch);
            peaceful(&mut rig, 5);
        }
        // Peace: everything works again, and the host does what a person would have it do.
        rig.world.stop.set(false);
        rig.world.camera.dead.set(false);
        rig.world.memory.borrow_mut().cut_at = None;
        (rig.to_board.cut, rig.to_host.cut) = (false, false);
        epoch += 1;
        let record = rig.host().record.clone();
        rig.host = Some(host(epoch, record));
        for _ in 0..600 {
            if rig.host().record.summary.is_some() {
                break;
            }
            peaceful(&mut rig, 100);
            if rig.state() == State::Fault {
                rig.host().say(FromHost::Command(Command::ClearFault));
            } else if rig.scanner().controller().progress().is_none() {
                // The plan was refused while the fault stood.
                rig.host().send_plan();
            }
        }
        prop_assert!(rig.host().record.summary.is_some(), "{:?} {:?}", rig.state(), rig.scanner().controller().progress());
        let summary = rig.host().record.summary.clone().unwrap();
        prop_assert_eq!(summary.reason, StopReason::Complete);
        prop_assert_eq!(summary.kept + summary.skipped, 24);
        prop_assert!(summary.genes.iter().all(|g| g.mean.is_finite() && g.variance.is_finite()));
    }
}
