//! Signatures over a model's bytes.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use minisign::{SecretKey, SignatureBox};

use super::keys::{self, TrustedKeys};
use super::selftest::Expectation;
use crate::model::{Model, OnnxFile};
use crate::{Error, Result};

/// What is put behind a file's name for its signature's.
pub const SIGNATURE_SUFFIX: &str = ".minisig";

/// What a good signature says.
#[derive(Debug, Clone, PartialEq)]
pub struct Signed {
    /// Id of the key that signed.
    pub key: String,
    /// The signed comment.
    pub comment: String,
    /// What the model has to predict on the self-test tile, where the comment says so.
    pub expectation: Option<Expectation>,
}

/// `<model>.minisig`.
pub fn signature_path(model: &Path) -> PathBuf {
    keys::with(model, SIGNATURE_SUFFIX)
}

/// Signs `bytes`; the signature file's text. `comment` is signed too and must be one line.
///
/// # Errors
/// When the comment has several lines or there is no randomness to be had.
pub fn sign(bytes: &[u8], key: &SecretKey, comment: &str) -> Result<String> {
    if comment.contains(['\n', '\r']) || comment.trim() != comment {
        return Err(Error::Request(
            "a signed comment is one line without spaces around it; give another".into(),
        ));
    }
    let untrusted = format!("signature from minisign secret key {}", keys::id(key.keynum()));
    minisign::sign(None, key, Cursor::new(bytes), Some(comment), Some(&untrusted))
        .map(SignatureBox::into_string)
        .map_err(|error| Error::Request(format!("signing failed: {error}")))
}

/// Checks that `signature` (a signature file's text) is one over `bytes` by a trusted key. `path`
/// only names the model in errors.
///
/// # Errors
/// When it is not; the message says whether the signature, the key or the file is wrong.
pub fn verify(bytes: &[u8], path: &Path, signature: &str, trusted: &TrustedKeys) -> Result<Signed> {
    let refuse = |problem: String| Error::model(path, problem);
    let damaged = |error: minisign::PError| {
        refuse(format!("its signature file is damaged ({error}); get file and signature again"))
    };
    // The library trusts the length of the comment's signature: 64 bytes are 88 characters.
    let last = signature.lines().nth(3).unwrap_or_default().trim();
    if last.len() != 88 || !last.ends_with("==") {
        return Err(refuse("its signature file is damaged; get file and signature again".into()));
    }
    let signature = SignatureBox::from_string(signature).map_err(damaged)?;
    let Some(key) = trusted.find(signature.keynum()) else {
        return Err(refuse(format!(
            "it is signed with key {}, which is not trusted here (trusted: {}); give its public \
             key with --key if you do trust it",
            keys::id(signature.keynum()),
            trusted.ids()
        )));
    };
    minisign::verify(key, &signature, Cursor::new(bytes), true, false, false).map_err(|error| {
        refuse(format!(
            "its signature does not fit ({error}): the file or the signature was altered; get \
             both again from where the model was released"
        ))
    })?;
    let comment = signature.trusted_comment().map_err(damaged)?;
    let expectation = Expectation::find(&comment)
        .transpose()
        .map_err(|problem| refuse(format!("its signed comment is wrong: {problem}")))?;
    Ok(Signed { key: keys::id(signature.keynum()), comment, expectation })
}

/// Opens the model at `path` only if `<path>.minisig` is a signature over exactly the bytes that
/// are used, by a trusted key.
///
/// # Errors
/// When there is no signature, a wrong one, or the file is no model.
pub fn open_signed(path: &Path, trusted: &TrustedKeys) -> Result<(Model, Signed)> {
    let bytes = read(path)?;
    let signed = verify(&bytes, path, &signature_text(path)?, trusted)?;
    let model = Model::from_file(OnnxFile::from_bytes(&bytes, path)?)?;
    Ok((model, signed))
}

/// A model's bytes, once: what was verified is what is used.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    file.take(crate::model::MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// The text of a model's signature file.
pub(super) fn signature_text(path: &Path) -> Result<String> {
    let file = signature_path(path);
    keys::read_small(&file).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Error::model(
            path,
            format!(
                "it is not signed: there is no {}; sign it with `diffbulk model sign`",
                file.display()
            ),
        ),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Lab {
        _directory: tempfile::TempDir,
        key: SecretKey,
        trusted: TrustedKeys,
    }

    fn lab() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let files = keys::generate(&directory.path().join("lab"), None).unwrap();
        Lab {
            key: keys::secret_key(&files.secret, || unreachable!()).unwrap(),
            trusted: TrustedKeys::read(&[&files.public]).unwrap(),
            _directory: directory,
        }
    }

    fn check(bytes: &[u8], text: &str, trusted: &TrustedKeys) -> Result<Signed> {
        verify(bytes, Path::new("m.onnx"), text, trusted)
    }

    #[test]
    fn a_signature_fits_its_bytes_and_its_key_only() {
        let (lab, other) = (lab(), lab());
        let text = sign(b"model", &lab.key, "model:m version:1").unwrap();
        let signed = check(b"model", &text, &lab.trusted).unwrap();
        assert_eq!(signed.comment, "model:m version:1");
        assert_eq!(signed.expectation, None);
        let altered = check(b"modem", &text, &lab.trusted).unwrap_err().to_string();
        assert!(altered.contains("altered"), "{altered}");
        let comment = text.replace("version:1", "version:2");
        assert!(check(b"model", &comment, &lab.trusted).is_err());
        let stranger = check(b"model", &text, &other.trusted).unwrap_err().to_string();
        assert!(stranger.contains("not trusted") && stranger.contains(&signed.key), "{stranger}");
        assert!(check(b"model", &text, &TrustedKeys::default()).is_err());
        assert!(sign(b"model", &lab.key, "two\nlines").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_damaged_signature_is_accepted_or_panics(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<char>()), 1..4),
            cut in any::<prop::sample::Index>(), shorten in any::<bool>(),
        ) {
            let lab = lab();
            let text = sign(b"model", &lab.key, "c").unwrap();
            let mut damaged: Vec<char> = text.chars().collect();
            for (at, value) in edits {
                let at = at.index(damaged.len());
                damaged[at] = value;
            }
            if shorten {
                damaged.truncate(cut.index(damaged.len()));
            }
            let damaged: String = damaged.into_iter().collect();
            if let Ok(signed) = check(b"model", &damaged, &lab.trusted) {
                // Only what is not signed (the first line, spaces at the ends) may differ.
                let of = |text: &str| -> Vec<String> {
                    text.lines().skip(1).take(3).map(|line| line.trim().to_owned()).collect()
                };
                prop_assert_eq!(of(&damaged), of(&text));
                prop_assert_eq!(signed.comment, "c");
            }
        }

        #[test]
        fn any_text_is_no_signature(text in any::<String>()) {
            prop_assert!(check(b"model", &text, &TrustedKeys::default()).is_err());
        }
    }
}
