//! What kernels multiply: reals, or bytes four a word, as text of a shader.

/// What four channels are kept as.
pub(super) enum Elements {
    /// Reals. The weights are rows of outputs, one for each channel; `finish` takes a sum.
    Reals,
    /// Bytes, four a word. The weights are rows of outputs' words, one for each word; `finish_sum` takes the
    /// sum as reals.
    Bytes {
        /// The word that stands where a window leaves its map.
        outside: String,
        /// For each digit of the weights, what its sums begin with, of the channels `c4`.
        begin: Vec<String>,
        /// What each digit's sums count for.
        powers: Vec<f32>,
        /// Elements of weights from a digit to the next.
        plane: String,
    },
}

impl Elements {
    /// Types of four channels of a pixel, and of a row of four outputs' weights.
    pub(super) fn types(&self) -> [&'static str; 2] {
        if matches!(self, Self::Reals) { ["S", "S"] } else { ["u32", "vec4<u32>"] }
    }

    /// Rows of weights to an element of the left side.
    pub(super) fn rows(&self) -> usize {
        if matches!(self, Self::Reals) { 4 } else { 1 }
    }

    /// What is read at `at`, or 0 where it is not `inside`.
    pub(super) fn fetch(&self, at: &str, inside: &str) -> String {
        match self {
            Self::Reals => format!("select(S(), arena[{at}], {inside})"),
            Self::Bytes { outside, .. } => format!("select({outside}, words[{at}], {inside})"),
        }
    }

    /// The text of an address in the memory these are in.
    pub(super) fn place(&self, address: String) -> String {
        match self {
            Self::Reals => address,
            Self::Bytes { .. } => address.replace("base +", "words_base +"),
        }
    }

    /// The value that an element in shared memory is multiplied as.
    pub(super) fn value(&self, element: &str) -> String {
        match self {
            Self::Reals => format!("V({element})"),
            Self::Bytes { .. } => element.to_owned(),
        }
    }

    /// Declaration of a sum that nothing has been added to.
    pub(super) fn empty(&self) -> &'static str {
        if matches!(self, Self::Reals) { "V(0.0)" } else { "vec4<i32>(0)" }
    }

    /// Statement that adds `left` times row `lane` of the weights, `right`, to `sum`.
    pub(super) fn multiply(&self, sum: &str, left: &str, lane: usize, right: &str) -> String {
        match self {
            Self::Reals => {
                let x = ["x", "y", "z", "w"][lane];
                format!("{sum} = fma(V({left}.{x}), {right}, {sum});")
            }
            Self::Bytes { .. } => {
                let dots =
                    ["x", "y", "z", "w"].map(|x| format!("dot4I8Packed({left}, {right}.{x})"));
                format!("{sum} += vec4<i32>({});", dots.join(", "))
            }
        }
    }

    /// Digits that weights are made of, each with a sum of its own.
    pub(super) fn digits(&self) -> usize {
        if let Self::Bytes { begin, .. } = self { begin.len() } else { 1 }
    }

    /// The sums of all digits as reals.
    pub(super) fn real(&self, sums: &[String]) -> String {
        let Self::Bytes { begin, powers, .. } = self else { return sums.concat() };
        // Powers of two: no product is rounded.
        let parts = sums.iter().zip(begin).zip(powers).map(|((sum, begin), power)| match sums {
            [_] => format!("V({sum} + {begin})"),
            _ => format!("V({sum} + {begin}) * {power:?}"),
        });
        parts.reduce(|so_far, next| format!("exact({so_far} + {next})")).unwrap_or_default()
    }

    /// Statement that hands over the sums of all digits.
    pub(super) fn finish(&self, sums: &[String]) -> String {
        let name = if matches!(self, Self::Reals) { "finish" } else { "finish_sum" };
        format!("{name}({}, pixel, c4);", self.real(sums))
    }
}
