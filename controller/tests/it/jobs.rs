//! What changes jobs, over the real embedded store: one owner at a time, and nothing that an older owner says counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use devfleet_controller::forge::Base;
use devfleet_controller::hosts::{HostError, Hosts, Removal};
use devfleet_controller::jobs::{Anew, Claim, JobError, Jobs, Observed, Report, Setback};
use devfleet_controller::leader::Term;
use devfleet_controller::store::embedded::Embedded;
use devfleet_controller::store::records::hosts::{AfterDrain, Desired, Wish};
use devfleet_controller::store::records::{
    HostRecord, JobSpec, JobState, Proposal, PublishRecord, Verification, decode, key, put,
};
use devfleet_controller::store::{Change, SharedStore, Transaction};
use devfleet_shared::assignment::{AgentKind, AgentSpec, Limits};
use devfleet_shared::attempt::{AttemptResult, Failure, FailureReason, Phase, Step};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::environment::{EnvironmentSpec, Recipe};
use devfleet_shared::id::{AttemptId, Digest, Fence, HostId, JobId};
use devfleet_shared::job::{JobEvent, JobPhase, Outcome};

pub(crate) const START: Timestamp = Timestamp(1_800_000_000_000);

/// Jobs over a store of their own.
pub(crate) struct Bench {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) store: SharedStore,
    _directory: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("dir");
        let clock = Clock::fixed(START);
        let store: SharedStore = Embedded::open(&directory.path().join("store"), clock.clone()).expect("store");
        Self { jobs: Jobs::new(store.clone(), clock), store, _directory: directory }
    }

    pub(crate) async fn submitted(&self) -> JobId {
        let spec = spec();
        let key = Digest::of(spec.id.as_str().as_bytes());
        let (id, new) = self.jobs.submit(&spec, &key, &key).await.expect("submitted");
        assert!(new);
        id
    }

    /// A job that waits for a host.
    pub(crate) async fn queued(&self) -> JobId {
        let id = self.submitted().await;
        self.jobs.event(&term(), &id, JobEvent::TriagePassed, |_| {}).await.expect("planning");
        self.jobs.propose(&term(), &id, &proposal(), Some("automatic")).await.expect("queued");
        id
    }

    /// Gives a job to a host, and returns what that host claims from then on.
    pub(crate) async fn assigned(&self, job: &JobId) -> Claim {
        let (host, attempt) = (self.host().await, AttemptId::random());
        let revision =
            self.jobs.assign(&term(), job, &host, attempt.clone()).await.expect("assigned").expect("it was queued");
        Claim { host, job: job.clone(), attempt, fence: Fence(revision) }
    }

    async fn host(&self) -> HostId {
        joined(&self.store).await
    }

    async fn phase(&self, job: &JobId) -> JobPhase {
        let entry = self.store.get(&key::state(job)).await.expect("read").expect("a state");
        let state: serde_json::Value = serde_json::from_slice(&entry.value).expect("JSON");
        serde_json::from_value(state["phase"].clone()).expect("a phase")
    }
}

/// A host that joined.
pub(crate) async fn joined(store: &SharedStore) -> HostId {
    let id = HostId::random();
    let record = HostRecord {
        id: id.clone(),
        name: "box".into(),
        joined: START,
        certificate_ends: START,
        labels: BTreeMap::new(),
        desired: Default::default(),
    };
    let then = vec![put(key::host(&id), &record).expect("a record")];
    store.commit(Transaction { when: Vec::new(), then }).await.expect("written");
    id
}

/// A term of its own: nobody else leads.
pub(crate) fn term() -> Term {
    Term { key: "/devfleet/v1/leader".into(), revision: 0, number: 1 }
}

fn spec() -> JobSpec {
    JobSpec {
        id: JobId::random(),
        project: "app".parse().expect("a name"),
        title: "mend it".into(),
        task: "mend it".into(),
        plan: String::new(),
        agent: "fix".parse().expect("a name"),
        base: None,
        hold: Duration::ZERO,
        issue: None,
        submitted_by: "ada".into(),
        submitted: START,
        priority: 0,
    }
}

fn proposal() -> Proposal {
    let agent = AgentSpec {
        name: "fix".parse().expect("a name"),
        kind: AgentKind::Script,
        command: "true".into(),
        variables: BTreeMap::new(),
        secrets: Vec::new(),
    };
    let recipe = Recipe {
        dockerfile: "FROM scratch\n".into(),
        files: Vec::new(),
        platform: String::new(),
        digest: Digest::of(b"recipe"),
    };
    Proposal {
        digest: Digest::of(b"proposal"),
        task: "mend it".into(),
        plan: String::new(),
        environment: EnvironmentSpec::default(),
        recipe,
        base: Base { branch: "main".into(), commit: "0".repeat(40) },
        repository: "https://git.example.com/app.git".into(),
        agent,
        limits: Limits::default(),
        ci_job: "test".into(),
        report: Vec::new(),
        alternatives: Vec::new(),
        dropped: Vec::new(),
        notes: Vec::new(),
        confidence: 1.0,
        declared: Default::default(),
        ci_variables: BTreeMap::new(),
        source: None,
    }
}

pub(crate) fn publication(claim: &Claim) -> PublishRecord {
    PublishRecord {
        attempt: claim.attempt.clone(),
        branch: "devfleet/x".into(),
        commit: "c0ffee".into(),
        push: true,
        verification: Verification::default(),
    }
}

fn succeeded() -> Phase {
    Phase::Stopping(AttemptResult::Succeeded { commit: "c0ffee".into(), verified: true })
}

/// Claims that are each wrong in one point.
fn forged(claim: &Claim) -> Vec<Claim> {
    vec![
        Claim { fence: Fence(claim.fence.0 - 1), ..claim.clone() },
        Claim { fence: Fence(claim.fence.0 + 1), ..claim.clone() },
        Claim { host: HostId::random(), ..claim.clone() },
        Claim { attempt: AttemptId::random(), ..claim.clone() },
    ]
}

#[tokio::test]
async fn only_the_owner_under_its_fence_moves_a_job() {
    let bench = Bench::new();
    let job = bench.queued().await;
    let claim = bench.assigned(&job).await;
    for wrong in forged(&claim) {
        let said = bench.jobs.report(&wrong, (&succeeded()).into(), 1).await.expect("an answer");
        assert_eq!(said, Report::Superseded, "{wrong:?}");
        let leave = bench.jobs.authorize_publish(&wrong, &publication(&wrong)).await.expect("an answer");
        assert!(leave.expect_err("refused").contains("another attempt"), "{wrong:?}");
        assert!(bench.jobs.owned(&wrong).await.expect("an answer").is_none());
    }
    assert_eq!(bench.phase(&job).await, JobPhase::Running);
    assert!(bench.jobs.publish_record(&job).await.expect("an answer").is_none());
    assert_eq!(bench.jobs.authorize_publish(&claim, &publication(&claim)).await.expect("an answer"), Ok(()));
    assert_eq!(bench.jobs.report(&claim, (&succeeded()).into(), 1).await.expect("an answer"), Report::Applied);
    assert_eq!(bench.phase(&job).await, JobPhase::Publishing);
}

#[tokio::test]
async fn what_an_earlier_attempt_says_after_the_next_has_begun_changes_nothing() {
    let bench = Bench::new();
    let job = bench.queued().await;
    let first = bench.assigned(&job).await;
    let failure = Failure { reason: FailureReason::Engine, message: "the engine is gone".into() };
    let ended = Phase::Ended(AttemptResult::Failed(failure));
    assert_eq!(bench.jobs.report(&first, (&ended).into(), 3).await.expect("an answer"), Report::Applied);
    assert_eq!(bench.phase(&job).await, JobPhase::Queued);
    let second = bench.assigned(&job).await;
    assert!(second.fence > first.fence, "a fence only grows");
    let late = bench.jobs.report(&first, (&succeeded()).into(), 3).await.expect("an answer");
    assert_eq!(late, Report::Superseded);
    let leave = bench.jobs.authorize_publish(&first, &publication(&first)).await.expect("an answer");
    assert!(leave.is_err());
    let running = bench.jobs.report(&second, (&Phase::Running(Step::Agent)).into(), 3).await.expect("an answer");
    assert_eq!((running, bench.phase(&job).await), (Report::Applied, JobPhase::Running));
}

#[tokio::test]
async fn of_many_who_assign_one_job_at_once_one_does() {
    let bench = Bench::new();
    let job = bench.queued().await;
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (jobs, job, host) = (bench.jobs.clone(), job.clone(), bench.host().await);
        racers.spawn(async move { jobs.assign(&term(), &job, &host, AttemptId::random()).await.expect("an answer") });
    }
    assert_eq!(racers.join_all().await.into_iter().flatten().count(), 1);
}

#[tokio::test]
async fn a_cancelled_job_gets_no_leave_to_publish_and_ends_cancelled() {
    let bench = Bench::new();
    let job = bench.queued().await;
    let claim = bench.assigned(&job).await;
    bench.jobs.cancel(&job, "ada").await.expect("cancelled");
    let leave = bench.jobs.authorize_publish(&claim, &publication(&claim)).await.expect("an answer");
    assert!(leave.expect_err("refused").contains("cancelled by ada"));
    bench.jobs.report(&claim, (&succeeded()).into(), 1).await.expect("an answer");
    assert_eq!(bench.phase(&job).await, JobPhase::Ended(Outcome::Cancelled));
}

#[tokio::test]
async fn whoever_leads_no_more_changes_nothing_whatever_is_tried() {
    let bench = Bench::new();
    let past = Term { revision: 9, ..term() };
    let (fresh, waits, runs) = (bench.submitted().await, bench.queued().await, bench.queued().await);
    let planned = bench.submitted().await;
    bench.jobs.event(&term(), &planned, JobEvent::TriagePassed, |_| {}).await.expect("planning");
    let (claim, host) = (bench.assigned(&runs).await, bench.host().await);
    let (approved, other) = (bench.jobs.proposal(&waits).await.expect("read").expect("there is one"), proposal());
    let anew = Anew { former: &approved, proposal: &other, auto: None };
    let later = Setback { in_phase: &JobPhase::Queued, trouble: "later", pause: Duration::from_secs(1) };
    let jobs = &bench.jobs;
    let everything = async || bench.store.range("/devfleet/").await.expect("a range").entries;
    let before = everything().await;
    let what = "refused, or left for another look";
    assert!(jobs.event(&past, &fresh, JobEvent::TriagePassed, |_| {}).await.is_err(), "{what}");
    assert!(jobs.propose(&past, &planned, &other, None).await.is_err(), "{what}");
    assert!(jobs.propose_anew(&past, &waits, anew).await.is_err(), "{what}");
    assert!(jobs.try_later(&past, &waits, later).await.is_err(), "{what}");
    assert_eq!(jobs.assign(&past, &waits, &host, AttemptId::random()).await.expect("an answer"), None);
    assert_eq!(jobs.recall(&past, &claim, "draining").await.expect("an answer"), None);
    assert_eq!(jobs.reclaim(&past, &claim, 2).await.expect("an answer"), None);
    assert_eq!(everything().await, before);

    // Whoever leads can do all of that.
    assert!(jobs.recall(&term(), &claim, "draining").await.expect("an answer").is_some());
    assert!(jobs.reclaim(&term(), &claim, 2).await.expect("an answer").is_some());
    assert!(jobs.assign(&term(), &waits, &host, AttemptId::random()).await.expect("an answer").is_some());
}

#[tokio::test]
async fn tokens_are_written_down_with_the_phase_and_never_by_themselves() {
    let bench = Bench::new();
    let job = bench.queued().await;
    let claim = bench.assigned(&job).await;
    let told = async |phase: &Phase, tokens| {
        let observed = Observed { tokens, ..Observed::from(phase) };
        bench.jobs.report(&claim, observed, 1).await.expect("an answer");
        let entry = bench.store.get(&key::state(&job)).await.expect("get").expect("there");
        let state: JobState = decode(&entry.key, &entry.value).expect("a state");
        (state.attempts[0].tokens, entry.modified)
    };
    let (tokens, written) = told(&Phase::Running(Step::Agent), 0).await;
    assert_eq!(tokens, 0);
    assert_eq!(told(&Phase::Running(Step::Agent), 40_000).await, (0, written), "the store is not asked");
    assert_eq!(told(&Phase::Running(Step::Verify), 50_000).await.0, 50_000);
    assert_eq!(told(&succeeded(), 0).await.0, 50_000, "a daemon that forgot takes nothing back");
}

#[tokio::test]
async fn an_owner_that_is_gone_owns_nothing() {
    let bench = Bench::new();
    let job = bench.queued().await;
    let claim = bench.assigned(&job).await;
    let then = vec![Change::Delete(key::owner(&job))];
    bench.store.commit(Transaction { when: Vec::new(), then }).await.expect("deleted");
    assert_eq!(bench.jobs.report(&claim, (&succeeded()).into(), 1).await.expect("an answer"), Report::Superseded);
    assert_eq!(bench.phase(&job).await, JobPhase::Running);
}

#[tokio::test]
async fn one_idempotency_key_makes_one_job_whoever_races() {
    let bench = Bench::new();
    let (key, content) = (Digest::of(b"key"), Digest::of(b"content"));
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (jobs, key, content) = (bench.jobs.clone(), key.clone(), content.clone());
        racers.spawn(async move { jobs.submit(&spec(), &key, &content).await.expect("an answer") });
    }
    let answers = racers.join_all().await;
    assert_eq!(answers.iter().filter(|(_, new)| *new).count(), 1);
    assert!(answers.iter().all(|(id, _)| *id == answers[0].0));
    let other = bench.jobs.submit(&spec(), &key, &Digest::of(b"other")).await.expect_err("another content");
    assert!(matches!(other, JobError::KeyReused(id) if id == answers[0].0));
}

/// What an operator wants of a host.
async fn wish(bench: &Bench, host: &HostId, wish: Wish) {
    let hosts = Hosts { store: bench.store.clone(), clock: Clock::fixed(START) };
    hosts.change(host, |record, _| record.desired = Desired { wish, ..Desired::default() }).await.expect("changed");
}

#[tokio::test]
async fn a_host_that_is_closed_or_removed_is_given_nothing_however_late_that_is_seen() {
    let bench = Bench::new();
    let (job, host) = (bench.queued().await, bench.host().await);
    let hosts = Hosts { store: bench.store.clone(), clock: Clock::fixed(START) };
    let assign = async || bench.jobs.assign(&term(), &job, &host, AttemptId::random()).await.expect("an answer");
    wish(&bench, &host, Wish::Cordoned).await;
    assert_eq!(assign().await, None, "cordoned");
    wish(&bench, &host, Wish::Draining { deadline: START, then: AfterDrain::Wait }).await;
    assert_eq!(assign().await, None, "draining");
    let removal = Removal { by: "ada", reason: "", jobs: 1, force: false };
    assert!(matches!(hosts.remove(&host, removal).await, Err(HostError::Busy { jobs: 1, .. })));
    hosts.remove(&host, Removal { jobs: 0, ..removal }).await.expect("removed");
    assert_eq!(assign().await, None, "removed");
    let told = hosts.member(&host).await.expect("an answer").expect_err("refused");
    assert!(told.contains("by ada") && told.contains("devfleet join-token create"), "{told}");
    assert_eq!(bench.phase(&job).await, JobPhase::Queued);
    let open = bench.host().await;
    assert!(bench.jobs.assign(&term(), &job, &open, AttemptId::random()).await.expect("an answer").is_some());
}

#[tokio::test]
async fn a_recalled_attempt_gets_no_leave_to_publish_and_its_job_is_queued_uncharged() {
    let bench = Bench::new();
    let job = bench.queued().await;
    // Of one attempt in all none is left once it is charged.
    for _ in 0..3 {
        let claim = bench.assigned(&job).await;
        let recalled = bench.jobs.recall(&term(), &claim, "host box is draining by ada").await.expect("an answer");
        assert!(recalled.is_some());
        assert_eq!(bench.jobs.recall(&term(), &claim, "again").await.expect("an answer"), None, "once is enough");
        let leave = bench.jobs.authorize_publish(&claim, &publication(&claim)).await.expect("an answer");
        assert!(leave.expect_err("refused").contains("draining by ada"));
        let stopped = Phase::Stopping(AttemptResult::Cancelled);
        bench.jobs.report(&claim, (&stopped).into(), 1).await.expect("an answer");
        assert_eq!(bench.phase(&job).await, JobPhase::Queued);
    }
}

#[tokio::test]
async fn an_attempt_whose_work_is_being_published_is_not_recalled() {
    let bench = Bench::new();
    let job = bench.queued().await;
    let claim = bench.assigned(&job).await;
    bench.jobs.authorize_publish(&claim, &publication(&claim)).await.expect("an answer").expect("granted");
    assert_eq!(bench.jobs.recall(&term(), &claim, "draining").await.expect("an answer"), None);
    bench.jobs.report(&claim, (&succeeded()).into(), 1).await.expect("an answer");
    assert_eq!(bench.phase(&job).await, JobPhase::Publishing);
}

#[tokio::test]
async fn of_changes_to_one_host_at_once_none_is_lost() {
    let bench = Bench::new();
    let host = bench.host().await;
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (hosts, host) = (Hosts { store: bench.store.clone(), clock: Clock::fixed(START) }, host.clone());
        writers.spawn(async move {
            let label = |record: &mut HostRecord, _| drop(record.labels.insert(format!("n{number}"), "1".into()));
            hosts.change(&host, label).await.expect("changed");
        });
    }
    writers.join_all().await;
    let entry = bench.store.get(&key::host(&host)).await.expect("read").expect("a record");
    let record: HostRecord = serde_json::from_slice(&entry.value).expect("JSON");
    assert_eq!(record.labels.len(), 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_job_is_given_to_a_host_after_it_was_closed_even_if_both_happen_at_once() {
    let bench = Bench::new();
    let hosts = Hosts { store: bench.store.clone(), clock: Clock::fixed(START) };
    for _ in 0..60 {
        let (job, host) = (bench.queued().await, bench.host().await);
        let assigning = tokio::spawn({
            let (jobs, job, host) = (bench.jobs.clone(), job.clone(), host.clone());
            async move { jobs.assign(&term(), &job, &host, AttemptId::random()).await.expect("an answer") }
        });
        let closing = tokio::spawn({
            let (hosts, host) = (hosts.clone(), host.clone());
            async move { hosts.change(&host, |record, _| record.desired.wish = Wish::Cordoned).await.expect("closed") }
        });
        let (assigned, closed) = (assigning.await.expect("assigned"), closing.await.expect("closed"));
        assert!(assigned.is_none_or(|assigned| assigned < closed), "{assigned:?} after {closed}");
    }
}
