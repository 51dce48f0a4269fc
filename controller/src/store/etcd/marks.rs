//! What became of a transaction whose answer was lost.
//!
//! Each transaction also compares and writes a mark: a key of this writer, free while no other transaction uses it.
//! Without an answer, a second transaction reads the mark and, if it is not that of the first, writes another. So
//! either the first has happened, and its revision is known; or it has not and never will, because the mark that it
//! compares has changed. Only then is it sent again. Nothing is ever repeated blindly.

use std::sync::Mutex;
use std::time::Duration;

use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::debug;

use super::errors::Failure;
use super::members::Members;
use crate::store::{Commit, Revision};

/// Transactions under way at once.
const SLOTS: usize = 64;
/// All tries of one transaction, and of finding out about it.
const PATIENCE: Duration = Duration::from_secs(12);
const PACE: Backoff = Backoff { first: Duration::from_millis(50), ceiling: Duration::from_millis(500) };

/// The marks of one writer.
pub(super) struct Marks {
    /// What their keys begin with.
    prefix: String,
    free: Mutex<Vec<Slot>>,
    permits: Semaphore,
}

/// One mark, and the revision that it was last seen with. If that is wrong, the next transaction learns it.
#[derive(Debug, Clone, Copy)]
struct Slot {
    number: usize,
    revision: Revision,
}

/// A slot in use; goes back even if its user is dropped. A transaction that is still under way then compares the same
/// revision as the next user: one of the two fails.
struct Taken<'a> {
    marks: &'a Marks,
    slot: Slot,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.marks.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(self.slot);
    }
}

/// What became of it.
enum Fate {
    Happened(Revision),
    /// And it never will.
    DidNot,
}

impl Marks {
    pub(super) fn new(prefix: String) -> Self {
        let free = (0..SLOTS).rev().map(|number| Slot { number, revision: 0 }).collect();
        Self { prefix, free: Mutex::new(free), permits: Semaphore::new(SLOTS) }
    }

    /// Carries out a transaction that writes something.
    pub(super) async fn commit(&self, members: &Members, when: &[Compare], then: &[TxnOp]) -> Result<Commit, Failure> {
        let closed = |_| Failure::Unknown("the store is closed".into());
        let _permit = self.permits.acquire().await.map_err(closed)?;
        let slot = self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        let mut taken = Taken { marks: self, slot: slot.unwrap_or(Slot { number: SLOTS, revision: 0 }) };
        let key = format!("{}{}", self.prefix, taken.slot.number).into_bytes();
        let until = Instant::now() + PATIENCE;
        loop {
            let mark = rand::random::<u64>().to_be_bytes();
            let sent = members.transact(marked(&key, taken.slot.revision, mark, when, then)).await;
            match sent {
                Ok(answer) if answer.succeeded() => {
                    taken.slot.revision = revision(&answer);
                    return Ok(Commit::Done(taken.slot.revision));
                }
                Ok(answer) => {
                    let found = found(&answer);
                    if found == taken.slot.revision {
                        return Ok(Commit::Conflict);
                    }
                    taken.slot.revision = found;
                }
                Err(Failure::Unknown(error)) => {
                    debug!(error = %Chain(&*error), "a transaction has no answer, its mark is read");
                    match self.find_out(members, &key, mark, until).await? {
                        Fate::Happened(revision) => {
                            taken.slot.revision = revision;
                            return Ok(Commit::Done(revision));
                        }
                        Fate::DidNot if Instant::now() < until => {}
                        Fate::DidNot => return Err(Failure::Unknown(error)),
                    }
                }
                Err(other) => return Err(other),
            }
        }
    }

    /// Reads the mark, and replaces it if it is not this one.
    async fn find_out(&self, members: &Members, key: &[u8], mark: [u8; 8], until: Instant) -> Result<Fate, Failure> {
        let mut tries = 0;
        loop {
            let other = rand::random::<u64>().to_be_bytes();
            let look = Txn::new()
                .when([Compare::value(key, CompareOp::Equal, mark)])
                .and_then([TxnOp::get(key, None)])
                .or_else([TxnOp::put(key, other, None)]);
            match members.transact(look).await {
                Ok(answer) if answer.succeeded() => return Ok(Fate::Happened(found(&answer))),
                Ok(_) => return Ok(Fate::DidNot),
                Err(Failure::Unknown(_)) if Instant::now() < until => {
                    tries += 1;
                    // sleep: the pace of tries
                    tokio::time::sleep(PACE.pause(tries, Backoff::jitter())).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// Makes a transaction without a mark.
pub(super) fn plain(when: Vec<Compare>, then: Vec<TxnOp>) -> Txn {
    Txn::new().when(when).and_then(then)
}

/// Reads how a transaction without a mark went.
pub(super) fn outcome(answer: &TxnResponse) -> Commit {
    if answer.succeeded() { Commit::Done(revision(answer)) } else { Commit::Conflict }
}

fn marked(key: &[u8], seen: Revision, mark: [u8; 8], when: &[Compare], then: &[TxnOp]) -> Txn {
    let mut when = when.to_vec();
    when.push(Compare::mod_revision(key, CompareOp::Equal, super::signed(seen)));
    let mut then = then.to_vec();
    then.push(TxnOp::put(key, mark, None));
    Txn::new().when(when).and_then(then).or_else([TxnOp::get(key, None)])
}

fn revision(answer: &TxnResponse) -> Revision {
    answer.header().map_or(0, |header| header.revision().unsigned_abs())
}

/// Returns the revision of the mark that was read; 0 if there is none.
fn found(answer: &TxnResponse) -> Revision {
    answer
        .op_responses()
        .iter()
        .find_map(|response| match response {
            TxnOpResponse::Get(read) => read.kvs().first().map(|mark| mark.mod_revision().unsigned_abs()),
            _ => None,
        })
        .unwrap_or(0)
}
