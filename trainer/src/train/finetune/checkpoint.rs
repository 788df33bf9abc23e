//! What a stopped training leaves to resume from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::diffusion::Weights;
use crate::train::atomic;
use crate::{Error, Result};

/// A folder of finished parts of one training.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// The state after an epoch of joint training.
#[derive(Debug, Clone)]
pub struct Joint {
    /// Finished epochs.
    pub epoch: usize,
    /// The head's parameters.
    pub weights: Weights,
    /// Their identities, by which the optimiser knows them.
    pub identities: Vec<(String, u64)>,
    /// The optimiser's state.
    pub optimizer: Vec<u8>,
    /// Best figure on watched tiles.
    pub best: Option<f64>,
    /// Epochs since then.
    pub since_best: usize,
    /// Parameters at that epoch.
    pub best_weights: Option<Weights>,
}

#[derive(Serialize, Deserialize)]
struct JointState {
    epoch: usize,
    identities: Vec<(String, u64)>,
    best: Option<f64>,
    since_best: usize,
    has_best_weights: bool,
}

const STATE: &str = "joint.json";
const KEY: &str = "key.txt";

impl Checkpoints {
    /// Opens the folder for the training that `key` names; parts of another one are removed.
    pub fn open(folder: &Path, key: &str) -> Result<Self> {
        let written = std::fs::read_to_string(folder.join(KEY)).ok();
        if written.as_deref() != Some(key) && folder.exists() {
            std::fs::remove_dir_all(folder).map_err(Error::io(folder))?;
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        atomic::write(&folder.join(KEY), key.as_bytes())?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Removes the folder once its training is done.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder).map_err(Error::io(&self.folder))
    }

    fn part(&self, name: &str, epoch: usize) -> PathBuf {
        self.folder.join(format!("joint-{epoch}-{name}"))
    }

    /// The last finished joint epoch.
    pub fn joint(&self) -> Result<Option<Joint>> {
        let path = self.folder.join(STATE);
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
        let state: JointState = serde_json::from_str(&text).map_err(|e| {
            Error::model(
                &path,
                format!("is not a checkpoint: {e}; delete the folder to start over"),
            )
        })?;
        let weights = Weights::load(&self.part("head.safetensors", state.epoch))?;
        let optimizer = self.part("optimizer.bin", state.epoch);
        let optimizer = std::fs::read(&optimizer).map_err(Error::io(&optimizer))?;
        let best = self.part("best.safetensors", state.epoch);
        let best_weights = state.has_best_weights.then(|| Weights::load(&best)).transpose()?;
        Ok(Some(Joint {
            epoch: state.epoch,
            weights,
            identities: state.identities,
            optimizer,
            best: state.best,
            since_best: state.since_best,
            best_weights,
        }))
    }

    /// Keeps the state after an epoch. The state file, written last, says which parts count.
    pub fn save_joint(&self, joint: &Joint) -> Result<()> {
        joint.weights.save(&self.part("head.safetensors", joint.epoch))?;
        atomic::write(&self.part("optimizer.bin", joint.epoch), &joint.optimizer)?;
        if let Some(best) = &joint.best_weights {
            best.save(&self.part("best.safetensors", joint.epoch))?;
        }
        let state = JointState {
            epoch: joint.epoch,
            identities: joint.identities.clone(),
            best: joint.best,
            since_best: joint.since_best,
            has_best_weights: joint.best_weights.is_some(),
        };
        let text = serde_json::to_string(&state)
            .map_err(|e| Error::Check(format!("the checkpoint cannot be written: {e}")))?;
        atomic::write(&self.folder.join(STATE), text.as_bytes())?;
        for name in ["head.safetensors", "optimizer.bin", "best.safetensors"] {
            let old = self.part(name, joint.epoch.saturating_sub(1));
            if old.exists() {
                std::fs::remove_file(&old).map_err(Error::io(&old))?;
            }
        }
        Ok(())
    }

    fn member_file(&self, index: usize) -> PathBuf {
        self.folder.join(format!("member-{}.safetensors", index + 1))
    }

    /// A finished member.
    pub fn member(&self, index: usize) -> Result<Option<Weights>> {
        let path = self.member_file(index);
        path.exists().then(|| Weights::load(&path)).transpose()
    }

    /// Keeps a finished member.
    pub fn save_member(&self, index: usize, weights: &Weights) -> Result<()> {
        weights.save(&self.member_file(index))
    }
}
