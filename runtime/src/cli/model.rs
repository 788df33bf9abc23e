//! `diffbulk model`: signing, checking and installing models.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::print;
use crate::engine::{self, ENGINES};
use crate::model::{Model, locate};
use crate::trust::selftest::{self, Expectation};
use crate::trust::{self, Install, Store, TrustedKeys};
use crate::{Error, Result};

/// Signs, checks and installs models.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key pair: NAME.pub for the devices, NAME.key for whoever releases models.
    Keygen {
        /// Path of the files, without suffix.
        name: PathBuf,
        /// File whose first line is the password the secret key is encrypted with.
        #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
        password_file: Option<PathBuf>,
        /// Leave the secret key unencrypted.
        #[arg(long)]
        no_password: bool,
    },
    /// Sign a model: writes MODEL.minisig, which `minisign -V` accepts too.
    Sign {
        /// Model to sign [default: the shipped model].
        model: Option<PathBuf>,
        /// Secret key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// File whose first line is the key's password [default: asked for].
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Where to write the signature [default: MODEL.minisig].
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        engine: EngineName,
    },
    /// Check a model's signature, and that it predicts the self-test tile as when it was signed.
    Verify {
        /// Model to check [default: the shipped model].
        model: Option<PathBuf>,
        #[command(flatten)]
        keys: Keys,
        #[command(flatten)]
        engine: EngineName,
    },
    /// Put a signed model into a device's store, replacing the one in use once it is proven.
    Install {
        /// Model to install, with its signature beside it.
        model: PathBuf,
        /// Directory of the store.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        #[command(flatten)]
        keys: Keys,
        /// Install an older version than there was before.
        #[arg(long)]
        allow_older: bool,
        /// What the self-test has to give, for signatures whose comment does not tell.
        #[arg(long, value_name = "selftest:...")]
        expect: Option<Expectation>,
        #[command(flatten)]
        engine: EngineName,
    },
    /// Print what a model predicts on the self-test tile, as `minisign -t` takes it.
    Selftest {
        /// Model to try [default: the shipped model].
        model: Option<PathBuf>,
        #[command(flatten)]
        engine: EngineName,
    },
}

/// Whose signatures are believed.
#[derive(Debug, Args)]
pub(super) struct Keys {
    /// Public key that is trusted, or a directory of them; may be given several times.
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
}

/// Which engine predicts.
#[derive(Debug, Args)]
struct EngineName {
    /// Engine that runs the model.
    #[arg(long, value_name = "NAME", default_value = ENGINES[0].name)]
    engine: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Keygen { name, password_file, no_password } => {
            let password = match password_file {
                Some(file) => Some(first_line(file)?),
                None if *no_password => None,
                None => {
                    return Err(Error::Request(
                        "give the new key's password with --password-file, or --no-password to \
                         leave it unencrypted"
                            .into(),
                    ));
                }
            };
            let files = trust::generate(name, password.as_deref())?;
            print(&format!(
                "key {}\n  {}  for the devices\n  {}  keep it secret\n",
                files.id,
                files.public.display(),
                files.secret.display()
            ))
        }
        Command::Sign { model, key, password_file, output, engine } => {
            let model = locate::locate(model.as_deref())?;
            let output = output.clone().unwrap_or_else(|| trust::signature_path(&model));
            sign(&model, key, password_file.as_deref(), &output, &engine.engine)
        }
        Command::Verify { model, keys, engine } => {
            let path = locate::locate(model.as_deref())?;
            let (model, signed) = trust::open_signed(&path, &keys.read()?)?;
            let tried = match &signed.expectation {
                None => "the signed comment does not say what it predicts".to_owned(),
                Some(expectation) => {
                    let values = predict(&model, &engine.engine)?;
                    if !expectation.is_met_by(&values) {
                        return Err(Error::model(
                            &path,
                            "signed, but on this machine it predicts the self-test tile \
                             differently; do not use it here",
                        ));
                    }
                    "it predicts the self-test tile as when it was signed".to_owned()
                }
            };
            print(&format!(
                "{}: {} {}, signed with key {}; {tried}\n",
                path.display(),
                model.metadata().name,
                model.metadata().version,
                signed.key
            ))
        }
        Command::Install { model, store, keys, allow_older, expect, engine } => {
            let installed = Store::new(store).install(&Install {
                model,
                trusted: &keys.read()?,
                engine: &|model| engine::open(&engine.engine, model),
                expectation: expect.clone(),
                allow_older: *allow_older,
            })?;
            print(&format!(
                "{} {} is in use in {} ({})\n",
                installed.name,
                installed.version,
                store.display(),
                installed.file
            ))
        }
        Command::Selftest { model, engine } => {
            let model = Model::open(&locate::locate(model.as_deref())?)?;
            let values = predict(&model, &engine.engine)?;
            print(&format!("{}\n", comment(&model, &Expectation::of(&values)?)))
        }
    }
}

impl Keys {
    fn read(&self) -> Result<TrustedKeys> {
        TrustedKeys::read(&self.keys)
    }
}

fn sign(
    path: &Path,
    key: &Path,
    password_file: Option<&Path>,
    output: &Path,
    engine: &str,
) -> Result<()> {
    let key = trust::secret_key(key, || match password_file {
        Some(file) => first_line(file),
        None => Err(Error::Request(
            "the key is encrypted; give its password with --password-file".into(),
        )),
    })?;
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let model = Model::from_file(crate::model::OnnxFile::from_bytes(&bytes, path)?)?;
    let comment = comment(&model, &Expectation::of(&predict(&model, engine)?)?);
    let text = trust::sign(&bytes, &key, &comment)?;
    crate::output::atomic::write(output, text.as_bytes())?;
    print(&format!("{}\n  {comment}\n", output.display()))
}

/// What is signed beside the model's bytes.
fn comment(model: &Model, expectation: &Expectation) -> String {
    let word = |text: &str| text.split_whitespace().collect::<Vec<_>>().join("_");
    let metadata = model.metadata();
    format!("model:{} version:{} {expectation}", word(&metadata.name), word(&metadata.version))
}

fn predict(model: &Model, engine: &str) -> Result<Vec<f32>> {
    selftest::predict(&*engine::open(engine, model)?, model)
}

fn first_line(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err(Error::Request(format!(
            "{} is empty; its first line has to be the password",
            path.display()
        ))),
    }
}
