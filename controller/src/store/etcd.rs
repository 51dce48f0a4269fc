//! The store of a fleet: an etcd cluster.
//!
//!   verbs ─▶ members: one that answers, a deadline on every call ─▶ etcd
//!     └ commit ─▶ marks: what became of a transaction without an answer;  watch ─▶ re-created from the last revision
//!
//! etcd's own client re-creates neither watches nor leases, and repeats nothing; all that is here. Reads are
//! linearizable. A lease that is said to live may have ended (docs/decisions): nothing here is proof of anything but a
//! committed transaction.

mod errors;
mod marks;
mod members;
mod versions;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    CompactionOptions, Compare as EtcdCompare, CompareOp, DeleteOptions, GetOptions, KeyValue, PutOptions, TxnOp,
};
use futures_util::stream::BoxStream;

use super::bounds::check_bounds;
use super::{Change, Commit, Compare, Entry, LeaseId, Revision, Snapshot, Store, StoreError, Transaction, WatchEvent};
use errors::Failure;
use marks::Marks;
pub use members::EtcdSettings;
use members::Members;

/// Entries read at once: with values of the largest size they stay below [`MESSAGE_BYTES`].
const PAGE: i64 = 128;
/// The largest answer.
const MESSAGE_BYTES: usize = 192 << 20;
/// Where the marks of transactions lie, below the prefix. Nobody else sees them.
const MARKS: &str = "/devfleet/commits/";

/// A store on an etcd cluster.
pub struct Etcd {
    cluster: Arc<Cluster>,
    marks: Marks,
}

/// The members, and where our keys lie there.
struct Cluster {
    members: Members,
    prefix: String,
}

impl Etcd {
    /// Connects to a cluster, and warns of versions with known defects. `writer` names who writes, for the marks of its
    /// transactions: the same name at each start, so that marks are few.
    ///
    /// Fails if no member answers, or if etcd does not accept the user or the certificate.
    pub async fn connect(settings: EtcdSettings, writer: &str) -> Result<Arc<Etcd>, StoreError> {
        let prefix = settings.prefix.clone();
        let cluster = Cluster { members: Members::new(settings), prefix };
        cluster.members.check_versions().await?;
        let marks = Marks::new(format!("{}{MARKS}{writer}/", cluster.prefix));
        let store = Etcd { cluster: Arc::new(cluster), marks };
        store.get("/devfleet/none").await?;
        Ok(Arc::new(store))
    }
}

impl Cluster {
    fn full(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.prefix).into_bytes()
    }

    /// Returns the first key and the one behind the last of those that begin so, in etcd's way.
    fn span(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        let first = self.full(prefix);
        let mut end = first.clone();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return (first, end);
            }
        }
        // All keys: etcd writes both ends as a zero.
        (if first.is_empty() { vec![0] } else { first }, vec![0])
    }

    /// Returns an entry in our words; `None` for what is not ours.
    fn entry(&self, found: &KeyValue) -> Option<Entry> {
        let key = std::str::from_utf8(found.key()).ok()?.strip_prefix(&self.prefix)?;
        if key.starts_with(MARKS) {
            return None;
        }
        Some(Entry {
            key: key.to_owned(),
            value: found.value().to_vec(),
            created: found.create_revision().unsigned_abs(),
            modified: found.mod_revision().unsigned_abs(),
            lease: (found.lease() != 0).then(|| LeaseId(found.lease())),
        })
    }

    fn compare(&self, compare: &Compare) -> EtcdCompare {
        match compare {
            Compare::Modified(key, revision) => {
                EtcdCompare::mod_revision(self.full(key), CompareOp::Equal, signed(*revision))
            }
            Compare::Exists(key) => EtcdCompare::create_revision(self.full(key), CompareOp::Greater, 0),
        }
    }

    fn operation(&self, change: &Change) -> TxnOp {
        match change {
            Change::Put { key, value, lease } => {
                let on = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(self.full(key), value.clone(), on)
            }
            Change::Delete(key) => TxnOp::delete(self.full(key), None),
            Change::DeletePrefix(prefix) => {
                let (first, end) = self.span(prefix);
                TxnOp::delete(first, Some(DeleteOptions::new().with_range(end)))
            }
        }
    }

    /// Returns the revision that the store has now.
    async fn head(&self) -> Result<Revision, StoreError> {
        let key = self.full("/devfleet/none");
        let answer = self.members.read(|client| get(client, key.clone(), GetOptions::new())).await?;
        Ok(answer.header().map_or(0, |header| header.revision().unsigned_abs()))
    }

    /// Reads all pages at the revision of the first.
    async fn range(&self, prefix: &str) -> Result<Snapshot, Failure> {
        let (mut from, end) = self.span(prefix);
        let (mut entries, mut revision) = (Vec::new(), 0);
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(signed(revision));
            let answer = self.members.try_read(|client| get(client, from.clone(), options.clone())).await?;
            if revision == 0 {
                revision = answer.header().map_or(0, |header| header.revision().unsigned_abs());
            }
            entries.extend(answer.kvs().iter().filter_map(|found| self.entry(found)));
            match answer.kvs().last().filter(|_| answer.more()) {
                None => return Ok(Snapshot { entries, revision }),
                Some(last) => {
                    from = last.key().to_vec();
                    from.push(0);
                }
            }
        }
    }
}

async fn get(
    client: etcd_client::Client,
    key: Vec<u8>,
    options: GetOptions,
) -> Result<etcd_client::GetResponse, etcd_client::Error> {
    client.kv_client().max_decoding_message_size(MESSAGE_BYTES).get(key, Some(options)).await
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let full = self.cluster.full(key);
        let answer = self.cluster.members.read(|client| get(client, full.clone(), GetOptions::new())).await?;
        Ok(answer.kvs().first().and_then(|found| self.cluster.entry(found)))
    }

    async fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        loop {
            match self.cluster.range(prefix).await {
                // History went between two pages: begin anew.
                Err(Failure::Compacted) => {}
                other => return other.map_err(Failure::into_error),
            }
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        check_bounds(&transaction)?;
        let when: Vec<_> = transaction.when.iter().map(|compare| self.cluster.compare(compare)).collect();
        let then: Vec<_> = transaction.then.iter().map(|change| self.cluster.operation(change)).collect();
        let lease = transaction.then.iter().find_map(|change| match change {
            Change::Put { lease, .. } => *lease,
            Change::Delete(_) | Change::DeletePrefix(_) => None,
        });
        let puts = transaction.then.iter().any(|change| matches!(change, Change::Put { .. }));
        let outcome = if puts {
            self.marks.commit(&self.cluster.members, &when, &then).await
        } else {
            // What only deletes is not marked: a mark would be a change where there was none.
            self.cluster.members.transact(marks::plain(when, then)).await.map(|answer| marks::outcome(&answer))
        };
        outcome.map_err(|failure| match (failure, lease) {
            (Failure::LeaseEnded, Some(lease)) => StoreError::LeaseEnded(lease),
            (failure, _) => failure.into_error(),
        })
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        watching::watch(self.cluster.clone(), prefix.to_owned(), from.max(1)).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if ttl.is_zero() {
            return Err(StoreError::OutOfBounds { what: "a lease", rule: "its time is more than zero" });
        }
        let seconds = i64::try_from(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).unwrap_or(i64::MAX);
        // One whose answer was lost ends by itself.
        let grant = |client: etcd_client::Client| async move { client.lease_client().grant(seconds, None).await };
        Ok(LeaseId(self.cluster.members.read(grant).await?.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        // One stream a call: there is none that could fall silent. An answer without time left is a lost lease.
        let keep =
            |client: etcd_client::Client| async move { client.lease_client().keep_alive(lease.0).await.map(drop) };
        match self.cluster.members.try_read(keep).await {
            Ok(()) => Ok(()),
            Err(Failure::LeaseEnded) => Err(StoreError::LeaseEnded(lease)),
            Err(failure) => Err(failure.into_error()),
        }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoke = |client: etcd_client::Client| async move { client.lease_client().revoke(lease.0).await.map(drop) };
        match self.cluster.members.try_read(revoke).await {
            Ok(()) | Err(Failure::LeaseEnded) => Ok(()),
            Err(failure) => Err(failure.into_error()),
        }
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        // etcd keeps what is needed to go on from the revision it compacts at, but for deletions at that very one; so
        // one less here, and watches begin one earlier.
        let at = before.min(self.cluster.head().await? + 1).saturating_sub(1);
        if at == 0 {
            return Ok(());
        }
        let compact = |client: etcd_client::Client| async move {
            client.kv_client().compact(signed(at), Some(CompactionOptions::new())).await.map(drop)
        };
        match self.cluster.members.try_read(compact).await {
            Ok(()) | Err(Failure::Compacted) => Ok(()),
            Err(failure) => Err(failure.into_error()),
        }
    }
}
