//! One host's session, from hello to its end: the full assignment set down whenever it changes, reports up.
//!
//! The set is computed anew from the view each time; nothing is remembered but what was sent last. So a session that
//! was cut and re-opened, on this controller or another, goes on where it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use devfleet_proto::convert::assignment_to_wire;
use devfleet_proto::v1::controller_message::Kind as Down;
use devfleet_proto::v1::host_message::Kind as Up;
use devfleet_proto::v1::{self, ControllerMessage, HostMessage};
use devfleet_shared::assignment::{Assignment, Repository};
use devfleet_shared::attempt::{AttemptResult, Phase};
use devfleet_shared::clock::Timestamp;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{Fence, HostId, JobId};
use devfleet_shared::protocol::{self, PROTOCOL};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming};
use tracing::{error, info, warn};

use super::prover::{Held, ProofError, ProverHandle};
use super::{Order, Sessions, Told};
use crate::api::refusal;
use crate::hosts;
use crate::jobs::{Claim, JobError, Jobs, Observed, Report};
use crate::logs::JobLogs;
use crate::store::records::fleet::Generation;
use crate::store::records::{Proposal, RecordError};
use crate::timers::Timers;
use crate::view::{JobRecords, View};

/// How long the view may lag behind what a session wrote.
const VIEW: Duration = Duration::from_secs(10);

/// What a session works with.
#[derive(Clone)]
pub struct SessionParts {
    /// The records.
    pub view: Arc<View>,
    /// Moves jobs.
    pub jobs: Arc<Jobs>,
    /// The registry.
    pub sessions: Arc<Sessions>,
    /// Job output.
    pub logs: JobLogs,
    /// Proves heartbeats.
    pub prover: ProverHandle,
    /// The timers that hosts are told.
    pub timers: Timers,
}

/// One session.
pub struct Session {
    parts: SessionParts,
    host: HostId,
    down: mpsc::Sender<Result<ControllerMessage, tonic::Status>>,
    proposals: BTreeMap<JobId, Arc<Proposal>>,
    sent: Vec<v1::Assignment>,
    sweeps: BTreeMap<u64, oneshot::Sender<v1::SweepResult>>,
    last_sweep: u64,
    proofs: Proofs,
}

/// The heartbeats of one session, and what is known of its record in the store.
#[derive(Default)]
struct Proofs {
    under_way: JoinSet<Result<Held, ProofError>>,
    held: Option<Held>,
    /// A heartbeat that came while another is being proven. The newest stands for those before it.
    waiting: Option<u64>,
}

/// The other side is gone.
struct Gone;

impl Session {
    /// Makes one for a host, over the stream that goes down to it.
    pub fn new(
        parts: SessionParts,
        host: HostId,
        down: mpsc::Sender<Result<ControllerMessage, tonic::Status>>,
    ) -> Self {
        Self {
            parts,
            host,
            down,
            proposals: BTreeMap::new(),
            sent: Vec::new(),
            sweeps: BTreeMap::new(),
            last_sweep: 0,
            proofs: Proofs::default(),
        }
    }

    /// Runs until either side ends it.
    pub async fn run(mut self, hello: v1::Hello, mut up: Streaming<HostMessage>, shutdown: CancellationToken) {
        if let Err(skew) = protocol::agree(protocol::said(hello.protocol), PROTOCOL) {
            warn!(host = %self.host, version = hello.host_version, error = %skew, "a host is refused");
            drop(self.down.send(Err(refusal(Code::FailedPrecondition, "PROTOCOL_SKEW", skew.to_string()))).await);
            return;
        }
        let number = self.parts.sessions.number();
        if let Err(refused) = self.prove_first(number, &hello).await {
            drop(self.down.send(Err(refused)).await);
            return;
        }
        let mut orders = self.parts.sessions.open(&self.host, number, &hello);
        info!(host = %self.host, version = hello.host_version, owned = hello.owned.len(), "host connected");
        let outcome = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            outcome = self.converse(number, &mut orders, &mut up) => outcome,
        };
        self.parts.sessions.close(&self.host, number);
        match outcome {
            Ok(()) | Err(Gone) => info!(host = %self.host, "host disconnected"),
        }
    }

    async fn converse(
        &mut self,
        number: u64,
        orders: &mut mpsc::Receiver<Order>,
        up: &mut Streaming<HostMessage>,
    ) -> Result<(), Gone> {
        let mut changed = self.parts.view.changed_for(&self.host);
        self.welcome().await?;
        loop {
            tokio::select! {
                message = up.next() => match message {
                    Some(Ok(message)) => self.hear(number, message).await?,
                    Some(Err(status)) => {
                        warn!(host = %self.host, error = %status, "the session broke off");
                        return Err(Gone);
                    }
                    None => return Err(Gone),
                },
                _ = changed.changed() => {
                    self.end_if_removed().await?;
                    self.send_assignments().await?;
                }
                Some(proof) = self.proofs.under_way.join_next() => self.proven(proof).await?,
                order = orders.recv() => match order {
                    Some(Order::Sweep { dry_run, answer }) => self.order_sweep(dry_run, answer).await?,
                    Some(Order::Close) | None => return Ok(()),
                },
            }
        }
    }

    /// Writes the session down, and waits until the view has seen that: a host that opens a session must not be told of
    /// anything that was taken from it before.
    async fn prove_first(&mut self, number: u64, hello: &v1::Hello) -> Result<(), tonic::Status> {
        let opened = tokio::time::timeout(VIEW, async {
            let held = self.parts.prover.open(&self.host, number, &hello.incarnation).await?;
            self.parts.view.reach(held.revision).await;
            Ok(held)
        });
        match opened.await {
            Ok(Ok(held)) => {
                self.proofs.held = Some(held);
                Ok(())
            }
            Ok(Err(ProofError::Removed)) => Err(self.removed()),
            Ok(Err(error)) => {
                warn!(host = %self.host, error = %Chain(&error), "a session could not be opened");
                Err(tonic::Status::unavailable("the controller's store does not answer; try again"))
            }
            Err(_) => Err(tonic::Status::unavailable("the controller is behind its store; try again")),
        }
    }

    fn prove_next(&mut self) {
        let proofs = &mut self.proofs;
        if let (true, Some(held), Some(sequence)) = (proofs.under_way.is_empty(), &proofs.held, proofs.waiting) {
            proofs.waiting = None;
            let (prover, held) = (self.parts.prover.clone(), held.clone());
            proofs.under_way.spawn(async move { prover.prove(held, sequence).await });
        }
    }

    async fn proven(&mut self, proof: Result<Result<Held, ProofError>, tokio::task::JoinError>) -> Result<(), Gone> {
        match proof {
            Ok(Ok(held)) => {
                let sequence = held.record.sequence;
                self.proofs.held = Some(held);
                self.send(Down::Heartbeat(v1::HeartbeatAck { sequence })).await?;
            }
            Ok(Err(error @ (ProofError::Over | ProofError::Removed))) => {
                info!(host = %self.host, error = %Chain(&error), "the session ends");
                return Err(Gone);
            }
            // Not answered: the host counts from the last one that was.
            Ok(Err(error)) => warn!(host = %self.host, error = %Chain(&error), "a heartbeat could not be proven"),
            Err(error) => warn!(host = %self.host, error = %Chain(&error), "a heartbeat could not be proven"),
        }
        self.prove_next();
        Ok(())
    }

    async fn end_if_removed(&self) -> Result<(), Gone> {
        if self.parts.view.read().hosts.contains_key(&self.host) {
            return Ok(());
        }
        info!(host = %self.host, "the host was removed, its session ends");
        drop(self.down.send(Err(self.removed())).await);
        Err(Gone)
    }

    fn removed(&self) -> tonic::Status {
        let note = self.parts.view.read().removed.get(&self.host).cloned();
        refusal(Code::PermissionDenied, "HOST_REMOVED", hosts::refused(note.as_deref()))
    }

    async fn welcome(&mut self) -> Result<(), Gone> {
        let assignments = self.assignments().await?;
        self.sent.clone_from(&assignments.assignments);
        let generation = self.parts.view.read().generation.clone();
        let generation = generation.map(|Generation { id, number }| v1::Generation { id: id.to_string(), number });
        self.send(Down::Welcome(v1::Welcome {
            heartbeat_seconds: self.parts.timers.heartbeat.0.as_secs(),
            controller_version: env!("CARGO_PKG_VERSION").to_owned(),
            assignments: Some(assignments),
            freeze_ms: self.parts.timers.freeze.0.as_millis() as u64,
            kill_ms: self.parts.timers.kill.0.as_millis() as u64,
            protocol: PROTOCOL,
            generation,
        }))
        .await
    }

    async fn send_assignments(&mut self) -> Result<(), Gone> {
        let set = self.assignments().await?;
        if set.assignments == self.sent {
            return Ok(());
        }
        self.sent.clone_from(&set.assignments);
        self.send(Down::Assignments(set)).await
    }

    async fn hear(&mut self, number: u64, message: HostMessage) -> Result<(), Gone> {
        match message.kind {
            Some(Up::Heartbeat(beat)) => {
                self.parts.sessions.heard(&self.host, number, None);
                self.proofs.waiting = Some(beat.sequence);
                self.prove_next();
                Ok(())
            }
            Some(Up::Inventory(inventory)) => {
                self.parts.sessions.heard(&self.host, number, Some(inventory));
                Ok(())
            }
            Some(Up::Report(report)) => self.take_report(report).await,
            Some(Up::Sweep(result)) => {
                if let Some(answer) = self.sweeps.remove(&result.request) {
                    drop(answer.send(result));
                }
                Ok(())
            }
            Some(Up::Hello(_)) | None => Ok(()),
        }
    }

    /// Applies a report, and acknowledges it once it is durable. A report that cannot be applied now is not
    /// acknowledged, so the host repeats it.
    async fn take_report(&mut self, report: v1::AttemptReport) -> Result<(), Gone> {
        let (attempt, sequence) = (report.attempt.clone(), report.sequence);
        let superseded = match self.apply(report).await {
            Ok(Report::Applied) => false,
            Ok(Report::Superseded) => true,
            Err(error) => {
                warn!(host = %self.host, attempt, error = %Chain(&error), "a report could not be applied");
                return Ok(());
            }
        };
        self.send(Down::Report(v1::ReportAck { attempt, sequence, superseded })).await
    }

    async fn apply(&self, report: v1::AttemptReport) -> Result<Report, JobError> {
        let parsed = (report.job.parse(), report.attempt.parse(), report.state.map(Phase::try_from));
        let (Ok(job), Ok(attempt), Some(Ok(phase))) = parsed else {
            error!(host = %self.host, job = report.job, "a report is malformed, it is dropped");
            return Ok(Report::Superseded);
        };
        let held_until = (report.held_until_unix_ms > 0).then_some(Timestamp(report.held_until_unix_ms));
        let max_attempts = self.max_attempts(&job);
        let claim = Claim { host: self.host.clone(), job, attempt, fence: Fence(report.fence) };
        if phase == Phase::Ended(AttemptResult::Lost)
            && let Err(error) = self.parts.logs.complete(&claim.job, &claim.attempt).await
        {
            warn!(attempt = %claim.attempt, error = %Chain(&error), "the log of a lost attempt could not be closed");
        }
        let tokens = self.parts.sessions.told(&claim.attempt).tokens.max(report.tokens);
        let observed = Observed { phase: &phase, held_until, tokens };
        let outcome = self.parts.jobs.report(&claim, observed, max_attempts).await?;
        if outcome == Report::Superseded || matches!(phase, Phase::Ended(_)) {
            self.parts.sessions.forget(&claim.attempt);
        } else {
            self.parts.sessions.note(&claim.attempt, Told { doing: report.doing, tokens });
        }
        Ok(outcome)
    }

    fn max_attempts(&self, job: &JobId) -> u32 {
        let records = self.parts.view.read();
        let project = records.job(job).map(|job| job.spec.project.clone());
        project.and_then(|name| records.projects.get(&name)).map_or(1, |project| project.config.max_attempts)
    }

    async fn order_sweep(&mut self, dry_run: bool, answer: oneshot::Sender<v1::SweepResult>) -> Result<(), Gone> {
        self.last_sweep += 1;
        self.sweeps.insert(self.last_sweep, answer);
        self.send(Down::Sweep(v1::SweepOrder { request: self.last_sweep, dry_run })).await
    }

    /// Computes everything that the host is to have now. What is left out is stopped there, so a store that does not
    /// answer ends the session: no set is better than one that is short.
    async fn assignments(&mut self) -> Result<v1::AssignmentSet, Gone> {
        let generation = *self.parts.view.changed().borrow();
        let mine: Vec<JobRecords> = self.parts.view.read().owned_by(&self.host).collect();
        let mut assignments = Vec::with_capacity(mine.len());
        for job in &mine {
            match self.assignment(job).await {
                Ok(Some(assignment)) => assignments.push(assignment),
                Ok(None) => {}
                Err(JobError::Record(RecordError::Store(error))) => {
                    warn!(job = %job.spec.id, error = %Chain(&error), "the store does not answer, the session ends");
                    return Err(Gone);
                }
                Err(error) => error!(job = %job.spec.id, error = %Chain(&error), "an assignment cannot be made"),
            }
        }
        self.proposals.retain(|id, _| mine.iter().any(|job| job.spec.id == *id));
        Ok(v1::AssignmentSet { generation, assignments })
    }

    async fn assignment(&mut self, job: &JobRecords) -> Result<Option<v1::Assignment>, JobError> {
        let Some((owner, fence)) = &job.owner else { return Ok(None) };
        let Some(attempt) = job.state.attempts.iter().find(|attempt| attempt.id == owner.attempt) else {
            return Ok(None);
        };
        let Some(proposal) = self.proposal(&job.spec.id).await? else { return Ok(None) };
        let assignment = Assignment {
            job: job.spec.id.clone(),
            attempt: attempt.id.clone(),
            fence: *fence,
            project: job.spec.project.clone(),
            task: proposal.task.clone(),
            plan: proposal.plan.clone(),
            environment: proposal.environment.clone(),
            recipe: proposal.recipe.clone(),
            repository: Repository {
                url: proposal.repository.clone(),
                base_commit: proposal.base.commit.clone(),
                base_branch: proposal.base.branch.clone(),
                work_branch: attempt.branch.clone(),
            },
            agent: proposal.agent.clone(),
            limits: proposal.limits.clone(),
            hold: job.spec.hold,
        };
        let stop = job.state.cancelled_by.is_some() || attempt.recalled.is_some();
        Ok(Some(assignment_to_wire(&assignment, stop)))
    }

    async fn proposal(&mut self, job: &JobId) -> Result<Option<Arc<Proposal>>, JobError> {
        if let Some(known) = self.proposals.get(job) {
            return Ok(Some(known.clone()));
        }
        let found = self.parts.jobs.proposal(job).await?.map(Arc::new);
        if let Some(proposal) = &found {
            self.proposals.insert(job.clone(), proposal.clone());
        }
        Ok(found)
    }

    async fn send(&self, kind: Down) -> Result<(), Gone> {
        self.down.send(Ok(ControllerMessage { kind: Some(kind) })).await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests;
