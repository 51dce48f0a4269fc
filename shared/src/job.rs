//! The life of one job, from submission to its outcome.
//!
//! Submitted ─▶ Planning ─▶ AwaitingApproval ─▶ Queued ─▶ Running ─▶ Publishing ─▶ Ended(outcome)
//!     │   ╲▶ Triage ▶╱          │ rejected        ▲          │ failed, lost, attempts left
//!     └────── every phase but Ended can be cancelled or fail └──────────┘
//!
//! Phases only move right, but for a retry: Running ▶ Queued, which is a new attempt and so a new fence; and for what
//! was approved and is not so any more: Queued ▶ AwaitingApproval, before anything was started.

use serde::{Deserialize, Serialize};

use crate::attempt::{AttemptResult, Failure};

/// Where a job is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    /// Accepted and stored; nothing has looked at it.
    Submitted,
    /// A model judges whether the task can be done at all.
    Triage,
    /// The environment is derived and the plan written.
    Planning,
    /// A proposal stands, and waits for a person to approve its digest.
    AwaitingApproval,
    /// Approved; waits for a place on a host.
    Queued,
    /// An attempt is under way on a host.
    Running,
    /// The branch is pushed; the merge request is being opened.
    Publishing,
    /// Over, for good.
    Ended(Outcome),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A merge request was opened.
    Succeeded,
    /// The agent finished and had changed nothing.
    NoChange,
    /// Triage found that a person must say more first.
    NeedsHuman,
    /// A person rejected the proposal.
    Rejected,
    /// It failed, and a retry is of no use or was used up.
    Failed(Failure),
    /// The token budget ran out.
    BudgetExhausted,
    /// A person cancelled it.
    Cancelled,
    /// The last attempt was lost with its host.
    Lost,
}

/// What can happen to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// Triage is configured and begins.
    TriageBegan,
    /// Triage let the job pass, or there is none.
    TriagePassed,
    /// Triage found that a person must say more first.
    HumanNeeded,
    /// The proposal is stored and waits for a person.
    Proposed,
    /// The proposal is stored, and the project approves by itself.
    ProposedAndApproved,
    /// A person approved the proposal's digest.
    Approved,
    /// A person rejected the proposal.
    Rejected,
    /// A gate cannot pass: no environment can be derived, the forge refuses.
    GateFailed(Failure),
    /// The CI configuration changed after the approval: another proposal stands, and waits for a person.
    Drifted,
    /// A host owns the job now.
    Assigned,
    /// The attempt under way ended. `retry` is what the retry rule said.
    AttemptEnded {
        /// How the attempt ended.
        result: AttemptResult,
        /// Whether another attempt follows.
        retry: bool,
    },
    /// The merge request stands.
    Published,
    /// The merge request cannot be opened, and trying again is of no use.
    PublishFailed(Failure),
    /// A person cancelled the job, and no attempt is under way.
    Cancelled,
}

/// An event that does not belong to the phase it met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a job in phase {phase:?} does not accept {event:?}")]
pub struct Refused {
    /// The phase the job is in.
    pub phase: JobPhase,
    /// What was refused.
    pub event: JobEvent,
}

impl JobPhase {
    /// Applies one event. The whole life of a job is this table.
    pub fn on(self, event: JobEvent) -> Result<JobPhase, Refused> {
        use JobEvent::*;
        use JobPhase::*;
        match (self, event) {
            (Submitted, TriageBegan) => Ok(Triage),
            (Submitted | Triage, TriagePassed) => Ok(Planning),
            (Triage, HumanNeeded) => Ok(Ended(Outcome::NeedsHuman)),
            (Planning, Proposed) => Ok(AwaitingApproval),
            (Planning, ProposedAndApproved) => Ok(Queued),
            (AwaitingApproval, Approved) => Ok(Queued),
            (AwaitingApproval, JobEvent::Rejected) => Ok(Ended(Outcome::Rejected)),
            (Submitted | Triage | Planning | AwaitingApproval | Queued, GateFailed(why)) => {
                Ok(Ended(Outcome::Failed(why)))
            }
            (Queued, Drifted) => Ok(AwaitingApproval),
            (Queued, Assigned) => Ok(Running),
            (Running, AttemptEnded { retry: true, .. }) => Ok(Queued),
            (Running, AttemptEnded { result, retry: false }) => Ok(after(result)),
            (Publishing, Published) => Ok(Ended(Outcome::Succeeded)),
            (Publishing, PublishFailed(why)) => Ok(Ended(Outcome::Failed(why))),
            (Submitted | Triage | Planning | AwaitingApproval | Queued, JobEvent::Cancelled) => {
                Ok(Ended(Outcome::Cancelled))
            }
            (phase, event) => Err(Refused { phase, event }),
        }
    }

    /// Says whether the job is over.
    pub fn is_terminal(&self) -> bool {
        matches!(self, JobPhase::Ended(_))
    }

    /// Returns the phase's name as people see it.
    pub fn name(&self) -> &'static str {
        match self {
            JobPhase::Submitted => "submitted",
            JobPhase::Triage => "triage",
            JobPhase::Planning => "planning",
            JobPhase::AwaitingApproval => "awaiting-approval",
            JobPhase::Queued => "queued",
            JobPhase::Running => "running",
            JobPhase::Publishing => "publishing",
            JobPhase::Ended(_) => "ended",
        }
    }
}

impl Outcome {
    /// Returns the outcome's name as people and scripts see it.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Succeeded => "succeeded",
            Outcome::NoChange => "no-change",
            Outcome::NeedsHuman => "needs-human",
            Outcome::Rejected => "rejected",
            Outcome::Failed(_) => "failed",
            Outcome::BudgetExhausted => "budget-exhausted",
            Outcome::Cancelled => "cancelled",
            Outcome::Lost => "lost",
        }
    }
}

fn after(result: AttemptResult) -> JobPhase {
    match result {
        AttemptResult::Succeeded { .. } => JobPhase::Publishing,
        AttemptResult::NoChange => JobPhase::Ended(Outcome::NoChange),
        AttemptResult::Failed(why) => JobPhase::Ended(Outcome::Failed(why)),
        AttemptResult::Cancelled => JobPhase::Ended(Outcome::Cancelled),
        AttemptResult::Lost => JobPhase::Ended(Outcome::Lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::FailureReason;

    fn check(from: JobPhase, event: JobEvent, to: Option<JobPhase>) {
        assert_eq!(from.clone().on(event.clone()).ok(), to, "{from:?} on {event:?}");
    }

    fn why() -> Failure {
        Failure { reason: FailureReason::Agent, message: "exit status 1".into() }
    }

    #[test]
    fn every_arm_of_the_table_leads_where_the_picture_says() {
        use JobPhase::*;
        check(Submitted, JobEvent::TriageBegan, Some(Triage));
        check(Submitted, JobEvent::TriagePassed, Some(Planning));
        check(Triage, JobEvent::TriagePassed, Some(Planning));
        check(Triage, JobEvent::HumanNeeded, Some(Ended(Outcome::NeedsHuman)));
        check(Planning, JobEvent::Proposed, Some(AwaitingApproval));
        check(Planning, JobEvent::ProposedAndApproved, Some(Queued));
        check(AwaitingApproval, JobEvent::Approved, Some(Queued));
        check(AwaitingApproval, JobEvent::Rejected, Some(Ended(Outcome::Rejected)));
        check(Queued, JobEvent::Drifted, Some(AwaitingApproval));
        check(Queued, JobEvent::Assigned, Some(Running));
        check(Publishing, JobEvent::Published, Some(Ended(Outcome::Succeeded)));
        check(Publishing, JobEvent::PublishFailed(why()), Some(Ended(Outcome::Failed(why()))));
        for phase in [Submitted, Triage, Planning, AwaitingApproval, Queued] {
            check(phase.clone(), JobEvent::GateFailed(why()), Some(Ended(Outcome::Failed(why()))));
            check(phase, JobEvent::Cancelled, Some(Ended(Outcome::Cancelled)));
        }
        check(Running, JobEvent::Cancelled, None);
        check(Submitted, JobEvent::Approved, None);
        check(Running, JobEvent::Drifted, None);
        check(AwaitingApproval, JobEvent::Drifted, None);
    }

    #[test]
    fn the_end_of_an_attempt_decides_about_the_job() {
        let ended = |result, retry| JobEvent::AttemptEnded { result, retry };
        let commit = AttemptResult::Succeeded { commit: "c0ffee".into(), verified: true };
        check(JobPhase::Running, ended(commit, false), Some(JobPhase::Publishing));
        check(JobPhase::Running, ended(AttemptResult::NoChange, false), Some(JobPhase::Ended(Outcome::NoChange)));
        check(JobPhase::Running, ended(AttemptResult::Cancelled, false), Some(JobPhase::Ended(Outcome::Cancelled)));
        check(JobPhase::Running, ended(AttemptResult::Lost, false), Some(JobPhase::Ended(Outcome::Lost)));
        check(JobPhase::Running, ended(AttemptResult::Lost, true), Some(JobPhase::Queued));
        check(
            JobPhase::Running,
            ended(AttemptResult::Failed(why()), false),
            Some(JobPhase::Ended(Outcome::Failed(why()))),
        );
    }

    #[test]
    fn nothing_moves_a_job_that_has_ended() {
        let ended = JobPhase::Ended(Outcome::Cancelled);
        for event in
            [JobEvent::TriagePassed, JobEvent::Approved, JobEvent::Assigned, JobEvent::Published, JobEvent::Cancelled]
        {
            check(ended.clone(), event, None);
        }
    }
}
