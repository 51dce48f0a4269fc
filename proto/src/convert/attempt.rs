//! Where an attempt is and how it ended.
//!
//! A newer peer may know classes of failure that we do not: those arrive as `Internal`, with their message.

use devfleet_shared::attempt::{AttemptResult, Failure, FailureReason, Phase, Step};

use super::{WireError, required};
use crate::v1;
use crate::v1::attempt_result::{Cancelled, Kind, Lost, NoChange, Succeeded};

impl From<Step> for v1::Step {
    fn from(step: Step) -> Self {
        match step {
            Step::Checkout => v1::Step::Checkout,
            Step::Setup => v1::Step::Setup,
            Step::Agent => v1::Step::Agent,
            Step::Verify => v1::Step::Verify,
            Step::Collect => v1::Step::Collect,
        }
    }
}

impl From<&Step> for v1::Step {
    fn from(step: &Step) -> Self {
        Self::from(*step)
    }
}

impl TryFrom<v1::Step> for Step {
    type Error = WireError;
    fn try_from(step: v1::Step) -> Result<Self, WireError> {
        match step {
            v1::Step::Checkout => Ok(Step::Checkout),
            v1::Step::Setup => Ok(Step::Setup),
            v1::Step::Agent => Ok(Step::Agent),
            v1::Step::Verify => Ok(Step::Verify),
            v1::Step::Collect => Ok(Step::Collect),
            v1::Step::Unspecified => Err(WireError::new("step", "it is missing")),
        }
    }
}

/// Reads a step as the generated code stores it.
pub(super) fn step_of(number: i32) -> Result<Step, WireError> {
    v1::Step::try_from(number)
        .map_err(|_| WireError::new("step", format!("no step has the number {number}")))?
        .try_into()
}

impl From<&Failure> for v1::Failure {
    fn from(failure: &Failure) -> Self {
        Self { reason: failure.reason.name().to_owned(), message: failure.message.clone() }
    }
}

impl From<v1::Failure> for Failure {
    fn from(failure: v1::Failure) -> Self {
        let known = FailureReason::ALL.into_iter().find(|reason| reason.name() == failure.reason);
        Self { reason: known.unwrap_or(FailureReason::Internal), message: failure.message }
    }
}

impl From<&AttemptResult> for v1::AttemptResult {
    fn from(result: &AttemptResult) -> Self {
        let kind = match result {
            AttemptResult::Succeeded { commit, verified } => {
                Kind::Succeeded(Succeeded { commit: commit.clone(), verified: *verified })
            }
            AttemptResult::NoChange => Kind::NoChange(NoChange {}),
            AttemptResult::Failed(failure) => Kind::Failed(failure.into()),
            AttemptResult::Cancelled => Kind::Cancelled(Cancelled {}),
            AttemptResult::Lost => Kind::Lost(Lost {}),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::AttemptResult> for AttemptResult {
    type Error = WireError;
    fn try_from(result: v1::AttemptResult) -> Result<Self, WireError> {
        Ok(match required("AttemptResult.kind", result.kind)? {
            Kind::Succeeded(Succeeded { commit, verified }) => AttemptResult::Succeeded { commit, verified },
            Kind::NoChange(NoChange {}) => AttemptResult::NoChange,
            Kind::Failed(failure) => AttemptResult::Failed(failure.into()),
            Kind::Cancelled(Cancelled {}) => AttemptResult::Cancelled,
            Kind::Lost(Lost {}) => AttemptResult::Lost,
        })
    }
}

impl From<&Phase> for v1::AttemptState {
    fn from(phase: &Phase) -> Self {
        let (name, step) = match phase {
            Phase::Assigned => (v1::AttemptPhase::Assigned, v1::Step::Unspecified),
            Phase::Preparing => (v1::AttemptPhase::Preparing, v1::Step::Unspecified),
            Phase::Running(step) => (v1::AttemptPhase::Running, step.into()),
            Phase::Publishing => (v1::AttemptPhase::Publishing, v1::Step::Unspecified),
            Phase::Stopping(_) => (v1::AttemptPhase::Stopping, v1::Step::Unspecified),
            Phase::Ended(_) => (v1::AttemptPhase::Ended, v1::Step::Unspecified),
        };
        Self { phase: name.into(), step: step.into(), result: phase.result().map(Into::into) }
    }
}

impl TryFrom<v1::AttemptState> for Phase {
    type Error = WireError;
    fn try_from(state: v1::AttemptState) -> Result<Self, WireError> {
        let v1::AttemptState { phase, step, result } = state;
        let name = v1::AttemptPhase::try_from(phase)
            .map_err(|_| WireError::new("AttemptState.phase", format!("no phase has the number {phase}")))?;
        let result = || required("AttemptState.result", result)?.try_into();
        match name {
            v1::AttemptPhase::Assigned => Ok(Phase::Assigned),
            v1::AttemptPhase::Preparing => Ok(Phase::Preparing),
            v1::AttemptPhase::Running => step_of(step).map(Phase::Running),
            v1::AttemptPhase::Publishing => Ok(Phase::Publishing),
            v1::AttemptPhase::Stopping => result().map(Phase::Stopping),
            v1::AttemptPhase::Ended => result().map(Phase::Ended),
            v1::AttemptPhase::Unspecified => Err(WireError::new("AttemptState.phase", "it is missing")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Vec<AttemptResult> {
        let failed = FailureReason::ALL
            .map(|reason| AttemptResult::Failed(Failure { reason, message: format!("because of {}", reason.name()) }));
        let mut all = vec![
            AttemptResult::Succeeded { commit: "c0ffee".into(), verified: true },
            AttemptResult::Succeeded { commit: "c0ffee".into(), verified: false },
            AttemptResult::NoChange,
            AttemptResult::Cancelled,
            AttemptResult::Lost,
        ];
        all.extend(failed);
        all
    }

    #[test]
    fn every_phase_comes_back_as_it_went() {
        let mut phases = vec![Phase::Assigned, Phase::Preparing, Phase::Publishing];
        phases.extend(Step::ALL.map(Phase::Running));
        phases.extend(results().into_iter().flat_map(|result| [Phase::Stopping(result.clone()), Phase::Ended(result)]));
        for phase in phases {
            assert_eq!(Phase::try_from(v1::AttemptState::from(&phase)), Ok(phase));
        }
    }

    #[test]
    fn a_reason_from_a_newer_peer_becomes_internal_and_keeps_its_message() {
        let newer = v1::Failure { reason: "solar-flare".into(), message: "bits flipped".into() };
        assert_eq!(Failure::from(newer), Failure { reason: FailureReason::Internal, message: "bits flipped".into() });
    }

    #[test]
    fn states_that_mean_nothing_are_refused_by_field() {
        let state = |phase: v1::AttemptPhase| v1::AttemptState { phase: phase.into(), step: 0, result: None };
        let field = |state: v1::AttemptState| Phase::try_from(state).expect_err("refused").field;
        assert_eq!(field(state(v1::AttemptPhase::Unspecified)), "AttemptState.phase");
        assert_eq!(field(state(v1::AttemptPhase::Running)), "step");
        assert_eq!(field(state(v1::AttemptPhase::Ended)), "AttemptState.result");
        assert_eq!(field(v1::AttemptState { phase: 99, ..v1::AttemptState::default() }), "AttemptState.phase");
        let empty = v1::AttemptResult { kind: None };
        assert_eq!(AttemptResult::try_from(empty).expect_err("refused").field, "AttemptResult.kind");
    }
}
