//! Stops what runs here when it is no longer proven that it may: by this host's own clock, whoever hangs.
//!
//! ```text
//! session ── proven: when its heartbeat was sent ─▶ Proofs ─ stance ─▶ doer: pause and cut, put back and resume, remove
//!                                                     │        ╰─────▶ attempts: drop what they do, and wait
//!                                                     ╰─ file ─▶ watchdog, a process of its own: the same, a second later
//! ```
//! The deadline counts from the sending of the heartbeat, on the clock that also counts while the machine sleeps. It
//! outlives the daemon: what was proven last stands in a file.

mod hand;
mod proofs;
pub mod watchdog;

use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::clock::Boot;
use devfleet_shared::error::Chain;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::attempt::Surroundings;
use crate::engine::{FoundObject, label};
use crate::supervisor::SupervisorHandle;
pub use hand::{FreezeError, Hand};
pub use proofs::Proofs;

/// How often the clock is looked at. After a sleep of the machine timers are late, the clock is not.
const LOOK: Duration = Duration::from_millis(250);
/// How often an engine is asked again while something is frozen: what was on its way may have started since.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked while all is well whether something stands still nevertheless.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// Where the networks of what is cut are noted, in the data directory.
pub(crate) const NOTES: &str = "frozen";
/// Where it stands what was proven last, in the data directory.
pub(crate) const PROOF: &str = "proof.json";

/// When a host freezes and kills what runs on it, counted from the sending of its last proven heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlines {
    /// Freeze after this time.
    pub freeze: Duration,
    /// Kill after this time.
    pub kill: Duration,
}

impl Default for Deadlines {
    /// What controllers say unless they are told otherwise.
    fn default() -> Self {
        Self { freeze: Duration::from_secs(10), kill: Duration::from_secs(60) }
    }
}

/// What may become of the attempts on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    /// They go on.
    Run,
    /// They stand still until it is proven again that they are this host's.
    Freeze,
    /// They are over.
    Kill,
}

/// Decides what may become of the attempts, from when the last proven heartbeat was sent.
pub fn stance(now: Boot, proven: Boot, deadlines: Deadlines) -> Stance {
    let age = now.0.saturating_sub(proven.0);
    if age < deadlines.freeze {
        Stance::Run
    } else if age < deadlines.kill {
        Stance::Freeze
    } else {
        Stance::Kill
    }
}

/// Pauses, resumes and removes containers, as the stance says.
pub struct Freezer {
    /// The engine and the reports.
    pub around: Arc<Surroundings>,
    /// Knows who may go on.
    pub supervisor: SupervisorHandle,
}

impl Freezer {
    /// Runs until the daemon stops. What is frozen then stays so.
    pub async fn run(self, shutdown: CancellationToken) {
        let Surroundings { engine, host, data_dir, .. } = &*self.around;
        let hand = Hand { engine: Arc::clone(engine), host: host.clone(), notes: data_dir.join(NOTES) };
        // At a start it is not known whether something was left frozen.
        let (mut before, mut done, mut acted) = (None, false, Instant::now());
        let mut stance = self.around.proofs.stance();
        loop {
            let now = self.around.proofs.look();
            if before != Some(now) {
                tracing::info!(stance = ?now, "what may become of attempts here has changed");
            }
            // Also while all is well: a call that was given up may still have paused something, and so may the watchdog.
            if now != Stance::Run || before != Some(now) || !done || acted.elapsed() >= LOOK_AROUND {
                done = self.act(&hand, now).await;
                acted = Instant::now();
            }
            before = Some(now);
            let pause = if now == Stance::Run && done { LOOK } else { AGAIN };
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = stance.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does what the stance wants; says whether all of it went well.
    async fn act(&self, hand: &Hand, stance: Stance) -> bool {
        let found = match hand.containers().await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), ?stance, "the engine cannot be asked what runs");
                return false;
            }
        };
        if stance == Stance::Run {
            hand.forget_all_but(&found);
        }
        let mut running: Vec<FoundObject> = found.into_iter().filter(|found| found.in_use).collect();
        match stance {
            Stance::Run => {
                let working = self.supervisor.working().await;
                running.retain(|found| working.iter().any(|attempt| is_of(found, attempt.as_str())));
            }
            Stance::Freeze | Stance::Kill => {
                let reports = self.around.board.all();
                let over = reports.iter().filter(|report| report.phase.result().is_some());
                let over: Vec<_> = over.map(|report| report.claim.attempt.as_str().to_owned()).collect();
                running.retain(|found| !over.iter().any(|attempt| is_of(found, attempt)));
            }
        }
        // The clock went on while the engine was asked: what is proven meanwhile is not frozen, nor the other way round.
        let unchanged = self.around.proofs.look() == stance;
        hand.treat(stance, if unchanged { &running } else { &[] }).await && unchanged
    }
}

fn is_of(found: &FoundObject, attempt: &str) -> bool {
    found.labels.get(label::ATTEMPT).is_some_and(|of| of == attempt)
}

#[cfg(test)]
mod tests {
    use devfleet_shared::clock::{Clock, Timestamp};

    use super::*;

    fn check(age_s: u64, expected: Stance) {
        let now = Boot(Duration::from_secs(1_000));
        let proven = Boot(Duration::from_secs(1_000 - age_s));
        assert_eq!(stance(now, proven, Deadlines::default()), expected, "{age_s} s after the proof");
    }

    #[test]
    fn what_is_proven_too_long_ago_is_frozen_and_later_killed() {
        check(0, Stance::Run);
        check(9, Stance::Run);
        check(10, Stance::Freeze);
        check(59, Stance::Freeze);
        check(60, Stance::Kill);
        assert_eq!(stance(Boot(Duration::ZERO), Boot(Duration::from_secs(5)), Deadlines::default()), Stance::Run);
    }

    #[test]
    fn a_proof_counts_from_its_sending_and_an_older_one_changes_nothing() {
        let clock = Clock::fixed(Timestamp(1_000_000));
        let proofs = Proofs::fresh(clock.clone());
        let sent = clock.boot();
        clock.advance(Duration::from_secs(8));
        // The answer comes 8 s after the sending: 2 s are left, not 10.
        proofs.proven(sent);
        assert_eq!(proofs.look(), Stance::Run);
        clock.advance(Duration::from_secs(2));
        assert_eq!(proofs.look(), Stance::Freeze);
        proofs.proven(sent);
        assert_eq!(proofs.look(), Stance::Freeze);
        proofs.proven(clock.boot());
        assert_eq!(proofs.look(), Stance::Run);
    }

    #[test]
    fn a_daemon_that_starts_again_goes_on_from_the_last_proof() {
        let dir = tempfile::tempdir().expect("dir");
        let (file, clock) = (dir.path().join("proof.json"), Clock::fixed(Timestamp(1_000_000)));
        let first = Proofs::open(file.clone(), clock.clone());
        assert_eq!(first.look(), Stance::Freeze, "nothing was proven yet");
        first.proven(clock.boot());
        clock.advance(Duration::from_secs(9));
        assert_eq!(Proofs::open(file.clone(), clock.clone()).look(), Stance::Run);
        clock.advance(Duration::from_secs(1));
        assert_eq!(*Proofs::open(file.clone(), clock.clone()).stance().borrow(), Stance::Freeze);
        clock.advance(Duration::from_secs(50));
        assert_eq!(Proofs::open(file, clock).look(), Stance::Kill);
    }
}
