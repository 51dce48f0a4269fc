//! What is wanted of a host and how far it has come, in words.

use devfleet_proto::v1;
use devfleet_shared::clock::Timestamp;

use super::super::output::Paint;
use super::super::shape::fleet::{is_open, is_ready, labels};
use super::{Cell, age, span};

/// Says in a word or two where a host stands.
pub fn state(host: &v1::Host) -> Cell {
    match host.state.as_str() {
        _ if !host.connected => (Paint::Bad, format!("disconnected{}", closed(host))),
        "draining" | "drained" | "cordoned" => (Paint::Attention, host.state.clone()),
        _ if !host.quarantine.is_empty() => (Paint::Attention, "quarantined".into()),
        _ if is_ready(host) => (Paint::Good, "ready".into()),
        _ => (Paint::Attention, "not ready".into()),
    }
}

fn closed(host: &v1::Host) -> String {
    if is_open(host) { String::new() } else { format!(", {}", host.state) }
}

/// Says who wanted what of a host, why, and how far that has come; empty: nobody wanted anything.
pub fn wanted(host: &v1::Host, now: Timestamp) -> String {
    if host.state_by.is_empty() {
        return String::new();
    }
    let reason = if host.state_reason.is_empty() { String::new() } else { format!(": {}", host.state_reason) };
    let said = format!("{} by {}, {} ago{reason}", host.state, host.state_by, age(host.state_since_unix_ms, now));
    match host.state.as_str() {
        "draining" => format!("{said}; {}", progress(host, now)),
        _ => said,
    }
}

/// The same, or the labels where nobody wanted anything.
pub fn wanted_or_labels(host: &v1::Host, now: Timestamp) -> String {
    let labels = labels(host).join(", ");
    let labels = if labels.is_empty() { String::new() } else { format!("labels {labels}") };
    let parts = [wanted(host, now), labels].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
    if parts.is_empty() { "no labels".to_owned() } else { parts.join("; ") }
}

/// Says how far a drain has come.
fn progress(host: &v1::Host, now: Timestamp) -> String {
    let deadline = Timestamp(host.drain_deadline_unix_ms);
    let left = match (deadline > now, host.drain_then.as_str()) {
        (true, "wait") => format!("waited for, the deadline is in {}", span(deadline.since(now).as_secs())),
        (true, _) => format!("those that run then go elsewhere in {}", span(deadline.since(now).as_secs())),
        (false, "wait") => {
            format!("waited for, the deadline was {} ago", span(now.since(deadline).as_secs()))
        }
        (false, _) => "the deadline is over: those that run are stopped, and their jobs go elsewhere".to_owned(),
    };
    format!("{}; {left}", attempts(host))
}

/// Counts the attempts on a host by what becomes of them.
pub fn attempts(host: &v1::Host) -> String {
    let kinds = [(host.running, "run"), (host.stopping, "stop"), (host.held, "held")];
    let some: Vec<_> =
        kinds.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    match some.is_empty() {
        // A controller from before these counts names the attempts alone.
        true => host.attempts.len().to_string(),
        false => some.join(", "),
    }
}

/// Says why a host is in quarantine and for how long; empty: it is not.
pub fn quarantine(host: &v1::Host, now: Timestamp) -> String {
    let until = Timestamp(host.quarantine_until_unix_ms);
    match (host.quarantine.as_str(), until > now) {
        ("", _) => String::new(),
        (why, true) => format!("{why}; one job is tried on it in {}", span(until.since(now).as_secs())),
        (why, false) => why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn draining(then: &str, deadline_unix_ms: u64) -> v1::Host {
        v1::Host {
            connected: true,
            state: "draining".into(),
            state_by: "ada".into(),
            state_reason: "new kernel".into(),
            state_since_unix_ms: NOW.0 - 60_000,
            drain_deadline_unix_ms: deadline_unix_ms,
            drain_then: then.into(),
            running: 2,
            stopping: 1,
            ..v1::Host::default()
        }
    }

    #[test]
    fn a_drain_says_who_why_how_far_and_what_follows() {
        let said = wanted(&draining("requeue", NOW.0 + 120_000), NOW);
        assert_eq!(said, "draining by ada, 60s ago: new kernel; 2 run, 1 stop; those that run then go elsewhere in 2m");
        let over = wanted(&draining("requeue", NOW.0), NOW);
        assert!(
            over.ends_with("the deadline is over: those that run are stopped, and their jobs go elsewhere"),
            "{over}"
        );
        let waits = wanted(&draining("wait", NOW.0 - 300_000), NOW);
        assert!(waits.ends_with("waited for, the deadline was 5m ago"), "{waits}");
        assert_eq!(wanted(&v1::Host::default(), NOW), "");
    }

    #[test]
    fn each_state_has_its_word() {
        let word = |host: v1::Host| state(&host).1;
        assert_eq!(word(draining("wait", 0)), "draining");
        assert_eq!(word(v1::Host { connected: false, ..draining("wait", 0) }), "disconnected, draining");
        let sick = v1::Host { connected: true, quarantine: "3 attempts failed".into(), ..v1::Host::default() };
        assert_eq!(word(sick.clone()), "quarantined");
        let sick = v1::Host { quarantine_until_unix_ms: NOW.0 + 60_000, ..sick };
        assert_eq!(quarantine(&sick, NOW), "3 attempts failed; one job is tried on it in 60s");
    }
}
