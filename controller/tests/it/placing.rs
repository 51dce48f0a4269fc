//! Placing many jobs at once: together where all is as it was seen, each alone where something moved.

use devfleet_controller::hosts::Hosts;
use devfleet_controller::jobs::{Claim, Placement};
use devfleet_controller::leader::Term;
use devfleet_controller::store::records::hosts::Wish;
use devfleet_controller::store::records::{HostRecord, Owner, key, put};
use devfleet_controller::store::{Revision, Transaction};
use devfleet_controller::view::View;
use devfleet_shared::clock::Clock;
use devfleet_shared::id::{AttemptId, Fence, HostId, JobId};

use crate::jobs::{Bench, START, joined, term};

/// Jobs that wait, and the hosts that they are to go to in turn.
struct Lot {
    bench: Bench,
    jobs: Vec<JobId>,
    hosts: Vec<HostId>,
}

impl Lot {
    async fn new(jobs: usize, hosts: usize) -> Lot {
        let bench = Bench::new();
        let mut lot = Lot { bench, jobs: Vec::new(), hosts: Vec::new() };
        for _ in 0..jobs {
            lot.jobs.push(lot.bench.queued().await);
        }
        for _ in 0..hosts {
            lot.hosts.push(joined(&lot.bench.store).await);
        }
        lot
    }

    /// Looks at jobs and hosts as they are now.
    async fn seen(&self) -> Vec<Placement> {
        let view = View::open(&self.bench.store).await.expect("a view");
        let records = view.read();
        let placement = |(job, host): (&JobId, &HostId)| {
            let (host, host_revision) = records.host(host).expect("it joined");
            let job = records.job(job).expect("it is known");
            Placement { job, host, host_revision, attempt: AttemptId::random() }
        };
        self.jobs.iter().zip(self.hosts.iter().cycle()).map(placement).collect()
    }

    async fn owns(&self, placement: &Placement, revision: Revision) -> bool {
        let Placement { job, host, attempt, .. } = placement;
        let claim =
            Claim { host: host.id.clone(), job: job.spec.id.clone(), attempt: attempt.clone(), fence: Fence(revision) };
        self.bench.jobs.owned(&claim).await.expect("an answer").is_some()
    }

    async fn revision(&self) -> Revision {
        self.bench.store.range("/none/").await.expect("a range").revision
    }
}

#[tokio::test]
async fn many_jobs_are_placed_in_a_few_transactions_each_owned_by_its_attempt() {
    // Each on a host of its own: as many conditions as there can be.
    let lot = Lot::new(100, 100).await;
    let (placements, before) = (lot.seen().await, lot.revision().await);
    let placed = lot.bench.jobs.place(&term(), &placements).await;
    assert_eq!(lot.revision().await, before + 3, "42, 42 and 16");
    for (placement, revision) in placements.iter().zip(&placed) {
        assert!(lot.owns(placement, revision.expect("it was placed")).await);
    }
    let again = lot.bench.jobs.place(&term(), &placements).await;
    assert_eq!((again.len(), again.iter().flatten().count()), (100, 0), "nobody is placed twice");
}

#[tokio::test]
async fn a_job_that_moved_since_it_was_seen_is_left_out_and_the_others_are_placed() {
    let lot = Lot::new(3, 2).await;
    let placements = lot.seen().await;
    lot.bench.jobs.cancel(&lot.jobs[1], "ada").await.expect("cancelled");
    let placed = lot.bench.jobs.place(&term(), &placements).await;
    assert_eq!(placed.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
    for at in [0, 2] {
        assert!(lot.owns(&placements[at], placed[at].expect("it was placed")).await);
    }
}

#[tokio::test]
async fn a_job_that_another_took_since_it_was_seen_stays_its_own() {
    let lot = Lot::new(3, 2).await;
    let placements = lot.seen().await;
    let other = lot.bench.assigned(&lot.jobs[0]).await;
    let placed = lot.bench.jobs.place(&term(), &placements).await;
    assert_eq!(placed.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, true]);
    assert!(lot.bench.jobs.owned(&other).await.expect("an answer").is_some());
}

#[tokio::test]
async fn an_owner_that_nobody_saw_lets_no_job_be_placed_on_what_was_seen() {
    let lot = Lot::new(2, 1).await;
    let placements = lot.seen().await;
    let stray = Owner { host: lot.hosts[0].clone(), attempt: AttemptId::random() };
    let then = vec![put(key::owner(&lot.jobs[0]), &stray).expect("a record")];
    lot.bench.store.commit(Transaction { when: Vec::new(), then }).await.expect("written");
    let placed = lot.bench.jobs.place(&term(), &placements).await;
    let [Some(first), Some(second)] = placed[..] else { panic!("{placed:?}") };
    assert_ne!(first, second, "each alone, on what the store says now");
    assert!(lot.owns(&placements[0], first).await && lot.owns(&placements[1], second).await);
}

#[tokio::test]
async fn a_host_that_was_closed_since_it_was_seen_gets_nothing_and_the_others_do() {
    let lot = Lot::new(4, 2).await;
    let placements = lot.seen().await;
    let hosts = Hosts { store: lot.bench.store.clone(), clock: Clock::fixed(START) };
    let close = |record: &mut HostRecord, _| record.desired.wish = Wish::Cordoned;
    hosts.change(&lot.hosts[0], close).await.expect("closed");
    let placed = lot.bench.jobs.place(&term(), &placements).await;
    assert_eq!(placed.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false, true]);
    let seen_closed = lot.bench.jobs.place(&term(), &lot.seen().await).await;
    assert_eq!(seen_closed, vec![None; 4], "nor when that is seen");
}

#[tokio::test]
async fn after_its_term_a_leader_places_nothing() {
    let lot = Lot::new(3, 1).await;
    let over = Term { key: key::host(&lot.hosts[0]), revision: 1, number: 1 };
    let before = lot.revision().await;
    assert_eq!(lot.bench.jobs.place(&over, &lot.seen().await).await, vec![None; 3]);
    assert_eq!(lot.revision().await, before);
}
