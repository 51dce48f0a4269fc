//! The controller's calls and messages in the words of this host, and back.

use std::sync::Arc;

use async_trait::async_trait;
use devfleet_proto::convert::WireError;
use devfleet_proto::v1::session_client::SessionClient;
use devfleet_proto::v1::{self};
use devfleet_shared::assignment::Assignment;
use devfleet_shared::attempt::Step;
use devfleet_shared::environment::PullPolicy;
use devfleet_shared::id::Fence;
use devfleet_shared::secret::Secret;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::assignments::{AssignmentSet, Unreadable, Wanted};
use crate::attempt::ports::{Claim, Controller, ControllerError, Grant, Leave, PublishRequest, StepVariable};
use crate::attempt::reports::Report;
use crate::engine::RegistryCredential;
use crate::mirror::GitLogin;
use crate::spool::shipping::Dial;

/// The largest message that is taken from a controller, in bytes: a set of many assignments with long tasks.
const MESSAGE_LIMIT: usize = 64 << 20;
/// The reason with which controllers refuse a host that is not part of the fleet.
pub(super) const HOST_REMOVED: &str = "HOST_REMOVED";
/// How long a call may take.
const CALL: std::time::Duration = std::time::Duration::from_secs(30);

/// Makes a client over a fresh connection.
pub(super) fn client(channel: Channel) -> SessionClient<Channel> {
    SessionClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// Reads a set of assignments. Fails if one does not even say which attempt it is for: acting on the rest might drop it.
pub(super) fn assignment_set(wire: v1::AssignmentSet) -> Result<AssignmentSet, WireError> {
    let mut set = AssignmentSet { generation: wire.generation, ..AssignmentSet::default() };
    for wire in wire.assignments {
        let (job, attempt, fence, cancel) = (wire.job.parse(), wire.attempt.parse(), Fence(wire.fence), wire.cancel);
        match (Assignment::try_from(wire), job, attempt) {
            (Ok(assignment), _, _) => {
                drop(set.wanted.insert(assignment.attempt.clone(), Wanted { assignment, cancel }))
            }
            (Err(error), Ok(job), Ok(attempt)) => {
                set.unreadable.insert(attempt, Unreadable { job, fence, problem: error.to_string() });
            }
            (Err(error), _, _) => return Err(error),
        }
    }
    Ok(set)
}

/// Writes a report.
pub(super) fn report(report: &Report) -> v1::AttemptReport {
    v1::AttemptReport {
        job: report.claim.job.to_string(),
        attempt: report.claim.attempt.to_string(),
        fence: report.claim.fence.0,
        state: Some((&report.phase).into()),
        doing: report.doing.clone(),
        held_until_unix_ms: report.held_until.map_or(0, |until| until.0),
        sequence: report.sequence,
        tokens: report.tokens,
    }
}

/// Writes what the host owns.
pub(super) fn owned(report: &Report) -> v1::OwnedAttempt {
    v1::OwnedAttempt {
        attempt: report.claim.attempt.to_string(),
        job: report.claim.job.to_string(),
        fence: report.claim.fence.0,
        state: Some((&report.phase).into()),
    }
}

/// The controller, over a connection for each call: they are few.
pub struct RemoteController {
    /// Makes connections.
    pub dial: Arc<dyn Dial>,
}

impl RemoteController {
    async fn client(&self) -> Result<SessionClient<Channel>, ControllerError> {
        let channel = self.dial.dial().await;
        let channel = channel.map_err(|error| ControllerError::Unreachable { detail: error.to_string() })?;
        Ok(client(channel))
    }
}

fn within<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL);
    request
}

#[async_trait]
impl Controller for RemoteController {
    async fn get_grant(&self, claim: &Claim) -> Result<Grant, ControllerError> {
        let request = v1::GetGrantRequest {
            job: claim.job.to_string(),
            attempt: claim.attempt.to_string(),
            fence: claim.fence.0,
        };
        let answer = self.client().await?.get_grant(within(request)).await.map_err(refusal)?;
        Ok(grant(answer.into_inner()))
    }

    async fn authorize_publish(&self, request: &PublishRequest) -> Result<Leave, ControllerError> {
        let verification = request.verification.clone();
        let wire = v1::AuthorizePublishRequest {
            job: request.claim.job.to_string(),
            attempt: request.claim.attempt.to_string(),
            fence: request.claim.fence.0,
            commit: request.commit.clone(),
            diff: request.diff.clone(),
            diff_truncated: request.diff_truncated,
            verification: verification.map(|verification| v1::Verification {
                ran: true,
                passed: verification.passed,
                seconds: verification.seconds,
                output_tail: verification.output_tail,
            }),
            push: request.push,
        };
        let answer = self.client().await?.authorize_publish(within(wire)).await.map_err(refusal)?.into_inner();
        Ok(if answer.granted { Leave::Granted } else { Leave::Refused(answer.reason) })
    }
}

fn grant(wire: v1::Grant) -> Grant {
    let git = (!wire.git_password.is_empty())
        .then(|| GitLogin { username: wire.git_username, password: Secret::new(wire.git_password) });
    let registries = wire.registries.into_iter().map(|login| {
        let credential = RegistryCredential { username: login.username, password: Secret::new(login.password) };
        (login.registry, credential)
    });
    Grant {
        variables: wire.variables.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
        step_variables: wire.step_variables.into_iter().map(step_variable).collect(),
        git,
        registries: registries.collect(),
        // An older controller names none.
        pull_policy: PullPolicy::named(&wire.pull_policy).unwrap_or_default(),
    }
}

/// A step that this host does not know gets nothing: a newer controller may name one.
fn step_variable(wire: v1::StepVariable) -> StepVariable {
    let known = |step: i32| v1::Step::try_from(step).ok().and_then(|step| Step::try_from(step).ok());
    let steps = wire.steps.into_iter().filter_map(known).collect();
    StepVariable { name: wire.name, value: Secret::new(wire.value), steps }
}

fn refusal(status: Status) -> ControllerError {
    let detail = status.message().to_owned();
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    match (reason.as_str(), status.code()) {
        ("STALE_FENCE" | "NO_SUCH_JOB" | "JOB_ENDED" | HOST_REMOVED, _) => ControllerError::Superseded { detail },
        (
            _,
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Internal,
        ) => ControllerError::Unreachable { detail },
        _ => ControllerError::Refused { detail },
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    #[test]
    fn a_refusal_is_told_from_a_controller_that_cannot_answer_and_from_a_lost_job() {
        let status = |code, reason: &str| {
            Status::with_error_details(code, "words", ErrorDetails::with_error_info(reason, "devfleet", []))
        };
        let detail = "words".to_owned();
        let table = [
            (Code::FailedPrecondition, "STALE_FENCE", ControllerError::Superseded { detail: detail.clone() }),
            (Code::FailedPrecondition, "SECRET_MISSING", ControllerError::Refused { detail: detail.clone() }),
            (Code::Unavailable, "STORE_AWAY", ControllerError::Unreachable { detail: detail.clone() }),
            (Code::PermissionDenied, HOST_REMOVED, ControllerError::Superseded { detail: detail.clone() }),
            (Code::PermissionDenied, "NOT_A_HOST", ControllerError::Refused { detail }),
        ];
        for (code, reason, expected) in table {
            assert_eq!(refusal(status(code, reason)), expected, "{code:?} {reason}");
        }
    }

    #[test]
    fn empty_credentials_are_none() {
        let grant = grant(v1::Grant { git_username: "x".into(), ..v1::Grant::default() });
        assert!(grant.git.is_none() && grant.secrets().is_empty());
    }

    #[test]
    fn an_assignment_that_cannot_be_read_is_kept_by_name_and_spoils_the_set_without_one() {
        let good =
            devfleet_proto::convert::assignment_to_wire(&crate::assignments::tests::assignment("a3f91c20", 1), true);
        let strange = v1::Assignment { attempt: "00000001".into(), environment: None, ..good.clone() };
        let read = |assignments| assignment_set(v1::AssignmentSet { generation: 7, assignments });
        let set = read(vec![good.clone(), strange]).expect("readable");
        assert!(set.generation == 7 && set.wanted.values().all(|wanted| wanted.cancel) && set.wanted.len() == 1);
        let (attempt, unreadable) = set.unreadable.first_key_value().expect("kept");
        assert!(attempt.as_str() == "00000001" && unreadable.problem.contains("environment"), "{unreadable:?}");
        let nameless = v1::Assignment { attempt: "x".into(), ..good.clone() };
        assert!(read(vec![good, nameless]).is_err());
    }
}
