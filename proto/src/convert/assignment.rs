//! What a host is to carry out. The wire adds one flag that is no part of the assignment: that it is to stop.

use std::collections::BTreeMap;
use std::time::Duration;

use devfleet_shared::assignment::{AgentKind, AgentSpec, Assignment, Limits, Repository};
use devfleet_shared::id::Fence;

use super::attempt::step_of;
use super::{WireError, parsed, required, seconds};
use crate::v1;

/// Writes an assignment for a host; `cancel` says that the attempt is to be stopped and taken down.
pub fn assignment_to_wire(assignment: &Assignment, cancel: bool) -> v1::Assignment {
    v1::Assignment {
        job: assignment.job.to_string(),
        attempt: assignment.attempt.to_string(),
        fence: assignment.fence.0,
        cancel,
        project: assignment.project.to_string(),
        task: assignment.task.clone(),
        plan: assignment.plan.clone(),
        environment: Some((&assignment.environment).into()),
        recipe: Some((&assignment.recipe).into()),
        repository: Some((&assignment.repository).into()),
        agent: Some((&assignment.agent).into()),
        limits: Some((&assignment.limits).into()),
        hold_seconds: seconds(assignment.hold),
    }
}

impl TryFrom<v1::Assignment> for Assignment {
    type Error = WireError;
    fn try_from(wire: v1::Assignment) -> Result<Self, WireError> {
        Ok(Self {
            job: parsed("Assignment.job", &wire.job)?,
            attempt: parsed("Assignment.attempt", &wire.attempt)?,
            fence: Fence(wire.fence),
            project: parsed("Assignment.project", &wire.project)?,
            task: wire.task,
            plan: wire.plan,
            environment: required("Assignment.environment", wire.environment)?.try_into()?,
            recipe: required("Assignment.recipe", wire.recipe)?.try_into()?,
            repository: required("Assignment.repository", wire.repository)?.into(),
            agent: required("Assignment.agent", wire.agent)?.try_into()?,
            limits: required("Assignment.limits", wire.limits)?.try_into()?,
            hold: Duration::from_secs(wire.hold_seconds),
        })
    }
}

impl From<&Repository> for v1::Repository {
    fn from(repository: &Repository) -> Self {
        let Repository { url, base_commit, base_branch, work_branch } = repository.clone();
        Self { url, base_commit, base_branch, work_branch }
    }
}

impl From<v1::Repository> for Repository {
    fn from(wire: v1::Repository) -> Self {
        let v1::Repository { url, base_commit, base_branch, work_branch } = wire;
        Self { url, base_commit, base_branch, work_branch }
    }
}

impl From<&AgentSpec> for v1::Agent {
    fn from(agent: &AgentSpec) -> Self {
        Self {
            name: agent.name.to_string(),
            kind: kind_name(agent.kind).to_owned(),
            command: agent.command.clone(),
            variables: agent.variables.clone().into_iter().collect(),
            secrets: agent.secrets.clone(),
        }
    }
}

impl TryFrom<v1::Agent> for AgentSpec {
    type Error = WireError;
    fn try_from(wire: v1::Agent) -> Result<Self, WireError> {
        let kind = [AgentKind::Script, AgentKind::ClaudeCode]
            .into_iter()
            .find(|kind| kind_name(*kind) == wire.kind)
            .ok_or_else(|| WireError::new("Agent.kind", format!("{:?} is no kind of agent known here", wire.kind)))?;
        Ok(Self {
            name: parsed("Agent.name", &wire.name)?,
            kind,
            command: wire.command,
            variables: wire.variables.into_iter().collect(),
            secrets: wire.secrets,
        })
    }
}

fn kind_name(kind: AgentKind) -> &'static str {
    match kind {
        AgentKind::Script => "script",
        AgentKind::ClaudeCode => "claude-code",
    }
}

impl From<&Limits> for v1::Limits {
    fn from(limits: &Limits) -> Self {
        let steps = limits
            .steps
            .iter()
            .map(|(step, span)| v1::StepLimit { step: v1::Step::from(step).into(), seconds: seconds(*span) });
        Self {
            resources: Some((&limits.resources).into()),
            pids: limits.pids,
            steps: steps.collect(),
            attempt_seconds: seconds(limits.attempt),
            service_ready_seconds: seconds(limits.service_ready),
            bundle_bytes: limits.bundle_bytes,
            log_bytes: limits.log_bytes,
            runtime: limits.runtime.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Limits> for Limits {
    type Error = WireError;
    fn try_from(wire: v1::Limits) -> Result<Self, WireError> {
        let steps = wire
            .steps
            .into_iter()
            .map(|limit| Ok((step_of(limit.step)?, Duration::from_secs(limit.seconds))))
            .collect::<Result<BTreeMap<_, _>, WireError>>()?;
        Ok(Self {
            resources: required("Limits.resources", wire.resources)?.into(),
            pids: wire.pids,
            steps,
            attempt: Duration::from_secs(wire.attempt_seconds),
            service_ready: Duration::from_secs(wire.service_ready_seconds),
            bundle_bytes: wire.bundle_bytes,
            log_bytes: wire.log_bytes,
            runtime: Some(wire.runtime).filter(|runtime| !runtime.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use devfleet_shared::id::{AttemptId, JobId};

    use super::super::environment::tests::{environment, recipe};
    use super::*;

    fn sample() -> Assignment {
        Assignment {
            job: JobId::random(),
            attempt: AttemptId::random(),
            fence: Fence(42),
            project: "web".parse().expect("valid"),
            task: "fix the test".into(),
            plan: "1. read\n2. fix".into(),
            environment: environment(),
            recipe: recipe(),
            repository: Repository {
                url: "https://gitlab.example.com/team/web.git".into(),
                base_commit: "c0ffee".into(),
                base_branch: "main".into(),
                work_branch: "devfleet/a3f91c20".into(),
            },
            agent: AgentSpec {
                name: "fixer".parse().expect("valid"),
                kind: AgentKind::ClaudeCode,
                command: "claude -p".into(),
                variables: BTreeMap::from([("LEVEL".into(), "high".into())]),
                secrets: vec!["ANTHROPIC_API_KEY".into()],
            },
            limits: Limits { pids: 7, log_bytes: 8, runtime: Some("runsc".into()), ..Limits::default() },
            hold: Duration::from_secs(14_400),
        }
    }

    #[test]
    fn an_assignment_comes_back_as_it_went_whether_cancelled_or_not() {
        for cancel in [false, true] {
            let assignment = sample();
            let wire = assignment_to_wire(&assignment, cancel);
            assert_eq!(wire.cancel, cancel);
            assert_eq!(Assignment::try_from(wire), Ok(assignment));
        }
    }

    #[test]
    fn every_kind_of_agent_comes_back_and_an_unknown_one_is_refused() {
        for kind in [AgentKind::Script, AgentKind::ClaudeCode] {
            let agent = AgentSpec { kind, ..sample().agent };
            assert_eq!(AgentSpec::try_from(v1::Agent::from(&agent)), Ok(agent));
        }
        let wire = v1::Agent { kind: "oracle".into(), ..(&sample().agent).into() };
        assert_eq!(AgentSpec::try_from(wire).expect_err("refused").field, "Agent.kind");
    }

    #[test]
    fn an_assignment_with_a_part_missing_is_refused_by_field() {
        let broken = |spoil: fn(&mut v1::Assignment)| {
            let mut wire = assignment_to_wire(&sample(), false);
            spoil(&mut wire);
            Assignment::try_from(wire).expect_err("refused").field
        };
        assert_eq!(broken(|wire| wire.job = "1".into()), "Assignment.job");
        assert_eq!(broken(|wire| wire.attempt = "../..".into()), "Assignment.attempt");
        assert_eq!(broken(|wire| wire.project.clear()), "Assignment.project");
        assert_eq!(broken(|wire| wire.environment = None), "Assignment.environment");
        assert_eq!(broken(|wire| wire.recipe = None), "Assignment.recipe");
        assert_eq!(broken(|wire| wire.repository = None), "Assignment.repository");
        assert_eq!(broken(|wire| wire.agent = None), "Assignment.agent");
        assert_eq!(broken(|wire| wire.limits = None), "Assignment.limits");
        assert_eq!(broken(|wire| wire.limits.as_mut().expect("there").resources = None), "Limits.resources");
    }
}
