//! Everything a host needs to know to carry out one attempt. Holds no secret: those are fetched when they are needed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::attempt::Step;
use crate::environment::{EnvironmentSpec, Recipe};
use crate::id::{AgentName, AttemptId, Digest, Fence, JobId, ProjectName};
use crate::resources::Resources;

/// One attempt that a host is to carry out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The job.
    pub job: JobId,
    /// The attempt at it.
    pub attempt: AttemptId,
    /// The ownership epoch under which it runs.
    pub fence: Fence,
    /// The project.
    pub project: ProjectName,
    /// What the agent is asked to do; 64 KiB at most.
    pub task: String,
    /// The approved plan; may be empty.
    pub plan: String,
    /// The environment.
    pub environment: EnvironmentSpec,
    /// The recipe of its image.
    pub recipe: Recipe,
    /// Where the code comes from and goes to.
    pub repository: Repository,
    /// Who does the work.
    pub agent: AgentSpec,
    /// What it may use.
    pub limits: Limits,
    /// How long the environment is left standing after the end, on a person's wish; zero: not at all.
    pub hold: Duration,
}

/// Where the code comes from and goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// The remote's URL or path, without credentials in it.
    pub url: String,
    /// The commit the work starts from, 40 or 64 hex digits.
    pub base_commit: String,
    /// The branch the work is for.
    pub base_branch: String,
    /// The branch that is pushed: named after job and attempt, never one that people use.
    pub work_branch: String,
}

/// How an agent is started and read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    /// The profile's name.
    pub name: AgentName,
    /// How its output is read, and what is known about it.
    pub kind: AgentKind,
    /// The shell script that starts it in the workspace.
    pub command: String,
    /// Variables that are not secret.
    pub variables: BTreeMap<String, String>,
    /// Names of the variables that the grant brings.
    pub secrets: Vec<String>,
}

/// The kinds of agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentKind {
    /// Any command; exit status zero means done.
    Script,
    /// Claude Code, headless, with `stream-json` output.
    ClaudeCode,
}

/// What an attempt may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// What is set aside on the host for the whole environment.
    pub resources: Resources,
    /// Processes in one container.
    pub pids: u64,
    /// Time for each step.
    pub steps: BTreeMap<Step, Duration>,
    /// Time for the whole attempt, image build included.
    pub attempt: Duration,
    /// Time for a service to accept connections.
    pub service_ready: Duration,
    /// Size of the bundle that `collect` may bring, in bytes.
    pub bundle_bytes: u64,
    /// Size of the log that is kept, in bytes; what exceeds it is cut and marked.
    pub log_bytes: u64,
    /// The container runtime of every container; `None`: the engine's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

impl Default for Limits {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        Self {
            resources: Resources {
                cpu_millis: 1_000,
                memory_bytes: 2 << 30,
                disk_bytes: 4 << 30,
                disk_inodes: 100_000,
                slots: 1,
            },
            pids: 512,
            steps: BTreeMap::from([
                (Step::Checkout, minutes(10)),
                (Step::Setup, minutes(30)),
                (Step::Agent, minutes(60)),
                (Step::Verify, minutes(30)),
                (Step::Collect, minutes(10)),
            ]),
            attempt: minutes(120),
            service_ready: Duration::from_secs(30),
            bundle_bytes: 256 << 20,
            log_bytes: 16 << 20,
            runtime: None,
        }
    }
}

impl Limits {
    /// Returns the time for one step.
    pub fn step(&self, step: Step) -> Duration {
        self.steps.get(&step).copied().unwrap_or(self.attempt)
    }
}
/// Returns the key of a repository's mirrors: hosts name them by it, and planning looks for it.
pub fn mirror_key(url: &str) -> String {
    let digest = Digest::of(url.trim_end_matches('/').trim_end_matches(".git").as_bytes());
    digest.hex()[..24].to_owned()
}
