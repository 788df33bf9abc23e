//! Which models a device may run: signatures, versions, self-tests and the store they end up in.
//!
//! Whoever releases a model signs its ONNX file with [`sign`] (Ed25519, minisign's format, so that
//! `minisign` itself can make and check the signatures). The signed comment carries what the model
//! has to predict on a [`selftest`] tile. A device that trusts the signer's public key
//! ([`TrustedKeys`]) opens the model only with [`open_signed`], and takes a new one only through
//! [`Store::install`]: verified, newer, and right about the self-test tile on the very engine it is
//! going to run on. Until then the model before it stays in place.

mod keys;
pub mod selftest;
mod signature;
mod store;
mod version;

pub use keys::{KeyFiles, PUBLIC_SUFFIX, SECRET_SUFFIX, TrustedKeys, generate, secret_key};
pub use signature::{SIGNATURE_SUFFIX, Signed, open_signed, sign, signature_path, verify};
pub use store::{Highest, Install, Installed, Store};
pub use version::ModelVersion;
