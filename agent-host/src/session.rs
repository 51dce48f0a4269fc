//! The one stream to the controller: hello, welcome, then assignments down and reports up. This side dials.
//!
//! ```text
//! dial ─▶ Hello{owned, inventory} ─▶ Welcome ─▶ heartbeats, reports, inventory ▲   assignments, acks, sweeps ▼
//!   ▲ backoff with jitter                          │ broken, or three heartbeats without an answer
//!   ╰──────────────────────────────────────────────╯
//! ```
//! Nothing is lost with a stream: reports are repeated until acknowledged, and the next welcome brings the full set.

pub mod followed;
pub mod inventory;
mod sweeping;
pub mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use devfleet_proto::convert::WireError;
use devfleet_proto::v1::controller_message::Kind as Down;
use devfleet_proto::v1::host_message::Kind as Up;
use devfleet_proto::v1::{
    self, ControllerMessage, Heartbeat, Hello, HostInventory, HostMessage, ReportAck, SweepResult,
};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::{Boot, Clock};
use devfleet_shared::error::Chain;
use devfleet_shared::id::AttemptId;
use devfleet_shared::protocol::{self, PROTOCOL, Skew};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;

use crate::assignments::AssignmentSet;
use crate::freeze::{Deadlines, Proofs};
use crate::spool::shipping::Dial;
use crate::supervisor::SupervisorHandle;
use followed::{Followed, NotFollowed, StoreGeneration};
use inventory::Inventory;
pub use sweeping::Sweeping;

/// The pace of new connections.
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(200), ceiling: Duration::from_secs(10) };
/// The pace of new connections while versions do not go together: an upgrade takes a while.
const SKEW: Backoff = Backoff { first: Duration::from_secs(2), ceiling: Duration::from_secs(60) };
/// About how long a host that was removed waits before it asks once more.
const REMOVED: Duration = Duration::from_secs(600);
/// How long a connection and its welcome may take.
const WELCOME: Duration = Duration::from_secs(15);
/// How long one message may wait for room on the stream.
const SEND: Duration = Duration::from_secs(10);
/// How often the inventory is sent.
const INVENTORY: Duration = Duration::from_secs(30);
/// How often it is looked whether a problem of this host is over.
const PROBLEM: Duration = Duration::from_secs(3);
/// How often a report is repeated that was not acknowledged.
const REPEAT: Duration = Duration::from_secs(5);
/// How long changes are gathered before they are reported.
const GATHER: Duration = Duration::from_millis(50);
/// After how many heartbeats without an answer a stream counts as broken.
const UNANSWERED: u32 = 3;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error("reach the controller")]
    Dial(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The controller refuses, or the stream broke.
    #[error("speak with the controller: {code:?}: {message}", code = .0.code(), message = .0.message())]
    Status(Box<Status>),
    /// The controller ended the stream.
    #[error("speak with the controller: it ended the session")]
    Ended,
    /// The controller is silent.
    #[error("hear from the controller: no answer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The controller says what cannot be understood.
    #[error("understand the controller")]
    Wire(#[from] WireError),
    /// The controller speaks another version.
    #[error("understand the controller")]
    Skew(#[from] Skew),
    /// The controller decides in a store that is not the newest.
    #[error(transparent)]
    Store(#[from] NotFollowed),
    /// This host was taken out of the fleet.
    #[error("be part of the fleet: {detail}")]
    Removed {
        /// What the controller says.
        detail: String,
    },
    /// The first message was no welcome.
    #[error("understand the controller: it did not begin with a welcome")]
    NoWelcome,
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        match reason.as_str() {
            wire::HOST_REMOVED => SessionError::Removed { detail: status.message().to_owned() },
            _ => SessionError::Status(Box::new(status)),
        }
    }
}

/// The session of one host with its controller.
pub struct Session {
    /// Makes connections.
    pub dial: Arc<dyn Dial>,
    /// Where assignments go and reports come from.
    pub supervisor: SupervisorHandle,
    /// Looks at the host.
    pub inventory: Inventory,
    /// Answers sweep orders.
    pub sweeping: Arc<Sweeping>,
    /// Random at each start of the daemon.
    pub incarnation: String,
    /// Learns what is proven.
    pub proofs: Proofs,
    /// Tells when something was sent.
    pub clock: Clock,
    /// Becomes true with the first welcome.
    pub welcomed: watch::Sender<bool>,
    /// Which store is followed.
    pub followed: Followed,
    /// Where it is written that this host was removed, and in which words.
    pub removal: PathBuf,
}

/// One stream.
struct Stream {
    up: mpsc::Sender<HostMessage>,
    down: Streaming<ControllerMessage>,
    /// When each heartbeat was sent that has no answer yet.
    unanswered: VecDeque<(u64, Instant, Boot)>,
    beat: u64,
    /// The newest report of each attempt that was sent on this stream, and when.
    sent: BTreeMap<AttemptId, (u64, Instant)>,
    sweeps: JoinSet<SweepResult>,
    looks: JoinSet<HostInventory>,
}

impl Session {
    /// Keeps a stream to the controller until the daemon stops.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut failures = 0;
        loop {
            let mut greeted = false;
            let outcome = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                outcome = self.hold(&mut greeted) => outcome,
            };
            failures = if greeted { 1 } else { failures + 1 };
            let error = match outcome {
                Ok(never) => match never {},
                Err(error) => error,
            };
            // Whoever held the session is gone, or is of no use to this host: the next one may be.
            self.dial.elsewhere();
            let pause = match &error {
                SessionError::Removed { detail } => self.leave_the_fleet(detail).await,
                SessionError::Skew(_) => SKEW.pause(failures, Backoff::jitter()),
                _ => RECONNECT.pause(failures, Backoff::jitter()),
            };
            tracing::warn!(error = %Chain(&error), pause_ms = pause.as_millis() as u64, "no session with the controller");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Stops all that is here, and writes down that this host was removed: it must join anew. Returns how long it waits
    /// before it asks once more, in case that it was taken back by a restore.
    async fn leave_the_fleet(&self, detail: &str) -> Duration {
        if !self.removal.exists() {
            tracing::error!(
                detail,
                "this host was removed from the fleet: its attempts are stopped; to join again, make a token with \
                 `devfleet join-token create`, give it to this host as at its first start, and start the daemon again"
            );
            if let Err(error) = std::fs::write(&self.removal, detail) {
                tracing::warn!(path = %self.removal.display(), %error, "the removal is not written down");
            }
        }
        self.supervisor.apply(AssignmentSet::default(), true).await;
        REMOVED.mul_f64(0.5 + Backoff::jitter() / 2.0)
    }

    /// Opens one stream and holds it until it breaks.
    async fn hold(&self, greeted: &mut bool) -> Result<std::convert::Infallible, SessionError> {
        let opened = tokio::time::timeout(WELCOME, self.open()).await;
        let (mut stream, interval) = opened.map_err(|_| SessionError::Silent(WELCOME))??;
        *greeted = true;
        self.welcomed.send_replace(true);
        let mut heartbeat = tokio::time::interval(interval);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut inventory = tokio::time::interval(INVENTORY);
        let mut repeat = tokio::time::interval(REPEAT);
        let mut changes = self.supervisor.board().changes();
        loop {
            tokio::select! {
                message = stream.down.message() => {
                    let message = message?.ok_or(SessionError::Ended)?;
                    self.hear(&mut stream, message).await?;
                }
                _ = heartbeat.tick() => stream.beat(interval, self.clock.boot()).await?,
                _ = inventory.tick() => stream.look(&self.inventory),
                _ = repeat.tick() => self.report(&mut stream).await?,
                _ = changes.changed() => {
                    tokio::time::sleep(GATHER).await;
                    changes.mark_unchanged();
                    self.report(&mut stream).await?;
                }
                Some(Ok(found)) = stream.looks.join_next() => {
                    if !found.problems.is_empty() {
                        inventory.reset_after(PROBLEM);
                    }
                    stream.send(Up::Inventory(found)).await?;
                }
                Some(Ok(swept)) = stream.sweeps.join_next() => stream.send(Up::Sweep(swept)).await?,
            }
        }
    }

    async fn open(&self) -> Result<(Stream, Duration), SessionError> {
        let channel = self.dial.dial().await.map_err(SessionError::Dial)?;
        let (up, receiver) = mpsc::channel(64);
        let owned = self.supervisor.board().all().iter().map(wire::owned).collect();
        let hello = Hello {
            incarnation: self.incarnation.clone(),
            host_version: env!("CARGO_PKG_VERSION").to_owned(),
            owned,
            inventory: Some(self.inventory.look().await),
            protocol: PROTOCOL,
        };
        let sent = self.clock.boot();
        // There is room: nothing was sent before.
        let _ = up.try_send(HostMessage { kind: Some(Up::Hello(hello)) });
        let mut down = wire::client(channel).open(ReceiverStream::new(receiver)).await?.into_inner();
        let first = down.message().await?.ok_or(SessionError::Ended)?;
        let Some(Down::Welcome(welcome)) = first.kind else { return Err(SessionError::NoWelcome) };
        protocol::agree(PROTOCOL, protocol::said(welcome.protocol))?;
        // A controller from before the field names none.
        if let Some(v1::Generation { id, number }) = welcome.generation {
            self.followed.follow(&StoreGeneration { id, number })?;
        }
        if self.removal.exists() {
            tracing::info!("this host is part of the fleet again");
            let _ = std::fs::remove_file(&self.removal);
        }
        let set = wire::assignment_set(welcome.assignments.unwrap_or_default())?;
        tracing::info!(
            controller = welcome.controller_version,
            generation = set.generation,
            assignments = set.wanted.len(),
            "session with the controller"
        );
        // A welcome is the controller's newest word, even if it was restarted and counts anew.
        self.supervisor.apply(set, true).await;
        if welcome.freeze_ms > 0 && welcome.kill_ms > welcome.freeze_ms {
            let (freeze, kill) = (Duration::from_millis(welcome.freeze_ms), Duration::from_millis(welcome.kill_ms));
            self.proofs.set_deadlines(Deadlines { freeze, kill });
        }
        // Only now: what the set takes away is ordered to stop, and does not go on.
        self.proofs.proven(sent);
        let stream = Stream {
            up,
            down,
            unanswered: VecDeque::new(),
            beat: 0,
            sent: BTreeMap::new(),
            sweeps: JoinSet::new(),
            looks: JoinSet::new(),
        };
        Ok((stream, Duration::from_secs(welcome.heartbeat_seconds.clamp(1, 60))))
    }

    async fn hear(&self, stream: &mut Stream, message: ControllerMessage) -> Result<(), SessionError> {
        match message.kind {
            Some(Down::Assignments(set)) => {
                let set = wire::assignment_set(set)?;
                tracing::debug!(generation = set.generation, assignments = set.wanted.len(), "assignments received");
                self.supervisor.apply(set, false).await;
                stream.look(&self.inventory);
            }
            Some(Down::Heartbeat(answer)) => {
                let sent = stream.unanswered.iter().find(|(beat, ..)| *beat == answer.sequence).map(|(.., sent)| *sent);
                stream.unanswered.retain(|(beat, ..)| *beat > answer.sequence);
                if let Some(sent) = sent {
                    self.proofs.proven(sent);
                }
            }
            Some(Down::Report(ReportAck { attempt, sequence, superseded })) => {
                if let Ok(attempt) = attempt.parse() {
                    self.supervisor.acknowledge(attempt, sequence, superseded).await;
                }
            }
            Some(Down::Sweep(order)) => {
                let sweeping = Arc::clone(&self.sweeping);
                stream.sweeps.spawn(async move { sweeping.answer(order).await });
            }
            Some(Down::Welcome(_)) | None => {}
        }
        Ok(())
    }

    /// Sends the reports that this stream has not carried yet, and those that were not acknowledged for too long.
    async fn report(&self, stream: &mut Stream) -> Result<(), SessionError> {
        let pending = self.supervisor.board().pending();
        stream.sent.retain(|attempt, _| pending.iter().any(|report| report.claim.attempt == *attempt));
        for report in pending {
            let before = stream.sent.get(&report.claim.attempt);
            let fresh = before.is_none_or(|(sequence, at)| *sequence < report.sequence || at.elapsed() >= REPEAT);
            if fresh {
                stream.send(Up::Report(wire::report(&report))).await?;
                stream.sent.insert(report.claim.attempt.clone(), (report.sequence, Instant::now()));
            }
        }
        Ok(())
    }
}

impl Stream {
    async fn send(&mut self, kind: Up) -> Result<(), SessionError> {
        match tokio::time::timeout(SEND, self.up.send(HostMessage { kind: Some(kind) })).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SessionError::Ended),
            Err(_) => Err(SessionError::Silent(SEND)),
        }
    }

    async fn beat(&mut self, interval: Duration, now: Boot) -> Result<(), SessionError> {
        let patience = interval * UNANSWERED;
        if self.unanswered.front().is_some_and(|(_, sent, _)| sent.elapsed() >= patience) {
            return Err(SessionError::Silent(patience));
        }
        self.beat += 1;
        self.unanswered.push_back((self.beat, Instant::now(), now));
        self.send(Up::Heartbeat(Heartbeat { sequence: self.beat })).await
    }

    /// Begins to look at the host; what is found is sent when it is there. Aside, because an engine may hang.
    fn look(&mut self, inventory: &Inventory) {
        if self.looks.is_empty() {
            let inventory = inventory.clone();
            self.looks.spawn(async move { inventory.look().await });
        }
    }
}
