//! Every message there is, at random, for the property tests.

use diffbulk_link::heapless::{String, Vec};
use diffbulk_link::message::*;
use diffbulk_link::units::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn text<const N: usize>() -> impl Strategy<Value = String<N>> {
    // Two-byte characters among them, cut where a whole one ends.
    vec(prop_oneof![any::<char>(), proptest::char::range('a', 'z')], 0..N).prop_map(|chars| {
        let mut text = String::new();
        chars.into_iter().for_each(|c| drop(text.push(c)));
        text
    })
}

fn list<T: std::fmt::Debug, const N: usize>(
    item: impl Strategy<Value = T>,
) -> impl Strategy<Value = Vec<T, N>> {
    vec(item, 0..=N).prop_map(|items| items.into_iter().collect())
}

fn um() -> impl Strategy<Value = Um> {
    any::<i32>().prop_map(Um)
}

fn scale() -> impl Strategy<Value = UmPerPx> {
    any::<u32>().prop_map(UmPerPx)
}

fn fraction() -> impl Strategy<Value = Fraction> {
    any::<u16>().prop_map(Fraction)
}

/// Finite, so that a message equals itself.
fn number() -> impl Strategy<Value = f32> {
    proptest::num::f32::NORMAL | proptest::num::f32::ZERO | proptest::num::f32::SUBNORMAL
}

pub fn shot() -> impl Strategy<Value = Shot> {
    (any::<u16>(), any::<u8>()).prop_map(|(tile, attempt)| Shot { tile: TileId(tile), attempt })
}

fn event() -> impl Strategy<Value = TileEvent> {
    (shot(), um(), um(), um(), scale(), any::<u64>())
        .prop_map(|(shot, x, y, z, scale, time_ms)| TileEvent { shot, x, y, z, scale, time_ms })
}

fn stop_reason() -> impl Strategy<Value = StopReason> {
    use StopReason::*;
    prop_oneof![Just(Complete), Just(Enough), Just(Commanded)]
}

fn decision() -> impl Strategy<Value = Decision> {
    let action = prop_oneof![
        Just(Action::Keep),
        scale().prop_map(Action::Rescan),
        um().prop_map(Action::Refocus),
        Just(Action::Skip),
        stop_reason().prop_map(Action::Stop),
    ];
    (shot(), action, option::of(number()), any::<bool>())
        .prop_map(|(shot, action, score, hot)| Decision { shot, action, score, hot })
}

fn summary() -> impl Strategy<Value = Summary> {
    let best =
        (any::<u16>(), number()).prop_map(|(tile, score)| Best { tile: TileId(tile), score });
    let stat = (number(), number()).prop_map(|(mean, variance)| GeneStat { mean, variance });
    (any::<u32>(), stop_reason(), any::<[u16; 4]>(), list(best), list(stat)).prop_map(
        |(plan, reason, [kept, skipped, rescans, refocuses], best, genes)| Summary {
            plan: PlanId(plan),
            reason,
            kept,
            skipped,
            rescans,
            refocuses,
            best,
            genes,
        },
    )
}

fn fault() -> impl Strategy<Value = Fault> {
    use FaultCode::*;
    let code = proptest::sample::select(std::vec![
        EmergencyStop,
        LimitSwitch,
        HomingTimeout,
        MoveTimeout,
        ExposureTimeout,
        ResultTimeout,
        BadResult,
        Driver,
        Storage,
        Watchdog,
        Peer,
    ]);
    (code, option::of(shot()), any::<bool>(), text())
        .prop_map(|(code, shot, stopped, text)| Fault { code, shot, stopped, text })
}

fn log() -> impl Strategy<Value = Log> {
    let level =
        prop_oneof![Just(Level::Debug), Just(Level::Info), Just(Level::Warn), Just(Level::Error)];
    (level, text()).prop_map(|(level, text)| Log { level, text })
}

fn telemetry() -> impl Strategy<Value = Telemetry> {
    use State::*;
    let state = proptest::sample::select(std::vec![
        Idle, Homing, Moving, Settling, Exposing, Waiting, Deciding, Done, Fault
    ]);
    (state, any::<u64>(), [um(), um(), um()], any::<u16>(), any::<[u32; 2]>()).prop_map(
        |(state, time_ms, [x, y, z], decided, [bad_frames, resent_frames])| Telemetry {
            state,
            time_ms,
            x,
            y,
            z,
            decided,
            bad_frames,
            resent_frames,
        },
    )
}

fn plan_status() -> impl Strategy<Value = PlanStatus> {
    use PlanReply::*;
    let reply = proptest::sample::select(std::vec![
        Accepted,
        BadGrid,
        BadTiles,
        BadObjective,
        BadId,
        OutOfOrder,
        Unreachable,
        Busy,
        NotKept,
    ]);
    (any::<u32>(), reply).prop_map(|(plan, reply)| PlanStatus { plan: PlanId(plan), reply })
}

pub fn to_host() -> impl Strategy<Value = ToHost> {
    let slide = (text(), um(), um(), scale()).prop_map(|(name, width, height, scale)| Slide {
        name,
        width,
        height,
        scale,
    });
    let encoding = prop_oneof![Just(Encoding::Rgb8), Just(Encoding::Jpeg)];
    let pixels = (shot(), encoding, [um(), um()], any::<[u16; 2]>(), scale(), any::<u32>())
        .prop_map(|(shot, encoding, [x, y], [width, height], scale, bytes)| Pixels {
            shot,
            encoding,
            x,
            y,
            width,
            height,
            scale,
            bytes,
        });
    let chunk = (shot(), any::<u32>(), list(any::<u8>())).prop_map(|(shot, offset, data)| Chunk {
        shot,
        offset,
        data,
    });
    let none = (shot(), prop_oneof![Just(Why::Outside), Just(Why::Failed)]);
    prop_oneof![
        event().prop_map(ToHost::Tile),
        decision().prop_map(ToHost::Decision),
        plan_status().prop_map(ToHost::Plan),
        summary().prop_map(ToHost::Summary),
        telemetry().prop_map(ToHost::Telemetry),
        fault().prop_map(ToHost::Fault),
        log().prop_map(ToHost::Log),
        slide.prop_map(ToHost::Slide),
        pixels.prop_map(ToHost::Pixels),
        chunk.prop_map(ToHost::Chunk),
        none.prop_map(|(shot, why)| ToHost::NoPixels(NoPixels { shot, why })),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let grid = (any::<u16>(), any::<u16>(), um(), um(), um())
        .prop_map(|(columns, rows, x, y, pitch)| Grid { columns, rows, x, y, pitch });
    let rescan = (scale(), any::<u16>()).prop_map(|(scale, most)| Rescan { scale, most });
    let refocus = (fraction(), um(), any::<u8>()).prop_map(|(below, step, most)| Refocus {
        below,
        step,
        most,
    });
    let stop = any::<u16>().prop_map(|hot| Stop { hot });
    let objective =
        (
            list(number()),
            [number(), number()],
            any::<u8>(),
            fraction(),
            option::of(rescan),
            option::of(refocus),
            option::of(stop),
        )
            .prop_map(|(weights, [enter, leave], best, tissue, rescan, refocus, stop)| {
                Objective { weights, enter, leave, best, tissue, rescan, refocus, stop }
            });
    let order = prop_oneof![Just(Order::Serpentine), Just(Order::Raster)];
    (any::<u32>(), grid, any::<u16>(), order, scale(), um(), objective).prop_map(
        |(id, grid, tiles, order, scale, z, objective)| Plan {
            id: PlanId(id),
            grid,
            tiles,
            order,
            scale,
            z,
            objective,
        },
    )
}

fn result() -> impl Strategy<Value = TileResult> {
    let expression = prop_oneof![
        list(any::<u16>().prop_map(F16)).prop_map(Expression::Half),
        (number(), number(), list(any::<i8>()))
            .prop_map(|(scale, offset, codes)| Expression::Scaled { scale, offset, codes }),
    ];
    (shot(), expression, fraction(), fraction(), any::<u32>()).prop_map(
        |(shot, expression, confidence, tissue, latency_us)| TileResult {
            shot,
            expression,
            confidence,
            tissue,
            latency_us,
        },
    )
}

pub fn from_host() -> impl Strategy<Value = FromHost> {
    use {Command::*, Reason::*};
    let cells = (any::<u32>(), any::<u16>(), list(any::<u8>()))
        .prop_map(|(plan, offset, map)| Cells { plan: PlanId(plan), offset, map });
    let reason = proptest::sample::select(std::vec![
        Overload,
        NoTissue,
        Reason::NoPixels,
        BadPixels,
        Failed
    ]);
    let survey = (any::<[u16; 3]>(), any::<u32>()).prop_map(|([part, row, rows], downsample)| {
        Survey { part: TileId(part), downsample: f64::from(downsample) / 8.0, row, rows }
    });
    prop_oneof![
        plan().prop_map(FromHost::Plan),
        cells.prop_map(FromHost::Cells),
        result().prop_map(FromHost::Result),
        (shot(), reason).prop_map(|(shot, reason)| FromHost::NoResult(NoResult { shot, reason })),
        proptest::sample::select(std::vec![Start, Pause, Stop, ClearFault])
            .prop_map(FromHost::Command),
        event().prop_map(FromHost::Capture),
        decision().prop_map(FromHost::Decision),
        summary().prop_map(FromHost::Summary),
        survey.prop_map(FromHost::Survey),
    ]
}

pub fn hello() -> impl Strategy<Value = Hello> {
    let role = prop_oneof![Just(Role::Board), Just(Role::Host), Just(Role::Camera)];
    let model = (text(), any::<[u8; 32]>()).prop_map(|(name, sha256)| Model { name, sha256 });
    let resume = (any::<u32>(), any::<u16>(), option::of(shot()))
        .prop_map(|(plan, decided, next)| Resume { plan: PlanId(plan), decided, next });
    (role, text(), option::of(model), list(text()), option::of(resume)).prop_map(
        |(role, version, model, panel, resume)| Hello { role, version, model, panel, resume },
    )
}
