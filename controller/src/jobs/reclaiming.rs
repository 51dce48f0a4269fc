//! Taking a job from a host that is silent: only while its record is gone, and only from the owner that was seen.

use devfleet_shared::attempt::{AttemptResult, Phase};

use super::reports::{Observed, apply_report};
use super::{Claim, JobError, Jobs, held_by};
use crate::leader::Term;
use crate::store::records::{key, live, put};
use crate::store::{Change, Commit, Compare, Revision, Transaction};

impl Jobs {
    /// Takes the job from its owner: its attempt is lost, and the fence moves with the next owner. `None`: the owner
    /// changed, the host is back, the job moved, or the term is over: look again.
    pub async fn reclaim(&self, term: &Term, claim: &Claim, max_attempts: u32) -> Result<Option<Revision>, JobError> {
        let mut seen = self.seen(&claim.job).await?;
        let phase = match seen.state.attempts.iter().find(|attempt| attempt.id == claim.attempt) {
            // What it brought stands, and only its environment is not cleared away yet.
            Some(attempt) if attempt.phase.result().is_some() => attempt.phase.result().cloned().map(Phase::Ended),
            _ => None,
        };
        let phase = phase.unwrap_or(Phase::Ended(AttemptResult::Lost));
        let observed = Observed::from(&phase);
        apply_report(&mut seen.state, claim, observed, max_attempts, self.clock.now())?;
        let mut when = held_by(claim, seen.revision);
        when.push(Compare::Modified(live::key(&claim.host), 0));
        when.push(term.compare());
        let then = vec![put(key::state(&claim.job), &seen.state)?, Change::Delete(key::owner(&claim.job))];
        match self.store.commit(Transaction { when, then }).await? {
            Commit::Done(revision) => Ok(Some(revision)),
            Commit::Conflict => Ok(None),
        }
    }
}
