//! A sound history, and what is done to it so that each checker must complain.

use serde_json::json;

use super::{INVARIANTS, check};
use crate::history::{AttemptLog, Change, History, JobEnd, Opened, Running, Scan};

/// Makes a history unsound.
type Tamper = fn(&mut History);

/// The negative controls: what is tampered with, which invariant must complain, and the tampering.
pub(crate) const CONTROLS: [(&str, &str, Tamper); 15] = [
    ("a job disappears", "no accepted job is lost", |history| history.jobs.clear()),
    ("a job never ends", "no accepted job is lost", |history| history.jobs[0].phase = "queued".into()),
    ("a job ends without an outcome", "no accepted job is lost", |history| history.jobs[0].outcome.clear()),
    ("a job that nobody submitted", "no job comes from nowhere", |history| {
        history.jobs.push(JobEnd { id: "ghost".into(), ..history.jobs[0].clone() });
    }),
    ("a job that is there twice", "no job comes from nowhere", |history| {
        history.jobs.push(history.jobs[0].clone());
    }),
    ("a job that goes on after its end", "owners and phases only move forward", |history| {
        history.changes.push(state(20, "running", &["a1", "a2"]));
    }),
    ("an attempt that is forgotten", "owners and phases only move forward", |history| {
        history.changes.push(state(20, "ended", &["a2"]));
    }),
    ("a store that goes back", "owners and phases only move forward", |history| {
        history.changes.push(state(3, "ended", &["a1", "a2"]));
    }),
    (
        "the first attempt publishes after the second owns the job",
        "no effect of a stale fence is accepted",
        |history| {
            history.changes[5].value = Some(json!({"attempt": "a1"}));
        },
    ),
    ("two merge requests", "a job has one result at most", |history| {
        history.merge_requests.push(Opened { source_branch: "b1".into(), head: "c1".into() });
    }),
    ("no merge request", "a job has one result at most", |history| history.merge_requests.clear()),
    ("a branch that moved", "a job has one result at most", |history| {
        history.merge_requests[0].head = "other".into();
    }),
    ("the old environment thaws beside the new one", "no two unfrozen environments of a job", |history| {
        history.scans[2].running[0].frozen = false;
    }),
    ("a network that stays", "nothing is left over", |history| history.left.push("network devbox-a1".into())),
    ("a line that is missing", "logs are whole, or say what is missing", |history| {
        history.logs[0].lines.remove(1);
    }),
];

/// Runs one control.
pub(crate) fn run(invariant: &str, tamper: Tamper) {
    let sound = sound();
    assert_eq!(check(&sound), Vec::<String>::new(), "the sound history is sound");
    let mut tampered = sound;
    tamper(&mut tampered);
    assert!(INVARIANTS.iter().any(|(name, _)| *name == invariant), "{invariant} is an invariant");
    let complaints = check(&tampered);
    assert!(complaints.iter().any(|complaint| complaint.starts_with(invariant)), "{invariant}: {complaints:?}");
}

fn state(revision: u64, phase: &str, attempts: &[&str]) -> Change {
    let attempts: Vec<_> = attempts.iter().map(|id| json!({"id": id})).collect();
    let value = Some(json!({"phase": phase, "attempts": attempts}));
    Change { revision, key: "/devfleet/v1/jobs/j/state".into(), value }
}

fn record(revision: u64, key: &str, attempt: &str) -> Change {
    Change { revision, key: format!("/devfleet/v1/{key}/j"), value: Some(json!({"attempt": attempt})) }
}

/// A job whose first host went silent: frozen there, begun again elsewhere, published once.
fn sound() -> History {
    let running = |attempt: &str, node: &str, frozen| Running {
        job: "j".into(),
        attempt: attempt.into(),
        node: node.into(),
        name: format!("devbox-{attempt}-agent"),
        pid: 1,
        frozen,
    };
    let at = std::time::Duration::from_secs;
    History {
        accepted: vec!["j".into()],
        jobs: vec![JobEnd {
            id: "j".into(),
            phase: "ended".into(),
            outcome: "succeeded".into(),
            reason: String::new(),
            branches: vec!["b1".into(), "b2".into()],
            commit: "c2".into(),
        }],
        merge_requests: vec![Opened { source_branch: "b2".into(), head: "c2".into() }],
        scans: vec![
            Scan { at: at(1), running: vec![running("a1", "h1", false)] },
            Scan { at: at(2), running: vec![running("a1", "h1", true)] },
            Scan { at: at(3), running: vec![running("a1", "h1", true), running("a2", "h2", false)] },
            Scan { at: at(4), running: vec![running("a2", "h2", false)] },
        ],
        logs: vec![
            AttemptLog { attempt: "a2".into(), whole: true, lines: (1..=4).map(Some).collect(), written: 4 },
            AttemptLog { attempt: "a1".into(), whole: false, lines: vec![Some(1), None, Some(3)], written: 4 },
        ],
        changes: vec![
            record(2, "owners", "a1"),
            state(4, "running", &["a1"]),
            state(6, "queued", &["a1"]),
            record(8, "owners", "a2"),
            state(8, "running", &["a1", "a2"]),
            record(9, "publish", "a2"),
            state(10, "publishing", &["a1", "a2"]),
            state(11, "ended", &["a1", "a2"]),
        ],
        left: Vec::new(),
    }
}
