//! Takes what still runs off hosts whose drain is past its deadline. Only the leader does it.
//!
//! view, timer ──▶ tick: whose deadline is past, what runs there ─▶ recall, by compare-and-swap ─▶ the host stops it,
//! and reports: the job is queued again, and that attempt is not charged.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_shared::clock::Clock;
use devfleet_shared::error::Chain;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::load::to_recall;
use crate::jobs::Jobs;
use crate::leader::{LeadOnly, Term};
use crate::view::View;

/// The loop looks again after this time even if nothing woke it: deadlines pass by themselves.
const INTERVAL: Duration = Duration::from_secs(1);

/// The loop and what it works with.
pub struct Drain {
    /// The records.
    pub view: Arc<View>,
    /// Moves jobs.
    pub jobs: Arc<Jobs>,
    /// Tells the time.
    pub clock: Clock,
}

#[async_trait]
impl LeadOnly for Drain {
    async fn run(&self, term: Term, shutdown: CancellationToken) {
        self.view.reach(term.revision).await;
        let mut records = self.view.changed();
        loop {
            self.tick(&term).await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = records.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }
}

impl Drain {
    async fn tick(&self, term: &Term) {
        let due = to_recall(&self.view.read(), self.clock.now());
        for (claim, why) in due {
            match self.jobs.recall(term, &claim, &why).await {
                Ok(Some(revision)) => {
                    info!(job = %claim.job, attempt = %claim.attempt, host = %claim.host, "an attempt is recalled");
                    self.view.reach(revision).await;
                }
                // It ended, or its work is being published: it leaves by itself.
                Ok(None) => {}
                Err(error) => warn!(job = %claim.job, error = %Chain(&error), "an attempt could not be recalled"),
            }
        }
    }
}
