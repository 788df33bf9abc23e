//! Named architectures.

use super::config::{Config, default_feature_sigma, default_logvar_channels, default_sigma_data};
use crate::{Error, Result};

impl Config {
    /// The architecture of a named preset without a panel; see [`Config::with_vocabulary`].
    pub fn preset(name: &str) -> Result<Self> {
        let published = |channels: usize| Self {
            img_resolution: 224,
            img_channels: 3,
            model_channels: channels,
            channel_mult: vec![1, 2, 3, 4],
            num_blocks: 3,
            attn_resolutions: vec![28],
            channels_per_head: 64,
            gene_embed_dim: 512,
            gene_heads: 8,
            num_gene_blocks: 2,
            panel_size: 0,
            sigma_data: default_sigma_data(),
            logvar_channels: default_logvar_channels(),
            feature_sigma: default_feature_sigma(),
            stem_patch: 1,
            gene_vocabulary: None,
        };
        Ok(match name {
            "gene-img224-xs" => published(128),
            "gene-img224-s" => published(192),
            "gene-img224-m" => published(256),
            // Four-pixel patches keep the published four levels at a sixteenth of the area; few
            // channels where the pixels are many, most of the width where the context is wide.
            "edge" => Self {
                model_channels: 16,
                channel_mult: vec![1, 2, 4, 6],
                num_blocks: 1,
                attn_resolutions: vec![7],
                channels_per_head: 32,
                gene_embed_dim: 64,
                num_gene_blocks: 1,
                stem_patch: 4,
                ..published(16)
            },
            // As many channels and pixels as a larger edge device takes: 5 GMAC a tile.
            "edge-6g" => Self {
                model_channels: 32,
                num_blocks: 1,
                attn_resolutions: vec![14],
                channels_per_head: 32,
                gene_embed_dim: 64,
                num_gene_blocks: 1,
                stem_patch: 2,
                ..published(32)
            },
            "tiny" => Self {
                img_resolution: 32,
                model_channels: 8,
                channel_mult: vec![1, 2],
                num_blocks: 1,
                attn_resolutions: vec![8],
                channels_per_head: 8,
                gene_embed_dim: 16,
                num_gene_blocks: 1,
                stem_patch: 2,
                logvar_channels: 16,
                ..published(8)
            },
            _ => {
                return Err(Error::Request(format!(
                    "no preset is called '{name}'; choose one of {}",
                    Self::PRESETS.join(", ")
                )));
            }
        })
    }

    /// Names [`Config::preset`] knows.
    pub const PRESETS: [&'static str; 6] =
        ["edge", "tiny", "gene-img224-xs", "gene-img224-s", "gene-img224-m", "edge-6g"];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::config::ParameterSpec;

    #[test]
    fn presets_are_possible_and_differ_in_size() {
        let macs: Vec<u64> = Config::PRESETS
            .iter()
            .map(|name| {
                let config = Config::preset(name).unwrap();
                config.check().unwrap();
                config.macs()
            })
            .collect();
        assert!(macs[0] <= 600_000_000, "edge preset has {} MAC", macs[0]);
        assert!(macs[1] < macs[0] && macs[2] < macs[3] && macs[3] < macs[4]);
        assert!((4.5e9..5.5e9).contains(&(macs[5] as f64)), "edge-6g has {} MAC", macs[5]);
    }

    #[test]
    fn published_xs_has_the_published_size() {
        // 538 GMAC and 120 M parameters a tile.
        let config = Config::preset("gene-img224-xs").unwrap();
        let giga = config.macs() as f64 / 1e9;
        assert!((500.0..580.0).contains(&giga), "{giga} GMAC");
        let parameters: usize = config.parameters().iter().map(ParameterSpec::len).sum();
        assert!((100e6..140e6).contains(&(parameters as f64)), "{parameters} parameters");
    }
}
