//! The repositories that the contract stands on: one for each kind of forge.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_controller::forge::Forge;
use devfleet_controller::forge::git::{PlainGit, PlainGitSettings};
use devfleet_controller::forge::gitlab::{GitLab, GitLabSettings, Pace};
use devfleet_controller::forge::memory::MemoryForge;
use devfleet_controller::store::SharedStore;
use devfleet_controller::store::embedded::Embedded;
use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::Clock;
use devfleet_shared::secret::Secret;

use crate::support::gitlab::{GitLabStandIn, ProjectHandle, Scope};

/// A repository without a commit, and the forge that is tried on it.
#[async_trait]
pub(crate) trait Ground: Send + Sync {
    fn forge(&self) -> &dyn Forge;
    /// Adds a commit with these files to a branch; a new branch starts at `main`.
    fn commit(&self, branch: &str, files: &[(&str, &str)]) -> String;
    /// Lists the source branches of all merge requests.
    async fn merge_requests(&self) -> Vec<String>;
    /// Makes an issue.
    fn issue(&self) -> u64;
    /// Lists the notes of an issue, if this forge has notes.
    async fn notes(&self, issue: u64) -> Option<Vec<String>>;
}

/// A pace that does not keep a test waiting.
pub(crate) fn quick(timeout: Duration) -> Pace {
    Pace {
        tries: 4,
        backoff: Backoff { first: Duration::from_millis(10), ceiling: Duration::from_millis(50) },
        timeout,
        longest_wait: Duration::from_secs(3),
        total: Duration::from_secs(20),
    }
}

pub(crate) struct GitLabGround {
    pub(crate) stand_in: GitLabStandIn,
    pub(crate) project: ProjectHandle,
    pub(crate) forge: GitLab,
}

impl GitLabGround {
    pub(crate) async fn start() -> Self {
        let stand_in = GitLabStandIn::start().await;
        let project = stand_in.create_project("group/sub/app", &[]);
        let forge = gitlab(&stand_in, Some(stand_in.token(Scope::Api)), Duration::from_secs(20));
        Self { stand_in, project, forge }
    }

    /// One whose `main` has a file and a CI configuration.
    pub(crate) async fn with_main() -> Self {
        let ground = Self::start().await;
        ground.commit("main", &[("README.md", "hello\n"), (".gitlab-ci.yml", super::CI)]);
        ground
    }
}

pub(crate) fn gitlab(stand_in: &GitLabStandIn, token: Option<String>, timeout: Duration) -> GitLab {
    let settings = GitLabSettings {
        url: stand_in.url(),
        project: "group/sub/app".to_owned(),
        token: token.map(Secret::new),
        ci_config_path: ".gitlab-ci.yml".to_owned(),
    };
    GitLab::with_pace(settings, quick(timeout)).expect("the address is one")
}

#[async_trait]
impl Ground for GitLabGround {
    fn forge(&self) -> &dyn Forge {
        &self.forge
    }

    fn commit(&self, branch: &str, files: &[(&str, &str)]) -> String {
        self.stand_in.commit(&self.project, branch, files)
    }

    async fn merge_requests(&self) -> Vec<String> {
        self.stand_in.merge_requests(&self.project).into_iter().map(|found| found.source_branch).collect()
    }

    fn issue(&self) -> u64 {
        self.stand_in.add_issue(&self.project, "an issue", "please")
    }

    async fn notes(&self, issue: u64) -> Option<Vec<String>> {
        Some(self.stand_in.notes(&self.project, issue).into_iter().map(|note| note.body).collect())
    }
}

pub(crate) struct PlainGround {
    pub(crate) stand_in: GitLabStandIn,
    pub(crate) project: ProjectHandle,
    pub(crate) forge: PlainGit,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: SharedStore,
    pub(crate) repository: String,
    /// The secret of the login, where there is one.
    pub(crate) password: Option<String>,
}

impl PlainGround {
    /// A bare repository that is reached by its path.
    pub(crate) async fn on_disk() -> Self {
        let stand_in = GitLabStandIn::start().await;
        let project = stand_in.create_project("group/app", &[]);
        let repository = project.git_dir.to_str().expect("the path is text").to_owned();
        Self::new(stand_in, project, repository, None)
    }

    /// A repository that is reached over HTTP with a login.
    pub(crate) async fn over_http() -> Self {
        let stand_in = GitLabStandIn::start().await;
        let project = stand_in.create_project("group/app", &[]);
        let repository = format!("{}/{}.git", stand_in.url(), project.path);
        let token = stand_in.token(Scope::ReadRepository);
        Self::new(stand_in, project, repository, Some(token))
    }

    fn new(stand_in: GitLabStandIn, project: ProjectHandle, repository: String, password: Option<String>) -> Self {
        let directory = tempfile::tempdir().expect("make a directory");
        let store: SharedStore =
            Embedded::open(&directory.path().join("store"), Clock::system()).expect("open the store");
        let forge = plain_git(&repository, password.as_deref(), &directory, &store);
        Self { stand_in, project, forge, directory, store, repository, password }
    }
}

pub(crate) fn plain_git(
    repository: &str,
    password: Option<&str>,
    directory: &tempfile::TempDir,
    store: &SharedStore,
) -> PlainGit {
    let settings = PlainGitSettings {
        repository: repository.to_owned(),
        default_branch: None,
        login: password.map(|password| ("bot".to_owned(), Secret::new(password))),
        ci_config_path: ".gitlab-ci.yml".to_owned(),
    };
    PlainGit::new(settings, directory.path().join("cache"), Arc::clone(store)).expect("the address may be used")
}

#[async_trait]
impl Ground for PlainGround {
    fn forge(&self) -> &dyn Forge {
        &self.forge
    }

    fn commit(&self, branch: &str, files: &[(&str, &str)]) -> String {
        self.stand_in.commit(&self.project, branch, files)
    }

    async fn merge_requests(&self) -> Vec<String> {
        let all = self.store.range("/devfleet/v1/merge-requests/").await.expect("the store answers");
        all.entries.iter().map(|entry| entry.key.splitn(6, '/').last().unwrap_or_default().to_owned()).collect()
    }

    fn issue(&self) -> u64 {
        7
    }

    async fn notes(&self, _issue: u64) -> Option<Vec<String>> {
        None
    }
}

pub(crate) struct MemoryGround {
    forge: MemoryForge,
}

impl MemoryGround {
    pub(crate) fn start() -> Self {
        Self { forge: MemoryForge::new() }
    }
}

#[async_trait]
impl Ground for MemoryGround {
    fn forge(&self) -> &dyn Forge {
        &self.forge
    }

    fn commit(&self, branch: &str, files: &[(&str, &str)]) -> String {
        self.forge.commit(branch, files)
    }

    async fn merge_requests(&self) -> Vec<String> {
        self.forge.merge_requests().into_iter().map(|found| found.source_branch).collect()
    }

    fn issue(&self) -> u64 {
        7
    }

    async fn notes(&self, issue: u64) -> Option<Vec<String>> {
        let notes = self.forge.notes().into_iter().filter(|(on, ..)| *on == issue);
        Some(notes.map(|(_, _, text)| text).collect())
    }
}
