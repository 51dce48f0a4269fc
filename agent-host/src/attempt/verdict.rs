//! How a step's exit is judged, and how a failure is told to people. Pure.

use std::time::Duration;

use devfleet_shared::attempt::{Failure, FailureReason, Step};
use devfleet_shared::units::{ByteSize, Span};

/// How much of a step's output goes into a message, in bytes.
const QUOTE_LIMIT: usize = 1_500;

/// How a step's container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    /// The step.
    pub step: Step,
    /// Its exit status; `None`: it was stopped at its time limit.
    pub status: Option<i64>,
    /// Something in it was killed for lack of memory.
    pub out_of_memory: bool,
    /// The engine went away while it ran, or nobody watched it.
    pub interrupted: bool,
    /// The end of its output, masked.
    pub tail: String,
}

/// The limits that messages name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    /// The step's time.
    pub time: Duration,
    /// Memory of one container in bytes.
    pub memory_bytes: u64,
}

/// Returns what is wrong with a step that ended so; `None`: it passed.
pub(super) fn judge(ending: &Ending, allowed: Allowed) -> Option<Failure> {
    let step = ending.step.name();
    let Some(status) = ending.status else {
        let message = format!(
            "the {step} step was stopped after its time limit of {}{}",
            Span(allowed.time),
            quote(&ending.tail)
        );
        return Some(Failure { reason: FailureReason::Timeout, message });
    };
    if status == 0 {
        return None;
    }
    // 137 and 143: killed, by nobody that we know of, while the engine was away: its stop took the container along.
    if ending.interrupted && !ending.out_of_memory && matches!(status, 137 | 143 | 255) {
        let message = format!("the {step} step was killed when the container engine or the machine stopped");
        return Some(Failure { reason: FailureReason::Engine, message });
    }
    let mut message = format!("the {step} step ended with status {status}");
    if ending.out_of_memory {
        message += &format!(
            "; something in it was killed for lack of memory (the limit is {})",
            ByteSize(allowed.memory_bytes)
        );
    }
    message += &quote(&ending.tail);
    Some(Failure { reason: reason(ending.step), message })
}

/// Returns the class of a step's own failure.
pub(super) fn reason(step: Step) -> FailureReason {
    match step {
        Step::Checkout => FailureReason::Checkout,
        Step::Setup => FailureReason::Setup,
        Step::Agent => FailureReason::Agent,
        Step::Verify => FailureReason::Verify,
        Step::Collect => FailureReason::Collect,
    }
}

/// Returns the end of an output for the end of a message: whole lines, where they are short enough.
fn quote(tail: &str) -> String {
    let tail = tail.trim_end();
    if tail.is_empty() {
        return "; it printed nothing".into();
    }
    let mut start = tail.len().saturating_sub(QUOTE_LIMIT);
    while !tail.is_char_boundary(start) {
        start += 1;
    }
    if start > 0
        && let Some(end) = tail[start..].find('\n')
    {
        start += end + 1;
    }
    format!("; its output ends:\n{}", &tail[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        step: Step,
        status: Option<i64>,
        out_of_memory: bool,
        interrupted: bool,
    ) -> Option<(FailureReason, String)> {
        let ending = Ending { step, status, out_of_memory, interrupted, tail: "one\ntwo\n".into() };
        let allowed = Allowed { time: Duration::from_secs(1_800), memory_bytes: 2 << 30 };
        judge(&ending, allowed).map(|failure| (failure.reason, failure.message))
    }

    #[test]
    fn every_ending_has_its_class_and_says_what_happened() {
        assert_eq!(check(Step::Agent, Some(0), true, true), None, "a killed child alone is no failure");
        for step in Step::ALL {
            let (class, message) = check(step, Some(3), false, false).expect("failed");
            assert_eq!(class, reason(step));
            assert!(
                message.contains(step.name()) && message.ends_with("status 3; its output ends:\none\ntwo"),
                "{message}"
            );
        }
        let (class, message) = check(Step::Verify, None, false, false).expect("failed");
        assert_eq!(class, FailureReason::Timeout);
        assert!(message.starts_with("the verify step was stopped after its time limit of 30m"), "{message}");
        let (class, message) = check(Step::Agent, Some(137), true, true).expect("failed");
        assert_eq!(class, FailureReason::Agent);
        assert!(message.contains("lack of memory (the limit is 2GiB)"), "{message}");
        assert_eq!(check(Step::Agent, Some(137), false, true).expect("failed").0, FailureReason::Engine);
        assert_eq!(check(Step::Agent, Some(137), false, false).expect("failed").0, FailureReason::Agent);
    }

    #[test]
    fn a_long_output_is_quoted_from_a_line_start() {
        let tail = "é line\n".repeat(1_000);
        let quoted = quote(&tail);
        assert!(quoted.len() < QUOTE_LIMIT + 40 && quoted.starts_with("; its output ends:\né line\n"), "{quoted}");
        assert_eq!(quote(" \n"), "; it printed nothing");
    }
}
