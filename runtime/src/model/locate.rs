//! Which model is meant when the user names none.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Environment variable that names the model to use.
pub const VARIABLE: &str = "DIFFBULK_MODEL";

/// The shipped model, relative to a checkout or an installation's share directory.
pub const SHIPPED: &str = "models/her2st-edge.onnx";

/// The model to use: `named` by the user, or else by the environment variable [`VARIABLE`], or
/// else the shipped one, looked for below the current directory, then below every directory above
/// the program (a checkout's build folder, or `<prefix>/bin` with `<prefix>/share/diffbulk`).
///
/// # Errors
/// When there is none; the message tells where was looked and how to name one.
pub fn locate(named: Option<&Path>) -> Result<PathBuf> {
    let variable = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    pick(named, variable, &directory, &program)
}

fn pick(
    named: Option<&Path>,
    variable: Option<PathBuf>,
    directory: &Path,
    program: &Path,
) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    if let Some(path) = variable {
        if path.is_file() {
            return Ok(path);
        }
        return Err(Error::Request(format!(
            "no model at {}, which the environment variable {VARIABLE} names; correct it, or name \
             a model with --model FILE",
            path.display()
        )));
    }
    let mut candidates = vec![directory.join(SHIPPED)];
    for above in program.ancestors().skip(1) {
        candidates.push(above.join(SHIPPED));
        candidates.push(above.join("share/diffbulk").join(SHIPPED));
    }
    match candidates.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Err(Error::Request(format!(
            "the shipped model {SHIPPED} is neither below {} nor beside the program {}; name a \
             model with --model FILE or the environment variable {VARIABLE}",
            directory.display(),
            program.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_then_variable_then_current_directory_then_beside_the_program() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let touch = |path: PathBuf| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"").unwrap();
            path
        };
        let here = root.join("here");
        let program = root.join("prefix/bin/diffbulk");
        let shared = touch(root.join("prefix/share/diffbulk").join(SHIPPED));
        assert_eq!(pick(None, None, &here, &program).unwrap(), shared);
        let local = touch(here.join(SHIPPED));
        assert_eq!(pick(None, None, &here, &program).unwrap(), local);
        let other = touch(root.join("other.onnx"));
        assert_eq!(pick(None, Some(other.clone()), &here, &program).unwrap(), other);
        let named = Path::new("named.onnx");
        assert_eq!(pick(Some(named), Some(other), &here, &program).unwrap(), named);
    }

    #[test]
    fn nothing_found_tells_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("diffbulk");
        let message = pick(None, None, root.path(), &program).unwrap_err().to_string();
        assert!(message.contains("--model"), "{message}");
        assert!(message.contains(VARIABLE), "{message}");
        let gone = pick(None, Some(root.path().join("gone.onnx")), root.path(), &program);
        assert!(gone.unwrap_err().to_string().contains("gone.onnx"));
    }
}
