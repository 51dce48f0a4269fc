//! Everything that changes a job: read, apply the table, compare-and-swap, look again.
//!
//! Callers are the API (people), sessions (hosts), and the reconcile loop. A change that lost its race is made anew on
//! what stands now, so each is written as a function of the state.

mod placing;
mod proposals;
mod recall;
mod reclaiming;
mod reports;

use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::attempt::Phase;
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{AttemptId, Digest, Fence, HostId, JobId};
use devfleet_shared::job::{JobEvent, JobPhase, Refused};

use self::reports::apply_report;
use crate::leader::Term;
use crate::store::records::{Idempotency, JobSpec, JobState, Owner, PublishRecord, RecordError, decode, key, put};
use crate::store::{Change, Commit, Compare, Entry, Revision, SharedStore, StoreError, Transaction};

pub use placing::Placement;
pub use proposals::Anew;
pub use reports::Observed;

/// How long a used idempotency key is remembered.
const IDEMPOTENCY_TIME: Duration = Duration::from_secs(24 * 3600);

/// Why a job cannot be changed so.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// There is no such job.
    #[error("find job {0}: there is none; `devfleet jobs list` shows what there is")]
    NoSuchJob(String),
    /// The phase does not allow it.
    #[error("{action} job {job}: it is {phase}{hint}")]
    WrongPhase {
        /// What was asked for.
        action: &'static str,
        /// The job.
        job: JobId,
        /// Its phase.
        phase: &'static str,
        /// What to do instead, with a leading `; `; may be empty.
        hint: &'static str,
    },
    /// The digest is not that of the proposal that stands.
    #[error(
        "approve job {job}: the proposal has changed, {standing} stands now; read it with `devfleet env show` and approve that digest"
    )]
    StaleDigest {
        /// The job.
        job: JobId,
        /// The digest that stands.
        standing: Digest,
    },
    /// The key was used for something else.
    #[error("submit: the idempotency key was used for another job ({0}); use a new key for a new job")]
    KeyReused(JobId),
    /// The term under which it was to be changed is over; whoever leads now goes on.
    #[error("move job {0}: this controller no longer leads")]
    TermOver(JobId),
    /// The life cycle does not allow it: a defect.
    #[error("move the job")]
    Refused(#[from] Refused),
    /// The store failed, or holds something that does not belong there.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> Self {
        JobError::Record(RecordError::Store(error))
    }
}

/// What became of a host's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It is part of the job's state now, or already was.
    Applied,
    /// The attempt does not own the job (any more).
    Superseded,
}

/// A host's claim to speak for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The host that speaks.
    pub host: HostId,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The ownership epoch.
    pub fence: Fence,
}

/// A step that failed and is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Setback<'a> {
    /// The phase of the step; a job that has left it is not touched.
    pub in_phase: &'a JobPhase,
    /// What went wrong, for people.
    pub trouble: &'a str,
    /// The least time until the next try.
    pub pause: Duration,
}

/// Changes jobs.
#[derive(Clone)]
pub struct Jobs {
    store: SharedStore,
    clock: Clock,
}

/// A job's state as it was read, with its revision.
struct Seen {
    state: JobState,
    revision: Revision,
}

impl Seen {
    /// Checks that a refused write was refused because the job moved: if it did not, the term is over.
    fn moved_since(&self, refused: Option<Revision>, job: &JobId) -> Result<(), JobError> {
        if refused == Some(self.revision) { Err(JobError::TermOver(job.clone())) } else { Ok(()) }
    }
}

impl Jobs {
    /// Makes one over a store.
    pub fn new(store: SharedStore, clock: Clock) -> Arc<Self> {
        Arc::new(Self { store, clock })
    }

    /// Accepts a job. The same key with the same content returns the job that stands, and `false`.
    pub async fn submit(
        &self,
        spec: &JobSpec,
        idempotency: &Digest,
        content: &Digest,
    ) -> Result<(JobId, bool), JobError> {
        let used = key::idempotency(idempotency.hex());
        loop {
            if let Some(entry) = self.store.get(&used).await? {
                let earlier: Idempotency = decode(&used, &entry.value)?;
                return if earlier.content == *content {
                    Ok((earlier.job, false))
                } else {
                    Err(JobError::KeyReused(earlier.job))
                };
            }
            let lease = self.store.grant_lease(IDEMPOTENCY_TIME).await?;
            let record = Idempotency { job: spec.id.clone(), content: content.clone() };
            let mut mark = put(used.clone(), &record)?;
            if let Change::Put { lease: on, .. } = &mut mark {
                *on = Some(lease);
            }
            let transaction = Transaction {
                when: vec![Compare::Modified(used.clone(), 0), Compare::Modified(key::spec(&spec.id), 0)],
                then: vec![
                    put(key::spec(&spec.id), spec)?,
                    put(key::state(&spec.id), &JobState::submitted(self.clock.now()))?,
                    mark,
                ],
            };
            match self.store.commit(transaction).await? {
                Commit::Done(_) => return Ok((spec.id.clone(), true)),
                Commit::Conflict => self.store.revoke_lease(lease).await?,
            }
        }
    }

    /// Approves the proposal that stands; with a digest, only that one.
    pub async fn approve(&self, job: &JobId, digest: Option<&Digest>, by: &str) -> Result<JobState, JobError> {
        self.change(job, |state, now| {
            let standing = state.proposal.clone().filter(|_| state.phase == JobPhase::AwaitingApproval);
            let standing = standing.ok_or_else(|| {
                wrong_phase("approve", job, state, "; only a job that awaits approval can be approved")
            })?;
            if digest.is_some_and(|digest| *digest != standing) {
                return Err(JobError::StaleDigest { job: job.clone(), standing });
            }
            state.approved_by = Some(by.to_owned());
            // It is looked at once more before the start, however quickly that follows.
            state.current = None;
            step(state, JobEvent::Approved, now)
        })
        .await
    }

    /// Rejects the proposal that stands.
    pub async fn reject(&self, job: &JobId, reason: &str, by: &str) -> Result<JobState, JobError> {
        self.change(job, |state, now| {
            if state.phase != JobPhase::AwaitingApproval {
                return Err(wrong_phase("reject", job, state, "; `devfleet cancel` stops a job in any phase"));
            }
            state.rejected = Some(if reason.is_empty() { format!("by {by}") } else { format!("by {by}: {reason}") });
            step(state, JobEvent::Rejected, now)
        })
        .await
    }

    /// Cancels a job; one that runs is stopped by its host, one whose environment is held loses it. Safe to repeat.
    pub async fn cancel(&self, job: &JobId, by: &str) -> Result<JobState, JobError> {
        self.change(job, |state, now| {
            let standing = state.attempt().is_some_and(|attempt| attempt.ended.is_none());
            if state.phase == JobPhase::Publishing || (state.phase.is_terminal() && !standing) {
                return match state.cancelled_by {
                    Some(_) => Ok(()),
                    None => Err(wrong_phase("cancel", job, state, "; there is nothing left to stop")),
                };
            }
            state.cancelled_by.get_or_insert_with(|| by.to_owned());
            if state.phase == JobPhase::Running || state.phase.is_terminal() {
                return Ok(());
            }
            step(state, JobEvent::Cancelled, now)
        })
        .await
    }

    /// Applies an event of the gates or of publishing.
    pub async fn event(
        &self,
        term: &Term,
        job: &JobId,
        event: JobEvent,
        also: impl Fn(&mut JobState),
    ) -> Result<JobState, JobError> {
        self.change_under(Some(term), job, |state, now| {
            also(state);
            step(state, event.clone(), now)
        })
        .await
    }

    /// Notes that the step under way failed and is tried again later.
    pub async fn try_later(&self, term: &Term, job: &JobId, setback: Setback<'_>) -> Result<(), JobError> {
        self.change_under(Some(term), job, |state, now| {
            if state.phase == *setback.in_phase {
                state.tries += 1;
                state.trouble = Some(setback.trouble.to_owned());
                state.not_before = now.after(setback.pause);
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Takes a host's report about its attempt. Repeated and late reports change nothing.
    pub async fn report(&self, claim: &Claim, observed: Observed<'_>, max_attempts: u32) -> Result<Report, JobError> {
        let Observed { phase, held_until, .. } = observed;
        loop {
            if self.owned(claim).await?.is_none() {
                return Ok(Report::Superseded);
            }
            let mut seen = self.seen(&claim.job).await?;
            let before = seen.state.clone();
            apply_report(&mut seen.state, claim, observed, max_attempts, self.clock.now())?;
            // A held environment still takes its place on the host: the job stays its own until that is over.
            let over = matches!(phase, Phase::Ended(_)) && held_until.is_none();
            if seen.state == before && !over {
                return Ok(Report::Applied);
            }
            let mut then = vec![put(key::state(&claim.job), &seen.state)?];
            if over {
                then.push(Change::Delete(key::owner(&claim.job)));
            }
            let transaction = Transaction { when: held_by(claim, seen.revision), then };
            if let Commit::Done(_) = self.store.commit(transaction).await? {
                return Ok(Report::Applied);
            }
        }
    }

    /// Writes down what the attempt is to publish, if it still owns a job that still wants it. Says why not.
    pub async fn authorize_publish(
        &self,
        claim: &Claim,
        record: &PublishRecord,
    ) -> Result<Result<(), String>, JobError> {
        loop {
            if self.owned(claim).await?.is_none() {
                return Ok(Err("another attempt owns the job".into()));
            }
            let seen = self.seen(&claim.job).await?;
            if seen.state.phase != JobPhase::Running {
                return Ok(Err(format!("the job is {}", seen.state.phase.name())));
            }
            if let Some(by) = &seen.state.cancelled_by {
                return Ok(Err(format!("the job was cancelled by {by}")));
            }
            let mine = seen.state.attempts.iter().find(|attempt| attempt.id == claim.attempt);
            if let Some(why) = mine.and_then(|attempt| attempt.recalled.as_ref()) {
                return Ok(Err(format!("another host does the job: {why}")));
            }
            let transaction =
                Transaction { when: held_by(claim, seen.revision), then: vec![put(key::publish(&claim.job), record)?] };
            if let Commit::Done(_) = self.store.commit(transaction).await? {
                return Ok(Ok(()));
            }
        }
    }

    /// Returns the revision of a job's last change, as the store has it; `None` if there is no such job.
    pub async fn revision(&self, job: &JobId) -> Result<Option<Revision>, JobError> {
        Ok(self.store.get(&key::state(job)).await?.map(|entry| entry.modified))
    }

    /// Reads what a job is to publish.
    pub async fn publish_record(&self, job: &JobId) -> Result<Option<PublishRecord>, JobError> {
        let key = key::publish(job);
        Ok(self.store.get(&key).await?.map(|entry| decode(&key, &entry.value)).transpose()?)
    }

    /// Returns the owner's entry if the claim is the one that stands.
    pub async fn owned(&self, claim: &Claim) -> Result<Option<Entry>, JobError> {
        let key = key::owner(&claim.job);
        let Some(entry) = self.store.get(&key).await? else { return Ok(None) };
        let owner: Owner = decode(&key, &entry.value)?;
        let stands = owner.host == claim.host && owner.attempt == claim.attempt && entry.modified == claim.fence.0;
        Ok(stands.then_some(entry))
    }

    /// Says whether the attempt is or was this host's: its log is worth keeping even when another owns the job by now.
    pub async fn had(&self, claim: &Claim) -> Result<bool, JobError> {
        let key = key::state(&claim.job);
        let Some(entry) = self.store.get(&key).await? else { return Ok(false) };
        let state: JobState = decode(&key, &entry.value)?;
        Ok(state.attempts.iter().any(|attempt| attempt.id == claim.attempt && attempt.host == claim.host))
    }

    async fn change(
        &self,
        job: &JobId,
        change: impl Fn(&mut JobState, Timestamp) -> Result<(), JobError>,
    ) -> Result<JobState, JobError> {
        self.change_under(None, job, change).await
    }

    async fn change_under(
        &self,
        term: Option<&Term>,
        job: &JobId,
        change: impl Fn(&mut JobState, Timestamp) -> Result<(), JobError>,
    ) -> Result<JobState, JobError> {
        let mut refused = None;
        loop {
            let mut seen = self.seen(job).await?;
            seen.moved_since(refused, job)?;
            let before = seen.state.clone();
            change(&mut seen.state, self.clock.now())?;
            if seen.state == before {
                return Ok(before);
            }
            let mut when = vec![Compare::Modified(key::state(job), seen.revision)];
            when.extend(term.map(Term::compare));
            let then = vec![put(key::state(job), &seen.state)?];
            if let Commit::Done(_) = self.store.commit(Transaction { when, then }).await? {
                return Ok(seen.state);
            }
            refused = Some(seen.revision);
        }
    }

    async fn seen(&self, job: &JobId) -> Result<Seen, JobError> {
        let key = key::state(job);
        let entry = self.store.get(&key).await?.ok_or_else(|| JobError::NoSuchJob(job.to_string()))?;
        Ok(Seen { state: decode(&key, &entry.value)?, revision: entry.modified })
    }
}

fn held_by(claim: &Claim, state_revision: Revision) -> Vec<Compare> {
    vec![
        Compare::Modified(key::state(&claim.job), state_revision),
        Compare::Modified(key::owner(&claim.job), claim.fence.0),
    ]
}

fn step(state: &mut JobState, event: JobEvent, now: Timestamp) -> Result<(), JobError> {
    let next = state.phase.clone().on(event)?;
    state.enter(next, now);
    Ok(())
}

fn wrong_phase(action: &'static str, job: &JobId, state: &JobState, hint: &'static str) -> JobError {
    JobError::WrongPhase { action, job: job.clone(), phase: state.phase.name(), hint }
}
