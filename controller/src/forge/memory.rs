//! A forge in memory, for scenarios: branches, files, merge requests and notes, and failures by script.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use devfleet_shared::id::Digest;
use devfleet_shared::secret::Secret;

use super::{Base, CiConfig, Forge, ForgeError, GitAccess, MergeRequest, MergeRequestDraft};

/// A verb of the forge, for failures by script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// [`Forge::base`].
    Base,
    /// [`Forge::ci_config`].
    CiConfig,
    /// [`Forge::read_file`].
    ReadFile,
    /// [`Forge::ci_variables`].
    CiVariables,
    /// [`Forge::git_access`].
    GitAccess,
    /// [`Forge::ensure_merge_request`].
    EnsureMergeRequest,
    /// [`Forge::ensure_note`].
    EnsureNote,
    /// [`Forge::check`].
    Check,
}

/// When a failure strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before anything is done.
    Before,
    /// After it is done: the answer is lost.
    After,
}

type Files = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
struct State {
    branches: BTreeMap<String, String>,
    commits: BTreeMap<String, Files>,
    merge_requests: Vec<MergeRequest>,
    notes: Vec<(u64, String, String)>,
    failures: BTreeMap<Verb, VecDeque<(When, ForgeError)>>,
    merged: Option<CiConfig>,
    access: Option<GitAccess>,
    variables: BTreeMap<String, String>,
}

/// A forge in memory. Its default branch is `main`, its CI configuration `.gitlab-ci.yml`.
#[derive(Default)]
pub struct MemoryForge {
    state: Mutex<State>,
}

impl MemoryForge {
    /// Makes one without a commit.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a commit with these files to a branch (a new one starts at `main`); returns its hash.
    pub fn commit(&self, branch: &str, files: &[(&str, &str)]) -> String {
        let mut state = self.state();
        let parent = state.branches.get(branch).or_else(|| state.branches.get("main")).cloned();
        let mut tree = parent.as_ref().and_then(|commit| state.commits.get(commit)).cloned().unwrap_or_default();
        tree.extend(files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())));
        let number = state.commits.len().to_string();
        let commit = Digest::over([branch.as_bytes(), number.as_bytes()]).hex()[..40].to_owned();
        state.commits.insert(commit.clone(), tree);
        state.branches.insert(branch.to_owned(), commit.clone());
        commit
    }

    /// Sets what [`Forge::ci_config`] answers at every commit that exists.
    pub fn set_ci_config(&self, config: CiConfig) {
        self.state().merged = Some(config);
    }

    /// Sets a CI variable that stands in no file.
    pub fn set_ci_variable(&self, name: &str, value: &str) {
        self.state().variables.insert(name.to_owned(), value.to_owned());
    }

    /// Sets what [`Forge::git_access`] answers.
    pub fn set_git_access(&self, access: GitAccess) {
        self.state().access = Some(access);
    }

    /// Lets the next call of a verb fail so; several strike one after the other.
    pub fn fail(&self, verb: Verb, when: When, error: ForgeError) {
        self.state().failures.entry(verb).or_default().push_back((when, error));
    }

    /// Returns every merge request.
    pub fn merge_requests(&self) -> Vec<MergeRequest> {
        self.state().merge_requests.clone()
    }

    /// Returns every note: issue, marker, text.
    pub fn notes(&self) -> Vec<(u64, String, String)> {
        self.state().notes.clone()
    }

    /// Does something in one go, with the failure that waits for it.
    fn act<T>(&self, verb: Verb, act: impl FnOnce(&mut State) -> Result<T, ForgeError>) -> Result<T, ForgeError> {
        let mut state = self.state();
        let failure = state.failures.get_mut(&verb).and_then(VecDeque::pop_front);
        match failure {
            Some((When::Before, error)) => Err(error),
            Some((When::After, error)) => act(&mut state).and(Err(error)),
            None => act(&mut state),
        }
    }
}

impl State {
    fn tree(&self, commit: &str) -> Result<&Files, ForgeError> {
        self.commits.get(commit).ok_or_else(|| ForgeError::NotFound {
            action: format!("find commit {commit}"),
            detail: "the repository has no such commit".to_owned(),
        })
    }
}

#[async_trait]
impl Forge for MemoryForge {
    async fn base(&self, branch: Option<&str>) -> Result<Base, ForgeError> {
        self.act(Verb::Base, |state| {
            if branch.is_none() && state.branches.is_empty() {
                let action = "find the default branch".to_owned();
                return Err(ForgeError::Refused {
                    action,
                    detail: "the repository is empty; push a first commit".to_owned(),
                });
            }
            let branch = branch.unwrap_or("main").to_owned();
            match state.branches.get(&branch) {
                Some(commit) => Ok(Base { commit: commit.clone(), branch }),
                None => Err(ForgeError::NoSuchBranch { branch }),
            }
        })
    }

    async fn ci_config(&self, commit: &str) -> Result<CiConfig, ForgeError> {
        let path = ".gitlab-ci.yml";
        self.act(Verb::CiConfig, |state| {
            let tree = state.tree(commit)?;
            if let Some(merged) = &state.merged {
                return Ok(merged.clone());
            }
            let missing = || ForgeError::NoCiConfig { path: path.to_owned(), commit: commit.to_owned() };
            let text = String::from_utf8_lossy(tree.get(path).ok_or_else(missing)?).into_owned();
            Ok(CiConfig::Raw { path: path.to_owned(), files: vec![(path.to_owned(), text)], notes: Vec::new() })
        })
    }

    async fn read_file(&self, commit: &str, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        self.act(Verb::ReadFile, |state| Ok(state.tree(commit)?.get(path.trim_start_matches('/')).cloned()))
    }

    async fn ci_variables(&self, names: &[String]) -> Result<BTreeMap<String, Result<Secret, String>>, ForgeError> {
        self.act(Verb::CiVariables, |state| {
            let wanted = state.variables.iter().filter(|(name, _)| names.contains(name));
            Ok(wanted.map(|(name, value)| (name.clone(), Ok(Secret::new(value.as_str())))).collect())
        })
    }

    async fn git_access(&self) -> Result<GitAccess, ForgeError> {
        self.act(Verb::GitAccess, |state| {
            let nowhere = GitAccess { url: "file:///nonexistent/memory.git".to_owned(), login: None };
            Ok(state.access.clone().unwrap_or(nowhere))
        })
    }

    async fn ensure_merge_request(&self, draft: &MergeRequestDraft) -> Result<MergeRequest, ForgeError> {
        self.act(Verb::EnsureMergeRequest, |state| {
            if let Some(found) = state.merge_requests.iter().find(|found| found.source_branch == draft.source_branch) {
                return Ok(found.clone());
            }
            let number = state.merge_requests.len() as u64 + 1;
            let made = MergeRequest {
                number,
                url: format!("memory:merge-requests/{number}"),
                title: draft.title.clone(),
                description: draft.description.clone(),
                source_branch: draft.source_branch.clone(),
                target_branch: draft.target_branch.clone(),
                commit: draft.commit.clone(),
            };
            state.merge_requests.push(made.clone());
            Ok(made)
        })
    }

    async fn ensure_note(&self, issue: u64, marker: &str, markdown: &str) -> Result<(), ForgeError> {
        self.act(Verb::EnsureNote, |state| {
            if !state.notes.iter().any(|(on, with, _)| *on == issue && with == marker) {
                state.notes.push((issue, marker.to_owned(), markdown.to_owned()));
            }
            Ok(())
        })
    }

    async fn check(&self) -> Result<String, ForgeError> {
        self.act(Verb::Check, |state| Ok(format!("a forge in memory with {} branches", state.branches.len())))
    }
}
