//! The proposals of jobs: stored with the move that they mean, and replaced when CI changed before the start.

use devfleet_shared::id::{Digest, JobId};
use devfleet_shared::job::{JobEvent, JobPhase};

use super::{JobError, Jobs, step};
use crate::leader::Term;
use crate::store::records::{Proposal, decode, key, put};
use crate::store::{Commit, Compare, Transaction};

/// A proposal that is to take another's place.
#[derive(Debug, Clone, Copy)]
pub struct Anew<'a> {
    /// The one that was approved.
    pub former: &'a Proposal,
    /// The one that takes its place.
    pub proposal: &'a Proposal,
    /// Why nobody has to approve it, where that is so.
    pub auto: Option<&'a str>,
}

impl Jobs {
    /// Stores a proposal and moves the job on. The proposal and the move are one transaction.
    pub async fn propose(
        &self,
        term: &Term,
        job: &JobId,
        proposal: &Proposal,
        auto: Option<&str>,
    ) -> Result<(), JobError> {
        let mut refused = None;
        loop {
            let mut seen = self.seen(job).await?;
            seen.moved_since(refused, job)?;
            let read = seen.revision;
            seen.state.note_proposal(proposal);
            seen.state.approved_by = auto.map(str::to_owned);
            seen.state.current = auto.map(|_| self.clock.now());
            let event = if auto.is_some() { JobEvent::ProposedAndApproved } else { JobEvent::Proposed };
            step(&mut seen.state, event, self.clock.now())?;
            let transaction = Transaction {
                when: vec![Compare::Modified(key::state(job), read), term.compare()],
                then: vec![put(key::proposal(job), proposal)?, put(key::state(job), &seen.state)?],
            };
            if let Commit::Done(_) = self.store.commit(transaction).await? {
                return Ok(());
            }
            refused = Some(read);
        }
    }

    /// Reads the proposal that stands.
    pub async fn proposal(&self, job: &JobId) -> Result<Option<Proposal>, JobError> {
        let key = key::proposal(job);
        Ok(self.store.get(&key).await?.map(|entry| decode(&key, &entry.value)).transpose()?)
    }

    /// Notes that what was approved is what the CI configuration says now.
    pub async fn note_current(&self, term: &Term, job: &JobId, digest: &Digest) -> Result<(), JobError> {
        self.change_under(Some(term), job, |state, now| {
            if state.phase == JobPhase::Queued && state.proposal.as_ref() == Some(digest) {
                (state.current, state.trouble, state.tries) = (Some(now), None, 0);
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Puts another proposal in the place of the one that was approved, and keeps that for comparison. The job waits
    /// for a person again, unless the project approves by itself. Nothing happens if the job has moved on.
    pub async fn propose_anew(&self, term: &Term, job: &JobId, anew: Anew<'_>) -> Result<(), JobError> {
        let Anew { former, proposal, auto } = anew;
        let mut refused = None;
        loop {
            let mut seen = self.seen(job).await?;
            seen.moved_since(refused, job)?;
            let read = seen.revision;
            if seen.state.phase != JobPhase::Queued || seen.state.proposal.as_ref() != Some(&former.digest) {
                return Ok(());
            }
            let now = self.clock.now();
            if auto.is_none() {
                step(&mut seen.state, JobEvent::Drifted, now)?;
                let hint = "the CI configuration changed after the approval; `devfleet env diff` shows how";
                seen.state.trouble = Some(hint.to_owned());
            }
            seen.state.note_proposal(proposal);
            seen.state.approved_by = auto.map(str::to_owned);
            seen.state.current = auto.map(|_| now);
            let transaction = Transaction {
                when: vec![Compare::Modified(key::state(job), read), term.compare()],
                then: vec![
                    put(key::former_proposal(job), former)?,
                    put(key::proposal(job), proposal)?,
                    put(key::state(job), &seen.state)?,
                ],
            };
            if let Commit::Done(_) = self.store.commit(transaction).await? {
                return Ok(());
            }
            refused = Some(read);
        }
    }

    /// Reads the proposal that stood before a changed CI configuration brought another.
    pub async fn former_proposal(&self, job: &JobId) -> Result<Option<Proposal>, JobError> {
        let key = key::former_proposal(job);
        Ok(self.store.get(&key).await?.map(|entry| decode(&key, &entry.value)).transpose()?)
    }
}
