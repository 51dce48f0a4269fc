//! The small project that most scenes play in, and how scripts of an agent are put into a project.

use crate::support::site::{Repository, Site};

/// The language image of most scenes; `deploy/images/build.sh` makes it.
pub(super) const PYTHON: &str = "devfleet-test/python:3.11";

/// A check that fails until the agent has written the answer.
pub(super) const CHECK: &str = "set -e\ngrep -q 42 answer.txt\necho the answer is right\n";

/// A CI file whose test job runs the check.
pub(super) fn ci(extra: &str) -> String {
    format!("image: {PYTHON}\n{extra}\ntest:\n  script:\n    - sh check.sh\n")
}

/// The agent that does the task.
pub(super) const FIX: &str = "echo working on it\necho 42 > answer.txt\n";

/// A project's TOML with one script agent.
pub(super) fn project(name: &str, repository: &str, agent: &str, more: &str) -> String {
    format!(
        "name = {name:?}\nrepository = {repository:?}\n{more}\n[agents.worker]\nkind = \"script\"\ncommand = {agent:?}\n"
    )
}

/// Makes the usual repository and project in a site: approval by policy, one agent.
pub(super) async fn usual_project(site: &Site, ci: &str, agent: &str, more: &str) -> Repository {
    let repository = site.repository("sample", &[(".gitlab-ci.yml", ci), ("check.sh", CHECK), ("answer.txt", "41\n")]);
    let more = format!("approval = \"auto\"\n{more}");
    let (head, tables) =
        more.split_once("\n[").map_or((more.as_str(), String::new()), |(head, rest)| (head, format!("\n[{rest}")));
    let text = project("sample", &repository.path.display().to_string(), agent, head);
    site.apply(&format!("{text}{tables}\n")).await;
    repository
}

/// What a job may use in tests: less than by default, so that several fit on a small machine.
pub(super) const SMALL: &str = "[limits]\nmemory = \"256MiB\"\ndisk = \"64MiB\"\n";
