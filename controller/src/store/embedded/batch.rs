//! Decides what transactions do, one after the other, before any of it is written: the store's only judge of races.
//!
//! A batch lays changes over a state without touching it, so that many transactions can share one write to the disk
//! and, if that write fails, none of them has happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use devfleet_shared::clock::Boot;

use super::state::{Events, State, under};
use crate::store::bounds::check_bounds;
use crate::store::{Change, Commit, Compare, Entry, LeaseId, Revision, StoreError, Transaction, WatchEvent};

/// What a batch changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Entries as they are afterwards; `None`: deleted.
    pub(super) entries: BTreeMap<String, Option<Entry>>,
    /// New revisions and their events.
    pub(super) history: Vec<(Revision, Events)>,
    pub(super) granted: Vec<(LeaseId, Duration)>,
    pub(super) ended: BTreeSet<LeaseId>,
    pub(super) head: Revision,
    pub(super) next_lease: i64,
    pub(super) oldest: Revision,
}

/// A state and what is laid over it.
pub(super) struct Batch<'a> {
    state: &'a State,
    now: Boot,
    changes: Changes,
}

impl<'a> Batch<'a> {
    pub(super) fn new(state: &'a State, now: Boot) -> Self {
        let (head, next_lease, oldest) = (state.head, state.next_lease, state.oldest);
        Self { state, now, changes: Changes { head, next_lease, oldest, ..Changes::default() } }
    }

    /// Returns the changes; `None` if there are none.
    pub(super) fn finish(self) -> Option<Changes> {
        let changes = self.changes;
        let nothing = changes.history.is_empty()
            && changes.granted.is_empty()
            && changes.ended.is_empty()
            && changes.oldest == self.state.oldest;
        if nothing { None } else { Some(changes) }
    }

    /// Lays a transaction over the state if its conditions hold.
    ///
    /// One that changes nothing has no revision of its own and answers with the last one, as in etcd.
    pub(super) fn commit(&mut self, transaction: &Transaction) -> Result<Commit, StoreError> {
        check_bounds(transaction)?;
        let holds = |compare: &Compare| match compare {
            Compare::Modified(key, revision) => self.entry(key).map_or(0, |entry| entry.modified) == *revision,
            Compare::Exists(key) => self.entry(key).is_some(),
        };
        if !transaction.when.iter().all(holds) {
            return Ok(Commit::Conflict);
        }
        for change in &transaction.then {
            if let Change::Put { lease: Some(lease), .. } = change {
                self.live_lease(*lease)?;
            }
        }
        let revision = self.changes.head + 1;
        let mut events = Vec::new();
        for change in &transaction.then {
            match change {
                Change::Put { key, value, lease } => events.push(self.put(key, value, *lease, revision)),
                Change::Delete(key) => events.extend(self.delete(key, revision)),
                Change::DeletePrefix(prefix) => {
                    for key in self.keys_under(prefix) {
                        events.extend(self.delete(&key, revision));
                    }
                }
            }
        }
        Ok(Commit::Done(self.record(events)))
    }

    /// Makes a lease.
    pub(super) fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if ttl.is_zero() {
            return Err(StoreError::OutOfBounds { what: "a lease", rule: "its time is more than zero" });
        }
        let id = LeaseId(self.changes.next_lease);
        self.changes.next_lease += 1;
        self.changes.granted.push((id, ttl));
        Ok(id)
    }

    /// Ends a lease and deletes its keys under one revision; one that has ended is already so.
    pub(super) fn end_lease(&mut self, id: LeaseId) {
        let granted_here = self.changes.granted.iter().any(|(granted, _)| *granted == id);
        if !(granted_here || self.state.leases.contains_key(&id)) || !self.changes.ended.insert(id) {
            return;
        }
        let before = self.state.leases.get(&id).map(|lease| lease.keys.clone()).unwrap_or_default();
        let staged = self.changes.entries.keys().cloned();
        let keys: BTreeSet<String> = before.into_iter().chain(staged).collect();
        let revision = self.changes.head + 1;
        let mut events = Vec::new();
        for key in keys {
            if self.entry(&key).is_some_and(|entry| entry.lease == Some(id)) {
                events.extend(self.delete(&key, revision));
            }
        }
        self.record(events);
    }

    /// Forgets history before a revision; never more than there is.
    pub(super) fn compact(&mut self, before: Revision) {
        self.changes.oldest = self.changes.oldest.max(before.min(self.changes.head + 1));
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match self.changes.entries.get(key) {
            Some(staged) => staged.as_ref(),
            None => self.state.entries.get(key),
        }
    }

    fn live_lease(&self, id: LeaseId) -> Result<(), StoreError> {
        let granted = self.changes.granted.iter().any(|(granted, _)| *granted == id)
            || self.state.leases.get(&id).is_some_and(|lease| self.now < lease.deadline);
        if granted && !self.changes.ended.contains(&id) { Ok(()) } else { Err(StoreError::LeaseEnded(id)) }
    }

    fn keys_under(&self, prefix: &str) -> BTreeSet<String> {
        let staged = under(&self.changes.entries, prefix).map(|(key, _)| key.clone());
        let before = self.state.under(prefix).map(|entry| entry.key.clone());
        staged.chain(before).collect()
    }

    fn put(&mut self, key: &str, value: &[u8], lease: Option<LeaseId>, revision: Revision) -> WatchEvent {
        let created = self.entry(key).map_or(revision, |entry| entry.created);
        let entry = Entry { key: key.to_owned(), value: value.to_vec(), created, modified: revision, lease };
        self.changes.entries.insert(key.to_owned(), Some(entry.clone()));
        WatchEvent::Put(entry)
    }

    fn delete(&mut self, key: &str, revision: Revision) -> Option<WatchEvent> {
        self.entry(key)?;
        self.changes.entries.insert(key.to_owned(), None);
        Some(WatchEvent::Deleted { key: key.to_owned(), revision })
    }

    fn record(&mut self, events: Vec<WatchEvent>) -> Revision {
        if !events.is_empty() {
            self.changes.head += 1;
            self.changes.history.push((self.changes.head, events.into()));
        }
        self.changes.head
    }
}
