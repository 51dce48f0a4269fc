//! Which way an attempt goes: where it goes on after a restart, which step follows which, and what the end is.
//!
//! ```text
//! checkout ─▶ setup ─▶ agent ─▶ verify ─▶ collect ─▶ publish
//!    ╰ failed ╯ ends it  ╰ failed ───────────▶ ╯ the diff is shown, nothing is pushed
//! ```
//! Pure: everything is read off the assignment and the ledger's history.

use devfleet_shared::assignment::Assignment;
use devfleet_shared::attempt::{AttemptResult, Effect, Event, Failure, Phase, Step};

use super::ports::Verification;
use crate::engine::ContainerState;
use crate::ledger::History;

/// The status with which the entry script says that its variables did not arrive: the command never ran.
pub(super) const NO_FRAME: i64 = 125;
/// The status with which `collect` says that there is nothing to collect.
pub(super) const NOTHING_CHANGED: i64 = 10;

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// This has happened already.
    Event(Event),
    /// This is to be done, or to be gone on with.
    Effect(Effect),
    /// Nothing: the attempt is over.
    Nothing,
}

/// Returns the phase in which an attempt with this ledger is, and what comes next.
///
/// From `collect` on everything is done again until the branch is pushed: it is cheap, and brings the same commit.
pub(super) fn resume(assignment: &Assignment, history: &History) -> (Phase, Next) {
    if let Some(result) = history.result() {
        if history.torn_down() || history.held().is_some() {
            return (Phase::Ended(result.clone()), Next::Nothing);
        }
        return (Phase::Stopping(result.clone()), Next::Effect(Effect::TearDown));
    }
    if history.pushed() {
        return (Phase::Publishing, Next::Event(Event::Finished(succeeded(history))));
    }
    match history.latest_step() {
        None => (Phase::Assigned, Next::Event(Event::Accepted)),
        Some(step) if step != Step::Collect && history.ended(step).is_some() => {
            (Phase::Running(step), Next::Event(after(assignment, history, step)))
        }
        Some(step) => (Phase::Running(step), Next::Effect(Effect::StartStep(step))),
    }
}

/// Returns what follows a step, other than `collect`, that has ended.
pub(super) fn after(assignment: &Assignment, history: &History, step: Step) -> Event {
    let failure = history.ended(step).and_then(|end| end.failure.clone());
    let environment = &assignment.environment;
    match (step, failure) {
        (Step::Checkout | Step::Setup, Some(failure)) => Event::Finished(AttemptResult::Failed(failure)),
        (Step::Checkout, None) if !environment.setup.is_empty() => Event::StepPassed { next: Step::Setup },
        (Step::Checkout | Step::Setup, None) => Event::StepPassed { next: Step::Agent },
        (Step::Agent, None) if !environment.verify.is_empty() => Event::StepPassed { next: Step::Verify },
        (Step::Agent | Step::Verify | Step::Collect, _) => Event::StepPassed { next: Step::Collect },
    }
}

/// What `collect` brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Harvest {
    /// A commit, which is in the mirror.
    Commit,
    /// Nothing was changed.
    Nothing,
    /// It failed.
    Failed(Failure),
}

/// Returns what follows `collect`. An earlier failure stays the attempt's result.
pub(super) fn after_collect(history: &History, harvest: Harvest) -> Event {
    let failed = |failure| Event::Finished(AttemptResult::Failed(failure));
    match (harvest, pending(history)) {
        (Harvest::Nothing, _) if failure(history, Step::Agent).is_none() => Event::Finished(AttemptResult::NoChange),
        (_, Some(earlier)) => failed(earlier),
        (Harvest::Failed(failure), None) => failed(failure),
        (Harvest::Commit, None) => Event::Collected,
        (Harvest::Nothing, None) => Event::Finished(AttemptResult::NoChange),
    }
}

/// Returns the failure because of which nothing is pushed.
pub(super) fn pending(history: &History) -> Option<Failure> {
    failure(history, Step::Agent).or_else(|| failure(history, Step::Verify))
}

/// Returns what `verify` showed, if it ran.
pub(super) fn verification(history: &History) -> Option<Verification> {
    history.ended(Step::Verify).map(|end| Verification {
        passed: end.failure.is_none(),
        seconds: end.seconds,
        output_tail: end.tail.clone(),
    })
}

/// Returns the result of an attempt whose branch is pushed.
pub(super) fn succeeded(history: &History) -> AttemptResult {
    let verified = verification(history).is_some_and(|verification| verification.passed);
    AttemptResult::Succeeded { commit: history.collected().unwrap_or_default().to_owned(), verified }
}

fn failure(history: &History, step: Step) -> Option<Failure> {
    history.ended(step).and_then(|end| end.failure.clone())
}

/// What to do about a step's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Move {
    /// Make it.
    Make,
    /// Start it, and hand its variables over.
    Start,
    /// Read its output to the end and take its exit.
    Follow,
    /// Remove it and make another: its command never ran.
    Remake,
    /// Give up: its command ran, and the container is gone.
    GiveUp,
}

/// Decides what to do about a step's container from what the ledger says and the engine shows.
///
/// A second container is only made for a command that certainly did not run.
pub(super) fn next_move(made: bool, handed_over: bool, state: Option<&ContainerState>) -> Move {
    match (made, handed_over, state) {
        (false, _, _) | (true, false, None) => Move::Make,
        (true, true, None) => Move::GiveUp,
        (true, _, Some(ContainerState::Created)) => Move::Start,
        (true, _, Some(ContainerState::Running { .. })) => Move::Follow,
        (true, false, Some(ContainerState::Exited(exit))) if exit.status == NO_FRAME => Move::Remake,
        (true, _, Some(ContainerState::Exited(_))) => Move::Follow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Exit;

    #[test]
    fn a_second_container_is_made_only_for_a_command_that_certainly_did_not_run() {
        let exited = |status| Some(ContainerState::Exited(Exit { status, out_of_memory: false }));
        let running = || Some(ContainerState::Running { address: None });
        let table = [
            (false, false, None, Move::Make),
            (true, false, None, Move::Make),
            (true, true, None, Move::GiveUp),
            (true, false, Some(ContainerState::Created), Move::Start),
            (true, true, Some(ContainerState::Created), Move::Start),
            (true, false, running(), Move::Follow),
            (true, true, running(), Move::Follow),
            (true, false, exited(NO_FRAME), Move::Remake),
            (true, true, exited(NO_FRAME), Move::Follow),
            (true, false, exited(0), Move::Follow),
            (true, true, exited(1), Move::Follow),
        ];
        for (made, handed_over, state, expected) in table {
            let found = next_move(made, handed_over, state.as_ref());
            assert_eq!(found, expected, "made {made}, handed over {handed_over}, {state:?}");
        }
    }
}
