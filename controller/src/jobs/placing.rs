//! Gives queued jobs to hosts: many in one transaction, and each alone where that does not go.
//!
//! ```text
//! plan ─▶ lots ─ one transaction each: the term stands, jobs and hosts are as they were seen ─▶ placed
//!                 ╰─ refused as a whole ─▶ each job alone, on what the store says now
//! ```

use std::sync::Arc;

use devfleet_shared::clock::Timestamp;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, HostId, JobId};
use devfleet_shared::job::{JobEvent, JobPhase};
use futures_util::future::join_all;
use tracing::{debug, warn};

use super::{JobError, Jobs, step};
use crate::leader::Term;
use crate::store::records::{AttemptRecord, HostRecord, JobState, Owner, RecordError, decode, key, put};
use crate::store::{Commit, Compare, Revision, StoreError, Transaction};
use crate::view::JobRecords;

/// The most placements in one transaction: each brings three conditions at most, the term one more, and etcd takes 127.
const TOGETHER: usize = 42;
/// The most transactions under way.
const UNDER_WAY: usize = 8;

/// A job that is to go to a host, both as they were seen.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The job.
    pub job: JobRecords,
    /// The host.
    pub host: Arc<HostRecord>,
    /// The revision of `host`.
    pub host_revision: Revision,
    /// The attempt that begins with it.
    pub attempt: AttemptId,
}

impl Jobs {
    /// Gives queued jobs to hosts. Returns in the same order under which revision, which is the attempt's fence. `None`: the
    /// job moved meanwhile, its host was closed or removed, the store failed, or the term is over: look again.
    pub async fn place(&self, term: &Term, placements: &[Placement]) -> Vec<Option<Revision>> {
        let mut placed = Vec::with_capacity(placements.len());
        for several in placements.chunks(TOGETHER * UNDER_WAY) {
            let lots = several.chunks(TOGETHER).map(|lot| self.place_lot(term, lot));
            placed.extend(join_all(lots).await.into_iter().flatten());
        }
        placed
    }

    async fn place_lot(&self, term: &Term, lot: &[Placement]) -> Vec<Option<Revision>> {
        match self.place_together(term, lot).await {
            Ok(Some(revision)) => vec![Some(revision); lot.len()],
            Ok(None) | Err(JobError::Record(RecordError::Store(StoreError::OutOfBounds { .. }))) => {
                debug!(jobs = lot.len(), "jobs could not be placed together");
                let alone = lot.iter().map(|placement| async {
                    let (job, host) = (&placement.job.spec.id, &placement.host.id);
                    self.assign(term, job, host, placement.attempt.clone()).await.unwrap_or_else(|error| {
                        warn!(%job, %host, error = %Chain(&error), "the job could not be assigned");
                        None
                    })
                });
                join_all(alone).await
            }
            Err(error) => {
                warn!(jobs = lot.len(), error = %Chain(&error), "jobs could not be assigned");
                vec![None; lot.len()]
            }
        }
    }

    /// Places all of them on what was seen. `None`: one of them at least is not so any more.
    async fn place_together(&self, term: &Term, lot: &[Placement]) -> Result<Option<Revision>, JobError> {
        let now = self.clock.now();
        let mut transaction = Transaction { when: vec![term.compare()], then: Vec::with_capacity(lot.len() * 2) };
        for Placement { job, host, host_revision, attempt } in lot {
            let (id, mut state) = (&job.spec.id, (*job.state).clone());
            if host.desired.closed().is_some() || !begin(&mut state, id, &host.id, attempt, now)? {
                return Ok(None);
            }
            let owner = job.owner.as_ref().map_or(0, |(_, fence)| fence.0);
            let takes_jobs = Compare::Modified(key::host(&host.id), *host_revision);
            // A host may get several.
            if !transaction.when.contains(&takes_jobs) {
                transaction.when.push(takes_jobs);
            }
            transaction.when.push(Compare::Modified(key::state(id), job.state_revision));
            transaction.when.push(Compare::Modified(key::owner(id), owner));
            transaction.then.push(put(key::owner(id), &Owner { host: host.id.clone(), attempt: attempt.clone() })?);
            transaction.then.push(put(key::state(id), &state)?);
        }
        match self.store.commit(transaction).await? {
            Commit::Done(revision) => Ok(Some(revision)),
            Commit::Conflict => Ok(None),
        }
    }

    /// Gives one queued job to a host, as a new attempt, on what the store says now. `None`: the job moved meanwhile, the
    /// host was closed or removed, or the term is over: look again.
    pub async fn assign(
        &self,
        term: &Term,
        job: &JobId,
        host: &HostId,
        attempt: AttemptId,
    ) -> Result<Option<Revision>, JobError> {
        let mut seen = self.seen(job).await?;
        if !begin(&mut seen.state, job, host, &attempt, self.clock.now())? {
            return Ok(None);
        }
        let owner = self.store.get(&key::owner(job)).await?.map_or(0, |entry| entry.modified);
        let Some(takes_jobs) = self.takes_jobs(host).await? else { return Ok(None) };
        let transaction = Transaction {
            when: vec![
                Compare::Modified(key::state(job), seen.revision),
                Compare::Modified(key::owner(job), owner),
                takes_jobs,
                term.compare(),
            ],
            then: vec![
                put(key::owner(job), &Owner { host: host.clone(), attempt })?,
                put(key::state(job), &seen.state)?,
            ],
        };
        match self.store.commit(transaction).await? {
            Commit::Done(revision) => Ok(Some(revision)),
            Commit::Conflict => Ok(None),
        }
    }

    /// Returns the condition that a host is as it is now: part of the fleet, and open for new jobs. `None`: it is not.
    async fn takes_jobs(&self, host: &HostId) -> Result<Option<Compare>, JobError> {
        let key = key::host(host);
        let Some(entry) = self.store.get(&key).await? else { return Ok(None) };
        let record: HostRecord = decode(&key, &entry.value)?;
        Ok(record.desired.closed().is_none().then_some(Compare::Modified(key, entry.modified)))
    }
}

/// Begins an attempt in a job's state; false: the job does not wait for one.
fn begin(
    state: &mut JobState,
    job: &JobId,
    host: &HostId,
    attempt: &AttemptId,
    now: Timestamp,
) -> Result<bool, JobError> {
    if state.phase != JobPhase::Queued {
        return Ok(false);
    }
    let branch = format!("devfleet/{}-{attempt}", job.short());
    state.attempts.push(AttemptRecord::assigned(attempt.clone(), host.clone(), branch, now));
    step(state, JobEvent::Assigned, now)?;
    Ok(true)
}
