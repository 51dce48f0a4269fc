//! Stops what runs here when it is no longer proven that it may: by this host's own clock, whoever hangs.
//!
//! ```text
//! session ── proven: when its heartbeat was sent ─▶ Proofs ─ stance ─▶ doer: pause, resume, remove containers
//!                                                              ╰─────▶ attempts: drop what they do, and wait
//! ```
//! The deadline counts from the sending of the heartbeat, on the clock that also counts while the machine sleeps. It
//! outlives the daemon: what was proven last stands in a file.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devfleet_shared::clock::{Boot, Clock};
use devfleet_shared::error::Chain;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::attempt::Surroundings;
use crate::engine::{EngineError, FoundObject, Labels, ObjectKind, label};
use crate::supervisor::SupervisorHandle;

/// How often the clock is looked at. After a sleep of the machine timers are late, the clock is not.
const LOOK: Duration = Duration::from_millis(250);
/// How often an engine is asked again while something is frozen: what was on its way may have started since.
const AGAIN: Duration = Duration::from_secs(1);

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

/// What was proven last. Cheap to clone.
#[derive(Clone)]
pub struct Proofs {
    known: Arc<Mutex<Known>>,
    stance: watch::Sender<Stance>,
    clock: Clock,
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// The start of the machine: the boot clock begins anew with it.
    boot: String,
    proven: Duration,
    deadlines: Deadlines,
}

impl Proofs {
    /// Reads what was proven last. Where nothing was, since this machine started, everything stands still until it is.
    pub fn open(file: PathBuf, clock: Clock) -> Proofs {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let read = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
        let known = read.filter(|known| known.boot == boot && known.proven <= clock.boot().0).unwrap_or_else(|| {
            let deadlines = Deadlines::default();
            Known { boot, proven: clock.boot().0.saturating_sub(deadlines.freeze), deadlines }
        });
        let first = stance(clock.boot(), Boot(known.proven), known.deadlines);
        Proofs { known: Arc::new(Mutex::new(known)), stance: watch::Sender::new(first), clock, file: Some(file) }
    }

    /// Something proven just now, and nothing written down: for hosts whose freezing is not looked at.
    pub fn fresh(clock: Clock) -> Proofs {
        let known = Known { boot: String::new(), proven: clock.boot().0, deadlines: Deadlines::default() };
        Proofs { known: Arc::new(Mutex::new(known)), stance: watch::Sender::new(Stance::Run), clock, file: None }
    }

    /// Notes what the controller says of the deadlines.
    pub fn set_deadlines(&self, deadlines: Deadlines) {
        self.lock().deadlines = deadlines;
    }

    /// Notes that it is proven that what is here was this host's when a message was sent.
    pub fn proven(&self, sent: Boot) {
        let mut known = self.lock();
        if sent.0 > known.proven {
            known.proven = sent.0;
            self.keep(&known);
        }
        drop(known);
        self.look();
    }

    /// Looks at the clock, and says what follows.
    pub fn look(&self) -> Stance {
        let known = self.lock();
        let stance = stance(self.clock.boot(), Boot(known.proven), known.deadlines);
        drop(known);
        self.stance.send_if_modified(|before| std::mem::replace(before, stance) != stance);
        stance
    }

    /// Returns what may become of the attempts, as of the last look.
    pub fn stance(&self) -> watch::Receiver<Stance> {
        self.stance.subscribe()
    }

    /// Not synced to the disk: it matters only until the machine starts anew.
    fn keep(&self, known: &Known) {
        let Some(file) = &self.file else { return };
        let beside = file.with_extension("new");
        let written = serde_json::to_vec(known).map_err(std::io::Error::other);
        let written = written.and_then(|bytes| std::fs::write(&beside, bytes));
        if let Err(error) = written.and_then(|()| std::fs::rename(&beside, file)) {
            tracing::warn!(path = %file.display(), %error, "what was proven last is not written down");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
        // At a start it is not known whether something was left frozen.
        let (mut before, mut done) = (None, false);
        let mut stance = self.around.proofs.stance();
        loop {
            let now = self.around.proofs.look();
            if before != Some(now) {
                tracing::info!(stance = ?now, "what may become of attempts here has changed");
            }
            if now != Stance::Run || before != Some(now) || !done {
                done = self.act(now).await;
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
    async fn act(&self, stance: Stance) -> bool {
        let ours = Labels::from([
            (label::APP.to_owned(), label::APP_VALUE.to_owned()),
            (label::HOST.to_owned(), self.around.host.to_string()),
        ]);
        let found = match self.around.engine.list(&ours).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), ?stance, "the engine cannot be asked what runs");
                return false;
            }
        };
        let mut running: Vec<FoundObject> =
            found.into_iter().filter(|found| found.object.kind == ObjectKind::Container && found.in_use).collect();
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
        let acts = running.iter().map(|found| async {
            let outcome = self.apply(stance, found).await;
            if let Err(error) = &outcome {
                tracing::warn!(container = found.object.name, error = %Chain(error), ?stance, "a container resists");
            }
            outcome.is_ok()
        });
        futures_util::future::join_all(acts).await.into_iter().all(|well| well)
    }

    async fn apply(&self, stance: Stance, found: &FoundObject) -> Result<(), EngineError> {
        match stance {
            Stance::Run => self.around.engine.unpause(&found.object.name).await,
            Stance::Freeze => self.around.engine.pause(&found.object.name).await,
            Stance::Kill => self.around.engine.remove(&found.object).await,
        }
    }
}

fn is_of(found: &FoundObject, attempt: &str) -> bool {
    found.labels.get(label::ATTEMPT).is_some_and(|of| of == attempt)
}

#[cfg(test)]
mod tests {
    use devfleet_shared::clock::Timestamp;

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
