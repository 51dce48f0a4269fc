//! Moves everything from one store to another: a single machine becomes a fleet.
//!
//! A mark in the target comes first, then the copy in many transactions; it is verified by reading it back, and the mark
//! goes last. While it stands no controller starts there, and what is there may be written over. Leases are made anew with
//! their full time. Revisions are the target's own, so fences begin anew: no attempt may be under way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::records::{JobState, PREFIX, RecordError, decode, fleet};
use super::{Change, Commit, Compare, Entry, LeaseId, SharedStore, StoreError, Transaction};

/// Keys on a lease are idempotency keys: what else hangs on one belongs to a process, and is not moved.
const KEPT_LEASES: &str = "/devfleet/v1/idempotency/";
/// How long an idempotency key is remembered in the target.
const LEASE: Duration = Duration::from_secs(24 * 3600);
/// What one transaction writes at most; below the limits of every store.
const CHANGES: usize = 64;
const BYTES: usize = 1 << 20;

/// Why a store cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The target has something already.
    #[error("move into the target: it holds {0} keys already that are no broken-off copy; name an empty prefix")]
    NotEmpty(usize),
    /// Jobs run.
    #[error(
        "move the store: {0} attempts are under way and would lose their ownership; let them end or cancel them, then stop the controller and try again"
    )]
    UnderWay(usize),
    /// What was read back is not what was written.
    #[error("verify the copy: {0} differs; see that nothing else writes to the target, and try again")]
    Differs(String),
    /// Another copies into the same target.
    #[error("move into the target: another copy into it goes on at the same time; leave one of them alone")]
    Raced,
    /// A record cannot be read.
    #[error("read the store that is to be moved")]
    Record(#[from] RecordError),
    /// A store failed.
    #[error("copy the store")]
    Store(#[from] StoreError),
}

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Keys.
    pub keys: usize,
    /// Bytes of their values.
    pub bytes: usize,
}

/// Copies everything, and verifies it. Nothing else may use either store meanwhile. Safe to repeat until it is done: what
/// a copy that was broken off left in the target is removed first.
pub async fn migrate(from: &SharedStore, to: &SharedStore) -> Result<Moved, MigrateError> {
    let snapshot = from.range(PREFIX).await?;
    let under_way = under_way(&snapshot.entries)?;
    if under_way > 0 {
        return Err(MigrateError::UnderWay(under_way));
    }
    let mark = claim(to).await?;
    let moved: Vec<&Entry> = snapshot.entries.iter().filter(|entry| is_moved(entry)).collect();
    let lease = if moved.iter().any(|entry| entry.lease.is_some()) { Some(to.grant_lease(LEASE).await?) } else { None };
    for mut transaction in transactions(&moved, lease) {
        transaction.when.push(mark.clone());
        done(to.commit(transaction).await?)?;
    }
    let copied = to.range(PREFIX).await?;
    let found: BTreeMap<&str, &[u8]> =
        copied.entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_slice())).collect();
    for entry in &moved {
        if found.get(entry.key.as_str()) != Some(&entry.value.as_slice()) {
            return Err(MigrateError::Differs(entry.key.clone()));
        }
    }
    let expected: BTreeSet<&str> = moved.iter().map(|entry| entry.key.as_str()).collect();
    let more = |entry: &&Entry| !expected.contains(entry.key.as_str()) && entry.key != fleet::moving_key();
    if let Some(more) = copied.entries.iter().find(more) {
        return Err(MigrateError::Differs(more.key.clone()));
    }
    done(to.commit(Transaction { when: vec![mark], then: vec![Change::Delete(fleet::moving_key())] }).await?)?;
    Ok(Moved { keys: moved.len(), bytes: moved.iter().map(|entry| entry.value.len()).sum() })
}

/// Takes the target: it is empty, or holds what a copy left that was broken off. Returns the condition that it is still
/// this copy's.
async fn claim(to: &SharedStore) -> Result<Compare, MigrateError> {
    let mark = fleet::moving_key();
    let there = to.range(PREFIX).await?.entries;
    let standing = there.iter().find(|entry| entry.key == mark).map_or(0, |entry| entry.modified);
    if standing == 0 && !there.is_empty() {
        return Err(MigrateError::NotEmpty(there.len()));
    }
    let mine = Uuid::new_v4();
    let put = Change::Put { key: mark.clone(), value: mine.to_string().into_bytes(), lease: None };
    let taken =
        to.commit(Transaction { when: vec![Compare::Modified(mark.clone(), standing)], then: vec![put] }).await?;
    let Commit::Done(revision) = taken else { return Err(MigrateError::Raced) };
    let mark = Compare::Modified(mark, revision);
    for part in there.iter().filter(|entry| entry.key != fleet::moving_key()).collect::<Vec<_>>().chunks(CHANGES) {
        let then = part.iter().map(|entry| Change::Delete(entry.key.clone())).collect();
        done(to.commit(Transaction { when: vec![mark.clone()], then }).await?)?;
    }
    Ok(mark)
}

fn done(commit: Commit) -> Result<(), MigrateError> {
    match commit {
        Commit::Done(_) => Ok(()),
        Commit::Conflict => Err(MigrateError::Raced),
    }
}

fn is_moved(entry: &Entry) -> bool {
    entry.lease.is_none() || entry.key.starts_with(KEPT_LEASES)
}

/// Counts the attempts whose environments may still stand.
fn under_way(entries: &[Entry]) -> Result<usize, RecordError> {
    let mut count = 0;
    for entry in entries.iter().filter(|entry| entry.key.ends_with("/state")) {
        let state: JobState = decode(&entry.key, &entry.value)?;
        count += state.attempts.iter().filter(|attempt| attempt.ended.is_none()).count();
    }
    Ok(count)
}

fn transactions(entries: &[&Entry], lease: Option<LeaseId>) -> Vec<Transaction> {
    let mut made = vec![Transaction::default()];
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.value.len() + entry.key.len();
        let full =
            made.last().is_some_and(|last| last.then.len() >= CHANGES || (bytes > BYTES && !last.then.is_empty()));
        if full {
            made.push(Transaction::default());
            bytes = entry.value.len() + entry.key.len();
        }
        let on = entry.lease.and(lease);
        if let Some(last) = made.last_mut() {
            last.when.push(Compare::Modified(entry.key.clone(), 0));
            last.then.push(Change::Put { key: entry.key.clone(), value: entry.value.clone(), lease: on });
        }
    }
    made
}
