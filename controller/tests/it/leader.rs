//! Who leads: one at a time, for as long as it can prove it, and nobody writes after its term.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_controller::jobs::{JobError, Jobs, Setback};
use devfleet_controller::leader::{LeadOnly, Leader, Term, Timers};
use devfleet_controller::store::embedded::Embedded;
use devfleet_controller::store::records::leadership::leader_key;
use devfleet_controller::store::records::{JobSpec, JobState, key, put};
use devfleet_controller::store::{Commit, LeaseId, SharedStore, Transaction};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{AttemptId, ControllerId, JobId};
use devfleet_shared::job::{JobEvent, JobPhase};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::looking;
use crate::support::stores::{Mood, Moody};

const PATIENCE: Duration = Duration::from_secs(20);
const TIMERS: Timers = Timers {
    lease: Duration::from_millis(2_000),
    renew: Duration::from_millis(200),
    margin: Duration::from_millis(800),
    grace: Duration::from_millis(500),
};

/// What the candidates' work says of itself: its controller, its term, and whether the term begins.
type Said = (ControllerId, u64, bool);

struct Work {
    controller: ControllerId,
    said: mpsc::UnboundedSender<Said>,
    breaks: bool,
}

/// Says that the term is over when the work is dropped, in whatever way.
struct Under<'a>(&'a Work, u64);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        drop(self.0.said.send((self.0.controller.clone(), self.1, false)));
    }
}

#[async_trait]
impl LeadOnly for Work {
    async fn run(&self, term: Term, shutdown: CancellationToken) {
        drop(self.said.send((self.controller.clone(), term.number, true)));
        let _under = Under(self, term.number);
        if self.breaks && term.number == 1 {
            panic!("the work has a defect");
        }
        shutdown.cancelled().await;
    }
}

struct Candidate {
    id: ControllerId,
    store: Arc<Moody>,
    term: watch::Receiver<Option<Term>>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

/// Candidates over one store.
struct Fleet {
    _dir: TempDir,
    store: SharedStore,
    clock: Clock,
    say: mpsc::UnboundedSender<Said>,
    said: mpsc::UnboundedReceiver<Said>,
}

impl Fleet {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let clock = Clock::system();
        let store = Embedded::open(&dir.path().join("store.redb"), clock.clone()).expect("store");
        let (say, said) = mpsc::unbounded_channel();
        Self { _dir: dir, store, clock, say, said }
    }

    fn candidate(&self, id: ControllerId, breaks: bool) -> Candidate {
        let store = Moody::over(self.store.clone());
        let sender = watch::Sender::new(None);
        let term = sender.subscribe();
        let leader = Leader {
            store: store.clone(),
            clock: self.clock.clone(),
            controller: id.clone(),
            address: String::new(),
            timers: TIMERS,
            term: sender,
        };
        let work: Arc<dyn LeadOnly> = Arc::new(Work { controller: id.clone(), said: self.say.clone(), breaks });
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(leader.run(vec![work], shutdown.clone()));
        Candidate { id, store, term, shutdown, running }
    }

    async fn next(&mut self) -> Said {
        tokio::time::timeout(PATIENCE, self.said.recv()).await.expect("in time").expect("candidates are there")
    }

    /// Puts a queued job into the store.
    async fn queued(&self) -> JobId {
        let id = JobId::random();
        let mut state = JobState::submitted(Timestamp(1));
        state.phase = JobPhase::Queued;
        let spec = JobSpec {
            id: id.clone(),
            project: "acme".parse().expect("a name"),
            title: "t".into(),
            task: "t".into(),
            plan: String::new(),
            agent: "shell".parse().expect("a name"),
            base: None,
            hold: Duration::ZERO,
            issue: None,
            submitted_by: "ada".into(),
            submitted: Timestamp(1),
            priority: 0,
        };
        let then = vec![put(key::spec(&id), &spec).expect("put"), put(key::state(&id), &state).expect("put")];
        let outcome = self.store.commit(Transaction { when: Vec::new(), then }).await.expect("commit");
        assert!(matches!(outcome, Commit::Done(_)));
        id
    }
}

impl Candidate {
    fn new(fleet: &Fleet) -> Self {
        fleet.candidate(ControllerId::random(), false)
    }

    async fn leads(&mut self) -> Term {
        let led = tokio::time::timeout(PATIENCE, self.term.wait_for(Option::is_some)).await.expect("in time");
        led.expect("it runs").clone().expect("a term")
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("in time").expect("no panic");
    }
}

#[tokio::test]
async fn one_leads_and_when_it_resigns_the_other_follows_at_once() {
    let mut fleet = Fleet::new();
    let mut first = Candidate::new(&fleet);
    let term = first.leads().await;
    assert_eq!((term.number, fleet.next().await), (1, (first.id.clone(), 1, true)));
    let mut second = Candidate::new(&fleet);
    // For longer than a lease: a leader that renews is not followed.
    let (begun, lease) = (tokio::time::Instant::now(), TIMERS.lease + TIMERS.renew);
    let renewed = first.store.kept();
    let renews = async || (begun.elapsed() > lease && first.store.kept() > renewed).then_some(());
    looking::until(PATIENCE, "a renewal after the lease", renews).await;
    assert_eq!(*second.term.borrow(), None);
    let before = tokio::time::Instant::now();
    let id = first.id.clone();
    first.stop().await;
    assert_eq!(fleet.next().await, (id, 1, false));
    assert_eq!(fleet.next().await, (second.id.clone(), 2, true));
    assert!(before.elapsed() < TIMERS.lease, "it did not wait for the lease: {:?}", before.elapsed());
    assert!(second.leads().await.revision > term.revision);
    second.stop().await;
}

#[tokio::test]
async fn a_leader_that_is_cut_off_stops_before_another_begins() {
    let mut fleet = Fleet::new();
    let mut first = Candidate::new(&fleet);
    first.leads().await;
    let mut second = Candidate::new(&fleet);
    assert_eq!(fleet.next().await, (first.id.clone(), 1, true));
    first.store.set(Mood::Silent);
    assert_eq!(fleet.next().await, (first.id.clone(), 1, false), "the old one ends first");
    assert_eq!(fleet.next().await, (second.id.clone(), 2, true));
    second.leads().await;
    first.store.set(Mood::Honest);
    second.stop().await;
    assert!(!fleet.next().await.2);
    assert_eq!(fleet.next().await, (first.id.clone(), 3, true), "it stands again once it is back");
    first.stop().await;
}

#[tokio::test]
async fn of_two_who_believe_they_lead_only_the_younger_writes() {
    let fleet = Fleet::new();
    let mut old = Candidate::new(&fleet);
    let stale = old.leads().await;
    let entry = fleet.store.get(&leader_key()).await.expect("get").expect("held");
    // The lease is revoked behind its back, while all that it reads says that it leads.
    old.store.set(Mood::Lying(vec![entry.clone()]));
    let LeaseId(lease) = entry.lease.expect("on a lease");
    fleet.store.revoke_lease(LeaseId(lease)).await.expect("revoked");
    let mut young = Candidate::new(&fleet);
    let term = young.leads().await;
    assert_eq!(old.term.borrow().as_ref(), Some(&stale), "it still believes");

    let (job, host) = (fleet.queued().await, crate::jobs::joined(&fleet.store).await);
    let by_the_old = Jobs::new(old.store.clone(), fleet.clock.clone());
    let refused = by_the_old.assign(&stale, &job, &host, AttemptId::random()).await;
    assert!(matches!(refused, Ok(None)), "{refused:?}");
    let setback = Setback { in_phase: &JobPhase::Queued, trouble: "stale", pause: Duration::ZERO };
    let refused = by_the_old.try_later(&stale, &job, setback).await;
    assert!(matches!(refused, Err(JobError::TermOver(_))), "{refused:?}");
    let refused = by_the_old.event(&stale, &job, JobEvent::Assigned, |_| ()).await;
    assert!(matches!(refused, Err(JobError::TermOver(_))), "{refused:?}");
    assert_eq!(fleet.store.get(&key::owner(&job)).await.expect("get"), None);

    let by_the_young = Jobs::new(fleet.store.clone(), fleet.clock.clone());
    let done = by_the_young.assign(&term, &job, &host, AttemptId::random()).await;
    assert!(matches!(done, Ok(Some(_))), "{done:?}");
    old.store.set(Mood::Honest);
    old.stop().await;
    young.stop().await;
}

#[tokio::test]
async fn a_leader_whose_key_is_another_s_stops_at_the_next_look() {
    let mut fleet = Fleet::new();
    let mut leader = Candidate::new(&fleet);
    leader.leads().await;
    assert!(fleet.next().await.2);
    let then = vec![put(leader_key(), &"another").expect("put")];
    fleet.store.commit(Transaction { when: Vec::new(), then }).await.expect("commit");
    assert_eq!(fleet.next().await, (leader.id.clone(), 1, false));
    leader.running.abort();
}

#[tokio::test]
async fn a_controller_that_was_killed_takes_over_from_itself_without_waiting() {
    let mut fleet = Fleet::new();
    let mut before = Candidate::new(&fleet);
    before.leads().await;
    assert!(fleet.next().await.2);
    before.running.abort();
    assert!(!fleet.next().await.2, "killed");
    let began = tokio::time::Instant::now();
    let mut after = fleet.candidate(before.id.clone(), false);
    assert_eq!(after.leads().await.number, 2);
    assert!(began.elapsed() < TIMERS.lease - TIMERS.margin, "{:?}", began.elapsed());
    after.stop().await;
}

#[tokio::test]
async fn work_that_breaks_off_ends_the_term_and_another_begins() {
    let mut fleet = Fleet::new();
    let mut leader = fleet.candidate(ControllerId::random(), true);
    assert_eq!(fleet.next().await, (leader.id.clone(), 1, true));
    assert_eq!(fleet.next().await, (leader.id.clone(), 1, false));
    assert_eq!(fleet.next().await, (leader.id.clone(), 2, true));
    leader.leads().await;
    leader.stop().await;
}
