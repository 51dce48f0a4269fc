//! From the reports of hosts over the store and the view to what the scheduler is told: failures that a host causes.

use std::collections::BTreeMap;
use std::time::Duration;

use devfleet_controller::hosts::Hosts;
use devfleet_controller::jobs::Claim;
use devfleet_controller::quarantine::Rules;
use devfleet_controller::reconcile::snapshot::{self, Defaults};
use devfleet_controller::scheduler::HostView;
use devfleet_controller::view::View;
use devfleet_shared::attempt::{AttemptResult, Failure, FailureReason, Phase};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{AttemptId, Fence, HostId};
use tokio_util::sync::CancellationToken;

use crate::jobs::{Bench, START, joined, term};

const DEFAULTS: Defaults = Defaults {
    max_running: 5,
    quarantine: Rules {
        after: 3,
        within: Duration::from_secs(3_600),
        pause: Duration::from_secs(300),
        longest: Duration::from_secs(3_600),
    },
};

/// Gives a job to a host, and has it end so.
async fn ends(bench: &Bench, host: &HostId, reason: FailureReason) {
    let (job, attempt) = (bench.queued().await, AttemptId::random());
    let revision = bench.jobs.assign(&term(), &job, host, attempt.clone()).await.expect("assigned").expect("queued");
    let claim = Claim { host: host.clone(), job, attempt, fence: Fence(revision) };
    let failure = Failure { reason, message: "the engine is gone".into() };
    let ended = Phase::Ended(AttemptResult::Failed(failure));
    bench.jobs.report(&claim, (&ended).into(), 1).await.expect("reported");
}

/// What the scheduler is told of a host at this moment, by a controller that reads everything anew.
async fn told(bench: &Bench, host: &HostId, now: Timestamp) -> HostView {
    let view = View::open(&bench.store).await.expect("a view");
    let snapshot = snapshot::of(&view.read(), &BTreeMap::new(), DEFAULTS, now);
    snapshot.hosts.into_iter().find(|told| told.id == *host).expect("the host")
}

#[tokio::test]
async fn a_host_that_fails_job_after_job_is_quarantined_then_probed_and_resume_ends_it() {
    let bench = Bench::new();
    let (host, other) = (joined(&bench.store).await, joined(&bench.store).await);
    let later = |seconds| START.after(Duration::from_secs(seconds));
    // What the work does wrong is no fault of the host's.
    for _ in 0..4 {
        ends(&bench, &other, FailureReason::Agent).await;
    }
    ends(&bench, &host, FailureReason::Engine).await;
    ends(&bench, &host, FailureReason::DiskFull).await;
    let before = told(&bench, &host, later(1)).await;
    assert_eq!((before.recent_failures, before.quarantined), (2, None));
    ends(&bench, &host, FailureReason::Engine).await;
    let quarantined = told(&bench, &host, later(1)).await.quarantined.expect("quarantined");
    assert!(quarantined.contains("3 attempts failed through its own fault (disk-full, engine)"), "{quarantined}");
    let sound = told(&bench, &other, later(1)).await;
    assert_eq!((sound.recent_failures, sound.quarantined), (0, None));

    let probed = told(&bench, &host, later(301)).await;
    assert_eq!((probed.quarantined, probed.recent_failures), (None, 0), "it gets one job");

    let hosts = Hosts { store: bench.store.clone(), clock: Clock::fixed(START) };
    hosts
        .change(&host, |record, _| record.desired.resumed = START.after(Duration::from_secs(1)))
        .await
        .expect("changed");
    let resumed = told(&bench, &host, later(2)).await;
    assert_eq!((resumed.recent_failures, resumed.quarantined), (0, None), "what was before counts no more");
}

#[tokio::test]
async fn the_view_that_follows_knows_what_one_that_reads_anew_knows() {
    let bench = Bench::new();
    let host = joined(&bench.store).await;
    let view = View::open(&bench.store).await.expect("a view");
    let shutdown = CancellationToken::new();
    let following = tokio::spawn(view.clone().follow(bench.store.clone(), shutdown.clone()));
    for _ in 0..3 {
        ends(&bench, &host, FailureReason::Internal).await;
    }
    let known = view.until(|records| (records.outcomes(&host).count() == 3).then_some(()));
    tokio::time::timeout(Duration::from_secs(60), known).await.expect("it follows");
    let read = View::open(&bench.store).await.expect("a view");
    assert!(view.read().outcomes(&host).eq(read.read().outcomes(&host)));
    shutdown.cancel();
    following.await.expect("it ends");
}
