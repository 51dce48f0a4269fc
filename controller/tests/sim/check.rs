//! What must hold after a run, read from what the store, the forge and the engines recorded, not from our own answers.

use std::collections::{BTreeMap, BTreeSet};

use devfleet_controller::logs::JobLogs;
use devfleet_controller::store::WatchEvent;
use devfleet_controller::store::records::{JobSpec, JobState, Owner, PublishRecord};
use devfleet_shared::attempt::{AttemptResult, Phase};
use devfleet_shared::id::{AttemptId, JobId};
use devfleet_shared::job::{JobPhase, Outcome};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;

use crate::fleet::Fleet;
use crate::machine::agent_output;
use crate::people;

fn read<T: DeserializeOwned>(value: &[u8]) -> T {
    serde_json::from_slice(value).expect("a record")
}

/// Splits a job's key into the job and what is kept of it.
fn job_key(key: &str) -> Option<(&str, &str)> {
    let path = key.strip_prefix("/devfleet/v1/")?;
    match path.split('/').collect::<Vec<_>>()[..] {
        ["jobs", job, what] => Some((job, what)),
        ["owners", job] => Some((job, "owner")),
        ["publish", job] => Some((job, "publish")),
        _ => None,
    }
}

/// Returns every job's last state.
pub(crate) fn states(fleet: &Fleet) -> BTreeMap<String, JobState> {
    let mut states = BTreeMap::new();
    for (_, event) in fleet.store.history() {
        if let WatchEvent::Put(entry) = event
            && let Some((job, "state")) = job_key(&entry.key)
        {
            states.insert(job.to_owned(), read(&entry.value));
        }
    }
    states
}

/// Checks everything; returns what does not hold.
pub(crate) fn check(fleet: &Fleet) -> Vec<String> {
    let mut wrong = fleet.violations.clone();
    let states = states(fleet);
    no_job_is_lost(fleet, &states, &mut wrong);
    one_merge_request(fleet, &states, &mut wrong);
    no_stale_effect(fleet, &mut wrong);
    logs_are_whole(fleet, &states, &mut wrong);
    if fleet.plan.troubles.is_empty() {
        no_job_costs_the_store_more_than_its_budget(fleet, &states, &mut wrong);
    }
    for (number, machine) in fleet.machines.iter().enumerate() {
        let left = machine.engine.objects();
        if !left.is_empty() {
            wrong.push(format!("host-{number} has something left: {left:?}"));
        }
    }
    wrong
}

/// What docs/operations.md says a job costs the store when nothing goes wrong: transactions, and bytes of keys and values
/// besides its task and plan, which are written twice, and the text of its merge request.
const BUDGET: (usize, usize) = (16, 20 * 1024);

fn no_job_costs_the_store_more_than_its_budget(
    fleet: &Fleet,
    states: &BTreeMap<String, JobState>,
    wrong: &mut Vec<String>,
) {
    let mut costs: BTreeMap<String, (BTreeSet<u64>, usize)> = BTreeMap::new();
    for (revision, event) in fleet.store.history() {
        let (key, bytes) = match &event {
            WatchEvent::Put(entry) => (&entry.key, entry.value.len()),
            WatchEvent::Deleted { key, .. } => (key, 0),
        };
        if let Some((job, _)) = job_key(key) {
            let (revisions, written) = costs.entry(job.to_owned()).or_default();
            revisions.insert(revision);
            *written += key.len() + bytes;
        }
    }
    if costs.len() != fleet.plan.jobs.len() {
        wrong.push(format!("{} jobs of {} are in the store's history", costs.len(), fleet.plan.jobs.len()));
    }
    for (job, (revisions, written)) in costs {
        let opened = states.get(&job).and_then(|state| state.merge_request.as_ref());
        let text = opened.map_or(0, |request| request.description.len());
        let bytes = written.saturating_sub(2 * people::task().len() + text);
        if revisions.len() > BUDGET.0 || bytes > BUDGET.1 {
            wrong.push(format!(
                "job {job} cost {} transactions and {bytes} bytes, more than {BUDGET:?}",
                revisions.len()
            ));
        }
    }
}

fn no_job_is_lost(fleet: &Fleet, states: &BTreeMap<String, JobState>, wrong: &mut Vec<String>) {
    let accepted = fleet.people.accepted.lock().expect("no panic").clone();
    if accepted.len() != fleet.plan.jobs.len() {
        wrong.push(format!("only {} of {} jobs were accepted", accepted.len(), fleet.plan.jobs.len()));
    }
    for (key, job) in &accepted {
        match states.get(job) {
            None => wrong.push(format!("job {job} ({key}) was accepted and is not there")),
            Some(state) if !state.phase.is_terminal() => {
                wrong.push(format!("job {job} ({key}) never ended, it is {:?}: {:?}", state.phase, state.attempts));
            }
            Some(_) => {}
        }
    }
    let mut titles = BTreeSet::new();
    for (_, event) in fleet.store.history() {
        if let WatchEvent::Put(entry) = event
            && let Some((_, "spec")) = job_key(&entry.key)
        {
            let spec: JobSpec = read(&entry.value);
            if !titles.insert(spec.title.clone()) {
                wrong.push(format!("{} was made into a job twice", spec.title));
            }
        }
    }
    let keys: BTreeSet<String> = (0..fleet.plan.jobs.len()).map(people::key).collect();
    if !titles.is_subset(&keys) {
        wrong.push(format!("jobs that nobody asked for: {titles:?}"));
    }
}

fn one_merge_request(fleet: &Fleet, states: &BTreeMap<String, JobState>, wrong: &mut Vec<String>) {
    for (job, state) in states {
        let branches: Vec<&str> = state.attempts.iter().map(|attempt| attempt.branch.as_str()).collect();
        let opened = fleet.forge.merge_requests();
        let of_job =
            opened.iter().filter(|opened| branches.iter().any(|branch| opened.source_branch.starts_with(branch)));
        let (count, succeeded) = (of_job.count(), state.phase == JobPhase::Ended(Outcome::Succeeded));
        if count > 1 || succeeded != (count == 1) {
            wrong.push(format!("job {job} has {count} merge requests and is {:?}", state.phase));
        }
    }
}

/// Replays history: only the attempt that owns a job at that moment is moved or publishes, and what has ended stays so.
fn no_stale_effect(fleet: &Fleet, wrong: &mut Vec<String>) {
    let mut owners: BTreeMap<String, AttemptId> = BTreeMap::new();
    let mut last: BTreeMap<String, JobState> = BTreeMap::new();
    let history = fleet.store.history();
    for revision in history.chunk_by(|one, other| one.0 == other.0) {
        let before = owners.clone();
        for (number, event) in revision {
            match event {
                WatchEvent::Put(entry) => {
                    if let Some((job, "owner")) = job_key(&entry.key) {
                        owners.insert(job.to_owned(), read::<Owner>(&entry.value).attempt);
                    }
                }
                WatchEvent::Deleted { key, .. } => {
                    if let Some((job, "owner")) = job_key(key)
                        && let Some(attempt) = owners.remove(job)
                        && !has_ended(revision, &last, job, &attempt)
                    {
                        wrong
                            .push(format!("revision {number}: job {job} is taken from {attempt}, which has not ended"));
                    }
                }
            }
        }
        for (number, event) in revision {
            let WatchEvent::Put(entry) = event else { continue };
            let owns =
                |job: &str, attempt: &AttemptId| before.get(job) == Some(attempt) || owners.get(job) == Some(attempt);
            match job_key(&entry.key) {
                Some((job, "publish")) => {
                    let record: PublishRecord = read(&entry.value);
                    if !owns(job, &record.attempt) {
                        wrong.push(format!(
                            "revision {number}: {} publishes job {job}, which it does not own",
                            record.attempt
                        ));
                    }
                }
                Some((job, "state")) => {
                    let state: JobState = read(&entry.value);
                    let old = last.get(job);
                    let known = |id: &AttemptId| old.and_then(|old| old.attempts.iter().find(|one| one.id == *id));
                    for attempt in &state.attempts {
                        let moved = known(&attempt.id).is_none_or(|old| old.phase != attempt.phase);
                        if moved && !owns(job, &attempt.id) {
                            wrong.push(format!(
                                "revision {number}: attempt {} of job {job} moved without owning it",
                                attempt.id
                            ));
                        }
                    }
                    if let Some(old) = old.filter(|old| old.phase.is_terminal() && old.phase != state.phase) {
                        wrong.push(format!("revision {number}: job {job} went on after its end: {:?}", old.phase));
                    }
                    last.insert(job.to_owned(), state);
                }
                _ => {}
            }
        }
    }
}

/// Says whether an attempt had ended by the end of a revision.
fn has_ended(
    revision: &[(u64, WatchEvent)],
    last: &BTreeMap<String, JobState>,
    job: &str,
    attempt: &AttemptId,
) -> bool {
    let now = revision.iter().find_map(|(_, event)| match event {
        WatchEvent::Put(entry) if job_key(&entry.key) == Some((job, "state")) => Some(read::<JobState>(&entry.value)),
        _ => None,
    });
    let state = now.as_ref().or_else(|| last.get(job));
    let ended =
        |state: &JobState| state.attempts.iter().any(|one| one.id == *attempt && matches!(one.phase, Phase::Ended(_)));
    state.is_some_and(ended)
}

/// The log of an attempt that succeeded holds all that its agent printed, in order, once.
fn logs_are_whole(fleet: &Fleet, states: &BTreeMap<String, JobState>, wrong: &mut Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for (job, state) in states {
        let ended = |phase: &Phase| matches!(phase, Phase::Ended(AttemptResult::Succeeded { .. }));
        for attempt in state.attempts.iter().filter(|attempt| ended(&attempt.phase)) {
            let log = runtime.block_on(agent_log(fleet, &job.parse().expect("id"), &attempt.id));
            if log != agent_output() {
                wrong.push(format!("the log of attempt {} is not whole: {log:?}", attempt.id));
            }
        }
    }
}

async fn agent_log(fleet: &Fleet, job: &JobId, attempt: &AttemptId) -> String {
    let logs = JobLogs::new(fleet.files.clone());
    let mut records = logs.records(job, attempt);
    let mut text = String::new();
    while let Some(Ok(record)) = records.next().await {
        if record.source == "agent" {
            text += &String::from_utf8_lossy(&record.data);
        }
    }
    text
}
