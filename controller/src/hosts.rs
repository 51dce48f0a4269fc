//! Everything that changes a host's record: read, change, compare-and-swap, look again.
//!
//! people ─▶ api ─▶ [`Hosts`] ─▶ `hosts/{id}`, `removed/{id}` ─▶ view ─▶ scheduler, sessions, `drain`

pub mod drain;
pub mod load;

use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::HostId;
use tracing::info;

use crate::store::records::hosts::{HostRecord, Removed, removed_key};
use crate::store::records::{RecordError, decode, key, live, put};
use crate::store::{Change, Commit, Compare, Revision, SharedStore, StoreError, Transaction};

/// Why a host cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such host.
    #[error("find host {0}: there is none; `devfleet hosts list` shows what there is")]
    NoSuchHost(HostId),
    /// Jobs run there.
    #[error(
        "remove host {name}: {jobs} of its jobs are not over; empty it first with `devfleet hosts drain {name}` and wait for `drained` in `devfleet hosts list` (`devfleet cancel JOB` ends a held environment), or have them started anew elsewhere with --force"
    )]
    Busy {
        /// What people call it.
        name: String,
        /// How many.
        jobs: usize,
    },
    /// The store failed, or holds something that does not belong there.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl From<StoreError> for HostError {
    fn from(error: StoreError) -> Self {
        HostError::Record(RecordError::Store(error))
    }
}

/// Changes hosts. Cheap to clone.
#[derive(Clone)]
pub struct Hosts {
    /// Where they are written.
    pub store: SharedStore,
    /// Tells the time.
    pub clock: Clock,
}

impl Hosts {
    /// Writes a host that joined. One that has its record already is left as it is.
    pub async fn add(&self, record: &HostRecord) -> Result<(), HostError> {
        let key = key::host(&record.id);
        let then = vec![put(key.clone(), record)?];
        self.store.commit(Transaction { when: vec![Compare::Modified(key, 0)], then }).await?;
        Ok(())
    }

    /// Changes a host's record. Returns the revision that shows it.
    pub async fn change(
        &self,
        host: &HostId,
        change: impl Fn(&mut HostRecord, Timestamp),
    ) -> Result<Revision, HostError> {
        let key = key::host(host);
        loop {
            let (before, revision) = self.read(host).await?;
            let mut record = before.clone();
            change(&mut record, self.clock.now());
            if record == before {
                return Ok(revision);
            }
            let then = vec![put(key.clone(), &record)?];
            let when = vec![Compare::Modified(key.clone(), revision)];
            if let Commit::Done(revision) = self.store.commit(Transaction { when, then }).await? {
                return Ok(revision);
            }
        }
    }

    /// Takes a host out of the fleet: its record and its session go, and its id is refused from then on. `jobs` are there
    /// as far as is known.
    pub async fn remove(&self, host: &HostId, removed: Removal<'_>) -> Result<Revision, HostError> {
        let key = key::host(host);
        loop {
            let (record, revision) = self.read(host).await?;
            if removed.jobs > 0 && !removed.force {
                return Err(HostError::Busy { name: record.name, jobs: removed.jobs });
            }
            let note = Removed {
                name: record.name,
                by: removed.by.to_owned(),
                reason: removed.reason.to_owned(),
                at: self.clock.now(),
            };
            let then =
                vec![Change::Delete(key.clone()), Change::Delete(live::key(host)), put(removed_key(host), &note)?];
            let when = vec![Compare::Modified(key.clone(), revision)];
            if let Commit::Done(revision) = self.store.commit(Transaction { when, then }).await? {
                info!(%host, name = note.name, by = note.by, jobs = removed.jobs, "host removed");
                return Ok(revision);
            }
        }
    }

    /// Says whether a host is part of the fleet, by the store itself; if not, in which words it is refused.
    pub async fn member(&self, host: &HostId) -> Result<Result<(), String>, RecordError> {
        if self.store.get(&key::host(host)).await?.is_some() {
            return Ok(Ok(()));
        }
        let key = removed_key(host);
        let removed = self.store.get(&key).await?.map(|entry| decode::<Removed>(&key, &entry.value)).transpose()?;
        Ok(Err(refused(removed.as_ref())))
    }

    async fn read(&self, host: &HostId) -> Result<(HostRecord, Revision), HostError> {
        let key = key::host(host);
        let entry = self.store.get(&key).await?.ok_or_else(|| HostError::NoSuchHost(host.clone()))?;
        Ok((decode(&key, &entry.value)?, entry.modified))
    }
}

/// How a host is removed.
#[derive(Debug, Clone, Copy)]
pub struct Removal<'a> {
    /// Who wants it.
    pub by: &'a str,
    /// Why; may be empty.
    pub reason: &'a str,
    /// How many jobs are there.
    pub jobs: usize,
    /// Although jobs are there.
    pub force: bool,
}

/// Says in which words a host is refused that is not part of the fleet.
pub fn refused(removed: Option<&Removed>) -> String {
    let advice = "join again with a new token (`devfleet join-token create`)";
    match removed {
        None => format!("this host is not part of the fleet any more; {advice}"),
        Some(Removed { by, reason, at, .. }) => {
            let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
            format!("this host was removed from the fleet by {by} at {at}{why}; {advice}")
        }
    }
}
