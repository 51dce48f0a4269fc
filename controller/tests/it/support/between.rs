//! A store between another and its users: all calls pass, but for what a test does to them.

use std::ops::Deref;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_controller::store::{
    Commit, Entry, LeaseId, Revision, SharedStore, Snapshot, Store, StoreError, Transaction, WatchEvent,
};
use futures_util::stream::BoxStream;

/// What a test does to calls.
#[async_trait]
pub(crate) trait Meddling: Send + Sync + 'static {
    /// Reads a key.
    async fn get(&self, inner: &SharedStore, key: &str) -> Result<Option<Entry>, StoreError> {
        inner.get(key).await
    }

    /// Carries out a transaction.
    async fn commit(&self, inner: &SharedStore, transaction: Transaction) -> Result<Commit, StoreError> {
        inner.commit(transaction).await
    }
}

/// The store in between.
pub(crate) struct Between<T> {
    inner: SharedStore,
    meddling: T,
}

impl<T> Between<T> {
    pub(crate) fn new(inner: SharedStore, meddling: T) -> Self {
        Between { inner, meddling }
    }
}

impl<T> Deref for Between<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.meddling
    }
}

#[async_trait]
impl<T: Meddling> Store for Between<T> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.meddling.get(&self.inner, key).await
    }
    async fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.inner.range(prefix).await
    }
    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        self.meddling.commit(&self.inner, transaction).await
    }
    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        self.inner.watch(prefix, from).await
    }
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant_lease(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke_lease(lease).await
    }
    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.inner.compact(before).await
    }
}
