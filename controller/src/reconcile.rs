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
use devfleet_shared::resources::Resources;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::gates::{Gates, drift};
use crate::jobs::{JobError, Jobs};
use crate::leader::{LeadOnly, Term};
use crate::project::ProjectRecord;
use crate::publish::Publisher;
use crate::scheduler::{self, HostView, Plan, QueuedJob, Snapshot};
use crate::sessions::{Connected, Sessions};
use crate::view::{JobRecords, Records, View};

/// The loop looks again after this time even if nothing woke it.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many jobs may be in their gates or being published at once.
const ERRANDS: usize = 32;

/// Why each queued job waits, as of the last tick.
pub type Waiting = BTreeMap<JobId, Vec<String>>;

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
    /// How many jobs may run in the fleet at once.
    pub max_running: usize,
    /// Tells the time.
    pub clock: Clock,
    /// Where the reasons for waiting go.
    pub waiting: watch::Sender<Waiting>,
}

#[async_trait]
impl LeadOnly for Reconciler {
    /// Runs until the shutdown, or until it is dropped with its term.
    async fn run(&self, term: Term, shutdown: CancellationToken) {
        // Whatever a leader before this one assigned must be seen, or its room would be given away again.
        self.view.reach(term.revision).await;
        let mut records = self.view.changed();
        let mut hosts = self.sessions.changed();
        let mut errands = JoinSet::new();
        let mut under_way = BTreeSet::new();
        loop {
            self.tick(&term, &mut errands, &mut under_way).await;
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = records.changed() => {}
                _ = hosts.changed() => {}
                Some(done) = errands.join_next() => match done {
                    Ok(job) => drop(under_way.remove(&job)),
                    Err(error) => {
                        // Which job it was is not known any more: forget all, the next ticks find them again.
                        warn!(error = %Chain(&error), "an errand failed");
                        errands.abort_all();
                        under_way.clear();
                    }
                },
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
        errands.shutdown().await;
    }
}

impl Reconciler {
    async fn tick(&self, term: &Term, errands: &mut JoinSet<JobId>, under_way: &mut BTreeSet<JobId>) {
        let now = self.clock.now();
        for (job, project) in self.errands(now) {
            if under_way.len() >= ERRANDS {
                break;
            }
            if under_way.insert(job.spec.id.clone()) {
                errands.spawn(errand(term.clone(), self.gates.clone(), self.publisher.clone(), job, project));
            }
        }
        let plan = scheduler::plan(&self.snapshot(now));
        self.start(term, &plan, errands, under_way).await;
        self.waiting.send_if_modified(|waiting| {
            let moved = *waiting != plan.wait;
            waiting.clone_from(&plan.wait);
            moved
        });
    }

    /// Lists the jobs that need a gate or a merge request now.
    fn errands(&self, now: Timestamp) -> Vec<(JobRecords, Option<Arc<ProjectRecord>>)> {
        let records = self.view.read();
        let due = |job: &JobRecords| {
            let phase = &job.state.phase;
            matches!(phase, JobPhase::Submitted | JobPhase::Planning | JobPhase::Publishing)
                && job.state.not_before <= now
        };
        let with_project = |job: JobRecords| {
            let project = records.projects.get(&job.spec.project).cloned();
            (job, project)
        };
        records.jobs().filter(due).map(with_project).collect()
    }

    fn with_project(&self, job: &JobId) -> Option<(JobRecords, Option<Arc<ProjectRecord>>)> {
        let records = self.view.read();
        let job = records.job(job)?;
        let project = records.projects.get(&job.spec.project).cloned();
        Some((job, project))
    }

    fn snapshot(&self, now: Timestamp) -> Snapshot {
        let connected = self.sessions.connected();
        let records = self.view.read();
        let mut snapshot = Snapshot { now, max_running: self.max_running, ..Snapshot::default() };
        for job in records.jobs() {
            match job.state.phase {
                JobPhase::Queued => snapshot.queued.push(queued(&job)),
                JobPhase::Running => *snapshot.running.entry(job.spec.project.clone()).or_default() += 1,
                _ => {}
            }
        }
        let given = given(&records);
        snapshot.hosts = records
            .hosts
            .values()
            .map(|host| {
                let given = given.get(&host.id).copied().unwrap_or_default();
                host_view(host.id.clone(), &host.name, connected.get(&host.id), given)
            })
            .collect();
        snapshot
    }

    /// Gives the planned jobs to their hosts; one whose CI configuration was not looked at lately is looked at first.
    async fn start(&self, term: &Term, plan: &Plan, errands: &mut JoinSet<JobId>, under_way: &mut BTreeSet<JobId>) {
        let now = self.clock.now();
        for (job, host) in &plan.assign {
            let Some((records, project)) = self.with_project(job) else { continue };
            if !drift::is_current(&records.state, now) {
                if under_way.len() < ERRANDS && under_way.insert(job.clone()) {
                    errands.spawn(errand(term.clone(), self.gates.clone(), self.publisher.clone(), records, project));
                }
                continue;
            }
            let attempt = AttemptId::random();
            match self.jobs.assign(term, job, host, attempt.clone()).await {
                Ok(Some(revision)) => {
                    info!(%job, %host, %attempt, "job assigned");
                    // The next plan must see this start, or it would hand out the same room twice.
                    let seen = |records: &Records| records.job(job).filter(|job| job.state_revision >= revision);
                    drop(self.view.until(seen).await);
                }
                Ok(None) => {}
                Err(error) => warn!(%job, %host, error = %Chain(&error), "the job could not be assigned"),
            }
        }
    }
}

/// Brings one job through its gate or to its merge request.
async fn errand(
    term: Term,
    gates: Gates,
    publisher: Publisher,
    job: JobRecords,
    project: Option<Arc<ProjectRecord>>,
) -> JobId {
    let config = project.as_ref().map(|project| &project.config);
    let outcome = match job.state.phase {
        JobPhase::Publishing => publisher.publish(&term, &job, config).await,
        JobPhase::Queued => gates.recheck(&term, &job, config).await,
        _ => gates.pass(&term, &job, config).await,
    };
    match outcome {
        Ok(()) => {}
        // The job moved meanwhile (a person cancelled it): the next tick sees where it is.
        Err(JobError::TermOver(job)) => info!(%job, "the job was not moved, another controller leads now"),
        Err(JobError::Refused(refused)) => info!(job = %job.spec.id, %refused, "the job moved meanwhile"),
        Err(error) => warn!(job = %job.spec.id, error = %Chain(&error), "the job could not be moved"),
    }
    job.spec.id.clone()
}

fn queued(job: &JobRecords) -> QueuedJob {
    QueuedJob {
        job: job.spec.id.clone(),
        project: job.spec.project.clone(),
        submitted: job.spec.submitted,
        not_before: job.state.not_before,
        resources: reserved(job.state.resources),
    }
}

/// Processors are shared by those who want them and are a limit, not a reservation; all else is set aside.
fn reserved(resources: Resources) -> Resources {
    Resources { cpu_millis: 0, ..resources }
}

/// Adds up what each host has been given: every attempt that owns its job, until its environment is gone.
fn given(records: &Records) -> BTreeMap<HostId, Resources> {
    let mut given: BTreeMap<HostId, Resources> = BTreeMap::new();
    for job in records.jobs() {
        if let Some((owner, _)) = &job.owner {
            let sum = given.entry(owner.host.clone()).or_default();
            *sum = sum.plus(reserved(job.state.resources));
        }
    }
    given
}

/// What a host still has room for: of memory and slots what was not given away, of its disk what is free by its own word.
fn host_view(id: HostId, name: &str, connected: Option<&Connected>, given: Resources) -> HostView {
    let name = name.to_owned();
    match connected {
        None => HostView { id, name, problems: vec!["it is not connected".into()], free: Resources::default() },
        Some(connected) => {
            let (left, free) = (connected.total().minus(given), connected.free());
            let free = Resources {
                disk_bytes: free.disk_bytes.min(left.disk_bytes),
                disk_inodes: free.disk_inodes.min(left.disk_inodes),
                ..left
            };
            HostView { id, name, problems: connected.inventory.problems.clone(), free }
        }
    }
}
