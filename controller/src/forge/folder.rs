//! A repository that lies in a folder of this machine, read as it stands there: for the offline derivation.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use async_trait::async_trait;

use super::includes::{Files, gather};
use super::{CiConfig, ForgeError};

/// The most paths that are looked at when a pattern has to be matched.
const MAX_PATHS: usize = 20_000;
/// The largest file that is read, in bytes; the derivation's own limit is lower.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Folders that hold no configuration of the repository's own.
const SKIPPED: [&str; 5] = [".git", "node_modules", "target", "vendor", ".venv"];

/// Reads the CI configuration at `main` in a folder with all that it includes from there; `None` if there is none.
///
/// # Errors
/// A file that exists and cannot be read.
pub async fn ci_config(root: &Path, main: &str) -> Result<Option<CiConfig>, ForgeError> {
    gather(main, &Folder { root: root.to_owned() }, Vec::new()).await
}

/// Reads which of the named files exist in a folder and hold text.
pub fn texts(root: &Path, paths: &[&str]) -> BTreeMap<String, String> {
    let folder = Folder { root: root.to_owned() };
    let read = |path: &&str| {
        let bytes = folder.bytes(path).ok().flatten()?;
        Some(((*path).to_owned(), String::from_utf8(bytes).ok()?))
    };
    paths.iter().filter_map(read).collect()
}

struct Folder {
    root: PathBuf,
}

impl Folder {
    fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        let path = Path::new(path);
        if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Ok(None);
        }
        let full = self.root.join(path);
        let failed = |error: std::io::Error| ForgeError::Refused {
            action: format!("read {}", full.display()),
            detail: error.to_string(),
        };
        match std::fs::metadata(&full) {
            Ok(file) if !file.is_file() => Ok(None),
            Ok(file) if file.len() > MAX_FILE_BYTES => {
                Err(failed(std::io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes"))))
            }
            Ok(_) => std::fs::read(&full).map(Some).map_err(failed),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

#[async_trait]
impl Files for Folder {
    async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        self.bytes(path)
    }

    async fn list(&self) -> Result<Option<Vec<String>>, ForgeError> {
        let mut paths = Vec::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() && !SKIPPED.contains(&entry.file_name().to_string_lossy().as_ref()) {
                    folders.push(entry.path());
                } else if kind.is_file()
                    && let Ok(path) = entry.path().strip_prefix(&self.root)
                {
                    paths.push(path.to_string_lossy().into_owned());
                }
            }
            if paths.len() > MAX_PATHS {
                return Ok(None);
            }
        }
        paths.sort();
        Ok(Some(paths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_read_with_its_includes_and_nothing_outside_of_it() {
        let outer = tempfile::tempdir().expect("a directory");
        let root = outer.path().join("repo");
        std::fs::create_dir_all(root.join("ci")).expect("a folder");
        std::fs::write(outer.path().join("secret.yml"), "x: 1").expect("a file");
        std::fs::write(root.join("ci/a.yml"), "a: {script: x}").expect("a file");
        std::fs::write(root.join(".gitlab-ci.yml"), "include: ['ci/*.yml', '../secret.yml']\n").expect("a file");
        let config = ci_config(&root, ".gitlab-ci.yml").await.expect("read").expect("there is one");
        let CiConfig::Raw { files, notes, .. } = config else { panic!("it is raw") };
        let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, [".gitlab-ci.yml", "ci/a.yml"]);
        assert!(notes.iter().any(|note| note.contains("secret.yml")), "{notes:?}");
        assert!(ci_config(&root, "other.yml").await.expect("read").is_none());
        assert_eq!(texts(&root, &["ci/a.yml", "../secret.yml", "none"]).len(), 1);
    }
}
