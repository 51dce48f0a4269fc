//! What a job passes before anything is provisioned: its environment is derived, its proposal written.
//!
//! Submitted ─▶ Planning ── derive ──▶ AwaitingApproval, or Queued where the project approves by itself
//!
//! Nothing here starts a container. A forge that does not answer is asked again later; a configuration that cannot be
//! used ends the job with what is wrong with it.

pub mod agents;
pub mod difference;
pub mod drift;
mod sources;

use std::collections::BTreeMap;
use std::time::Duration;

use devfleet_shared::attempt::{Failure, FailureReason, Step};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use devfleet_shared::id::Digest;
use devfleet_shared::job::{JobEvent, JobPhase};
use tracing::{info, warn};

use crate::environment::overrides::OverridesError;
use crate::environment::{self, Context, Derivation, Verdict};
use crate::forge::{Base, ForgeError, SharedForge};
use crate::forges::{Forges, OpenForgeError};
use crate::jobs::{JobError, Jobs, Setback};
use crate::leader::Term;
use crate::project::{Approval, ForgeConfig, ProjectConfig};
use crate::store::records::{JobSpec, Proposal};
use crate::view::JobRecords;
use sources::Sources;

/// How often a forge that does not answer is asked before the job ends: about an hour, by the pace below.
const FORGE_TRIES: u32 = 20;
const FORGE_PACE: Backoff = Backoff { first: Duration::from_secs(1), ceiling: Duration::from_secs(300) };

/// Why a job did not pass.
#[derive(Debug, thiserror::Error)]
enum GateError {
    #[error(transparent)]
    Open(#[from] OpenForgeError),
    #[error(transparent)]
    Forge(#[from] ForgeError),
    #[error(transparent)]
    Derivation(#[from] environment::DerivationError),
    #[error(transparent)]
    Agent(#[from] agents::AgentError),
    #[error(transparent)]
    Overrides(#[from] OverridesError),
    #[error("write the proposal")]
    Encode(#[from] serde_json::Error),
}

impl GateError {
    /// Returns the class of the failure.
    fn reason(&self) -> FailureReason {
        match self {
            GateError::Open(OpenForgeError::Secret { .. }) => FailureReason::Secret,
            GateError::Open(_) | GateError::Forge(_) => FailureReason::Forge,
            GateError::Derivation(_) | GateError::Agent(_) | GateError::Overrides(_) => FailureReason::Derivation,
            GateError::Encode(_) => FailureReason::Internal,
        }
    }
}

/// Brings jobs through the gates.
#[derive(Clone)]
pub struct Gates {
    /// Moves jobs.
    pub jobs: std::sync::Arc<Jobs>,
    /// Opens forges.
    pub forges: Forges,
}

impl Gates {
    /// Brings a job in `Submitted` or `Planning` as far as it gets. Safe to repeat.
    pub async fn pass(&self, term: &Term, job: &JobRecords, project: Option<&ProjectConfig>) -> Result<(), JobError> {
        let id = &job.spec.id;
        if job.state.phase == JobPhase::Submitted {
            self.jobs.event(term, id, JobEvent::TriagePassed, |_| ()).await?;
        }
        let Some(project) = project else { return self.gone(term, job).await };
        match self.propose(&job.spec, project).await {
            Ok((proposal, verdict)) => {
                let auto = approved_by_policy(project, verdict);
                info!(job = %id, digest = %proposal.digest, "proposal written");
                self.jobs.propose(term, id, &proposal, auto).await
            }
            Err(error) => self.trouble(term, job, &JobPhase::Planning, error).await,
        }
    }

    /// Tries again later where that may help, and ends the job where it does not.
    async fn trouble(&self, term: &Term, job: &JobRecords, phase: &JobPhase, error: GateError) -> Result<(), JobError> {
        let id = &job.spec.id;
        match error {
            GateError::Forge(error) if error.is_retryable() && job.state.tries < FORGE_TRIES => {
                let asked = match &error {
                    ForgeError::Unavailable { retry_after, .. } => *retry_after,
                    _ => None,
                };
                let pause = FORGE_PACE.pause(job.state.tries + 1, Backoff::jitter()).max(asked.unwrap_or_default());
                warn!(job = %id, error = %Chain(&error), "the forge does not answer, trying later");
                let trouble = Chain(&error).to_string();
                let setback = Setback { in_phase: phase, trouble: &trouble, pause };
                self.jobs.try_later(term, id, setback).await
            }
            error => {
                let reason = error.reason();
                let message = Chain(&error).to_string();
                self.fail(term, job, reason, message).await
            }
        }
    }

    async fn gone(&self, term: &Term, job: &JobRecords) -> Result<(), JobError> {
        let message = format!("project {} was removed", job.spec.project);
        self.fail(term, job, FailureReason::Derivation, message).await
    }

    async fn fail(
        &self,
        term: &Term,
        job: &JobRecords,
        reason: FailureReason,
        message: String,
    ) -> Result<(), JobError> {
        info!(job = %job.spec.id, reason = reason.name(), "the job did not pass its gates");
        self.jobs.event(term, &job.spec.id, JobEvent::GateFailed(Failure { reason, message }), |_| ()).await.map(drop)
    }

    async fn propose(&self, spec: &JobSpec, project: &ProjectConfig) -> Result<(Proposal, Verdict), GateError> {
        let forge = self.forges.of(project).await?;
        let base = forge.base(spec.base.as_deref().or(project.default_branch.as_deref())).await?;
        let sources = Sources::read(&forge, spec, project, &base).await?;
        write(&forge, spec, project, base, &sources).await
    }
}

/// Says who approves where the project does it by itself. A guess is for a person to look at, whatever the policy says.
fn approved_by_policy(project: &ProjectConfig, verdict: Verdict) -> Option<&'static str> {
    let allowed = project.approval == Approval::Auto && verdict != Verdict::Fallback;
    allowed.then_some("the project's policy (approval = auto)")
}

/// Writes the proposal that these sources give for work that begins at this base.
async fn write(
    forge: &SharedForge,
    spec: &JobSpec,
    project: &ProjectConfig,
    base: Base,
    sources: &Sources,
) -> Result<(Proposal, Verdict), GateError> {
    let access = forge.git_access().await?;
    let (mut derived, declared) = sources.derive(&context(project, &base, sources.files.clone()))?;
    let ci_variables = ci_variables(forge, project, &mut derived).await?;
    let (agent, needs) = agents::prepare(&spec.agent, project).await?;
    let recipe = environment::recipe(&derived.environment, &derived.packages, &needs);
    let Derivation { environment, ci_job, alternatives, dropped, report, notes, confidence, verdict, .. } = derived;
    let mut proposal = Proposal {
        digest: Digest::of(b""),
        task: spec.task.clone(),
        plan: spec.plan.clone(),
        environment,
        recipe,
        base,
        repository: access.url,
        agent,
        limits: project.limits(),
        ci_job,
        report,
        alternatives,
        dropped,
        notes,
        confidence,
        declared,
        ci_variables,
        source: Some(sources.digest()),
    };
    proposal.digest = proposal.digest_of()?;
    Ok((proposal, verdict))
}

/// Looks which of the allowed CI variables the forge has, and notes by name which it has not. No value is kept.
async fn ci_variables(
    forge: &SharedForge,
    project: &ProjectConfig,
    derived: &mut Derivation,
) -> Result<BTreeMap<String, Vec<Step>>, GateError> {
    let (in_file, wanted): (Vec<String>, Vec<String>) =
        project.ci_variables.keys().cloned().partition(|name| derived.environment.variables.contains_key(name));
    let found = if wanted.is_empty() { BTreeMap::new() } else { forge.ci_variables(&wanted).await? };
    let mut granted = BTreeMap::new();
    for name in in_file {
        derived.notes.push(format!("CI variable {name} stands in the CI file, and that value counts"));
    }
    for (name, steps) in project.ci_variables.iter().filter(|(name, _)| wanted.contains(name)) {
        match found.get(name) {
            Some(Ok(_)) => drop(granted.insert(name.clone(), steps.clone())),
            Some(Err(why)) => derived.notes.push(format!("CI variable {name} is not handed over: {why}")),
            None => derived.notes.push(format!("CI variable {name} is allowed by the project, and GitLab has none")),
        }
    }
    Ok(granted)
}

fn context(project: &ProjectConfig, base: &Base, repository_files: BTreeMap<String, String>) -> Context {
    let (project_path, registry_prefix) = match &project.forge {
        ForgeConfig::Gitlab { project, .. } => (project.clone(), None),
        ForgeConfig::Git { .. } => (project.name.to_string(), None),
    };
    Context {
        project_path,
        default_branch: project.default_branch.clone().unwrap_or_else(|| base.branch.clone()),
        base_branch: base.branch.clone(),
        base_commit: base.commit.clone(),
        registry_prefix,
        repository_files,
    }
}
