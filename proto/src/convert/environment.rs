//! What an environment is made of. A list that is absent differs from one that is empty; a text does not.

use devfleet_shared::environment::{CacheSpec, EnvironmentSpec, PullPolicy, Recipe, RecipeFile, ServiceSpec};

use super::{WireError, absent_if_empty, parsed};
use crate::v1;

fn list(items: &Option<Vec<String>>) -> Option<v1::StringList> {
    items.clone().map(|items| v1::StringList { items })
}

fn pull_name(policy: Option<PullPolicy>) -> String {
    policy.map(PullPolicy::name).unwrap_or_default().to_owned()
}

fn pull_policy(field: &'static str, name: &str) -> Result<Option<PullPolicy>, WireError> {
    match PullPolicy::named(name) {
        None if !name.is_empty() => Err(WireError::new(field, format!("{name:?} is no pull policy"))),
        policy => Ok(policy),
    }
}

impl From<&EnvironmentSpec> for v1::Environment {
    fn from(spec: &EnvironmentSpec) -> Self {
        Self {
            image: spec.image.clone(),
            entrypoint: list(&spec.entrypoint),
            user: spec.user.clone().unwrap_or_default(),
            platform: spec.platform.clone().unwrap_or_default(),
            pull_policy: pull_name(spec.pull),
            services: spec.services.iter().map(Into::into).collect(),
            variables: spec.variables.clone().into_iter().collect(),
            caches: spec.caches.iter().map(Into::into).collect(),
            setup: spec.setup.clone(),
            verify: spec.verify.clone(),
        }
    }
}

impl TryFrom<v1::Environment> for EnvironmentSpec {
    type Error = WireError;
    fn try_from(wire: v1::Environment) -> Result<Self, WireError> {
        if wire.image.is_empty() {
            return Err(WireError::new("Environment.image", "it is empty"));
        }
        Ok(Self {
            image: wire.image,
            entrypoint: wire.entrypoint.map(|list| list.items),
            user: absent_if_empty(wire.user),
            platform: absent_if_empty(wire.platform),
            pull: pull_policy("Environment.pull_policy", &wire.pull_policy)?,
            services: wire.services.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            variables: wire.variables.into_iter().collect(),
            caches: wire.caches.into_iter().map(Into::into).collect(),
            setup: wire.setup,
            verify: wire.verify,
        })
    }
}

impl From<&ServiceSpec> for v1::Service {
    fn from(spec: &ServiceSpec) -> Self {
        Self {
            name: spec.name.clone(),
            image: spec.image.clone(),
            aliases: spec.aliases.clone(),
            entrypoint: list(&spec.entrypoint),
            command: list(&spec.command),
            platform: spec.platform.clone().unwrap_or_default(),
            pull_policy: pull_name(spec.pull),
            variables: spec.variables.clone().into_iter().collect(),
        }
    }
}

impl TryFrom<v1::Service> for ServiceSpec {
    type Error = WireError;
    fn try_from(wire: v1::Service) -> Result<Self, WireError> {
        if wire.name.is_empty() {
            return Err(WireError::new("Service.name", "it is empty"));
        }
        if wire.image.is_empty() {
            return Err(WireError::new("Service.image", format!("it is empty for the service {:?}", wire.name)));
        }
        Ok(Self {
            name: wire.name,
            image: wire.image,
            aliases: wire.aliases,
            entrypoint: wire.entrypoint.map(|list| list.items),
            command: wire.command.map(|list| list.items),
            platform: absent_if_empty(wire.platform),
            pull: pull_policy("Service.pull_policy", &wire.pull_policy)?,
            variables: wire.variables.into_iter().collect(),
        })
    }
}

impl From<&CacheSpec> for v1::Cache {
    fn from(spec: &CacheSpec) -> Self {
        Self { path: spec.path.clone(), key: spec.key.clone(), lock_files: spec.lock_files.clone() }
    }
}

impl From<v1::Cache> for CacheSpec {
    fn from(wire: v1::Cache) -> Self {
        Self { path: wire.path, key: wire.key, lock_files: wire.lock_files }
    }
}

impl From<&Recipe> for v1::Recipe {
    fn from(recipe: &Recipe) -> Self {
        Self {
            dockerfile: recipe.dockerfile.clone(),
            files: recipe.files.iter().map(Into::into).collect(),
            platform: recipe.platform.clone(),
            digest: recipe.digest.to_string(),
        }
    }
}

impl TryFrom<v1::Recipe> for Recipe {
    type Error = WireError;
    fn try_from(wire: v1::Recipe) -> Result<Self, WireError> {
        Ok(Self {
            dockerfile: wire.dockerfile,
            files: wire.files.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            platform: wire.platform,
            digest: parsed("Recipe.digest", &wire.digest)?,
        })
    }
}

impl From<&RecipeFile> for v1::RecipeFile {
    fn from(file: &RecipeFile) -> Self {
        Self { name: file.name.clone(), host_path: file.host_path.clone(), digest: file.digest.to_string() }
    }
}

impl TryFrom<v1::RecipeFile> for RecipeFile {
    type Error = WireError;
    fn try_from(wire: v1::RecipeFile) -> Result<Self, WireError> {
        let digest = parsed("RecipeFile.digest", &wire.digest)?;
        Ok(Self { name: wire.name, host_path: wire.host_path, digest })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use devfleet_shared::id::Digest;

    use super::*;

    pub(in crate::convert) fn environment() -> EnvironmentSpec {
        let service = ServiceSpec {
            name: "redis".into(),
            image: "redis:8".into(),
            aliases: vec!["redis".into(), "cache".into()],
            entrypoint: Some(vec![]),
            command: Some(vec!["redis-server".into(), "--save".into(), String::new()]),
            platform: Some("linux/arm64".into()),
            pull: Some(PullPolicy::Never),
            variables: BTreeMap::from([("A".into(), "1".into())]),
        };
        EnvironmentSpec {
            image: "python:3.14".into(),
            entrypoint: Some(vec![String::new()]),
            user: Some("app".into()),
            platform: Some("linux/amd64".into()),
            pull: Some(PullPolicy::Always),
            services: vec![service, ServiceSpec { name: "db".into(), image: "postgres".into(), ..Default::default() }],
            variables: BTreeMap::from([("CI".into(), "true".into()), ("EMPTY".into(), String::new())]),
            caches: vec![CacheSpec { path: ".cache".into(), key: "k".into(), lock_files: vec!["a.lock".into()] }],
            setup: vec!["pip install -r requirements.txt".into()],
            verify: vec!["pytest".into(), "ruff check".into()],
        }
    }

    pub(in crate::convert) fn recipe() -> Recipe {
        let file = RecipeFile { name: "claude".into(), host_path: "/opt/claude".into(), digest: Digest::of(b"claude") };
        Recipe::new("ARG DEVFLEET_USER\nFROM python:3.14\n".into(), vec![file], "linux/amd64".into())
    }

    #[test]
    fn environments_and_recipes_come_back_as_they_went() {
        let bare = EnvironmentSpec { image: "a".into(), ..Default::default() };
        for spec in [environment(), bare] {
            assert_eq!(EnvironmentSpec::try_from(v1::Environment::from(&spec)), Ok(spec));
        }
        assert_eq!(Recipe::try_from(v1::Recipe::from(&recipe())), Ok(recipe()));
    }

    #[test]
    fn an_absent_list_and_an_empty_one_stay_apart() {
        let with = |entrypoint| EnvironmentSpec { entrypoint, ..environment() };
        for spec in [with(None), with(Some(vec![]))] {
            let back = EnvironmentSpec::try_from(v1::Environment::from(&spec)).expect("valid");
            assert_eq!(back.entrypoint, spec.entrypoint);
        }
    }

    #[test]
    fn what_cannot_be_built_is_refused_by_field() {
        let refused = EnvironmentSpec::try_from(v1::Environment::default()).expect_err("no image");
        assert_eq!(refused.field, "Environment.image");
        let mut wire = v1::Recipe::from(&recipe());
        wire.digest = "sha256:short".into();
        let refused = Recipe::try_from(wire).expect_err("bad digest");
        assert_eq!(refused.field, "Recipe.digest");
        assert!(refused.to_string().contains("64 lower-case hex digits"), "{refused}");
        let nameless = v1::Service { image: "redis".into(), ..Default::default() };
        assert_eq!(ServiceSpec::try_from(nameless).expect_err("no name").field, "Service.name");
        let unknown = v1::Environment { pull_policy: "sometimes".into(), ..(&environment()).into() };
        assert_eq!(EnvironmentSpec::try_from(unknown).expect_err("no policy").field, "Environment.pull_policy");
    }
}
