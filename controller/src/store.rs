//! Where decisions are kept: the verbs that etcd offers, over any implementation.
//!
//! Keys are texts with `/`, values are bytes. Every committed transaction has a revision, one more than the one before.
//! A key remembers the revision of its creation and of its last change, and transactions compare them: that is how all
//! races are decided. Loops take a [`Store::range`] at some revision and [`Store::watch`] from the next one.

mod bounds;
pub mod embedded;
pub mod etcd;
pub mod migrate;
pub mod opening;
pub mod records;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

/// A revision of the store. 0 is before the first change.
pub type Revision = u64;

/// A key and what the store knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that created the key (it begins anew after a deletion).
    pub created: Revision,
    /// The revision that last changed it.
    pub modified: Revision,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
}

/// A lease: when it ends, its keys go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// What a range or a transaction saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The entries, ordered by key.
    pub entries: Vec<Entry>,
    /// The store's revision at that moment.
    pub revision: Revision,
}

/// One condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key was last changed by this revision; 0: the key does not exist.
    Modified(String, Revision),
    /// The key exists.
    Exists(String),
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Writes a key, on a lease if one is named.
    Put {
        /// The key.
        key: String,
        /// The value; 1 MiB at most.
        value: Vec<u8>,
        /// The lease the key hangs on.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; one that does not exist is already so.
    Delete(String),
    /// Deletes every key that begins so.
    DeletePrefix(String),
}

/// All changes happen if all conditions hold; nothing happens otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// The conditions.
    pub when: Vec<Compare>,
    /// The changes.
    pub then: Vec<Change>,
}

/// How a transaction went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// The changes are durable, under this revision.
    Done(Revision),
    /// A condition did not hold: look again.
    Conflict,
}

/// What a watch saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A key was written.
    Put(Entry),
    /// A key was deleted, by hand or with its lease.
    Deleted {
        /// The key.
        key: String,
        /// The revision that deleted it.
        revision: Revision,
    },
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file open.
    #[error("open {path}: another process uses this store; stop it first, or choose another data directory")]
    InUse {
        /// The file.
        path: String,
    },
    /// The file cannot be read as a store.
    #[error("open {path}: the store is damaged ({detail}); restore it from a copy, or move it away to begin anew")]
    Damaged {
        /// The file.
        path: String,
        /// What was found.
        detail: String,
    },
    /// The revision asked for is no longer kept: list again.
    #[error("watch from revision {asked}: it is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// What is kept.
        oldest: Revision,
    },
    /// The lease has ended, or never was.
    #[error("use lease {}: it has ended", .0.0)]
    LeaseEnded(LeaseId),
    /// A key or value is out of bounds.
    #[error("accept {what}: {rule}")]
    OutOfBounds {
        /// What was refused.
        what: &'static str,
        /// The rule.
        rule: &'static str,
    },
    /// The disk is full.
    #[error("write to the store: no space left on its disk; free some, nothing acknowledged is lost")]
    DiskFull,
    /// etcd's space quota is used up.
    #[error(
        "write to etcd: its space quota is used up; compact and defragment it, or raise --quota-backend-bytes, then clear the alarm with `etcdctl alarm disarm`"
    )]
    QuotaReached,
    /// etcd does not accept who we are.
    #[error(
        "use etcd: it refuses this controller ({0}); check user, password, certificate, and the role's right to the prefix"
    )]
    NotAllowed(String),
    /// The store cannot answer now. What was asked may or may not have happened: read before trying again.
    #[error("reach the store")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, StoreError::Unavailable(_) | StoreError::DiskFull | StoreError::QuotaReached)
    }
}

/// The store, as every part of the controller sees it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// Reads every key that begins so, ordered, all at one revision.
    async fn range(&self, prefix: &str) -> Result<Snapshot, StoreError>;
    /// Makes changes if conditions hold. Durable when it answers.
    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError>;
    /// Streams every change of keys that begin so, from this revision on, in order, none left out.
    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError>;
    /// Makes a lease that ends after this time unless it is kept alive.
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;
    /// Makes the lease last its time once more.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;
    /// Ends the lease and deletes its keys; one that has ended is already so.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError>;
    /// Forgets history before this revision (current values stay).
    async fn compact(&self, before: Revision) -> Result<(), StoreError>;
}

/// A store that anyone may hold.
pub type SharedStore = Arc<dyn Store>;
