//! The flags that choose an engine, the same for every subcommand that runs one.

use clap::Args;

use crate::engine::{ENGINES, Options, Tune};

#[derive(Debug, Args)]
pub(super) struct EngineChoice {
    /// Engine that runs the model.
    #[arg(long = "engine", value_name = "NAME", default_value = ENGINES[0].name)]
    pub(super) name: String,

    /// Do not measure on a graphics adapter which tile shapes are fastest. It is done once for an
    /// adapter, driver and shape, and changes no number.
    #[arg(long, conflicts_with = "tune")]
    no_tune: bool,

    /// Measure it on an adapter in software too, which is left out otherwise.
    #[arg(long)]
    tune: bool,

    /// Let a graphics adapter multiply with its cooperative matrices, where it offers them in the
    /// model's precision (`diffbulk info --adapters` tells). Experimental: drivers and wgpu are new to
    /// them.
    #[arg(long)]
    cooperative_matrices: bool,
}

impl EngineChoice {
    pub(super) fn options(&self) -> Options {
        let tune = match (self.no_tune, self.tune) {
            (true, _) => Tune::Never,
            (false, true) => Tune::Always,
            (false, false) => Tune::Hardware,
        };
        Options { tune, cooperative_matrices: self.cooperative_matrices }
    }
}
