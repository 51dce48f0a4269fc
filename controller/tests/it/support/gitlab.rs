//! A GitLab that runs inside the test: the real protocol, real git over HTTP, and a memory of all it was asked.
//!
//! It has a thread and a runtime of its own, listens on a loopback port, and is gone when it is dropped. Faults are put
//! in with [`GitLabStandIn::fault`]; each is used up by as many calls as it says.

mod api;
mod connection;
mod git_http;
mod lint;
mod merge_requests;
mod notes;
mod repository;
mod server;
mod state;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use lint::LintAnswer;
pub(crate) use state::{Call, Route, Scope, Standing, StoredMergeRequest, StoredNote};

use state::{Shared, StoredProject};

/// What goes wrong, at which route, how often.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Answers this status and does nothing.
    Status {
        /// Where.
        route: Route,
        /// The status.
        code: u16,
        /// The `Retry-After` header, in seconds.
        retry_after: Option<u64>,
        /// How often.
        times: u32,
    },
    /// Does what it is asked, then cuts the connection without an answer.
    AnswerLost {
        /// Where.
        route: Route,
        /// How often.
        times: u32,
    },
    /// Does what it is asked, then answers this status.
    ActedThenStatus {
        /// Where.
        route: Route,
        /// The status.
        code: u16,
        /// How often.
        times: u32,
    },
    /// Waits before it does anything.
    Delay {
        /// Where.
        route: Route,
        /// How long.
        delay: Duration,
        /// How often.
        times: u32,
    },
    /// Answers 200 with this text, and does nothing.
    Nonsense {
        /// Where.
        route: Route,
        /// The body.
        body: String,
        /// How often.
        times: u32,
    },
}

/// A project of the stand-in.
#[derive(Debug, Clone)]
pub(crate) struct ProjectHandle {
    /// `group/name`.
    pub(crate) path: String,
    /// The number.
    pub(crate) id: u64,
    /// The bare repository on disk.
    pub(crate) git_dir: PathBuf,
}

/// A GitLab on a loopback port. Stops when dropped.
pub(crate) struct GitLabStandIn {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl GitLabStandIn {
    /// Starts one; when this returns, it answers.
    pub(crate) async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into()).await
    }

    /// Starts one on a port of another address of this machine.
    pub(crate) async fn start_at(address: IpAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("gitlab-stand-in")
            .enable_all()
            .build()
            .expect("make the stand-in's runtime");
        let listener = std::net::TcpListener::bind((address, 0)).expect("bind a port");
        listener.set_nonblocking(true).expect("make the listener fit for tokio");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared::new(format!("http://{address}")));
        runtime.spawn(server::serve(listener, Arc::clone(&shared)));
        Self { shared, address, runtime: Some(runtime) }
    }

    /// Returns the base URL: `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a private project whose default branch `main` holds these files, in one commit.
    pub(crate) fn create_project(&self, path: &str, files: &[(&str, &str)]) -> ProjectHandle {
        let git_dir = self.shared.root().join(format!("{}.git", path.replace('/', "__")));
        repository::create(&git_dir);
        if !files.is_empty() {
            repository::commit(&git_dir, "main", "begin", files);
        }
        let id = self.shared.state().add_project(StoredProject::new(path, git_dir.clone()));
        ProjectHandle { path: path.to_owned(), id, git_dir }
    }

    /// Adds a commit with these files to a branch (a new branch starts at `main`); returns its hash.
    pub(crate) fn commit(&self, project: &ProjectHandle, branch: &str, files: &[(&str, &str)]) -> String {
        repository::commit(&project.git_dir, branch, "change", files)
    }

    /// Returns the commit that a branch points at.
    pub(crate) fn head(&self, project: &ProjectHandle, branch: &str) -> Option<String> {
        repository::resolve(&project.git_dir, &format!("refs/heads/{branch}"))
    }

    /// Makes a token of a developer who is a member of every project.
    pub(crate) fn token(&self, scope: Scope) -> String {
        self.token_of(Standing::Developer, scope)
    }

    /// Makes a token of somebody who stands otherwise.
    pub(crate) fn token_of(&self, standing: Standing, scope: Scope) -> String {
        self.shared.state().add_token(standing, scope)
    }

    /// Puts a fault in; several are used up in the order they came.
    pub(crate) fn fault(&self, fault: Fault) {
        self.shared.state().faults.push(fault);
    }

    /// Returns every call, in the order it was answered.
    pub(crate) fn ledger(&self) -> Vec<Call> {
        self.shared.state().ledger.clone()
    }

    /// Returns how many calls of a route were made.
    pub(crate) fn count(&self, route: Route) -> usize {
        self.ledger().iter().filter(|call| call.route == route).count()
    }

    /// Returns a project's merge requests, whatever their state.
    pub(crate) fn merge_requests(&self, project: &ProjectHandle) -> Vec<StoredMergeRequest> {
        self.shared.state().project(project.id).merge_requests.clone()
    }

    /// Makes an issue; returns its number.
    pub(crate) fn add_issue(&self, project: &ProjectHandle, title: &str, description: &str) -> u64 {
        self.shared.state().project(project.id).add_issue(title, description)
    }

    /// Puts a note on an issue in somebody else's name.
    pub(crate) fn add_note(&self, project: &ProjectHandle, issue: u64, body: &str) {
        self.shared.state().project(project.id).add_note(issue, body, "somebody");
    }

    /// Returns the notes of an issue.
    pub(crate) fn notes(&self, project: &ProjectHandle, issue: u64) -> Vec<StoredNote> {
        self.shared.state().project(project.id).notes(issue)
    }

    /// Sets what CI Lint says of a project from now on, at whatever commit.
    pub(crate) fn lint_answer(&self, project: &ProjectHandle, answer: LintAnswer) {
        self.shared.state().project(project.id).lint = Some(answer);
    }

    /// Sets a CI variable of a project; `more` goes over what GitLab answers of a plain one.
    pub(crate) fn set_variable(&self, project: &ProjectHandle, name: &str, value: &str, more: &serde_json::Value) {
        put_variable(&mut self.shared.state().project(project.id).variables, name, value, more);
    }

    /// Sets a CI variable of a group, or of the whole instance where no group is named.
    pub(crate) fn set_outer_variable(&self, group: Option<&str>, name: &str, value: &str, more: &serde_json::Value) {
        let mut state = self.shared.state();
        let variables = match group {
            Some(group) => state.group_variables.entry(group.to_owned()).or_default(),
            None => &mut state.instance_variables,
        };
        put_variable(variables, name, value, more);
    }

    /// Takes a CI variable away.
    pub(crate) fn remove_variable(&self, project: &ProjectHandle, name: &str) {
        self.shared.state().project(project.id).variables.retain(|known| known["key"] != name);
    }

    /// Sets the state of a merge request: `opened`, `closed` or `merged`.
    pub(crate) fn set_merge_request_state(&self, project: &ProjectHandle, number: u64, state: &str) {
        let mut guard = self.shared.state();
        let found =
            guard.project(project.id).merge_requests.iter_mut().find(|merge_request| merge_request.iid == number);
        found.expect("the merge request exists").state = state.to_owned();
    }

    /// Opens a merge request for `main` from a branch of somebody's fork.
    pub(crate) fn add_fork_merge_request(&self, project: &ProjectHandle, source_branch: &str) {
        let mut guard = self.shared.state();
        let merge_requests = &mut guard.project(project.id).merge_requests;
        merge_requests.push(StoredMergeRequest {
            iid: merge_requests.len() as u64 + 1,
            title: "from a fork".to_owned(),
            description: String::new(),
            source_branch: source_branch.to_owned(),
            target_branch: "main".to_owned(),
            state: "opened".to_owned(),
            sha: "f".repeat(40),
            from_fork: true,
        });
    }

    /// Opens a merge request for `main` from a branch of the project itself, as a person does by hand.
    pub(crate) fn add_merge_request(&self, project: &ProjectHandle, source_branch: &str) -> u64 {
        self.add_fork_merge_request(project, source_branch);
        let mut guard = self.shared.state();
        let made = guard.project(project.id).merge_requests.last_mut().expect("it was just made");
        "opened by hand".clone_into(&mut made.title);
        made.from_fork = false;
        made.iid
    }

    /// Lets every push wait until they are let go on.
    pub(crate) fn hold_pushes(&self, project: &ProjectHandle, hold: bool) {
        repository::hold_pushes(&project.git_dir, hold);
    }

    /// Says whether a push has come that was held.
    pub(crate) fn push_waits(&self, project: &ProjectHandle) -> bool {
        repository::push_waits(&project.git_dir)
    }

    /// Deletes a branch, as a person does.
    pub(crate) fn delete_branch(&self, project: &ProjectHandle, branch: &str) {
        repository::delete_branch(&project.git_dir, branch);
    }

    /// Lets everybody read a project.
    pub(crate) fn make_public(&self, project: &ProjectHandle) {
        self.shared.state().project(project.id).public = true;
    }

    /// Refuses pushes to a branch, as GitLab does for a protected one.
    pub(crate) fn protect(&self, project: &ProjectHandle, branch: &str) {
        repository::protect(&project.git_dir, branch);
    }

    /// Refuses every push with this message, as a server hook does; `None` lets them pass again.
    pub(crate) fn reject_pushes(&self, project: &ProjectHandle, message: Option<&str>) {
        repository::reject_pushes(&project.git_dir, message);
    }
}

impl Drop for GitLabStandIn {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn put_variable(variables: &mut Vec<serde_json::Value>, name: &str, value: &str, more: &serde_json::Value) {
    let mut variable = serde_json::json!({
        "variable_type": "env_var", "key": name, "value": value, "hidden": false, "protected": false,
        "masked": true, "raw": false, "environment_scope": "*", "description": null,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        variable[key] = value.clone();
    }
    variables.retain(|known| known["key"] != name || known["environment_scope"] != variable["environment_scope"]);
    variables.push(variable);
}
