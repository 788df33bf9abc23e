//! A predictor with random weights, to measure speed before anything is trained.

use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Normal};

use super::fused::{EncoderPart, Parts, UnetPart};
use super::record::{HeadFacts, TrainingRecord};
use super::weights::Checkpoint;
use crate::diffusion::config::Role;
use crate::diffusion::{Array, Config, FeatureMode, Weights};
use crate::predictor::{FusionKind, HeadConfig};
use crate::{Error, Result};

/// Channels and groups of the random head's branches.
const BRANCH: (usize, usize) = (32, 8);
/// Width of its hidden layer.
const HIDDEN: usize = 128;
/// Gain of every modulation, so that it is not simply one.
const GAIN: f32 = 0.3;

/// The parts of a random predictor over a U-Net preset, and a record that says so.
pub fn parts(
    preset: &str,
    genes: usize,
    encoder: Option<EncoderPart>,
    mode: FeatureMode,
    seed: u64,
) -> Result<(Parts, HeadFacts)> {
    let config = Config::preset(preset)?;
    let mut random = Random(StdRng::seed_from_u64(seed));
    let weights = random.unet(&config)?;
    let (_, decoder) = config.blocks();
    let foundation_dim = encoder.as_ref().map_or(0, |encoder| encoder.width);
    let levels: Vec<usize> =
        decoder.iter().filter(|block| block.feature).map(|block| block.out_channels).collect();
    let head = serde_json::json!({
        "fusion": FusionKind::GatedResidual, "genes": genes, "branch_channels": levels,
        "branch_out": BRANCH.0, "groups": BRANCH.1, "foundation_dim": foundation_dim,
        "hidden": [HIDDEN],
    });
    let head: HeadConfig =
        serde_json::from_value(head).map_err(|error| Error::Request(error.to_string()))?;
    let head_weights = random.head(&head)?;
    let exported = TrainingRecord {
        panel: (1..=genes).map(|gene| format!("GENE{gene}")).collect(),
        tile_px: config.img_resolution,
        um_per_px: 0.5,
        unit: "none (random weights)".to_owned(),
        training_data: Vec::new(),
        seed,
        config_sha256: String::new(),
        confidence: None,
    };
    let tile_px = exported.tile_px;
    let record = HeadFacts { exported, unet: None, encoder: None };
    let origin = Path::new("random weights");
    let unet = UnetPart { weights: Checkpoint::new(origin, weights), mode, config };
    let head_weights = Checkpoint::new(origin, head_weights);
    Ok((Parts { tile_px, unet: Some(unet), encoder, head, head_weights }, record))
}

struct Random(StdRng);

impl Random {
    fn array(&mut self, shape: &[usize], deviation: f32) -> Result<Array> {
        let normal =
            Normal::new(0.0, deviation).map_err(|error| Error::Request(error.to_string()))?;
        let data = (0..shape.iter().product()).map(|_| normal.sample(&mut self.0)).collect();
        Ok(Array::new(shape.to_vec(), data))
    }

    fn unet(&mut self, config: &Config) -> Result<Weights> {
        let mut weights = Weights::new();
        for spec in config.parameters() {
            let array = match spec.role {
                Role::Gain => Array::new(spec.shape, vec![GAIN]),
                _ => self.array(&spec.shape, 1.0)?,
            };
            weights.insert(spec.name, array);
        }
        Ok(weights)
    }

    fn head(&mut self, config: &HeadConfig) -> Result<Weights> {
        let mut weights = Weights::new();
        for (index, &channels) in config.branch_channels.iter().enumerate() {
            let name = format!("block{}", index + 1);
            let out = config.branch_out;
            self.layer(&mut weights, &format!("{name}.conv"), &[out, channels, 3, 3])?;
            weights.insert(format!("{name}.norm.weight"), Array::new(vec![out], vec![1.0; out]));
            weights.insert(format!("{name}.norm.bias"), Array::new(vec![out], vec![0.0; out]));
        }
        let (foundation, diffusion) = (config.foundation_dim, config.diffusion_width());
        let mut width = diffusion;
        if foundation > 0 {
            self.layer(&mut weights, "gate.0", &[foundation, foundation + diffusion])?;
            self.layer(&mut weights, "fusion_proj", &[foundation, diffusion])?;
            width = foundation;
        }
        self.layer(&mut weights, "hidden1", &[HIDDEN, width])?;
        self.layer(&mut weights, "out", &[config.genes, HIDDEN])?;
        Ok(weights)
    }

    fn layer(&mut self, weights: &mut Weights, name: &str, shape: &[usize]) -> Result<()> {
        let inputs: usize = shape[1..].iter().product();
        let weight = self.array(shape, 1.0 / (inputs as f32).sqrt())?;
        weights.insert(format!("{name}.weight"), weight);
        weights.insert(format!("{name}.bias"), self.array(&shape[..1], 0.1)?);
        Ok(())
    }
}
