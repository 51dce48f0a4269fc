//! What a host's report does to a job's state. A decider.

use devfleet_shared::attempt::{AttemptResult, Phase};
use devfleet_shared::clock::Timestamp;
use devfleet_shared::job::{JobEvent, JobPhase};

use super::{Claim, JobError, step};
use crate::retries::{self, Stopped};
use crate::store::records::JobState;

/// What a host saw of its attempt.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Where it is.
    pub phase: &'a Phase,
    /// Until when its environment is held.
    pub held_until: Option<Timestamp>,
    /// The tokens that its agent says it has used; 0: it says nothing.
    pub tokens: u64,
}

impl<'a> From<&'a Phase> for Observed<'a> {
    fn from(phase: &'a Phase) -> Self {
        Observed { phase, held_until: None, tokens: 0 }
    }
}

/// Folds a report into the job's state: phases only rise, and the first result decides about the job.
pub(super) fn apply_report(
    state: &mut JobState,
    claim: &Claim,
    Observed { phase, held_until, tokens }: Observed<'_>,
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
    // With the phase, which is written anyway: the store is no place for what changes with every message.
    attempt.tokens = attempt.tokens.max(tokens);
    if phase.result().is_some() {
        attempt.finished.get_or_insert(now);
    }
    let recalled = attempt.recalled.clone();
    let Some(result) = phase.result().filter(|_| state.phase == JobPhase::Running) else { return Ok(()) };
    let result = if cancelled { AttemptResult::Cancelled } else { result.clone() };
    let stopped = match (cancelled, &recalled) {
        (true, _) => Stopped::ByAPerson,
        (false, Some(_)) => Stopped::ForAnotherHost,
        (false, None) => Stopped::ByNobody,
    };
    let pause = retries::retry(&result, retries::Made::of(&state.attempts), max_attempts, stopped);
    let trouble = match &result {
        AttemptResult::Cancelled => recalled.map(|why| format!("the attempt was stopped for another host: {why}")),
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

#[cfg(test)]
mod tests {
    use devfleet_shared::attempt::{Failure, FailureReason, Step};
    use devfleet_shared::job::Outcome;

    use devfleet_shared::id::{AttemptId, Fence, HostId, JobId};

    use super::*;
    use crate::store::records::AttemptRecord;

    fn running() -> (JobState, Claim) {
        let claim =
            Claim { host: HostId::random(), job: JobId::random(), attempt: AttemptId::random(), fence: Fence(7) };
        let mut state = JobState::submitted(Timestamp(1));
        state.phase = JobPhase::Running;
        state.attempts.push(AttemptRecord::assigned(
            claim.attempt.clone(),
            claim.host.clone(),
            "devfleet/x".into(),
            Timestamp(1),
        ));
        (state, claim)
    }

    fn report(state: &mut JobState, claim: &Claim, phase: Phase) {
        apply_report(state, claim, Observed::from(&phase), 2, Timestamp(1_000)).expect("the table allows it");
    }

    fn commit() -> AttemptResult {
        AttemptResult::Succeeded { commit: "c0ffee".into(), verified: true }
    }

    #[test]
    fn an_older_report_changes_nothing() {
        let (mut state, claim) = running();
        report(&mut state, &claim, Phase::Running(Step::Verify));
        let before = state.clone();
        report(&mut state, &claim, Phase::Running(Step::Agent));
        assert_eq!(state, before);
    }

    #[test]
    fn the_first_result_decides_and_the_end_only_closes_the_attempt() {
        let (mut state, claim) = running();
        report(&mut state, &claim, Phase::Stopping(commit()));
        assert_eq!(state.phase, JobPhase::Publishing);
        report(&mut state, &claim, Phase::Ended(commit()));
        assert_eq!(state.phase, JobPhase::Publishing);
        assert_eq!(state.attempts[0].ended, Some(Timestamp(1_000)));
    }

    #[test]
    fn a_held_environment_is_not_over_until_it_is_gone() {
        let (mut state, claim) = running();
        let until = Some(Timestamp(9_000));
        let held = Observed { phase: &Phase::Ended(commit()), held_until: until, tokens: 0 };
        apply_report(&mut state, &claim, held, 2, Timestamp(1_000)).expect("allowed");
        assert_eq!(state.phase, JobPhase::Publishing);
        assert_eq!((state.attempts[0].ended, state.attempts[0].held_until), (None, until));
        report(&mut state, &claim, Phase::Ended(commit()));
        assert_eq!((state.attempts[0].ended, state.attempts[0].held_until), (Some(Timestamp(1_000)), None));
    }

    #[test]
    fn a_cancelled_job_ends_cancelled_whatever_its_attempt_brought() {
        let (mut state, claim) = running();
        state.cancelled_by = Some("ada".into());
        report(&mut state, &claim, Phase::Stopping(commit()));
        assert_eq!(state.phase, JobPhase::Ended(Outcome::Cancelled));
    }

    #[test]
    fn a_fault_of_the_machinery_queues_the_job_again_after_a_pause() {
        let (mut state, claim) = running();
        let failure = Failure { reason: FailureReason::Engine, message: "the engine is gone".into() };
        report(&mut state, &claim, Phase::Stopping(AttemptResult::Failed(failure)));
        assert_eq!(state.phase, JobPhase::Queued);
        assert!(state.not_before > Timestamp(1_000));
        assert_eq!(state.trouble.as_deref(), Some("the engine is gone"));
    }
    #[test]
    fn a_recalled_attempt_that_stops_queues_its_job_at_once_and_a_cancelled_job_stays_cancelled() {
        let (mut state, claim) = running();
        state.attempts[0].recalled = Some("host box is draining by ada".into());
        let (before, mut cancelled) = (state.clone(), state.clone());
        report(&mut state, &claim, Phase::Stopping(AttemptResult::Cancelled));
        assert_eq!((&state.phase, state.not_before), (&JobPhase::Queued, Timestamp(1_000)));
        assert!(state.trouble.as_ref().is_some_and(|trouble| trouble.contains("draining by ada")), "{state:?}");
        assert_eq!(state.attempts[0].finished, Some(Timestamp(1_000)));
        cancelled.cancelled_by = Some("eve".into());
        report(&mut cancelled, &claim, Phase::Stopping(AttemptResult::Cancelled));
        assert_eq!(cancelled.phase, JobPhase::Ended(Outcome::Cancelled));
        // It was quicker.
        let mut quicker = before;
        report(&mut quicker, &claim, Phase::Stopping(commit()));
        assert_eq!(quicker.phase, JobPhase::Publishing);
    }
}
