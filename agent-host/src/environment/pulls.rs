//! How images may be pulled, and which of those that are here were brought with whose login.
//!
//! What CI says about an image counts where the project's setting leaves it open. A host may have mirrors of registries.
//! An engine hands out what it has to everybody. So an image that came with a project's login is remembered, by name and
//! by content, before it is pulled; another project has to show to the registry that it may have it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use devfleet_shared::environment::{EnvironmentSpec, PullPolicy, ServiceSpec};

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

/// An image by name, as an environment wants it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its name.
    pub reference: &'a str,
    /// `linux/amd64` and the like; empty: the engine's own.
    pub platform: &'a str,
    /// When CI wants it to be pulled.
    pub pull: Option<PullPolicy>,
}

impl<'a> Wanted<'a> {
    /// The CI image of an environment.
    pub fn base(environment: &'a EnvironmentSpec) -> Self {
        let platform = environment.platform.as_deref().unwrap_or_default();
        Self { reference: &environment.image, platform, pull: environment.pull }
    }

    /// The image of a service.
    pub fn service(service: &'a ServiceSpec) -> Self {
        let platform = service.platform.as_deref().unwrap_or_default();
        Self { reference: &service.image, platform, pull: service.pull }
    }

    /// Says whether an image runs on the platform that is wanted. Only what both name is compared: an image made for
    /// `linux/arm/v7` serves where `linux/arm` is wanted.
    pub fn accepts(&self, platform: &str) -> bool {
        self.platform.is_empty() || self.platform.split('/').zip(platform.split('/')).all(|(one, other)| one == other)
    }
}

impl Pulls {
    /// Returns when an image is pulled. A project that set something else than the default has the last word: `never` is
    /// a rule of the operator's, and `always` already is the strictest that CI could say.
    pub fn policy_of(&self, wanted: &Wanted<'_>) -> PullPolicy {
        match self.policy {
            PullPolicy::IfNotPresent => wanted.pull.unwrap_or(PullPolicy::IfNotPresent),
            set => set,
        }
    }

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

/// The mirrors of registries that a host asks first: `docker.io` and where its images lie too,
/// `mirror.example.com:5000/hub`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryMirrors(pub BTreeMap<String, String>);

impl RegistryMirrors {
    /// Returns the name under which a mirror has an image, if its registry has a mirror.
    pub fn name_of(&self, reference: &str) -> Option<String> {
        let registry = registry_of(reference);
        let mirror = self.0.get(registry)?;
        let rest = reference.strip_prefix(registry).and_then(|rest| rest.strip_prefix('/')).unwrap_or(reference);
        // Docker's own registry keeps images without a team under this name.
        let official = registry == "docker.io" && !rest.contains('/');
        Some(if official { format!("{mirror}/library/{rest}") } else { format!("{mirror}/{rest}") })
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
    fn ci_is_heard_where_the_project_leaves_it_open() {
        use PullPolicy::{Always, IfNotPresent, Never};
        for (project, ci, expected) in [
            (IfNotPresent, None, IfNotPresent),
            (IfNotPresent, Some(Always), Always),
            (IfNotPresent, Some(Never), Never),
            (Always, Some(Never), Always),
            (Never, Some(Always), Never),
            (Never, None, Never),
        ] {
            let pulls = Pulls { policy: project, ..Pulls::default() };
            let wanted = Wanted { reference: "a", platform: "", pull: ci };
            assert_eq!(pulls.policy_of(&wanted), expected, "{project:?}, CI says {ci:?}");
        }
    }

    #[test]
    fn a_platform_fits_as_far_as_both_name_it() {
        for (wanted, found, expected) in [
            ("", "linux/amd64", true),
            ("linux/amd64", "linux/amd64", true),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/amd64", false),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("windows/amd64", "linux/amd64", false),
        ] {
            let accepts = Wanted { reference: "a", platform: wanted, pull: None }.accepts(found);
            assert_eq!(accepts, expected, "{wanted} and {found}");
        }
    }

    #[test]
    fn a_mirror_has_the_same_image_under_its_own_name() {
        let mirrors = RegistryMirrors(BTreeMap::from([
            ("docker.io".into(), "mirror.example.com:5000/hub".into()),
            ("registry.example.com".into(), "near.example.com".into()),
        ]));
        for (reference, expected) in [
            ("python:3.11", Some("mirror.example.com:5000/hub/library/python:3.11")),
            ("docker.io/library/python", Some("mirror.example.com:5000/hub/library/python")),
            ("docker.io/python", Some("mirror.example.com:5000/hub/library/python")),
            ("team/app@sha256:0", Some("mirror.example.com:5000/hub/team/app@sha256:0")),
            ("registry.example.com/team/app:1", Some("near.example.com/team/app:1")),
            ("registry.example.com:5000/team/app:1", None),
            ("localhost/app", None),
        ] {
            assert_eq!(mirrors.name_of(reference).as_deref(), expected, "{reference}");
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
