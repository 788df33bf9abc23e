/// A function of one value. NaN stays NaN in each.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Activation {
    /// The value itself.
    #[default]
    None,
    /// `x / (1 + exp(-x))`, also called swish.
    Silu,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// [`Activation::Silu`] with the same bits on every instruction set, more slowly.
    ExactSilu,
    /// [`Activation::Sigmoid`] likewise.
    ExactSigmoid,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, low), high)`; ReLU6 is `Clip { low: 0.0, high: 6.0 }`.
    Clip {
        /// Lower bound.
        low: f32,
        /// Upper bound.
        high: f32,
    },
}

impl Activation {
    /// The same, with the same bits on every instruction set.
    pub fn exact(self) -> Self {
        match self {
            Self::Silu => Self::ExactSilu,
            Self::Sigmoid => Self::ExactSigmoid,
            other => other,
        }
    }

    /// The reference value.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Silu | Self::ExactSilu if x == f32::NEG_INFINITY => 0.0,
            Self::Silu | Self::ExactSilu => x / (1.0 + (-x).exp()),
            Self::Sigmoid | Self::ExactSigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Relu => clip(x, 0.0, f32::INFINITY),
            Self::Clip { low, high } => clip(x, low, high),
        }
    }
}

/// `f32::clamp` without its panic, NaN handed on.
fn clip(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}
