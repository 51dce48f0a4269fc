//! What the store holds in memory: every current entry, the leases, and the youngest part of history.
//!
//! Values are small decisions, so all of them fit; the file is what they are rebuilt from. Readers see only what is
//! durable: the writer stages changes elsewhere and applies them here after the disk has them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::clock::Boot;

use super::batch::Changes;
use super::file::Contents;
use crate::store::{Entry, LeaseId, Revision, WatchEvent};

/// All events of one revision, in the order of its changes.
pub(in crate::store) type Events = Arc<[WatchEvent]>;

const RECENT_REVISIONS: usize = 1_024;
const RECENT_BYTES: usize = 8 << 20;

/// The store in memory.
#[derive(Debug, Default)]
pub(in crate::store) struct State {
    pub(in crate::store) entries: BTreeMap<String, Entry>,
    pub(in crate::store) leases: BTreeMap<LeaseId, Lease>,
    pub(in crate::store) next_lease: i64,
    /// The revision of the last change.
    pub(in crate::store) head: Revision,
    /// The oldest revision that a watch may begin with.
    pub(in crate::store) oldest: Revision,
    recent: Recent,
}

/// A lease that has not been ended.
#[derive(Debug, Default)]
pub(in crate::store) struct Lease {
    pub(in crate::store) ttl: Duration,
    pub(in crate::store) deadline: Boot,
    pub(in crate::store) keys: BTreeSet<String>,
}

impl Lease {
    fn new(ttl: Duration, now: Boot) -> Self {
        Self { ttl, deadline: Boot(now.0.saturating_add(ttl)), keys: BTreeSet::new() }
    }
}

impl State {
    /// Begins with nothing.
    pub(in crate::store) fn empty() -> Self {
        Self { next_lease: 1, ..Self::default() }
    }

    /// Begins with the contents of a file; every lease gets its full time again.
    pub(super) fn new(contents: Contents, now: Boot) -> Self {
        let mut state = Self {
            next_lease: contents.next_lease,
            head: contents.head,
            oldest: contents.oldest,
            leases: contents.leases.into_iter().map(|(id, ttl)| (id, Lease::new(ttl, now))).collect(),
            ..Self::default()
        };
        for entry in contents.entries {
            state.set(entry.key.clone(), Some(entry));
        }
        state
    }

    /// Takes over what stands in the file after it had to be opened again; leases keep their deadlines.
    pub(super) fn reload(&mut self, contents: Contents, now: Boot) {
        let mut fresh = Self::new(contents, now);
        for (id, lease) in &mut fresh.leases {
            if let Some(known) = self.leases.get(id) {
                lease.deadline = known.deadline;
            }
        }
        *self = fresh;
    }

    /// Takes over changes that are durable.
    pub(in crate::store) fn apply(&mut self, changes: Changes, now: Boot) {
        for (id, ttl) in changes.granted {
            self.leases.insert(id, Lease::new(ttl, now));
        }
        for (key, entry) in changes.entries {
            self.set(key, entry);
        }
        for id in changes.ended {
            self.leases.remove(&id);
        }
        for (revision, events) in changes.history {
            self.recent.push(revision, events);
        }
        (self.head, self.next_lease, self.oldest) = (changes.head, changes.next_lease, changes.oldest);
    }

    fn set(&mut self, key: String, entry: Option<Entry>) {
        let lease = entry.as_ref().and_then(|entry| entry.lease);
        let before = match entry {
            Some(entry) => self.entries.insert(key.clone(), entry),
            None => self.entries.remove(&key),
        };
        if let Some(old) = before.and_then(|entry| entry.lease).and_then(|id| self.leases.get_mut(&id)) {
            old.keys.remove(&key);
        }
        if let Some(new) = lease.and_then(|id| self.leases.get_mut(&id)) {
            new.keys.insert(key);
        }
    }

    /// Returns the entries whose keys begin so, ordered.
    pub(in crate::store) fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Entry> {
        under(&self.entries, prefix).map(|(_, entry)| entry)
    }

    /// Returns the leases whose time is over.
    pub(in crate::store) fn overdue(&self, now: Boot) -> Vec<LeaseId> {
        self.leases.iter().filter(|(_, lease)| lease.deadline <= now).map(|(id, _)| *id).collect()
    }

    /// Returns the earliest end of a lease.
    pub(in crate::store) fn next_deadline(&self) -> Option<Boot> {
        self.leases.values().map(|lease| lease.deadline).min()
    }

    /// Gives a live lease its time once more; false: it has ended.
    pub(in crate::store) fn keep_alive(&mut self, id: LeaseId, now: Boot) -> bool {
        match self.leases.get_mut(&id).filter(|lease| now < lease.deadline) {
            Some(lease) => {
                lease.deadline = Boot(now.0.saturating_add(lease.ttl));
                true
            }
            None => false,
        }
    }

    /// Returns history from a revision on, if it is young enough to be in memory.
    pub(in crate::store) fn recent(&self, from: Revision) -> Option<Vec<(Revision, Events)>> {
        self.recent.from(from)
    }
}

/// Returns what is stored under keys that begin so, ordered.
pub(in crate::store) fn under<'a, T>(
    map: &'a BTreeMap<String, T>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a T)> {
    map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
}

/// The youngest revisions without a gap, bounded in number and size.
#[derive(Debug, Default)]
struct Recent {
    revisions: VecDeque<(Revision, Events, usize)>,
    bytes: usize,
}

impl Recent {
    fn push(&mut self, revision: Revision, events: Events) {
        let size = events.iter().map(size).sum();
        self.bytes += size;
        self.revisions.push_back((revision, events, size));
        while self.revisions.len() > RECENT_REVISIONS || (self.bytes > RECENT_BYTES && self.revisions.len() > 1) {
            self.bytes -= self.revisions.pop_front().map_or(0, |(_, _, size)| size);
        }
    }

    fn from(&self, from: Revision) -> Option<Vec<(Revision, Events)>> {
        let skipped = from.checked_sub(self.revisions.front()?.0)?;
        let skipped = usize::try_from(skipped).ok()?;
        Some(self.revisions.iter().skip(skipped).map(|(revision, events, _)| (*revision, Arc::clone(events))).collect())
    }
}

fn size(event: &WatchEvent) -> usize {
    match event {
        WatchEvent::Put(entry) => entry.key.len() + entry.value.len(),
        WatchEvent::Deleted { key, .. } => key.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_history_has_no_gap_and_forgets_from_the_old_end() {
        let mut recent = Recent::default();
        assert!(recent.from(1).is_none());
        for revision in 1..=RECENT_REVISIONS as u64 + 5 {
            recent.push(revision, [WatchEvent::Deleted { key: "k".into(), revision }].into());
        }
        assert!(recent.from(5).is_none());
        let all = recent.from(6).expect("kept");
        assert_eq!((all.len(), all[0].0), (RECENT_REVISIONS, 6));
        assert_eq!(recent.from(RECENT_REVISIONS as u64 + 5).expect("kept").len(), 1);
        recent.push(2_000, [WatchEvent::Deleted { key: "k".repeat(RECENT_BYTES), revision: 2_000 }].into());
        assert_eq!(recent.revisions.len(), 1);
    }
}
