//! A session over a store that stops answering: a set that is short would stop jobs, so none is sent.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use devfleet_shared::clock::Clock;
use devfleet_shared::id::AttemptId;
use futures_util::stream::BoxStream;

use super::*;
use crate::sessions::prover::Prover;
use crate::store::embedded::Embedded;
use crate::store::records::{AttemptRecord, JobSpec, JobState, Owner, key, put};
use crate::store::{
    Commit, Entry, LeaseId, Revision, SharedStore, Snapshot, Store, StoreError, Transaction, WatchEvent,
};

/// A store that answers no single read while it is silent.
struct Mute {
    inner: SharedStore,
    silent: AtomicBool,
}

#[async_trait]
impl Store for Mute {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        match self.silent.load(Ordering::SeqCst) {
            true => Err(StoreError::Unavailable("it is silent".into())),
            false => self.inner.get(key).await,
        }
    }
    async fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.inner.range(prefix).await
    }
    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        self.inner.commit(transaction).await
    }
    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        self.inner.watch(prefix, from).await
    }
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant_lease(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke_lease(lease).await
    }
    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.inner.compact(before).await
    }
}

/// Writes a job that this host owns.
async fn owned_job(store: &SharedStore, host: &HostId) {
    let (id, attempt) = (JobId::random(), AttemptId::random());
    let spec = JobSpec {
        id: id.clone(),
        project: "app".parse().expect("a name"),
        title: "mend it".into(),
        task: "mend it".into(),
        plan: String::new(),
        agent: "fix".parse().expect("a name"),
        base: None,
        hold: Duration::ZERO,
        issue: None,
        submitted_by: "ada".into(),
        submitted: Timestamp(1),
        priority: 0,
    };
    let mut state = JobState::submitted(Timestamp(1));
    let assigned = AttemptRecord::assigned(attempt.clone(), host.clone(), "devfleet/x".into(), Timestamp(1));
    state.attempts.push(assigned);
    let owner = Owner { host: host.clone(), attempt };
    let then = vec![
        put(key::spec(&id), &spec).expect("a record"),
        put(key::state(&id), &state).expect("a record"),
        put(key::owner(&id), &owner).expect("a record"),
    ];
    store.commit(Transaction { when: Vec::new(), then }).await.expect("written");
}

#[tokio::test]
async fn a_store_that_does_not_answer_ends_the_session_before_a_short_set_is_sent() {
    let (directory, clock, host) = (tempfile::tempdir().expect("dir"), Clock::system(), HostId::random());
    let inner: SharedStore = Embedded::open(&directory.path().join("store"), clock.clone()).expect("store");
    owned_job(&inner, &host).await;
    let mute = Arc::new(Mute { inner, silent: AtomicBool::new(true) });
    let store: SharedStore = mute.clone();
    let parts = SessionParts {
        view: View::open(&store).await.expect("a view"),
        jobs: Jobs::new(store, clock.clone()),
        sessions: Arc::new(Sessions::new(clock)),
        logs: JobLogs::new(crate::files::Files::in_memory()),
        prover: Prover::new(mute.clone(), "c1".into(), Duration::from_secs(15)).1,
        timers: Timers::default(),
    };
    let (down, mut heard) = mpsc::channel(8);
    let mut session = Session::new(parts, host, down);
    assert!(session.welcome().await.is_err(), "the session goes on");
    assert!(heard.try_recv().is_err(), "something was sent");
    mute.silent.store(false, Ordering::SeqCst);
    assert!(session.welcome().await.is_ok(), "a store that answers");
    assert!(heard.try_recv().is_ok());
}
