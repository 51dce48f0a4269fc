//! The end of an attempt: stop what runs, hold or tear down, tell the controller, forget.

use std::sync::atomic::Ordering;
use std::time::Duration;

use devfleet_shared::attempt::{AttemptResult, Phase, Step};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::error::Chain;

use super::{Attempt, Departure, Order, reached};
use crate::ledger::Entry;

/// The pace at which what resists is torn down again.
const TEAR_DOWN_AGAIN: Backoff = Backoff { first: Duration::from_secs(1), ceiling: Duration::from_secs(60) };
/// How long after a call was dropped the engine may still make what was asked for.
const LATE_CREATION: Duration = Duration::from_secs(2);
/// The longest time for stopping what runs before it is removed by force.
const STOP: Duration = Duration::from_secs(6);

impl Attempt {
    /// Ends the environment, or sets it aside for a person.
    pub(super) async fn end(&self, result: Option<&AttemptResult>) {
        self.stop_running_step().await;
        if let Some(until) = self.hold_until(result)
            && self.hold(until).await
        {
            return;
        }
        self.log.note("taking the environment down");
        self.unbuild().await;
        self.log.note("nothing of the environment is left");
        self.log.finish();
        self.record(Entry::TornDown);
        // Before the controller hears of it: what it gives next must find the room.
        self.around.admitted.release(&self.assignment.attempt);
    }

    async fn stop_running_step(&self) {
        let history = self.history();
        let running = history.latest_step().filter(|step| history.ended(*step).is_none());
        let Some((step, name)) = running.and_then(|step| Some((step, history.container(step)?.to_owned()))) else {
            return;
        };
        if *self.order.borrow() < Order::Drop {
            let stopped = tokio::time::timeout(STOP, self.stop_container(step, &name)).await;
            tracing::debug!(attempt = %self.assignment.attempt, in_time = stopped.is_ok(), "step stopped");
        }
        if step != Step::Collect {
            self.log.end_source(step.name());
        }
    }

    /// Removes everything, for as long as it takes.
    async fn unbuild(&self) {
        let note = |text: &str| self.note(text);
        let mut tries = 0;
        loop {
            self.discard_caches().await;
            let outcome = self.devbox(&note).tear_down().await;
            match outcome {
                Ok(()) if self.cut.swap(false, Ordering::SeqCst) => tokio::time::sleep(LATE_CREATION).await,
                Ok(()) => break,
                Err(error) => {
                    tries += 1;
                    tracing::warn!(attempt = %self.assignment.attempt, error = %Chain(&error), "tear-down is tried again");
                    self.reporter.doing(&format!("failed to {error}; trying again"));
                    tokio::time::sleep(TEAR_DOWN_AGAIN.pause(tries, Backoff::jitter())).await;
                }
            }
        }
        let temp = self.temp();
        if let Ok(Err(error)) = crate::blocking::run(move || std::fs::remove_dir_all(temp)).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(attempt = %self.assignment.attempt, %error, "temporary files not removed");
        }
    }

    /// Says until when the environment is to be held: on a person's wish, and if there is something to look at.
    fn hold_until(&self, result: Option<&AttemptResult>) -> Option<Timestamp> {
        let wished = !self.assignment.hold.is_zero() && *self.order.borrow() == Order::Run;
        let worthwhile = !matches!(result, Some(AttemptResult::Cancelled | AttemptResult::Lost));
        let something_stands = self.history().latest_step().is_some();
        (wished && worthwhile && something_stands).then(|| self.around.clock.now().after(self.assignment.hold))
    }

    /// Sets the environment aside; says whether that went well.
    async fn hold(&self, until: Timestamp) -> bool {
        let held = async {
            let image = self.image().await.ok()?;
            let note = |text: &str| self.note(text);
            let held = self.devbox(&note).hold(image).await;
            held.inspect_err(|error| self.log.note(&format!("failed to hold the environment: {}", Chain(error)))).ok()
        };
        let Some(name) = held.await else { return false };
        if self.append(Entry::Held { until }).is_err() {
            return false;
        }
        self.log.note(&format!("the environment is held until {until}; look into it with: docker exec -it {name} sh"));
        self.log.finish();
        true
    }

    /// Waits for the end of a hold and for the controller to know the end; then nothing of the attempt is left.
    pub(super) async fn depart(&self, phase: &Phase) -> Departure {
        let mut order = self.order.clone();
        if let Some(until) = self.held() {
            tokio::select! {
                biased;
                () = reached(&mut order, Order::Cancel) => {}
                () = tokio::time::sleep(until.since(self.around.clock.now())) => {}
            }
            if *self.order.borrow() == Order::Leave {
                return Departure::Left;
            }
            tokio::select! {
                biased;
                () = reached(&mut order, Order::Leave) => return Departure::Left,
                () = self.unbuild() => {}
            }
            self.record(Entry::TornDown);
            self.around.admitted.release(&self.assignment.attempt);
            self.reporter.phase(phase, None);
        }
        let attempt = &self.assignment.attempt;
        tokio::select! {
            biased;
            () = reached(&mut order, Order::Drop) => {}
            () = self.around.board.acknowledged(attempt) => {}
        }
        if *self.order.borrow() == Order::Leave {
            return Departure::Left;
        }
        if let Err(error) = self.ledger.remove() {
            tracing::warn!(%attempt, error = %Chain(&error), "ledger not removed");
        }
        self.around.board.forget(attempt);
        Departure::Over
    }
}
