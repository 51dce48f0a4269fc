//! How images may be pulled, and which of those that are here were brought with whose login.
//!
//! An engine hands out what it has to everybody. So an image that came with a project's login is remembered, by name and
//! by content, before it is pulled; another project has to show to the registry that it may have it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use devfleet_shared::environment::PullPolicy;

use crate::engine::RegistryCredential;

/// What a project may pull, and how.
#[derive(Debug, Clone, Default)]
pub struct Pulls {
    /// The project.
    pub project: String,
    /// Registries (`registry.example.com`), and the credential for each.
    pub logins: Vec<(String, RegistryCredential)>,
    /// When a pull is made.
    pub policy: PullPolicy,
}

impl Pulls {
    /// Returns the credential for an image.
    pub fn login(&self, reference: &str) -> Option<&RegistryCredential> {
        let registry = registry_of(reference);
        self.logins.iter().find(|(of, _)| of == registry).map(|(_, login)| login)
    }
}

/// Returns the registry that an image name names; Docker's own when it names none.
fn registry_of(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

/// Which projects showed that they may have which image. Holds names and digests, no credential.
#[derive(Debug, Default)]
pub struct PrivateImages {
    path: Option<PathBuf>,
    projects: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl PrivateImages {
    /// Reads what is remembered in a file, which need not exist yet.
    ///
    /// # Errors
    /// It cannot be read, or is not what belongs there.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let projects = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(std::io::Error::other)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path: Some(path.to_owned()), projects: Mutex::new(projects) })
    }

    /// Says whether one of these names or ids came with a login, and not with one of this project.
    pub fn is_foreign(&self, names: &[&str], project: &str) -> bool {
        let projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().filter_map(|name| projects.get(*name)).any(|allowed| !allowed.contains(project))
    }

    /// Remembers that a project may have an image. On disk when this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn allow(&self, name: &str, project: &str) -> std::io::Result<()> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if !projects.entry(name.to_owned()).or_default().insert(project.to_owned()) {
            return Ok(());
        }
        let Some(path) = &self.path else { return Ok(()) };
        let written = path.with_extension("new");
        std::fs::write(&written, serde_json::to_vec(&*projects).map_err(std::io::Error::other)?)?;
        std::fs::File::open(&written)?.sync_all()?;
        std::fs::rename(&written, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_the_first_part_when_it_looks_like_a_host() {
        for (reference, registry) in [
            ("python:3.11", "docker.io"),
            ("team/app", "docker.io"),
            ("registry.example.com/team/app:1", "registry.example.com"),
            ("localhost/app", "localhost"),
            ("build-host:5000/app", "build-host:5000"),
        ] {
            assert_eq!(registry_of(reference), registry, "{reference}");
        }
    }

    #[test]
    fn what_came_with_a_login_is_remembered_across_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("private-images.json");
        let images = PrivateImages::open(&path).expect("a new one");
        assert!(!images.is_foreign(&["app:1", "sha256:a"], "web"), "what came without a login is everybody's");
        images.allow("sha256:a", "api").expect("written");
        for images in [images, PrivateImages::open(&path).expect("read again")] {
            assert!(images.is_foreign(&["app:1", "sha256:a"], "web"));
            assert!(!images.is_foreign(&["app:1", "sha256:a"], "api"));
            assert!(!images.is_foreign(&["sha256:b"], "web"));
        }
        std::fs::write(&path, "nonsense").expect("written");
        assert!(PrivateImages::open(&path).is_err(), "what cannot be read is not taken for nothing");
    }
}
