//! The store's jobs, projects and hosts in memory, kept current by one watch.
//!
//! Everything that reads, reads here: the reconcile loop, sessions, the API. Everything that writes, writes to the
//! store and, where it must see its own write, waits with [`View::until`].
//!
//! store ── range, then watch ──▶ Records ──▶ `changed()` wakes readers

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, ControllerId, Fence, HostId, JobId, ProjectName};
use devfleet_shared::job::JobPhase;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::project::ProjectRecord;
use crate::quarantine::{self, Outcome};
use crate::store::records::controllers::ControllerRecord;
use crate::store::records::fleet::Generation;
use crate::store::records::hosts::Removed;
use crate::store::records::leadership::LeaderRecord;
use crate::store::records::live::{LIVE, Live};
use crate::store::records::settings::Settings;
use crate::store::records::{HostRecord, JobSpec, JobState, Owner, PREFIX, RecordError, decode};
use crate::store::{Entry, Revision, SharedStore, StoreError, WatchEvent};

/// How many attempts of each host are remembered by what became of them.
const OUTCOMES: usize = 100;

/// A job, as far as it is known.
#[derive(Debug, Clone)]
pub struct JobRecords {
    /// What was asked for.
    pub spec: Arc<JobSpec>,
    /// Where it is.
    pub state: Arc<JobState>,
    /// The revision of `state`.
    pub state_revision: Revision,
    /// Who owns it, and under which fence.
    pub owner: Option<(Owner, Fence)>,
}

/// All records.
#[derive(Debug, Default)]
pub struct Records {
    specs: BTreeMap<JobId, Arc<JobSpec>>,
    states: BTreeMap<JobId, (Arc<JobState>, Revision)>,
    owners: BTreeMap<JobId, (Owner, Fence)>,
    /// The jobs that have not ended or still own something on a host: what loops look at.
    active: BTreeSet<JobId>,
    /// Those of them that wait for a host.
    queued: BTreeSet<JobId>,
    /// Those of them that are in their gates or being published.
    in_hand: BTreeSet<JobId>,
    /// The jobs that each host owns: what its session looks at.
    owned: BTreeMap<HostId, BTreeSet<JobId>>,
    /// The projects by name.
    pub projects: BTreeMap<ProjectName, Arc<ProjectRecord>>,
    /// The hosts that joined.
    pub hosts: BTreeMap<HostId, Arc<HostRecord>>,
    host_revisions: BTreeMap<HostId, Revision>,
    /// The hosts that were removed.
    pub removed: BTreeMap<HostId, Arc<Removed>>,
    /// The controllers that run.
    pub controllers: BTreeMap<ControllerId, ControllerRecord>,
    /// Which store this is.
    pub generation: Option<Generation>,
    /// What became of each host's newest attempts, in the order of their ends.
    outcomes: BTreeMap<HostId, BTreeMap<(Timestamp, AttemptId), Outcome>>,
    /// The sessions that hosts have, on any controller.
    pub live: BTreeMap<HostId, Live>,
    /// Who leads.
    pub leader: Option<LeaderRecord>,
    /// What operators set, and its revision.
    pub settings: Option<(Arc<Settings>, Revision)>,
}

impl Records {
    /// Returns one job.
    pub fn job(&self, id: &JobId) -> Option<JobRecords> {
        let (state, state_revision) = self.states.get(id)?;
        Some(JobRecords {
            spec: self.specs.get(id)?.clone(),
            state: state.clone(),
            state_revision: *state_revision,
            owner: self.owners.get(id).cloned(),
        })
    }

    /// Returns all jobs, ordered by id.
    pub fn jobs(&self) -> impl Iterator<Item = JobRecords> + '_ {
        self.states.keys().filter_map(|id| self.job(id))
    }

    /// Returns the jobs that have not ended or still own something on a host, ordered by id. Unlike [`Records::jobs`]
    /// it does not grow with all the jobs that ever were.
    pub fn active_jobs(&self) -> impl Iterator<Item = JobRecords> + '_ {
        self.active.iter().filter_map(|id| self.job(id))
    }

    /// Says whether any job waits for a host.
    pub fn any_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Returns the jobs that are in their gates or being published, ordered by id.
    pub fn in_hand(&self) -> impl Iterator<Item = JobRecords> + '_ {
        self.in_hand.iter().filter_map(|id| self.job(id))
    }

    /// Returns the jobs that a host owns, ordered by id.
    pub fn owned_by(&self, host: &HostId) -> impl Iterator<Item = JobRecords> + '_ {
        self.owned.get(host).into_iter().flatten().filter_map(|id| self.job(id))
    }

    /// Returns a host, and the revision of its record.
    pub fn host(&self, id: &HostId) -> Option<(Arc<HostRecord>, Revision)> {
        Some((self.hosts.get(id)?.clone(), *self.host_revisions.get(id)?))
    }

    /// Notes who owns a job now; `None`: nobody.
    fn own(&mut self, id: &JobId, owner: Option<(Owner, Fence)>) {
        let before = self.owners.remove(id).map(|(owner, _)| owner.host);
        if let Some(host) = &before
            && let Some(jobs) = self.owned.get_mut(host)
        {
            jobs.remove(id);
            if jobs.is_empty() {
                self.owned.remove(host);
            }
        }
        if let Some(owner) = owner {
            self.owned.entry(owner.0.host.clone()).or_default().insert(id.clone());
            self.owners.insert(id.clone(), owner);
        }
        self.note_active(id);
    }

    /// Returns the host whose session is concerned by a change at this key, as far as it is known now.
    fn concerned(&self, key: &str) -> Option<HostId> {
        match key.strip_prefix(PREFIX)?.split('/').collect::<Vec<_>>()[..] {
            ["jobs", id, "spec" | "state"] | ["owners", id] => {
                self.owners.get(&id.parse().ok()?).map(|(owner, _)| owner.host.clone())
            }
            ["hosts" | "removed", id] => id.parse().ok(),
            _ => None,
        }
    }

    /// Returns what became of a host's newest attempts, oldest end first; what says nothing of the host is left out.
    pub fn outcomes(&self, host: &HostId) -> impl Iterator<Item = &Outcome> {
        self.outcomes.get(host).into_iter().flat_map(BTreeMap::values)
    }

    fn note_outcomes(&mut self, id: &JobId) {
        let (Some((state, _)), Some(spec)) = (self.states.get(id), self.specs.get(id)) else { return };
        for attempt in &state.attempts {
            let (Some(finished), Some(result)) = (attempt.finished, attempt.result()) else { continue };
            let Some(verdict) = quarantine::verdict(result) else { continue };
            let (job, project) = (id.clone(), spec.project.clone());
            let outcome = Outcome { assigned: attempt.assigned, finished, job, project, verdict };
            let known = self.outcomes.entry(attempt.host.clone()).or_default();
            known.insert((finished, attempt.id.clone()), outcome);
            while known.len() > OUTCOMES {
                known.pop_first();
            }
        }
    }

    fn note_active(&mut self, id: &JobId) {
        let phase = self.states.get(id).map(|(state, _)| &state.phase);
        let open = phase.is_some_and(|phase| !phase.is_terminal());
        let queued = matches!(phase, Some(JobPhase::Queued));
        let in_hand = matches!(phase, Some(JobPhase::Submitted | JobPhase::Planning | JobPhase::Publishing));
        note(&mut self.active, id, open || self.owners.contains_key(id));
        note(&mut self.queued, id, queued);
        note(&mut self.in_hand, id, in_hand);
    }

    /// Returns the jobs whose ids begin so.
    pub fn jobs_beginning<'a>(&'a self, beginning: &'a str) -> impl Iterator<Item = JobRecords> + 'a {
        self.states.keys().filter(move |id| id.as_str().starts_with(beginning)).filter_map(|id| self.job(id))
    }

    fn put(&mut self, entry: &Entry) -> Result<(), RecordError> {
        let Some(path) = entry.key.strip_prefix(PREFIX) else { return Ok(()) };
        match path.split('/').collect::<Vec<_>>()[..] {
            ["jobs", id, "spec"] => {
                if let Ok(id) = id.parse() {
                    self.specs.insert(id, Arc::new(decode(&entry.key, &entry.value)?));
                }
            }
            ["jobs", id, "state"] => {
                if let Ok(id) = id.parse::<JobId>() {
                    self.states.insert(id.clone(), (Arc::new(decode(&entry.key, &entry.value)?), entry.modified));
                    self.note_active(&id);
                    self.note_outcomes(&id);
                }
            }
            ["owners", id] => {
                if let Ok(id) = id.parse::<JobId>() {
                    self.own(&id, Some((decode(&entry.key, &entry.value)?, Fence(entry.modified))));
                }
            }
            ["leader"] => self.leader = Some(decode(&entry.key, &entry.value)?),
            ["projects", name] => {
                if let Ok(name) = name.parse() {
                    self.projects.insert(name, Arc::new(decode(&entry.key, &entry.value)?));
                }
            }
            ["live", id] => {
                if let Ok(id) = id.parse() {
                    self.live.insert(id, decode(&entry.key, &entry.value)?);
                }
            }
            ["hosts", id] => {
                if let Ok(id) = id.parse::<HostId>() {
                    self.hosts.insert(id.clone(), Arc::new(decode(&entry.key, &entry.value)?));
                    self.host_revisions.insert(id, entry.modified);
                }
            }
            ["removed", id] => {
                if let Ok(id) = id.parse() {
                    self.removed.insert(id, Arc::new(decode(&entry.key, &entry.value)?));
                }
            }
            ["controllers", id] => {
                if let Ok(id) = id.parse() {
                    self.controllers.insert(id, decode(&entry.key, &entry.value)?);
                }
            }
            ["generation"] => self.generation = Some(decode(&entry.key, &entry.value)?),
            ["settings"] => self.settings = Some((Arc::new(decode(&entry.key, &entry.value)?), entry.modified)),
            _ => {}
        }
        Ok(())
    }

    fn delete(&mut self, key: &str) {
        let Some(path) = key.strip_prefix(PREFIX) else { return };
        match path.split('/').collect::<Vec<_>>()[..] {
            ["jobs", id, "spec"] => drop(id.parse().map(|id: JobId| self.specs.remove(&id))),
            ["leader"] => self.leader = None,
            ["jobs", id, "state"] => {
                if let Ok(id) = id.parse::<JobId>() {
                    self.states.remove(&id);
                    self.note_active(&id);
                }
            }
            ["owners", id] => {
                if let Ok(id) = id.parse::<JobId>() {
                    self.own(&id, None);
                }
            }
            ["settings"] => self.settings = None,
            ["generation"] => self.generation = None,
            ["removed", id] => drop(id.parse().map(|id: HostId| self.removed.remove(&id))),
            ["controllers", id] => drop(id.parse().map(|id: ControllerId| self.controllers.remove(&id))),
            ["projects", name] => drop(name.parse().map(|name: ProjectName| self.projects.remove(&name))),
            ["live", id] => drop(id.parse().map(|id: HostId| self.live.remove(&id))),
            ["hosts", id] => {
                if let Ok(id) = id.parse::<HostId>() {
                    self.hosts.remove(&id);
                    self.host_revisions.remove(&id);
                }
            }
            _ => {}
        }
    }
}

/// The view.
#[derive(Debug)]
pub struct View {
    records: RwLock<Records>,
    revision: watch::Sender<Revision>,
    /// Beside it: heartbeats move it on too, and must not wake everybody.
    seen: watch::Sender<Revision>,
    /// What wakes the sessions of one host.
    hosts: Mutex<BTreeMap<HostId, watch::Sender<Revision>>>,
}

impl View {
    /// Reads the store once; [`View::follow`] keeps the result current.
    pub async fn open(store: &SharedStore) -> Result<Arc<View>, RecordError> {
        let (records, revision) = read_all(store).await?;
        Ok(Arc::new(View {
            records: RwLock::new(records),
            revision: watch::Sender::new(revision),
            seen: watch::Sender::new(revision),
            hosts: Mutex::default(),
        }))
    }

    /// Returns the records. The guard is short-lived: never hold it across an `await`.
    pub fn read(&self) -> RwLockReadGuard<'_, Records> {
        self.records.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a receiver that changes with every revision seen.
    pub fn changed(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Returns a receiver that changes when something of this host did: its record, or a job that it owns or owned.
    pub fn changed_for(&self, host: &HostId) -> watch::Receiver<Revision> {
        let mut hosts = self.hosts();
        // Those of hosts that went away.
        hosts.retain(|_, wake| wake.receiver_count() > 0);
        hosts.entry(host.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<HostId, watch::Sender<Revision>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the records are so, and returns what `look` found. A writer waits for its own write with it.
    pub async fn until<T>(&self, mut look: impl FnMut(&Records) -> Option<T>) -> T {
        let mut changed = self.revision.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(found) = look(&self.read()) {
                return found;
            }
            // The sender lives as long as `self`, so this cannot fail.
            drop(changed.changed().await);
        }
    }

    /// Waits until everything up to this revision has been seen. The revision must be of a change under [`PREFIX`].
    pub async fn reach(&self, revision: Revision) {
        // The sender lives as long as `self`, so this cannot fail.
        drop(self.seen.subscribe().wait_for(|seen| *seen >= revision).await);
    }

    /// Follows the store until the shutdown. A broken watch is re-opened from the last revision, that one included: it may
    /// have been seen in part, and to see a change twice does no harm. A compacted one is replaced by reading everything anew.
    pub async fn follow(self: Arc<Self>, store: SharedStore, shutdown: CancellationToken) {
        let backoff = Backoff { first: Duration::from_millis(50), ceiling: Duration::from_secs(2) };
        let mut tries = 0;
        loop {
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = self.watch(&store, &mut tries) => outcome,
            };
            tries += 1;
            match outcome {
                Err(RecordError::Store(StoreError::Compacted { .. })) => match read_all(&store).await {
                    Ok((records, revision)) => self.replace(records, revision),
                    Err(error) => warn!(error = %Chain(&error), "reading the store anew failed"),
                },
                Err(error) => warn!(error = %Chain(&error), "the watch broke off"),
                Ok(()) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff.pause(tries, Backoff::jitter())) => {}
            }
        }
    }

    async fn watch(&self, store: &SharedStore, tries: &mut u32) -> Result<(), RecordError> {
        let from = (*self.revision.borrow()).max(1);
        let mut events = store.watch(PREFIX, from).await?;
        while let Some(event) = events.next().await {
            self.apply(&event?);
            *tries = 0;
        }
        Ok(())
    }

    fn apply(&self, event: &WatchEvent) {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        let (WatchEvent::Put(Entry { key, .. }) | WatchEvent::Deleted { key, .. }) = event;
        let before = records.concerned(key);
        let revision = match event {
            WatchEvent::Put(entry) => {
                if let Err(error) = records.put(entry) {
                    error!(key = entry.key, error = %Chain(&error), "a record is malformed, it is left out");
                }
                entry.modified
            }
            WatchEvent::Deleted { key, revision } => {
                records.delete(key);
                *revision
            }
        };
        let after = records.concerned(key);
        drop(records);
        self.seen.send_replace(revision);
        self.wake(before, after, revision);
        let heartbeat =
            matches!(event, WatchEvent::Put(entry) if entry.key.starts_with(LIVE) && entry.created != entry.modified);
        self.revision.send_if_modified(|newest| {
            *newest = revision;
            !heartbeat
        });
    }

    /// Wakes the sessions of the hosts that a change is about.
    fn wake(&self, before: Option<HostId>, after: Option<HostId>, revision: Revision) {
        let also = if after == before { None } else { after };
        if before.is_none() && also.is_none() {
            return;
        }
        let hosts = self.hosts();
        for wake in before.iter().chain(&also).filter_map(|host| hosts.get(host)) {
            wake.send_replace(revision);
        }
    }

    fn replace(&self, records: Records, revision: Revision) {
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = records;
        self.seen.send_replace(revision);
        for wake in self.hosts().values() {
            wake.send_replace(revision);
        }
        self.revision.send_replace(revision);
    }
}

fn note(jobs: &mut BTreeSet<JobId>, id: &JobId, is_one: bool) {
    if !is_one {
        jobs.remove(id);
    } else if !jobs.contains(id) {
        jobs.insert(id.clone());
    }
}

async fn read_all(store: &SharedStore) -> Result<(Records, Revision), RecordError> {
    let snapshot = store.range(PREFIX).await?;
    let mut records = Records::default();
    for entry in &snapshot.entries {
        records.put(entry)?;
    }
    Ok((records, snapshot.revision))
}
