//! Between approval and start: is what was approved still what the CI configuration says?
//!
//! ```text
//! Queued ─ recheck ─┬─ nothing moved, or it comes to the same ─▶ starts, at the approved commit
//!                   └─ another digest ─▶ AwaitingApproval again (or on, where the project approves by itself)
//! ```

use std::time::Duration;

use devfleet_shared::clock::Timestamp;
use devfleet_shared::job::JobPhase;
use tracing::info;

use super::sources::{Sources, default_branch};
use super::{GateError, Gates, approved_by_policy, write};
use crate::environment::Verdict;
use crate::jobs::{Anew, JobError};
use crate::leader::Term;
use crate::project::ProjectConfig;
use crate::store::records::{JobSpec, JobState, Proposal};
use crate::view::JobRecords;

/// How long a look at the CI configuration counts. A job that waits longer for a host is looked at again.
const CURRENT_FOR: Duration = Duration::from_secs(60);

/// Says whether a job may start without another look. What runs again after a failure runs as it was approved.
pub fn is_current(state: &JobState, now: Timestamp) -> bool {
    !state.attempts.is_empty() || state.current.is_some_and(|seen| now.since(seen) < CURRENT_FOR)
}

impl Gates {
    /// Looks again at what a queued job was derived from. Safe to repeat.
    pub async fn recheck(
        &self,
        term: &Term,
        job: &JobRecords,
        project: Option<&ProjectConfig>,
    ) -> Result<(), JobError> {
        let id = &job.spec.id;
        let (Some(project), Some(approved)) = (project, self.jobs.proposal(id).await?) else {
            return self.gone(term, job).await;
        };
        match self.look_again(&job.spec, project, &approved).await {
            Ok(None) => self.jobs.note_current(term, id, &approved.digest).await,
            Ok(Some((proposal, verdict))) => {
                let auto = approved_by_policy(project, verdict);
                info!(job = %id, approved = %approved.digest, now = %proposal.digest, "the CI configuration changed");
                let anew = Anew { former: &approved, proposal: &proposal, auto };
                self.jobs.propose_anew(term, id, anew).await
            }
            Err(error) => self.trouble(term, job, &JobPhase::Queued, error).await,
        }
    }

    /// Returns what would be proposed now, if that is something else.
    async fn look_again(
        &self,
        spec: &JobSpec,
        project: &ProjectConfig,
        approved: &Proposal,
    ) -> Result<Option<(Proposal, Verdict)>, GateError> {
        let forge = self.forges.of(project).await?;
        let base = forge.base(Some(&approved.base.branch)).await?;
        if base.commit == approved.base.commit {
            let default = default_branch(&forge, spec, project, &base).await?;
            if default.commit == base.commit {
                return Ok(None);
            }
        }
        let sources = Sources::read(&forge, spec, project, &base).await?;
        if approved.source == Some(sources.digest()) {
            return Ok(None);
        }
        // The newer commit alone is no reason to ask again: the work begins at the approved one.
        let (same_base, _) = write(&forge, spec, project, approved.base.clone(), &sources).await?;
        if same_base.digest == approved.digest {
            return Ok(None);
        }
        write(&forge, spec, project, base, &sources).await.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use devfleet_shared::id::{AttemptId, HostId};

    use super::*;
    use crate::store::records::AttemptRecord;

    #[test]
    fn a_look_counts_for_a_minute_and_a_started_job_needs_none() {
        let now = Timestamp(1_000_000);
        let mut state = JobState::submitted(now);
        assert!(!is_current(&state, now), "nobody has looked");
        state.current = Some(now);
        assert!(is_current(&state, now.after(Duration::from_secs(59))));
        assert!(!is_current(&state, now.after(Duration::from_secs(60))));
        state.attempts.push(AttemptRecord::assigned(AttemptId::random(), HostId::random(), "b".into(), now));
        assert!(is_current(&state, now.after(Duration::from_secs(3_600))));
    }
}
