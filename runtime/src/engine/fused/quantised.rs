//! Finds the convolutions of a list that can be computed with integers.
//!
//! A QDQ file holds quantise and dequantise nodes around float operators. A pair of them is an
//! activation here ([`Activation::Snap`]): it moves a value to the nearest of 256. A convolution
//! whose inputs are so snapped and whose weights are integers times one scale an output channel
//! becomes a [`Core::IntegerConv`]. Whether weights are such integers is seen from their values, so
//! it does not matter how the file says it.

use std::collections::HashMap;
use std::sync::Arc;

use super::bytes::tables;
use super::list::*;

/// Largest integer weight.
const LARGEST: i32 = 127;

/// How far from an integer a weight or bias may lie, as a share of its scale: float rounding.
const ROUNDING: f32 = 1e-3;

/// Replaces convolutions by integer ones where that gives the same values.
pub(super) fn quantise(graph: &mut FusedGraph) {
    let grids = grids(graph);
    for op in &mut graph.ops {
        let Core::Conv(conv) = &op.core else { continue };
        let known = op.inputs.iter().map(|input| grids.get(&input.buffer).copied());
        let Some(known) = known.collect::<Option<Vec<Grid>>>() else { continue };
        let Some((&input, rest)) = known.split_first() else { continue };
        let depthwise = conv.groups > 1 && conv.groups == conv.channels;
        let fits = rest.iter().all(|grid| *grid == input)
            && (conv.groups == 1 || (depthwise && conv.outputs == conv.groups));
        if let (true, Some((integers, scales))) = (fits, integers(conv)) {
            op.core = Core::IntegerConv(IntegerConv {
                conv: conv.clone(),
                integers,
                digits: vec![],
                scales,
                input,
            });
        }
    }
    drop_snaps(graph, &grids);
    if graph.is_quantised() {
        of_pixels(graph);
    }
}

/// Value of the channel that is appended to an image's bytes, where those are summed as integers: beside weights as
/// much smaller, few digits are enough.
const CONSTANT: f32 = 255.0;

/// In a quantised graph, convolutions of an image's own bytes become integer ones too, of weights of two digits: their
/// sums are then the same in every order.
fn of_pixels(graph: &mut FusedGraph) {
    for maker in 0..graph.ops.len() {
        let op = &graph.ops[maker];
        let (Core::Image { affine: None, constant, .. }, &[Step::Store(map)]) =
            (&op.core, &op.steps[..])
        else {
            continue;
        };
        let (constant, has_constant) = (*constant, *constant == Some(1.0));
        let mut readers =
            (0..graph.ops.len()).filter(|&k| graph.ops[k].reads().any(|id| id == map));
        let (Some(reader), None) = (readers.next(), readers.next()) else { continue };
        let reader = &mut graph.ops[reader];
        let Core::Conv(conv) = &reader.core else { continue };
        if conv.groups != 1
            || reader.inputs != [Input { buffer: map, upsample: 1 }]
            || (constant.is_some() && !has_constant)
        {
            continue;
        }
        let mut weights = conv.weights.values().to_vec();
        let taps = conv.kernel[0] * conv.kernel[1];
        if has_constant {
            for row in weights.chunks_exact_mut(conv.channels * taps) {
                let last = row.len() - taps;
                row[last..].iter_mut().for_each(|weight| *weight /= CONSTANT);
            }
        }
        let ([integers, digit], scales) = digits(&weights, conv.outputs);
        let input = Grid { scale: 1.0, zero_point: 0 };
        let conv = conv.clone();
        reader.core =
            Core::IntegerConv(IntegerConv { conv, integers, digits: vec![digit], scales, input });
        if let Core::Image { constant: Some(value), .. } = &mut graph.ops[maker].core {
            *value = CONSTANT;
        }
    }
}

/// Weights as integers of two digits, and one scale an output channel.
fn digits(weights: &[f32], outputs: usize) -> ([Arc<[i8]>; 2], Arc<[f32]>) {
    let row = (weights.len() / outputs.max(1)).max(1);
    let (mut first, mut second) = (vec![], vec![]);
    let mut scales = vec![];
    for row in weights.chunks_exact(row) {
        let peak = row.iter().fold(0.0f32, |peak, weight| peak.max(weight.abs()));
        // The first digit may be as large as any weight.
        let scale = if peak == 0.0 { 1.0 } else { peak / (LARGEST * BASE) as f32 };
        for weight in row {
            let integer = (f64::from(*weight) / f64::from(scale)).round_ties_even() as i32;
            let last = (integer + BASE / 2).rem_euclid(BASE) - BASE / 2;
            second.push(last as i8);
            first.push(((integer - last) / BASE) as i8);
        }
        scales.push(scale);
    }
    ([first.into(), second.into()], scales.into())
}

/// The values that each buffer's elements are one of, where its makers say so.
fn grids(graph: &FusedGraph) -> HashMap<BufferId, Grid> {
    let mut grids = HashMap::new();
    for op in &graph.ops {
        for pair in op.steps.windows(2) {
            if let [Step::Activate(Activation::Snap(grid)), Step::Store(buffer)] = pair {
                grids.insert(*buffer, *grid);
            }
        }
    }
    grids
}

/// Integer convolutions round what they read: a buffer that only they read needs no rounding when
/// it is written, except by one of them that makes bytes of its sums at once.
fn drop_snaps(graph: &mut FusedGraph, grids: &HashMap<BufferId, Grid>) {
    let read_as_is = |buffer: BufferId| {
        graph.outputs.contains(&buffer)
            || graph.ops.iter().any(|op| {
                let integer = matches!(op.core, Core::IntegerConv(_));
                let inputs = op.inputs.iter().filter(|_| !integer).map(|input| input.buffer);
                let operands = op.steps.iter().filter_map(|step| match step {
                    Step::Add { input, .. } | Step::Multiply(input) => Some(input.buffer),
                    _ => None,
                });
                inputs.chain(operands).any(|read| read == buffer)
            })
    };
    let free: Vec<BufferId> = grids.keys().copied().filter(|&id| !read_as_is(id)).collect();
    for op in &mut graph.ops {
        let bytes = matches!(op.core, Core::IntegerConv(_))
            && tables(&op.steps).is_some_and(|tables| tables.used == op.steps.len());
        if bytes {
            continue;
        }
        let mut at = 0;
        while at + 1 < op.steps.len() {
            let snapped = matches!(
                op.steps[at..],
                [Step::Activate(Activation::Snap(_)), Step::Store(buffer), ..]
                    if free.contains(&buffer)
            );
            // What comes after the store sees the value before it: only a last store may change.
            if snapped && at + 2 == op.steps.len() {
                op.steps.remove(at);
            }
            at += 1;
        }
    }
}

/// Integer weights, and the scale of each output channel.
type Integers = (Arc<[i8]>, Arc<[f32]>);

/// The weights as integers and one scale an output channel, if they are that.
fn integers(conv: &Conv) -> Option<Integers> {
    let weights = conv.weights.values();
    let row = weights.len() / conv.outputs.max(1);
    let mut integers = Vec::with_capacity(weights.len());
    let mut scales = Vec::with_capacity(conv.outputs);
    for row in weights.chunks_exact(row.max(1)) {
        let scale = scale(row)?;
        integers.extend(row.iter().map(|weight| nearest(weight / scale) as i8));
        scales.push(scale);
    }
    Some((integers.into(), scales.into()))
}

/// The nearest whole number of one within 2^22, half to even: the last bit of the sum is 1. Without the instructions for
/// it, rounding is a call.
fn nearest(x: f32) -> f32 {
    const ONES: f32 = 12_582_912.0;
    (x + ONES) - ONES
}

/// The largest scale of which all `weights` are integers of 8 bits.
fn scale(weights: &[f32]) -> Option<f32> {
    let peak = weights.iter().fold(0.0f32, |peak, weight| peak.max(weight.abs()));
    if peak == 0.0 {
        return Some(1.0);
    }
    (1..=LARGEST).map(|largest| peak / largest as f32).find(|scale| {
        weights.iter().all(|weight| {
            let integer = weight / scale;
            (integer - nearest(integer)).abs() <= ROUNDING
        })
    })
}

impl IntegerConv {
    /// A bias as integers of scale input x weight, where it is that: sums are then exact.
    pub fn integer_bias(&self, bias: &Channels) -> Option<Vec<i32>> {
        let product = |output: usize| f64::from(self.input.scale) * f64::from(self.scales[output]);
        (0..self.conv.outputs)
            .map(|output| {
                let integer = f64::from(bias.at(output)) / product(output);
                let rounded = integer.round();
                // float32 holds 24 bits of a bias.
                let allowed = f64::from(ROUNDING).max(integer.abs() * 1e-6);
                (rounded.abs() < f64::from(i32::MAX / 2) && (integer - rounded).abs() <= allowed)
                    .then_some(rounded as i32)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_found_whatever_their_scale() {
        let scale_of = 0.013_37f32;
        let row: Vec<f32> = [-63i8, 5, 0, 17].iter().map(|&q| f32::from(q) * scale_of).collect();
        assert!((scale(&row).unwrap() / scale_of - 1.0).abs() < 1e-6);
        assert_eq!(scale(&[0.0, 0.0]), Some(1.0));
        assert_eq!(scale(&[1.0, 0.123_456_7, 0.765_432_1, 0.333_777]), None);
    }

    #[test]
    fn nearest_rounds_half_to_even() {
        for x in [-127.5f32, -2.5, -0.5, -0.49, 0.0, 0.5, 1.5, 2.4, 126.5, 127.49] {
            assert_eq!(nearest(x), x.round_ties_even(), "{x}");
        }
    }

    #[test]
    fn digits_are_the_weights() {
        let values: Vec<f32> = (0..200).map(|k| ((k * k) as f32 * 0.37).sin() * 1e-3).collect();
        let ([first, second], scales) = digits(&values, 2);
        for (k, value) in values.iter().enumerate() {
            let integer = i32::from(first[k]) * BASE + i32::from(second[k]);
            let scale = f64::from(scales[k / 100]);
            assert!((f64::from(integer) * scale - f64::from(*value)).abs() <= 0.51 * scale, "{k}");
        }
    }

    #[test]
    fn a_grid_rounds_half_to_even_and_saturates() {
        let grid = Grid { scale: 0.5, zero_point: 10 };
        assert_eq!([0.25, 0.75, -99.0, 1e9].map(|x| grid.index(x)), [10, 12, 0, 255]);
        assert_eq!(Activation::Snap(grid).apply(0.6), 0.5);
    }
}
