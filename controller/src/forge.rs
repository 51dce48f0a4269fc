//! Where the code lives and merge requests are opened.
//!
//! One [`Forge`] per project, made from its configuration. Verbs are safe to repeat: a merge request that is already
//! there is returned, not made twice.

pub mod folder;
pub mod git;
pub mod gitlab;
mod includes;
pub mod memory;
pub mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use devfleet_shared::secret::Secret;

/// A commit that a branch points at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Base {
    /// The branch.
    pub branch: String,
    /// The commit, 40 or 64 hex digits.
    pub commit: String,
}

/// The CI configuration at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CiConfig {
    /// As GitLab merged it.
    Merged {
        /// The merged document.
        yaml: String,
        /// What GitLab has against it, when it calls it invalid and still merged it.
        errors: Vec<String>,
        /// What GitLab warns of.
        warnings: Vec<String>,
        /// The files it was merged from.
        files: Vec<String>,
    },
    /// As it stands in the repository, with every file it includes from there.
    Raw {
        /// The path of the main file.
        path: String,
        /// Path and text of every file read, the main one among them.
        files: Vec<(String, String)>,
        /// Why it was not merged by the forge, when that was tried.
        notes: Vec<String>,
    },
}

/// How hosts reach the repository.
#[derive(Debug, Clone)]
pub struct GitAccess {
    /// The URL or path, without credentials.
    pub url: String,
    /// User name and password, where the remote asks for them.
    pub login: Option<(String, Secret)>,
}

/// What a merge request is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeRequestDraft {
    /// The branch with the work: unique per job and attempt.
    pub source_branch: String,
    /// The branch it is for.
    pub target_branch: String,
    /// The commit the source branch points at.
    pub commit: String,
    /// One line.
    pub title: String,
    /// Markdown, quick actions already made harmless.
    pub description: String,
}

/// A merge request that stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MergeRequest {
    /// The forge's number for it.
    pub number: u64,
    /// Where people see it; empty for plain git.
    pub url: String,
    /// One line.
    pub title: String,
    /// Markdown.
    pub description: String,
    /// The branch with the work.
    pub source_branch: String,
    /// The branch it is for.
    pub target_branch: String,
    /// The commit it was opened for.
    pub commit: String,
}

/// Why a verb failed. Messages name no credential.
#[derive(Debug, thiserror::Error)]
pub enum ForgeError {
    /// The branch does not exist.
    #[error("find branch {branch:?}: the repository has no such branch; name one with --base")]
    NoSuchBranch {
        /// What was asked for.
        branch: String,
    },
    /// There is nothing to derive an environment from.
    #[error(
        "read the CI configuration: {path} does not exist at commit {commit}; add one, or name the right base branch"
    )]
    NoCiConfig {
        /// The path looked for.
        path: String,
        /// The commit looked at.
        commit: String,
    },
    /// The CI configuration cannot be used at all.
    #[error("use the CI configuration: {}", errors.join("; "))]
    InvalidCiConfig {
        /// What is wrong with it.
        errors: Vec<String>,
    },
    /// The credential is missing, wrong, expired or revoked.
    #[error(
        "log in to {forge}: the credential is refused ({detail}); check the token that the project's `forge.token` names"
    )]
    Unauthorized {
        /// The forge's address.
        forge: String,
        /// What it said.
        detail: String,
    },
    /// The credential does not allow this.
    #[error("{action}: forbidden ({detail}); the token needs {needs}")]
    Forbidden {
        /// What was tried.
        action: String,
        /// What the forge said.
        detail: String,
        /// The missing permission, in the forge's words.
        needs: String,
    },
    /// The project or an object in it does not exist, or the credential may not see it.
    #[error("{action}: not found ({detail}); check the project's path, and that the token may see it")]
    NotFound {
        /// What was tried.
        action: String,
        /// What the forge said.
        detail: String,
    },
    /// The forge refuses for good.
    #[error("{action}: refused ({detail})")]
    Refused {
        /// What was tried.
        action: String,
        /// What the forge said.
        detail: String,
    },
    /// The forge asks to wait, is down, or did not answer in time. What was asked may or may not have happened.
    #[error("{action}: the forge does not answer as it should ({detail}); it is tried again")]
    Unavailable {
        /// What was tried.
        action: String,
        /// What was seen.
        detail: String,
        /// How long the forge asks to wait.
        retry_after: Option<std::time::Duration>,
    },
}

impl ForgeError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, ForgeError::Unavailable { .. })
    }
}

/// A project's forge.
#[async_trait]
pub trait Forge: Send + Sync + 'static {
    /// Finds a branch (the default one when `None`) and its commit.
    async fn base(&self, branch: Option<&str>) -> Result<Base, ForgeError>;
    /// Reads the CI configuration at a commit, merged where the forge can do that.
    async fn ci_config(&self, commit: &str) -> Result<CiConfig, ForgeError>;
    /// Reads a file at a commit; `None` if it does not exist.
    async fn read_file(&self, commit: &str, path: &str) -> Result<Option<Vec<u8>>, ForgeError>;
    /// Reads the CI variables of these names that the forge keeps outside of the configuration. Names that it does not
    /// have are missing in the answer; one that cannot be used says why.
    async fn ci_variables(&self, names: &[String]) -> Result<BTreeMap<String, Result<Secret, String>>, ForgeError>;
    /// Says how hosts fetch and push.
    async fn git_access(&self) -> Result<GitAccess, ForgeError>;
    /// Returns the open merge request of this source branch, or opens one. Exactly one exists afterwards.
    async fn ensure_merge_request(&self, draft: &MergeRequestDraft) -> Result<MergeRequest, ForgeError>;
    /// Puts a note on an issue, once per marker (an id that is hidden in the note).
    async fn ensure_note(&self, issue: u64, marker: &str, markdown: &str) -> Result<(), ForgeError>;
    /// Checks that the project can be reached and the credential suffices; says what was found.
    async fn check(&self) -> Result<String, ForgeError>;
}

/// A forge that anyone may hold.
pub type SharedForge = Arc<dyn Forge>;
