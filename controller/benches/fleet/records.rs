//! When each job was queued and assigned, as the store says: a watch of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devfleet_controller::store::records::{JobState, decode};
use devfleet_controller::store::{Revision, SharedStore, WatchEvent};
use devfleet_shared::job::JobPhase;
use futures_util::StreamExt as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const JOBS: &str = "/devfleet/v1/jobs/";

/// What became of one job.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    pub(crate) queued: Option<Instant>,
    /// When it was first assigned, and by which revision.
    pub(crate) assigned: Option<(Instant, Revision)>,
}

/// The watch.
pub(crate) struct Records {
    jobs: Arc<Mutex<BTreeMap<String, Times>>>,
    task: JoinHandle<()>,
}

impl Records {
    pub(crate) async fn follow(store: SharedStore) -> anyhow::Result<Records> {
        let from = store.range("/devfleet/none/").await?.revision + 1;
        let mut events = store.watch(JOBS, from).await?;
        let jobs: Arc<Mutex<BTreeMap<String, Times>>> = Arc::default();
        let seen = jobs.clone();
        let task = tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                let WatchEvent::Put(entry) = event else { continue };
                let Some(id) = entry.key.strip_prefix(JOBS).and_then(|key| key.strip_suffix("/state")) else {
                    continue;
                };
                let Ok(state) = decode::<JobState>(&entry.key, &entry.value) else { continue };
                let mut jobs = lock(&seen);
                let times = jobs.entry(id.to_owned()).or_default();
                match state.phase {
                    JobPhase::Queued => drop(times.queued.get_or_insert_with(Instant::now)),
                    JobPhase::Running => {
                        times.assigned.get_or_insert_with(|| (Instant::now(), entry.modified));
                    }
                    _ => {}
                }
            }
        });
        Ok(Records { jobs, task })
    }

    /// Counts the jobs that are queued or further.
    pub(crate) fn queued(&self, jobs: &BTreeSet<String>) -> usize {
        let seen = lock(&self.jobs);
        jobs.iter().filter(|job| seen.get(*job).is_some_and(|times| times.queued.is_some())).count()
    }

    /// Returns when each of these jobs was assigned.
    pub(crate) fn assigned(&self, jobs: &BTreeSet<String>) -> Vec<(Instant, Revision)> {
        let seen = lock(&self.jobs);
        jobs.iter().filter_map(|job| seen.get(job)?.assigned).collect()
    }

    /// Returns how long a job waited from being queued to being assigned.
    pub(crate) fn waited(&self, job: &str) -> Option<Duration> {
        let times = lock(&self.jobs).get(job).copied()?;
        Some(times.assigned?.0.saturating_duration_since(times.queued?))
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
