//! What an environment is made of, as data.
//!
//! The controller derives it from a project's CI configuration, a person approves its digest, a host builds it.
//! Nothing here is secret: variables are the ones that stand in the CI file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// The environment of one job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EnvironmentSpec {
    /// The CI image by name, variables expanded: `registry.example.com/team/app:1.2`.
    pub image: String,
    /// Replaces the image's own entrypoint. `Some([])` and `Some([""])` mean none.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's own user.
    pub user: Option<String>,
    /// `linux/amd64` and the like; the engine's own when absent.
    pub platform: Option<String>,
    /// When CI wants the image to be pulled; the project's setting counts when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Service containers, in the order in which the CI file names them.
    pub services: Vec<ServiceSpec>,
    /// Variables for every step, as they stand in the CI file.
    pub variables: BTreeMap<String, String>,
    /// Directories that are worth keeping between jobs.
    pub caches: Vec<CacheSpec>,
    /// Shell lines that install dependencies (the CI's `before_script`). Run by the `setup` step.
    pub setup: Vec<String>,
    /// Shell lines that check the result (the CI job's `script`). Run by the `verify` step.
    pub verify: Vec<String>,
}

/// When an image is pulled from its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// When it is not there, or was brought with another project's login.
    #[default]
    IfNotPresent,
    /// Each time, so that a moved tag is followed. Needs the registry to answer.
    Always,
    /// Not at all: what is used must have been brought by the operator.
    Never,
}

impl PullPolicy {
    /// All of them.
    pub const ALL: [PullPolicy; 3] = [PullPolicy::IfNotPresent, PullPolicy::Always, PullPolicy::Never];

    /// Returns its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            PullPolicy::IfNotPresent => "if-not-present",
            PullPolicy::Always => "always",
            PullPolicy::Never => "never",
        }
    }

    /// Returns the one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

/// One service container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The role in the container's name: the first alias, reduced to `[a-z0-9-]`, unique in the environment.
    pub name: String,
    /// The image by name.
    pub image: String,
    /// The names under which the steps reach it.
    pub aliases: Vec<String>,
    /// Replaces the image's own entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's own command.
    pub command: Option<Vec<String>>,
    /// `linux/amd64` and the like; the engine's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// When CI wants the image to be pulled; the project's setting counts when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Variables for the service: the job's public ones and its own.
    pub variables: BTreeMap<String, String>,
}

/// A directory that a package manager fills.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CacheSpec {
    /// The path, relative to the workspace unless it is absolute.
    pub path: String,
    /// The cache key as written in the CI file, variables expanded.
    pub key: String,
    /// Files whose content keys the cache, relative to the workspace.
    pub lock_files: Vec<String>,
}

/// What an image is made from, on top of the environment's CI image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The Dockerfile. It declares `ARG DEVFLEET_USER`, which the host sets to the base image's own user.
    pub dockerfile: String,
    /// Files that the Dockerfile copies, taken from the host.
    pub files: Vec<RecipeFile>,
    /// `linux/amd64` and the like; the engine's own when empty.
    pub platform: String,
    /// Over all of the above. The base image counts as the Dockerfile names it: by its content where that is a digest
    /// (`ruby@sha256:…`), else by its name. [`Recipe::on`] is over the content in any case.
    pub digest: Digest,
}

/// A file of the host that goes into an image: an agent's binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeFile {
    /// Its name in the build context.
    pub name: String,
    /// Where it lies on the host.
    pub host_path: String,
    /// What it must hold.
    pub digest: Digest,
}

impl Recipe {
    /// The version of the way in which hosts build recipes. Raising it makes every image be built anew.
    pub const BUILDER_VERSION: &'static str = "1";

    /// Makes a recipe and its digest.
    pub fn new(dockerfile: String, files: Vec<RecipeFile>, platform: String) -> Self {
        let mut parts: Vec<Vec<u8>> =
            vec![Self::BUILDER_VERSION.into(), dockerfile.clone().into_bytes(), platform.clone().into_bytes()];
        for file in &files {
            parts.push(file.name.clone().into_bytes());
            parts.push(file.digest.to_string().into_bytes());
        }
        let digest = Digest::over(parts.iter().map(Vec::as_slice));
        Self { dockerfile, files, platform, digest }
    }

    /// Returns the digest of the image that this recipe makes on a base: over everything that goes into it, and the same on
    /// every machine that has the same. `base` is the digest of the base image's content, `user` the one it runs as,
    /// `platform` the one that was wanted of it.
    pub fn on(&self, base: &str, user: &str, platform: &str) -> Digest {
        let parts = [self.digest.as_str(), base, user, Self::BUILDER_VERSION, &self.platform, platform];
        Digest::over(parts.map(str::as_bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts() -> impl Strategy<Value = (String, Vec<(String, Vec<u8>)>, String)> {
        let file = (any::<String>(), proptest::collection::vec(any::<u8>(), 0..8));
        (any::<String>(), proptest::collection::vec(file, 0..4), any::<String>())
    }

    proptest! {
        /// Texts that run into one another (`ab` and `c`, `a` and `bc`) are among the generated ones.
        #[test]
        fn equal_recipes_have_equal_digests_and_any_change_changes_it(one in parts(), other in parts(), cut in 0_usize..8) {
            let recipe = |(text, files, platform): &(String, Vec<(String, Vec<u8>)>, String)| {
                let file = |(name, content): &(String, Vec<u8>)| RecipeFile {
                    name: name.clone(), host_path: "/anywhere".into(), digest: Digest::of(content),
                };
                Recipe::new(text.clone(), files.iter().map(file).collect(), platform.clone()).digest
            };
            prop_assert_eq!(recipe(&one) == recipe(&other), one == other);
            prop_assert_eq!(recipe(&one), recipe(&one.clone()));
            let mut moved = one.clone();
            if let Some((at, _)) = one.0.char_indices().nth(cut) {
                moved.2 = format!("{}{}", &one.0[at..], one.2);
                moved.0.truncate(at);
                prop_assert_ne!(recipe(&moved), recipe(&one));
            }
            let mut more = one.clone();
            more.1.push((String::new(), Vec::new()));
            prop_assert_ne!(recipe(&more), recipe(&one));
        }
    }

    #[test]
    fn any_changed_input_changes_the_recipe_digest() {
        let file = |content: &[u8]| RecipeFile {
            name: "claude".into(),
            host_path: "/opt/claude".into(),
            digest: Digest::of(content),
        };
        let recipe = |text: &str, content: &[u8], platform: &str| {
            Recipe::new(text.into(), vec![file(content)], platform.into()).digest
        };
        let base = recipe("FROM a", b"1", "");
        assert_eq!(base, recipe("FROM a", b"1", ""));
        assert_ne!(base, recipe("FROM b", b"1", ""));
        assert_ne!(base, recipe("FROM a", b"2", ""));
        assert_ne!(base, recipe("FROM a", b"1", "linux/arm64"));
    }

    #[test]
    fn any_changed_input_changes_the_digest_of_the_image() {
        let recipe = |text: &str| Recipe::new(text.into(), Vec::new(), String::new());
        let image = recipe("FROM a:1").on("sha256:1", "0", "");
        assert_eq!(image, recipe("FROM a:1").on("sha256:1", "0", ""), "the same on every machine");
        for (what, other) in [
            ("the recipe", recipe("FROM a:2").on("sha256:1", "0", "")),
            ("what the base's name stands for", recipe("FROM a:1").on("sha256:2", "0", "")),
            ("the base's user", recipe("FROM a:1").on("sha256:1", "1000", "")),
            ("the platform", recipe("FROM a:1").on("sha256:1", "0", "linux/arm64")),
            ("where one input ends", recipe("FROM a:1").on("sha256:10", "", "")),
        ] {
            assert_ne!(image, other, "{what}");
        }
    }
}
