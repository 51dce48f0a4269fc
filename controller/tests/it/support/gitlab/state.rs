//! What the stand-in knows: projects, tokens, faults still to come, and the ledger.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::Fault;
use super::lint::LintAnswer;

/// A kind of call, for faults and for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Every call, in a fault.
    Any,
    /// `GET /version`.
    Version,
    /// `GET /personal_access_tokens/self`.
    OwnToken,
    /// `GET /projects/:id`.
    Project,
    /// `GET …/repository/branches/:branch`.
    Branch,
    /// `GET …/repository/files/:path` and `/raw`.
    File,
    /// `GET …/ci/lint`.
    Lint,
    /// `GET …/variables`.
    Variables,
    /// `GET /groups/:path/variables`.
    GroupVariables,
    /// `GET /admin/ci/variables`.
    InstanceVariables,
    /// `GET …/merge_requests`.
    MergeRequests,
    /// `GET …/merge_requests/:iid`.
    MergeRequest,
    /// `POST …/merge_requests`.
    CreateMergeRequest,
    /// `PUT …/merge_requests/:iid`.
    UpdateMergeRequest,
    /// `GET …/issues/:iid`.
    Issue,
    /// `GET …/issues/:iid/notes`.
    Notes,
    /// `POST …/issues/:iid/notes`.
    CreateNote,
    /// `git fetch`, `git ls-remote`: either of its calls.
    GitFetch,
    /// `git push`: either of its calls.
    GitPush,
    /// What the stand-in does not know.
    Unknown,
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The whole API, git fetch and push.
    Api,
    /// Reading the API and git fetch.
    ReadApi,
    /// Git fetch.
    ReadRepository,
    /// Git fetch and push.
    WriteRepository,
}

impl Standing {
    /// Whether all projects know this token's user.
    pub(super) fn is_member(self) -> bool {
        matches!(self, Standing::Developer | Standing::Guest) || self.maintains()
    }

    /// Whether it may read a project's settings.
    pub(super) fn maintains(self) -> bool {
        matches!(self, Standing::Maintainer | Standing::Owner | Standing::Administrator)
    }
}

impl Scope {
    pub(super) fn reads_api(self) -> bool {
        matches!(self, Scope::Api | Scope::ReadApi)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Scope::Api => "api",
            Scope::ReadApi => "read_api",
            Scope::ReadRepository => "read_repository",
            Scope::WriteRepository => "write_repository",
        }
    }

    pub(super) fn pushes(self) -> bool {
        matches!(self, Scope::Api | Scope::WriteRepository)
    }
}

/// Whose a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A member of every project who may push.
    Developer,
    /// One who may also read its settings.
    Maintainer,
    /// One who owns all groups as well.
    Owner,
    /// One who may read and change everything.
    Administrator,
    /// A member who may not see code.
    Guest,
    /// A member of no project.
    Outsider,
    /// A developer whose token has expired.
    Expired,
    /// A developer whose token was revoked.
    Revoked,
}

/// One call, as it was asked and answered.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The kind.
    pub(crate) route: Route,
    /// The method.
    pub(crate) method: String,
    /// Path and query as they came.
    pub(crate) path: String,
    /// The body as text; of git's bodies only the length.
    pub(crate) body: String,
    /// Who asked: `anonymous`, `refused`, or the standing and scope of the token.
    pub(crate) principal: String,
    /// The status of the answer; 0 when the connection was cut.
    pub(crate) status: u16,
}

/// A merge request.
#[derive(Debug, Clone)]
pub(crate) struct StoredMergeRequest {
    pub(crate) iid: u64,
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) source_branch: String,
    pub(crate) target_branch: String,
    pub(crate) state: String,
    pub(crate) sha: String,
    /// Whether it comes from somebody's fork.
    pub(crate) from_fork: bool,
}

/// A note on an issue.
#[derive(Debug, Clone)]
pub(crate) struct StoredNote {
    pub(crate) id: u64,
    pub(crate) body: String,
    pub(crate) author: String,
}

pub(super) struct StoredIssue {
    pub(super) title: String,
    pub(super) description: String,
    pub(super) notes: Vec<StoredNote>,
}

pub(super) struct StoredProject {
    pub(super) path: String,
    pub(super) git_dir: PathBuf,
    pub(super) public: bool,
    pub(super) lint: Option<LintAnswer>,
    /// CI variables as GitLab answers them.
    pub(super) variables: Vec<serde_json::Value>,
    pub(super) merge_requests: Vec<StoredMergeRequest>,
    pub(super) issues: Vec<StoredIssue>,
}

impl StoredProject {
    pub(super) fn new(path: &str, git_dir: PathBuf) -> Self {
        Self {
            path: path.to_owned(),
            git_dir,
            public: false,
            lint: None,
            variables: Vec::new(),
            merge_requests: Vec::new(),
            issues: Vec::new(),
        }
    }

    pub(super) fn add_issue(&mut self, title: &str, description: &str) -> u64 {
        self.issues.push(StoredIssue {
            title: title.to_owned(),
            description: description.to_owned(),
            notes: Vec::new(),
        });
        self.issues.len() as u64
    }

    pub(super) fn issue(&mut self, number: u64) -> Option<&mut StoredIssue> {
        self.issues.get_mut(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    pub(super) fn add_note(&mut self, issue: u64, body: &str, author: &str) -> Option<StoredNote> {
        let notes = &mut self.issue(issue)?.notes;
        let note = StoredNote {
            id: issue * 10_000 + notes.len() as u64 + 1,
            body: body.to_owned(),
            author: author.to_owned(),
        };
        notes.push(note.clone());
        Some(note)
    }

    pub(super) fn notes(&mut self, issue: u64) -> Vec<StoredNote> {
        self.issue(issue).map(|issue| issue.notes.clone()).unwrap_or_default()
    }
}

pub(super) struct Token {
    pub(super) text: String,
    pub(super) standing: Standing,
    pub(super) scope: Scope,
}

#[derive(Default)]
pub(super) struct State {
    projects: Vec<StoredProject>,
    tokens: Vec<Token>,
    pub(super) faults: Vec<Fault>,
    pub(super) ledger: Vec<Call>,
    /// CI variables of groups, by path.
    pub(super) group_variables: BTreeMap<String, Vec<serde_json::Value>>,
    /// Those of the whole instance.
    pub(super) instance_variables: Vec<serde_json::Value>,
}

/// Where project numbers start, so that a number is never mistaken for an index.
const FIRST_PROJECT: u64 = 101;

impl State {
    pub(super) fn add_project(&mut self, project: StoredProject) -> u64 {
        self.projects.push(project);
        FIRST_PROJECT + self.projects.len() as u64 - 1
    }

    /// Finds a project that exists.
    pub(super) fn project(&mut self, id: u64) -> &mut StoredProject {
        self.projects.get_mut((id - FIRST_PROJECT) as usize).expect("the project is the stand-in's own")
    }

    /// Finds a project's number by number or path.
    pub(super) fn find(&self, key: &str) -> Option<u64> {
        let by_path = self.projects.iter().position(|project| project.path == key);
        let by_number = key.parse::<u64>().ok().and_then(|id| id.checked_sub(FIRST_PROJECT));
        let index = by_path.or(by_number.map(|index| index as usize))?;
        (index < self.projects.len()).then(|| FIRST_PROJECT + index as u64)
    }

    /// Whether a group of this path has projects, or groups with projects.
    pub(super) fn has_group(&self, path: &str) -> bool {
        self.projects.iter().any(|project| project.path.starts_with(&format!("{path}/")))
    }

    pub(super) fn add_token(&mut self, standing: Standing, scope: Scope) -> String {
        let text = format!("glpat-standin-{}", uuid::Uuid::new_v4().simple());
        self.tokens.push(Token { text: text.clone(), standing, scope });
        text
    }

    pub(super) fn find_token(&self, text: &str) -> Option<(Standing, Scope)> {
        self.tokens.iter().find(|token| token.text == text).map(|token| (token.standing, token.scope))
    }

    /// Takes the first fault that is meant for this route.
    pub(super) fn take_fault(&mut self, asked: Route) -> Option<Fault> {
        let index = self.faults.iter().position(|fault| {
            let (route, times) = fault.parts();
            times > 0 && (route == asked || route == Route::Any)
        })?;
        let fault = self.faults[index].clone();
        self.faults[index].use_up();
        Some(fault)
    }
}

impl Fault {
    fn parts(&self) -> (Route, u32) {
        match *self {
            Fault::Status { route, times, .. }
            | Fault::AnswerLost { route, times }
            | Fault::ActedThenStatus { route, times, .. }
            | Fault::Delay { route, times, .. }
            | Fault::Nonsense { route, times, .. } => (route, times),
        }
    }

    fn use_up(&mut self) {
        match self {
            Fault::Status { times, .. }
            | Fault::AnswerLost { times, .. }
            | Fault::ActedThenStatus { times, .. }
            | Fault::Delay { times, .. }
            | Fault::Nonsense { times, .. } => *times -= 1,
        }
    }
}

pub(super) struct Shared {
    pub(super) url: String,
    root: tempfile::TempDir,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(url: String) -> Self {
        let root = tempfile::tempdir().expect("make the stand-in's directory");
        Self { url, root, state: Mutex::new(State::default()) }
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
