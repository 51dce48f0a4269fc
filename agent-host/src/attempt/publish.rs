//! Publishing: leave from the controller, then the push, under the fence.

use std::time::Duration;

use devfleet_shared::attempt::{AttemptResult, Failure, FailureReason};
use devfleet_shared::backoff::Backoff;

use super::ports::Leave;
use super::{Attempt, Halt, course};
use crate::ledger::Entry;

/// How often a push is tried.
const TRIES: u32 = 5;
/// The pace of tries.
const PUSH_AGAIN: Backoff = Backoff { first: Duration::from_secs(1), ceiling: Duration::from_secs(10) };

impl Attempt {
    /// Asks for leave to push, pushes, and returns the attempt's result.
    pub(super) async fn publish(&self) -> Result<AttemptResult, Halt> {
        let Some(request) = self.publish_request(true).await? else {
            let message = "a defect of devfleet: there is nothing to publish".to_owned();
            return Err(Failure { reason: FailureReason::Internal, message }.into());
        };
        match self.ask(|| self.around.controller.authorize_publish(&request)).await? {
            Leave::Granted if !request.push => {
                let message = "the change holds a secret that was given to the agent; nothing is pushed, and the diff \
                               is kept with the secret masked: tell the agent not to write it down, and renew the secret";
                return Err(Failure { reason: FailureReason::Collect, message: message.to_owned() }.into());
            }
            Leave::Granted => self.append(Entry::PushGranted)?,
            Leave::Refused(reason) => {
                self.log.note(&format!("nothing is pushed: {reason}"));
                return Err(Halt::Superseded);
            }
        }
        self.push(&request.commit).await?;
        self.append(Entry::Pushed)?;
        Ok(course::succeeded(&self.history()))
    }

    async fn push(&self, commit: &str) -> Result<(), Halt> {
        let login = self.grant().await?.git.as_ref();
        let branch = &self.assignment.repository.work_branch;
        self.note(&format!("pushing branch {branch}"));
        let mut tries = 1;
        loop {
            match self.around.code.push(&self.assignment, login, commit).await {
                Ok(()) => return Ok(()),
                Err(error) if error.retryable && tries < TRIES => {
                    self.note(&format!("failed to {error}; trying again"));
                    tokio::time::sleep(PUSH_AGAIN.pause(tries, Backoff::jitter())).await;
                    tries += 1;
                }
                Err(error) => {
                    return Err(Failure { reason: FailureReason::Push, message: format!("failed to {error}") }.into());
                }
            }
        }
    }
}
