//! The `Session` service: what hosts call. Each effect is checked against the fence where it takes effect.

use std::pin::Pin;
use std::time::Duration;

use devfleet_proto::v1::host_message::Kind;
use devfleet_proto::v1::{self, session_server};
use devfleet_shared::error::Chain;
use devfleet_shared::id::{Fence, HostId};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{forge_status, host, invalid, invalid_id, job_status, refusal};
use crate::artifacts::{Artifacts, DIFF_BYTES};
use crate::forges::{Forges, OpenForgeError};
use crate::hosts;
use crate::jobs::Claim;
use crate::leader::Term;
use crate::logs::LogError;
use crate::project::ProjectConfig;
use crate::secrets;
use crate::sessions::stream::{Session, SessionParts};
use crate::store::records::hosts::Removed;
use crate::store::records::{PublishRecord, Verification};
use crate::view::View;

/// How long it may take until all controllers know of a host that joined.
const JOINED: Duration = Duration::from_secs(2);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct SessionService {
    /// What sessions work with.
    pub parts: SessionParts,
    /// Opens forges.
    pub forges: Forges,
    /// What jobs leave behind.
    pub artifacts: Artifacts,
    /// The term under way, if this controller leads.
    pub term: watch::Receiver<Option<Term>>,
    /// Ends all sessions.
    pub shutdown: CancellationToken,
    /// Counts them.
    pub tasks: TaskTracker,
}

type Down = Pin<Box<dyn Stream<Item = Result<v1::ControllerMessage, Status>> + Send>>;
type Acks = Pin<Box<dyn Stream<Item = Result<v1::LogAck, Status>> + Send>>;

#[tonic::async_trait]
impl session_server::Session for SessionService {
    type OpenStream = Down;
    type PushLogsStream = Acks;

    async fn open(&self, request: Request<Streaming<v1::HostMessage>>) -> Result<Response<Down>, Status> {
        let host = host(&request)?;
        // It may have joined a moment ago, at another controller.
        let joined = self.view().until(|records| records.hosts.contains_key(&host).then_some(()));
        if tokio::time::timeout(JOINED, joined).await.is_err() {
            return Err(removed(self.view().read().removed.get(&host).map(|note| &**note)));
        }
        let mut up = request.into_inner();
        let (sender, receiver) = mpsc::channel(64);
        let (parts, shutdown) = (self.parts.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let first = tokio::select! {
                () = shutdown.cancelled() => return,
                first = up.next() => first,
            };
            match first {
                Some(Ok(v1::HostMessage { kind: Some(Kind::Hello(hello)) })) => {
                    Session::new(parts, host, sender).run(hello, up, shutdown).await;
                }
                Some(Ok(_)) => drop(sender.send(Err(invalid("NO_HELLO", "a session begins with a hello"))).await),
                Some(Err(_)) | None => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn push_logs(&self, request: Request<Streaming<v1::LogChunk>>) -> Result<Response<Acks>, Status> {
        let host = host(&request)?;
        let mut chunks = request.into_inner();
        let (sender, receiver) = mpsc::channel(64);
        let (service, shutdown, mut term) = (self.clone(), self.shutdown.clone(), self.term.clone());
        term.borrow_and_update();
        self.tasks.spawn(async move {
            loop {
                let chunk = tokio::select! {
                    () = shutdown.cancelled() => return,
                    // Who reads the log does so at the leader, which would not see what is stored here.
                    _ = term.changed() => return,
                    chunk = chunks.next() => chunk,
                };
                let Some(Ok(chunk)) = chunk else { return };
                let acknowledgement = service.store_chunk(&host, chunk).await;
                let broken = acknowledgement.is_err();
                if sender.send(acknowledgement).await.is_err() || broken {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_grant(&self, request: Request<v1::GetGrantRequest>) -> Result<Response<v1::Grant>, Status> {
        let host = host(&request)?;
        let wanted = request.into_inner();
        let claim = claim(host, &wanted.job, &wanted.attempt, wanted.fence)?;
        self.owned(&claim).await?;
        let (project, agent) = self.project_of(&claim)?;
        let mut grant = self.grant(&project, &agent).await?;
        grant.step_variables = self.ci_variables(&claim, &project).await?;
        info!(job = %claim.job, attempt = %claim.attempt, host = %claim.host, "grant given");
        Ok(Response::new(grant))
    }

    async fn authorize_publish(
        &self,
        request: Request<v1::AuthorizePublishRequest>,
    ) -> Result<Response<v1::AuthorizePublishResponse>, Status> {
        let host = host(&request)?;
        let wanted = request.into_inner();
        let claim = claim(host, &wanted.job, &wanted.attempt, wanted.fence)?;
        if wanted.diff.len() > DIFF_BYTES {
            return Err(invalid("DIFF_TOO_LONG", "a diff may be 1 MiB long; cut it and say so"));
        }
        if self.parts.jobs.owned(&claim).await.map_err(|error| job_status(&error))?.is_none() {
            return Ok(refused("another attempt owns the job"));
        }
        let branch = {
            let records = self.view().read();
            let job = records.job(&claim.job);
            job.and_then(|job| {
                job.state
                    .attempts
                    .iter()
                    .find(|attempt| attempt.id == claim.attempt)
                    .map(|attempt| attempt.branch.clone())
            })
        };
        let Some(branch) = branch else { return Ok(refused("the job is not known")) };
        self.keep_diff(&claim, &wanted).await?;
        let verification = wanted.verification.unwrap_or_default();
        let record = PublishRecord {
            attempt: claim.attempt.clone(),
            branch,
            commit: wanted.commit,
            push: wanted.push,
            verification: Verification {
                ran: verification.ran,
                passed: verification.passed,
                seconds: verification.seconds,
                output_tail: verification.output_tail,
            },
        };
        let answer = self.parts.jobs.authorize_publish(&claim, &record).await.map_err(|error| job_status(&error))?;
        info!(job = %claim.job, attempt = %claim.attempt, granted = answer.is_ok(), "leave to publish asked for");
        Ok(match answer {
            Ok(()) => Response::new(v1::AuthorizePublishResponse { granted: true, reason: String::new() }),
            Err(reason) => refused(&reason),
        })
    }
}

impl SessionService {
    fn view(&self) -> &View {
        &self.parts.view
    }

    async fn owned(&self, claim: &Claim) -> Result<(), Status> {
        let owned = self.parts.jobs.owned(claim).await.map_err(|error| job_status(&error))?;
        let stale = || refusal(Code::FailedPrecondition, "STALE_FENCE", "this attempt does not own the job (any more)");
        owned.map(drop).ok_or_else(stale)
    }

    /// Stores a chunk of an attempt that this host has or had: a late log of an attempt that lost its job is still
    /// worth reading, a log for a job that this host never had is not taken.
    async fn store_chunk(&self, host: &HostId, chunk: v1::LogChunk) -> Result<v1::LogAck, Status> {
        // The stream may have been opened while the host was part of the fleet.
        if let Some(note) = self.view().read().removed.get(host) {
            return Err(removed(Some(note)));
        }
        let claim = claim(host.clone(), &chunk.job, &chunk.attempt, chunk.fence)?;
        let refuse = || v1::LogAck { attempt: claim.attempt.to_string(), offset: 0, refused: true };
        let had = self.parts.jobs.had(&claim).await.map_err(|error| job_status(&error))?;
        if !had {
            return Ok(refuse());
        }
        match self.parts.logs.append(&claim.job, &claim.attempt, chunk).await {
            Ok(offset) => Ok(v1::LogAck { attempt: claim.attempt.to_string(), offset, refused: false }),
            Err(error @ LogError::Full { .. }) => {
                warn!(job = %claim.job, attempt = %claim.attempt, error = %Chain(&error), "a log is full");
                Ok(refuse())
            }
            Err(error) => {
                warn!(job = %claim.job, attempt = %claim.attempt, error = %Chain(&error), "a log chunk could not be stored; its host keeps it");
                Err(refusal(Code::Unavailable, "LOG_FAILED", Chain(&error).to_string()))
            }
        }
    }

    fn project_of(&self, claim: &Claim) -> Result<(ProjectConfig, devfleet_shared::id::AgentName), Status> {
        let records = self.view().read();
        let job = records.job(&claim.job);
        let spec =
            job.map(|job| job.spec).ok_or_else(|| refusal(Code::NotFound, "NO_SUCH_JOB", "there is no such job"))?;
        let gone = || {
            let message = format!("project {} was removed; its secrets are not known any more", spec.project);
            refusal(Code::FailedPrecondition, "NO_SUCH_PROJECT", message)
        };
        let project = records.projects.get(&spec.project).ok_or_else(gone)?;
        Ok((project.config.clone(), spec.agent.clone()))
    }

    /// Resolves every secret of an attempt. Nothing of it is stored or logged.
    async fn grant(
        &self,
        project: &ProjectConfig,
        agent: &devfleet_shared::id::AgentName,
    ) -> Result<v1::Grant, Status> {
        let missing = |error: &(dyn std::error::Error + 'static)| {
            refusal(Code::FailedPrecondition, "SECRET_MISSING", format!("cannot {}", Chain(error)))
        };
        let mut grant = v1::Grant { pull_policy: project.pull.name().to_owned(), ..v1::Grant::default() };
        let agents_secrets = project.agents.get(agent).map(|config| config.secrets.clone()).unwrap_or_default();
        for (name, reference) in &agents_secrets {
            let value = secrets::resolve(reference).await.map_err(|error| missing(&error))?;
            grant.variables.insert(name.clone(), value.expose().to_owned());
        }
        for (registry, login) in &project.registries {
            let password = secrets::resolve(&login.password).await.map_err(|error| missing(&error))?;
            grant.registries.push(v1::RegistryLogin {
                registry: registry.clone(),
                username: login.username.clone(),
                password: password.expose().to_owned(),
            });
        }
        let forge = match self.forges.of(project).await {
            Ok(forge) => forge,
            Err(OpenForgeError::Forge(error)) => return Err(forge_status(&error)),
            Err(error @ OpenForgeError::Secret { .. }) => return Err(missing(&error)),
        };
        let access = forge.git_access().await.map_err(|error| forge_status(&error))?;
        if let Some((username, password)) = access.login {
            grant.git_username = username;
            password.expose().clone_into(&mut grant.git_password);
        }
        Ok(grant)
    }

    /// Reads the CI variables that were approved, from the forge. Nothing of them is stored or logged.
    async fn ci_variables(&self, claim: &Claim, project: &ProjectConfig) -> Result<Vec<v1::StepVariable>, Status> {
        let proposal = self.parts.jobs.proposal(&claim.job).await.map_err(|error| job_status(&error))?;
        let approved = proposal.map(|proposal| proposal.ci_variables).unwrap_or_default();
        if approved.is_empty() {
            return Ok(Vec::new());
        }
        let missing = |name: &str, why: &str| {
            let message = format!("cannot read the CI variable {name}: {why}; correct that, and submit the job again");
            refusal(Code::FailedPrecondition, "SECRET_MISSING", message)
        };
        let forge = match self.forges.of(project).await {
            Ok(forge) => forge,
            Err(OpenForgeError::Forge(error)) => return Err(forge_status(&error)),
            Err(error @ OpenForgeError::Secret { .. }) => {
                return Err(missing("of the project", &Chain(&error).to_string()));
            }
        };
        let names: Vec<String> = approved.keys().cloned().collect();
        let mut found = forge.ci_variables(&names).await.map_err(|error| forge_status(&error))?;
        let mut variables = Vec::new();
        for (name, steps) in approved {
            if project.ci_variables.get(&name) != Some(&steps) {
                return Err(missing(&name, "the project's `ci_variables` do not allow it so any more"));
            }
            let value = found.remove(&name).ok_or_else(|| missing(&name, "GitLab has none (any more)"))?;
            let value = value.map_err(|why| missing(&name, &why))?;
            let steps = steps.iter().map(|step| v1::Step::from(step).into()).collect();
            variables.push(v1::StepVariable { name, value: value.expose().to_owned(), steps });
        }
        Ok(variables)
    }

    async fn keep_diff(&self, claim: &Claim, wanted: &v1::AuthorizePublishRequest) -> Result<(), Status> {
        let kept = self.artifacts.keep_diff(&claim.job, &claim.attempt, &wanted.diff, wanted.diff_truncated).await;
        kept.map_err(|error| {
            warn!(job = %claim.job, attempt = %claim.attempt, error = %Chain(&error), "a diff could not be kept");
            refusal(Code::Unavailable, "ARTIFACT_FAILED", format!("cannot keep the diff: {}", Chain(&error)))
        })
    }
}

fn removed(note: Option<&Removed>) -> Status {
    refusal(Code::PermissionDenied, "HOST_REMOVED", hosts::refused(note))
}

fn refused(reason: &str) -> Response<v1::AuthorizePublishResponse> {
    Response::new(v1::AuthorizePublishResponse { granted: false, reason: reason.to_owned() })
}

fn claim(host: HostId, job: &str, attempt: &str, fence: u64) -> Result<Claim, Status> {
    Ok(Claim {
        host,
        job: job.parse().map_err(|error| invalid_id(&error))?,
        attempt: attempt.parse().map_err(|error| invalid_id(&error))?,
        fence: Fence(fence),
    })
}
