//! The `Jobs` service: projects, jobs, approval, logs, results.

mod streams;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use devfleet_proto::v1::{self, jobs_server};
use devfleet_shared::clock::Clock;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AgentName, AttemptId, Digest, JobId, ProjectName};
use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use tracing::info;

use super::{forge_status, invalid, invalid_id, job_status, person, project_status, record_status, refusal, show};
use crate::artifacts::Artifacts;
use crate::forges::{Forges, OpenForgeError};
use crate::jobs::Jobs;
use crate::logs::JobLogs;
use crate::project::{ProjectConfig, ProjectRecord};
use crate::reconcile::Waiting;
use crate::sessions::Sessions;
use crate::store::records::{JobSpec, key, put};
use crate::store::{Change, SharedStore, Transaction};
use crate::view::{JobRecords, View};

/// The longest task and the longest plan, in bytes.
const TEXT_BYTES: usize = 64 << 10;
/// The longest title, in characters.
const TITLE_CHARS: usize = 200;
/// The longest time for which an environment may be held.
const HOLD_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a submission waits for the forge before the job is accepted without having seen its branch.
const BRANCH_CHECK_TIME: Duration = Duration::from_secs(8);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct JobsService {
    /// Where projects are written.
    pub store: SharedStore,
    /// The records.
    pub view: Arc<View>,
    /// Moves jobs.
    pub jobs: Arc<Jobs>,
    /// Opens forges.
    pub forges: Forges,
    /// The connected hosts.
    pub sessions: Arc<Sessions>,
    /// Job output.
    pub logs: JobLogs,
    /// What jobs left behind.
    pub artifacts: Artifacts,
    /// Why queued jobs wait.
    pub waiting: watch::Receiver<Waiting>,
    /// Tells the time.
    pub clock: Clock,
}

type JobStream = Pin<Box<dyn Stream<Item = Result<v1::Job, Status>> + Send>>;
type LogStream = Pin<Box<dyn Stream<Item = Result<v1::LogRecord, Status>> + Send>>;

#[tonic::async_trait]
impl jobs_server::Jobs for JobsService {
    type WatchJobStream = JobStream;
    type ReadLogsStream = LogStream;

    async fn apply_project(
        &self,
        request: Request<v1::ApplyProjectRequest>,
    ) -> Result<Response<v1::ApplyProjectResponse>, Status> {
        let by = person(&request);
        let config = ProjectConfig::parse(&request.into_inner().toml).map_err(|error| project_status(&error))?;
        let name = config.name.clone();
        let record = ProjectRecord { config, updated: self.clock.now() };
        let then = vec![put(key::project(&name), &record).map_err(|error| record_status(&error))?];
        let created = !self.view.read().projects.contains_key(&name);
        let transaction = Transaction { when: vec![], then };
        self.store.commit(transaction).await.map_err(|error| super::store_status(&error))?;
        self.view
            .until(|records| records.projects.get(&name).filter(|seen| seen.updated >= record.updated).map(drop))
            .await;
        info!(project = %name, by, "project applied");
        Ok(Response::new(v1::ApplyProjectResponse { project: Some(show::project(&record)), created }))
    }

    async fn list_projects(
        &self,
        _request: Request<v1::ListProjectsRequest>,
    ) -> Result<Response<v1::ListProjectsResponse>, Status> {
        let projects = self.view.read().projects.values().map(|record| show::project(record)).collect();
        Ok(Response::new(v1::ListProjectsResponse { projects }))
    }

    async fn remove_project(
        &self,
        request: Request<v1::RemoveProjectRequest>,
    ) -> Result<Response<v1::RemoveProjectResponse>, Status> {
        let name = self.project(&request.into_inner().name)?.config.name.clone();
        let open =
            self.view.read().jobs().filter(|job| job.spec.project == name && !job.state.phase.is_terminal()).count();
        if open > 0 {
            let message = format!("project {name} has {open} jobs that have not ended; wait for them or cancel them");
            return Err(refusal(Code::FailedPrecondition, "PROJECT_HAS_JOBS", message));
        }
        let transaction = Transaction { when: vec![], then: vec![Change::Delete(key::project(&name))] };
        self.store.commit(transaction).await.map_err(|error| super::store_status(&error))?;
        self.view.until(|records| (!records.projects.contains_key(&name)).then_some(())).await;
        Ok(Response::new(v1::RemoveProjectResponse {}))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        let by = person(&request);
        let wanted = request.into_inner();
        let spec = self.check(&wanted, &by)?;
        self.check_branch(&spec).await?;
        let (idempotency, content) = digests(&wanted, &by);
        let (id, created) =
            self.jobs.submit(&spec, &idempotency, &content).await.map_err(|error| job_status(&error))?;
        let job = self.view.until(|records| records.job(&id)).await;
        if created {
            info!(job = %id, project = %spec.project, by, "job submitted");
        }
        Ok(Response::new(v1::SubmitResponse { job: Some(self.show(&job)), created }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let job = self.find(&request.into_inner().job)?;
        Ok(Response::new(self.show(&job)))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let wanted = request.into_inner();
        if !wanted.project.is_empty() {
            self.project(&wanted.project)?;
        }
        let limit = if wanted.limit == 0 { 100 } else { wanted.limit.min(1000) } as usize;
        let fits = |job: &JobRecords| {
            (wanted.project.is_empty() || job.spec.project.as_str() == wanted.project)
                && !(wanted.open && job.state.phase.is_terminal())
        };
        let mut jobs: Vec<JobRecords> = self.view.read().jobs().filter(fits).collect();
        jobs.sort_by_key(|job| std::cmp::Reverse((job.spec.submitted, job.spec.id.clone())));
        jobs.truncate(limit);
        Ok(Response::new(v1::ListJobsResponse { jobs: jobs.iter().map(|job| self.show(job)).collect() }))
    }

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<JobStream>, Status> {
        let id = self.find(&request.into_inner().job)?.spec.id.clone();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(streams::watch_job(self.clone(), id, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_proposal(&self, request: Request<v1::GetProposalRequest>) -> Result<Response<v1::Proposal>, Status> {
        let job = self.find(&request.into_inner().job)?;
        let found = self.jobs.proposal(&job.spec.id).await.map_err(|error| job_status(&error))?;
        let missing = || {
            let phase = job.state.phase.name();
            let why = job.state.trouble.clone().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
            let message = format!("job {} has no proposal: it is {phase}{why}", job.spec.id);
            refusal(Code::FailedPrecondition, "NO_PROPOSAL", message)
        };
        Ok(Response::new(show::proposal(&job.spec.id, &found.ok_or_else(missing)?)))
    }

    async fn get_proposal_diff(
        &self,
        request: Request<v1::GetProposalDiffRequest>,
    ) -> Result<Response<v1::ProposalDiff>, Status> {
        let id = self.find(&request.into_inner().job)?.spec.id.clone();
        let former = self.jobs.former_proposal(&id).await.map_err(|error| job_status(&error))?;
        let now = self.jobs.proposal(&id).await.map_err(|error| job_status(&error))?;
        let (Some(former), Some(now)) = (former, now) else {
            let message = format!("job {id} has had one proposal only; `devfleet env show` shows it once it stands");
            return Err(refusal(Code::FailedPrecondition, "NO_FORMER_PROPOSAL", message));
        };
        Ok(Response::new(show::proposal_diff(&id, &former, &now)))
    }

    async fn approve(&self, request: Request<v1::ApproveRequest>) -> Result<Response<v1::Job>, Status> {
        let by = person(&request);
        let wanted = request.into_inner();
        let digest: Option<Digest> = match wanted.digest.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error| invalid_id(&error))?),
        };
        let id = self.find(&wanted.job)?.spec.id.clone();
        let state = self.jobs.approve(&id, digest.as_ref(), &by).await.map_err(|error| job_status(&error))?;
        info!(job = %id, by, digest = ?state.proposal, "proposal approved");
        self.shown_when_seen(&id, &state).await
    }

    async fn reject(&self, request: Request<v1::RejectRequest>) -> Result<Response<v1::Job>, Status> {
        let by = person(&request);
        let wanted = request.into_inner();
        if wanted.reason.len() > TEXT_BYTES {
            return Err(invalid("REASON_TOO_LONG", "the reason is longer than 64 KiB; shorten it"));
        }
        let id = self.find(&wanted.job)?.spec.id.clone();
        let state = self.jobs.reject(&id, &wanted.reason, &by).await.map_err(|error| job_status(&error))?;
        info!(job = %id, by, "proposal rejected");
        self.shown_when_seen(&id, &state).await
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::Job>, Status> {
        let by = person(&request);
        let id = self.find(&request.into_inner().job)?.spec.id.clone();
        let state = self.jobs.cancel(&id, &by).await.map_err(|error| job_status(&error))?;
        info!(job = %id, by, "job cancelled");
        self.shown_when_seen(&id, &state).await
    }

    async fn get_diff(&self, request: Request<v1::GetDiffRequest>) -> Result<Response<v1::Diff>, Status> {
        let job = self.find(&request.into_inner().job)?;
        let mut kept = None;
        // The newest that is there: a later attempt may have ended before it had one.
        for attempt in job.state.attempts.iter().rev() {
            let read = self.artifacts.diff(&job.spec.id, &attempt.id).await;
            kept = read.map_err(|error| {
                let code = if error.is_retryable() { Code::Unavailable } else { Code::Internal };
                refusal(code, "ARTIFACT_FAILED", format!("cannot read the diff: {}", Chain(&error)))
            })?;
            if kept.is_some() {
                break;
            }
        }
        let missing = || {
            let message = format!("job {} has no diff: it is {}", job.spec.id, job.state.phase.name());
            refusal(Code::NotFound, "NO_DIFF", message)
        };
        let kept = kept.ok_or_else(missing)?;
        let merge_request = job.state.merge_request.as_ref().map(show::merge_request);
        Ok(Response::new(v1::Diff { text: kept.text, truncated: kept.truncated, merge_request }))
    }

    async fn read_logs(&self, request: Request<v1::ReadLogsRequest>) -> Result<Response<LogStream>, Status> {
        let wanted = request.into_inner();
        let job = self.find(&wanted.job)?;
        let only = match wanted.attempt.as_str() {
            "" => None,
            text => Some(self.attempt(&job, text)?),
        };
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(streams::send_logs(self.clone(), job.spec.id.clone(), only, wanted.follow, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl JobsService {
    /// Finds a job by its id or the unique beginning of one.
    fn find(&self, beginning: &str) -> Result<JobRecords, Status> {
        let none = || job_status(&crate::jobs::JobError::NoSuchJob(format!("{beginning:?}")));
        if beginning.is_empty() {
            return Err(invalid("NO_JOB_NAMED", "name a job by its id or the beginning of it"));
        }
        let records = self.view.read();
        let mut found: Vec<JobRecords> = records.jobs_beginning(beginning).take(4).collect();
        if found.len() > 1 {
            let ids: Vec<_> = found.iter().map(|job| job.spec.id.as_str()).collect();
            let message =
                format!("{beginning:?} is the beginning of several job ids ({}); write more of it", ids.join(", "));
            return Err(invalid("AMBIGUOUS_JOB", message));
        }
        found.pop().ok_or_else(none)
    }

    fn attempt(&self, job: &JobRecords, beginning: &str) -> Result<AttemptId, Status> {
        let mut found = job.state.attempts.iter().filter(|attempt| attempt.id.as_str().starts_with(beginning));
        match (found.next(), found.next()) {
            (Some(attempt), None) => Ok(attempt.id.clone()),
            _ => {
                let ids: Vec<_> = job.state.attempts.iter().map(|attempt| attempt.id.as_str()).collect();
                let message = format!("job {} has no attempt {beginning:?}; it has: {}", job.spec.id, ids.join(", "));
                Err(refusal(Code::NotFound, "NO_SUCH_ATTEMPT", message))
            }
        }
    }

    fn project(&self, name: &str) -> Result<Arc<ProjectRecord>, Status> {
        let parsed: ProjectName = name.parse().map_err(|error| invalid_id(&error))?;
        let records = self.view.read();
        let missing = || {
            let known: Vec<_> = records.projects.keys().map(ProjectName::as_str).collect();
            let known = if known.is_empty() {
                "there is none yet; `devfleet projects apply FILE` makes one".to_owned()
            } else {
                known.join(", ")
            };
            refusal(Code::NotFound, "NO_SUCH_PROJECT", format!("there is no project {name}; known: {known}"))
        };
        records.projects.get(&parsed).cloned().ok_or_else(missing)
    }

    /// Makes a spec of what was asked for, or says what is wrong with it. Nothing is stored here.
    fn check(&self, wanted: &v1::SubmitRequest, by: &str) -> Result<JobSpec, Status> {
        let task = wanted.task.trim();
        if task.is_empty() {
            return Err(invalid(
                "EMPTY_TASK",
                "the task is empty; say what the agent is to do with --task or --task-file",
            ));
        }
        for (what, text) in [("task", &wanted.task), ("plan", &wanted.plan)] {
            if text.len() > TEXT_BYTES {
                let message = format!(
                    "the {what} is {} bytes long, 65536 are allowed; put details into the repository",
                    text.len()
                );
                return Err(invalid("TEXT_TOO_LONG", message));
            }
            if text.contains('\0') {
                return Err(invalid("NOT_TEXT", format!("the {what} holds a NUL byte; it must be text")));
            }
        }
        let key = &wanted.idempotency_key;
        if !(1..=128).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid(
                "INVALID_IDEMPOTENCY_KEY",
                "the idempotency key must be 1 to 128 printable characters",
            ));
        }
        let hold = Duration::from_secs(wanted.hold_seconds);
        if hold > HOLD_MAX {
            return Err(invalid("HOLD_TOO_LONG", "an environment can be held for 7 days at most"));
        }
        let project = self.project(&wanted.project)?;
        let agent: Option<AgentName> = match wanted.agent.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|error| invalid_id(&error))?),
        };
        project.config.check_priority(wanted.priority).map_err(|error| project_status(&error))?;
        Ok(JobSpec {
            id: JobId::random(),
            project: project.config.name.clone(),
            title: title(&wanted.title, task),
            task: wanted.task.clone(),
            plan: wanted.plan.clone(),
            agent: project.config.choose_agent(agent.as_ref()).map_err(|error| project_status(&error))?,
            base: (!wanted.base.is_empty()).then(|| wanted.base.clone()),
            hold,
            issue: (wanted.issue > 0).then_some(wanted.issue),
            submitted_by: by.to_owned(),
            submitted: self.clock.now(),
            priority: wanted.priority,
        })
    }

    /// Asks the forge for the branch, so that a slip is told at once. A forge that does not answer now does not refuse
    /// the job: its gate asks again.
    async fn check_branch(&self, spec: &JobSpec) -> Result<(), Status> {
        let project = self.project(spec.project.as_str())?;
        let branch = spec.base.as_deref().or(project.config.default_branch.as_deref());
        let forge = match self.forges.of(&project.config).await {
            Ok(forge) => forge,
            Err(OpenForgeError::Forge(error)) => return Err(forge_status(&error)),
            Err(error @ OpenForgeError::Secret { .. }) => {
                return Err(refusal(Code::FailedPrecondition, "SECRET_MISSING", Chain(&error).to_string()));
            }
        };
        match tokio::time::timeout(BRANCH_CHECK_TIME, forge.base(branch)).await {
            Ok(Err(error)) if !error.is_retryable() => Err(forge_status(&error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn show(&self, job: &JobRecords) -> v1::Job {
        let waiting = self.waiting.borrow().get(&job.spec.id).map(|reasons| reasons.to_vec()).unwrap_or_default();
        show::job(job, &self.sessions, waiting)
    }

    /// Answers with the job once the view holds what was just written (or something later).
    async fn shown_when_seen(
        &self,
        id: &JobId,
        state: &crate::store::records::JobState,
    ) -> Result<Response<v1::Job>, Status> {
        let written = |job: &JobRecords| {
            job.state.since >= state.since && (job.state.cancelled_by.is_some() || state.cancelled_by.is_none())
        };
        let job = self.view.until(|records| records.job(id).filter(written)).await;
        Ok(Response::new(self.show(&job)))
    }
}

/// Takes the title asked for, or the task's first line; one line, of bounded length.
fn title(wanted: &str, task: &str) -> String {
    let source = if wanted.trim().is_empty() { task } else { wanted };
    let line = source.trim().lines().next().unwrap_or_default();
    let line: String = line.trim_start_matches(['#', ' ']).chars().filter(|c| !c.is_control()).collect();
    if line.chars().count() <= TITLE_CHARS {
        return line;
    }
    line.chars().take(TITLE_CHARS - 1).chain(['…']).collect()
}

/// Hashes the key with who used it, and everything that was submitted.
fn digests(wanted: &v1::SubmitRequest, by: &str) -> (Digest, Digest) {
    let idempotency = Digest::over([by.as_bytes(), wanted.idempotency_key.as_bytes()]);
    let mut numbers = [wanted.hold_seconds.to_be_bytes(), wanted.issue.to_be_bytes()].concat();
    if wanted.priority != 0 {
        numbers.extend(wanted.priority.to_be_bytes());
    }
    let content = Digest::over([
        wanted.project.as_bytes(),
        wanted.task.as_bytes(),
        wanted.plan.as_bytes(),
        wanted.agent.as_bytes(),
        wanted.base.as_bytes(),
        wanted.title.as_bytes(),
        &numbers,
    ]);
    (idempotency, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_is_one_line_of_bounded_length() {
        assert_eq!(title("", "# Fix the counter\n\nIt is off by one."), "Fix the counter");
        assert_eq!(title(" Mine ", "task"), "Mine");
        assert_eq!(title("", &"x".repeat(500)).chars().count(), TITLE_CHARS);
        assert_eq!(title("", "a\u{1b}[31mb"), "a[31mb");
    }

    #[test]
    fn a_key_belongs_to_the_person_and_the_content_is_all_that_was_said() {
        let request =
            |task: &str| v1::SubmitRequest { task: task.into(), idempotency_key: "k".into(), ..Default::default() };
        assert_eq!(digests(&request("a"), "ada"), digests(&request("a"), "ada"));
        assert_ne!(digests(&request("a"), "ada").0, digests(&request("a"), "eve").0);
        assert_ne!(digests(&request("a"), "ada").1, digests(&request("b"), "ada").1);
    }
}
