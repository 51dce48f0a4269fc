//! Running one step: its container made once, started once, read to the end, across restarts of daemon and engine.

use std::sync::PoisonError;
use std::time::Duration;

use devfleet_shared::assignment::AgentKind;
use devfleet_shared::attempt::{Event, Failure, FailureReason, Step};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::Timestamp;
use futures_util::StreamExt as _;

use super::course::{self, Move, NO_FRAME};
use super::prepare::{ENGINE_AGAIN, engine_failure};
use super::verdict::{self, Allowed, Ending};
use super::{Attempt, Halt, claude, scripts};
use crate::engine::{EngineError, Exit};
use crate::environment::{self, StepCommand};
use crate::ledger::{Entry, StepEnd};

/// How long a container may take to end after SIGTERM.
pub(super) const GRACE: Duration = Duration::from_secs(3);
/// How often a container is made again because its variables did not arrive.
const ROUNDS: u32 = 3;
/// How often a watch that the engine broke off is taken up again: for about five minutes.
const WATCH_TRIES: u32 = 30;
/// How often what masking holds back is looked at.
const SETTLE: Duration = Duration::from_millis(100);

impl Attempt {
    /// Runs a step to its end, or goes on with it, and says what follows.
    pub(super) async fn step(&self, step: Step) -> Result<Event, Halt> {
        if self.history().ended(step).is_none() {
            self.log.check()?;
            // Before any output is read: it is masked for these.
            self.grant().await?;
            let end = self.run_step(step).await?;
            self.append(Entry::StepEnded(end))?;
        }
        Ok(course::after(&self.assignment, &self.history(), step))
    }

    async fn run_step(&self, step: Step) -> Result<StepEnd, Halt> {
        let mut failed_starts = 0;
        loop {
            let history = self.history();
            let round = history.round(step);
            let handed_over = history.handed_over(step, round);
            let name = history.container(step).unwrap_or_default().to_owned();
            let state = match round {
                0 => None,
                _ => self.patiently(|| self.around.engine.state(&name)).await?,
            };
            match course::next_move(round > 0, handed_over.is_some(), state.as_ref()) {
                Move::Make => self.make(step, round.max(1)).await?,
                Move::Start => match self.start(step, round, &name).await {
                    Err(error) if error.is_retryable() && failed_starts < 8 => {
                        failed_starts += 1;
                        tokio::time::sleep(ENGINE_AGAIN.pause(failed_starts, Backoff::jitter())).await;
                    }
                    Err(StartError::Engine(error)) => return Err(engine_failure(&error).into()),
                    Err(StartError::Halt(halt)) => return Err(halt),
                    Ok(()) => {}
                },
                Move::Follow => {
                    if let Some(end) = self.follow(step, &name, handed_over).await? {
                        return Ok(end);
                    }
                }
                Move::Remake if round < ROUNDS => {
                    self.remove_container(&name).await?;
                    self.make(step, round + 1).await?;
                }
                Move::Remake => return Err(gone(step, "its variables could not be handed over")),
                Move::GiveUp => return Err(gone(step, "its container was removed by someone else")),
            }
        }
    }

    async fn make(&self, step: Step, round: u32) -> Result<(), Halt> {
        if self.adopted && step != Step::Checkout {
            self.check_services().await?;
        }
        let mirror = match step {
            Step::Checkout => Some(self.mirror().await?),
            _ => None,
        };
        if step == Step::Agent {
            self.seal_caches().await?;
        }
        let command = StepCommand {
            caches: self.cache_mounts(step).await?,
            script: scripts::script(&self.assignment, step, false),
            mirror,
            network: step != Step::Checkout,
            keep_output: true,
        };
        let container = self.make_container(step, round, command).await?;
        Ok(self.append(Entry::StepMade { step, round, container })?)
    }

    /// Makes a step's container and returns its name.
    pub(super) async fn make_container(&self, step: Step, round: u32, command: StepCommand) -> Result<String, Halt> {
        let image = self.image().await?;
        let note = |text: &str| self.note(text);
        let made = self.devbox(&note).make_step(image, step, round, command).await;
        made.map_err(|error| Halt::Failed(error.failure()))
    }

    /// Packs a step's variables for its first process.
    pub(super) async fn frame(&self, step: Step) -> Result<environment::Frame, Halt> {
        let variables = scripts::variables(&self.assignment, step, &self.grant().await?.variables_of(step));
        let frame = environment::frame(&variables);
        frame.map_err(|error| {
            Failure { reason: FailureReason::Derivation, message: format!("failed to {error}") }.into()
        })
    }

    async fn start(&self, step: Step, round: u32, name: &str) -> Result<(), StartError> {
        let frame = self.frame(step).await?;
        self.around.engine.start(name, Some(&frame), false).await?;
        self.append(Entry::StepHandedOver { step, round }).map_err(Halt::Failed)?;
        Ok(())
    }

    /// Follows a container to its end; `None`: its variables did not arrive, so its command did not run.
    async fn follow(&self, step: Step, name: &str, handed_over: Option<Timestamp>) -> Result<Option<StepEnd>, Halt> {
        let now = self.around.clock.now();
        let began = handed_over.unwrap_or(now);
        let allowed = Allowed {
            time: self.assignment.limits.step(step),
            memory_bytes: self.assignment.limits.resources.memory_bytes,
        };
        let mut interrupted = self.adopted;
        let frozen = self.history().frozen_between(began, now);
        let left = began.after(allowed.time + frozen).since(now);
        let exit = match tokio::time::timeout(left, self.watch(step, name, &mut interrupted)).await {
            Ok(exit) => Some(exit?),
            Err(_) => {
                self.stop_container(step, name).await;
                None
            }
        };
        self.log.end_source(step.name());
        if handed_over.is_none() && exit.is_some_and(|exit| exit.status == NO_FRAME) {
            return Ok(None);
        }
        let ending = Ending {
            step,
            status: exit.map(|exit| exit.status),
            out_of_memory: exit.is_some_and(|exit| exit.out_of_memory),
            interrupted,
            tail: self.log.tail(step.name()),
        };
        let failure = self.judge(name, &ending, allowed).await?;
        let seconds = self.around.clock.now().since(began).as_secs();
        Ok(Some(StepEnd { step, status: ending.status, failure, seconds, tail: ending.tail }))
    }

    /// Judges a step's ending. A failure that is the engine's ends the attempt.
    async fn judge(&self, name: &str, ending: &Ending, allowed: Allowed) -> Result<Option<Failure>, Halt> {
        let mut failure = verdict::judge(ending, allowed);
        if let Some(failure) = &failure {
            if failure.reason == FailureReason::Engine {
                return Err(failure.clone().into());
            }
            if ending.interrupted && ending.status.is_some() {
                self.check_services().await?;
            }
        }
        if let (Step::Agent, AgentKind::ClaudeCode, Some(status)) =
            (ending.step, self.assignment.agent.kind, ending.status)
        {
            let told = self.read_claude(name).await?;
            self.reporter.tokens(told.tokens());
            let complaint = told.complaint(status);
            failure = complaint.map(|message| Failure { reason: FailureReason::Agent, message });
        }
        Ok(failure)
    }

    /// Reads what the engine kept of Claude Code's output. After the end, so that a restart in between does not matter.
    async fn read_claude(&self, name: &str) -> Result<claude::Reader, Halt> {
        self.patiently(|| async {
            let mut reader = claude::Reader::default();
            let mut output = self.around.engine.output(name, None).await?;
            while let Some(frame) = output.next().await {
                let frame = frame?;
                if !frame.is_error {
                    reader.push(&frame.data);
                }
            }
            reader.end();
            Ok(reader)
        })
        .await
    }

    /// Records a container's output until it ends, through failures of the engine.
    async fn watch(&self, step: Step, name: &str, interrupted: &mut bool) -> Result<Exit, Halt> {
        let mut tries = 0;
        loop {
            let error = match self.drain(step, name).await {
                Ok(()) => match self.around.engine.wait(name).await {
                    Ok(exit) => return Ok(exit),
                    Err(error) => error,
                },
                Err(StartError::Engine(error)) => error,
                Err(StartError::Halt(halt)) => return Err(halt),
            };
            if matches!(error, EngineError::NotFound { .. }) {
                return Err(gone(step, "its container was removed by someone else"));
            }
            tries += 1;
            if !error.is_retryable() || tries > WATCH_TRIES {
                return Err(engine_failure(&error).into());
            }
            *interrupted = true;
            tracing::warn!(attempt = %self.assignment.attempt, %error, "the engine broke off a container's output");
            tokio::time::sleep(ENGINE_AGAIN.pause(tries, Backoff::jitter())).await;
        }
    }

    /// Records a container's output from where the log ends, and counts the tokens that it tells of.
    async fn drain(&self, step: Step, name: &str) -> Result<(), StartError> {
        let source = step.name();
        let tells = step == Step::Agent && self.assignment.agent.kind == AgentKind::ClaudeCode;
        let since = self.log.resume(source);
        let mut output = self.around.engine.output(name, since.as_deref()).await?;
        let mut settle = tokio::time::interval(SETTLE);
        loop {
            tokio::select! {
                frame = output.next() => match frame {
                    Some(frame) => {
                        let frame = frame?;
                        self.log.frame(source, &frame).map_err(Halt::Failed)?;
                        if tells && !frame.is_error {
                            self.count_tokens(&frame.data);
                        }
                    }
                    None => return Ok(()),
                },
                _ = settle.tick() => self.log.settle(),
            }
        }
    }

    /// Reads along what Claude Code has used. What is read twice counts once; what a restart missed comes with the result.
    fn count_tokens(&self, piece: &[u8]) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        account.push(piece);
        self.reporter.tokens(account.tokens());
    }

    /// Stops a container, and records the last words it has for that.
    pub(super) async fn stop_container(&self, step: Step, name: &str) {
        if let Err(error) = self.around.engine.stop(name, GRACE).await {
            tracing::warn!(attempt = %self.assignment.attempt, name, %error, "a container resists its stop");
        }
        // Without the grant it is not known what to mask.
        if step != Step::Collect && self.grant.initialized() {
            let drained = tokio::time::timeout(Duration::from_secs(2), self.drain(step, name)).await;
            tracing::debug!(complete = drained.is_ok_and(|drained| drained.is_ok()), "last output of a stopped step");
        }
    }

    pub(super) async fn remove_container(&self, name: &str) -> Result<(), Halt> {
        use crate::engine::{ObjectKind, ObjectRef};
        let object = ObjectRef { kind: ObjectKind::Container, name: name.to_owned() };
        self.patiently(|| self.around.engine.remove(&object)).await
    }
}

/// Why a container was not started or read.
enum StartError {
    Engine(EngineError),
    Halt(Halt),
}

impl StartError {
    fn is_retryable(&self) -> bool {
        matches!(self, StartError::Engine(error) if error.is_retryable())
    }
}

impl From<EngineError> for StartError {
    fn from(error: EngineError) -> Self {
        StartError::Engine(error)
    }
}

impl From<Halt> for StartError {
    fn from(halt: Halt) -> Self {
        StartError::Halt(halt)
    }
}

fn gone(step: Step, why: &str) -> Halt {
    let message = format!("the {} step cannot be gone on with: {why}", step.name());
    Halt::Failed(Failure { reason: FailureReason::Engine, message })
}
