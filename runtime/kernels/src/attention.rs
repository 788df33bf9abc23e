#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "pointer arithmetic on slices that Attention::run checked"
)]

use std::ops::Range;

use crate::{
    Isa, KernelError,
    aligned::align_scratch,
    math,
    matrix::{self, MOST_ROWS, Panel, Strip, group_start, groups},
    simd::{self, Kernel, Simd},
};

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
    /// How pixels and a head's channels are cut into the matrix kernel's panels.
    token_panels: Vec<Panel>,
    size_panels: Vec<Panel>,
    lanes: usize,
    in_order: bool,
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
        Ok(Self {
            isa,
            tokens,
            heads,
            head_size,
            scale,
            norm_eps,
            token_panels: matrix::layout_for(isa, tokens),
            size_panels: matrix::layout_for(isa, head_size),
            lanes: simd::block(isa).0,
            in_order: false,
        })
    }

    /// The same with every product rounded by itself and sums taken in the order of channels and pixels, the softmax's
    /// division last: the same bits on every instruction set, more slowly.
    pub fn in_order(self) -> Self {
        Self { in_order: true, ..self }
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
        15 + self.parts().iter().sum::<usize>()
    }

    /// Floats of the packed keys, the packed values, a block of queries and a block of scores.
    fn parts(&self) -> [usize; 4] {
        let (tokens, size) =
            (self.tokens.next_multiple_of(16), self.head_size.next_multiple_of(16));
        [
            size * tokens,
            self.tokens.next_multiple_of(16) * size,
            MOST_ROWS * size,
            MOST_ROWS * tokens,
        ]
    }

    /// Computes pixels `tokens` into `dst`, `[tokens.len(), heads * head_size]`, from `qkv`,
    /// `[all tokens, 3 * heads * head_size]`: all heads' queries, then keys, then values, head by head.
    ///
    /// # Panics
    /// A slice that does not fit the shape.
    pub fn run(&self, qkv: &[f32], dst: &mut [f32], scratch: &mut [f32], tokens: Range<usize>) {
        let channels = self.heads * self.head_size;
        assert_eq!(qkv.len(), self.tokens * 3 * channels, "queries, keys and values");
        assert!(
            tokens.start <= tokens.end && tokens.end <= self.tokens,
            "pixels {tokens:?} of {}",
            self.tokens
        );
        assert_eq!(dst.len(), tokens.len() * channels, "attention output");
        assert!(scratch.len() >= self.scratch_len(), "attention scratch");
        let mut rest = align_scratch(scratch, self.scratch_len() - 15);
        let [keys, values, queries, scores] = self.parts().map(|len| {
            let part;
            (part, rest) = std::mem::take(&mut rest).split_at_mut(len);
            part.as_mut_ptr()
        });
        let call = Call {
            op: self,
            qkv: qkv.as_ptr(),
            dst: dst.as_mut_ptr(),
            tokens,
            keys,
            values,
            queries,
            scores,
        };
        // SAFETY: the slices were checked against the shape, the scratch cut as `parts` says.
        unsafe { simd::dispatch(self.isa, call) };
    }
}

struct Call<'a> {
    op: &'a Attention,
    qkv: *const f32,
    dst: *mut f32,
    tokens: Range<usize>,
    keys: *mut f32,
    values: *mut f32,
    queries: *mut f32,
    scores: *mut f32,
}

impl Call<'_> {
    /// Where a pixel's part of one head is: 0 query, 1 key, 2 value.
    #[inline(always)]
    unsafe fn part(&self, token: usize, kind: usize, head: usize) -> *const f32 {
        let size = self.op.head_size;
        self.qkv.add(((token * 3 + kind) * self.op.heads + head) * size)
    }

    /// The normalisation's factor of one part, times `scale`.
    #[inline(always)]
    unsafe fn factor<S: Simd>(&self, part: *const f32, scale: f32) -> f32 {
        match self.op.norm_eps {
            None => scale,
            Some(eps) => scale * math::norm_factor::<S>(part, self.op.head_size, eps),
        }
    }

    /// Keys (transposed) and values of one head into the matrix kernel's panels.
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, head: usize) {
        let (op, lanes) = (self.op, self.op.lanes);
        for panel in &op.token_panels {
            let width = panel.columns * lanes;
            let to = self.keys.add(panel.start * op.head_size);
            for t in 0..width {
                if t < panel.channels {
                    let key = self.part(panel.start + t, 1, head);
                    let factor = self.factor::<S>(key, 1.0);
                    for c in 0..op.head_size {
                        to.add(c * width + t).write(*key.add(c) * factor);
                    }
                } else {
                    for c in 0..op.head_size {
                        to.add(c * width + t).write(0.0);
                    }
                }
            }
        }
        for token in 0..op.tokens {
            let value = self.part(token, 2, head);
            let factor = S::splat(self.factor::<S>(value, 1.0));
            for panel in &op.size_panels {
                let width = panel.columns * lanes;
                let to = self.values.add(panel.start * op.tokens + token * width);
                for c in (0..width).step_by(S::LANES) {
                    let n = S::LANES.min(panel.channels.saturating_sub(c));
                    S::store(
                        to.add(c),
                        S::mul(factor, S::load_first(value.add(panel.start + c), n)),
                    );
                }
            }
        }
    }

    /// `a` times the panels of `b`, for `rows` rows of `k` values each.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(
        &self,
        rows: usize,
        (a, a_stride, k): (*const f32, usize, usize),
        (b, panels): (*const f32, &[Panel]),
        (out, out_stride): (*mut f32, usize),
    ) {
        if self.op.in_order {
            return self.multiply_in_order::<S>(
                rows,
                (a, a_stride, k),
                (b, panels),
                (out, out_stride),
            );
        }
        let mut pointers = [std::ptr::null(); MOST_ROWS];
        for (r, p) in pointers.iter_mut().enumerate().take(rows) {
            *p = a.add(r * a_stride);
        }
        for panel in panels {
            Strip {
                rows,
                columns: panel.columns,
                a: pointers.as_ptr(),
                row_stride: MOST_ROWS,
                k: &k,
                segments: 1,
                b: b.add(panel.start * k),
                bias: std::ptr::null(),
                clip: None,
                out: out.add(panel.start),
                out_stride,
            }
            .compute::<S>();
        }
    }
}

impl Call<'_> {
    /// The same, each sum from the first of `k` values to the last.
    #[inline(always)]
    unsafe fn multiply_in_order<S: Simd>(
        &self,
        rows: usize,
        (a, a_stride, k): (*const f32, usize, usize),
        (b, panels): (*const f32, &[Panel]),
        (out, out_stride): (*mut f32, usize),
    ) {
        const ROWS: usize = 4;
        for panel in panels {
            let width = panel.columns * S::LANES;
            for at in (0..width).step_by(S::LANES) {
                let from = b.add(panel.start * k + at);
                for first in (0..rows).step_by(ROWS) {
                    // Rows past the last are the last one again.
                    let row = |r: usize| (first + r).min(rows - 1);
                    let mut sums = [S::zero(); ROWS];
                    for i in 0..k {
                        let b = S::load(from.add(i * width));
                        for (r, sum) in sums.iter_mut().enumerate() {
                            let a = S::splat(*a.add(row(r) * a_stride + i));
                            *sum = S::add(*sum, S::mul(a, b));
                        }
                    }
                    for (r, sum) in sums.into_iter().enumerate() {
                        S::store(out.add(row(r) * out_stride + panel.start + at), sum);
                    }
                }
            }
        }
    }

    /// One over the sum of `exponentials`, `vectors` floats of which the first `tokens` count.
    #[inline(always)]
    unsafe fn share<S: Simd>(&self, exponentials: *const f32, vectors: usize) -> f32 {
        let mut total = 0.0;
        if self.op.in_order {
            for t in 0..self.op.tokens {
                total += *exponentials.add(t);
            }
        } else {
            let mut sum = S::zero();
            for t in (0..vectors).step_by(S::LANES) {
                sum = S::add(sum, S::load(exponentials.add(t)));
            }
            total = S::sum(sum);
        }
        1.0 / total
    }
}

impl Kernel for Call<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let op = self.op;
        let (size, channels) = (op.head_size, op.heads * op.head_size);
        let (padded_size, padded_tokens) =
            (size.next_multiple_of(16), op.tokens.next_multiple_of(16));
        let vectors = op.tokens.div_ceil(S::LANES) * S::LANES;
        let count = groups(self.tokens.len(), S::ROWS);
        for head in 0..op.heads {
            self.pack::<S>(head);
            for i in 0..count {
                let from = group_start(self.tokens.len(), count, i);
                let rows = group_start(self.tokens.len(), count, i + 1) - from;
                for r in 0..rows {
                    let query = self.part(self.tokens.start + from + r, 0, head);
                    let factor = S::splat(self.factor::<S>(query, op.scale));
                    for c in (0..size).step_by(S::LANES) {
                        let v = S::load_first(query.add(c), S::LANES.min(size - c));
                        S::store(self.queries.add(r * padded_size + c), S::mul(factor, v));
                    }
                }
                let queries = (self.queries.cast_const(), padded_size, size);
                self.multiply::<S>(
                    rows,
                    queries,
                    (self.keys, &op.token_panels),
                    (self.scores, padded_tokens),
                );
                let mut shares = [0.0; MOST_ROWS];
                for (r, share) in shares.iter_mut().enumerate().take(rows) {
                    let scores = self.scores.add(r * padded_tokens);
                    for t in op.tokens..vectors {
                        scores.add(t).write(f32::NEG_INFINITY);
                    }
                    let mut highest = S::splat(f32::NEG_INFINITY);
                    for t in (0..vectors).step_by(S::LANES) {
                        highest = S::max(highest, S::load(scores.add(t)));
                    }
                    let highest = S::splat(S::largest(highest));
                    for t in (0..vectors).step_by(S::LANES) {
                        let e =
                            math::exp::<S>(S::sub(S::load(scores.add(t)), highest), op.in_order);
                        S::store(scores.add(t), e);
                    }
                    *share = self.share::<S>(scores, vectors);
                }
                let weights = (self.scores.cast_const(), padded_tokens, op.tokens);
                // The queries' block is free again and as wide as a head.
                self.multiply::<S>(
                    rows,
                    weights,
                    (self.values, &op.size_panels),
                    (self.queries, padded_size),
                );
                for (r, share) in shares.iter().enumerate().take(rows) {
                    let to = self.dst.add((from + r) * channels + head * size);
                    for c in (0..size).step_by(S::LANES) {
                        let v = S::load(self.queries.add(r * padded_size + c));
                        let v = S::mul(S::splat(*share), v);
                        S::store_first(to.add(c), S::LANES.min(size - c), v);
                    }
                }
            }
        }
    }
}
