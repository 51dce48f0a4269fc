//! Proves to hosts that they are there: a heartbeat is answered after a committed write, and never before.
//!
//! ```text
//! sessions ─ prove ─▶ gathered (50 ms, 60 hosts) ─▶ one transaction: my record stands as I left it ⇒ write it anew
//!                                                     ╰─ refused as a whole ─▶ each host alone
//! ```
//! A kept-alive lease proves nothing: stores have been seen to answer so when the key was gone. The lease only raises
//! suspicion when it ends.

use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::error::Chain;
use devfleet_shared::id::HostId;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::store::records::live::{self, Live};
use crate::store::records::{RecordError, decode, key, put};
use crate::store::{Change, Commit, Compare, LeaseId, Revision, SharedStore, StoreError, Transaction};

/// How long heartbeats are gathered.
const GATHER: Duration = Duration::from_millis(50);
/// The most hosts in one transaction: etcd takes 128 conditions and changes.
const HOSTS: usize = 60;
/// The most transactions under way.
const UNDER_WAY: usize = 8;
/// How long a transaction may take. What it would prove is too old then.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a session tries to take the place of an older one.
const TRIES: usize = 5;

/// Why a host is not proven to be there.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Another session has its place, or its time was over.
    #[error("prove that the host is there: its session is over")]
    Over,
    /// The host is not part of the fleet any more.
    #[error("open a session: the host was removed from the fleet")]
    Removed,
    /// The store does not answer, or not in time.
    #[error("prove that the host is there: the store does not answer")]
    Unavailable,
    /// The record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A session's record in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The host.
    pub host: HostId,
    /// What was written last.
    pub record: Live,
    /// The revision that wrote it.
    pub revision: Revision,
    /// The lease that it hangs on.
    pub lease: LeaseId,
}

type Answer = oneshot::Sender<Result<Held, ProofError>>;

/// What sessions ask of the prover. Cheap to clone.
#[derive(Clone)]
pub struct ProverHandle {
    store: SharedStore,
    controller: String,
    lease: Duration,
    asks: mpsc::Sender<(Held, Answer)>,
}

/// Gathers what sessions ask.
pub struct Prover {
    store: SharedStore,
    asks: mpsc::Receiver<(Held, Answer)>,
    places: Arc<Semaphore>,
    commits: JoinSet<()>,
}

impl ProverHandle {
    /// Writes down that this host has a session here now. An older session of it is over from then on.
    pub async fn open(&self, host: &HostId, number: u64, incarnation: &str) -> Result<Held, ProofError> {
        let lease = self.store.grant_lease(self.lease).await.map_err(RecordError::Store)?;
        let record =
            Live { controller: self.controller.clone(), number, incarnation: incarnation.to_owned(), sequence: 0 };
        for _ in 0..TRIES {
            let before = self.store.get(&live::key(host)).await.map_err(RecordError::Store)?;
            let seen = before.map_or(0, |entry| entry.modified);
            let held = Held { host: host.clone(), record: record.clone(), revision: seen, lease };
            let (mut when, then) = (vec![held.compare()], vec![held.change()?]);
            when.push(Compare::Exists(key::host(host)));
            match self.store.commit(Transaction { when, then }).await.map_err(RecordError::Store)? {
                Commit::Done(revision) => return Ok(Held { revision, ..held }),
                Commit::Conflict => {}
            }
            if self.store.get(&key::host(host)).await.map_err(RecordError::Store)?.is_none() {
                return Err(ProofError::Removed);
            }
        }
        Err(ProofError::Over)
    }

    /// Writes down that a heartbeat came. Answered once that is durable; the answer holds for what was known of this
    /// session when the heartbeat was sent.
    pub async fn prove(&self, held: Held, sequence: u64) -> Result<Held, ProofError> {
        let (answer, answered) = oneshot::channel();
        let record = Live { sequence, ..held.record };
        self.asks.send((Held { record, ..held }, answer)).await.map_err(|_| ProofError::Unavailable)?;
        answered.await.unwrap_or(Err(ProofError::Unavailable))
    }
}

impl Prover {
    /// Makes one over a store, for this start of a controller; hosts' records live this long.
    pub fn new(store: SharedStore, controller: String, lease: Duration) -> (Prover, ProverHandle) {
        let (sender, asks) = mpsc::channel(1_024);
        let handle = ProverHandle { store: store.clone(), controller, lease, asks: sender };
        let places = Arc::new(Semaphore::new(UNDER_WAY));
        (Prover { store, asks, places, commits: JoinSet::new() }, handle)
    }

    /// Runs until the shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(_) = self.commits.join_next() => {}
                first = self.asks.recv() => {
                    let Some(first) = first else { return };
                    let batch = self.gather(first).await;
                    let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
                    let store = self.store.clone();
                    self.commits.spawn(async move {
                        commit(&store, batch).await;
                        drop(place);
                    });
                }
            }
        }
    }

    async fn gather(&mut self, first: (Held, Answer)) -> Vec<(Held, Answer)> {
        let mut batch = vec![first];
        let more = async {
            while batch.len() < HOSTS {
                match self.asks.recv().await {
                    Some(ask) => batch.push(ask),
                    None => break,
                }
            }
        };
        drop(tokio::time::timeout(GATHER, more).await);
        batch
    }
}

impl Held {
    fn compare(&self) -> Compare {
        Compare::Modified(live::key(&self.host), self.revision)
    }

    fn change(&self) -> Result<Change, RecordError> {
        let mut change = put(live::key(&self.host), &self.record)?;
        if let Change::Put { lease, .. } = &mut change {
            *lease = Some(self.lease);
        }
        Ok(change)
    }
}

/// Proves many hosts at once, or each alone where that does not go.
async fn commit(store: &SharedStore, batch: Vec<(Held, Answer)>) {
    let keep = batch.iter().map(|(held, _)| store.keep_alive(held.lease));
    // What the keys hang on is kept up beside; whether that went well shows in the next transaction.
    let kept = tokio::time::timeout(PATIENCE, futures_util::future::join_all(keep));
    let (together, _) = tokio::join!(within(together(store, &batch)), kept);
    match together {
        Ok(Some(revision)) => {
            for (held, answer) in batch {
                drop(answer.send(Ok(Held { revision, ..held })));
            }
        }
        Ok(None) => {
            debug!(hosts = batch.len(), "heartbeats could not be proven together");
            let alone = batch.into_iter().map(|(held, answer)| async {
                drop(answer.send(within(alone(store, held)).await));
            });
            futures_util::future::join_all(alone).await;
        }
        Err(error) => {
            debug!(error = %Chain(&error), hosts = batch.len(), "heartbeats could not be proven");
            for (_, answer) in batch {
                drop(answer.send(Err(ProofError::Unavailable)));
            }
        }
    }
}

async fn within<T>(work: impl Future<Output = Result<T, ProofError>>) -> Result<T, ProofError> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(ProofError::Unavailable))
}

/// `None`: refused as a whole, because of one or more of them.
async fn together(store: &SharedStore, batch: &[(Held, Answer)]) -> Result<Option<Revision>, ProofError> {
    let when = batch.iter().map(|(held, _)| held.compare()).collect();
    let then = batch.iter().map(|(held, _)| held.change()).collect::<Result<_, _>>()?;
    match store.commit(Transaction { when, then }).await {
        Ok(Commit::Done(revision)) => Ok(Some(revision)),
        Ok(Commit::Conflict) | Err(StoreError::LeaseEnded(_)) => Ok(None),
        Err(error) => Err(RecordError::Store(error).into()),
    }
}

/// Proves one host. A record of this very session that is newer than was known is what a write left whose answer got
/// lost: it is gone on from there.
async fn alone(store: &SharedStore, mut held: Held) -> Result<Held, ProofError> {
    for _ in 0..2 {
        let transaction = Transaction { when: vec![held.compare()], then: vec![held.change()?] };
        match store.commit(transaction).await {
            Ok(Commit::Done(revision)) => return Ok(Held { revision, ..held }),
            Ok(Commit::Conflict) => {}
            Err(StoreError::LeaseEnded(_)) => return Err(ProofError::Over),
            Err(error) => return Err(RecordError::Store(error).into()),
        }
        let key = live::key(&held.host);
        let Some(entry) = store.get(&key).await.map_err(RecordError::Store)? else { return Err(ProofError::Over) };
        let standing: Live = decode(&key, &entry.value)?;
        if !standing.is_session_of(&held.record) {
            return Err(ProofError::Over);
        }
        held.revision = entry.modified;
    }
    Err(ProofError::Over)
}
