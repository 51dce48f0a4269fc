//! Stores that misbehave as real ones do: one that does not answer, one whose answers are no longer true.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_controller::store::{
    Commit, Entry, LeaseId, Revision, SharedStore, Snapshot, Store, StoreError, Transaction, WatchEvent,
};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;

/// How a store behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mood {
    /// As the one behind it.
    Honest,
    /// No call is ever answered.
    Silent,
    /// The next watch breaks off after its first event; then as the one behind it.
    BreaksOnce,
    /// Keep-alives succeed and these entries are read, whatever has become of the lease and the keys: a server that does
    /// not know yet that it was voted out. Transactions are honest: they need a majority.
    Lying(Vec<Entry>),
}

/// A store that can be told how to behave.
pub(crate) struct Moody {
    inner: SharedStore,
    mood: Mutex<Mood>,
    kept: AtomicUsize,
    commits: AtomicUsize,
}

impl Moody {
    pub(crate) fn over(inner: SharedStore) -> Arc<Moody> {
        Arc::new(Moody {
            inner,
            mood: Mutex::new(Mood::Honest),
            kept: AtomicUsize::new(0),
            commits: AtomicUsize::new(0),
        })
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().expect("no test panicked here") = mood;
    }

    /// Says how many keep-alives were asked for.
    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::SeqCst)
    }

    /// Says how many transactions were tried.
    pub(crate) fn commits(&self) -> usize {
        self.commits.load(Ordering::SeqCst)
    }

    pub(crate) fn mood(&self) -> Mood {
        self.mood.lock().expect("no test panicked here").clone()
    }

    /// Lets a call through, or never ends.
    async fn pass(&self) -> Mood {
        let mood = self.mood();
        if mood == Mood::Silent {
            std::future::pending::<()>().await;
        }
        mood
    }
}

#[async_trait]
impl Store for Moody {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        if let Mood::Lying(entries) = self.pass().await
            && let Some(entry) = entries.iter().find(|entry| entry.key == key)
        {
            return Ok(Some(entry.clone()));
        }
        self.inner.get(key).await
    }

    async fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.pass().await;
        self.inner.range(prefix).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.pass().await;
        self.inner.commit(transaction).await
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        let mood = self.pass().await;
        let events = self.inner.watch(prefix, from).await?;
        if mood == Mood::BreaksOnce {
            self.set(Mood::Honest);
            return Ok(events.take(1).boxed());
        }
        Ok(events)
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.pass().await;
        self.inner.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.kept.fetch_add(1, Ordering::SeqCst);
        match self.pass().await {
            Mood::Lying(_) => Ok(()),
            _ => self.inner.keep_alive(lease).await,
        }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.pass().await;
        self.inner.revoke_lease(lease).await
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.pass().await;
        self.inner.compact(before).await
    }
}
