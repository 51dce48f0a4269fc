//! What was proven last, and until when it counts: in memory, and in a file that outlives the daemon.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devfleet_shared::clock::{Boot, Clock};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Deadlines, Stance, stance};

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
        let known = read(&file, &boot, &clock).unwrap_or_else(|| {
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

    /// Reads again what another process wrote down. What cannot be read changes nothing.
    pub fn read_again(&self) {
        let mut known = self.lock();
        let newer = self.file.as_ref().and_then(|file| read(file, &known.boot, &self.clock));
        if let Some(newer) = newer {
            *known = newer;
        }
    }

    /// Notes what the controller says of the deadlines.
    pub fn set_deadlines(&self, deadlines: Deadlines) {
        let mut known = self.lock();
        known.deadlines = deadlines;
        self.keep(&known);
    }

    /// Says what follows from what is known, for one who acts this much later than the daemon.
    pub fn stance_after(&self, late: Duration) -> Stance {
        let known = self.lock();
        stance(self.clock.boot(), Boot(known.proven + late), known.deadlines)
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

/// Reads what was written down since this start of the machine.
fn read(file: &std::path::Path, boot: &str, clock: &Clock) -> Option<Known> {
    let bytes = std::fs::read(file).ok()?;
    let known = serde_json::from_slice::<Known>(&bytes).ok()?;
    (known.boot == boot && known.proven <= clock.boot().0).then_some(known)
}
