//! What a host's report changes about a job.

use devfleet_shared::attempt::{AttemptResult, Phase};
use devfleet_shared::clock::Timestamp;
use devfleet_shared::job::{JobEvent, JobPhase};

use super::{Claim, JobError, step};
use crate::retries::{self, Made};
use crate::store::records::JobState;

/// What a host saw of its attempt.
#[derive(Clone, Copy)]
pub(super) struct Observed<'a> {
    pub(super) phase: &'a Phase,
    pub(super) held_until: Option<Timestamp>,
}

/// Folds a report into the job's state: phases only rise, and the first result decides about the job.
pub(super) fn apply_report(
    state: &mut JobState,
    claim: &Claim,
    Observed { phase, held_until }: Observed<'_>,
    max_attempts: u32,
    now: Timestamp,
) -> Result<(), JobError> {
    let cancelled = state.cancelled_by.is_some();
    let Some(attempt) = state.attempts.iter_mut().find(|attempt| attempt.id == claim.attempt) else { return Ok(()) };
    if phase.rank() < attempt.phase.rank() {
        return Ok(());
    }
    attempt.held_until = held_until;
    if matches!(phase, Phase::Ended(_)) && held_until.is_none() {
        attempt.ended.get_or_insert(now);
    }
    if phase.rank() == attempt.phase.rank() {
        return Ok(());
    }
    attempt.phase = phase.clone();
    let made = Made::of(&state.attempts);
    let Some(result) = phase.result().filter(|_| state.phase == JobPhase::Running) else { return Ok(()) };
    let result = if cancelled { AttemptResult::Cancelled } else { result.clone() };
    let pause = retries::retry(&result, made, max_attempts, cancelled);
    let trouble = match &result {
        AttemptResult::Failed(failure) => Some(failure.message.clone()),
        AttemptResult::Lost => Some("the attempt was lost with its host".to_owned()),
        _ => None,
    };
    step(state, JobEvent::AttemptEnded { result, retry: pause.is_some() }, now)?;
    if let Some(pause) = pause {
        state.not_before = now.after(pause);
        state.trouble = trouble;
    }
    Ok(())
}
