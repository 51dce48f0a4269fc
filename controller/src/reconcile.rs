//! Brings the fleet closer to what was asked for: the heart of the controller.
//!
//! view, sessions, timer ──▶ tick: snapshot ─▶ scheduler::plan ─▶ assign;  and gates and publishing, one task a job
//!
//! A tick takes no input: whatever woke it, it looks at everything. So a missed wake-up costs a delay, never a job, and
//! first start, steady state and recovery are one path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, HostId, JobId};
use devfleet_shared::job::JobPhase;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::snapshot::Defaults;
use crate::gates::{Gates, drift};
use crate::jobs::{JobError, Jobs, Placement};
use crate::leader::{LeadOnly, Term};
use crate::project::ProjectRecord;
use crate::publish::Publisher;
use crate::scheduler::{self, Plan, Reasons, Snapshot};
use crate::sessions::Sessions;
use crate::view::{JobRecords, Records, View};

pub mod snapshot;

/// The loop looks again after this time even if nothing woke it.
const INTERVAL: Duration = Duration::from_secs(1);
/// After a look that took less than this the next one may follow at once.
const SHORT: Duration = Duration::from_millis(1);
/// How many jobs may be in their gates or being published at once.
const ERRANDS: usize = 32;
/// How long the end of an errand may wait for the view to show what was done.
const SETTLE: Duration = Duration::from_secs(2);

/// Why each queued job waits, as of the last tick.
pub type Waiting = BTreeMap<JobId, Reasons>;

/// The loop and what it works with.
pub struct Reconciler {
    /// The records.
    pub view: Arc<View>,
    /// The connected hosts.
    pub sessions: Arc<Sessions>,
    /// Moves jobs.
    pub jobs: Arc<Jobs>,
    /// Brings jobs through their gates.
    pub gates: Gates,
    /// Opens merge requests.
    pub publisher: Publisher,
    /// What counts unless the settings say otherwise.
    pub defaults: Defaults,
    /// Tells the time.
    pub clock: Clock,
    /// Where the reasons for waiting go.
    pub waiting: watch::Sender<Waiting>,
}

/// What one term's loop remembers between its looks. All of it may be lost: it is found again, or planned anew.
#[derive(Default)]
struct Course {
    errands: JoinSet<JobId>,
    under_way: BTreeSet<JobId>,
    reserved: BTreeMap<JobId, HostId>,
}

impl Course {
    /// Notes that an errand is over.
    fn ended(&mut self, done: Result<JobId, JoinError>) {
        match done {
            Ok(job) => drop(self.under_way.remove(&job)),
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                // Which job it was is not known any more: forget all, the next ticks find them again.
                warn!(error = %Chain(&error), "an errand failed");
                self.errands.abort_all();
                self.under_way.clear();
            }
        }
    }
}

#[async_trait]
impl LeadOnly for Reconciler {
    /// Runs until the shutdown, or until it is dropped with its term.
    async fn run(&self, term: Term, shutdown: CancellationToken) {
        // Whatever a leader before this one assigned must be seen, or its room would be given away again.
        self.view.reach(term.revision).await;
        let mut records = self.view.changed();
        let mut hosts = self.sessions.changed();
        let mut course = Course::default();
        loop {
            // Looking costs more the larger the fleet is, and everything wakes it: as much time is left to all else.
            let took = self.tick(&term, &mut course).await.min(INTERVAL);
            if took >= SHORT {
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(took) => {}
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = records.changed() => {}
                _ = hosts.changed() => {}
                Some(done) = course.errands.join_next() => {
                    course.ended(done);
                    // Those that ended meanwhile too: a look for each would be the pace of all gates.
                    while let Some(done) = course.errands.try_join_next() {
                        course.ended(done);
                    }
                }
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
        course.errands.shutdown().await;
    }
}

impl Reconciler {
    /// Looks and acts, and returns how long looking took.
    async fn tick(&self, term: &Term, course: &mut Course) -> Duration {
        let (now, begun) = (self.clock.now(), self.clock.boot().0);
        for (job, project) in self.errands(now) {
            if course.under_way.len() >= ERRANDS {
                break;
            }
            if course.under_way.insert(job.spec.id.clone()) {
                course.errands.spawn(self.errand(term, job, project).run());
            }
        }
        let mut plan = self.plan(course, now);
        course.reserved = std::mem::take(&mut plan.reserve);
        let took = self.clock.boot().0.saturating_sub(begun);
        self.start(term, &plan, course).await;
        self.waiting.send_if_modified(|waiting| {
            let moved = *waiting != plan.wait;
            *waiting = plan.wait;
            moved
        });
        took
    }

    /// Plans on what is known now. Where nothing waits there is nothing to plan, however many hosts there are.
    fn plan(&self, course: &mut Course, now: Timestamp) -> Plan {
        let reserved = std::mem::take(&mut course.reserved);
        if !self.view.read().any_queued() {
            return Plan::default();
        }
        let connected = self.sessions.connected();
        let looked = Snapshot { reserved, ..snapshot::of(&self.view.read(), &connected, self.defaults, now) };
        scheduler::plan(&looked)
    }

    /// Lists the jobs that need a gate or a merge request now.
    fn errands(&self, now: Timestamp) -> Vec<(JobRecords, Option<Arc<ProjectRecord>>)> {
        let records = self.view.read();
        let due = |job: &JobRecords| job.state.not_before <= now;
        let with_project = |job: JobRecords| {
            let project = records.projects.get(&job.spec.project).cloned();
            (job, project)
        };
        records.in_hand().filter(due).map(with_project).collect()
    }

    fn errand(&self, term: &Term, job: JobRecords, project: Option<Arc<ProjectRecord>>) -> Errand {
        let (gates, publisher, view) = (self.gates.clone(), self.publisher.clone(), self.view.clone());
        Errand { term: term.clone(), gates, publisher, view, job, project }
    }

    /// Gives the planned jobs to their hosts; one whose CI configuration was not looked at lately is looked at first.
    async fn start(&self, term: &Term, plan: &Plan, course: &mut Course) {
        let placements = self.placements(term, plan, course);
        let placed = self.jobs.place(term, &placements).await;
        let mut starts = Vec::with_capacity(placed.len());
        for (Placement { job, host, attempt, .. }, revision) in placements.iter().zip(placed) {
            let Some(revision) = revision else { continue };
            info!(job = %job.spec.id, host = %host.id, %attempt, "job assigned");
            starts.push((&job.spec.id, revision));
        }
        // The next plan must see these starts, or it would hand out the same room twice.
        let mut unseen = &starts[..];
        let all_seen = |records: &Records| {
            while let [(job, revision), rest @ ..] = unseen
                && records.job(job).is_some_and(|job| job.state_revision >= *revision)
            {
                unseen = rest;
            }
            unseen.is_empty().then_some(())
        };
        self.view.until(all_seen).await;
    }

    /// Lists what can be placed, and sends the rest of the plan on errands.
    fn placements(&self, term: &Term, plan: &Plan, course: &mut Course) -> Vec<Placement> {
        let now = self.clock.now();
        let records = self.view.read();
        let mut placements = Vec::with_capacity(plan.assign.len());
        for (id, host) in &plan.assign {
            let (Some(job), Some((host, host_revision))) = (records.job(id), records.host(host)) else { continue };
            if drift::is_current(&job.state, now) {
                placements.push(Placement { job, host, host_revision, attempt: AttemptId::random() });
            } else if course.under_way.len() < ERRANDS && course.under_way.insert(id.clone()) {
                let project = records.projects.get(&job.spec.project).cloned();
                course.errands.spawn(self.errand(term, job, project).run());
            }
        }
        placements
    }
}

/// What an errand works with.
struct Errand {
    term: Term,
    gates: Gates,
    publisher: Publisher,
    view: Arc<View>,
    job: JobRecords,
    project: Option<Arc<ProjectRecord>>,
}

impl Errand {
    /// Brings the job through its gate or to its merge request, and waits until the view shows what was done: a tick that
    /// still saw the old state would do it all again.
    async fn run(self) -> JobId {
        self.attempt().await;
        // An errand moves its job once, several times or not at all: what the store says now is what is to be seen.
        if let Ok(Some(revision)) = self.gates.jobs.revision(&self.job.spec.id).await {
            drop(tokio::time::timeout(SETTLE, self.view.reach(revision)).await);
        }
        self.job.spec.id.clone()
    }

    async fn attempt(&self) {
        let Errand { term, gates, publisher, job, project, .. } = self;
        let config = project.as_ref().map(|project| &project.config);
        let outcome = match job.state.phase {
            JobPhase::Publishing => publisher.publish(term, job, config).await,
            JobPhase::Queued => gates.recheck(term, job, config).await,
            _ => gates.pass(term, job, config).await,
        };
        match outcome {
            Ok(()) => {}
            // The job moved meanwhile (a person cancelled it): the next tick sees where it is.
            Err(JobError::TermOver(job)) => info!(%job, "the job was not moved, another controller leads now"),
            Err(JobError::Refused(refused)) => info!(job = %job.spec.id, %refused, "the job moved meanwhile"),
            Err(error) => warn!(job = %job.spec.id, error = %Chain(&error), "the job could not be moved"),
        }
    }
}
