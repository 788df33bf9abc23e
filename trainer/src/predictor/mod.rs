//! Stage 2: from frozen features to expression.
//!
//! The U-Net's decoder gives one feature map a level and the foundation encoder one vector a
//! tile. MSFE-Net ([`Branch`]) pools every map to a vector, z_diff; a fusion ([`FusionKind`])
//! joins it with the encoder's z_fm, and the gene decoder turns the result into expression. The
//! published head is one setting of [`HeadConfig`]; hidden layers, low-rank decoding and averaged
//! members are others of the same [`Head`].

pub mod config;
mod fusion;
mod head;
pub mod masks;
mod msfe;
pub mod parameters;

pub use config::HeadConfig;
pub use fusion::{Fusion, FusionKind};
pub use head::{CONFIG_FILE, Head, Inputs, Member, Standardization, Start, WEIGHTS_FILE};
pub use msfe::{Branch, statistics};
