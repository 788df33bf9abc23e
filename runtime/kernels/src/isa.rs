//! Which instruction set the kernels use: found at run time, forced by `DIFFBULK_CPU`.

use std::{fmt, str::FromStr, sync::OnceLock};

/// An instruction set some kernel is compiled for. Later ones of one architecture include the earlier ones, except
/// where said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; runs everywhere and is the reference in tests.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// AVX2 with the VNNI dot product on 256-bit registers (AVX-VNNI).
    AvxVnni,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with the VNNI dot product.
    Avx512Vnni,
    /// aarch64 with Advanced SIMD.
    Neon,
    /// Neon with the 8-bit dot product (SDOT).
    NeonDot,
    /// NeonDot with 8-bit matrix products (SMMLA).
    NeonI8mm,
    /// Neon with half-precision arithmetic: convolutions keep weights and what they read in 16 bits, which rounds more
    /// coarsely ([`ConvAlgorithm::GemmHalf`](crate::ConvAlgorithm::GemmHalf)). Used only when asked for by name.
    NeonFp16,
}

/// Environment variable that forces an instruction set.
pub const ISA_VARIABLE: &str = "DIFFBULK_CPU";

const ALL: [Isa; 9] = [
    Isa::Scalar,
    Isa::Avx2,
    Isa::AvxVnni,
    Isa::Avx512,
    Isa::Avx512Vnni,
    Isa::Neon,
    Isa::NeonDot,
    Isa::NeonI8mm,
    Isa::NeonFp16,
];

impl Isa {
    /// The name used in `DIFFBULK_CPU` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
            Self::NeonI8mm => "neon-i8mm",
            Self::NeonFp16 => "neon-fp16",
        }
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        static FOUND: OnceLock<[bool; ALL.len()]> = OnceLock::new();
        let found = FOUND.get_or_init(|| ALL.map(detect));
        found[ALL.iter().position(|i| *i == self).expect("ALL lists every instruction set")]
    }

    /// Every instruction set of this machine, weakest first.
    pub fn available() -> Vec<Self> {
        ALL.into_iter().filter(|i| i.is_available()).collect()
    }

    /// The strongest that computes in full precision.
    pub fn best() -> Self {
        let mut all = Self::available();
        all.retain(|i| *i != Self::NeonFp16);
        all.pop().unwrap_or(Self::Scalar)
    }

    /// The one `DIFFBULK_CPU` names, or the best.
    ///
    /// # Errors
    /// An unknown name, or an instruction set this machine lacks; the message lists those it has.
    pub fn from_environment() -> Result<Self, IsaError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.trim().is_empty() => name.trim().parse(),
            _ => Ok(Self::best()),
        }
    }

    /// `self`, if this machine has it.
    ///
    /// # Errors
    /// The machine lacks it.
    pub fn require(self) -> Result<Self, IsaError> {
        if self.is_available() {
            Ok(self)
        } else {
            Err(IsaError { name: self.name().to_string(), known: true })
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        match ALL.into_iter().find(|i| i.name().eq_ignore_ascii_case(name)) {
            Some(isa) => isa.require(),
            None => Err(IsaError { name: name.to_string(), known: false }),
        }
    }
}

/// An instruction set that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsaError {
    name: String,
    known: bool,
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.known {
            "this machine lacks the instruction set"
        } else {
            "unknown instruction set"
        };
        let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        write!(
            f,
            "{what} {:?}; set {ISA_VARIABLE} to one of {}, or unset it",
            self.name,
            names.join(", ")
        )
    }
}

impl std::error::Error for IsaError {}

#[cfg(target_arch = "x86_64")]
fn detect(isa: Isa) -> bool {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma") && has!("f16c");
    let avx512 =
        avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
    match isa {
        Isa::Scalar => true,
        Isa::Avx2 => avx2,
        Isa::AvxVnni => avx2 && has!("avxvnni"),
        Isa::Avx512 => avx512,
        Isa::Avx512Vnni => avx512 && has!("avx512vnni"),
        Isa::Neon | Isa::NeonDot | Isa::NeonI8mm | Isa::NeonFp16 => false,
    }
}

#[cfg(target_arch = "aarch64")]
fn detect(isa: Isa) -> bool {
    use std::arch::is_aarch64_feature_detected as has;
    match isa {
        Isa::Scalar => true,
        Isa::Neon => has!("neon"),
        Isa::NeonDot => has!("neon") && has!("dotprod"),
        Isa::NeonI8mm => has!("neon") && has!("dotprod") && has!("i8mm"),
        Isa::NeonFp16 => has!("neon") && has!("fp16"),
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Avx512Vnni => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect(isa: Isa) -> bool {
    isa == Isa::Scalar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for isa in ALL {
            match isa.name().parse::<Isa>() {
                Ok(read) => assert_eq!(read, isa),
                Err(e) => {
                    assert!(!isa.is_available());
                    assert!(e.to_string().contains("scalar"), "{e}");
                }
            }
        }
        assert!(Isa::Scalar.is_available());
        assert!(Isa::best().is_available());
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert!(
            message.contains("sse9")
                && message.contains("DIFFBULK_CPU")
                && message.contains("scalar"),
            "{message}"
        );
    }
}
