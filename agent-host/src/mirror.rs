//! Bare mirrors of the projects' repositories.

use std::path::{Path, PathBuf};
use std::time::Duration;

use devfleet_shared::secret::Secret;

/// A user name and password for a git server.
#[derive(Debug, Clone)]
pub struct GitLogin {
    /// The user name.
    pub username: String,
    /// The password or token.
    pub password: Secret,
}

/// A work branch that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its commit.
    pub commit: String,
    /// What it changes, as `git diff` shows it; 1 MiB at most.
    pub diff: String,
    /// Whether the diff was longer.
    pub diff_truncated: bool,
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The URL cannot be used.
    #[error("use repository {url}: {rule}")]
    Url {
        /// The URL, without what might be a password.
        url: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A commit or branch name is not one.
    #[error("use {what} {value:?}: it is not valid")]
    Name {
        /// What was to be named.
        what: &'static str,
        /// The text.
        value: String,
    },
    /// There is no such repository.
    #[error("reach repository {url}: it does not exist, or it is hidden from this login ({detail})")]
    NotFound {
        /// The repository.
        url: String,
        /// What git said.
        detail: String,
    },
    /// The server does not accept the login.
    #[error("reach repository {url}: the server refuses the login; check the project's git credential ({detail})")]
    Auth {
        /// The repository.
        url: String,
        /// What git said.
        detail: String,
    },
    /// The server cannot be reached.
    #[error("reach repository {url}: {detail}")]
    Unreachable {
        /// The repository.
        url: String,
        /// What git said.
        detail: String,
    },
    /// It took too long.
    #[error("{action}: git was not done within {} s", after.as_secs())]
    Timeout {
        /// What was tried.
        action: String,
        /// How long was waited.
        after: Duration,
    },
    /// The repository has no such commit.
    #[error("find commit {commit} in repository {url}: it is not there; was the branch rewritten?")]
    CommitNotFound {
        /// The repository.
        url: String,
        /// The commit.
        commit: String,
    },
    /// What the job left is not a bundle that we take.
    #[error("take in the job's bundle: {detail}")]
    BundleRejected {
        /// What is wrong with it.
        detail: String,
    },
    /// The job left the base commit as it was.
    #[error("take in the job's bundle: it changes nothing")]
    NoChange,
    /// The remote refused the branch.
    #[error("push branch {branch}: {detail}")]
    PushRejected {
        /// The branch.
        branch: String,
        /// What the remote said.
        detail: String,
    },
    /// git failed in some other way.
    #[error("{action}: git says: {detail}")]
    Git {
        /// What was tried.
        action: String,
        /// What it said.
        detail: String,
    },
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl MirrorError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, MirrorError::Unreachable { .. } | MirrorError::Timeout { .. } | MirrorError::File { .. })
    }
}

/// The mirrors of this host. Cheap to clone.
#[derive(Clone)]
pub struct Mirrors {
    _root: PathBuf,
}

impl Mirrors {
    /// Keeps mirrors under this folder.
    pub fn new(root: PathBuf) -> Mirrors {
        Mirrors { _root: root }
    }
    /// Makes or brings up to date the mirror of a repository until it has the commit; returns its folder.
    pub async fn fetch(&self, url: &str, _login: Option<&GitLogin>, commit: &str) -> Result<PathBuf, MirrorError> {
        Err(MirrorError::CommitNotFound { url: url.to_owned(), commit: commit.to_owned() })
    }
    /// Takes in the bundle that a job left, after checking it, as `work_branch`.
    pub async fn import(&self, _url: &str, _base_commit: &str, _bundle: &Path, _work_branch: &str) -> Result<Imported, MirrorError> {
        Err(MirrorError::NoChange)
    }
    /// Pushes exactly this commit as exactly this branch. Already there with the same commit is success.
    pub async fn push(&self, url: &str, _login: Option<&GitLogin>, commit: &str, _work_branch: &str) -> Result<(), MirrorError> {
        Err(MirrorError::CommitNotFound { url: url.to_owned(), commit: commit.to_owned() })
    }
}
