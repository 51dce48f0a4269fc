//! Projects, jobs and diffs, for people.

use devfleet_proto::v1;
use devfleet_shared::clock::Timestamp;

use super::super::harmless::one_line;
use super::super::output::Paint;
use super::super::shape::jobs::{phase_name, result_name, step_name};
use super::{Cell, age, commit, count, fields, heading, indented, plain, short, span, table};

/// Lists projects.
pub fn projects(projects: &[v1::Project], now: Timestamp) -> String {
    let rows = projects.iter().map(|project| {
        [
            plain(&project.name),
            plain(&project.forge),
            plain(&project.approval),
            plain(project.agents.join(",")),
            plain(one_line(&project.repository, 60)),
            plain(age(project.updated_unix_ms, now)),
        ]
    });
    table(
        ["NAME", "FORGE", "APPROVAL", "AGENTS", "REPOSITORY", "UPDATED"],
        rows,
        "No projects yet. Make one with `devfleet projects apply FILE`.",
    )
}

/// Lists jobs.
pub fn jobs(jobs: &[v1::Job], now: Timestamp) -> String {
    let rows = jobs.iter().map(|job| {
        [
            plain(short(&job.id)),
            plain(&job.project),
            state(job),
            plain(age(job.submitted_unix_ms, now)),
            plain(&job.agent),
            plain(one_line(&job.title, 50)),
        ]
    });
    table(
        ["JOB", "PROJECT", "STATE", "AGE", "AGENT", "TITLE"],
        rows,
        "No jobs. Submit one with `devfleet submit --project NAME --task TEXT`.",
    )
}

/// Names a job's state: its outcome once it has one, else its phase.
pub fn state(job: &v1::Job) -> Cell {
    if job.phase != "ended" {
        let paint = if job.phase == "awaiting-approval" { Paint::Attention } else { Paint::Plain };
        let name = if job.cancel_requested { format!("{} (cancelling)", job.phase) } else { job.phase.clone() };
        return (paint, name);
    }
    let paint = match job.outcome.as_str() {
        "succeeded" => Paint::Good,
        "no-change" | "needs-human" | "rejected" | "cancelled" => Paint::Attention,
        _ => Paint::Bad,
    };
    (paint, job.outcome.clone())
}

/// Shows one job with its attempts.
pub fn job(job: &v1::Job, now: Timestamp) -> String {
    let (paint, name) = state(job);
    let failure = job.failure.as_ref().map(|why| format!("{}: {}", why.reason, why.message)).unwrap_or_default();
    let base = match job.base_commit.as_str() {
        "" => job.base_branch.clone(),
        id => format!("{} at {}", job.base_branch, commit(id)),
    };
    let mut out = fields([
        ("job", job.id.clone()),
        ("project", job.project.clone()),
        ("title", one_line(&job.title, 100)),
        ("state", format!("{} for {}", paint.on(&name), age(job.phase_since_unix_ms, now))),
        ("failure", failure),
        ("waits for", job.waiting.join("\n")),
        ("agent", job.agent.clone()),
        ("base", base),
        ("issue", if job.issue == 0 { String::new() } else { format!("#{}", job.issue) }),
        ("submitted", format!("{} ago by {}", age(job.submitted_unix_ms, now), job.submitted_by)),
        ("proposal", job.proposal_digest.clone()),
        ("approved by", job.approved_by.clone()),
        ("keep", if job.hold_seconds == 0 { String::new() } else { span(job.hold_seconds) }),
        ("merge request", job.merge_request.as_ref().map(merge_request).unwrap_or_default()),
    ]);
    if !job.attempts.is_empty() {
        out.push('\n');
        out.push_str(&attempts(&job.attempts, now));
    }
    out.push_str(&heading("Task"));
    out.push_str(&indented(&job.task));
    let next = next_step(job);
    if next.is_empty() { out } else { format!("{out}\n{next}\n") }
}

fn attempts(attempts: &[v1::Attempt], now: Timestamp) -> String {
    let rows = attempts.iter().map(|attempt| {
        let held = attempt.held_until_unix_ms;
        let kept =
            if held > now.0 { format!("{} more", span(Timestamp(held).since(now).as_secs())) } else { String::new() };
        [
            plain(&attempt.id),
            plain(short(&attempt.host)),
            plain(attempt_state(attempt)),
            plain(age(attempt.assigned_unix_ms, now)),
            plain(count(attempt.tokens)),
            plain(&attempt.branch),
            plain(kept),
        ]
    });
    table(["ATTEMPT", "HOST", "STATE", "AGE", "TOKENS", "BRANCH", "KEPT"], rows, "")
}

/// Says where an attempt is, with what the host is doing.
pub fn attempt_state(attempt: &v1::Attempt) -> String {
    let Some(state) = &attempt.state else { return "unknown".into() };
    let name = match (&state.result, step_name(state)) {
        (Some(result), _) => format!("{}: {}", phase_name(state), result_name(result)),
        (None, Some(step)) => format!("{}: {step}", phase_name(state)),
        (None, None) => phase_name(state).to_owned(),
    };
    if attempt.doing.is_empty() { name } else { format!("{name} ({})", one_line(&attempt.doing, 60)) }
}

/// Names a merge request in a line or two.
pub fn merge_request(request: &v1::MergeRequest) -> String {
    let branches = format!("!{} {} -> {}", request.number, request.source_branch, request.target_branch);
    if request.url.is_empty() { branches } else { format!("{branches}\n{}", request.url) }
}

/// Says what a person can do next about a job.
pub fn next_step(job: &v1::Job) -> String {
    let id = short(&job.id);
    match (job.phase.as_str(), job.outcome.as_str()) {
        ("awaiting-approval", _) => {
            format!("Read the proposal: devfleet env show {id}\nApprove it:        devfleet approve {id}")
        }
        ("ended", "succeeded") => format!("See the change: devfleet diff {id}"),
        ("ended", "failed" | "lost" | "no-change") => format!("See what happened: devfleet logs {id}"),
        ("ended", _) => String::new(),
        _ => format!("Follow it: devfleet jobs watch {id}   or   devfleet logs -f {id}"),
    }
}

/// Says in one line where a job is, for people who wait.
pub fn progress(job: &v1::Job) -> String {
    let (paint, name) = state(job);
    let mut line = format!("{}  {}", short(&job.id), paint.on(&name));
    if job.phase == "running"
        && let Some(attempt) = job.attempts.last()
    {
        line.push_str(&format!("  attempt {} on {}: {}", attempt.id, short(&attempt.host), attempt_state(attempt)));
    }
    if job.phase == "queued" && !job.waiting.is_empty() {
        line.push_str(&format!("  waits: {}", one_line(&job.waiting.join("; "), 120)));
    }
    if let Some(failure) = &job.failure {
        line.push_str(&format!("  {}: {}", failure.reason, failure.message));
    }
    line
}

/// Shows the end of a job that was waited for.
pub fn ended(job: &v1::Job) -> String {
    let mut out = String::new();
    if let Some(request) = &job.merge_request {
        out.push_str(&format!("merge request {}\n", merge_request(request)));
    }
    let next = next_step(job);
    if !next.is_empty() {
        out.push_str(&format!("{next}\n"));
    }
    out
}

/// Introduces a diff.
pub fn diff_heading(diff: &v1::Diff) -> String {
    let Some(request) = &diff.merge_request else {
        return "No merge request is open; this is what the last attempt left.".into();
    };
    let title = one_line(&request.title, 100);
    format!("{}\n{}\n", Paint::Strong.on(&title), merge_request(request))
}

/// Colours a diff.
pub fn diff(text: &str) -> String {
    let paint = |line: &str| {
        let colour = match line {
            _ if line.starts_with("+++") || line.starts_with("---") || line.starts_with("diff ") => Paint::Strong,
            _ if line.starts_with("@@") => Paint::Faint,
            _ if line.starts_with('+') => Paint::Good,
            _ if line.starts_with('-') => Paint::Bad,
            _ => return format!("{line}\n"),
        };
        format!("{}\n", colour.on(line))
    };
    text.lines().map(paint).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::output::paint;
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn sample() -> v1::Job {
        let state =
            v1::AttemptState { phase: v1::AttemptPhase::Running.into(), step: v1::Step::Agent.into(), result: None };
        let attempt = v1::Attempt {
            id: "a3f91c20".into(),
            host: "11111111-2222-4333-8444-555555555555".into(),
            state: Some(state),
            assigned_unix_ms: NOW.0 - 30_000,
            branch: "devfleet/0b5e1d2c-a3f91c20".into(),
            tokens: 48_312,
            ..v1::Attempt::default()
        };
        v1::Job {
            id: "0b5e1d2c-1111-4222-8333-444444444444".into(),
            project: "tally".into(),
            title: "Fix the \x1b[31mcount".into(),
            task: "Fix the count.\n\nMind \u{202e}the tests.".into(),
            agent: "fix".into(),
            base_branch: "main".into(),
            base_commit: "c0ffee0123456789".into(),
            phase: "running".into(),
            submitted_by: "ann".into(),
            submitted_unix_ms: NOW.0 - 300_000,
            phase_since_unix_ms: NOW.0 - 30_000,
            attempts: vec![attempt],
            approved_by: "bob".into(),
            ..v1::Job::default()
        }
    }

    #[test]
    fn a_running_job_reads_as_a_page() {
        let expected = "\
job:          0b5e1d2c-1111-4222-8333-444444444444
project:      tally
title:        Fix the ␛[31mcount
state:        running for 30s
agent:        fix
base:         main at c0ffee012345
submitted:    5m ago by ann
approved by:  bob

ATTEMPT   HOST      STATE           AGE  TOKENS  BRANCH                      KEPT
a3f91c20  11111111  running: agent  30s  48k     devfleet/0b5e1d2c-a3f91c20

Task
  Fix the count.

  Mind <U+202E>the tests.

Follow it: devfleet jobs watch 0b5e1d2c   or   devfleet logs -f 0b5e1d2c
";
        let shown = paint(&super::super::super::harmless::harmless(&job(&sample(), NOW)), false);
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_list_of_jobs_reads_as_a_table() {
        let ended = v1::Job { phase: "ended".into(), outcome: "failed".into(), title: "x".into(), ..sample() };
        let expected = "\
JOB       PROJECT  STATE    AGE  AGENT  TITLE
0b5e1d2c  tally    running  5m   fix    Fix the ␛[31mcount
0b5e1d2c  tally    failed   5m   fix    x
";
        assert_eq!(paint(&jobs(&[sample(), ended], NOW), false), expected);
        assert!(jobs(&[], NOW).contains("devfleet submit"));
    }

    #[test]
    fn every_phase_says_what_to_do_next() {
        let job = |phase: &str, outcome: &str| v1::Job { phase: phase.into(), outcome: outcome.into(), ..sample() };
        assert!(next_step(&job("awaiting-approval", "")).contains("devfleet approve 0b5e1d2c"));
        assert!(next_step(&job("ended", "succeeded")).contains("devfleet diff"));
        assert!(next_step(&job("ended", "failed")).contains("devfleet logs"));
        assert!(next_step(&job("queued", "")).contains("devfleet jobs watch"));
    }

    #[test]
    fn progress_says_why_a_job_waits_and_why_it_failed() {
        let queued = v1::Job { phase: "queued".into(), waiting: vec!["no host is ready".into()], ..sample() };
        assert_eq!(paint(&progress(&queued), false), "0b5e1d2c  queued  waits: no host is ready");
        let failure = Some(v1::Failure { reason: "setup".into(), message: "pip failed".into() });
        let failed = v1::Job { phase: "ended".into(), outcome: "failed".into(), failure, ..sample() };
        assert_eq!(paint(&progress(&failed), false), "0b5e1d2c  failed  setup: pip failed");
        assert_eq!(
            paint(&progress(&sample()), false),
            "0b5e1d2c  running  attempt a3f91c20 on 11111111: running: agent"
        );
    }

    #[test]
    fn added_and_removed_lines_are_told_apart() {
        let painted = paint(&diff("--- a\n+++ b\n@@ -1 +1 @@\n-old\n+new\n same\n"), true);
        assert!(painted.contains("\x1b[31m-old\x1b[0m\n\x1b[32m+new\x1b[0m\n same\n"), "{painted:?}");
    }
}
