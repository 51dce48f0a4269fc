//! What a job passes before anything is provisioned: its environment is derived, its proposal written.
//!
//! Submitted ─▶ Planning ── derive ──▶ AwaitingApproval, or Queued where the project approves by itself
//!
//! Nothing here starts a container. A forge that does not answer is asked again later; a configuration that cannot be
//! used ends the job with what is wrong with it.

pub mod agents;

use std::collections::BTreeMap;
use std::time::Duration;

use devfleet_shared::attempt::{Failure, FailureReason};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use devfleet_shared::id::Digest;
use devfleet_shared::job::{JobEvent, JobPhase};
use tracing::{info, warn};

use crate::environment::{self, Context, Derivation, Verdict};
use crate::forge::{Base, ForgeError, SharedForge};
use crate::forges::{Forges, OpenForgeError};
use crate::jobs::{JobError, Jobs, Setback};
use crate::leader::Term;
use crate::project::{Approval, ForgeConfig, ProjectConfig};
use crate::store::records::{JobSpec, Proposal};
use crate::view::JobRecords;

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
    #[error("write the proposal")]
    Encode(#[from] serde_json::Error),
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
        let Some(project) = project else {
            let message = format!("project {} was removed", job.spec.project);
            return self.fail(term, job, FailureReason::Derivation, message).await;
        };
        match self.propose(&job.spec, project).await {
            Ok((proposal, verdict)) => {
                // A guess is for a person to look at, whatever the policy says.
                let allowed = project.approval == Approval::Auto && verdict != Verdict::Fallback;
                let auto = allowed.then_some("the project's policy (approval = auto)");
                info!(job = %id, digest = %proposal.digest, "proposal written");
                self.jobs.propose(term, id, &proposal, auto).await
            }
            Err(GateError::Forge(error)) if error.is_retryable() && job.state.tries < FORGE_TRIES => {
                let asked = match &error {
                    ForgeError::Unavailable { retry_after, .. } => *retry_after,
                    _ => None,
                };
                let pause = FORGE_PACE.pause(job.state.tries + 1, Backoff::jitter()).max(asked.unwrap_or_default());
                warn!(job = %id, error = %Chain(&error), "the forge does not answer, trying later");
                let trouble = Chain(&error).to_string();
                let setback = Setback { in_phase: &JobPhase::Planning, trouble: &trouble, pause };
                self.jobs.try_later(term, id, setback).await
            }
            Err(error) => {
                let reason = match error {
                    GateError::Open(OpenForgeError::Secret { .. }) => FailureReason::Secret,
                    GateError::Open(_) | GateError::Forge(_) => FailureReason::Forge,
                    GateError::Derivation(_) | GateError::Agent(_) => FailureReason::Derivation,
                    GateError::Encode(_) => FailureReason::Internal,
                };
                let message = Chain(&error).to_string();
                self.fail(term, job, reason, message).await
            }
        }
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
        let config = forge.ci_config(&base.commit).await?;
        let access = forge.git_access().await?;
        let context = context(project, &base, read_files(&forge, &base.commit).await);
        let derived = environment::derive(&config, &context)?;
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
        };
        proposal.digest = proposal.digest_of()?;
        Ok((proposal, verdict))
    }
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

/// Reads what exists of the files that pin versions. A file that cannot be read is left out: it only refines.
async fn read_files(forge: &SharedForge, commit: &str) -> BTreeMap<String, String> {
    let reads = environment::REPOSITORY_FILES.map(|path| async move {
        let content = forge.read_file(commit, path).await.ok().flatten()?;
        Some((path.to_owned(), String::from_utf8(content).ok()?))
    });
    futures_util::future::join_all(reads).await.into_iter().flatten().collect()
}
