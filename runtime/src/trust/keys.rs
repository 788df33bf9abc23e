//! Key files in minisign's format.

use std::fs::OpenOptions;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use minisign::{KeyPair, PublicKey, PublicKeyBox, SecretKey, SecretKeyBox};

use crate::{Error, Result};

/// Suffix of a public key's file.
pub const PUBLIC_SUFFIX: &str = ".pub";

/// Suffix of a secret key's file.
pub const SECRET_SUFFIX: &str = ".key";

/// Longest key or signature file that is read; real ones have a few hundred bytes.
const MAX_BYTES: u64 = 16 << 10;

/// The files of a new key pair.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    /// To be given to every device.
    pub public: PathBuf,
    /// To be kept by whoever releases models.
    pub secret: PathBuf,
    /// The key's id, as `minisign` prints it.
    pub id: String,
}

/// Makes a key pair `<name>.pub` and `<name>.key`; the secret key is encrypted with `password`
/// where there is one, and readable by its owner only.
///
/// # Errors
/// When one of the files is there already, or cannot be written.
pub fn generate(name: &Path, password: Option<&str>) -> Result<KeyFiles> {
    let failed = |error: minisign::PError| Error::Request(format!("no key can be made: {error}"));
    let files = KeyFiles {
        public: with(name, PUBLIC_SUFFIX),
        secret: with(name, SECRET_SUFFIX),
        id: String::new(),
    };
    for file in [&files.public, &files.secret] {
        if file.exists() {
            return Err(Error::output(
                file,
                "a key is here already and is not overwritten; choose another name",
            ));
        }
    }
    let KeyPair { pk, sk } = match password {
        None => KeyPair::generate_unencrypted_keypair(),
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password.to_owned())),
    }
    .map_err(failed)?;
    let comment = format!("minisign secret key of {}", file_name(name));
    let secret = sk.to_box(Some(&comment)).map_err(failed)?.into_string();
    let public = pk.to_box().map_err(failed)?.into_string();
    create(&files.secret, secret.as_bytes(), true)?;
    create(&files.public, public.as_bytes(), false)?;
    Ok(KeyFiles { id: id(pk.keynum()), ..files })
}

/// Reads the secret key at `path`; `password` is asked for only when the key is encrypted.
///
/// # Errors
/// When the file is no secret key or the password is wrong.
pub fn secret_key(path: &Path, password: impl FnOnce() -> Result<String>) -> Result<SecretKey> {
    let text = read_small(path)?;
    let refuse = |error: minisign::PError| {
        Error::Request(format!(
            "{}: no usable secret key ({error}); give the .key file of `diffbulk model keygen` or \
             `minisign -G`",
            path.display()
        ))
    };
    if let Some(key) = without_checksum(&text) {
        return key.map_err(refuse);
    }
    let key_box = SecretKeyBox::from_string(&text).map_err(refuse)?;
    match key_box.into_unencrypted_secret_key() {
        Ok(key) => Ok(key),
        // "Key might be encrypted" is the only case of this kind.
        Err(error) if error.to_string().contains("encrypted") => SecretKeyBox::from_string(&text)
            .and_then(|key| key.into_secret_key(Some(password_of(password)?)))
            .map_err(refuse),
        Err(error) => Err(refuse(error)),
    }
}

/// The key in a file of `minisign -G -W`, which is not encrypted and carries no checksum; the
/// library asks for one. What a checksum is for is found out by signing: a key that was damaged
/// makes signatures that its own public half refuses.
fn without_checksum(text: &str) -> Option<std::result::Result<SecretKey, minisign::PError>> {
    const BYTES: usize = 158;
    let bytes = base64(text.lines().nth(1)?)?;
    let not_encrypted = bytes.get(2..4) == Some(&[0, 0]);
    let no_checksum = bytes.get(BYTES - 32..).is_some_and(|sum| sum.iter().all(|&byte| byte == 0));
    if bytes.len() != BYTES || !not_encrypted || !no_checksum {
        return None;
    }
    let tried = SecretKey::from_bytes(&bytes).and_then(|key| {
        let public = PublicKey::from_secret_key(&key)?;
        let signature = minisign::sign(None, &key, Cursor::new(b"a try"), Some("a try"), None)?;
        minisign::verify(&public, &signature, Cursor::new(b"a try"), true, false, false)?;
        Ok(key)
    });
    Some(tried)
}

/// Standard base64 with its padding; `None` for anything else.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim().trim_end_matches('=');
    let value = |digit: u8| match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let values = digits.bytes().map(value).collect::<Option<Vec<u8>>>()?;
    let mut bytes = Vec::with_capacity(values.len() * 3 / 4);
    for four in values.chunks(4) {
        let joined = four.iter().fold(0u32, |joined, &value| joined << 6 | u32::from(value))
            << (6 * (4 - four.len()));
        bytes.extend_from_slice(&joined.to_be_bytes()[1..four.len()]);
    }
    Some(bytes)
}

/// A password in the shape the library's errors allow.
fn password_of(
    password: impl FnOnce() -> Result<String>,
) -> std::result::Result<String, minisign::PError> {
    password().map_err(|error| minisign::PError::new(minisign::ErrorKind::Io, error.to_string()))
}

/// The public keys whose signatures are believed.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys {
    keys: Vec<PublicKey>,
}

impl TrustedKeys {
    /// Reads public key files; a directory stands for all its `*.pub` files.
    ///
    /// # Errors
    /// When a file is no public key, or a directory holds none.
    pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let mut keys = Vec::new();
        for path in paths.iter().map(AsRef::as_ref) {
            if !path.is_dir() {
                keys.push(public_key(path)?);
                continue;
            }
            let before = keys.len();
            let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
            for entry in entries {
                let file = entry.map_err(Error::io(path))?.path();
                if file.to_string_lossy().ends_with(PUBLIC_SUFFIX) {
                    keys.push(public_key(&file)?);
                }
            }
            if keys.len() == before {
                return Err(Error::Request(format!(
                    "{} holds no public key (*{PUBLIC_SUFFIX})",
                    path.display()
                )));
            }
        }
        Ok(Self { keys })
    }

    /// True when nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key with this number.
    pub(super) fn find(&self, number: &[u8]) -> Option<&PublicKey> {
        self.keys.iter().find(|key| key.keynum() == number)
    }

    /// Ids of all keys, for messages.
    pub(super) fn ids(&self) -> String {
        let ids: Vec<String> = self.keys.iter().map(|key| id(key.keynum())).collect();
        if ids.is_empty() { "none".into() } else { ids.join(", ") }
    }
}

fn public_key(path: &Path) -> Result<PublicKey> {
    PublicKeyBox::from_string(&read_small(path)?).and_then(PublicKeyBox::into_public_key).map_err(
        |error| {
            Error::Request(format!(
                "{}: no minisign public key ({error}); give the .pub file of the key pair",
                path.display()
            ))
        },
    )
}

/// A key's number as `minisign` prints it.
pub(super) fn id(number: &[u8]) -> String {
    number.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

/// A small text file.
pub(super) fn read_small(path: &Path) -> Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(Error::io(path))?;
    Ok(text)
}

/// `path` with `suffix` behind its whole name.
pub(super) fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn create(path: &Path, bytes: &[u8], private: bool) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if private {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = private;
    let written = options.open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|error| crate::output::atomic::explain(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_read_and_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("lab");
        let files = generate(&name, None).unwrap();
        let key = secret_key(&files.secret, || panic!("it is not encrypted")).unwrap();
        let trusted = TrustedKeys::read(&[&files.public]).unwrap();
        assert!(trusted.find(key.keynum()).is_some());
        assert_eq!(trusted.ids(), files.id);
        assert!(generate(&name, None).unwrap_err().to_string().contains("not overwritten"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&files.secret).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(TrustedKeys::read(&[directory.path()]).unwrap().keys.len(), 1);
    }

    #[test]
    fn an_encrypted_key_wants_its_password() {
        let directory = tempfile::tempdir().unwrap();
        let files = generate(&directory.path().join("lab"), Some("correct horse")).unwrap();
        secret_key(&files.secret, || Ok("correct horse".into())).unwrap();
        let wrong = secret_key(&files.secret, || Ok("wrong".into())).unwrap_err().to_string();
        assert!(wrong.contains("lab.key") && wrong.contains("password"), "{wrong}");
    }

    #[test]
    fn a_key_without_a_checksum_is_read_and_a_damaged_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let files = generate(&directory.path().join("lab"), None).unwrap();
        // As `minisign -G -W` writes it: zeros for a checksum, which begins with a whole digit.
        let text = std::fs::read_to_string(&files.secret).unwrap();
        let (comment, key) = text.trim().split_once('\n').unwrap();
        let key = format!("{}{}=", &key[..168], "A".repeat(43));
        let write =
            |key: &str| std::fs::write(&files.secret, format!("{comment}\n{key}\n")).unwrap();
        let read = || secret_key(&files.secret, || panic!("it is not encrypted"));
        write(&key);
        assert_eq!(id(read().unwrap().keynum()), files.id);
        // In the seed, and in the public half behind it.
        for at in [90, 140] {
            let mut damaged = key.clone().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            write(&String::from_utf8(damaged).unwrap());
            let error = read().unwrap_err().to_string();
            assert!(error.contains("no usable secret key"), "{error}");
        }
    }

    #[test]
    fn base64_is_decoded() {
        for (text, bytes) in [("", &b""[..]), ("Zg==", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo")] {
            assert_eq!(base64(text).unwrap(), bytes, "{text}");
        }
        assert_eq!(base64("a\u{e4}"), None);
    }

    #[test]
    fn other_files_are_no_keys() {
        let directory = tempfile::tempdir().unwrap();
        assert!(TrustedKeys::read(&[directory.path()]).is_err());
        let path = directory.path().join("x.pub");
        for text in ["", "one line", "untrusted comment: x\nRWQ", "a\nb\nc\nd"] {
            std::fs::write(&path, text).unwrap();
            assert!(TrustedKeys::read(&[&path]).is_err(), "{text:?}");
            assert!(secret_key(&path, || Ok(String::new())).is_err(), "{text:?}");
        }
    }
}
