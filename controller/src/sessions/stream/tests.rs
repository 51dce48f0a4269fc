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
    Change, Commit, Entry, LeaseId, Revision, SharedStore, Snapshot, Store, StoreError, Transaction, WatchEvent,
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

/// Writes a job that this host owns, and returns which attempt it is.
async fn owned_job(store: &SharedStore, host: &HostId) -> Claim {
    let (spec, attempt) = (JobSpec::sample(Timestamp(1)), AttemptId::random());
    let job = spec.id.clone();
    let mut state = JobState::submitted(Timestamp(1));
    let assigned = AttemptRecord::assigned(attempt.clone(), host.clone(), "devfleet/x".into(), Timestamp(1));
    state.attempts.push(assigned);
    let owner = Owner { host: host.clone(), attempt: attempt.clone() };
    let then = vec![
        put(key::spec(&job), &spec).expect("a record"),
        put(key::state(&job), &state).expect("a record"),
        put(key::owner(&job), &owner).expect("a record"),
    ];
    let written = store.commit(Transaction { when: Vec::new(), then }).await.expect("written");
    let Commit::Done(revision) = written else { panic!("{written:?}") };
    Claim { host: host.clone(), job, attempt, fence: Fence(revision) }
}

/// What a session over this store works with.
async fn parts(store: SharedStore, clock: &Clock) -> SessionParts {
    SessionParts {
        view: View::open(&store).await.expect("a view"),
        jobs: Jobs::new(store.clone(), clock.clone()),
        sessions: Arc::new(Sessions::new(clock.clone())),
        logs: JobLogs::new(crate::files::Files::in_memory()),
        prover: Prover::new(store, "c1".into(), Duration::from_secs(15)).1,
        timers: Timers::default(),
    }
}

#[tokio::test]
async fn a_store_that_does_not_answer_ends_the_session_before_a_short_set_is_sent() {
    let (directory, clock, host) = (tempfile::tempdir().expect("dir"), Clock::system(), HostId::random());
    let inner: SharedStore = Embedded::open(&directory.path().join("store"), clock.clone()).expect("store");
    owned_job(&inner, &host).await;
    let mute = Arc::new(Mute { inner, silent: AtomicBool::new(true) });
    let (down, mut heard) = mpsc::channel(8);
    let mut session = Session::new(parts(mute.clone(), &clock).await, host, down);
    assert!(session.welcome().await.is_err(), "the session goes on");
    assert!(heard.try_recv().is_err(), "something was sent");
    mute.silent.store(false, Ordering::SeqCst);
    assert!(session.welcome().await.is_ok(), "a store that answers");
    assert!(heard.try_recv().is_ok());
}

#[tokio::test]
async fn what_a_host_tells_of_an_attempt_is_kept_while_that_is_its_own() {
    let (directory, clock, host) = (tempfile::tempdir().expect("dir"), Clock::system(), HostId::random());
    let store: SharedStore = Embedded::open(&directory.path().join("store"), clock.clone()).expect("store");
    let claim = owned_job(&store, &host).await;
    let session = Session::new(parts(store.clone(), &clock).await, host, mpsc::channel(8).0);
    let report = || v1::AttemptReport {
        job: claim.job.to_string(),
        attempt: claim.attempt.to_string(),
        fence: claim.fence.0,
        state: Some((&Phase::Preparing).into()),
        doing: "building the image".into(),
        tokens: 7,
        ..v1::AttemptReport::default()
    };
    let told = || session.parts.sessions.told(&claim.attempt);
    assert_eq!(session.apply(report()).await.expect("an answer"), Report::Applied);
    assert_eq!(told(), Told { doing: "building the image".into(), tokens: 7 });
    let then = vec![Change::Delete(key::owner(&claim.job))];
    store.commit(Transaction { when: Vec::new(), then }).await.expect("taken away");
    assert_eq!(session.apply(report()).await.expect("an answer"), Report::Superseded);
    assert_eq!(told(), Told::default());
}
