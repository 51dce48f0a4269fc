//! What an attempt needs before its first step: room, secrets, mirror, environment.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use devfleet_shared::attempt::{Failure, FailureReason};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use devfleet_shared::resources::Resources;

use super::ports::{Claim, ControllerError, Grant};
use super::{Attempt, Halt};
use crate::disk::{self, Space};
use crate::engine::{ContainerState, EngineError, ImageFacts};
use crate::environment::{EnvironmentError, ImageRequest, Pulls, Wanted, reason_of};

/// The pace at which a controller that cannot be reached is asked again.
const ASK_AGAIN: Backoff = Backoff { first: Duration::from_millis(500), ceiling: Duration::from_secs(15) };

/// The pace at which an engine that is away is asked again.
pub(super) const ENGINE_AGAIN: Backoff =
    Backoff { first: Duration::from_millis(250), ceiling: Duration::from_secs(10) };
/// How often an engine that is away is asked again: for about a minute.
pub(super) const ENGINE_TRIES: u32 = 10;

impl Attempt {
    /// Makes everything the first step needs.
    pub(super) async fn prepare(&self) -> Result<(), Halt> {
        self.log.check()?;
        self.admit().await?;
        let outcome = tokio::try_join!(self.build(), self.mirror()).map(|_| ());
        if outcome.is_err() {
            self.cut.store(true, Ordering::SeqCst);
        }
        outcome?;
        self.open_caches().await
    }

    /// Judges once more what the controller has judged with the same rule: this host may have less by now.
    async fn admit(&self) -> Result<(), Halt> {
        let facts = self.patiently(|| self.around.engine.facts()).await?;
        let full = |message| Failure { reason: FailureReason::DiskFull, message };
        let space = match self.around.engine_disk.clone().or_else(|| disk::of_engine(&facts)) {
            Some(path) => (self.around.gauge)(&path).map_err(|error| full(format!("failed to {}", Chain(&error))))?,
            // It cannot be seen from here, so nothing is said against it.
            None => Space::UNSEEN,
        };
        let total = disk::total(&facts, &space, self.around.slots);
        let measured = disk::free(total, Resources::default(), &space);
        let limits = &self.assignment.limits;
        let no_room = |message| Failure { reason: FailureReason::NoRoom, message };
        if let Some(runtime) = limits.runtime.as_ref().filter(|runtime| !facts.runtimes.contains(*runtime)) {
            let message = format!("failed to take the job on: this host's engine has no runtime {runtime} (any more)");
            return Err(no_room(message).into());
        }
        let admitted = self.around.admitted.admit(&self.assignment.attempt, limits.resources, total, measured);
        admitted.map_err(|refused| {
            let advice = match refused.lacking.iter().any(|lacking| matches!(*lacking, "disk" | "inodes")) {
                true => "; free some, for example with `docker system df` and `devfleet sweep`",
                false => "",
            };
            no_room(format!("failed to {refused}{advice}")).into()
        })
    }

    /// Makes image, network, workspace and services, until they are ready.
    async fn build(&self) -> Result<(), Halt> {
        let pulls = self.pulls().await?;
        let note = |text: &str| self.note(text);
        let devbox = self.devbox(&note);
        if self.adopted && self.check_services().await.is_err() {
            // Nothing has run in it yet, so what an engine's restart left of it is no loss.
            devbox.tear_down().await.map_err(|error| Halt::Failed(error.failure()))?;
        }
        let mut tries = 0;
        let image = loop {
            match devbox.prepare(&pulls).await {
                Ok(image) => break image,
                // An answer that was lost, or an engine that restarts: what was made is found again by its name.
                Err(error) if error.is_retryable() && tries < ENGINE_TRIES => {
                    tries += 1;
                    tokio::time::sleep(ENGINE_AGAIN.pause(tries, Backoff::jitter())).await;
                }
                Err(error) => return Err(Halt::Failed(error.failure())),
            }
        };
        // Set already: only if an earlier try got this far, with the same recipe and so the same image.
        let _ = self.image.set(image);
        Ok(())
    }

    async fn pulls(&self) -> Result<Pulls, Halt> {
        let grant = self.grant().await?;
        let project = self.assignment.project.to_string();
        Ok(Pulls { project, logins: grant.registries.clone(), policy: grant.pull_policy })
    }

    /// Returns the image. After a restart it is looked up again, and built again if it is gone.
    pub(super) async fn image(&self) -> Result<&ImageFacts, Halt> {
        self.image
            .get_or_try_init(|| async {
                let note = |text: &str| self.note(text);
                let spec = &self.assignment.environment;
                let pulls = self.pulls().await?;
                let request = ImageRequest {
                    recipe: &self.assignment.recipe,
                    base: Wanted::base(spec),
                    pulls: &pulls,
                    created: self.around.clock.now(),
                    note: &note,
                };
                let image = self.around.images.ensure(&request).await;
                image.map_err(|error| Halt::Failed(EnvironmentError::from(error).failure()))
            })
            .await
    }

    /// Returns the mirror that has the base commit.
    pub(super) async fn mirror(&self) -> Result<PathBuf, Halt> {
        let login = self.grant().await?.git.as_ref();
        let mut tries = 0;
        loop {
            match self.around.code.fetch(&self.assignment, login).await {
                Ok(path) => return Ok(path),
                Err(error) if error.retryable && tries < 4 => {
                    tries += 1;
                    self.note(&format!("failed to {error}; trying again"));
                    tokio::time::sleep(ASK_AGAIN.pause(tries, Backoff::jitter())).await;
                }
                Err(error) => {
                    return Err(
                        Failure { reason: FailureReason::Checkout, message: format!("failed to {error}") }.into()
                    );
                }
            }
        }
    }

    /// Returns the attempt's secrets, which every log line is masked for from then on. Waits for the controller.
    pub(super) async fn grant(&self) -> Result<&Grant, Halt> {
        self.grant
            .get_or_try_init(|| async {
                let claim = self.claim();
                let grant = self.ask(|| self.around.controller.get_grant(&claim)).await?;
                let (names, secrets): (Vec<_>, Vec<_>) = grant.named_secrets().into_iter().unzip();
                self.log.add_secrets(&secrets).map_err(|weak| {
                    let name = names.get(weak.number.saturating_sub(1)).map_or("a secret", String::as_str);
                    let rule = weak.rule;
                    let message = format!("failed to mask {name} in output: {rule}; give it a longer, random value");
                    Failure { reason: FailureReason::Secret, message }
                })?;
                Ok(grant)
            })
            .await
    }

    /// Asks the controller until it answers.
    pub(super) async fn ask<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, Halt>
    where
        F: Future<Output = Result<T, ControllerError>>,
    {
        let mut tries = 0;
        loop {
            match call().await {
                Ok(answer) => return Ok(answer),
                Err(ControllerError::Superseded { detail }) => {
                    tracing::info!(attempt = %self.assignment.attempt, detail, "superseded");
                    return Err(Halt::Superseded);
                }
                Err(error @ ControllerError::Refused { .. }) => {
                    let failure = Failure { reason: FailureReason::Secret, message: format!("failed to {error}") };
                    return Err(failure.into());
                }
                Err(ControllerError::Unreachable { detail }) => {
                    tries += 1;
                    tracing::debug!(attempt = %self.assignment.attempt, detail, "the controller did not answer");
                    self.reporter.doing("waiting for the controller");
                    tokio::time::sleep(ASK_AGAIN.pause(tries, Backoff::jitter())).await;
                }
            }
        }
    }

    pub(super) fn claim(&self) -> Claim {
        Claim::of(&self.assignment)
    }

    /// After a restart: fails if a service is gone. It cannot be made again: what it held is gone with it.
    pub(super) async fn check_services(&self) -> Result<(), Halt> {
        for service in &self.assignment.environment.services {
            let name = self.assignment.attempt.object_name(&service.name);
            let state = self.patiently(|| self.around.engine.state(&name)).await?;
            if !matches!(state, Some(ContainerState::Running { .. })) {
                let message = format!(
                    "service {} is gone, as happens when the container engine or the machine restarts",
                    service.name
                );
                return Err(Failure { reason: FailureReason::Engine, message }.into());
            }
        }
        Ok(())
    }

    /// Makes an engine call, and makes it again while the engine is away, for about a minute.
    pub(super) async fn patiently<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, Halt>
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        let mut tries = 0;
        loop {
            match call().await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_retryable() && tries < ENGINE_TRIES => {
                    tries += 1;
                    tokio::time::sleep(ENGINE_AGAIN.pause(tries, Backoff::jitter())).await;
                }
                Err(error) => return Err(engine_failure(&error).into()),
            }
        }
    }
}

/// Returns how an engine's failure is told.
pub(super) fn engine_failure(error: &EngineError) -> Failure {
    Failure { reason: reason_of(error), message: format!("failed to {}", Chain(error)) }
}
