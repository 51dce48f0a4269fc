//! One forge per project, made from its configuration whenever it is needed, so that a changed project or a rotated
//! token takes effect at once.

use std::path::PathBuf;
use std::sync::Arc;

use devfleet_shared::id::ProjectName;

use crate::forge::git::{PlainGit, PlainGitSettings};
use crate::forge::gitlab::{GitLab, GitLabSettings};
use crate::forge::{ForgeError, SharedForge};
use crate::project::{ForgeConfig, ProjectConfig};
use crate::secrets::{self, SecretError};
use crate::store::SharedStore;

/// Why a project's forge cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenForgeError {
    /// Its credential cannot be had.
    #[error("open the forge of project {project}")]
    Secret {
        /// The project.
        project: ProjectName,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// Its settings cannot be used.
    #[error(transparent)]
    Forge(#[from] ForgeError),
}

/// Makes forges.
#[derive(Clone)]
pub struct Forges {
    store: SharedStore,
    cache_dir: PathBuf,
    fixed: Option<SharedForge>,
}

impl Forges {
    /// Makes one that keeps its clones in a directory of its own.
    pub fn new(store: SharedStore, cache_dir: PathBuf) -> Self {
        Self { store, cache_dir, fixed: None }
    }

    /// Gives this forge to every project, for tests.
    pub fn with_fixed(self, forge: SharedForge) -> Self {
        Self { fixed: Some(forge), ..self }
    }

    /// Makes a project's forge.
    pub async fn of(&self, project: &ProjectConfig) -> Result<SharedForge, OpenForgeError> {
        if let Some(forge) = &self.fixed {
            return Ok(forge.clone());
        }
        let secret = |source| OpenForgeError::Secret { project: project.name.clone(), source };
        match &project.forge {
            ForgeConfig::Gitlab { url, project: path, token } => {
                let token = secrets::resolve(token).await.map_err(secret)?;
                Ok(Arc::new(GitLab::new(GitLabSettings {
                    url: url.clone(),
                    project: path.clone(),
                    token: Some(token),
                    ci_config_path: project.ci_config.clone(),
                })?))
            }
            ForgeConfig::Git { username, password } => {
                let login = match (username, password) {
                    (user, Some(password)) => {
                        let user = user.clone().unwrap_or_else(|| "git".to_owned());
                        Some((user, secrets::resolve(password).await.map_err(secret)?))
                    }
                    (_, None) => None,
                };
                let settings = PlainGitSettings {
                    repository: project.repository.clone(),
                    default_branch: project.default_branch.clone(),
                    login,
                    ci_config_path: project.ci_config.clone(),
                };
                Ok(Arc::new(PlainGit::new(settings, self.cache_dir.clone(), self.store.clone())?))
            }
        }
    }
}
