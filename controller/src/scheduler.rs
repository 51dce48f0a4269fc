//! Which job goes where, and why the others wait. A decider.
//!
//! Order: priority (waiting raises it), then weighted fair share between projects, then age. A host fits if it is ready,
//! has labels and runtime, and admits the job; of those that fit the one wins on which the job would start first. A large
//! job that waits long gets a host set aside. A plan never hands out more than there is; repeating it adds nothing.
//!
//! snapshot ─▶ queues by project ─▶ next job ─▶ `rules`: may it? ─▶ `board`: where? (`score`: how soon) ─▶ plan

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::{Digest, HostId, JobId, ProjectName};
use devfleet_shared::resources::Resources;

mod board;
mod rules;
mod score;
#[cfg(test)]
mod tests;

use board::Board;

/// Why a job waits, a line per rule. Shared, since many jobs wait for the same reason.
pub type Reasons = Arc<Vec<String>>;

/// All that a plan depends on.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The moment.
    pub now: Timestamp,
    /// How many jobs may run in the fleet at once.
    pub max_running: usize,
    /// The hosts.
    pub hosts: Vec<HostView>,
    /// The projects that have jobs. One that is missing has weight 1, no cap, and runs nothing.
    pub projects: BTreeMap<ProjectName, ProjectView>,
    /// The jobs that wait.
    pub queued: Vec<QueuedJob>,
    /// The hosts that the last plan set aside, by the job they are for.
    pub reserved: BTreeMap<JobId, HostId>,
}

/// A project, as far as planning goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectView {
    /// Its part of the fleet in proportion to the weights of others; 1 or more.
    pub weight: u32,
    /// How many of its jobs may run at once; `None`: as many as the fleet allows.
    pub max_running: Option<usize>,
    /// How many of its jobs run. Starts in flight count.
    pub running: usize,
}

impl Default for ProjectView {
    fn default() -> Self {
        Self { weight: 1, max_running: None, running: 0 }
    }
}

/// A host, as far as planning goes.
#[derive(Debug, Clone)]
pub struct HostView {
    /// The host.
    pub id: HostId,
    /// What people call it.
    pub name: String,
    /// Why nothing may be given to it; empty: it is ready.
    pub problems: Vec<String>,
    /// Why operators let it take no new work; `None`: they do not.
    pub closed: Option<String>,
    /// Why it gets no new work although it may work: it failed job after job.
    pub quarantined: Option<String>,
    /// How many attempts failed on it lately through its own fault.
    pub recent_failures: u32,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The container runtimes that its engine has; empty: not known.
    pub runtimes: BTreeSet<String>,
    /// All that it has.
    pub total: Resources,
    /// What is neither used nor given away.
    pub free: Resources,
    /// Thousandths of processors that its jobs may use in all.
    pub cpu_millis_given: u64,
    /// How many attempts were given to it and run no step yet.
    pub starting: u32,
    /// The recipes whose images it has.
    pub recipes: BTreeSet<Digest>,
    /// The recipes whose images it makes for attempts that were given to it.
    pub building: BTreeSet<Digest>,
    /// The repositories that it has mirrors of.
    pub mirrors: BTreeSet<String>,
}

impl HostView {
    /// A host that has nothing and is known by name only.
    pub fn new(id: HostId, name: impl Into<String>) -> Self {
        Self {
            id,
            name: name.into(),
            problems: Vec::new(),
            closed: None,
            quarantined: None,
            recent_failures: 0,
            labels: BTreeMap::new(),
            runtimes: BTreeSet::new(),
            total: Resources::default(),
            free: Resources::default(),
            cpu_millis_given: 0,
            starting: 0,
            recipes: BTreeSet::new(),
            building: BTreeSet::new(),
            mirrors: BTreeSet::new(),
        }
    }
}

impl HostView {
    /// Says whether it may get anything at all.
    pub fn is_ready(&self) -> bool {
        self.problems.is_empty() && self.closed.is_none() && self.quarantined.is_none()
    }
}

/// What a job needs of a host. Jobs with equal needs are planned alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// What is set aside for it.
    pub resources: Resources,
    /// The labels that the host must have.
    pub labels: BTreeMap<String, String>,
    /// The container runtime, unless the engine's default serves.
    pub runtime: Option<String>,
    /// The recipe of its image.
    pub recipe: Option<Digest>,
    /// Its repository.
    pub repository: String,
}

/// A job that waits.
#[derive(Debug, Clone)]
pub struct QueuedJob {
    /// The job.
    pub job: JobId,
    /// Its project.
    pub project: ProjectName,
    /// The greater, the sooner.
    pub priority: i32,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// Since when it is queued.
    pub since: Timestamp,
    /// It is not to start before.
    pub not_before: Timestamp,
    /// What it needs.
    pub needs: Arc<Needs>,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Which job goes to which host, in order.
    pub assign: Vec<(JobId, HostId)>,
    /// Why each other job waits.
    pub wait: BTreeMap<JobId, Reasons>,
    /// The hosts that are set aside, by the job they are for: part of the next snapshot.
    pub reserve: BTreeMap<JobId, HostId>,
}

/// Plans. Takes time in proportion to hosts × kinds of needs that are looked at, plus jobs × log(jobs).
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut wait: Vec<(JobId, Reasons)> = Vec::new();
    let mut board = Board::new(snapshot);
    let mut tally = Tally::of(snapshot);
    tally.place_reserved(&mut board, snapshot.now);
    let mut queues = Queues::of(snapshot, &tally, &mut wait);
    while let Some(name) = queues.first() {
        if let Some(reasons) = rules::fleet_full(tally.running, snapshot.max_running) {
            wait.extend(queues.drain().map(|job| (job.job.clone(), reasons.clone())));
            break;
        }
        if let Some(reasons) = rules::project_full(&tally.project(name), name) {
            wait.extend(queues.drain_project(name).map(|job| (job.job.clone(), reasons.clone())));
            continue;
        }
        let Some(job) = queues.take(name) else { continue };
        match board.place(job) {
            Ok(host) => tally.count(job, host),
            Err(reasons) => wait.push((job.job.clone(), reasons)),
        }
        queues.line_up(name, &tally);
    }
    wait.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Plan { assign: tally.assign, wait: wait.into_iter().collect(), reserve: board.reservations() }
}

/// What is given away so far, and who has how much of the fleet.
struct Tally<'a> {
    max_running: usize,
    running: usize,
    projects: BTreeMap<&'a ProjectName, ProjectView>,
    assign: Vec<(JobId, HostId)>,
    placed: BTreeSet<&'a JobId>,
}

impl<'a> Tally<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        Tally {
            max_running: snapshot.max_running,
            running: snapshot.projects.values().map(|project| project.running).sum(),
            projects: snapshot.projects.iter().map(|(name, project)| (name, project.clone())).collect(),
            assign: Vec::new(),
            placed: BTreeSet::new(),
        }
    }

    fn project(&self, name: &ProjectName) -> ProjectView {
        self.projects.get(name).cloned().unwrap_or_default()
    }

    fn count(&mut self, job: &'a QueuedJob, host: HostId) {
        self.running += 1;
        self.projects.entry(&job.project).or_default().running += 1;
        self.assign.push((job.job.clone(), host));
        self.placed.insert(&job.job);
    }

    /// Places the jobs that have hosts set aside, before all others: what they leave over is there for these.
    fn place_reserved(&mut self, board: &mut Board<'a>, now: Timestamp) {
        let mut waiting = board.kept();
        waiting.sort_by_cached_key(|job| (Reverse(rules::priority(job, now)), job.submitted, &job.job));
        loop {
            let before = waiting.len();
            waiting.retain(|job| {
                let held = rules::pause(job, now).is_some()
                    || rules::fleet_full(self.running, self.max_running).is_some()
                    || rules::project_full(&self.project(&job.project), &job.project).is_some();
                match if held { None } else { board.place_reserved(job) } {
                    Some(host) => self.count(job, host),
                    None => return true,
                }
                false
            });
            if waiting.len() == before {
                break;
            }
        }
    }
}

/// Where a project stands among the others: the smallest is served next.
type Rank<'a> = (Reverse<i32>, u64, Timestamp, &'a JobId, &'a ProjectName);

/// The waiting jobs by project, and whose turn it is.
struct Queues<'a> {
    now: Timestamp,
    jobs: BTreeMap<&'a ProjectName, VecDeque<&'a QueuedJob>>,
    turns: BTreeSet<Rank<'a>>,
}

impl<'a> Queues<'a> {
    fn of(snapshot: &'a Snapshot, tally: &Tally<'a>, wait: &mut Vec<(JobId, Reasons)>) -> Self {
        let now = snapshot.now;
        let mut sorted: BTreeMap<&ProjectName, Vec<&QueuedJob>> = BTreeMap::new();
        for job in snapshot.queued.iter().filter(|job| tally.placed.is_empty() || !tally.placed.contains(&job.job)) {
            match rules::pause(job, now) {
                Some(reasons) => wait.push((job.job.clone(), reasons)),
                None => sorted.entry(&job.project).or_default().push(job),
            }
        }
        let mut queues = Queues { now, jobs: BTreeMap::new(), turns: BTreeSet::new() };
        for (name, mut jobs) in sorted {
            jobs.sort_by_cached_key(|job| (Reverse(rules::priority(job, now)), job.submitted, &job.job));
            queues.jobs.insert(name, jobs.into());
            queues.line_up(name, tally);
        }
        queues
    }

    /// Whose turn it is.
    fn first(&self) -> Option<&'a ProjectName> {
        self.turns.first().map(|rank| rank.4)
    }

    /// Takes the next job of the project whose turn it is; it has no turn until it lines up again.
    fn take(&mut self, name: &'a ProjectName) -> Option<&'a QueuedJob> {
        self.turns.pop_first();
        self.jobs.get_mut(name)?.pop_front()
    }

    fn line_up(&mut self, name: &'a ProjectName, tally: &Tally<'a>) {
        let Some(head) = self.jobs.get(name).and_then(VecDeque::front) else { return };
        let share = rules::share(&tally.project(name));
        self.turns.insert((Reverse(rules::priority(head, self.now)), share, head.submitted, &head.job, name));
    }

    fn drain_project(&mut self, name: &ProjectName) -> impl Iterator<Item = &'a QueuedJob> + use<'a> {
        self.turns.pop_first();
        self.jobs.remove(name).unwrap_or_default().into_iter()
    }

    fn drain(&mut self) -> impl Iterator<Item = &'a QueuedJob> + use<'a> {
        self.turns.clear();
        std::mem::take(&mut self.jobs).into_values().flatten()
    }
}
