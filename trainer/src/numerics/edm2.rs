//! The diffusion model against reference tensors: embeddings, denoised images, losses, stage-2
//! features and gradients.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};

use super::{Features, Kind, Report};
use crate::diffusion::parameters::host;
use crate::diffusion::{Array, Condition, Config, Denoiser, FeatureMode, Parameters, Weights};
use crate::{Error, Result};

/// Checks a directory with `config.json`, `weights.safetensors`, `io.safetensors` and, optionally,
/// `grads.safetensors`.
pub fn verify(directory: &Path, features: Features, device: &Device) -> Result<Report> {
    let config = Config::load(directory)?;
    let weights_path = directory.join("weights.safetensors");
    let weights = Weights::load(&weights_path)?;
    let parameters = Parameters::from_weights(&config, &weights, device)
        .map_err(|problem| Error::model(&weights_path, problem))?;
    let case = Case::load(&directory.join("io.safetensors"), device)?;

    let mut report = Report::default();
    outputs(&case, &Denoiser::new(&config, &parameters.effective())?, features, &mut report)?;
    let gradients = directory.join("grads.safetensors");
    if gradients.exists() {
        let reference = Weights::load(&gradients)?;
        gradients_of(&case, &config, &parameters, &reference, &mut report)?;
    }
    Ok(report)
}

/// Inputs of the reference run and everything it recorded.
struct Case {
    io: Weights,
    x0: Tensor<4>,
    noise: Tensor<4>,
    sigma: Tensor<1>,
    condition: Condition,
}

const INPUTS: [&str; 4] = ["image_u8", "genes", "sigma", "noise"];

impl Case {
    fn load(path: &Path, device: &Device) -> Result<Self> {
        let io = Weights::load(path)?;
        let x0 = tensor::<4>(&io, "image_u8", path, device)?.div_scalar(127.5).sub_scalar(1.0);
        let noise = tensor::<4>(&io, "noise", path, device)?;
        let sigma = tensor::<1>(&io, "sigma", path, device)?;
        let genes = tensor::<2>(&io, "genes", path, device)?;
        let n = x0.dims()[0];
        if noise.dims() != x0.dims() || sigma.dims() != [n] || genes.dims()[0] != n {
            return Err(Error::model(
                path,
                "image_u8, noise, sigma and genes disagree in their shapes; write them for one \
                 batch",
            ));
        }
        Ok(Self { io, x0, noise, sigma, condition: Condition::panel(genes) })
    }
}

fn tensor<const D: usize>(
    io: &Weights,
    name: &str,
    path: &Path,
    device: &Device,
) -> Result<Tensor<D>> {
    let array = io
        .get(name)
        .ok_or_else(|| Error::model(path, format!("has no tensor '{name}'; add the input")))?;
    let shape: [usize; D] = array.shape.as_slice().try_into().map_err(|_| {
        Error::model(path, format!("tensor '{name}' has shape {:?}, not {D} axes", array.shape))
    })?;
    Ok(Tensor::from_data(TensorData::new(array.data.clone(), shape), device))
}

fn outputs(
    case: &Case,
    denoiser: &Denoiser,
    features: Features,
    report: &mut Report,
) -> Result<()> {
    let unet = denoiser.unet();
    let mut check = |name: &str, values: Vec<f32>| {
        if let Some(reference) = case.io.get(name) {
            report.compare(Kind::Output, name, &values, reference);
        }
    };
    if let Some((pooled, projected)) = unet.gene_embedding(&case.condition) {
        check("gene_embedding", host(pooled)?);
        check("gene_emb", host(projected)?);
    }
    let c_noise = case.sigma.clone().log().div_scalar(4.0);
    check("noise_emb", host(unet.noise_embedding(c_noise))?);

    let n = case.sigma.dims()[0];
    let x = case.x0.clone() + case.noise.clone() * case.sigma.clone().reshape([n, 1, 1, 1]);
    let condition = Some(&case.condition);
    check("denoised_cond", host(denoiser.denoise(x.clone(), case.sigma.clone(), condition))?);
    check("denoised_uncond", host(denoiser.denoise(x, case.sigma.clone(), None))?);
    check("logvar", host(denoiser.uncertainty(case.sigma.clone()))?);
    let (x0, noise, sigma) = (case.x0.clone(), case.noise.clone(), case.sigma.clone());
    check("loss_per_image", host(denoiser.loss(x0, noise, sigma, condition))?);

    let sigma = unet.config().feature_sigma;
    for mode in features.modes() {
        let prefix = match mode {
            FeatureMode::Consistent => "features",
            FeatureMode::Published => "features_published_code",
        };
        let maps = unet.features_with(case.x0.clone(), *mode, sigma);
        for (name, map) in unet.feature_names().iter().zip(maps) {
            check(&format!("{prefix}.{name}"), host(map)?);
        }
    }
    for (name, _) in case.io.iter() {
        let other_mode = features != Features::Both && name.starts_with("features");
        if !INPUTS.contains(&name) && !other_mode && !report.has(name) {
            report.leave_unchecked(name);
        }
    }
    Ok(())
}

/// Gradients of sum(loss over pixels) / N, by the path training takes.
fn gradients_of(
    case: &Case,
    config: &Config,
    parameters: &Parameters,
    reference: &Weights,
    report: &mut Report,
) -> Result<()> {
    let leaves = parameters.effective().differentiable();
    let denoiser = Denoiser::new(config, &leaves)?;
    let [n, c, h, w] = case.x0.dims();
    let (x0, noise, sigma) = (case.x0.clone(), case.noise.clone(), case.sigma.clone());
    let loss = denoiser.loss(x0, noise, sigma, Some(&case.condition));
    let total = loss.mul_scalar((c * h * w) as f64 / n as f64).sum();
    let grads = total.backward();
    let pulled = parameters.pull_back(|name| leaves.leaf(name)?.grad(&grads));

    for (spec, gradient) in parameters.specs().iter().zip(pulled) {
        let Some(gradient) = gradient else { continue };
        let gradient = Array::new(spec.shape.clone(), host(gradient)?);
        let full = format!("grad.{}", spec.name);
        if let Some(reference) = reference.get(&full) {
            report.compare(Kind::Gradient, &full, &gradient.data, reference);
        }
        let norm = format!("grad_norm.{}", spec.name);
        if let Some(reference) = reference.get(&norm) {
            report.compare(Kind::Gradient, &norm, &[gradient.norm() as f32], reference);
        }
    }
    for (name, _) in reference.iter() {
        if !report.has(name) {
            report.leave_unchecked(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::device::DeviceName;

    fn fixture() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/edm2_small")
    }

    #[test]
    fn the_published_numbers_are_reproduced() {
        let report = crate::numerics::verify(&fixture(), Features::Both, DeviceName::Cpu).unwrap();
        report.verdict().unwrap();
        // Every tensor of the reference: 7 outputs, 3 features in 2 modes, 6 gradients, all norms.
        let config = Config::load(&fixture()).unwrap();
        let trained = config.parameters().iter().filter(|s| s.role.trained()).count();
        assert_eq!(report.len(), 7 + 6 + 6 + trained);
    }

    #[test]
    fn one_mode_leaves_the_other_out() {
        let device = DeviceName::Cpu.open().unwrap();
        let report = verify(&fixture(), Features::Published, &device).unwrap();
        report.verdict().unwrap();
        assert!(report.has("features_published_code.8x8_block1"));
        assert!(!report.has("features.8x8_block1"));
    }

    #[test]
    fn changed_weights_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "io.safetensors"] {
            std::fs::copy(fixture().join(name), folder.path().join(name)).unwrap();
        }
        let mut weights = Weights::load(&fixture().join("weights.safetensors")).unwrap();
        let name = "unet.out_conv.weight";
        let mut array = weights.get(name).unwrap().clone();
        array.data[0] += 0.1;
        weights.insert(name, array);
        weights.save(&folder.path().join("weights.safetensors")).unwrap();
        let device = DeviceName::Cpu.open().unwrap();
        let report = verify(folder.path(), Features::Both, &device).unwrap();
        assert!(report.verdict().unwrap_err().to_string().contains("denoised_cond"));
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "io.safetensors"] {
            std::fs::copy(fixture().join(name), folder.path().join(name)).unwrap();
        }
        let mut weights = Weights::load(&fixture().join("weights.safetensors")).unwrap();
        weights.remove("unet.emb_noise.weight");
        weights.save(&folder.path().join("weights.safetensors")).unwrap();
        let device = DeviceName::Cpu.open().unwrap();
        let message = verify(folder.path(), Features::Both, &device).unwrap_err().to_string();
        assert!(message.contains("unet.emb_noise.weight"), "{message}");
    }
}
