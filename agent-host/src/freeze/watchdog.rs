//! The dead man's switch: a process of its own that freezes, and later kills, for a daemon that stands still or is dead.
//!
//! ```text
//! daemon ── starts, keeps ─▶ watchdog ◀── reads ── proof.json, ledgers        its end of the pipe closes: the daemon died
//! ```
//! It acts a second after a daemon that works would have, and only on what is proven no more; it thaws nothing. The next
//! daemon's watchdog takes its place. Without a daemon it leaves once nothing of this host is left to watch.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::clock::Clock;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{HostId, hex};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::{AGAIN, Hand, LOOK, NOTES, PROOF, Proofs, Stance};
use crate::engine::docker::DockerEngine;
use crate::engine::{FoundObject, SharedEngine, label};
use crate::ledger::Ledger;

/// How much later than the daemon the watchdog acts. Well within the five seconds that freezing may take.
const LATE: Duration = Duration::from_secs(1);
/// Names the watchdog whose turn it is, in the data directory.
const TURN: &str = "watchdog";
/// The pause before one that ended is started again.
const RESTART: Duration = Duration::from_secs(1);

/// Whom to watch over.
#[derive(Debug, Clone, clap::Args)]
pub struct Watch {
    /// The daemon's data directory.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The container engine's socket.
    #[arg(long, value_name = "SOCKET")]
    pub engine: String,
    /// The host's id.
    #[arg(long, value_name = "ID")]
    pub host: HostId,
}

/// Why a watchdog left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Another one has its place.
    Replaced,
    /// The daemon is gone, and so is all that it owned.
    NothingLeft,
}

/// Watches until it is replaced, or neither a daemon nor anything of this host is left. Its standard input must be a pipe
/// from the daemon: its end is the daemon's.
pub fn run(watch: &Watch) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let left = runtime.block_on(watch_over(watch));
    // Not waiting for the thread that reads the standard input.
    runtime.shutdown_background();
    left.map(drop)
}

async fn watch_over(watch: &Watch) -> std::io::Result<Leave> {
    // People see in the list of processes what it is; a signal to all that is called like the daemon misses it.
    drop(std::fs::write("/proc/self/comm", "devfleet-watchd"));
    let engine = Arc::new(DockerEngine::new(&watch.engine));
    let daemon = CancellationToken::new();
    let closed = daemon.clone();
    tokio::spawn(async move {
        let mut input = tokio::io::stdin();
        while input.read(&mut [0; 16]).await.is_ok_and(|count| count > 0) {}
        closed.cancel();
    });
    Watchdog::take_over(watch, engine, Clock::system(), daemon)?.run().await
}

/// One watchdog.
pub struct Watchdog {
    hand: Hand,
    proofs: Proofs,
    ledgers: PathBuf,
    turn: PathBuf,
    name: String,
    /// Cancelled when the daemon is gone.
    daemon: CancellationToken,
}

impl Watchdog {
    /// Takes the place of whoever watched before, who sees it and leaves.
    pub fn take_over(
        watch: &Watch,
        engine: SharedEngine,
        clock: Clock,
        daemon: CancellationToken,
    ) -> std::io::Result<Watchdog> {
        let Watch { data_dir, host, .. } = watch;
        let name = hex(&rand::random::<[u8; 8]>());
        let turn = data_dir.join(TURN);
        let beside = turn.with_extension(&name);
        std::fs::write(&beside, &name)?;
        std::fs::rename(&beside, &turn)?;
        Ok(Watchdog {
            hand: Hand { engine, host: host.clone(), notes: data_dir.join(NOTES) },
            proofs: Proofs::open(data_dir.join(PROOF), clock),
            ledgers: data_dir.join("ledger"),
            turn,
            name,
            daemon,
        })
    }

    /// Watches until it is replaced, or nothing is left to watch.
    pub async fn run(self) -> std::io::Result<Leave> {
        tracing::info!(host = %self.hand.host, "watchdog begins");
        let mut before = Stance::Run;
        loop {
            let leave = match std::fs::read_to_string(&self.turn) {
                Ok(name) if name != self.name => Some(Leave::Replaced),
                // The data directory was removed: so was the host.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(Leave::Replaced),
                _ => self.look(&mut before).await,
            };
            if let Some(leave) = leave {
                tracing::info!(?leave, "watchdog leaves");
                return Ok(leave);
            }
            let alone = self.daemon.is_cancelled();
            tokio::time::sleep(if before == Stance::Run && !alone { LOOK } else { AGAIN }).await;
        }
    }

    /// Acts if what is here is not proven any more; says why to leave, if there is a reason.
    async fn look(&self, before: &mut Stance) -> Option<Leave> {
        let alone = self.daemon.is_cancelled();
        let stance = self.stance();
        if stance != *before {
            tracing::warn!(?stance, alone, "watchdog: what may become of attempts here has changed");
            *before = stance;
        }
        if stance == Stance::Run && !alone {
            return None;
        }
        let found = match self.hand.containers().await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "watchdog: the engine cannot be asked what runs");
                return None;
            }
        };
        let running: Vec<FoundObject> = found.iter().filter(|found| found.in_use).cloned().collect();
        if alone && (found.is_empty() || (running.is_empty() && stance == Stance::Kill)) {
            return Some(Leave::NothingLeft);
        }
        let ended = Ledger::ended(&self.ledgers);
        let over = |found: &FoundObject| found.labels.get(label::ATTEMPT).is_some_and(|of| ended.contains(of));
        let treated: Vec<FoundObject> = running.into_iter().filter(|found| !over(found)).collect();
        // Asking took its time: what was proven meanwhile is left alone.
        if stance != Stance::Run && self.stance() == stance {
            self.hand.treat(stance, &treated).await;
        }
        None
    }

    fn stance(&self) -> Stance {
        self.proofs.read_again();
        self.proofs.stance_after(LATE)
    }
}

/// Keeps a watchdog for as long as the daemon runs, which is this program; it outlives the daemon.
pub async fn keep(program: &Path, watch: Watch, shutdown: CancellationToken) {
    loop {
        match start(program, &watch) {
            Ok(mut child) => {
                // This end of the pipe: waiting for a child closes it, unless it is held elsewhere.
                let _daemon_lives = child.stdin.take();
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    status = child.wait() => tracing::warn!(?status, "the watchdog ended, it is started again"),
                }
            }
            Err(error) => tracing::error!(%error, "the watchdog cannot be started: a daemon that hangs is not stopped"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RESTART) => {}
        }
    }
}

/// Starts a watchdog in a process group of its own.
fn start(program: &Path, watch: &Watch) -> std::io::Result<Child> {
    let data_dir = std::path::absolute(&watch.data_dir)?;
    Command::new(program)
        .arg0("devfleet-host")
        .arg("watchdog")
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--engine", &watch.engine, "--host", watch.host.as_str()])
        .env_remove(crate::daemon::JOIN_TOKEN)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
}
