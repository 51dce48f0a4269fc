//! Records as people see them: vocabulary to wire.

use devfleet_proto::v1;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::JobId;
use devfleet_shared::job::{JobPhase, Outcome};

use crate::forge::MergeRequest;
use crate::gates::difference;
use crate::hosts::load::Load;
use crate::project::{Approval, ForgeConfig, ProjectRecord};
use crate::quarantine::Standing;
use crate::sessions::{Connected, Sessions, Told};
use crate::store::records::controllers::ControllerRecord;
use crate::store::records::hosts::Wish;
use crate::store::records::leadership::LeaderRecord;
use crate::store::records::{AttemptRecord, HostRecord, JobState, Proposal};
use crate::view::JobRecords;

/// Shows a job.
pub fn job(job: &JobRecords, sessions: &Sessions, waiting: Vec<String>) -> v1::Job {
    let (spec, state) = (&job.spec, &job.state);
    v1::Job {
        id: spec.id.to_string(),
        project: spec.project.to_string(),
        title: spec.title.clone(),
        task: spec.task.clone(),
        agent: spec.agent.to_string(),
        base_branch: state
            .base
            .as_ref()
            .map(|base| base.branch.clone())
            .or_else(|| spec.base.clone())
            .unwrap_or_default(),
        base_commit: state.base.as_ref().map(|base| base.commit.clone()).unwrap_or_default(),
        phase: state.phase.name().to_owned(),
        outcome: outcome(state).map(|outcome| outcome.name().to_owned()).unwrap_or_default(),
        failure: failure(state),
        submitted_by: spec.submitted_by.clone(),
        submitted_unix_ms: spec.submitted.0,
        phase_since_unix_ms: state.since.0,
        attempts: state.attempts.iter().map(|attempt| self::attempt(attempt, job, sessions)).collect(),
        merge_request: state.merge_request.as_ref().map(merge_request),
        proposal_digest: state.proposal.as_ref().map(ToString::to_string).unwrap_or_default(),
        approved_by: state.approved_by.clone().unwrap_or_default(),
        cancel_requested: state.cancelled_by.is_some(),
        waiting: reasons(state, waiting),
        issue: spec.issue.unwrap_or_default(),
        hold_seconds: spec.hold.as_secs(),
        priority: spec.priority,
    }
}

/// Why the job does not go on right now: what the scheduler says, or what went wrong at the last try.
fn reasons(state: &JobState, mut waiting: Vec<String>) -> Vec<String> {
    waiting.extend(state.trouble.clone().filter(|_| !state.phase.is_terminal()));
    waiting
}

fn outcome(state: &JobState) -> Option<&Outcome> {
    match &state.phase {
        JobPhase::Ended(outcome) => Some(outcome),
        _ => None,
    }
}

fn failure(state: &JobState) -> Option<v1::Failure> {
    match outcome(state)? {
        Outcome::Failed(failure) => Some(failure.into()),
        Outcome::Rejected => {
            let message = state.rejected.clone().unwrap_or_default();
            Some(v1::Failure { reason: "rejected".into(), message })
        }
        _ => None,
    }
}

fn attempt(attempt: &AttemptRecord, job: &JobRecords, sessions: &Sessions) -> v1::Attempt {
    let told = if attempt.ended.is_none() { sessions.told(&attempt.id) } else { Told::default() };
    let fence = job.owner.as_ref().filter(|(owner, _)| owner.attempt == attempt.id).map(|(_, fence)| fence.0);
    v1::Attempt {
        id: attempt.id.to_string(),
        host: attempt.host.to_string(),
        fence: fence.unwrap_or_default(),
        state: Some((&attempt.phase).into()),
        assigned_unix_ms: attempt.assigned.0,
        ended_unix_ms: attempt.ended.unwrap_or_default().0,
        branch: attempt.branch.clone(),
        doing: told.doing,
        tokens: attempt.tokens.max(told.tokens),
        held_until_unix_ms: attempt.held_until.unwrap_or_default().0,
    }
}

/// Shows a merge request.
pub fn merge_request(merge_request: &MergeRequest) -> v1::MergeRequest {
    v1::MergeRequest {
        number: merge_request.number,
        url: merge_request.url.clone(),
        title: merge_request.title.clone(),
        description: merge_request.description.clone(),
        source_branch: merge_request.source_branch.clone(),
        target_branch: merge_request.target_branch.clone(),
        commit: merge_request.commit.clone(),
    }
}

/// Shows a project.
pub fn project(record: &ProjectRecord) -> v1::Project {
    let config = &record.config;
    let (forge, repository) = match &config.forge {
        ForgeConfig::Git { .. } => ("git", config.repository.clone()),
        ForgeConfig::Gitlab { url, project, .. } => ("gitlab", format!("{}/{project}", url.trim_end_matches('/'))),
    };
    v1::Project {
        name: config.name.to_string(),
        repository,
        forge: forge.to_owned(),
        approval: match config.approval {
            Approval::Required => "required".to_owned(),
            Approval::Auto => "auto".to_owned(),
        },
        agents: config.agents.keys().map(ToString::to_string).collect(),
        default_agent: config.choose_agent(None).map(String::from).unwrap_or_default(),
        updated_unix_ms: record.updated.0,
    }
}

/// Shows a proposal.
pub fn proposal(job: &JobId, proposal: &Proposal) -> v1::Proposal {
    v1::Proposal {
        job: job.to_string(),
        digest: proposal.digest.to_string(),
        plan: proposal.plan.clone(),
        environment: Some((&proposal.environment).into()),
        recipe: Some((&proposal.recipe).into()),
        compose: crate::environment::compose(&proposal.environment, &proposal.recipe),
        report: proposal
            .report
            .iter()
            .map(|line| v1::ReportLine {
                fact: line.fact.clone(),
                value: line.value.clone(),
                file: line.file.clone(),
                job: line.job.clone(),
                keyword: line.keyword.clone(),
            })
            .collect(),
        notes: proposal.notes.clone(),
        confidence: proposal.confidence,
        base_commit: proposal.base.commit.clone(),
        agent: proposal.agent.name.to_string(),
        agent_command: proposal.agent.command.clone(),
        ci_job: proposal.ci_job.clone(),
        alternatives: proposal
            .alternatives
            .iter()
            .map(|other| v1::Alternative { job: other.job.clone(), image: other.image.clone(), score: other.score })
            .collect(),
        dropped: proposal
            .dropped
            .iter()
            .map(|line| v1::Dropped { line: line.line.clone(), reason: line.reason.clone() })
            .collect(),
        ci_variables: proposal
            .ci_variables
            .iter()
            .map(|(name, steps)| v1::CiVariable {
                name: name.clone(),
                steps: steps.iter().map(|step| step.name().to_owned()).collect(),
            })
            .collect(),
        egress: proposal.declared.egress.clone().map(|items| v1::StringList { items }),
        budget_tokens: proposal.declared.budget_tokens.unwrap_or_default(),
        components: proposal
            .declared
            .components
            .iter()
            .map(|(name, component)| v1::Component {
                name: name.clone(),
                paths: component.paths.clone(),
                description: component.description.clone(),
            })
            .collect(),
    }
}

/// Shows what differs between two proposals of a job.
pub fn proposal_diff(job: &JobId, former: &Proposal, now: &Proposal) -> v1::ProposalDiff {
    let facts = difference::changes(former, now);
    v1::ProposalDiff {
        job: job.to_string(),
        former_digest: former.digest.to_string(),
        digest: now.digest.to_string(),
        facts: facts
            .into_iter()
            .map(|change| v1::FactChange { fact: change.fact, former: change.former, now: change.now })
            .collect(),
        dockerfile: difference::lines(&former.recipe.dockerfile, &now.recipe.dockerfile),
    }
}

/// Shows a host.
pub fn host(record: &HostRecord, connected: Option<&Connected>, load: &Load, standing: Standing) -> v1::Host {
    let desired = &record.desired;
    let (state, deadline, then) = match desired.wish {
        Wish::Active => ("active", Timestamp::default(), ""),
        Wish::Cordoned => ("cordoned", Timestamp::default(), ""),
        Wish::Draining { deadline, then } if load.attempts.is_empty() => ("drained", deadline, then.name()),
        Wish::Draining { deadline, then } => ("draining", deadline, then.name()),
    };
    let (quarantine, until, recent_failures) = match standing {
        Standing::Sound { failures } => (String::new(), Timestamp::default(), failures),
        Standing::Quarantined { until, why } => (why, until, 0),
        Standing::Probed { why } => (format!("{why}; the next job decides"), Timestamp::default(), 0),
    };
    v1::Host {
        id: record.id.to_string(),
        name: record.name.clone(),
        connected: connected.is_some(),
        last_seen_unix_ms: connected.map_or(Timestamp::default(), |connected| connected.last_seen).0,
        joined_unix_ms: record.joined.0,
        inventory: connected.map(|connected| connected.inventory.clone()),
        attempts: load.attempts.iter().map(ToString::to_string).collect(),
        certificate_ends_unix_ms: record.certificate_ends.0,
        labels: record.labels.clone().into_iter().collect(),
        state: state.to_owned(),
        state_by: desired.by.clone(),
        state_reason: desired.reason.clone(),
        state_since_unix_ms: desired.since.0,
        drain_deadline_unix_ms: deadline.0,
        drain_then: then.to_owned(),
        running: load.running,
        stopping: load.stopping,
        held: load.held,
        quarantine,
        quarantine_until_unix_ms: until.0,
        recent_failures,
        protocol: connected.map_or(0, |connected| connected.protocol),
    }
}

/// Shows a controller.
pub fn controller(record: &ControllerRecord, leader: Option<&LeaderRecord>) -> v1::Controller {
    let leads = leader.filter(|leader| leader.controller == record.id);
    v1::Controller {
        id: record.id.to_string(),
        address: record.address.clone(),
        version: record.version.clone(),
        protocol: record.protocol,
        started_unix_ms: record.started.0,
        leads: leads.is_some(),
        leads_since_unix_ms: leads.map_or(0, |leader| leader.since.0),
        term: leads.map_or(0, |leader| leader.term),
    }
}
