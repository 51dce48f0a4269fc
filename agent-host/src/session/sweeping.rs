//! When the sweeper runs: every minute, once the controller was heard, and when an operator asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use devfleet_proto::v1::{SweepOrder, SweepResult, SweptObject};
use devfleet_shared::attempt::Phase;
use devfleet_shared::error::Chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::attempt::Surroundings;
use crate::attempt::reports::Board;
use crate::engine::ObjectKind;
use crate::sweeper::{Ownership, Report, SweepError, Sweeper};

/// How often the sweeper runs.
const INTERVAL: Duration = Duration::from_secs(60);

/// The sweeper and what it asks.
pub struct Sweeping {
    /// What attempts share.
    pub around: Arc<Surroundings>,
    /// How long what nobody owns is left alone.
    pub protection: Duration,
    /// One sweep at a time.
    pub turn: tokio::sync::Mutex<()>,
}

impl Sweeping {
    /// Sweeps every minute, from the first welcome on: before it, it is not known what the controller wants here.
    pub async fn run(self: Arc<Self>, mut welcomed: watch::Receiver<bool>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => return,
            heard = welcomed.wait_for(|welcomed| *welcomed) => if heard.is_err() { return },
        }
        let mut interval = tokio::time::interval(INTERVAL);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = interval.tick() => match self.sweep(false).await {
                    Ok(report) if report.removed > 0 || !report.resists.is_empty() => {
                        tracing::info!(removed = report.removed, resists = report.resists.len(), "swept");
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(error = %Chain(&error), "no sweep"),
                },
            }
        }
    }

    /// Carries out an operator's order.
    pub async fn answer(&self, order: SweepOrder) -> SweepResult {
        let mut result = SweepResult { request: order.request, ..SweepResult::default() };
        match self.sweep(order.dry_run).await {
            Ok(report) => result.objects = objects(&report, order.dry_run),
            Err(error) => result.error = format!("failed to {}", Chain(&error)),
        }
        result
    }

    async fn sweep(&self, dry_run: bool) -> Result<Report, SweepError> {
        let _turn = self.turn.lock().await;
        let sweeper = Sweeper {
            engine: &self.around.engine,
            host: &self.around.host,
            data_dir: &self.around.data_dir,
            protection: self.protection,
        };
        let owners = || ownership(&self.around.board);
        let now = self.around.clock.now();
        let report = sweeper.sweep(&owners, now, dry_run).await?;
        if !dry_run && let Err(error) = self.around.caches.inspect(now).await {
            tracing::warn!(error = %Chain(&error), "no look at the caches");
        }
        Ok(report)
    }
}

/// Reads off the board who owns what. An attempt that has ended and is not held has nothing left to own.
fn ownership(board: &Board) -> Ownership {
    let (mut owned, mut holds) = (BTreeSet::new(), BTreeMap::new());
    for report in board.all() {
        match (&report.phase, report.held_until) {
            (Phase::Ended(_), Some(until)) => drop(holds.insert(report.claim.attempt, until)),
            (Phase::Ended(_), None) => {}
            _ => drop(owned.insert(report.claim.attempt)),
        }
    }
    Ownership { owned, holds, ..Ownership::default() }
}

fn objects(report: &Report, dry_run: bool) -> Vec<SweptObject> {
    let kind = |kind| match kind {
        ObjectKind::Container => "container",
        ObjectKind::Network => "network",
        ObjectKind::Volume => "volume",
        ObjectKind::Image => "image",
    };
    let fate = |name: &str, remove: bool| {
        let resists = report.resists.iter().any(|resisting| resisting == name);
        let error = if remove && resists { "it resists; the next sweep tries again" } else { "" };
        (remove && !dry_run && !resists, error.to_owned())
    };
    let engine = report.verdicts.iter().map(|verdict| {
        let (removed, error) = fate(&verdict.object.name, verdict.remove);
        let reason = match (dry_run, verdict.remove) {
            (true, true) => format!("would go: {}", verdict.reason),
            _ => verdict.reason.clone(),
        };
        SweptObject {
            kind: kind(verdict.object.kind).into(),
            name: verdict.object.name.clone(),
            reason,
            removed,
            error,
        }
    });
    let folders = report.folders.iter().map(|path| {
        let name = path.display().to_string();
        let (removed, error) = fate(&name, true);
        let reason = "Temporary files of an attempt that nobody owns.".to_owned();
        SweptObject { kind: "directory".into(), name, reason, removed, error }
    });
    engine.chain(folders).collect()
}

#[cfg(test)]
mod tests {
    use devfleet_shared::attempt::AttemptResult;
    use devfleet_shared::clock::Timestamp;

    use super::*;
    use crate::assignments::tests::assignment;
    use crate::attempt::ports::Claim;

    #[test]
    fn what_is_on_its_way_is_owned_and_what_is_held_has_an_end() {
        let board = Board::default();
        let post = |attempt: &str, phase: Phase, held_until| {
            let claim = Claim::of(&assignment(attempt, 1));
            board.post(crate::attempt::reports::Report {
                claim,
                phase,
                doing: String::new(),
                tokens: 0,
                held_until,
                sequence: 1,
            });
        };
        post("00000001", Phase::Preparing, None);
        post("00000002", Phase::Stopping(AttemptResult::Lost), None);
        post("00000003", Phase::Ended(AttemptResult::Lost), None);
        post("00000004", Phase::Ended(AttemptResult::NoChange), Some(Timestamp(9)));
        let ownership = ownership(&board);
        let names: Vec<_> = ownership.owned.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["00000001", "00000002"]);
        assert_eq!(ownership.holds.into_values().collect::<Vec<_>>(), [Timestamp(9)]);
    }
}
