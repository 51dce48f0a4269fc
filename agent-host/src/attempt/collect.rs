//! Bringing home what the job left: a bundle over the standard output of `collect`, into a file, into the mirror.
//!
//! `collect` has no network and no secrets, and the engine keeps nothing of what it prints. Done again after any
//! failure of the engine or a restart: it brings the same commit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::attempt::{Event, Failure, FailureReason, Step};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::mask::{self, Needles};
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use super::course::{self, Harvest, NOTHING_CHANGED};
use super::ports::PublishRequest;
use super::prepare::{ENGINE_AGAIN, engine_failure};
use super::verdict::{self, Allowed, Ending};
use super::{Attempt, Halt, scripts};
use crate::engine::{EngineError, OutputStream};
use crate::environment::StepCommand;
use crate::ledger::{Entry, StepEnd};
use crate::mirror::Imported;
use crate::sweeper::temp_dir;

/// How often `collect` is tried while the engine fails.
const TRIES: u32 = 3;
/// How long the controller is waited for when a diff is only to be shown.
const SHOW: Duration = Duration::from_secs(15);

/// Why a bundle did not arrive.
enum Broken {
    Engine(EngineError),
    Halt(Halt),
}

impl From<EngineError> for Broken {
    fn from(error: EngineError) -> Self {
        Broken::Engine(error)
    }
}

impl From<Halt> for Broken {
    fn from(halt: Halt) -> Self {
        Broken::Halt(halt)
    }
}

impl Attempt {
    /// Collects what the job left, and says what follows. After an earlier failure the diff is shown, not pushed.
    pub(super) async fn collect(&self) -> Result<Event, Halt> {
        let harvest = match self.harvest().await {
            Ok(harvest) => harvest,
            Err(Halt::Failed(failure)) => Harvest::Failed(failure),
            Err(Halt::Superseded) => return Err(Halt::Superseded),
        };
        let history = self.history();
        if harvest == Harvest::Commit && course::pending(&history).is_some() {
            self.show().await;
        }
        Ok(course::after_collect(&history, harvest))
    }

    async fn harvest(&self) -> Result<Harvest, Halt> {
        self.log.check()?;
        self.grant().await?;
        let bundle = self.temp().join("bundle");
        let mut tries = 0;
        let end = loop {
            match self.run_collect(&bundle).await {
                Ok(end) => break end,
                Err(Broken::Halt(halt)) => return Err(halt),
                Err(Broken::Engine(error)) => {
                    tries += 1;
                    if !error.is_retryable() || tries >= TRIES {
                        return Err(engine_failure(&error).into());
                    }
                    tokio::time::sleep(ENGINE_AGAIN.pause(tries, Backoff::jitter())).await;
                }
            }
        };
        self.append(Entry::StepEnded(end.clone()))?;
        match end {
            StepEnd { failure: Some(failure), .. } => Ok(Harvest::Failed(failure)),
            StepEnd { status: Some(NOTHING_CHANGED), .. } => Ok(Harvest::Nothing),
            _ => self.import(&bundle).await,
        }
    }

    /// Runs `collect` in a container of its own and receives the bundle.
    async fn run_collect(&self, bundle: &Path) -> Result<StepEnd, Broken> {
        let step = Step::Collect;
        let history = self.history();
        let round = history.round(step) + 1;
        // Also one that the ledger does not know: what it printed is gone.
        let first = self.assignment.attempt.object_name(step.name());
        self.remove_container(history.container(step).unwrap_or(&first)).await?;
        let verified = history.ended(Step::Verify).is_some();
        let script = scripts::script(&self.assignment, step, verified);
        let command = StepCommand { script, ..StepCommand::default() };
        let name = self.make_container(step, round, command).await?;
        self.append(Entry::StepMade { step, round, container: name.clone() }).map_err(Halt::from)?;
        let frame = self.frame(step).await?;
        let attached = self.around.engine.start(&name, Some(&frame), true).await?;
        self.append(Entry::StepHandedOver { step, round }).map_err(Halt::from)?;
        let began = self.around.clock.now();
        let allowed = Allowed {
            time: self.assignment.limits.step(step),
            memory_bytes: self.assignment.limits.resources.memory_bytes,
        };
        let received = tokio::time::timeout(allowed.time, self.receive(attached.output, bundle)).await;
        let exit = match received {
            Ok(Ok(None)) => Some(self.around.engine.wait(&name).await?),
            Ok(Ok(Some(too_long))) => {
                self.stop_container(step, &name).await;
                return Err(Halt::Failed(too_long).into());
            }
            Ok(Err(broken)) => return Err(broken),
            Err(_) => {
                self.stop_container(step, &name).await;
                None
            }
        };
        self.log.end_source(step.name());
        let (status, tail) = (exit.map(|exit| exit.status), self.log.tail(step.name()));
        let out_of_memory = exit.is_some_and(|exit| exit.out_of_memory);
        let ending = Ending { step, status, out_of_memory, interrupted: false, tail };
        let failure = verdict::judge(&ending, allowed).filter(|_| status != Some(NOTHING_CHANGED));
        let seconds = self.around.clock.now().since(began).as_secs();
        Ok(StepEnd { step, status, failure, seconds, tail: ending.tail })
    }

    /// Writes standard output into the file and the rest into the log; tells a failure if there is too much of it.
    async fn receive(&self, output: Option<OutputStream>, bundle: &Path) -> Result<Option<Failure>, Broken> {
        let disk = |error: std::io::Error| {
            let full = error.kind() == std::io::ErrorKind::StorageFull;
            let reason = if full { FailureReason::DiskFull } else { FailureReason::Internal };
            Halt::Failed(Failure { reason, message: format!("failed to write {}: {error}", bundle.display()) })
        };
        tokio::fs::create_dir_all(self.temp()).await.map_err(disk)?;
        let mut file = tokio::fs::File::create(bundle).await.map_err(disk)?;
        let limit = self.assignment.limits.bundle_bytes;
        let mut length = 0u64;
        let mut output = output.into_iter().collect::<futures_util::stream::SelectAll<_>>();
        while let Some(frame) = output.next().await {
            let frame = frame?;
            if frame.is_error {
                self.log.frame(Step::Collect.name(), &frame).map_err(Halt::from)?;
                continue;
            }
            length += frame.data.len() as u64;
            if length > limit {
                let message = format!(
                    "the job's commits take a bundle over {} MiB; keep large files out of the repository",
                    limit >> 20
                );
                return Ok(Some(Failure { reason: FailureReason::Collect, message }));
            }
            file.write_all(&frame.data).await.map_err(disk)?;
        }
        file.flush().await.map_err(disk)?;
        Ok(None)
    }

    async fn import(&self, bundle: &Path) -> Result<Harvest, Halt> {
        let mut tries = 0;
        loop {
            match self.around.code.import(&self.assignment, bundle).await {
                Ok(imported) => {
                    self.append(Entry::Collected { commit: imported.commit.clone() })?;
                    *self.imported.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(imported);
                    return Ok(Harvest::Commit);
                }
                Err(error) if error.no_change => return Ok(Harvest::Nothing),
                Err(error) if error.retryable && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(ENGINE_AGAIN.pause(tries, Backoff::jitter())).await;
                }
                Err(error) => {
                    let failure = Failure { reason: FailureReason::Collect, message: format!("failed to {error}") };
                    return Err(failure.into());
                }
            }
        }
    }

    /// Brings the controller the diff of a job that failed, for people to see.
    async fn show(&self) {
        let Ok(Some(request)) = self.publish_request(false).await else { return };
        match tokio::time::timeout(SHOW, self.around.controller.authorize_publish(&request)).await {
            Ok(Ok(_)) => self.log.note("the change is kept to be looked at; nothing is pushed"),
            Ok(Err(error)) => {
                tracing::warn!(attempt = %self.assignment.attempt, %error, "diff of a failed job not kept")
            }
            Err(_) => tracing::warn!(attempt = %self.assignment.attempt, "diff of a failed job not kept in time"),
        }
    }

    /// Returns what the controller is told of the collected commit. A change in which a secret of the attempt stands is
    /// shown with the secret masked, and asks for no push.
    pub(super) async fn publish_request(&self, push: bool) -> Result<Option<PublishRequest>, Halt> {
        let imported = self.imported.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let Some(Imported { commit, diff, diff_truncated }) = imported else { return Ok(None) };
        let secrets = self.grant().await?.secrets();
        let needles = Needles::new(&secrets)
            .map_err(|weak| Failure { reason: FailureReason::Secret, message: format!("failed to {weak}") })?;
        let shown = mask::masked(&Arc::new(needles), &diff);
        Ok(Some(PublishRequest {
            claim: self.claim(),
            commit,
            push: push && shown == diff,
            diff: shown,
            diff_truncated,
            verification: course::verification(&self.history()),
        }))
    }

    /// Returns the attempt's directory for temporary files.
    pub(super) fn temp(&self) -> PathBuf {
        temp_dir(&self.around.data_dir, &self.assignment.attempt)
    }
}
