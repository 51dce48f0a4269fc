//! Which job goes where, and why the others wait. A decider.
//!
//! Order: fair share between projects (the one with fewest running jobs first), then age. A host fits if it is
//! ready and the job's resources fit into what is free; among those that fit, the emptiest wins. One host is the small
//! case of many. A plan never hands out more than there is, and planning again on its result assigns nothing more.

use std::collections::BTreeMap;

use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::{HostId, JobId, ProjectName};
use devfleet_shared::resources::Resources;

/// All that a plan depends on.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The moment.
    pub now: Timestamp,
    /// How many jobs may run in the fleet at once.
    pub max_running: usize,
    /// The hosts.
    pub hosts: Vec<HostView>,
    /// How many jobs run, by project. Starts in flight count.
    pub running: BTreeMap<ProjectName, usize>,
    /// The jobs that wait.
    pub queued: Vec<QueuedJob>,
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
    /// What is neither used nor given away.
    pub free: Resources,
}

/// A job that waits.
#[derive(Debug, Clone)]
pub struct QueuedJob {
    /// The job.
    pub job: JobId,
    /// Its project.
    pub project: ProjectName,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// It is not to start before.
    pub not_before: Timestamp,
    /// What it takes.
    pub resources: Resources,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Which job goes to which host, in order.
    pub assign: Vec<(JobId, HostId)>,
    /// Why each other job waits, a line per rule.
    pub wait: BTreeMap<JobId, Vec<String>>,
}

/// Plans.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    let mut hosts = snapshot.hosts.clone();
    let mut running = snapshot.running.clone();
    let mut waiting: Vec<&QueuedJob> = snapshot.queued.iter().collect();
    waiting.sort_by(|a, b| (a.submitted, &a.job).cmp(&(b.submitted, &b.job)));
    while let Some(index) = next(&waiting, &running) {
        let job = waiting.remove(index);
        match place(snapshot, job, &hosts, running.values().sum()) {
            Ok(chosen) => {
                hosts[chosen].free = hosts[chosen].free.minus(job.resources);
                *running.entry(job.project.clone()).or_default() += 1;
                plan.assign.push((job.job.clone(), hosts[chosen].id.clone()));
            }
            Err(reasons) => {
                plan.wait.insert(job.job.clone(), reasons);
            }
        }
    }
    plan
}

/// Picks the oldest job of the project with the fewest running ones. `waiting` is ordered by age.
fn next(waiting: &[&QueuedJob], running: &BTreeMap<ProjectName, usize>) -> Option<usize> {
    let share = |job: &QueuedJob| running.get(&job.project).copied().unwrap_or(0);
    (0..waiting.len()).min_by_key(|&index| (share(waiting[index]), index))
}

fn place(snapshot: &Snapshot, job: &QueuedJob, hosts: &[HostView], running: usize) -> Result<usize, Vec<String>> {
    if job.not_before > snapshot.now {
        let seconds = job.not_before.since(snapshot.now).as_secs() + 1;
        return Err(vec![format!("pause: the last attempt failed, the next starts in {seconds} s")]);
    }
    if running >= snapshot.max_running {
        return Err(vec![format!("parallelism: {running} of {} jobs run (max_running)", snapshot.max_running)]);
    }
    if hosts.is_empty() {
        return Err(vec!["hosts: none has joined; make a token with `devfleet join-token create`".to_owned()]);
    }
    let fits = |host: &HostView| host.problems.is_empty() && host.free.lacking(&job.resources).is_empty();
    let room = |host: &HostView| (host.free.slots, host.free.memory_bytes);
    let best = (0..hosts.len())
        .filter(|&index| fits(&hosts[index]))
        .max_by(|&a, &b| room(&hosts[a]).cmp(&room(&hosts[b])).then_with(|| hosts[b].id.cmp(&hosts[a].id)));
    best.ok_or_else(|| hosts.iter().map(|host| reason(host, &job.resources)).collect())
}

fn reason(host: &HostView, wanted: &Resources) -> String {
    if host.problems.is_empty() {
        format!("host {}: too little {}", host.name, host.free.lacking(wanted).join(", "))
    } else {
        format!("host {}: {}", host.name, host.problems.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: usize) -> String {
        format!("00000000-0000-4000-8000-{number:012}")
    }

    fn slots(slots: u64) -> Resources {
        Resources { slots, ..Resources::default() }
    }

    fn host(number: usize, free: u64) -> HostView {
        HostView {
            id: id(number).parse().expect("a UUID"),
            name: format!("host-{number}"),
            problems: vec![],
            free: slots(free),
        }
    }

    fn job(number: usize, project: &str, submitted: u64) -> QueuedJob {
        QueuedJob {
            job: id(number).parse().expect("a UUID"),
            project: project.parse().expect("a name"),
            submitted: Timestamp(submitted),
            not_before: Timestamp(0),
            resources: slots(1),
        }
    }

    fn snapshot(max_running: usize, hosts: Vec<HostView>, queued: Vec<QueuedJob>) -> Snapshot {
        Snapshot { now: Timestamp(100), max_running, hosts, running: BTreeMap::new(), queued }
    }

    fn assigned(plan: &Plan) -> Vec<String> {
        plan.assign.iter().map(|(job, _)| job.as_str()[35..].to_owned()).collect()
    }

    #[test]
    fn the_oldest_goes_first_and_projects_take_turns() {
        let queued = vec![job(1, "a", 1), job(2, "a", 2), job(3, "b", 3), job(4, "a", 4)];
        let plan = plan(&snapshot(3, vec![host(1, 10)], queued));
        assert_eq!(assigned(&plan), ["1", "3", "2"]);
        assert!(plan.wait.values().next().expect("one waits")[0].contains("3 of 3"));
    }

    #[test]
    fn the_emptier_host_wins_and_a_host_with_problems_gets_nothing() {
        let mut ill = host(2, 9);
        ill.problems = vec!["its disk is full".into()];
        let plan_made = plan(&snapshot(9, vec![host(1, 1), ill.clone(), host(3, 2)], vec![job(1, "a", 1)]));
        assert_eq!(plan_made.assign[0].1, host(3, 0).id);
        let waits = plan(&snapshot(9, vec![ill, host(4, 0)], vec![job(1, "a", 1)]));
        let reasons = waits.wait.values().next().expect("it waits").join(" ");
        assert!(reasons.contains("disk is full") && reasons.contains("host-4: too little slots"), "{reasons}");
    }

    #[test]
    fn without_hosts_or_before_its_time_a_job_waits_and_says_so() {
        let nowhere = plan(&snapshot(9, vec![], vec![job(1, "a", 1)]));
        assert!(nowhere.wait.values().next().expect("it waits")[0].contains("join-token"));
        let mut later = job(1, "a", 1);
        later.not_before = Timestamp(5_100);
        let paused = plan(&snapshot(9, vec![host(1, 1)], vec![later]));
        assert!(paused.wait.values().next().expect("it waits")[0].contains("in 6 s"));
    }

    proptest! {
        #[test]
        fn a_plan_never_oversubscribes_and_repeating_it_adds_nothing(
            max_running in 0usize..8,
            free in prop::collection::vec(0u64..4, 0..4),
            jobs in prop::collection::vec((0usize..3, 0u64..5), 0..20),
        ) {
            let hosts: Vec<_> = free.iter().enumerate().map(|(number, &free)| host(number, free)).collect();
            let queued: Vec<_> = jobs.iter().enumerate()
                .map(|(number, &(project, age))| job(number, ["a", "b", "c"][project], age)).collect();
            let first = snapshot(max_running, hosts.clone(), queued.clone());
            let made = plan(&first);
            prop_assert_eq!(&made, &plan(&first));
            prop_assert!(made.assign.len() <= max_running);
            prop_assert_eq!(made.assign.len() + made.wait.len(), queued.len());
            let mut after = first;
            for (number, host) in hosts.iter().enumerate() {
                let given = made.assign.iter().filter(|(_, to)| *to == host.id).count() as u64;
                prop_assert!(given <= host.free.slots);
                after.hosts[number].free.slots -= given;
            }
            for (job, _) in &made.assign {
                let project = queued.iter().find(|queued| queued.job == *job).expect("it was queued").project.clone();
                *after.running.entry(project).or_default() += 1;
            }
            after.queued.retain(|job| made.wait.contains_key(&job.job));
            prop_assert!(plan(&after).assign.is_empty());
        }
    }
}
