//! Jobs whose CI configuration is looked at again between approval and start.

use devfleet_shared::id::{Digest, JobId};
use devfleet_shared::job::{JobEvent, JobPhase};

use super::{JobError, Jobs, step};
use crate::store::records::{Proposal, decode, key, put};
use crate::store::{Commit, Compare, Transaction};

impl Jobs {
    /// Notes that what was approved is still what the CI configuration says, or that its newest proposal is.
    pub async fn note_current(&self, job: &JobId, digest: &Digest) -> Result<(), JobError> {
        self.change(job, |state, now| {
            if state.phase == JobPhase::Queued && state.proposal.as_ref() == Some(digest) {
                (state.current, state.trouble, state.tries) = (Some(now), None, 0);
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Puts another proposal in the place of the one that was approved, and keeps that for comparison. The job waits
    /// for a person again, unless the project approves by itself.
    pub async fn propose_anew(
        &self,
        job: &JobId,
        former: &Proposal,
        proposal: &Proposal,
        auto: Option<&str>,
    ) -> Result<(), JobError> {
        loop {
            let mut seen = self.seen(job).await?;
            if seen.state.phase != JobPhase::Queued || seen.state.proposal.as_ref() != Some(&former.digest) {
                return Ok(());
            }
            let now = self.clock.now();
            if auto.is_none() {
                step(&mut seen.state, JobEvent::Drifted, now)?;
                let hint = "the CI configuration changed after the approval; `devfleet env diff` shows how";
                seen.state.trouble = Some(hint.to_owned());
            }
            seen.state.proposal = Some(proposal.digest.clone());
            seen.state.base = Some(proposal.base.clone());
            seen.state.resources = proposal.limits.resources;
            seen.state.approved_by = auto.map(str::to_owned);
            seen.state.current = auto.map(|_| now);
            let transaction = Transaction {
                when: vec![Compare::Modified(key::state(job), seen.revision)],
                then: vec![
                    put(key::former_proposal(job), former)?,
                    put(key::proposal(job), proposal)?,
                    put(key::state(job), &seen.state)?,
                ],
            };
            if let Commit::Done(_) = self.store.commit(transaction).await? {
                return Ok(());
            }
        }
    }

    /// Reads the proposal that stood before a changed CI configuration brought another.
    pub async fn former_proposal(&self, job: &JobId) -> Result<Option<Proposal>, JobError> {
        let key = key::former_proposal(job);
        Ok(self.store.get(&key).await?.map(|entry| decode(&key, &entry.value)).transpose()?)
    }
}
