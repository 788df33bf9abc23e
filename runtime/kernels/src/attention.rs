use std::ops::Range;

use crate::{Isa, KernelError};

/// Multi-head self-attention over a map's pixels, from one map of queries, keys and values:
/// `softmax(scale * q k^T) v` for each head, where q, k and v of each pixel and head may be pixel-normed first.
#[derive(Debug, Clone)]
pub struct Attention {
    isa: Isa,
    tokens: usize,
    heads: usize,
    head_size: usize,
    scale: f32,
    norm_eps: Option<f32>,
}

impl Attention {
    /// `tokens` pixels, `heads` heads of `head_size` channels, `scale` on the scores (usually `1/sqrt(head_size)`),
    /// and the eps of the normalisation of q, k and v over each head's channels, if there is one.
    ///
    /// # Errors
    /// A size of 0, or an instruction set this machine lacks.
    pub fn new(
        isa: Isa,
        tokens: usize,
        heads: usize,
        head_size: usize,
        scale: f32,
        norm_eps: Option<f32>,
    ) -> Result<Self, KernelError> {
        let isa = isa.require()?;
        if tokens == 0 || heads == 0 || head_size == 0 {
            return Err(KernelError::Shape(format!(
                "attention of {tokens} pixels, {heads} heads of {head_size} channels; none may be 0"
            )));
        }
        Ok(Self { isa, tokens, heads, head_size, scale, norm_eps })
    }

    /// The instruction set it was prepared for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Multiply-adds of the two products.
    pub fn macs(&self) -> u64 {
        2 * (self.tokens * self.tokens) as u64 * (self.heads * self.head_size) as u64
    }

    /// Floats of scratch a call needs.
    pub fn scratch_len(&self) -> usize {
        3 * self.tokens * self.heads * self.head_size + self.tokens
    }

    /// Computes pixels `tokens` into `dst`, `[tokens.len(), heads * head_size]`, from `qkv`,
    /// `[all tokens, 3 * heads * head_size]`: all heads' queries, then keys, then values, head by head.
    ///
    /// # Panics
    /// A slice that does not fit the shape.
    pub fn run(&self, qkv: &[f32], dst: &mut [f32], scratch: &mut [f32], tokens: Range<usize>) {
        let (size, channels) = (self.head_size, self.heads * self.head_size);
        assert_eq!(qkv.len(), self.tokens * 3 * channels, "queries, keys and values");
        assert!(
            tokens.start <= tokens.end && tokens.end <= self.tokens,
            "pixels {tokens:?} of {}",
            self.tokens
        );
        assert_eq!(dst.len(), tokens.len() * channels, "attention output");
        assert!(scratch.len() >= self.scratch_len(), "attention scratch");
        let (normed, rest) = scratch.split_at_mut(qkv.len());
        let weights = &mut rest[..self.tokens];
        normed.copy_from_slice(qkv);
        if let Some(eps) = self.norm_eps {
            for part in normed.chunks_exact_mut(size) {
                let mean = part.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / size as f64;
                let factor = 1.0 / (mean.sqrt() as f32 + eps);
                part.iter_mut().for_each(|v| *v *= factor);
            }
        }
        let part = |token: usize, kind: usize, head: usize| {
            &normed[(token * 3 + kind) * channels + head * size..][..size]
        };
        for (i, token) in tokens.enumerate() {
            for head in 0..self.heads {
                let q = part(token, 0, head);
                let mut highest = f32::NEG_INFINITY;
                for (k, w) in weights.iter_mut().enumerate() {
                    *w = self.scale
                        * q.iter().zip(part(k, 1, head)).map(|(a, b)| a * b).sum::<f32>();
                    highest = highest.max(*w);
                }
                let mut total = 0.0;
                for w in weights.iter_mut() {
                    *w = (*w - highest).exp();
                    total += *w;
                }
                let out = &mut dst[i * channels + head * size..][..size];
                out.fill(0.0);
                for (v, w) in weights.iter().enumerate() {
                    for (o, x) in out.iter_mut().zip(part(v, 2, head)) {
                        *o += w * x;
                    }
                }
                out.iter_mut().for_each(|o| *o /= total);
            }
        }
    }
}
