//! The flags that choose an engine, the same for every subcommand that runs one.

use clap::Args;

use crate::engine::{ENGINES, Options};

#[derive(Debug, Args)]
pub(super) struct EngineChoice {
    /// Engine that runs the model.
    #[arg(long = "engine", value_name = "NAME", default_value = ENGINES[0].name)]
    pub(super) name: String,

    /// Do not measure on a graphics adapter which tile shapes are fastest. It is done once for an
    /// adapter, driver and shape, takes some seconds to a minute, and changes no number.
    #[arg(long)]
    no_tune: bool,

    /// Let a graphics adapter multiply with its cooperative matrices, where it offers them in the
    /// model's precision (`diffbulk info --adapters` tells). Experimental: drivers and wgpu are new to
    /// them.
    #[arg(long)]
    cooperative_matrices: bool,
}

impl EngineChoice {
    pub(super) fn options(&self) -> Options {
        Options { tune: !self.no_tune, cooperative_matrices: self.cooperative_matrices }
    }
}
