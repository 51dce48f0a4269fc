//! What stands under which key, and how records are read and written.
//!
//! One record, one writer's concern: a job's `spec` never changes, its `proposal` is written once by the gates, its
//! `state` is moved by compare-and-swap, its `owner` is changed by claims alone, so that the owner's revision is the
//! fence. Values are JSON.

pub mod live;

use std::collections::BTreeMap;
pub mod controllers;
pub mod fleet;
pub mod hosts;
pub mod leadership;

use std::time::Duration;

use devfleet_shared::assignment::{AgentSpec, Limits, mirror_key};
use devfleet_shared::attempt::{AttemptResult, Phase, Step};
use devfleet_shared::clock::Timestamp;
use devfleet_shared::environment::{EnvironmentSpec, Recipe};
use devfleet_shared::id::{AgentName, AttemptId, Digest, HostId, JobId, ProjectName};
use devfleet_shared::job::JobPhase;
use devfleet_shared::resources::Resources;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Change, StoreError};
use crate::environment::overrides::Declared;
use crate::environment::{Alternative, Dropped, ReportLine};
use crate::forge::{Base, MergeRequest};

pub mod settings;

pub use hosts::HostRecord;

/// The beginning of every key.
pub const PREFIX: &str = "/devfleet/v1/";

/// The keys.
pub mod key {
    use super::{HostId, JobId, PREFIX, ProjectName};

    /// A job's unchanging spec.
    pub fn spec(job: &JobId) -> String {
        format!("{PREFIX}jobs/{job}/spec")
    }

    /// A job's proposal.
    pub fn proposal(job: &JobId) -> String {
        format!("{PREFIX}jobs/{job}/proposal")
    }

    /// The proposal that stood before, when a changed CI configuration brought another.
    pub fn former_proposal(job: &JobId) -> String {
        format!("{PREFIX}jobs/{job}/former-proposal")
    }

    /// A job's state.
    pub fn state(job: &JobId) -> String {
        format!("{PREFIX}jobs/{job}/state")
    }

    /// Which host and attempt own a job. The revision of its last change is the fence.
    pub fn owner(job: &JobId) -> String {
        format!("{PREFIX}owners/{job}")
    }

    /// What a job is to publish.
    pub fn publish(job: &JobId) -> String {
        format!("{PREFIX}publish/{job}")
    }

    /// A project's configuration.
    pub fn project(name: &ProjectName) -> String {
        format!("{PREFIX}projects/{name}")
    }

    /// A host's registration.
    pub fn host(id: &HostId) -> String {
        format!("{PREFIX}hosts/{id}")
    }

    /// A used idempotency key, by its hash.
    pub fn idempotency(digest: &str) -> String {
        format!("{PREFIX}idempotency/{digest}")
    }
}

/// What was asked for. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The job.
    pub id: JobId,
    /// The project.
    pub project: ProjectName,
    /// One line.
    pub title: String,
    /// The task; 64 KiB at most.
    pub task: String,
    /// A plan that came with it; may be empty.
    pub plan: String,
    /// The agent profile.
    pub agent: AgentName,
    /// The branch asked for; `None`: the repository's default.
    pub base: Option<String>,
    /// How long the environment is left standing after the end.
    pub hold: Duration,
    /// The issue it is about.
    pub issue: Option<u64>,
    /// Who submitted it.
    pub submitted_by: String,
    /// When.
    pub submitted: Timestamp,
    /// The greater, the sooner it runs.
    #[serde(default)]
    pub priority: i32,
}

#[cfg(test)]
impl JobSpec {
    /// Some job of project `app`, for tests.
    pub(crate) fn sample(submitted: Timestamp) -> JobSpec {
        JobSpec {
            id: JobId::random(),
            project: "app".parse().expect("a name"),
            title: "mend it".into(),
            task: "mend it".into(),
            plan: String::new(),
            agent: "fix".parse().expect("a name"),
            base: None,
            hold: Duration::ZERO,
            issue: None,
            submitted_by: "ada".into(),
            submitted,
            priority: 0,
        }
    }
}

/// What a person approves. Written by the gates; again only when the CI configuration changed before the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Over everything that decides what will happen; see [`Proposal::digest_of`].
    pub digest: Digest,
    /// The task.
    pub task: String,
    /// The plan; may be empty.
    pub plan: String,
    /// The environment.
    pub environment: EnvironmentSpec,
    /// The recipe of its image.
    pub recipe: Recipe,
    /// Where the work starts.
    pub base: Base,
    /// The remote, without credentials.
    pub repository: String,
    /// Who does the work, and how it is started.
    pub agent: AgentSpec,
    /// What it may use.
    pub limits: Limits,
    /// The CI job that the environment was taken from.
    pub ci_job: String,
    /// Where each fact comes from.
    pub report: Vec<ReportLine>,
    /// Other CI jobs that were considered.
    pub alternatives: Vec<Alternative>,
    /// Lines of the CI file that do not run in the environment.
    pub dropped: Vec<Dropped>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// How sure the derivation is, 0 to 1.
    pub confidence: f64,
    /// What the repository declares beside its environment.
    #[serde(default, skip_serializing_if = "Declared::is_empty")]
    pub declared: Declared,
    /// The CI variables that are read from the forge at run time, and the steps that get each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ci_variables: BTreeMap<String, Vec<Step>>,
    /// Over what was read to derive it. Equal: nothing has changed that the environment comes from.
    #[serde(default)]
    pub source: Option<Digest>,
}

impl Proposal {
    /// Hashes what an approval binds: task, plan, environment, recipe, base commit, remote, agent, limits, what the
    /// repository declares, and the names of the CI variables that are handed over.
    pub fn digest_of(&self) -> Result<Digest, serde_json::Error> {
        let parts = [
            serde_json::to_vec(&self.task)?,
            serde_json::to_vec(&self.plan)?,
            serde_json::to_vec(&self.environment)?,
            serde_json::to_vec(&self.recipe)?,
            serde_json::to_vec(&self.base)?,
            serde_json::to_vec(&self.repository)?,
            serde_json::to_vec(&self.agent)?,
            serde_json::to_vec(&self.limits)?,
            serde_json::to_vec(&self.declared)?,
            serde_json::to_vec(&self.ci_variables)?,
        ];
        Ok(Digest::over(parts.iter().map(Vec::as_slice)))
    }
}

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// Its phase.
    pub phase: JobPhase,
    /// When it came into this phase.
    pub since: Timestamp,
    /// The digest of the proposal that stands.
    pub proposal: Option<Digest>,
    /// Where the work starts, once known.
    pub base: Option<Base>,
    /// What is set aside for it on a host, once known.
    pub resources: Resources,
    /// The recipe of its image, once known: hosts that have the image start it sooner.
    #[serde(default)]
    pub recipe: Option<Digest>,
    /// The key of its repository's mirrors, once known.
    #[serde(default)]
    pub mirror: Option<String>,
    /// The container runtime that its host must have, once known; `None`: any.
    #[serde(default)]
    pub runtime: Option<String>,
    /// Who approved, or why nobody had to.
    pub approved_by: Option<String>,
    /// Why it was rejected.
    pub rejected: Option<String>,
    /// Every attempt, oldest first.
    pub attempts: Vec<AttemptRecord>,
    /// Who asked for it to stop.
    pub cancelled_by: Option<String>,
    /// The merge request, once it stands.
    pub merge_request: Option<MergeRequest>,
    /// How often the step under way was tried in vain.
    pub tries: u32,
    /// It is not tried again before this moment.
    pub not_before: Timestamp,
    /// What went wrong at the last try, for people.
    pub trouble: Option<String>,
    /// When the CI configuration was last seen to be the one that was approved.
    #[serde(default)]
    pub current: Option<Timestamp>,
}

impl JobState {
    /// A job that was just submitted.
    pub fn submitted(now: Timestamp) -> Self {
        Self {
            phase: JobPhase::Submitted,
            since: now,
            proposal: None,
            base: None,
            resources: Resources::default(),
            recipe: None,
            mirror: None,
            runtime: None,
            approved_by: None,
            rejected: None,
            attempts: Vec::new(),
            cancelled_by: None,
            merge_request: None,
            tries: 0,
            not_before: Timestamp::default(),
            trouble: None,
            current: None,
        }
    }

    /// Moves to another phase and forgets what belonged to the one before.
    pub fn enter(&mut self, phase: JobPhase, now: Timestamp) {
        self.phase = phase;
        self.since = now;
        self.tries = 0;
        self.not_before = Timestamp::default();
        self.trouble = None;
    }

    /// Takes over what the state says of the proposal that stands.
    pub fn note_proposal(&mut self, proposal: &Proposal) {
        self.proposal = Some(proposal.digest.clone());
        self.base = Some(proposal.base.clone());
        self.resources = proposal.limits.resources;
        self.recipe = Some(proposal.recipe.digest.clone());
        self.mirror = Some(mirror_key(&proposal.repository));
        self.runtime.clone_from(&proposal.limits.runtime);
    }

    /// Returns the attempt under way or last under way.
    pub fn attempt(&self) -> Option<&AttemptRecord> {
        self.attempts.last()
    }
}

/// One attempt, as the controller knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// The attempt.
    pub id: AttemptId,
    /// Its host.
    pub host: HostId,
    /// Where it is.
    pub phase: Phase,
    /// The branch it pushes.
    pub branch: String,
    /// When it was given to the host.
    pub assigned: Timestamp,
    /// When its environment was gone.
    pub ended: Option<Timestamp>,
    /// Until when its environment is held.
    pub held_until: Option<Timestamp>,
    /// When its result stood.
    #[serde(default)]
    pub finished: Option<Timestamp>,
    /// Why it is to be stopped so that another host can do its job; this attempt is not charged then.
    #[serde(default)]
    pub recalled: Option<String>,
    /// The tokens that its agent said it had used when the phase changed last.
    #[serde(default)]
    pub tokens: u64,
}

impl AttemptRecord {
    /// An attempt that is given to a host now.
    pub fn assigned(id: AttemptId, host: HostId, branch: String, now: Timestamp) -> Self {
        Self {
            id,
            host,
            phase: Phase::Assigned,
            branch,
            assigned: now,
            ended: None,
            held_until: None,
            finished: None,
            recalled: None,
            tokens: 0,
        }
    }

    /// Returns how the attempt ended, once that stands.
    pub fn result(&self) -> Option<&AttemptResult> {
        self.phase.result()
    }
}

/// Which host and attempt own a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The host.
    pub host: HostId,
    /// The attempt.
    pub attempt: AttemptId,
}

/// What a job is to publish: written under the fence, before the push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRecord {
    /// The attempt whose work it is.
    pub attempt: AttemptId,
    /// The branch.
    pub branch: String,
    /// The commit.
    pub commit: String,
    /// Whether a push was allowed (false: the diff is kept for people, nothing more).
    pub push: bool,
    /// What `verify` found.
    pub verification: Verification,
}

/// What the `verify` step found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verification {
    /// Whether the project has something to run.
    pub ran: bool,
    /// Whether it passed.
    pub passed: bool,
    /// How long it took.
    pub seconds: u64,
    /// The end of its output, masked.
    pub output_tail: String,
}

/// Which job an idempotency key made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The job.
    pub job: JobId,
    /// Over everything that was submitted with the key.
    pub content: Digest,
}

/// A record that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The value is not what belongs there.
    #[error("read the record at {key}: it is not what belongs there")]
    Malformed {
        /// The key.
        key: String,
        /// What was found.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads a value as the record it should be.
pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, RecordError> {
    serde_json::from_slice(value).map_err(|source| RecordError::Malformed { key: key.to_owned(), source })
}

/// Makes the change that writes a record.
pub fn put<T: Serialize>(key: String, record: &T) -> Result<Change, RecordError> {
    match serde_json::to_vec(record) {
        Ok(value) => Ok(Change::Put { key, value, lease: None }),
        Err(source) => Err(RecordError::Malformed { key, source }),
    }
}
