//! Jobs of a host that is silent go to others: not before the time of grace, not while it is heard, and only once.

use std::sync::Arc;
use std::time::Duration;

use devfleet_controller::files::Files;
use devfleet_controller::jobs::{Claim, Jobs, Report};
use devfleet_controller::logs::JobLogs;
use devfleet_controller::reclaim::{Reclaim, Seen};
use devfleet_controller::store::records::live::{self, Live};
use devfleet_controller::store::records::put;
use devfleet_controller::store::{Commit, Transaction};
use devfleet_controller::view::View;
use devfleet_shared::attempt::{AttemptResult, Phase, Step};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::HostId;
use devfleet_shared::job::JobPhase;
use tokio_util::sync::CancellationToken;

use crate::jobs::{Bench, term};

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
    assert_eq!(ground.tick().await, 3, "three of six may be dead");
    ground.end().await;
}
