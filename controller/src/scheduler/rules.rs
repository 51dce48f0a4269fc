//! The rules, one function each: what lets a job wait, and in which words it says so.

use std::sync::Arc;

use devfleet_shared::admission;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::ProjectName;
use devfleet_shared::resources::Resources;

use super::{HostView, Needs, ProjectView, QueuedJob, Reasons};

/// Waiting this long raises a job's priority by one, so that none starves.
const AGEING_SECONDS: u64 = 600;
/// The most that waiting raises a priority: past every priority that can be asked for.
const AGEING_MOST: u64 = 1_000;
/// A job that fits nowhere gets a host set aside after this time.
const RESERVE_AFTER_SECONDS: u64 = 60;
/// One recipe is made on so many hosts at once; other jobs with it wait for these.
pub(super) const BUILDERS: usize = 2;
/// A job waits this long for an image that is made elsewhere; then it may have it made on another host too.
const COLD_WAIT_SECONDS: u64 = 300;
/// Up to so many hosts are named one by one in reasons; of more, kinds of trouble are counted.
const NAMED: usize = 8;

fn waited(job: &QueuedJob, now: Timestamp) -> u64 {
    now.since(job.since).as_secs()
}

/// Returns the priority with what waiting adds.
pub(super) fn priority(job: &QueuedJob, now: Timestamp) -> i32 {
    let raised = (now.since(job.submitted).as_secs() / AGEING_SECONDS).min(AGEING_MOST);
    job.priority.saturating_add(raised as i32)
}

/// Returns how much of the fleet a project has for its weight; the smaller, the sooner its turn.
pub(super) fn share(project: &ProjectView) -> u64 {
    (project.running as u64).saturating_mul(1_000_000) / u64::from(project.weight.max(1))
}

/// A job whose last attempt failed waits for a while.
pub(super) fn pause(job: &QueuedJob, now: Timestamp) -> Option<Reasons> {
    if job.not_before <= now {
        return None;
    }
    let seconds = job.not_before.since(now).as_secs() + 1;
    reason(format!("pause: the last attempt failed, the next starts in {seconds} s"))
}

/// The fleet runs as many jobs as it may.
pub(super) fn fleet_full(running: usize, max_running: usize) -> Option<Reasons> {
    let full = running >= max_running;
    full.then(|| reason(format!("parallelism: {running} of {max_running} jobs run (max_running)"))).flatten()
}

/// The project runs as many jobs as it may.
pub(super) fn project_full(project: &ProjectView, name: &ProjectName) -> Option<Reasons> {
    let most = project.max_running.filter(|most| project.running >= *most)?;
    reason(format!("project: {} of {most} jobs of {name} run (its max_running)", project.running))
}

/// Says why a host is out of the question for these needs, whatever is free on it.
pub(super) fn unfit(host: &HostView, needs: &Needs) -> Option<String> {
    if let Some(why) = &host.closed {
        return Some(why.clone());
    }
    if !host.problems.is_empty() {
        return Some(host.problems.join("; "));
    }
    if let Some(why) = &host.quarantined {
        return Some(format!("quarantined: {why}"));
    }
    if let Some((name, value)) = needs.labels.iter().find(|(name, value)| host.labels.get(*name) != Some(value)) {
        return Some(format!("it has not the label {name}={value}"));
    }
    if let Some(runtime) = needs.runtime.as_ref().filter(|runtime| !host.runtimes.contains(*runtime)) {
        return Some(format!("its engine has no runtime {runtime}"));
    }
    None
}

/// Says whether a job may have its image made on one more host, when so many make it already.
pub(super) fn may_build(job: &QueuedJob, builders: usize, now: Timestamp) -> bool {
    builders < BUILDERS || waited(job, now) >= COLD_WAIT_SECONDS
}

/// Says whether a job that fits nowhere gets a host set aside.
pub(super) fn may_reserve(job: &QueuedJob, now: Timestamp, reserved: usize, ready: usize) -> bool {
    waited(job, now) >= RESERVE_AFTER_SECONDS && reserved < (ready / 8).max(1)
}

/// Says whether a host will have room once its jobs have ended. One that is idle and has none will not.
pub(super) fn will_have_room(host: &HostView, needs: &Needs) -> bool {
    let idle = host.free.slots >= host.total.slots;
    admission::admit(&host.total, &needs.resources).is_ok()
        && !(idle && admission::admit(&host.free, &needs.resources).is_err())
}

/// Returns how far a host is from having room, in thousandths of what is wanted, over all amounts.
pub(super) fn shortfall(free: &Resources, wanted: &Resources) -> u64 {
    let part = |free: u64, wanted: u64| wanted.saturating_sub(free).saturating_mul(1_000) / wanted.max(1);
    part(free.cpu_millis, wanted.cpu_millis)
        + part(free.memory_bytes, wanted.memory_bytes)
        + part(free.disk_bytes, wanted.disk_bytes)
        + part(free.disk_inodes, wanted.disk_inodes)
        + part(free.slots, wanted.slots)
}

/// The job waits for an image that other hosts make.
pub(super) fn image_under_way(builders: usize) -> Reasons {
    Arc::new(vec![format!(
        "image: {builders} hosts make the image and have no room yet; after {COLD_WAIT_SECONDS} s another host may make it too"
    )])
}

/// The job waits for room on the host that is set aside for it.
pub(super) fn reserved(host: &HostView) -> Reasons {
    Arc::new(vec![format!("reservation: host {} takes nothing else until there is room for this job", host.name)])
}

/// Nothing has room: says so of each host, or of kinds of hosts when there are many.
pub(super) fn no_room<'a>(
    hosts: impl ExactSizeIterator<Item = (&'a HostView, Resources, bool)>,
    needs: &Needs,
) -> Reasons {
    if hosts.len() == 0 {
        return Arc::new(vec!["hosts: none has joined; make a token with `devfleet join-token create`".to_owned()]);
    }
    let (one_by_one, mut kinds) = (hosts.len() <= NAMED, std::collections::BTreeMap::<String, (usize, String)>::new());
    let mut lines = Vec::new();
    for (host, free, set_aside) in hosts {
        let why = match unfit(host, needs) {
            Some(why) => why,
            None => match admission::admit(&free, &needs.resources) {
                Err(refused) => format!("too little {}", refused.lacking.join(", ")),
                Ok(()) if set_aside => "it is set aside for another job".to_owned(),
                Ok(()) => "it just filled up".to_owned(),
            },
        };
        if one_by_one {
            lines.push(format!("host {}: {why}", host.name));
        } else {
            kinds.entry(why).or_insert_with(|| (0, host.name.clone())).0 += 1;
        }
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    lines.extend(kinds.into_iter().take(NAMED).map(|(why, (count, name))| match count {
        1 => format!("host {name}: {why}"),
        _ => format!("{count} hosts, such as {name}: {why}"),
    }));
    Arc::new(lines)
}

fn reason(line: String) -> Option<Reasons> {
    Some(Arc::new(vec![line]))
}

#[cfg(test)]
mod tests {
    use devfleet_shared::id::{HostId, JobId};

    use super::*;

    fn job(age_seconds: u64) -> QueuedJob {
        let now = Timestamp(0).after(std::time::Duration::from_secs(1_000_000));
        let since = Timestamp(now.0 - age_seconds * 1_000);
        QueuedJob {
            job: JobId::random(),
            project: "a".parse().expect("a name"),
            priority: 3,
            submitted: since,
            since,
            not_before: Timestamp(0),
            needs: Arc::default(),
        }
    }

    const NOW: Timestamp = Timestamp(1_000_000_000);

    #[test]
    fn a_closed_host_takes_nothing_and_says_who_closed_it() {
        let mut host = HostView::new(HostId::random(), "box");
        assert_eq!(unfit(&host, &Needs::default()), None);
        host.closed = Some("cordoned by ada".into());
        assert_eq!(unfit(&host, &Needs::default()).as_deref(), Some("cordoned by ada"));
    }

    #[test]
    fn waiting_raises_a_priority_step_by_step_and_not_without_end() {
        assert_eq!(priority(&job(599), NOW), 3);
        assert_eq!(priority(&job(600), NOW), 4);
        assert_eq!(priority(&job(900_000), NOW), 3 + AGEING_MOST as i32);
    }

    #[test]
    fn only_who_waits_long_gets_a_host_set_aside_and_only_every_eighth_host_is() {
        let check = |age, reserved, ready, expected| {
            assert_eq!(may_reserve(&job(age), NOW, reserved, ready), expected, "{age} {reserved} {ready}");
        };
        check(59, 0, 80, false);
        check(60, 0, 80, true);
        check(60, 9, 80, true);
        check(60, 10, 80, false);
        // Of a small fleet one, or a large job would never start.
        check(60, 0, 1, true);
        check(60, 1, 15, false);
    }

    #[test]
    fn a_shortfall_counts_every_amount() {
        let wanted = Resources { cpu_millis: 10, memory_bytes: 10, disk_bytes: 10, disk_inodes: 10, slots: 10 };
        assert_eq!(shortfall(&wanted, &wanted), 0);
        let check = |change: fn(&mut Resources)| {
            let mut free = wanted;
            change(&mut free);
            assert_eq!(shortfall(&free, &wanted), 500);
        };
        check(|free| free.cpu_millis = 5);
        check(|free| free.memory_bytes = 5);
        check(|free| free.disk_bytes = 5);
        check(|free| free.disk_inodes = 5);
        check(|free| free.slots = 5);
    }
}
