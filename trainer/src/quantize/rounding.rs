//! Rounds weights so that a layer's output moves least, not each weight by itself (AdaRound's aim,
//! Nagel et al. 2020, reached without training).
//!
//! With e the weights' errors and H the second moments of what they are multiplied with, the
//! expected squared error of an output is e' H e. Every weight may go to the integer below or
//! above; they are taken in turn, as long as one of them lowers that.

use std::collections::BTreeMap;

use diffbulk::model::pb::{ModelProto, NodeProto};

use super::graph::{self, Kind, Layer};
use super::observe::Tiles;
use super::scheme::{indices, largest};
use crate::Result;

/// Positions of a map that are looked at in each tile.
const POSITIONS: usize = 48;

/// Times all weights are taken in turn.
const SWEEPS: usize = 12;

/// Layers with longer rows of weights are rounded to the nearest: the moments grow with the square.
const LONGEST: usize = 2048;

/// Second moments of what the rows of each layer's weights are multiplied with, about the mean.
#[derive(Debug)]
pub struct Moments(BTreeMap<String, Vec<Moment>>);

/// Covariance of one group's inputs, row-major.
#[derive(Debug, Clone)]
struct Moment {
    size: usize,
    count: f64,
    sums: Vec<f64>,
    products: Vec<f32>,
}

impl Moments {
    /// Looks at the inputs of `layers`.
    pub fn of(model: &ModelProto, layers: &[Layer], tiles: Tiles) -> Result<Self> {
        let nodes = &graph::graph(model)?.node;
        let layers: Vec<(&Layer, Window)> = layers
            .iter()
            .filter(|layer| layer.weights() / layer.outputs() <= LONGEST)
            .filter_map(|layer| Some((layer, Window::of(layer, &nodes[layer.node])?)))
            .collect();
        let mut names: Vec<String> = layers.iter().map(|(layer, _)| layer.input.clone()).collect();
        names.sort();
        names.dedup();
        let shapes = tiles.shapes(model, &names)?;
        let place = |layer: &Layer| names.binary_search(&layer.input).unwrap_or(0);
        let start = || -> Vec<Vec<Moment>> {
            layers.iter().map(|(layer, _)| Moment::empty(layer)).collect()
        };
        let parts = tiles.fold(model, &names, start, |moments, _, tensors| {
            for (moments, (layer, window)) in moments.iter_mut().zip(&layers) {
                let place = place(layer);
                window.gather(layer, &tensors[place], &shapes[place], moments);
            }
        })?;
        let mut all = start();
        for part in parts {
            for (all, part) in all.iter_mut().flatten().zip(part.iter().flatten()) {
                all.merge(part);
            }
        }
        let named = layers.iter().zip(all);
        Ok(Self(
            named
                .map(|((layer, _), mut moments)| {
                    moments.iter_mut().for_each(Moment::centre);
                    (layer.name.clone(), moments)
                })
                .collect(),
        ))
    }

    /// Rounds the integers `values` of a layer's weights `data` again; `scale` is that of the weight
    /// at a position.
    pub fn round(
        &self,
        layer: &Layer,
        data: &[f32],
        values: &mut [i8],
        scale: impl Fn(usize) -> f32,
        bits: u8,
    ) {
        let Some(moments) = self.0.get(&layer.name) else { return };
        for output in 0..layer.outputs() {
            let own: Vec<usize> = indices(&layer.shape, layer.axis, output).collect();
            let moment = &moments[output * layer.groups / layer.outputs()];
            moment.round(&own, data, values, &scale, bits);
        }
    }
}

impl Moment {
    fn empty(layer: &Layer) -> Vec<Self> {
        let size = layer.weights() / layer.outputs();
        let one =
            Self { size, count: 0.0, sums: vec![0.0; size], products: vec![0.0; size * size] };
        vec![one; layer.groups]
    }

    fn add(&mut self, row: &[f32]) {
        self.count += 1.0;
        self.sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
        for (products, &v) in self.products.chunks_exact_mut(self.size).zip(row) {
            if v != 0.0 {
                products.iter_mut().zip(row).for_each(|(product, w)| *product += v * w);
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sums.iter_mut().zip(&other.sums).for_each(|(a, b)| *a += b);
        self.products.iter_mut().zip(&other.products).for_each(|(a, b)| *a += b);
    }

    /// From sums to the covariance: what the mean of the errors does is the bias's to correct.
    fn centre(&mut self) {
        let count = self.count.max(1.0);
        for (products, a) in self.products.chunks_exact_mut(self.size).zip(&self.sums) {
            for (product, b) in products.iter_mut().zip(&self.sums) {
                *product = ((f64::from(*product) - a * b / count) / count) as f32;
            }
        }
    }

    /// Rounds the weights at `own`, in turn, each down or up.
    fn round(
        &self,
        own: &[usize],
        data: &[f32],
        values: &mut [i8],
        scale: impl Fn(usize) -> f32,
        bits: u8,
    ) {
        let end = largest(bits);
        let mut errors: Vec<f32> =
            own.iter().map(|&at| data[at] - scale(at) * f32::from(values[at])).collect();
        // H e, kept up to date.
        let mut pull: Vec<f32> = self
            .products
            .chunks_exact(self.size)
            .map(|row| row.iter().zip(&errors).map(|(h, e)| h * e).sum())
            .collect();
        for _ in 0..SWEEPS {
            let mut moved = false;
            for (i, &at) in own.iter().enumerate() {
                let step = scale(at);
                let now = f32::from(values[at]);
                // The other one of the two integers beside the weight.
                let other = if errors[i] > 0.0 { now + 1.0 } else { now - 1.0 };
                let change = (now - other) * step;
                let row = &self.products[i * self.size..(i + 1) * self.size];
                // The error of what is cut off at the end of the range may be more than a step.
                let beside = other.abs() <= end && (errors[i] + change).abs() <= step;
                if beside && 2.0 * change * pull[i] + change * change * row[i] < 0.0 {
                    values[at] = other as i8;
                    errors[i] += change;
                    pull.iter_mut().zip(row).for_each(|(pull, h)| *pull += change * h);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    }
}

/// Where a layer's weights lie on its input.
struct Window {
    side: [usize; 2],
    strides: [usize; 2],
    before: [usize; 2],
    dilations: [usize; 2],
}

impl Window {
    /// `None` where the padding is left to the runtime.
    fn of(layer: &Layer, node: &NodeProto) -> Option<Self> {
        if node.attribute.iter().any(|a| a.name == "auto_pad" && !matches!(&*a.s, b"" | b"NOTSET"))
        {
            return None;
        }
        let pair = |name: &str, default: usize| {
            let found = node.attribute.iter().find(|attribute| attribute.name == name);
            let at = |place: usize| {
                let value = found.and_then(|attribute| attribute.ints.get(place));
                value.and_then(|&value| usize::try_from(value).ok()).unwrap_or(default)
            };
            [at(0), at(1)]
        };
        let side = match layer.kind {
            Kind::Conv => [layer.shape[2], layer.shape[3]],
            Kind::Gemm | Kind::MatMul => [1, 1],
        };
        Some(Self {
            side,
            strides: pair("strides", 1).map(|stride| stride.max(1)),
            before: pair("pads", 0),
            dilations: pair("dilations", 1),
        })
    }

    /// Adds what some positions of one tile's `tensor` are multiplied with.
    fn gather(&self, layer: &Layer, tensor: &[f32], shape: &[usize], moments: &mut [Moment]) {
        let channels = layer.inputs();
        // A matrix product sees rows of its channels.
        if layer.kind != Kind::Conv {
            let rows = tensor.chunks_exact(channels).take(POSITIONS);
            return rows.for_each(|row| moments[0].add(row));
        }
        let [.., height, width] = *shape else { return };
        let spots = [height / self.strides[0], width / self.strides[1]];
        let every = (spots[0] * spots[1] / POSITIONS).max(1);
        let plane = height * width;
        let per_group = channels / layer.groups;
        let mut row = Vec::with_capacity(per_group * self.side[0] * self.side[1]);
        for spot in (every / 2..spots[0] * spots[1]).step_by(every) {
            let at = [spot / spots[1] * self.strides[0], spot % spots[1] * self.strides[1]];
            for (group, moment) in moments.iter_mut().enumerate() {
                row.clear();
                for channel in group * per_group..(group + 1) * per_group {
                    let plane = &tensor[channel * plane..(channel + 1) * plane];
                    for y in 0..self.side[0] {
                        for x in 0..self.side[1] {
                            let y = (at[0] + y * self.dilations[0]).wrapping_sub(self.before[0]);
                            let x = (at[1] + x * self.dilations[1]).wrapping_sub(self.before[1]);
                            let inside = y < height && x < width;
                            row.push(if inside { plane[y * width + x] } else { 0.0 });
                        }
                    }
                }
                moment.add(&row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(products: &[f32]) -> Moment {
        Moment { size: 2, count: 1.0, sums: vec![0.0; 2], products: products.to_vec() }
    }

    #[test]
    fn inputs_that_go_together_share_their_errors() {
        // Two inputs that are always the same, weights 0.4 and 0.4: to the nearest both are 0, and
        // the output loses 0.8; one of them rounded up, it is 0.2 too much.
        let mut values = [0i8, 0];
        moment(&[1.0, 1.0, 1.0, 1.0]).round(&[0, 1], &[0.4, 0.4], &mut values, |_| 1.0, 8);
        assert_eq!(values, [1, 0]);
        // Inputs that have nothing to do with each other are rounded to the nearest.
        let mut values = [0i8, 0];
        moment(&[1.0, 0.0, 0.0, 1.0]).round(&[0, 1], &[0.4, 0.4], &mut values, |_| 1.0, 8);
        assert_eq!(values, [0, 0]);
    }

    #[test]
    fn no_weight_moves_further_than_a_step_or_out_of_its_range() {
        let mut values = [7i8, 7];
        let weights = [9.0, 6.6];
        moment(&[1.0, 1.0, 1.0, 1.0]).round(&[0, 1], &weights, &mut values, |_| 1.0, 4);
        assert_eq!(values, [7, 7]);
    }

    #[test]
    fn covariance_by_hand() {
        let mut moment = moment(&[0.0; 4]);
        moment.count = 0.0;
        for row in [[1.0, 2.0], [3.0, 2.0], [5.0, 5.0]] {
            moment.add(&row);
        }
        moment.centre();
        // Means 3 and 3: (4 + 0 + 4) / 3, (2 + 0 + 4) / 3, (1 + 1 + 4) / 3.
        for (found, by_hand) in moment.products.iter().zip([8.0 / 3.0, 2.0, 2.0, 2.0]) {
            assert!((found - by_hand).abs() < 1e-6, "{found} {by_hand}");
        }
    }
}
