//! Arithmetic between integer convolutions, the same in every engine, so that their bytes are equal bit for bit.
//!
//! - A real is rounded to a grid as `round(x * (1 / scale)) + zero point`, half to even, saturating
//!   ([`Grid::index`]). The reciprocal is rounded to float32 once: a product is the same on every processor, a
//!   quotient is not on graphics processors.
//! - A byte stands for the real `scale * (q - zero point)` ([`Grid::real`]).
//! - A sum becomes a byte as `round(float(sum) * factor) + zero point`, with one factor an output channel
//!   ([`IntegerConv::factors`]). Where the bias is no integer ([`IntegerConv::bias`]), the real
//!   `float(sum) * product + bias`, rounded after each operation, is rounded to the grid.
//! - Weights of more than 8 bits are several digits ([`IntegerConv::digits`]), each digit's sum an integer by itself.
//!   As reals, each times its power of the base, they are added one after the other, the first digit's first.
//! - What depends on nothing but one byte is a table of 256 values, computed here ([`tables`]).
//! - Reals between bytes are made by additions and products in a fixed order, each rounded by itself: exponentials,
//!   quotients and roots as the kernels' `math` has them, sums over the channels of a pixel as sixteen sums of every
//!   sixteenth, attention in the order of channels and pixels. What is left to each processor's own order is a
//!   convolution or a matrix of reals, a group norm, means and deviations over a map.

use super::list::*;

impl FusedGraph {
    /// Whether there are integer convolutions, so that all of this holds.
    pub fn is_quantised(&self) -> bool {
        self.ops.iter().any(|op| matches!(op.core, Core::IntegerConv(_)))
    }
}

/// The steps of an integer convolution as far as every value depends on nothing but one byte.
#[derive(Debug, Clone)]
pub struct Tables {
    /// What the sums are rounded to.
    pub grid: Grid,
    /// What each byte is stored as, and where.
    pub stores: Vec<(BufferId, Box<[f32; 256]>)>,
    /// What each byte has become after these steps.
    pub last: Box<[f32; 256]>,
    /// Steps taken.
    pub used: usize,
}

/// `[offset] [clip] snap`, then functions of one value and stores.
pub fn tables(steps: &[Step]) -> Option<Tables> {
    let mut at = usize::from(matches!(steps.first(), Some(Step::Offset(_))));
    let mut limits = None;
    if let Some(Step::Activate(Activation::Clip { low, high })) = steps.get(at) {
        at += 1;
        limits = Some((*low, *high));
    }
    let Some(&Step::Activate(Activation::Snap(grid))) = steps.get(at) else { return None };
    at += 1;
    // Rounding keeps order, so bytes may be held within limits as well as reals.
    let (low, high) = limits.map_or((0, 255), |(low, high)| (grid.index(low), grid.index(high)));
    let held = |q: usize| (q as u8).max(low).min(high);
    let mut last: Box<[f32; 256]> = Box::new(std::array::from_fn(|q| grid.real(held(q))));
    let mut stores: Vec<(BufferId, Box<[f32; 256]>)> = vec![];
    for step in &steps[at..] {
        match step {
            Step::Activate(activation) => last.iter_mut().for_each(|x| *x = activation.apply(*x)),
            Step::Scale(Channels::One(factor)) => last.iter_mut().for_each(|x| *x *= factor),
            Step::Offset(Channels::One(offset)) => last.iter_mut().for_each(|x| *x += offset),
            Step::Store(buffer) => stores.push((*buffer, last.clone())),
            Step::Load(buffer) => match stores.iter().find(|(id, _)| id == buffer) {
                Some((_, table)) => last = table.clone(),
                None => break,
            },
            _ => break,
        }
        at += 1;
    }
    Some(Tables { grid, stores, last, used: at })
}

/// What is added to the sums of an integer convolution.
#[derive(Debug, Clone, PartialEq)]
pub enum Bias {
    /// Nothing.
    None,
    /// Integers of scale input x weight, added before anything is rounded.
    Integers(Vec<i32>),
    /// Reals, added after the sums have become reals.
    Reals(Vec<f32>),
}

impl IntegerConv {
    /// The bias among `steps`, the convolution's own.
    pub fn bias(&self, steps: &[Step]) -> Bias {
        let Some(Step::Offset(bias)) = steps.first() else { return Bias::None };
        match self.integer_bias(bias) {
            Some(integers) if self.digits.is_empty() => Bias::Integers(integers),
            _ => Bias::Reals(bias.to_vec(self.conv.outputs)),
        }
    }

    /// What the sum of each digit of the weights, the first one's first, is multiplied with before they are added.
    pub fn powers(&self) -> Vec<f32> {
        let powers = (0..=self.digits.len() as i32).rev();
        powers.map(|power| (BASE as f32).powi(power)).collect()
    }

    /// Real over integer sum, one an output channel.
    pub fn products(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| scale * self.input.scale).collect()
    }

    /// Steps of `grid` over integer sum, one an output channel.
    pub fn factors(&self, grid: Grid) -> Vec<f32> {
        self.products().iter().map(|product| product / grid.scale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        Grid { scale: 0.5, zero_point: 100 }
    }

    #[test]
    fn steps_of_one_byte_become_tables() {
        let snap = Step::Activate(Activation::Snap(grid()));
        let silu = Step::Activate(Activation::Silu);
        let add = Step::Add { input: Input { buffer: 9, upsample: 1 }, scale: 1.0 };
        let steps = [
            Step::Offset(Channels::One(1.0)),
            snap.clone(),
            Step::Store(3),
            silu,
            Step::Store(4),
            add.clone(),
        ];
        let found = tables(&steps).unwrap();
        assert_eq!(found.used, 5);
        assert_eq!(found.stores[0].1[102], 1.0);
        assert!((found.stores[1].1[102] - 1.0 / (1.0 + (-1.0f32).exp())).abs() < 1e-6);
        assert_eq!(found.last, found.stores[1].1);
        assert!(tables(&[add, snap]).is_none());
    }

    #[test]
    fn a_clip_holds_bytes_as_it_holds_reals() {
        let clip = Activation::Clip { low: -3.3, high: 6.1 };
        let steps =
            [Step::Activate(clip), Step::Activate(Activation::Snap(grid())), Step::Store(0)];
        let found = tables(&steps).unwrap();
        for k in -200..400 {
            let x = k as f32 * 0.11;
            let by_reals = Activation::Snap(grid()).apply(clip.apply(x));
            assert_eq!(found.stores[0].1[usize::from(grid().index(x))], by_reals, "{x}");
        }
    }
}
