//! What a proposal is derived from: the CI configuration at the base commit, and what the default branch says over it.

use std::collections::BTreeMap;

use devfleet_shared::id::Digest;

use super::GateError;
use crate::environment::overrides::{Declared, OVERRIDES_FILE, Overrides, OverridesError};
use crate::environment::{self, Context, Derivation, DerivationError};
use crate::forge::{Base, CiConfig, ForgeError, SharedForge};
use crate::project::{OverridesPolicy, ProjectConfig};
use crate::store::records::JobSpec;

/// What was read. Nothing of it is derived yet.
pub(super) struct Sources {
    /// `Err`: the path that was looked for, where there is no configuration.
    config: Result<CiConfig, String>,
    overrides: Option<String>,
    forbidden: bool,
    /// What exists of the files that refine a derivation.
    pub(super) files: BTreeMap<String, String>,
}

impl Sources {
    /// Reads everything for work that begins at this base.
    pub(super) async fn read(
        forge: &SharedForge,
        spec: &JobSpec,
        project: &ProjectConfig,
        base: &Base,
    ) -> Result<Self, GateError> {
        let default = default_branch(forge, spec, project, base).await?;
        let overrides = match forge.read_file(&default.commit, OVERRIDES_FILE).await? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|_| OverridesError {
                line: 1,
                key: String::new(),
                problem: "the file is not UTF-8 text; save it as such".into(),
            })?),
            None => None,
        };
        let config = match forge.ci_config(&base.commit).await {
            Ok(config) => Ok(config),
            Err(ForgeError::NoCiConfig { path, .. }) if overrides.is_some() => Err(path),
            Err(error) => return Err(error.into()),
        };
        let forbidden = project.overrides == OverridesPolicy::Forbid;
        let mut files =
            read_files(forge, &base.commit, environment::REPOSITORY_FILES.map(str::to_owned).to_vec()).await;
        for _ in 0..environment::FOLLOWED_LEVELS {
            let wanted = config.as_ref().map(|config| environment::followed(config, &files)).unwrap_or_default();
            files.extend(read_files(forge, &base.commit, wanted).await);
        }
        Ok(Self { config, overrides, forbidden, files })
    }

    /// Derives the environment, and says what the repository declares beside it.
    pub(super) fn derive(&self, context: &Context) -> Result<(Derivation, Declared), GateError> {
        let derived = match &self.config {
            Ok(config) => environment::derive(config, context),
            Err(path) => Err(DerivationError::NoJobs { file: format!("{path} (it does not exist)") }),
        };
        match &self.overrides {
            Some(_) if self.forbidden => {
                let mut derivation = derived?;
                derivation.notes.push(format!("{OVERRIDES_FILE} is not read: the project's settings forbid it"));
                Ok((derivation, Declared::default()))
            }
            Some(text) => {
                let overrides = Overrides::parse(text)?;
                Ok((overrides.apply(derived)?, overrides.declared))
            }
            None => Ok((derived?, Declared::default())),
        }
    }

    /// Hashes everything that was read.
    pub(super) fn digest(&self) -> Digest {
        let mut parts: Vec<Vec<u8>> = vec![vec![u8::from(self.forbidden)]];
        let mut add = |text: &str| parts.push(text.as_bytes().to_vec());
        match &self.config {
            Ok(CiConfig::Merged { yaml, errors, .. }) => {
                add(yaml);
                errors.iter().for_each(|error| add(error));
            }
            Ok(CiConfig::Raw { files, .. }) => {
                for (path, text) in files {
                    add(path);
                    add(text);
                }
            }
            Err(path) => add(path),
        }
        add(self.overrides.as_deref().unwrap_or_default());
        for (path, text) in &self.files {
            add(path);
            add(text);
        }
        Digest::over(parts.iter().map(Vec::as_slice))
    }
}

/// Finds the tip of the branch that alone may say something over the CI configuration.
pub(super) async fn default_branch(
    forge: &SharedForge,
    spec: &JobSpec,
    project: &ProjectConfig,
    base: &Base,
) -> Result<Base, ForgeError> {
    match spec.base {
        Some(_) => forge.base(project.default_branch.as_deref()).await,
        None => Ok(base.clone()),
    }
}

/// Reads what exists of the files that refine a derivation. A file that cannot be read is left out.
async fn read_files(forge: &SharedForge, commit: &str, paths: Vec<String>) -> BTreeMap<String, String> {
    let reads = paths.into_iter().map(|path| async move {
        let content = forge.read_file(commit, &path).await.ok().flatten()?;
        Some((path, String::from_utf8(content).ok()?))
    });
    futures_util::future::join_all(reads).await.into_iter().flatten().collect()
}
