//! The shapes of projects, jobs, proposals and results.

use devfleet_proto::v1;
use devfleet_shared::attempt::Step;

use super::{Shape, list, moment, optional, record, text, texts};

/// Shapes a project.
pub fn project(project: &v1::Project) -> Shape {
    record([
        ("name", text(&project.name)),
        ("repository", text(&project.repository)),
        ("forge", text(&project.forge)),
        ("approval", text(&project.approval)),
        ("agents", (&project.agents).into()),
        ("default_agent", text(&project.default_agent)),
        ("updated", moment(project.updated_unix_ms)),
    ])
}

/// Shapes a job.
pub fn job(job: &v1::Job) -> Shape {
    record([
        ("id", text(&job.id)),
        ("project", text(&job.project)),
        ("title", text(&job.title)),
        ("task", text(&job.task)),
        ("agent", text(&job.agent)),
        ("base_branch", text(&job.base_branch)),
        ("base_commit", text(&job.base_commit)),
        ("phase", text(&job.phase)),
        ("outcome", text(&job.outcome)),
        ("failure", optional(&job.failure, failure)),
        ("submitted_by", text(&job.submitted_by)),
        ("submitted", moment(job.submitted_unix_ms)),
        ("phase_since", moment(job.phase_since_unix_ms)),
        ("attempts", list(&job.attempts, attempt)),
        ("merge_request", optional(&job.merge_request, merge_request)),
        ("proposal_digest", text(&job.proposal_digest)),
        ("approved_by", text(&job.approved_by)),
        ("cancel_requested", job.cancel_requested.into()),
        ("waiting", (&job.waiting).into()),
        ("issue", if job.issue == 0 { Shape::Null } else { job.issue.into() }),
        ("hold_seconds", job.hold_seconds.into()),
    ])
}

fn failure(failure: &v1::Failure) -> Shape {
    record([("reason", text(&failure.reason)), ("message", text(&failure.message))])
}

fn attempt(attempt: &v1::Attempt) -> Shape {
    record([
        ("id", text(&attempt.id)),
        ("host", text(&attempt.host)),
        ("fence", attempt.fence.into()),
        ("state", optional(&attempt.state, state)),
        ("assigned", moment(attempt.assigned_unix_ms)),
        ("ended", moment(attempt.ended_unix_ms)),
        ("branch", text(&attempt.branch)),
        ("doing", text(&attempt.doing)),
        ("held_until", moment(attempt.held_until_unix_ms)),
        ("tokens", attempt.tokens.into()),
    ])
}

fn state(state: &v1::AttemptState) -> Shape {
    record([
        ("phase", text(phase_name(state))),
        ("step", text(step_name(state).unwrap_or_default())),
        ("result", optional(&state.result, result)),
    ])
}

fn result(result: &v1::AttemptResult) -> Shape {
    use v1::attempt_result::Kind;
    let name = text(result_name(result));
    match &result.kind {
        Some(Kind::Succeeded(done)) => {
            record([("kind", name), ("commit", text(&done.commit)), ("verified", done.verified.into())])
        }
        Some(Kind::Failed(why)) => record([("kind", name), ("failure", failure(why))]),
        _ => record([("kind", name)]),
    }
}

/// Returns the name of an attempt's phase as people see it.
pub fn phase_name(state: &v1::AttemptState) -> &'static str {
    match state.phase() {
        v1::AttemptPhase::Unspecified => "unknown",
        v1::AttemptPhase::Assigned => "assigned",
        v1::AttemptPhase::Preparing => "preparing",
        v1::AttemptPhase::Running => "running",
        v1::AttemptPhase::Publishing => "publishing",
        v1::AttemptPhase::Stopping => "stopping",
        v1::AttemptPhase::Ended => "ended",
    }
}

/// Returns the name of the step that runs.
pub fn step_name(state: &v1::AttemptState) -> Option<&'static str> {
    Step::try_from(state.step()).ok().map(Step::name)
}

/// Returns the name of an attempt's result as people see it.
pub fn result_name(result: &v1::AttemptResult) -> &'static str {
    use v1::attempt_result::Kind;
    match &result.kind {
        Some(Kind::Succeeded(_)) => "succeeded",
        Some(Kind::NoChange(_)) => "no-change",
        Some(Kind::Failed(_)) => "failed",
        Some(Kind::Cancelled(_)) => "cancelled",
        Some(Kind::Lost(_)) => "lost",
        None => "unknown",
    }
}

/// Shapes a merge request.
pub fn merge_request(request: &v1::MergeRequest) -> Shape {
    record([
        ("number", request.number.into()),
        ("url", text(&request.url)),
        ("title", text(&request.title)),
        ("description", text(&request.description)),
        ("source_branch", text(&request.source_branch)),
        ("target_branch", text(&request.target_branch)),
        ("commit", text(&request.commit)),
    ])
}

/// Shapes a diff.
pub fn diff(diff: &v1::Diff) -> Shape {
    record([
        ("text", Shape::from(&diff.text)),
        ("truncated", diff.truncated.into()),
        ("merge_request", optional(&diff.merge_request, merge_request)),
    ])
}

/// Shapes a proposal.
pub fn proposal(proposal: &v1::Proposal) -> Shape {
    record([
        ("job", text(&proposal.job)),
        ("digest", text(&proposal.digest)),
        ("plan", text(&proposal.plan)),
        ("environment", optional(&proposal.environment, environment)),
        ("recipe", optional(&proposal.recipe, recipe)),
        ("compose", text(&proposal.compose)),
        ("report", list(&proposal.report, report_line)),
        ("notes", (&proposal.notes).into()),
        ("confidence", proposal.confidence.into()),
        ("base_commit", text(&proposal.base_commit)),
        ("agent", text(&proposal.agent)),
        ("agent_command", text(&proposal.agent_command)),
        ("ci_job", text(&proposal.ci_job)),
        ("alternatives", list(&proposal.alternatives, alternative)),
        ("dropped", list(&proposal.dropped, dropped)),
        ("ci_variables", list(&proposal.ci_variables, ci_variable)),
        ("egress", optional(&proposal.egress, strings)),
        ("budget_tokens", if proposal.budget_tokens == 0 { Shape::Null } else { proposal.budget_tokens.into() }),
        ("components", list(&proposal.components, component)),
    ])
}

fn ci_variable(variable: &v1::CiVariable) -> Shape {
    record([("name", text(&variable.name)), ("steps", (&variable.steps).into())])
}

fn component(component: &v1::Component) -> Shape {
    record([
        ("name", text(&component.name)),
        ("paths", (&component.paths).into()),
        ("description", text(&component.description)),
    ])
}

/// Shapes what differs between the proposal that was approved and the one that stands.
pub fn proposal_diff(diff: &v1::ProposalDiff) -> Shape {
    let change = |change: &v1::FactChange| {
        record([("fact", text(&change.fact)), ("former", text(&change.former)), ("now", text(&change.now))])
    };
    record([
        ("job", text(&diff.job)),
        ("former_digest", text(&diff.former_digest)),
        ("digest", text(&diff.digest)),
        ("facts", list(&diff.facts, change)),
        ("dockerfile", text(&diff.dockerfile)),
    ])
}

/// Shapes what `env show --report` shows of a proposal.
pub fn report(proposal: &v1::Proposal) -> Shape {
    record([
        ("job", text(&proposal.job)),
        ("ci_job", text(&proposal.ci_job)),
        ("confidence", proposal.confidence.into()),
        ("report", list(&proposal.report, report_line)),
        ("dropped", list(&proposal.dropped, dropped)),
        ("alternatives", list(&proposal.alternatives, alternative)),
        ("notes", (&proposal.notes).into()),
    ])
}

fn environment(environment: &v1::Environment) -> Shape {
    record([
        ("image", text(&environment.image)),
        ("entrypoint", optional(&environment.entrypoint, strings)),
        ("user", text(&environment.user)),
        ("platform", text(&environment.platform)),
        ("pull_policy", text(&environment.pull_policy)),
        ("services", list(&environment.services, service)),
        ("variables", texts(&environment.variables)),
        ("caches", list(&environment.caches, cache)),
        ("setup", (&environment.setup).into()),
        ("verify", (&environment.verify).into()),
    ])
}

fn service(service: &v1::Service) -> Shape {
    record([
        ("name", text(&service.name)),
        ("image", text(&service.image)),
        ("aliases", (&service.aliases).into()),
        ("entrypoint", optional(&service.entrypoint, strings)),
        ("command", optional(&service.command, strings)),
        ("platform", text(&service.platform)),
        ("pull_policy", text(&service.pull_policy)),
        ("variables", texts(&service.variables)),
    ])
}

fn cache(cache: &v1::Cache) -> Shape {
    record([("path", text(&cache.path)), ("key", text(&cache.key)), ("lock_files", (&cache.lock_files).into())])
}

fn recipe(recipe: &v1::Recipe) -> Shape {
    let file = |file: &v1::RecipeFile| {
        record([("name", text(&file.name)), ("host_path", text(&file.host_path)), ("digest", text(&file.digest))])
    };
    record([
        ("dockerfile", text(&recipe.dockerfile)),
        ("files", list(&recipe.files, file)),
        ("platform", text(&recipe.platform)),
        ("digest", text(&recipe.digest)),
    ])
}

fn strings(list: &v1::StringList) -> Shape {
    (&list.items).into()
}

fn report_line(line: &v1::ReportLine) -> Shape {
    record([
        ("fact", text(&line.fact)),
        ("value", text(&line.value)),
        ("file", text(&line.file)),
        ("job", text(&line.job)),
        ("keyword", text(&line.keyword)),
    ])
}

fn alternative(alternative: &v1::Alternative) -> Shape {
    record([("job", text(&alternative.job)), ("image", text(&alternative.image)), ("score", alternative.score.into())])
}

fn dropped(dropped: &v1::Dropped) -> Shape {
    record([("line", text(&dropped.line)), ("reason", text(&dropped.reason))])
}

/// Shapes a log record; bytes that are not UTF-8 are replaced.
pub fn log_record(entry: &v1::LogRecord) -> Shape {
    use v1::log_record::Channel;
    let channel = match entry.channel() {
        Channel::Unspecified => "unknown",
        Channel::Out => "out",
        Channel::Err => "err",
        Channel::Note => "note",
        Channel::Cut => "cut",
        Channel::End => "end",
    };
    record([
        ("time", moment(entry.unix_ms)),
        ("attempt", text(&entry.attempt)),
        ("source", text(&entry.source)),
        ("channel", channel.into()),
        ("data", String::from_utf8_lossy(&entry.data).into_owned().into()),
    ])
}
