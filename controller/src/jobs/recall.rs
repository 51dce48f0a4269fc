//! Taking an attempt off its host in an orderly way: the host stops it and says so, and its job is queued again.

use super::{Claim, JobError, Jobs, held_by};
use crate::leader::Term;
use crate::store::records::{PublishRecord, decode, key, put};
use crate::store::{Commit, Compare, Revision, Transaction};

impl Jobs {
    /// Notes that an attempt is to be stopped so that another host can do its job, and why. `None`: it has a result, it is
    /// noted already, its work is being published, the owner changed, or the term is over: look again.
    pub async fn recall(&self, term: &Term, claim: &Claim, why: &str) -> Result<Option<Revision>, JobError> {
        let mut seen = self.seen(&claim.job).await?;
        let found = seen.state.attempts.iter_mut().find(|attempt| attempt.id == claim.attempt);
        let Some(attempt) = found.filter(|attempt| attempt.result().is_none() && attempt.recalled.is_none()) else {
            return Ok(None);
        };
        // Leave to push was given: stopped now, its branch might stand and nobody would open a merge request for it.
        let publish = key::publish(&claim.job);
        let leave = self.store.get(&publish).await?;
        let revision = leave.as_ref().map_or(0, |entry| entry.modified);
        let leave = leave.map(|entry| decode::<PublishRecord>(&publish, &entry.value)).transpose()?;
        if leave.is_some_and(|leave| leave.attempt == claim.attempt) {
            return Ok(None);
        }
        attempt.recalled = Some(why.to_owned());
        let mut when = held_by(claim, seen.revision);
        when.extend([Compare::Modified(publish, revision), term.compare()]);
        let then = vec![put(key::state(&claim.job), &seen.state)?];
        match self.store.commit(Transaction { when, then }).await? {
            Commit::Done(revision) => Ok(Some(revision)),
            Commit::Conflict => Ok(None),
        }
    }
}
