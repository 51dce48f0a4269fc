//! Exactly one merge request per job.
//!
//! The branch was pushed by the host under its fence; what is to be published stands in the store. Opening looks for
//! the merge request first, so it can be repeated after any crash or lost answer.

use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::attempt::{Failure, FailureReason};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use devfleet_shared::job::{JobEvent, JobPhase};
use tracing::{info, warn};

use crate::forge::text::{MergeRequestFacts, VerificationFacts, merge_request_text};
use crate::forge::{ForgeError, MergeRequest, MergeRequestDraft};
use crate::forges::{Forges, OpenForgeError};
use crate::jobs::{JobError, Jobs, Setback};
use crate::leader::Term;
use crate::project::ProjectConfig;
use crate::view::JobRecords;

/// How often a forge that does not answer is asked before the job ends: about two hours, by the pace below.
const TRIES: u32 = 30;
const PACE: Backoff = Backoff { first: Duration::from_secs(1), ceiling: Duration::from_secs(300) };

#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Open(#[from] OpenForgeError),
    #[error(transparent)]
    Forge(#[from] ForgeError),
    #[error(transparent)]
    Job(#[from] JobError),
    #[error("find what job {0} is to publish: there is no record of it")]
    NothingToPublish(String),
    #[error("find the project: it was removed")]
    NoProject,
}

/// Opens merge requests.
#[derive(Clone)]
pub struct Publisher {
    /// Moves jobs.
    pub jobs: Arc<Jobs>,
    /// Opens forges.
    pub forges: Forges,
}

impl Publisher {
    /// Opens the merge request of a job in `Publishing`, and ends the job. Safe to repeat.
    pub async fn publish(
        &self,
        term: &Term,
        job: &JobRecords,
        project: Option<&ProjectConfig>,
    ) -> Result<(), JobError> {
        let id = &job.spec.id;
        match self.open(job, project).await {
            Ok(merge_request) => {
                info!(job = %id, number = merge_request.number, "merge request opened");
                let place = if merge_request.url.is_empty() { "of this job" } else { merge_request.url.as_str() };
                self.tell_issue(job, project, &format!("Done: the merge request {place} waits for a review.")).await;
                let stands = |state: &mut crate::store::records::JobState| {
                    state.merge_request = Some(merge_request.clone());
                };
                self.jobs.event(term, id, JobEvent::Published, stands).await.map(drop)
            }
            Err(PublishError::Forge(error)) if error.is_retryable() && job.state.tries < TRIES => {
                let asked = match &error {
                    ForgeError::Unavailable { retry_after, .. } => retry_after.unwrap_or_default(),
                    _ => Duration::ZERO,
                };
                let pause = PACE.pause(job.state.tries + 1, Backoff::jitter()).max(asked);
                warn!(job = %id, error = %Chain(&error), "the merge request cannot be opened yet");
                let trouble = Chain(&error).to_string();
                let setback = Setback { in_phase: &JobPhase::Publishing, trouble: &trouble, pause };
                self.jobs.try_later(term, id, setback).await
            }
            Err(PublishError::Job(error)) => Err(error),
            Err(error) => {
                let branch = job.state.attempt().map(|attempt| attempt.branch.clone()).unwrap_or_default();
                let message = format!("{} (the work was pushed as branch {branch})", Chain(&error));
                self.tell_issue(job, project, &format!("The merge request could not be opened: {message}")).await;
                let failure = Failure { reason: FailureReason::MergeRequest, message };
                self.jobs.event(term, id, JobEvent::PublishFailed(failure), |_| ()).await.map(drop)
            }
        }
    }

    /// Puts one note on the job's issue, however often it is called. A note that cannot be put is no reason to fail a job.
    async fn tell_issue(&self, job: &JobRecords, project: Option<&ProjectConfig>, text: &str) {
        let (Some(issue), Some(project)) = (job.spec.issue, project) else { return };
        let id = &job.spec.id;
        let told = match self.forges.of(project).await {
            Ok(forge) => forge.ensure_note(issue, &format!("outcome:{id}"), text).await.map_err(PublishError::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = told {
            warn!(job = %id, issue, error = %Chain(&error), "the issue was not told");
        }
    }

    async fn open(&self, job: &JobRecords, project: Option<&ProjectConfig>) -> Result<MergeRequest, PublishError> {
        let id = &job.spec.id;
        let project = project.ok_or(PublishError::NoProject)?;
        let nothing = || PublishError::NothingToPublish(id.to_string());
        let record = self.jobs.publish_record(id).await?.filter(|record| record.push).ok_or_else(nothing)?;
        let proposal = self.jobs.proposal(id).await?.ok_or_else(nothing)?;
        let forge = self.forges.of(project).await?;
        let checked = &record.verification;
        let (title, description) = merge_request_text(&MergeRequestFacts {
            title: &job.spec.title,
            task: &job.spec.task,
            plan: &job.spec.plan,
            verification: checked.ran.then_some(VerificationFacts {
                ran: true,
                passed: checked.passed,
                seconds: checked.seconds,
                output_tail: &checked.output_tail,
            }),
            proposal_digest: &proposal.digest,
            job: id,
            attempt: &record.attempt,
            agent: &job.spec.agent,
            base_commit: &proposal.base.commit,
            issue: job.spec.issue,
        });
        let draft = MergeRequestDraft {
            source_branch: record.branch,
            target_branch: proposal.base.branch,
            commit: record.commit,
            title,
            description,
        };
        Ok(forge.ensure_merge_request(&draft).await?)
    }
}
