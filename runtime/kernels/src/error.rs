use std::fmt;

/// Why a kernel cannot be prepared. The message names the field, what is wrong with it and what would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelError {
    /// A shape this crate has no kernel for, or one that contradicts itself.
    Shape(String),
    /// A slice of weights whose length does not fit the shape.
    Length {
        /// What the slice holds.
        what: &'static str,
        /// Number of values it has.
        found: usize,
        /// Number of values the shape asks for.
        expected: usize,
    },
    /// The instruction set asked for is not on this machine.
    Isa(crate::IsaError),
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(why) => f.write_str(why),
            Self::Length { what, found, expected } => {
                write!(
                    f,
                    "{what}: {found} values where the shape asks for {expected}; check the weights' layout"
                )
            }
            Self::Isa(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for KernelError {}

impl From<crate::IsaError> for KernelError {
    fn from(e: crate::IsaError) -> Self {
        Self::Isa(e)
    }
}

pub(crate) fn check_length(
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), KernelError> {
    if found == expected { Ok(()) } else { Err(KernelError::Length { what, found, expected }) }
}
