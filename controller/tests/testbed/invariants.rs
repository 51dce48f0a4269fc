//! What must hold whatever fails, each as a plain function from a history to complaints. `controls` shows for each that
//! it complains of a history that was tampered with: a checker that cannot fail proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::History;

mod controls;
pub(crate) use controls::{CONTROLS, run as run_control};

/// Looks through a history; returns what is wrong with it.
type Check = fn(&History) -> Vec<String>;

/// The invariants by name.
pub(crate) const INVARIANTS: [(&str, Check); 8] = [
    ("no accepted job is lost", no_job_lost),
    ("no job comes from nowhere", no_ghost),
    ("owners and phases only move forward", only_forward),
    ("no effect of a stale fence is accepted", no_stale_effect),
    ("a job has one result at most", one_result),
    ("no two unfrozen environments of a job", no_double_run),
    ("nothing is left over", nothing_left),
    ("logs are whole, or say what is missing", whole_logs),
];

/// Checks all of them; returns every complaint with the invariant's name.
pub(crate) fn check(history: &History) -> Vec<String> {
    let complaints = INVARIANTS
        .iter()
        .flat_map(|(name, check)| check(history).into_iter().map(move |complaint| format!("{name}: {complaint}")));
    complaints.collect()
}

fn no_job_lost(history: &History) -> Vec<String> {
    let mut complaints = Vec::new();
    for id in &history.accepted {
        match history.jobs.iter().find(|job| job.id == *id) {
            None => complaints.push(format!("job {id} was accepted and is not there")),
            Some(job) if job.phase != "ended" => complaints.push(format!("job {id} is {} for ever", job.phase)),
            Some(job) if job.outcome.is_empty() => complaints.push(format!("job {id} ended without an outcome")),
            Some(job) if job.outcome == "failed" && job.reason.is_empty() => {
                complaints.push(format!("job {id} failed and says no reason"));
            }
            Some(_) => {}
        }
    }
    complaints
}

fn no_ghost(history: &History) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut complaints = Vec::new();
    for id in history.jobs.iter().map(|job| &job.id) {
        if !history.accepted.contains(id) {
            complaints.push(format!("nobody submitted job {id}"));
        }
        if !seen.insert(id) {
            complaints.push(format!("job {id} is there twice"));
        }
    }
    complaints
}

/// The id in a key such as `/devfleet/v1/jobs/ID/state`.
fn job_of<'a>(key: &'a str, before: &str, after: &str) -> Option<&'a str> {
    key.strip_prefix("/devfleet/v1/")?.strip_prefix(before)?.strip_suffix(after)
}

/// Where each phase of a job stands: phases only move right.
fn rank(phase: &str) -> usize {
    const ORDER: [&str; 8] =
        ["submitted", "triage", "planning", "awaiting_approval", "queued", "running", "publishing", "ended"];
    ORDER.iter().position(|known| *known == phase.replace('-', "_")).unwrap_or_default()
}

/// The phase's name in a state record: a text, or the one key of an object.
fn phase_name(value: &serde_json::Value) -> String {
    let phase = &value["phase"];
    let name = phase.as_str().or_else(|| phase.as_object()?.keys().next().map(String::as_str));
    name.unwrap_or_default().to_lowercase()
}

fn only_forward(history: &History) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut last = 0;
    let mut phases: BTreeMap<&str, String> = BTreeMap::new();
    let mut attempts: BTreeMap<&str, usize> = BTreeMap::new();
    for change in &history.changes {
        if change.revision < last {
            complaints.push(format!("revision {} comes after {last}", change.revision));
        }
        last = change.revision;
        let Some(job) = job_of(&change.key, "jobs/", "/state") else { continue };
        let Some(value) = &change.value else { continue };
        let phase = phase_name(value);
        let count = value["attempts"].as_array().map_or(0, Vec::len);
        if let Some(before) = phases.insert(job, phase.clone()) {
            // A lost or failed attempt puts a job back in the queue; nothing else moves left.
            let again = rank(&phase) == rank("queued") && rank(&before) == rank("running");
            let back = before == "ended" || (rank(&phase) < rank(&before) && !again);
            if back && before != phase {
                complaints.push(format!("job {job} goes from {before} to {phase} at {}", change.revision));
            }
        }
        if attempts.insert(job, count).is_some_and(|before| count < before) {
            complaints.push(format!("job {job} forgets an attempt at {}", change.revision));
        }
    }
    complaints
}

fn no_stale_effect(history: &History) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut owners: BTreeMap<&str, String> = BTreeMap::new();
    for change in &history.changes {
        if let Some(job) = job_of(&change.key, "owners/", "") {
            match change.value.as_ref().and_then(|value| value["attempt"].as_str()) {
                Some(attempt) => drop(owners.insert(job, attempt.to_owned())),
                None => drop(owners.remove(job)),
            }
        }
        if let Some(job) = job_of(&change.key, "publish/", "")
            && let Some(attempt) = change.value.as_ref().and_then(|value| value["attempt"].as_str())
            && owners.get(job).is_some_and(|owner| owner != attempt)
        {
            let revision = change.revision;
            complaints.push(format!("job {job}: attempt {attempt} publishes at {revision} and does not own it"));
        }
    }
    complaints
}

fn one_result(history: &History) -> Vec<String> {
    let mut complaints = Vec::new();
    for job in &history.jobs {
        let of_job = |opened: &&crate::history::Opened| job.branches.contains(&opened.source_branch);
        let opened: Vec<_> = history.merge_requests.iter().filter(of_job).collect();
        let wanted = usize::from(job.outcome == "succeeded");
        if opened.len() != wanted {
            let id = &job.id;
            complaints.push(format!("job {id} is {} and has {} merge requests", job.outcome, opened.len()));
        }
        for merge_request in opened.iter().filter(|_| wanted == 1) {
            if merge_request.head != job.commit {
                let (head, branch) = (&merge_request.head, &merge_request.source_branch);
                complaints.push(format!("{branch} is at {head}, the job says {}", job.commit));
            }
        }
    }
    complaints
}

fn no_double_run(history: &History) -> Vec<String> {
    let mut complaints = BTreeMap::new();
    for scan in &history.scans {
        let mut unfrozen: BTreeMap<&str, BTreeSet<(&str, &str)>> = BTreeMap::new();
        for running in scan.running.iter().filter(|running| !running.frozen) {
            unfrozen.entry(&running.job).or_default().insert((&running.attempt, &running.node));
        }
        for (job, environments) in unfrozen.into_iter().filter(|(_, environments)| environments.len() > 1) {
            complaints.entry(job).or_insert_with(|| format!("job {job} at {:?}: {environments:?}", scan.at));
        }
    }
    complaints.into_values().collect()
}

fn nothing_left(history: &History) -> Vec<String> {
    history.left.clone()
}

fn whole_logs(history: &History) -> Vec<String> {
    let mut complaints = Vec::new();
    for log in &history.logs {
        let mut expected = 1;
        let mut cut = false;
        for line in &log.lines {
            match line {
                None => cut = true,
                Some(number) if *number == expected || (cut && *number > expected) => {
                    expected = number + 1;
                    cut = false;
                }
                Some(number) => {
                    complaints.push(format!("attempt {}: line {number} where {expected} is due", log.attempt));
                    break;
                }
            }
        }
        if log.whole && expected != log.written + 1 && !cut {
            complaints.push(format!("attempt {}: {} of {} lines", log.attempt, expected - 1, log.written));
        }
    }
    complaints
}
