//! The directory a device keeps its models in.
//!
//! ```text
//! <store>/current.json                         which model is in use; replaced atomically
//! <store>/<name>-<version>-<sha256>.onnx       it, and the one before it
//! <store>/<name>-<version>-<sha256>.onnx.minisig
//! ```
//!
//! A new model's files are written beside the old ones and tried there. Only then is
//! `current.json` replaced, in one rename: whoever reads it sees the old model or the new one,
//! never a mixture, whenever the power fails.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keys::TrustedKeys;
use super::selftest::{self, Expectation};
use super::signature::{self, Signed, open_signed, signature_path};
use super::version::ModelVersion;
use crate::engine::Engine;
use crate::model::{Model, OnnxFile};
use crate::output::atomic;
use crate::{Error, Result};

/// File that tells which model is in use.
const CURRENT: &str = "current.json";

/// File that is locked during an installation.
const LOCK: &str = ".lock";

/// Digits of the SHA-256 in file names.
const SHORT_SHA: usize = 16;

/// A directory of installed models.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// What `current.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Model name.
    pub name: String,
    /// Model version.
    pub version: String,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
    /// File name in the store.
    pub file: String,
    /// Id of the key that signed it.
    pub key: String,
    /// The highest version ever installed, by model name: versions only go up from there.
    pub highest: BTreeMap<String, Highest>,
}

/// The highest version of a model that was ever installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Highest {
    /// The version.
    pub version: String,
    /// SHA-256 of the file that had it.
    pub sha256: String,
}

/// What an installation is asked to do.
pub struct Install<'a> {
    /// The model's file; its signature lies beside it.
    pub model: &'a Path,
    /// Whose signatures are believed.
    pub trusted: &'a TrustedKeys,
    /// Loads the model into the engine that is going to run it.
    pub engine: &'a dyn Fn(&Model) -> Result<Box<dyn Engine>>,
    /// What the self-test has to give, where the signed comment does not tell.
    pub expectation: Option<Expectation>,
    /// Allow an older version than was installed before.
    pub allow_older: bool,
}

impl Store {
    /// The store in `directory`, which need not exist yet.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The model in use, if any.
    ///
    /// # Errors
    /// When `current.json` cannot be read.
    pub fn current(&self) -> Result<Option<Installed>> {
        let path = self.directory.join(CURRENT);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path)(error)),
        };
        let damaged = |problem: &dyn std::fmt::Display| {
            Error::output(&path, format!("is damaged ({problem}); remove it and install again"))
        };
        let installed: Installed = serde_json::from_slice(&bytes).map_err(|e| damaged(&e))?;
        if Path::new(&installed.file).file_name().is_none_or(|name| name != &*installed.file) {
            return Err(damaged(&"its file is not in this directory"));
        }
        Ok(Some(installed))
    }

    /// Opens the model in use, checking its signature again.
    ///
    /// # Errors
    /// When none is installed, or its file was altered since.
    pub fn open(&self, trusted: &TrustedKeys) -> Result<(Model, Signed)> {
        let Some(installed) = self.current()? else {
            return Err(Error::Request(format!(
                "no model is installed in {}; install one with `diffbulk model install`",
                self.directory.display()
            )));
        };
        let path = self.directory.join(&installed.file);
        let (model, signed) = open_signed(&path, trusted)?;
        if model.sha256() != installed.sha256 {
            return Err(Error::model(
                &path,
                "it is not the file that was installed; install it again",
            ));
        }
        Ok((model, signed))
    }

    /// Verifies, tries and installs a model; the model before it stays in use unless everything
    /// went well, and its files stay for going back.
    ///
    /// # Errors
    /// When the signature, the version or the self-test is wrong, or the disk refuses.
    pub fn install(&self, install: &Install<'_>) -> Result<Installed> {
        std::fs::create_dir_all(&self.directory)
            .map_err(|error| atomic::explain(&self.directory, error))?;
        let _lock = self.lock()?;
        let bytes = signature::read(install.model)?;
        let signature_text = signature::signature_text(install.model)?;
        let signed = signature::verify(&bytes, install.model, &signature_text, install.trusted)?;
        let model = Model::from_file(OnnxFile::from_bytes(&bytes, install.model)?)?;
        let before = self.current()?;
        let version = check_version(&model, before.as_ref(), install.allow_older)?;

        let file = file_name(&model);
        let path = self.directory.join(&file);
        let there = before.as_ref().is_some_and(|before| before.file == file);
        // The same file may come with another signature.
        atomic::write(&signature_path(&path), signature_text.as_bytes())?;
        if !there {
            atomic::write(&path, &bytes)?;
        }
        // What was written is what is tried: a bad disk shows here.
        let tried = open_signed(&path, install.trusted)
            .and_then(|(model, signed)| self_test(&model, &signed, install));
        if let Err(error) = tried {
            if !there {
                let _ = std::fs::remove_file(&path);
                let _ = std::fs::remove_file(signature_path(&path));
            }
            return Err(error);
        }

        let metadata = model.metadata();
        let mut highest = before.as_ref().map(|b| b.highest.clone()).unwrap_or_default();
        let known = highest.get(&metadata.name).and_then(|known| known.version.parse().ok());
        if known.is_none_or(|known: ModelVersion| version > known) {
            let version = metadata.version.clone();
            let sha256 = model.sha256().to_owned();
            highest.insert(metadata.name.clone(), Highest { version, sha256 });
        }
        let installed = Installed {
            name: metadata.name.clone(),
            version: metadata.version.clone(),
            sha256: model.sha256().to_owned(),
            file,
            key: signed.key,
            highest,
        };
        let mut json = serde_json::to_vec_pretty(&installed).map_err(|error| {
            Error::output(&self.directory, format!("{CURRENT} cannot be written: {error}"))
        })?;
        json.push(b'\n');
        atomic::write(&self.directory.join(CURRENT), &json)?;
        self.tidy(&installed, before.as_ref());
        Ok(installed)
    }

    fn lock(&self) -> Result<File> {
        let path = self.directory.join(LOCK);
        let file = File::create(&path).map_err(|error| atomic::explain(&path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::output(
                &self.directory,
                "another installation is under way here; wait for it",
            )),
            // A file system without locks is still usable.
            Err(std::fs::TryLockError::Error(_)) => Ok(file),
        }
    }

    /// Removes models that are neither in use nor the one before.
    fn tidy(&self, now: &Installed, before: Option<&Installed>) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let model = name.strip_suffix(signature::SIGNATURE_SUFFIX).unwrap_or(&name);
            let kept = model == now.file || before.is_some_and(|before| before.file == model);
            if model.ends_with(".onnx") && !kept {
                // An old file left behind only takes room.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn check_version(
    model: &Model,
    before: Option<&Installed>,
    allow_older: bool,
) -> Result<ModelVersion> {
    let metadata = model.metadata();
    let refuse = |problem: String| Error::model(model.path(), problem);
    let version: ModelVersion =
        metadata.version.parse().map_err(|problem: String| refuse(problem))?;
    let known = before.and_then(|before| before.highest.get(&metadata.name));
    let Some((known, highest)) =
        known.and_then(|known| Some((known, known.version.parse::<ModelVersion>().ok()?)))
    else {
        return Ok(version);
    };
    let same_file = known.sha256 == model.sha256();
    if version < highest && !allow_older {
        return Err(refuse(format!(
            "version {version} is older than {highest}, which was installed before; going back \
             needs --allow-older"
        )));
    }
    if version == highest && !same_file && !allow_older {
        return Err(refuse(format!(
            "version {version} was installed before as another file; release it under a higher \
             version, or give --allow-older"
        )));
    }
    Ok(version)
}

fn self_test(model: &Model, signed: &Signed, install: &Install<'_>) -> Result<()> {
    let Some(expectation) = install.expectation.as_ref().or(signed.expectation.as_ref()) else {
        return Err(Error::model(
            model.path(),
            "its signed comment does not say what the self-test tile has to give; sign it with \
             `diffbulk model sign`, or give the line of `diffbulk model selftest` with --expect",
        ));
    };
    let engine = (install.engine)(model)?;
    let values = selftest::predict(&*engine, model)?;
    if expectation.is_met_by(&values) {
        return Ok(());
    }
    Err(Error::model(
        model.path(),
        format!(
            "on this machine's engine `{}` the self-test tile gives other values than when it was \
             signed; the model in use stays",
            engine.name()
        ),
    ))
}

/// `<name>-<version>-<sha256>.onnx`, safe as a file name.
fn file_name(model: &Model) -> String {
    let metadata = model.metadata();
    let clean = |text: &str| -> String {
        text.chars()
            .take(60)
            .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
            .collect()
    };
    let short = model.sha256().get(..SHORT_SHA).unwrap_or_default();
    format!("{}-{}-{short}.onnx", clean(&metadata.name), clean(&metadata.version))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::engine;
    use crate::model::testing;
    use crate::trust::{generate, secret_key, sign};

    struct Lab {
        directory: tempfile::TempDir,
        key: minisign::SecretKey,
        trusted: TrustedKeys,
    }

    impl Lab {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let files = generate(&directory.path().join("lab"), None).unwrap();
            Self {
                key: secret_key(&files.secret, || unreachable!()).unwrap(),
                trusted: TrustedKeys::read(&[&files.public]).unwrap(),
                directory,
            }
        }

        fn store(&self) -> Store {
            Store::new(&self.directory.path().join("store"))
        }

        /// A signed tiny model with this version and this many genes.
        fn model(&self, version: &str, genes: usize) -> PathBuf {
            let panel: Vec<String> = (0..genes).map(|gene| format!("G{gene}")).collect();
            let panel: Vec<&str> = panel.iter().map(String::as_str).collect();
            let mut metadata = testing::metadata(8, &panel);
            metadata.version = version.into();
            let bytes = testing::tiny_model(&metadata).encode_to_vec();
            let path = self.directory.path().join(format!("tiny-{version}-{genes}.onnx"));
            std::fs::write(&path, &bytes).unwrap();
            let file = OnnxFile::from_bytes(&bytes, &path).unwrap();
            let model = Model::from_file(file).unwrap();
            let engine = load(&model).unwrap();
            let values = selftest::predict(&*engine, &model).unwrap();
            let comment = Expectation::of(&values).unwrap().to_string();
            self.sign(&path, &comment);
            path
        }

        fn sign(&self, path: &Path, comment: &str) {
            let bytes = std::fs::read(path).unwrap();
            let text = sign(&bytes, &self.key, comment).unwrap();
            std::fs::write(signature_path(path), text).unwrap();
        }

        fn install(&self, model: &Path, allow_older: bool) -> Result<Installed> {
            self.store().install(&Install {
                model,
                trusted: &self.trusted,
                engine: &load,
                expectation: None,
                allow_older,
            })
        }
    }

    fn load(model: &Model) -> Result<Box<dyn Engine>> {
        engine::open(engine::ENGINES[0].name, model)
    }

    #[test]
    fn versions_only_go_up_unless_told() {
        let lab = Lab::new();
        let (one, two, ten) = (lab.model("1.0", 2), lab.model("1.2", 2), lab.model("1.10", 2));
        lab.install(&two, false).unwrap();
        let message = lab.install(&one, false).unwrap_err().to_string();
        assert!(message.contains("older than 1.2"), "{message}");
        assert_eq!(lab.install(&ten, false).unwrap().version, "1.10");
        // Told so, it goes back, and remembers how far up it was.
        assert_eq!(lab.install(&one, true).unwrap().version, "1.0");
        assert!(lab.install(&two, false).is_err());
        lab.install(&ten, false).unwrap();
        // The same version with other content is refused.
        let other = lab.model("1.10", 3);
        let message = lab.install(&other, false).unwrap_err().to_string();
        assert!(message.contains("another file"), "{message}");
        let (model, _) = lab.store().open(&lab.trusted).unwrap();
        assert_eq!(model.metadata().version, "1.10");
        // The one in use, the one before and their signatures, nothing else.
        let left = std::fs::read_dir(lab.directory.path().join("store")).unwrap().count();
        assert_eq!(left, 4 + 2);
    }

    #[test]
    fn a_model_that_fails_its_self_test_does_not_replace_the_old_one() {
        let lab = Lab::new();
        lab.install(&lab.model("1.0", 2), false).unwrap();
        let before = lab.store().current().unwrap();
        let new = lab.model("2.0", 2);
        // Expects another prediction.
        lab.sign(&new, &Expectation::of(&[5.0, 7.0]).unwrap().to_string());
        let message = lab.install(&new, false).unwrap_err().to_string();
        assert!(message.contains("self-test") && message.contains("stays"), "{message}");
        // Does not say what to expect.
        lab.sign(&new, "no expectation");
        let message = lab.install(&new, false).unwrap_err().to_string();
        assert!(message.contains("--expect"), "{message}");
        // Cannot be loaded, or breaks while loading.
        let new = lab.model("2.1", 2);
        let broken = |_: &Model| -> Result<Box<dyn Engine>> {
            Err(Error::Request("no engine today".into()))
        };
        let failed = lab.store().install(&Install {
            model: &new,
            trusted: &lab.trusted,
            engine: &broken,
            expectation: None,
            allow_older: false,
        });
        assert!(failed.is_err());
        assert_eq!(lab.store().current().unwrap(), before);
        assert_eq!(lab.store().open(&lab.trusted).unwrap().0.metadata().version, "1.0");
        let left = std::fs::read_dir(lab.directory.path().join("store")).unwrap().count();
        assert_eq!(left, 2 + 2);
    }

    #[test]
    fn altered_and_unsigned_models_are_not_installed_or_opened() {
        let lab = Lab::new();
        let path = lab.model("1.0", 2);
        let installed = lab.install(&path, false).unwrap();
        let stored = lab.directory.path().join("store").join(&installed.file);
        let mut bytes = std::fs::read(&stored).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&stored, &bytes).unwrap();
        let message = lab.store().open(&lab.trusted).unwrap_err().to_string();
        assert!(message.contains("altered"), "{message}");

        let unsigned = lab.model("3.0", 2);
        std::fs::remove_file(signature_path(&unsigned)).unwrap();
        let message = lab.install(&unsigned, false).unwrap_err().to_string();
        assert!(message.contains("not signed"), "{message}");
        assert!(Store::new(&lab.directory.path().join("new")).open(&lab.trusted).is_err());
    }

    #[test]
    fn a_store_that_points_outside_itself_is_refused() {
        let lab = Lab::new();
        lab.install(&lab.model("1.0", 2), false).unwrap();
        let path = lab.directory.path().join("store").join(CURRENT);
        let mut installed: Installed =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        installed.file = "../tiny-1.0-2.onnx".into();
        std::fs::write(&path, serde_json::to_vec(&installed).unwrap()).unwrap();
        assert!(lab.store().open(&lab.trusted).is_err());
    }
}
