//! Messages through postcard: round trip, and the sizes they are given room for.

use diffbulk_link::message::{BoardToHost, Expression, FromHost, Grid, Hello, PlanReply, ToHost};
use diffbulk_link::units::{F16, Um};
use postcard::experimental::max_size::MaxSize;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

fn round_trip<T: Serialize + DeserializeOwned + MaxSize + PartialEq + Debug>(
    message: &T,
) -> Result<(), TestCaseError> {
    let mut room = vec![0; T::POSTCARD_MAX_SIZE];
    let bytes =
        postcard::to_slice(message, &mut room).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let (back, rest) =
        postcard::take_from_bytes::<T>(bytes).map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(message, &back);
    prop_assert!(rest.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4 * ProptestConfig::default().cases))]

    #[test]
    fn every_message_to_the_host_comes_back_and_fits(message in crate::common::to_host()) {
        round_trip(&message)?;
    }

    #[test]
    fn every_message_from_the_host_comes_back_and_fits(message in crate::common::from_host()) {
        round_trip(&message)?;
    }

    #[test]
    fn every_hello_comes_back_and_fits(hello in crate::common::hello()) {
        round_trip(&hello)?;
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = postcard::take_from_bytes::<Hello>(&bytes);
        if let Ok((FromHost::Plan(plan), map)) = postcard::take_from_bytes::<FromHost>(&bytes) {
            plan.check(map);
        }
        if let Ok((FromHost::Result(result), _)) = postcard::take_from_bytes::<FromHost>(&bytes) {
            let _ = result.expression.values();
        }
        let _ = postcard::take_from_bytes::<ToHost>(&bytes);
        let _ = postcard::take_from_bytes::<BoardToHost>(&bytes);
    }

    #[test]
    fn what_a_board_sends_is_what_a_host_reads(message in crate::common::to_host()) {
        let mut room = vec![0; ToHost::<1024>::POSTCARD_MAX_SIZE];
        let bytes = postcard::to_slice(&message, &mut room).unwrap();
        match (postcard::from_bytes::<BoardToHost>(bytes), &message) {
            (Ok(narrow), _) => {
                let mut again = vec![0; BoardToHost::POSTCARD_MAX_SIZE];
                prop_assert_eq!(postcard::to_slice(&narrow, &mut again).unwrap(), bytes);
            }
            (Err(_), ToHost::Chunk(chunk)) => prop_assert!(!chunk.data.is_empty()),
            (Err(e), _) => prop_assert!(false, "{}", e),
        }
    }

    #[test]
    fn a_grid_s_places_and_tiles_agree(columns in 0..300u16, rows in 0..300u16, tile in any::<u16>()) {
        let grid = Grid { columns, rows, x: Um(5), y: Um(-5), pitch: Um(100) };
        let tile = diffbulk_link::message::TileId(tile);
        if let Some((column, row)) = grid.place(tile) {
            prop_assert_eq!(grid.tile(column, row), Some(tile));
            prop_assert_eq!(
                grid.centre(tile),
                Some((Um(5 + 100 * i32::from(column)), Um(-5 + 100 * i32::from(row))))
            );
        } else {
            prop_assert!(usize::from(tile.0) >= usize::from(columns) * usize::from(rows));
        }
    }
}

/// The sizes firmware and host reserve. A change here is a change of the wire: raise `schema::PROTOCOL` if framing
/// or session rules changed with it; the schema key changes by itself.
const _: () = {
    assert!(BoardToHost::POSTCARD_MAX_SIZE <= 320);
    assert!(FromHost::POSTCARD_MAX_SIZE <= 320);
    assert!(Hello::POSTCARD_MAX_SIZE <= 640);
    assert!(ToHost::<1024>::POSTCARD_MAX_SIZE <= 1060);
};

#[test]
fn texts_are_cut_at_their_room_between_characters() {
    use diffbulk_link::message::text;
    assert_eq!(text::<8>("short"), "short");
    assert_eq!(text::<8>("exactly8"), "exactly8");
    assert_eq!(text::<8>("one too m"), "one too ");
    assert_eq!(text::<4>("aéé"), "aé");
    assert_eq!(text::<5>(&format_args!("{}-{}", 123, 456)), "123-4");
}

#[test]
fn expressions_come_back_and_refuse_what_is_not_finite() {
    let values = [0.5, -1.25, 3.0];
    assert_eq!(Expression::half(&values).unwrap().values().unwrap(), values);
    assert_eq!(Expression::half(&[0.0; 17]), None);
    let scaled =
        Expression::Scaled { scale: 0.25, offset: 1.0, codes: [-4, 0, 127].into_iter().collect() };
    assert_eq!(scaled.values().unwrap(), [0.0, 1.0, 32.75]);
    let bad = Expression::Half([F16::new(0.0), F16::new(f32::NAN)].into_iter().collect());
    assert_eq!(bad.values().unwrap_err().gene, 1);
    for (scale, offset) in [(f32::NAN, 0.0), (1.0, f32::INFINITY), (f32::MAX, f32::MAX)] {
        let bad = Expression::Scaled { scale, offset, codes: [2].into_iter().collect() };
        assert_eq!(bad.values().unwrap_err().gene, 0);
    }
}

#[test]
fn plans_are_checked() {
    use diffbulk_link::message::{Objective, Order, Plan, PlanId};
    let objective = Objective {
        weights: [1.0, -0.5].into_iter().collect(),
        enter: 1.0,
        leave: 0.5,
        best: 8,
        tissue: diffbulk_link::units::Fraction::ZERO,
        rescan: None,
        refocus: None,
        stop: None,
    };
    let grid = Grid { columns: 3, rows: 3, x: Um(0), y: Um(0), pitch: Um(56_000) };
    let plan = Plan {
        id: PlanId(0),
        grid,
        tiles: 4,
        order: Order::Serpentine,
        scale: diffbulk_link::units::UmPerPx(500_000),
        z: Um(0),
        objective,
    };
    let map = [0b0001_0101, 0b1];
    let good = Plan { id: plan.identify(&map), ..plan.clone() };
    assert_eq!(good.check(&map), PlanReply::Accepted);
    assert_eq!(plan.check(&map), PlanReply::BadId);
    assert_eq!(good.check(&map[..1]), PlanReply::BadGrid);
    assert_eq!(good.check(&[0b0001_0101, 0b10]), PlanReply::BadGrid, "a bit past the last cell");
    assert_eq!(good.check(&[0b0001_0111, 0b1]), PlanReply::BadTiles);
    assert_eq!(good.check(&[0b0001_0110, 0b1]), PlanReply::BadId, "another tile");
    let with = |change: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        change(&mut plan);
        plan.id = plan.identify(&map);
        plan.check(&map)
    };
    assert_eq!(with(&|p| p.objective.weights[1] = f32::NAN), PlanReply::BadObjective);
    assert_eq!(with(&|p| p.objective.enter = f32::INFINITY), PlanReply::BadObjective);
    assert_eq!(with(&|p| p.objective.leave = 2.0), PlanReply::BadObjective);
    assert_eq!(with(&|p| p.objective.best = 9), PlanReply::BadObjective);
    assert_eq!(with(&|p| (p.grid.columns, p.grid.rows) = (300, 300)), PlanReply::BadGrid);
    assert_eq!(with(&|p| (p.grid.columns, p.grid.rows) = (0, 3)), PlanReply::BadGrid);
    assert_eq!(with(&|p| p.tiles = 0), PlanReply::BadTiles);
}
