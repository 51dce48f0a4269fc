//! A host is told that it is there only after a committed write; many hosts share one transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_controller::sessions::prover::{Held, ProofError, Prover, ProverHandle};
use devfleet_controller::store::embedded::Embedded;
use devfleet_controller::store::records::{HostRecord, key, live, put};
use devfleet_controller::store::{Commit, SharedStore, Store as _, StoreError, Transaction};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::HostId;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::support::between::{Between, Meddling};

/// Counts transactions, and can lose an answer after the effect.
#[derive(Default)]
struct Watched {
    commits: AtomicUsize,
    lose_answers: AtomicBool,
}

#[async_trait]
impl Meddling for Watched {
    async fn commit(&self, inner: &SharedStore, transaction: Transaction) -> Result<Commit, StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        let outcome = inner.commit(transaction).await;
        if self.lose_answers.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the answer was lost".into()));
        }
        outcome
    }
}

struct Ground {
    store: Arc<Between<Watched>>,
    prover: ProverHandle,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Ground {
        let dir = tempfile::tempdir().expect("dir");
        let inner = Embedded::open(&dir.path().join("store.redb"), Clock::system()).expect("store");
        let store = Arc::new(Between::new(inner, Watched::default()));
        let (prover, handle) = Prover::new(store.clone(), "c1".into(), Duration::from_secs(600));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(prover.run(shutdown.clone()));
        Ground { store, prover: handle, shutdown, task, _dir: dir }
    }

    async fn host(&self) -> HostId {
        let id = HostId::random();
        let now = Timestamp(1);
        let record = serde_json::json!({"id": id, "name": "h", "joined": now, "certificate_ends": now});
        let record: HostRecord = serde_json::from_value(record).expect("record");
        let then = vec![put(key::host(&id), &record).expect("put")];
        let done = self.store.commit(Transaction { when: vec![], then }).await.expect("commit");
        assert!(matches!(done, Commit::Done(_)));
        id
    }

    async fn session(&self, number: u64) -> Held {
        let host = self.host().await;
        self.prover.open(&host, number, "i1").await.expect("opened")
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.expect("the prover ends");
    }
}

#[tokio::test]
async fn heartbeats_of_many_hosts_cost_few_transactions() {
    let ground = Ground::new();
    let mut sessions = Vec::new();
    for number in 0..120 {
        sessions.push(ground.session(number).await);
    }
    let before = ground.store.commits.load(Ordering::SeqCst);
    let proofs = join_all(sessions.into_iter().map(|held| ground.prover.prove(held, 1))).await;
    assert!(proofs.iter().all(|proof| matches!(proof, Ok(held) if held.record.sequence == 1)), "{proofs:?}");
    let cost = ground.store.commits.load(Ordering::SeqCst) - before;
    assert!(cost <= 6, "120 heartbeats cost {cost} transactions");
    ground.end().await;
}

#[tokio::test]
async fn a_session_whose_place_was_taken_is_not_proven_and_those_beside_it_are() {
    let ground = Ground::new();
    let (old, other) = (ground.session(1).await, ground.session(2).await);
    let new = ground.prover.open(&old.host, 3, "i1").await.expect("the newer session takes the place");
    let (of_old, of_other) = tokio::join!(ground.prover.prove(old, 1), ground.prover.prove(other, 1));
    assert!(matches!(of_old, Err(ProofError::Over)), "{of_old:?}");
    assert!(of_other.is_ok(), "{of_other:?}");
    assert!(ground.prover.prove(new, 1).await.is_ok());
    ground.end().await;
}

#[tokio::test]
async fn a_session_whose_record_went_with_its_lease_is_over() {
    let ground = Ground::new();
    let held = ground.session(1).await;
    ground.store.revoke_lease(held.lease).await.expect("revoked");
    let proof = ground.prover.prove(held.clone(), 1).await;
    assert!(matches!(proof, Err(ProofError::Over)), "{proof:?}");
    assert_eq!(ground.store.get(&live::key(&held.host)).await.expect("get"), None, "nothing brings it back");
    ground.end().await;
}

#[tokio::test]
async fn a_lost_answer_proves_nothing_and_the_next_heartbeat_goes_on_from_it() {
    let ground = Ground::new();
    let held = ground.session(1).await;
    ground.store.lose_answers.store(true, Ordering::SeqCst);
    let proof = ground.prover.prove(held.clone(), 1).await;
    assert!(matches!(proof, Err(ProofError::Unavailable)), "{proof:?}");
    ground.store.lose_answers.store(false, Ordering::SeqCst);
    let proof = ground.prover.prove(held, 2).await.expect("it is the same session");
    assert_eq!(proof.record.sequence, 2);
    ground.end().await;
}

#[tokio::test]
async fn a_host_that_was_removed_gets_no_session() {
    let ground = Ground::new();
    let opened = ground.prover.open(&HostId::random(), 1, "i1").await;
    assert!(matches!(opened, Err(ProofError::Removed)), "{opened:?}");
    ground.end().await;
}
