//! What the scheduler is told: records and connected hosts, brought into its words. Looks at open jobs only, so that it
//! does not get slower with all the jobs that ever were. A decider.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use devfleet_shared::admission;
use devfleet_shared::attempt::Phase;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::{Digest, HostId, ProjectName};
use devfleet_shared::job::JobPhase;
use devfleet_shared::resources::Resources;

use crate::hosts::load::{self, Load};
use crate::project::ProjectRecord;
use crate::quarantine::{Rules, Standing};
use crate::scheduler::{HostView, Needs, ProjectView, QueuedJob, Snapshot};
use crate::sessions::Connected;
use crate::store::records::HostRecord;
use crate::view::{JobRecords, Records};

/// What a host has been given: every attempt that owns its job, until its environment is gone.
#[derive(Default)]
struct Given {
    resources: Resources,
    cpu_millis: u64,
    starting: u32,
    building: BTreeSet<Digest>,
}

/// What counts unless the settings say otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// How many jobs may run in the fleet at once.
    pub max_running: usize,
    /// When a host is put in quarantine.
    pub quarantine: Rules,
}

impl Defaults {
    /// Returns what counts now.
    pub fn under(self, records: &Records) -> Defaults {
        let settings = records.settings.as_ref().map(|(settings, _)| settings);
        let after = settings.and_then(|settings| settings.quarantine_after).unwrap_or(self.quarantine.after);
        Defaults {
            max_running: settings.and_then(|settings| settings.max_running).unwrap_or(self.max_running),
            quarantine: Rules { after, ..self.quarantine },
        }
    }
}

/// Makes the snapshot.
pub fn of(records: &Records, connected: &BTreeMap<HostId, Connected>, defaults: Defaults, now: Timestamp) -> Snapshot {
    let Defaults { max_running, quarantine } = defaults.under(records);
    let mut snapshot = Snapshot { now, max_running, ..Snapshot::default() };
    let loads = load::loads(records);
    let mut given: BTreeMap<HostId, Given> = BTreeMap::new();
    let mut needs: BTreeMap<ProjectName, Vec<Arc<Needs>>> = BTreeMap::new();
    for job in records.active_jobs() {
        let project = records.projects.get(&job.spec.project).map(|project| &**project);
        match job.state.phase {
            JobPhase::Queued => {
                view(&mut snapshot, &job.spec.project, project);
                let known = needs.entry(job.spec.project.clone()).or_default();
                snapshot.queued.push(queued(&job, project, known));
            }
            JobPhase::Running => view(&mut snapshot, &job.spec.project, project).running += 1,
            _ => {}
        }
        if let Some((owner, _)) = &job.owner {
            give(given.entry(owner.host.clone()).or_default(), &job);
        }
    }
    let nothing = Load::default();
    let hosts = records.hosts.values().map(|host| {
        let mut view = host_view(host, connected.get(&host.id), given.remove(&host.id).unwrap_or_default());
        let load = loads.get(&host.id).unwrap_or(&nothing);
        judge(&mut view, load::standing(records, host, load, &quarantine, now));
        view
    });
    snapshot.hosts = hosts.collect();
    snapshot
}

fn view<'a>(snapshot: &'a mut Snapshot, name: &ProjectName, project: Option<&ProjectRecord>) -> &'a mut ProjectView {
    snapshot.projects.entry(name.clone()).or_insert_with(|| match project {
        Some(project) => {
            ProjectView { weight: project.config.weight, max_running: project.config.max_running, running: 0 }
        }
        None => ProjectView::default(),
    })
}

fn give(given: &mut Given, job: &JobRecords) {
    given.resources = given.resources.plus(admission::set_aside(job.state.resources));
    given.cpu_millis += job.state.resources.cpu_millis;
    if job.state.attempt().is_some_and(|attempt| matches!(attempt.phase, Phase::Assigned | Phase::Preparing)) {
        given.starting += 1;
        given.building.extend(job.state.recipe.clone());
    }
}

/// Jobs with equal needs share them: there may be very many.
fn queued(job: &JobRecords, project: Option<&ProjectRecord>, known: &mut Vec<Arc<Needs>>) -> QueuedJob {
    let wanted = Needs {
        resources: job.state.resources,
        labels: project.map(|project| project.config.host_labels.clone()).unwrap_or_default(),
        runtime: job.state.runtime.clone(),
        recipe: job.state.recipe.clone(),
        repository: job.state.mirror.clone().unwrap_or_default(),
    };
    let needs = known.iter().rev().take(8).find(|needs| ***needs == wanted).cloned().unwrap_or_else(|| {
        known.push(Arc::new(wanted));
        known[known.len() - 1].clone()
    });
    QueuedJob {
        job: job.spec.id.clone(),
        project: job.spec.project.clone(),
        priority: job.spec.priority,
        submitted: job.spec.submitted,
        since: job.state.since,
        not_before: job.state.not_before,
        needs,
    }
}

/// Writes down what a host's failures mean: nothing new for it, or one job, or that it is chosen less.
fn judge(view: &mut HostView, standing: Standing) {
    match standing {
        Standing::Sound { failures } => view.recent_failures = failures,
        Standing::Quarantined { until, why } => {
            view.quarantined = Some(format!("{why}; one job is tried on it from {until} on"));
        }
        Standing::Probed { .. } => view.free.slots = view.free.slots.min(1),
    }
}

/// What a host still has room for: of memory and slots what was not given away, of its disk what is free by its own word.
fn host_view(record: &HostRecord, connected: Option<&Connected>, given: Given) -> HostView {
    let mut view = HostView::new(record.id.clone(), &*record.name);
    view.labels.clone_from(&record.labels);
    view.closed = record.desired.closed();
    let Some(connected) = connected else {
        view.problems.push("it is not connected".into());
        return view;
    };
    view.problems.clone_from(&connected.inventory.problems);
    view.total = connected.total();
    view.free = admission::room(connected.total(), given.resources, connected.free());
    view.runtimes = connected.inventory.runtimes.iter().cloned().collect();
    view.cpu_millis_given = given.cpu_millis;
    view.starting = given.starting;
    view.recipes = connected.inventory.recipes.iter().filter_map(|recipe| recipe.parse().ok()).collect();
    view.mirrors = connected.inventory.mirrors.iter().cloned().collect();
    view.building = given.building;
    view
}

#[cfg(test)]
mod tests;
