//! The fusion head against reference tensors: prediction, loss and gradient norms.

use std::path::Path;

use burn::tensor::{Device, Tensor};

use super::{Kind, Report};
use crate::diffusion::{Array, Weights};
use crate::predictor::parameters::{to_array, to_tensor};
use crate::predictor::{FusionKind, Head, HeadConfig, Inputs};
use crate::{Error, Result};

const GRADIENT: &str = "grad_norm.";

/// Checks a directory with `config.json`, `weights.safetensors` and `io.safetensors`.
pub fn verify(directory: &Path, device: &Device) -> Result<Report> {
    let mut config = HeadConfig::load(&directory.join("config.json"))?;
    let weights_path = directory.join("weights.safetensors");
    let weights = Weights::load(&weights_path)?;
    let io_path = directory.join("io.safetensors");
    let io = Weights::load(&io_path)?;

    // The published configuration does not say whether z_diff is projected: a projection that
    // has a gradient is used.
    let trained = |name: &str| io.get(&format!("{GRADIENT}{name}")).is_some();
    config.projected |= config.fusion != FusionKind::GatedResidual && trained("fusion_proj.weight");
    if let Some([c]) = weights.get("c").map(|c| c.data.as_slice()) {
        config.c = *c;
    }
    let (own, names) = own_weights(&weights);
    let device = device.clone().autodiff();
    let head = Head::from_weights(&config, &own, &weights_path, &device)?;

    let inputs = inputs(&io, &io_path, &device)?;
    let target = rank::<2>(&io, "target", &io_path, &device)?;
    let Some(prediction) = head.forward(&inputs) else {
        return Err(Error::model(&io_path, "has no features for this head; add them"));
    };
    if prediction.dims() != target.dims() {
        let problem = format!(
            "the target has shape {:?} but the head predicts {:?}; write both for one batch",
            target.dims(),
            prediction.dims()
        );
        return Err(Error::model(&io_path, problem));
    }
    let loss = (prediction.clone() - target).square().mean();

    let mut report = Report::default();
    let mut compare = |kind: Kind, name: &str, values: &[f32]| {
        if let Some(reference) = io.get(name) {
            report.compare(kind, name, values, reference);
        }
    };
    compare(Kind::Output, "prediction", &to_array(prediction.without_autodiff()).data);
    compare(Kind::Output, "mse", &to_array(loss.clone().without_autodiff()).data);
    let gradients = head.gradients(&loss.backward());
    for (stored, parts) in &names {
        let parts: Option<Vec<&Array>> = parts.iter().map(|part| gradients.get(part)).collect();
        if let Some(parts) = parts {
            let norm = parts.iter().map(|a| a.norm().powi(2)).sum::<f64>().sqrt();
            compare(Kind::Gradient, &format!("{GRADIENT}{stored}"), &[norm as f32]);
        }
    }
    for (name, _) in io.iter() {
        let input = name.starts_with("features.") || ["foundation", "target"].contains(&name);
        if !input && !report.has(name) {
            report.leave_unchecked(name);
        }
    }
    Ok(report)
}

/// The weights under this crate's names, and for every stored name the own names it became.
///
/// The two maps of FiLM have several common spellings: one layer whose outputs are gamma and then
/// beta, or two layers named after them, possibly as the last of a sequence.
fn own_weights(weights: &Weights) -> (Weights, Vec<(String, Vec<String>)>) {
    let mut own = Weights::new();
    let mut names = Vec::new();
    for (stored, array) in weights.iter() {
        let known = ["block", "gate.", "fusion_proj.", "out."];
        let (layer, field) = stored.rsplit_once('.').unwrap_or(("", stored));
        let spelled = layer.to_lowercase();
        let own_names: Vec<String> =
            if known.iter().any(|k| stored.starts_with(k)) || layer.is_empty() {
                vec![stored.to_owned()]
            } else if spelled.contains("gamma") || spelled.contains("scale") {
                vec![format!("film_gamma.{field}")]
            } else if spelled.contains("beta") || spelled.contains("shift") {
                vec![format!("film_beta.{field}")]
            } else if spelled.contains("film") {
                vec![format!("film_gamma.{field}"), format!("film_beta.{field}")]
            } else {
                vec![stored.to_owned()]
            };
        let rows = array.shape.first().copied().unwrap_or(1) / own_names.len();
        let size = array.data.len() / own_names.len();
        for (part, name) in own_names.iter().enumerate() {
            let mut shape = array.shape.clone();
            if own_names.len() > 1 && !shape.is_empty() {
                shape[0] = rows;
            }
            let data = array.data[part * size..(part + 1) * size].to_vec();
            own.insert(name.clone(), Array { shape, data });
        }
        names.push((stored.to_owned(), own_names));
    }
    (own, names)
}

/// `features.coarsest`, `features.1`, ..., `features.finest`, and `foundation`.
fn inputs(io: &Weights, path: &Path, device: &Device) -> Result<Inputs> {
    let mut levels: Vec<(usize, String)> = io
        .iter()
        .filter_map(|(name, _)| {
            let place = match name.strip_prefix("features.")? {
                "coarsest" => 0,
                "finest" => usize::MAX,
                number => number.parse().ok()?,
            };
            Some((place, name.to_owned()))
        })
        .collect();
    levels.sort();
    let maps: Result<Vec<Tensor<4>>> =
        levels.iter().map(|(_, name)| rank(io, name, path, device)).collect();
    let foundation = match io.get("foundation") {
        Some(_) => Some(rank(io, "foundation", path, device)?),
        None => None,
    };
    Ok(Inputs { maps: maps?, foundation })
}

fn rank<const D: usize>(
    io: &Weights,
    name: &str,
    path: &Path,
    device: &Device,
) -> Result<Tensor<D>> {
    let tensor = io.get(name).and_then(|array| to_tensor(array, &device.clone().inner()));
    tensor.ok_or_else(|| Error::model(path, format!("needs '{name}' with {D} axes; add it")))
}
