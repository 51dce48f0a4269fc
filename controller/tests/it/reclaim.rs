//! Jobs of a host that is silent go to others: not before the time of grace, not while it is heard, and only once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_controller::files::Files;
use devfleet_controller::jobs::{Claim, Jobs, Observed, Report};
use devfleet_controller::logs::JobLogs;
use devfleet_controller::reclaim::{Reclaim, Seen};
use devfleet_controller::store::records::live::{self, Live};
use devfleet_controller::store::records::{key, put};
use devfleet_controller::store::{Commit, Entry, SharedStore, StoreError, Transaction};
use devfleet_controller::view::View;
use devfleet_shared::attempt::{AttemptResult, Phase, Step};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{AttemptId, HostId};
use devfleet_shared::job::JobPhase;
use tokio_util::sync::CancellationToken;

use crate::jobs::{Bench, joined, publication, term};
use crate::support::between::{Between, Meddling};

const GRACE: Duration = Duration::from_secs(20);

struct Ground {
    bench: Bench,
    reclaim: Reclaim,
    clock: Clock,
    seen: Seen,
    shutdown: CancellationToken,
    following: tokio::task::JoinHandle<()>,
    _logs: tempfile::TempDir,
}

impl Ground {
    async fn new() -> Ground {
        let bench = Bench::new();
        let (clock, logs) = (Clock::fixed(Timestamp(1_000_000)), tempfile::tempdir().expect("dir"));
        let view: Arc<View> = View::open(&bench.store).await.expect("view");
        let shutdown = CancellationToken::new();
        let following = tokio::spawn(view.clone().follow(bench.store.clone(), shutdown.clone()));
        let reclaim = Reclaim {
            view,
            jobs: bench.jobs.clone(),
            logs: JobLogs::new(Files::in_directory(logs.path()).expect("a directory")),
            clock: clock.clone(),
            grace: GRACE,
        };
        Ground { bench, reclaim, clock, seen: Seen::default(), shutdown, following, _logs: logs }
    }

    fn jobs(&self) -> &Arc<Jobs> {
        &self.bench.jobs
    }

    /// A job that runs on a host, as the view sees it.
    async fn running(&self) -> Claim {
        let job = self.bench.queued().await;
        let claim = self.bench.assigned(&job).await;
        self.reclaim.view.reach(claim.fence.0).await;
        claim
    }

    /// Writes down that a host has a session.
    async fn live(&self, host: &HostId) {
        let record = Live { controller: "c".into(), number: 1, incarnation: "i".into(), sequence: 0 };
        let then = vec![put(live::key(host), &record).expect("put")];
        let Ok(Commit::Done(revision)) = self.bench.store.commit(Transaction { when: vec![], then }).await else {
            panic!("not written")
        };
        self.reclaim.view.reach(revision).await;
    }

    async fn tick(&mut self) -> usize {
        self.reclaim.tick(&term(), &mut self.seen).await
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.following.await.expect("the view ends");
    }
}

#[tokio::test]
async fn a_silent_host_keeps_its_job_for_the_time_of_grace_and_then_it_is_queued_again() {
    let mut ground = Ground::new().await;
    let claim = ground.running().await;
    assert_eq!(ground.tick().await, 0);
    ground.clock.advance(GRACE - Duration::from_secs(1));
    assert_eq!(ground.tick().await, 0, "before the time of grace is over");
    ground.clock.advance(Duration::from_secs(1));
    assert_eq!(ground.tick().await, 1);
    let job = ground.reclaim.view.read().job(&claim.job).expect("the job");
    assert_eq!((job.state.phase.clone(), job.owner), (JobPhase::Queued, None));
    assert_eq!(job.state.attempts[0].result(), Some(&AttemptResult::Lost));
    assert_eq!(ground.tick().await, 0, "it is taken once");
    ground.end().await;
}

#[tokio::test]
async fn the_host_that_comes_back_too_late_is_told_so_and_changes_nothing() {
    let mut ground = Ground::new().await;
    let claim = ground.running().await;
    ground.tick().await;
    ground.clock.advance(GRACE);
    assert_eq!(ground.tick().await, 1);
    let newer = ground.bench.assigned(&claim.job).await;
    assert!(newer.fence > claim.fence, "the fence moves");
    let late = Phase::Stopping(AttemptResult::Succeeded { commit: "c0ffee".into(), verified: true });
    assert_eq!(ground.jobs().report(&claim, (&late).into(), 2).await.expect("taken"), Report::Superseded);
    let running = Phase::Running(Step::Agent);
    assert_eq!(ground.jobs().report(&newer, (&running).into(), 2).await.expect("taken"), Report::Applied);
    ground.end().await;
}

#[tokio::test]
async fn a_host_that_is_heard_again_keeps_its_job_and_its_silence_is_forgotten() {
    let mut ground = Ground::new().await;
    let claim = ground.running().await;
    ground.tick().await;
    ground.clock.advance(GRACE);
    ground.live(&claim.host).await;
    assert_eq!(ground.tick().await, 0);
    assert_eq!(ground.jobs().reclaim(&term(), &claim, 2).await.expect("asked"), None, "the transaction refuses too");
    ground.end().await;
}

#[tokio::test]
async fn when_most_hosts_are_silent_at_once_no_job_is_taken() {
    let mut ground = Ground::new().await;
    for _ in 0..3 {
        ground.running().await;
    }
    ground.tick().await;
    ground.clock.advance(GRACE * 2);
    assert_eq!(ground.tick().await, 0);
    ground.live(&HostId::random()).await;
    ground.live(&HostId::random()).await;
    ground.live(&HostId::random()).await;
    assert_eq!(ground.tick().await, 0, "whoever is not back yet has the time of grace for it");
    ground.clock.advance(GRACE);
    assert_eq!(ground.tick().await, 3, "three of six may be dead");
    ground.end().await;
}

/// What happens the moment after an owner was read.
struct Meanwhile {
    term: devfleet_controller::leader::Term,
    jobs: Arc<Jobs>,
    claim: Claim,
    /// To whom the job goes meanwhile; taken once.
    next: std::sync::Mutex<Option<HostId>>,
}

#[async_trait]
impl Meddling for Meanwhile {
    async fn get(&self, inner: &SharedStore, key: &str) -> Result<Option<Entry>, StoreError> {
        let read = inner.get(key).await;
        let next = if key == key::owner(&self.claim.job) { self.next.lock().expect("no panic").take() } else { None };
        if let Some(host) = next {
            let taken = self.jobs.reclaim(&self.term, &self.claim, 3).await.expect("asked");
            assert!(taken.is_some(), "it is taken meanwhile");
            let given = self.jobs.assign(&self.term, &self.claim.job, &host, AttemptId::random()).await.expect("asked");
            assert!(given.is_some(), "and given to another one");
        }
        read
    }
}

/// Jobs whose owner changes right after it was read first.
async fn raced(bench: &Bench) -> (Arc<Jobs>, Claim) {
    let job = bench.queued().await;
    let claim = bench.assigned(&job).await;
    let next = joined(&bench.store).await;
    let (jobs, next) = (bench.jobs.clone(), std::sync::Mutex::new(Some(next)));
    let meanwhile = Meanwhile { term: term(), jobs, claim: claim.clone(), next };
    let store = Between::new(bench.store.clone(), meanwhile);
    (Jobs::new(Arc::new(store), Clock::fixed(Timestamp(1_000_000))), claim)
}

#[tokio::test]
async fn a_report_whose_owner_changes_while_it_is_taken_is_superseded_and_takes_nothing() {
    let bench = Bench::new();
    let (jobs, claim) = raced(&bench).await;
    let over = Phase::Ended(AttemptResult::Cancelled);
    let report = jobs.report(&claim, Observed::from(&over), 3).await.expect("a report");
    assert_eq!(report, Report::Superseded);
    let owner = bench.store.get(&key::owner(&claim.job)).await.expect("read");
    assert!(owner.is_some_and(|entry| entry.modified > claim.fence.0), "the next owner stays");
}

#[tokio::test]
async fn leave_to_push_is_not_given_when_the_owner_changes_while_it_is_asked_for() {
    let bench = Bench::new();
    let (jobs, claim) = raced(&bench).await;
    let refused = jobs.authorize_publish(&claim, &publication(&claim)).await.expect("asked");
    assert!(refused.is_err(), "another attempt owns the job");
    assert_eq!(jobs.publish_record(&claim.job).await.expect("read"), None, "nothing is written down");
}
