//! Box-filter resampling by two.

use super::{Kernel, Output, View};

/// Mean over 2 x 2 pixels.
#[derive(Debug, Clone)]
pub struct Down;

/// Every pixel repeated 2 x 2.
#[derive(Debug, Clone)]
pub struct Up;

impl Kernel<1> for Down {
    fn forward(&self, [x]: [View<'_>; 1]) -> Output {
        shrink(x, 0.25)
    }

    fn backward(&self, _: [View<'_>; 1], grad: View<'_>, _: [bool; 1]) -> [Option<Output>; 1] {
        [Some(grow(grad, 0.25))]
    }
}

impl Kernel<1> for Up {
    fn forward(&self, [x]: [View<'_>; 1]) -> Output {
        grow(x, 1.0)
    }

    fn backward(&self, _: [View<'_>; 1], grad: View<'_>, _: [bool; 1]) -> [Option<Output>; 1] {
        [Some(shrink(grad, 1.0))]
    }
}

/// Sums of 2 x 2 pixels times `scale`.
fn shrink(x: View<'_>, scale: f32) -> Output {
    let (h, w) = (x.shape[2], x.shape[3]);
    let mut data = Vec::with_capacity(x.data.len() / 4);
    for rows in x.data.chunks_exact(2 * w) {
        let (top, bottom) = rows.split_at(w);
        let pairs = top.chunks_exact(2).zip(bottom.chunks_exact(2));
        data.extend(pairs.map(|(t, b)| (t[0] + t[1] + b[0] + b[1]) * scale));
    }
    Output { shape: vec![x.shape[0], x.shape[1], h / 2, w / 2], data }
}

/// Every pixel times `scale`, 2 x 2 times.
fn grow(x: View<'_>, scale: f32) -> Output {
    let (h, w) = (x.shape[2], x.shape[3]);
    let mut data = Vec::with_capacity(x.data.len() * 4);
    for row in x.data.chunks_exact(w) {
        let start = data.len();
        for v in row {
            data.extend([v * scale; 2]);
        }
        data.extend_from_within(start..);
    }
    Output { shape: vec![x.shape[0], x.shape[1], 2 * h, 2 * w], data }
}
