//! How a head is shaped and trained: everything a person may want to change, in one JSON file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::predictor::{FusionKind, HeadConfig, Start};
use crate::{Error, Result};

/// Shape, targets, views and optimisation of stage 2. Keys left out have the published values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// How foundation and diffusion features are joined.
    pub fusion: FusionKind,
    /// The weight c of concat and add; before its sigmoid where it is learned.
    pub c: f32,
    /// Whether c is learned.
    pub c_learnable: bool,
    /// Channels of every MSFE branch.
    pub branch_out: usize,
    /// Groups of the branches' normalisation.
    pub groups: usize,
    /// Give z_diff the mean and standard deviation of every channel of the U-Net's maps, too.
    pub map_statistics: bool,
    /// Standardise features with constants of the training tiles.
    pub standardized: bool,
    /// Width that foundation features are brought to before the fusion.
    pub foundation_width: Option<usize>,
    /// Let the fused vector pass a SiLU and dropout of its own.
    pub activated: bool,
    /// Widths of hidden layers after the fusion.
    pub hidden: Vec<usize>,
    /// Add a linear map past the hidden layers.
    pub linear_skip: bool,
    /// Share of hidden values dropped.
    pub dropout: f64,
    /// Share of feature values dropped.
    pub input_dropout: f64,
    /// Learn this many principal components of expression instead of every gene.
    pub components: Option<usize>,
    /// Take the components from this many of the most variable genes, the panel among them.
    pub component_genes: usize,
    /// Subtract every training section's mean expression: what differs between sections by
    /// staining and depth is not to be learned from images.
    pub center_sections: bool,
    /// How parameters start.
    pub start: Start,
    /// Heads that are averaged.
    pub members: usize,
    /// Views of every tile: 1 is the tile as it is, 4 its flips, 8 also the flips with other
    /// stains, more are turns and further stains.
    pub views: usize,
    /// Of these, the views of which the U-Net's maps are computed; the others go with the maps of
    /// the first.
    pub diffusion_views: usize,
    /// Strength of the stain jitter.
    pub stain_jitter: f32,
    /// Epochs in which MSFE branches are trained: together with the members (`epochs` 0) or with
    /// a linear map from z_diff alone to the targets.
    pub joint_epochs: usize,
    /// Epochs in which the members are trained on the pooled features of finished branches.
    pub epochs: usize,
    /// Tiles of one step of the joint epochs.
    pub joint_batch: usize,
    /// Tiles of one step of the members' epochs.
    pub batch: usize,
    /// AdamW learning rate of the joint epochs.
    pub joint_learning_rate: f64,
    /// AdamW learning rate of the members' epochs.
    pub learning_rate: f64,
    /// AdamW weight decay.
    pub weight_decay: f64,
    /// Let the learning rate fall to zero as a half cosine.
    pub cosine: bool,
    /// Standard deviation of noise added to standardised features.
    pub noise: f64,
    /// Mixing of pairs of tiles: parameter of the Beta distribution of their shares; 0: none.
    pub mixup: f64,
    /// Hold the tiles of this training section out and stop after so many epochs without a
    /// better mean per-gene Pearson on them, keeping the best.
    pub early_stopping: Option<EarlyStopping>,
}

/// When to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// The training section that is watched instead of learned from.
    pub section: String,
    /// Epochs without a gain before training stops.
    pub patience: usize,
}

impl Default for Recipe {
    /// The published settings.
    fn default() -> Self {
        Self {
            fusion: FusionKind::GatedResidual,
            c: 1.0,
            c_learnable: true,
            branch_out: 128,
            groups: 32,
            map_statistics: false,
            standardized: false,
            foundation_width: None,
            activated: false,
            hidden: Vec::new(),
            linear_skip: false,
            dropout: 0.0,
            input_dropout: 0.0,
            components: None,
            component_genes: 0,
            center_sections: false,
            start: Start::Uniform,
            members: 1,
            views: 1,
            diffusion_views: 1,
            stain_jitter: 0.0,
            joint_epochs: 10,
            epochs: 0,
            joint_batch: 32,
            batch: 32,
            joint_learning_rate: 1e-4,
            learning_rate: 1e-4,
            weight_decay: 1e-5,
            cosine: false,
            noise: 0.0,
            mixup: 0.0,
            early_stopping: None,
        }
    }
}

impl Recipe {
    /// Names [`Recipe::preset`] knows.
    pub const PRESETS: [&'static str; 2] = ["published", "edge"];

    /// The published settings, or those for hundreds of tiles instead of tens of thousands.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "published" => Ok(Self::default()),
            "edge" => Ok(Self {
                branch_out: 32,
                groups: 8,
                map_statistics: true,
                standardized: true,
                foundation_width: Some(128),
                activated: true,
                dropout: 0.5,
                input_dropout: 0.3,
                components: Some(6),
                component_genes: 1000,
                center_sections: true,
                start: Start::Calm,
                members: 8,
                views: 8,
                diffusion_views: 8,
                stain_jitter: 0.15,
                joint_epochs: 16,
                epochs: 40,
                batch: 64,
                joint_learning_rate: 2e-3,
                learning_rate: 1e-3,
                weight_decay: 1e-2,
                cosine: true,
                ..Self::default()
            }),
            _ => Err(Error::Request(format!(
                "no recipe is called '{name}'; choose one of {}, or give a file",
                Self::PRESETS.join(", ")
            ))),
        }
    }

    /// A preset's name or a JSON file.
    pub fn load(name_or_file: &str) -> Result<Self> {
        let path = Path::new(name_or_file);
        if Self::PRESETS.contains(&name_or_file) || !path.exists() {
            return Self::preset(name_or_file);
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text)
            .map_err(|e| Error::data(path, format!("is not a recipe: {e}; see the README's keys")))
    }

    /// The head this recipe makes.
    pub fn head(
        &self,
        branch_channels: Vec<usize>,
        foundation_dim: usize,
        genes: usize,
    ) -> HeadConfig {
        HeadConfig {
            fusion: self.fusion,
            c: self.c,
            c_learnable: self.c_learnable && self.fusion.has_c(),
            genes,
            branch_channels,
            branch_out: self.branch_out,
            groups: self.groups,
            foundation_dim,
            map_statistics: self.map_statistics,
            standardized: self.standardized,
            projected: false,
            foundation_width: self.foundation_width,
            activated: self.activated,
            hidden: self.hidden.clone(),
            linear_skip: self.linear_skip,
            dropout: self.dropout,
            input_dropout: self.input_dropout,
            components: self.components,
            members: self.members,
        }
    }

    /// What makes the recipe impossible.
    pub fn check(&self) -> Result<()> {
        let counts = [self.batch, self.joint_batch, self.views, self.diffusion_views];
        let problem = if counts.contains(&0) {
            "batches and views must be at least 1"
        } else if self.joint_epochs + self.epochs == 0 {
            "joint_epochs and epochs are both 0; nothing would be learned"
        } else if self.joint_epochs == 0 && self.members == 0 {
            "members must be at least 1"
        } else if !(self.learning_rate >= 0.0
            && self.joint_learning_rate >= 0.0
            && self.weight_decay >= 0.0
            && self.noise >= 0.0
            && self.mixup >= 0.0
            && self.stain_jitter >= 0.0)
        {
            "rates, noise, mixup, jitter and weight decay must not be negative"
        } else {
            return Ok(());
        };
        Err(Error::Request(format!("recipe: {problem}")))
    }
}
