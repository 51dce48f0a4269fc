//! What `devfleet top` shows, as values: rows of text from what the controller said, sorted as asked for. A decider.

use std::cmp::Ordering;

use devfleet_proto::v1;
use devfleet_shared::clock::Timestamp;

use super::super::harmless::{harmless, one_line};
use super::super::render::{age, bytes, count, short, standing};
use super::super::shape::fleet::is_open;
use super::super::shape::jobs::{phase_name, step_name};

/// What the controller said last.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) hosts: Vec<v1::Host>,
    pub(super) jobs: Vec<v1::Job>,
    pub(super) settings: v1::Settings,
    pub(super) at: Timestamp,
}

/// One of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Tab {
    #[default]
    Hosts,
    Running,
    Queue,
}

impl Tab {
    pub(super) const ALL: [Tab; 3] = [Tab::Hosts, Tab::Running, Tab::Queue];

    pub(super) fn name(self) -> &'static str {
        match self {
            Tab::Hosts => "Hosts",
            Tab::Running => "Running",
            Tab::Queue => "Queue",
        }
    }

    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Tab::Hosts => &["HOST", "SLOTS", "CPU", "MEMORY", "DISK", "JOBS", "SEEN", "PROBLEMS"],
            Tab::Running => &["JOB", "PROJECT", "HOST", "STEP", "AGE", "TOKENS", "TITLE"],
            Tab::Queue => &["JOB", "PROJECT", "PHASE", "PRIORITY", "AGE", "WAITS FOR"],
        }
    }
}

/// One cell: what is shown, and what it is sorted by if that is not the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) text: String,
    rank: Option<u64>,
}

fn text(text: impl AsRef<str>) -> Cell {
    Cell { text: one_line(&harmless(text.as_ref()), 200), rank: None }
}

fn ranked(shown: impl AsRef<str>, rank: u64) -> Cell {
    Cell { rank: Some(rank), ..text(shown) }
}

/// Sorts by a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sort {
    pub(super) column: usize,
    pub(super) reversed: bool,
}

/// Makes a table's rows.
pub(super) fn rows(seen: &Seen, tab: Tab, sort: Sort) -> Vec<Vec<Cell>> {
    let mut rows: Vec<Vec<Cell>> = match tab {
        Tab::Hosts => seen.hosts.iter().map(|host| host_row(host, seen.at)).collect(),
        Tab::Running => {
            let running = seen.jobs.iter().filter(|job| is_running(job));
            running.map(|job| running_row(job, seen)).collect()
        }
        Tab::Queue => {
            let waiting = seen.jobs.iter().filter(|job| !is_running(job) && job.phase != "ended");
            waiting.map(|job| queue_row(job, seen.at)).collect()
        }
    };
    rows.sort_by(|a, b| {
        let order = match (a.get(sort.column), b.get(sort.column)) {
            (Some(a), Some(b)) => a.rank.cmp(&b.rank).then_with(|| a.text.cmp(&b.text)),
            _ => Ordering::Equal,
        };
        if sort.reversed { order.reverse() } else { order }
    });
    rows
}

/// One line about the whole fleet.
pub(super) fn summary(seen: &Seen) -> String {
    let connected = seen.hosts.iter().filter(|host| host.connected).count();
    let running = seen.jobs.iter().filter(|job| job.phase == "running").count();
    let queued = seen.jobs.iter().filter(|job| job.phase == "queued").count();
    let awaiting = seen.jobs.iter().filter(|job| job.phase == "awaiting-approval").count();
    format!(
        "{connected} of {} hosts connected   {running} of {} jobs running   {queued} queued   {awaiting} await approval",
        seen.hosts.len(),
        seen.settings.max_running
    )
}

fn is_running(job: &v1::Job) -> bool {
    matches!(job.phase.as_str(), "running" | "publishing")
}

fn host_row(host: &v1::Host, now: Timestamp) -> Vec<Cell> {
    let inventory = host.inventory.clone().unwrap_or_default();
    let (total, free) = (inventory.total.unwrap_or_default(), inventory.free.unwrap_or_default());
    let used = |total: u64, free: u64| total.saturating_sub(free);
    let part = |total: u64, free: u64| used(total, free).saturating_mul(100) / total.max(1);
    let not_connected = if host.connected { String::new() } else { "not connected".to_owned() };
    let wanted = if is_open(host) { String::new() } else { standing::wanted(host, now) };
    let problems = [not_connected, wanted, standing::quarantine(host, now), inventory.problems.join("; ")];
    let problems = problems.into_iter().filter(|problem| !problem.is_empty()).collect::<Vec<_>>().join("; ");
    let amount =
        |total: u64, free: u64| ranked(format!("{} of {}", bytes(used(total, free)), bytes(total)), part(total, free));
    vec![
        text(&host.name),
        ranked(format!("{} of {}", used(total.slots, free.slots), total.slots), used(total.slots, free.slots)),
        ranked(format!("{} %", part(total.cpu_millis, free.cpu_millis)), part(total.cpu_millis, free.cpu_millis)),
        amount(total.memory_bytes, free.memory_bytes),
        amount(total.disk_bytes, free.disk_bytes),
        ranked(standing::attempts(host), host.attempts.len() as u64),
        ranked(age(host.last_seen_unix_ms, now), now.0.saturating_sub(host.last_seen_unix_ms)),
        text(problems),
    ]
}

fn running_row(job: &v1::Job, seen: &Seen) -> Vec<Cell> {
    let tokens = job.attempts.iter().fold(0, |sum: u64, attempt| sum.saturating_add(attempt.tokens));
    let attempt = job.attempts.last().cloned().unwrap_or_default();
    let host = seen.hosts.iter().find(|host| host.id == attempt.host);
    let state = attempt.state.unwrap_or_default();
    let step = match (job.phase.as_str(), step_name(&state)) {
        ("publishing", _) => "publishing",
        (_, None) => phase_name(&state),
        (_, Some(step)) => step,
    };
    vec![
        text(short(&job.id)),
        text(&job.project),
        text(host.map_or_else(|| short(&attempt.host), |host| host.name.clone())),
        text(step),
        ranked(age(attempt.assigned_unix_ms, seen.at), seen.at.0.saturating_sub(attempt.assigned_unix_ms)),
        ranked(count(tokens), tokens),
        text(&job.title),
    ]
}

fn queue_row(job: &v1::Job, now: Timestamp) -> Vec<Cell> {
    let waits = match job.phase.as_str() {
        "awaiting-approval" => "a person's approval".to_owned(),
        _ => job.waiting.join("; "),
    };
    vec![
        text(short(&job.id)),
        text(&job.project),
        text(&job.phase),
        ranked(job.priority.to_string(), (i64::from(job.priority) + (1 << 32)) as u64),
        ranked(age(job.submitted_unix_ms, now), now.0.saturating_sub(job.submitted_unix_ms)),
        text(waits),
    ]
}
