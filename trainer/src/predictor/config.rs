//! `head.json`: everything that shapes a head. With every optional key left out it is the
//! published head; the keys below the line are this project's own.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::fusion::FusionKind;
use crate::{Error, Result};

/// Shape of a head. The first eight keys are those of the published configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadConfig {
    /// How foundation and diffusion features are joined.
    pub fusion: FusionKind,
    /// The weight c of concat and add; before its sigmoid where it is learned.
    #[serde(default = "one")]
    pub c: f32,
    /// Whether c is learned.
    #[serde(default)]
    pub c_learnable: bool,
    /// Length of the output.
    pub genes: usize,
    /// Channels of the U-Net's decoder levels, coarsest first; none for a head without
    /// diffusion features.
    pub branch_channels: Vec<usize>,
    /// Channels of every MSFE branch.
    #[serde(default = "default_branch_out")]
    pub branch_out: usize,
    /// Groups of the branches' normalisation.
    #[serde(default = "default_groups")]
    pub groups: usize,
    /// Foundation features; 0 for a head without an encoder.
    pub foundation_dim: usize,
    // ----
    /// Whether z_diff also holds the mean and standard deviation of every channel of the maps
    /// themselves: the branches' normalisation takes a tile's overall level and contrast away.
    #[serde(default)]
    pub map_statistics: bool,
    /// Whether z_fm and z_diff are standardised with constants of the training tiles.
    #[serde(default)]
    pub standardized: bool,
    /// Whether concat, add and FiLM, too, bring z_diff to the width of z_fm first.
    #[serde(default)]
    pub projected: bool,
    /// Width that foundation features are brought to before the fusion; absent: their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foundation_width: Option<usize>,
    /// Whether the fused vector passes a SiLU (and dropout) of its own.
    #[serde(default)]
    pub activated: bool,
    /// Widths of hidden layers (SiLU, dropout) between fusion and output.
    #[serde(default)]
    pub hidden: Vec<usize>,
    /// Whether a linear map of the fused vector is added to the hidden layers' output.
    #[serde(default)]
    pub linear_skip: bool,
    /// Share of a hidden layer's values dropped in training.
    #[serde(default)]
    pub dropout: f64,
    /// Share of the features' values dropped in training.
    #[serde(default)]
    pub input_dropout: f64,
    /// Predict this many principal components of expression; absent: every gene by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<usize>,
    /// Heads over the same branches whose predictions are averaged.
    #[serde(default = "one_member")]
    pub members: usize,
}

fn one() -> f32 {
    1.0
}
fn one_member() -> usize {
    1
}
fn default_branch_out() -> usize {
    128
}
fn default_groups() -> usize {
    32
}

impl HeadConfig {
    /// Reads and checks a configuration file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let config: Self = serde_json::from_str(&text).map_err(|e| {
            Error::model(path, format!("is not a head's configuration: {e}; train it again"))
        })?;
        config.check().map_err(|problem| Error::model(path, problem))?;
        Ok(config)
    }

    /// Width of z_diff.
    pub fn diffusion_width(&self) -> usize {
        let statistics = if self.map_statistics { 2 } else { 0 };
        self.branch_channels.iter().map(|channels| self.branch_out + statistics * channels).sum()
    }

    /// Width of z_fm as the fusion sees it.
    pub fn foundation_width(&self) -> usize {
        if self.foundation_dim == 0 {
            0
        } else {
            self.foundation_width.unwrap_or(self.foundation_dim)
        }
    }

    /// What makes the configuration impossible, and what would be possible.
    pub fn check(&self) -> Result<(), String> {
        let widths = [self.genes, self.members, self.branch_out, self.groups];
        let optional = self.hidden.iter().chain(&self.branch_channels).copied();
        let optional = optional.chain(self.foundation_width).chain(self.components);
        let all: Vec<usize> =
            widths.into_iter().chain(optional).chain([self.foundation_dim]).collect();
        if all.iter().any(|w| *w > 1 << 20) || self.branch_channels.len() > 16 {
            return Err("a width is larger than any head; check the numbers".into());
        }
        if all[..all.len() - 1].contains(&0) {
            return Err("genes, members and every width must be at least 1".into());
        }
        if self.foundation_dim == 0 && self.branch_channels.is_empty() {
            return Err(
                "neither diffusion nor foundation features are used; a head needs one".into()
            );
        }
        if !self.branch_out.is_multiple_of(self.groups) {
            return Err(format!(
                "branch_out {} is not a multiple of groups {}; choose one that is",
                self.branch_out, self.groups
            ));
        }
        for dropout in [self.dropout, self.input_dropout] {
            if !(0.0..1.0).contains(&dropout) {
                return Err(format!("dropout {dropout} is not in [0, 1)"));
            }
        }
        if !self.c.is_finite() {
            return Err("c is not a finite number".into());
        }
        Ok(())
    }
}
