//! A store in memory, for simulations: the embedded store's judge of transactions, without a disk and without a task.
//!
//! All of history is kept, so that a test can look at every revision. Leases end when [`MemoryStore::expire`] is
//! called, which whoever moves the clock does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_shared::clock::Clock;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;

use super::embedded::batch::Batch;
use super::embedded::state::State;
use super::{Commit, Entry, LeaseId, Revision, Snapshot, Store, StoreError, Transaction, WatchEvent};

/// The store.
pub struct MemoryStore {
    truth: Mutex<Truth>,
    heads: watch::Sender<Revision>,
    clock: Clock,
}

struct Truth {
    state: State,
    history: Vec<(Revision, WatchEvent)>,
}

/// A watch: what it has not given yet, and where it goes on.
struct Cursor {
    store: Arc<MemoryStore>,
    heads: watch::Receiver<Revision>,
    prefix: String,
    next: Revision,
    ready: VecDeque<WatchEvent>,
}

impl MemoryStore {
    /// Makes an empty one.
    pub fn new(clock: Clock) -> Arc<MemoryStore> {
        let truth = Mutex::new(Truth { state: State::empty(), history: Vec::new() });
        Arc::new(MemoryStore { truth, heads: watch::Sender::new(0), clock })
    }

    /// Ends the leases whose time is over.
    pub fn expire(&self) {
        let overdue = self.lock().state.overdue(self.clock.boot());
        for lease in overdue {
            self.end_lease(lease);
        }
    }

    /// Lists the leases that stand.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.lock().state.leases.keys().copied().collect()
    }

    /// Ends a lease whatever its time, as a server does that lost count of it.
    pub fn end_lease(&self, lease: LeaseId) {
        self.change(|batch| {
            batch.end_lease(lease);
            Ok(())
        })
        .ok();
    }

    /// Returns every change so far, in order.
    pub fn history(&self) -> Vec<(Revision, WatchEvent)> {
        self.lock().history.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, decide: impl FnOnce(&mut Batch<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let now = self.clock.boot();
        let mut truth = self.lock();
        let mut batch = Batch::new(&truth.state, now);
        let decided = decide(&mut batch)?;
        if let Some(changes) = batch.finish() {
            for (revision, events) in &changes.history {
                truth.history.extend(events.iter().map(|event| (*revision, event.clone())));
            }
            truth.state.apply(changes, now);
        }
        let head = truth.state.head;
        drop(truth);
        self.heads.send_if_modified(|seen| std::mem::replace(seen, head) != head);
        Ok(decided)
    }
}

impl Cursor {
    async fn step(mut self) -> Option<(Result<WatchEvent, StoreError>, Cursor)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((Ok(event), self));
            }
            let next = self.next;
            // The sender lives as long as the store, which this holds.
            self.heads.wait_for(|head| *head >= next).await.ok()?;
            let truth = self.store.lock();
            let from = truth.history.partition_point(|(revision, _)| *revision < next);
            let key = |event: &WatchEvent| match event {
                WatchEvent::Put(entry) => entry.key.clone(),
                WatchEvent::Deleted { key, .. } => key.clone(),
            };
            let fresh = truth.history[from..].iter().map(|(_, event)| event);
            self.ready = fresh.filter(|event| key(event).starts_with(&self.prefix)).cloned().collect();
            self.next = next.max(truth.state.head + 1);
            drop(truth);
        }
    }
}

/// A watch needs the store itself, not a borrow of it.
#[async_trait]
impl Store for Arc<MemoryStore> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.lock().state.entries.get(key).cloned())
    }

    async fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let truth = self.lock();
        Ok(Snapshot { entries: truth.state.under(prefix).cloned().collect(), revision: truth.state.head })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        self.change(|batch| batch.commit(&transaction))
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        let (from, oldest) = (from.max(1), self.lock().state.oldest);
        if from < oldest {
            return Err(StoreError::Compacted { asked: from, oldest });
        }
        let cursor = Cursor {
            store: Arc::clone(self),
            heads: self.heads.subscribe(),
            prefix: prefix.to_owned(),
            next: from,
            ready: VecDeque::new(),
        };
        Ok(stream::unfold(cursor, Cursor::step).boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.change(|batch| batch.grant(ttl))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let now = self.clock.boot();
        if self.lock().state.keep_alive(lease, now) { Ok(()) } else { Err(StoreError::LeaseEnded(lease)) }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.end_lease(lease);
        Ok(())
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.change(|batch| {
            batch.compact(before);
            Ok(())
        })
    }
}
