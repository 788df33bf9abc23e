//! Power cut at every single write to flash: plan, progress and scan come out the same.

use crate::common::host::{Host, Record, typical};
use crate::common::pipe::Damage;
use crate::common::{Rig, objective, plan};
use diffbulk_link::message::*;

fn host() -> Host {
    // Wide, so that the bit map spans chunks, and few tiles, so that there are few writes to cut.
    Host::new(
        1,
        plan(70, 20, objective(), |cell| cell % 97 == 3 && cell < 700),
        typical,
        Record::default(),
    )
}

fn finish(rig: &mut Rig) -> (Summary, Vec<Decision>) {
    rig.until(120_000, "done", |rig| {
        rig.host().record.summary.is_some() && rig.state() == State::Done
    });
    let mut decisions = rig.host().record.decisions.clone();
    decisions.sort_by_key(|d| d.shot);
    (rig.host().record.summary.clone().unwrap(), decisions)
}

#[test]
fn a_scan_survives_a_power_cut_at_every_write() {
    let mut rig = Rig::new(host(), Damage::NONE, 1);
    let expected = finish(&mut rig);
    let changes = rig.world.memory.borrow().changes;
    assert!(changes > 200, "{changes}");
    for cut_at in 1..=changes {
        let mut rig = Rig::new(host(), Damage::NONE, 1);
        // From the very first write, which counts the start.
        rig.scanner = None;
        rig.world.memory.borrow_mut().blank();
        rig.world.memory.borrow_mut().cut_at = Some(cut_at);
        rig.start();
        for _ in 0..100_000 {
            if rig.world.memory.borrow().is_dead() || rig.host().record.summary.is_some() {
                break;
            }
            rig.step();
        }
        rig.scanner = None;
        rig.start_board();
        assert_eq!(finish(&mut rig), expected, "power cut at write {cut_at}");
        // The shot that was cut is taken again, and no other.
        let again = rig.host().events.len() - rig.host().record.results.len();
        assert!(again <= 1, "power cut at write {cut_at}: {again} shots taken again");
    }
}

#[test]
fn power_cut_again_and_again_still_ends_in_the_same_scan() {
    let expected = finish(&mut Rig::new(host(), Damage::NONE, 1));
    for every in [20, 37, 61] {
        let mut rig = Rig::new(host(), Damage::NONE, 1);
        let mut cuts = 0;
        while rig.host().record.summary.is_none() {
            let next = rig.world.memory.borrow().changes + every + cuts;
            rig.world.memory.borrow_mut().cut_at = Some(next);
            for _ in 0..100_000 {
                if rig.world.memory.borrow().is_dead() || rig.host().record.summary.is_some() {
                    break;
                }
                rig.step();
            }
            rig.scanner = None;
            rig.start_board();
            cuts += 1;
            assert!(cuts < 500);
        }
        assert!(cuts > 2);
        assert_eq!(finish(&mut rig), expected, "cut every {every} writes or more");
    }
}

#[test]
fn a_full_scan_wears_the_flash_evenly_and_survives_cuts_while_pages_turn() {
    // Enough progress records for every page to be erased and written anew.
    let plan = || plan(32, 16, Objective { rescan: None, refocus: None, ..objective() }, |_| true);
    let host = || Host::new(1, plan(), typical, Record::default());
    let mut rig = Rig::new(host(), Damage::NONE, 1);
    let expected = finish(&mut rig);
    let changes = rig.world.memory.borrow().changes;
    for cut_at in (changes / 2..changes).step_by((changes / 12) as usize) {
        let mut rig = Rig::new(host(), Damage::NONE, 1);
        rig.world.memory.borrow_mut().cut_at = Some(cut_at);
        rig.until(200_000, "the cut", |rig| rig.scanner.is_none());
        rig.start_board();
        assert_eq!(finish(&mut rig), expected, "power cut at write {cut_at}");
        // The shot that was cut is taken again, and no other.
        let again = rig.host().events.len() - rig.host().record.results.len();
        assert!(again <= 1, "power cut at write {cut_at}: {again} shots taken again");
    }
}
