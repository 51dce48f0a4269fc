//! The store of a single machine: one file, the verbs of etcd.
//!
//!   readers ─▶ state in memory ◀─ applies ─ writer ◀─ asks (commit, leases, compact)
//!   watches ─▶ recent history ─▶ file ◀─ writes ──┘    `batch` decides, `file` makes durable
//!
//! Reads go on while the disk is full. A lease counts on the boot clock; after a restart it gets its full time again.

pub(super) mod batch;
mod file;
pub(super) mod state;
mod watching;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_shared::clock::Clock;
use futures_util::stream::BoxStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::{Commit, Entry, LeaseId, Revision, Snapshot, Store, StoreError, Transaction, WatchEvent};
use file::{Look, StoreFile};
use state::State;
use writer::{Ask, Shared};

const WAITING_ASKS: usize = 1_024;

/// The embedded store.
pub struct Embedded {
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    heads: watch::Receiver<Revision>,
    _writer: JoinSet<()>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the store in this file, or makes it if nothing stands there. Reads and checks the whole file.
    ///
    /// Must be called within a tokio runtime. The file is let go when the store is dropped; its watches end then.
    pub fn open(path: &Path, clock: Clock) -> Result<Arc<Embedded>, StoreError> {
        let (file, contents) = StoreFile::open(path, Look::Whole)?;
        let state = State::new(contents, clock.boot());
        let (asks, taken) = mpsc::channel(WAITING_ASKS);
        let (head_sender, heads) = watch::channel(state.head);
        let shared = Arc::new(Shared::new(path.to_owned(), clock, file, state));
        let mut writer = JoinSet::new();
        writer.spawn(writer::run(Arc::clone(&shared), taken, head_sender));
        Ok(Arc::new(Embedded { shared, asks, heads, _writer: writer }))
    }

    async fn ask<T>(&self, ask: impl FnOnce(writer::Answer<T>) -> Ask) -> Result<T, StoreError> {
        let (sender, answer) = oneshot::channel();
        let closed = || StoreError::Unavailable("the store's writer has stopped".into());
        self.asks.send(ask(sender)).await.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.shared.state().entries.get(key).cloned())
    }

    async fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let state = self.shared.state();
        Ok(Snapshot { entries: state.under(prefix).cloned().collect(), revision: state.head })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        self.ask(|answer| Ask::Commit(transaction, answer)).await
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        let from = from.max(1);
        watching::check_kept(from, self.shared.state().oldest)?;
        Ok(watching::watch(Arc::clone(&self.shared), self.heads.clone(), prefix, from))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(|answer| Ask::Grant(ttl, answer)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let now = self.shared.clock.boot();
        if self.shared.state_mut().keep_alive(lease, now) { Ok(()) } else { Err(StoreError::LeaseEnded(lease)) }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|answer| Ask::Revoke(lease, answer)).await
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.ask(|answer| Ask::Compact(before, answer)).await
    }
}
