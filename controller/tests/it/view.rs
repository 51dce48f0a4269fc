//! What the view knows of the store, whatever becomes of its watch.

use std::sync::Arc;
use std::time::Duration;

use devfleet_controller::jobs::{Claim, Report};
use devfleet_controller::store::records::live::{self, Live};
use devfleet_controller::store::records::{key, put};
use devfleet_controller::store::{Change, SharedStore, Transaction};
use devfleet_controller::view::{Records, View};
use devfleet_shared::attempt::{AttemptResult, Phase, Step};
use devfleet_shared::id::{HostId, JobId};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::jobs::{Bench, joined};
use crate::support::stores::{Mood, Moody};

#[tokio::test]
async fn a_watch_that_breaks_between_two_changes_of_one_revision_loses_neither() {
    let bench = Bench::new();
    let store = Moody::over(bench.store.clone());
    let shared: SharedStore = store.clone();
    let view = View::open(&shared).await.expect("a view");
    store.set(Mood::BreaksOnce);
    let end = CancellationToken::new();
    let following = tokio::spawn(view.clone().follow(shared, end.clone()));
    // What it is and where it stands are written at once.
    let job = bench.submitted().await;
    let seen = view.until(|records| records.job(&job));
    tokio::time::timeout(Duration::from_secs(10), seen).await.expect("both are seen");
    assert_eq!(store.mood(), Mood::Honest, "the watch broke");
    end.cancel();
    following.await.expect("no panic");
}

/// A view that follows a store.
struct Followed {
    bench: Bench,
    view: Arc<View>,
    _end: DropGuard,
}

impl Followed {
    async fn new() -> Followed {
        let bench = Bench::new();
        let view = View::open(&bench.store).await.expect("a view");
        let end = CancellationToken::new();
        tokio::spawn(view.clone().follow(bench.store.clone(), end.clone()));
        Followed { bench, view, _end: end.drop_guard() }
    }

    /// Waits until all that was written so far is seen.
    async fn caught_up(&self) {
        let revision = self.bench.store.range("/none/").await.expect("a range").revision;
        tokio::time::timeout(Duration::from_secs(10), self.view.reach(revision)).await.expect("it is seen");
    }

    async fn seen<T>(&self, look: impl Fn(&Records) -> T) -> T {
        self.caught_up().await;
        look(&self.view.read())
    }

    async fn active(&self) -> Vec<JobId> {
        self.seen(|records| records.active_jobs().map(|job| job.spec.id.clone()).collect()).await
    }

    async fn owned(&self, host: &HostId) -> Vec<JobId> {
        self.seen(|records| records.owned_by(host).map(|job| job.spec.id.clone()).collect()).await
    }

    async fn end(&self, claim: &Claim) {
        let ended = Phase::Ended(AttemptResult::Cancelled);
        assert_eq!(self.bench.jobs.report(claim, (&ended).into(), 1).await.expect("an answer"), Report::Applied);
    }
}

#[tokio::test]
async fn a_job_is_active_until_it_has_ended_and_owns_nothing() {
    let it = Followed::new().await;
    let job = it.bench.queued().await;
    let other = it.bench.submitted().await;
    let mut both = vec![job.clone(), other.clone()];
    both.sort();
    assert_eq!(it.active().await, both);
    assert_eq!(
        it.seen(|records| records.in_hand().map(|job| job.spec.id.clone()).collect::<Vec<_>>()).await,
        std::slice::from_ref(&other)
    );
    assert!(it.seen(Records::any_queued).await);
    let claim = it.bench.assigned(&job).await;
    it.bench.jobs.cancel(&other, "ada").await.expect("cancelled");
    assert_eq!(it.active().await, vec![job.clone()]);
    assert!(!it.seen(Records::any_queued).await, "one runs, one was cancelled");
    // Its result is there, and its environment too.
    it.bench.jobs.cancel(&job, "ada").await.expect("cancelled");
    let stopping = Phase::Stopping(AttemptResult::Cancelled);
    it.bench.jobs.report(&claim, (&stopping).into(), 1).await.expect("an answer");
    assert!(it.seen(|records| records.job(&job).is_some_and(|job| job.state.phase.is_terminal())).await);
    assert_eq!(it.active().await, vec![job.clone()]);
    it.end(&claim).await;
    assert_eq!(it.active().await, Vec::<JobId>::new());
    let reopened = View::open(&it.bench.store).await.expect("a view");
    assert_eq!((reopened.read().active_jobs().count(), reopened.read().jobs().count()), (0, 2));
}

#[tokio::test]
async fn what_a_host_owns_is_found_by_the_host_and_moves_with_the_owner() {
    let it = Followed::new().await;
    let (first, second) = (it.bench.queued().await, it.bench.queued().await);
    let (a, b) = (it.bench.assigned(&first).await, it.bench.assigned(&second).await);
    assert_eq!((it.owned(&a.host).await, it.owned(&b.host).await), (vec![first.clone()], vec![second.clone()]));
    assert_eq!(it.owned(&HostId::random()).await, Vec::<JobId>::new());
    // Another host owns it from one revision to the next.
    let owner = devfleet_controller::store::records::Owner { host: b.host.clone(), attempt: a.attempt.clone() };
    let then = vec![put(key::owner(&first), &owner).expect("a record")];
    it.bench.store.commit(Transaction { when: Vec::new(), then }).await.expect("written");
    let mut both = vec![first.clone(), second.clone()];
    both.sort();
    assert_eq!((it.owned(&a.host).await, it.owned(&b.host).await), (Vec::new(), both));
    it.end(&b).await;
    assert_eq!(it.owned(&b.host).await, vec![first]);
}

#[tokio::test]
async fn a_session_is_woken_by_what_concerns_its_host_and_by_nothing_else() {
    let it = Followed::new().await;
    let job = it.bench.queued().await;
    let claim = it.bench.assigned(&job).await;
    it.caught_up().await;
    let mut mine = it.view.changed_for(&claim.host);
    let mut woken = async || {
        it.caught_up().await;
        let changed = mine.has_changed().expect("the view is there");
        mine.mark_unchanged();
        changed
    };
    assert!(!woken().await, "nothing happened yet");
    // Others: a job that waits, a host that joins, a job of another host, a heartbeat of this one.
    let second = it.bench.queued().await;
    let other = it.bench.assigned(&second).await;
    it.bench.jobs.report(&other, (&Phase::Running(Step::Agent)).into(), 1).await.expect("an answer");
    joined(&it.bench.store).await;
    let record = Live { controller: "c1".into(), number: 1, incarnation: "i".into(), sequence: 1 };
    let then = vec![put(live::key(&claim.host), &record).expect("a record")];
    it.bench.store.commit(Transaction { when: Vec::new(), then }).await.expect("written");
    assert!(!woken().await, "by what is of no concern");

    it.bench.jobs.cancel(&job, "ada").await.expect("cancelled");
    assert!(woken().await, "its job is to be stopped");
    it.end(&claim).await;
    assert!(woken().await, "its job is gone");
    let then = vec![Change::Delete(key::host(&claim.host))];
    it.bench.store.commit(Transaction { when: Vec::new(), then }).await.expect("deleted");
    assert!(woken().await, "it was removed");
}
