//! The life of one attempt at a job.
//!
//! Assigned ─▶ Preparing ─▶ Running(step) ─▶ Publishing ─┐ succeeded
//!     └───────────┴─────────────┴──── failed, cancelled ─▶ Stopping(result) ─▶ Ended(result)
//!
//! Phases only move right, so a phase is also a clock: of two reports about one attempt the later phase is the newer
//! truth, in whatever order they arrived. A retry is a new attempt.

use serde::{Deserialize, Serialize};

/// One container run inside an environment, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Clones the base commit from the read-only mirror into the workspace. No network.
    Checkout,
    /// Installs dependencies, as the project's CI does.
    Setup,
    /// The agent does the task.
    Agent,
    /// The CI job's own script checks the result.
    Verify,
    /// Commits what is left and writes a bundle to its output. No network, no secrets.
    Collect,
}

impl Step {
    /// All steps, in the order in which they run.
    pub const ALL: [Step; 5] = [Step::Checkout, Step::Setup, Step::Agent, Step::Verify, Step::Collect];

    /// Returns the step's name: the role in container names and what logs show.
    pub fn name(self) -> &'static str {
        match self {
            Step::Checkout => "checkout",
            Step::Setup => "setup",
            Step::Agent => "agent",
            Step::Verify => "verify",
            Step::Collect => "collect",
        }
    }
}

/// Where an attempt is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The controller gave it to a host.
    Assigned,
    /// The host makes the image, the mirror, the network, the services.
    Preparing,
    /// A step runs.
    Running(Step),
    /// The branch is on its way to the forge.
    Publishing,
    /// The result stands; the environment is being torn down.
    Stopping(AttemptResult),
    /// Nothing of the environment is left (or it is held on purpose).
    Ended(AttemptResult),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptResult {
    /// The branch is pushed.
    Succeeded {
        /// The commit the branch points at, 40 hex digits.
        commit: String,
        /// Whether a `verify` step ran and passed (false: the project has none).
        verified: bool,
    },
    /// The agent changed nothing.
    NoChange,
    /// It failed.
    Failed(Failure),
    /// The controller asked for it to stop.
    Cancelled,
    /// The environment or its host is gone.
    Lost,
}

/// Why something failed: a class for programs, a message for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class.
    pub reason: FailureReason,
    /// What happened and what to do about it, in a sentence or two. Never holds a secret.
    pub message: String,
}

/// The classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureReason {
    /// No environment can be derived from the project's CI configuration.
    Derivation,
    /// The forge refuses or cannot be reached for longer than we wait.
    Forge,
    /// The image cannot be pulled.
    ImagePull,
    /// The image cannot be built from its recipe.
    ImageBuild,
    /// The image has no shell, or no git and no package manager to add it.
    ImageUnusable,
    /// A service did not get ready.
    ServiceNotReady,
    /// The repository cannot be mirrored or checked out.
    Checkout,
    /// The CI's own dependency installation failed.
    Setup,
    /// The agent failed.
    Agent,
    /// The project's own tests fail on the result.
    Verify,
    /// What the agent left cannot be collected or is not a valid bundle.
    Collect,
    /// The forge refused the push.
    Push,
    /// The merge request cannot be opened.
    MergeRequest,
    /// A time limit was reached.
    Timeout,
    /// The host has no room left.
    DiskFull,
    /// The host did not take the attempt on: what it was to have is not free. Nothing was made.
    NoRoom,
    /// The container engine failed or is gone.
    Engine,
    /// A secret that the attempt needs cannot be had.
    Secret,
    /// A defect of devfleet itself.
    Internal,
}

impl FailureReason {
    /// Says whether another attempt may end differently: the fault lies with the machinery, not with the work.
    pub fn is_retryable(self) -> bool {
        match self {
            FailureReason::DiskFull | FailureReason::NoRoom | FailureReason::Engine | FailureReason::Internal => true,
            FailureReason::Derivation
            | FailureReason::Forge
            | FailureReason::ImagePull
            | FailureReason::ImageBuild
            | FailureReason::ImageUnusable
            | FailureReason::ServiceNotReady
            | FailureReason::Checkout
            | FailureReason::Setup
            | FailureReason::Agent
            | FailureReason::Verify
            | FailureReason::Collect
            | FailureReason::Push
            | FailureReason::MergeRequest
            | FailureReason::Timeout
            | FailureReason::Secret => false,
        }
    }

    /// Returns the class's name as people and scripts see it.
    pub fn name(self) -> &'static str {
        match self {
            FailureReason::Derivation => "derivation",
            FailureReason::Forge => "forge",
            FailureReason::ImagePull => "image-pull",
            FailureReason::ImageBuild => "image-build",
            FailureReason::ImageUnusable => "image-unusable",
            FailureReason::ServiceNotReady => "service-not-ready",
            FailureReason::Checkout => "checkout",
            FailureReason::Setup => "setup",
            FailureReason::Agent => "agent",
            FailureReason::Verify => "verify",
            FailureReason::Collect => "collect",
            FailureReason::Push => "push",
            FailureReason::MergeRequest => "merge-request",
            FailureReason::Timeout => "timeout",
            FailureReason::DiskFull => "disk-full",
            FailureReason::NoRoom => "no-room",
            FailureReason::Engine => "engine",
            FailureReason::Secret => "secret",
            FailureReason::Internal => "internal",
        }
    }

    /// All classes.
    pub const ALL: [FailureReason; 19] = [
        FailureReason::Derivation,
        FailureReason::Forge,
        FailureReason::ImagePull,
        FailureReason::ImageBuild,
        FailureReason::ImageUnusable,
        FailureReason::ServiceNotReady,
        FailureReason::Checkout,
        FailureReason::Setup,
        FailureReason::Agent,
        FailureReason::Verify,
        FailureReason::Collect,
        FailureReason::Push,
        FailureReason::MergeRequest,
        FailureReason::Timeout,
        FailureReason::DiskFull,
        FailureReason::NoRoom,
        FailureReason::Engine,
        FailureReason::Secret,
        FailureReason::Internal,
    ];
}

/// What can happen to an attempt, as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The host took it on.
    Accepted,
    /// Image, mirror, network, services and workspace stand.
    Ready,
    /// The step under way passed, and this one is next.
    StepPassed {
        /// The step to start.
        next: Step,
    },
    /// `collect` brought a commit that is to be pushed.
    Collected,
    /// The result stands.
    Finished(AttemptResult),
    /// Nothing of the environment is left.
    TornDown,
}

/// What the host must do after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Make everything the first step needs.
    PrepareEnvironment,
    /// Start the container of this step.
    StartStep(Step),
    /// Ask for leave to push, and push.
    Publish,
    /// Take the environment down.
    TearDown,
}

/// An event that does not belong to the phase it met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an attempt in phase {phase:?} does not accept {event:?}")]
pub struct Refused {
    /// The phase the attempt is in.
    pub phase: Phase,
    /// What was refused.
    pub event: Event,
}

impl Phase {
    /// Applies one event. The whole life of an attempt is this table.
    pub fn on(self, event: Event) -> Result<(Phase, Option<Effect>), Refused> {
        use Event::*;
        use Phase::*;
        match (self, event) {
            (Assigned, Accepted) => Ok((Preparing, Some(Effect::PrepareEnvironment))),
            (Preparing, Ready) => Ok((Running(Step::Checkout), Some(Effect::StartStep(Step::Checkout)))),
            (Running(step), StepPassed { next }) if next > step => Ok((Running(next), Some(Effect::StartStep(next)))),
            (Running(Step::Collect), Collected) => Ok((Publishing, Some(Effect::Publish))),
            (Assigned | Preparing | Running(_) | Publishing, Finished(result)) => {
                Ok((Stopping(result), Some(Effect::TearDown)))
            }
            (Stopping(result), TornDown) => Ok((Ended(result), None)),
            (phase, event) => Err(Refused { phase, event }),
        }
    }

    /// Returns how far the attempt is. It never falls.
    pub fn rank(&self) -> u8 {
        match self {
            Phase::Assigned => 0,
            Phase::Preparing => 1,
            Phase::Running(step) => 2 + *step as u8,
            Phase::Publishing => 8,
            Phase::Stopping(_) => 9,
            Phase::Ended(_) => 10,
        }
    }

    /// Returns the result, once it stands.
    pub fn result(&self) -> Option<&AttemptResult> {
        match self {
            Phase::Stopping(result) | Phase::Ended(result) => Some(result),
            Phase::Assigned | Phase::Preparing | Phase::Running(_) | Phase::Publishing => None,
        }
    }

    /// Returns the phase's name as people see it: a running attempt by its step.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Assigned => "assigned",
            Phase::Preparing => "preparing",
            Phase::Running(step) => step.name(),
            Phase::Publishing => "publishing",
            Phase::Stopping(_) => "stopping",
            Phase::Ended(_) => "ended",
        }
    }
}

impl AttemptResult {
    /// Returns the result's name as people see it.
    pub fn name(&self) -> &'static str {
        match self {
            AttemptResult::Succeeded { .. } => "succeeded",
            AttemptResult::NoChange => "no-change",
            AttemptResult::Failed(_) => "failed",
            AttemptResult::Cancelled => "cancelled",
            AttemptResult::Lost => "lost",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(from: Phase, event: Event, to: Option<(Phase, Option<Effect>)>) {
        assert_eq!(from.clone().on(event.clone()).ok(), to, "{from:?} on {event:?}");
    }

    #[test]
    fn every_arm_of_the_table_leads_where_the_picture_says() {
        use Phase::*;
        check(Assigned, Event::Accepted, Some((Preparing, Some(Effect::PrepareEnvironment))));
        check(Preparing, Event::Ready, Some((Running(Step::Checkout), Some(Effect::StartStep(Step::Checkout)))));
        check(
            Running(Step::Checkout),
            Event::StepPassed { next: Step::Agent },
            Some((Running(Step::Agent), Some(Effect::StartStep(Step::Agent)))),
        );
        check(Running(Step::Agent), Event::StepPassed { next: Step::Setup }, None);
        check(Running(Step::Collect), Event::Collected, Some((Publishing, Some(Effect::Publish))));
        check(Running(Step::Agent), Event::Collected, None);
        for phase in [Assigned, Preparing, Running(Step::Verify), Publishing] {
            let stopped = (Stopping(AttemptResult::Cancelled), Some(Effect::TearDown));
            check(phase, Event::Finished(AttemptResult::Cancelled), Some(stopped));
        }
        check(Stopping(AttemptResult::Lost), Event::TornDown, Some((Ended(AttemptResult::Lost), None)));
        check(Ended(AttemptResult::Lost), Event::Accepted, None);
        check(Stopping(AttemptResult::Lost), Event::Finished(AttemptResult::NoChange), None);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Accepted),
            Just(Event::Ready),
            (0..5usize).prop_map(|step| Event::StepPassed { next: Step::ALL[step] }),
            Just(Event::Collected),
            Just(Event::Finished(AttemptResult::NoChange)),
            Just(Event::Finished(AttemptResult::Cancelled)),
            Just(Event::TornDown),
        ]
    }

    proptest! {
        #[test]
        fn phases_only_rise_and_a_result_never_changes(events in prop::collection::vec(any_event(), 0..40)) {
            let mut phase = Phase::Assigned;
            for event in events {
                if let Ok((next, _)) = phase.clone().on(event) {
                    prop_assert!(next.rank() > phase.rank());
                    if let Some(result) = phase.result() {
                        prop_assert_eq!(Some(result), next.result());
                    }
                    phase = next;
                }
            }
        }
    }
}
