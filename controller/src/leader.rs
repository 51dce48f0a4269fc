//! Who leads: the loops of which one may run in a fleet run on one controller, for a term.
//!
//!   campaign ─▶ lease, key `leader` ─▶ work runs under a term ─▶ proof late, key not ours ─▶ work dropped at once
//!
//! A lease is a failure detector and no lock: a store may say that it lives when it has ended. So a term is also a
//! revision, and every write of a leader compares it ([`Term::compare`]): of two who believe they lead, the store
//! refuses the older. Time serves only to stop early, before another can have begun.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_shared::clock::{Boot, Clock};
use devfleet_shared::error::Chain;
use devfleet_shared::id::ControllerId;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::store::records::leadership::{LeaderRecord, Terms, leader_key, terms_key};
use crate::store::records::{RecordError, decode, put};
use crate::store::{Change, Commit, Compare, LeaseId, Revision, SharedStore, StoreError, Transaction};

/// The boot clock is looked at this often: after a sleep of the machine its timers are late, the clock is not.
const LOOK: Duration = Duration::from_millis(250);

/// One time of leading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The key that is held.
    pub key: String,
    /// The revision that wrote it.
    pub revision: Revision,
    /// Its number; the first term of a fleet is 1.
    pub number: u64,
}

impl Term {
    /// The condition that goes into every write of a leader.
    pub fn compare(&self) -> Compare {
        Compare::Modified(self.key.clone(), self.revision)
    }
}

/// What only the leader does.
#[async_trait]
pub trait LeadOnly: Send + Sync + 'static {
    /// Works until the token is cancelled. It may be dropped at any `await`: then the term is over.
    async fn run(&self, term: Term, shutdown: CancellationToken);
}

/// The times of leading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// How long the key outlives its last renewal.
    pub lease: Duration,
    /// How often it is renewed.
    pub renew: Duration,
    /// A leader steps down this long before its lease can have ended elsewhere.
    pub margin: Duration,
    /// How long work may take to end at a shutdown.
    pub grace: Duration,
}

impl Default for Timers {
    /// A leader that dies is followed within 15 s, though etcd ends leases late; one that is cut off stops after 7 s.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { lease: seconds(10), renew: seconds(2), margin: seconds(3), grace: seconds(2) }
    }
}

impl Timers {
    /// Says how long a proof still carries; `None`: it carries no more. `sent` is when the proof was asked for.
    fn left(&self, sent: Boot, now: Boot) -> Option<Duration> {
        let until = sent.0 + self.lease.saturating_sub(self.margin);
        until.checked_sub(now.0).filter(|left| !left.is_zero())
    }
}

/// A candidate, and the leader if it wins.
pub struct Leader {
    /// Where it is decided.
    pub store: SharedStore,
    /// Tells the time.
    pub clock: Clock,
    /// Who stands for election.
    pub controller: ControllerId,
    /// Where other controllers reach it.
    pub address: String,
    /// The times.
    pub timers: Timers,
    /// The term under way, for whoever wants to know.
    pub term: watch::Sender<Option<Term>>,
}

/// A term that was won.
struct Seat {
    term: Term,
    lease: LeaseId,
    asked: Boot,
}

/// Why a term ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The store did not answer in time.
    Unproven,
    /// The key is gone or another's.
    Taken,
    /// A part of the work ended by itself: a defect.
    Work,
    /// The controller stops.
    Shutdown,
}

impl Leader {
    /// Makes a candidate with the usual times.
    pub fn new(store: SharedStore, clock: Clock, controller: ControllerId, address: String) -> Self {
        Self { store, clock, controller, address, timers: Timers::default(), term: watch::Sender::new(None) }
    }

    /// Stands for election, and leads whenever it wins, until the shutdown. Then it resigns.
    pub async fn run(self, work: Vec<Arc<dyn LeadOnly>>, shutdown: CancellationToken) {
        let mut restarted = true;
        loop {
            let seat = tokio::select! {
                () = shutdown.cancelled() => return,
                seat = self.campaign(restarted) => seat,
            };
            restarted = false;
            let number = seat.term.number;
            info!(term = number, "this controller leads");
            self.term.send_replace(Some(seat.term.clone()));
            let over = self.lead(&seat, &work, &shutdown).await;
            self.term.send_replace(None);
            if over == Over::Shutdown {
                info!(term = number, "this controller resigns");
            } else {
                warn!(term = number, why = ?over, "this controller no longer leads");
            }
            self.resign(seat.lease).await;
        }
    }

    /// Gives the key back, so that others need not wait for the lease. If that fails, they do.
    async fn resign(&self, lease: LeaseId) {
        match tokio::time::timeout(self.timers.grace, self.store.revoke_lease(lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error = %Chain(&error), "the lead could not be given back, it ends by itself"),
            Err(_) => warn!("the lead could not be given back in time, it ends by itself"),
        }
    }

    fn record(&self, term: u64) -> LeaderRecord {
        LeaderRecord {
            controller: self.controller.clone(),
            term,
            address: self.address.clone(),
            since: self.clock.now(),
        }
    }

    /// Waits until the key is free, and takes it.
    async fn campaign(&self, restarted: bool) -> Seat {
        loop {
            // What is dropped half done hangs on a lease that nobody renews.
            let seen = match tokio::time::timeout(self.timers.lease, self.take(restarted)).await {
                Ok(Ok(Ok(seat))) => return seat,
                Ok(Ok(Err(seen))) => Some(seen),
                Ok(Err(error)) => {
                    warn!(error = %Chain(&error), "standing for election failed");
                    None
                }
                Err(_) => {
                    warn!("standing for election failed: the store does not answer");
                    None
                }
            };
            self.look_again(seen).await;
        }
    }

    /// Waits for the key to change, or for the next look.
    async fn look_again(&self, seen: Option<Revision>) {
        let changed = async {
            let from = seen? + 1;
            let mut events = self.store.watch(&leader_key(), from).await.ok()?;
            events.next().await
        };
        let at_last = async {
            if changed.await.is_none() {
                std::future::pending::<()>().await;
            }
        };
        let interval = self.timers.renew.min(Duration::from_secs(1));
        drop(tokio::time::timeout(interval, at_last).await);
    }

    /// Takes the key if nobody holds it. `Err` within: what was seen at this revision stands in the way.
    ///
    /// At its first try a controller that finds its own id there takes over from itself: it was killed a moment ago,
    /// and one data directory serves one process.
    async fn take(&self, restarted: bool) -> Result<Result<Seat, Revision>, RecordError> {
        let (leader, terms) = (leader_key(), terms_key());
        let held = match self.store.get(&leader).await? {
            None => 0,
            Some(entry) => {
                let record: LeaderRecord = decode(&leader, &entry.value)?;
                if !restarted || record.controller != self.controller {
                    return Ok(Err(entry.modified));
                }
                entry.modified
            }
        };
        let counted = self.store.get(&terms).await?;
        let last = counted.as_ref().map(|entry| decode::<Terms>(&terms, &entry.value)).transpose()?;
        let number = last.unwrap_or_default().last + 1;
        let asked = self.clock.boot();
        let lease = self.store.grant_lease(self.timers.lease).await?;
        let mut hold = put(leader.clone(), &self.record(number))?;
        if let Change::Put { lease: on, .. } = &mut hold {
            *on = Some(lease);
        }
        let transaction = Transaction {
            when: vec![
                Compare::Modified(leader.clone(), held),
                Compare::Modified(terms.clone(), counted.map_or(0, |entry| entry.modified)),
            ],
            then: vec![hold, put(terms, &Terms { last: number })?],
        };
        match self.store.commit(transaction).await {
            Ok(Commit::Done(revision)) => {
                let term = Term { key: leader, revision, number };
                Ok(Ok(Seat { term, lease, asked }))
            }
            // Lost, or unknown: without its lease a key that was written after all goes too.
            Ok(Commit::Conflict) => {
                self.store.revoke_lease(lease).await?;
                Ok(Err(held))
            }
            Err(error) => {
                self.resign(lease).await;
                Err(error.into())
            }
        }
    }

    async fn lead(&self, seat: &Seat, work: &[Arc<dyn LeadOnly>], shutdown: &CancellationToken) -> Over {
        let ending = CancellationToken::new();
        let mut running = JoinSet::new();
        for part in work {
            let (part, term, ending) = (part.clone(), seat.term.clone(), ending.clone());
            running.spawn(async move { part.run(term, ending).await });
        }
        let over = {
            let keeping = self.keep(seat);
            tokio::pin!(keeping);
            tokio::select! {
                biased;
                over = &mut keeping => over,
                () = shutdown.cancelled() => {
                    ending.cancel();
                    let ended = async { while running.join_next().await.is_some() {} };
                    tokio::select! {
                        biased;
                        _ = &mut keeping => {}
                        _ = tokio::time::timeout(self.timers.grace, ended) => {}
                    }
                    Over::Shutdown
                }
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended {
                        warn!(error = %Chain(&error), "a part of the leader's work broke off");
                    }
                    Over::Work
                }
            }
        };
        ending.cancel();
        running.shutdown().await;
        over
    }

    /// Renews the lease, and returns when the term is over or may be over soon.
    async fn keep(&self, seat: &Seat) -> Over {
        let mut proven = seat.asked;
        let mut next = proven.0 + self.timers.renew;
        loop {
            let now = self.clock.boot();
            let Some(left) = self.timers.left(proven, now) else { return Over::Unproven };
            let Some(due) = next.checked_sub(now.0).filter(|due| !due.is_zero()) else {
                // A proof counts from here, whenever its answer comes.
                let asked = self.clock.boot();
                next = asked.0 + self.timers.renew;
                match tokio::time::timeout(left, self.prove(seat)).await {
                    Ok(Ok(true)) => proven = asked,
                    Ok(Ok(false)) | Ok(Err(StoreError::LeaseEnded(_))) => return Over::Taken,
                    Ok(Err(error)) => {
                        debug!(error = %Chain(&error), "the lead could not be renewed, it is tried again");
                        next = self.clock.boot().0 + LOOK;
                    }
                    Err(_) => return Over::Unproven,
                }
                continue;
            };
            // sleep: the pace of renewal; looked at in between because the machine may have slept
            tokio::time::sleep(due.min(left).min(LOOK)).await;
        }
    }

    /// Renews the lease and reads the key: an answer to the first alone proves nothing.
    async fn prove(&self, seat: &Seat) -> Result<bool, StoreError> {
        self.store.keep_alive(seat.lease).await?;
        let held = self.store.get(&seat.term.key).await?;
        Ok(held.is_some_and(|entry| entry.modified == seat.term.revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_carries_from_when_it_was_asked_for_until_the_margin() {
        let timers = Timers::default();
        let at = |seconds| Boot(Duration::from_secs(seconds));
        assert_eq!(timers.left(at(100), at(100)), Some(Duration::from_secs(7)));
        assert_eq!(timers.left(at(100), at(106)), Some(Duration::from_secs(1)));
        assert_eq!(timers.left(at(100), at(107)), None);
        assert_eq!(timers.left(at(100), at(1_000)), None);
    }
}
