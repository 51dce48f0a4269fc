//! Brings spooled log records to the controller, over a connection of its own.
//!
//! appended ─▶ sync ─▶ chunk ─▶ PushLogs ─▶ acknowledged ─▶ removed once complete
//!
//! Every chunk is answered with how much the controller has. Whatever happens, shipping goes on from there: after a
//! broken connection, a restarted controller, a short answer. The spools take turns, a chunk each.

mod window;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_proto::v1::session_client::SessionClient;
use devfleet_proto::v1::{LogAck, LogChunk};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use devfleet_shared::id::AttemptId;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::{Spool, SpoolError, Spools};
use window::Window;

/// The most bytes in a chunk.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// How often a spool is made to outlive a power cut, at most.
const SYNC_EVERY: Duration = Duration::from_millis(200);

/// How long an answer may take before the connection is given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

const RECONNECT: Backoff = Backoff { first: Duration::from_millis(200), ceiling: Duration::from_secs(15) };

/// Gives a fresh connection to the controller.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Connects.
    async fn dial(&self) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>>;

    /// Says that the controller of the last connection is of no use right now: another comes first at the next one.
    fn elsewhere(&self) {}
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ShippingError {
    #[error("reach the controller")]
    Dial(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("push logs: the controller answers {code:?}: {message}")]
    Refused { code: tonic::Code, message: String },
    #[error("push logs: the controller closed the stream")]
    Closed,
    #[error("push logs: no answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
    #[error("read what is to be shipped")]
    Spool(#[from] SpoolError),
}

impl From<Status> for ShippingError {
    fn from(status: Status) -> Self {
        ShippingError::Refused { code: status.code(), message: status.message().to_owned() }
    }
}

/// Ships all spools. Owns the connection; ends on cancellation.
pub struct LogShipper {
    spools: Spools,
    dial: Arc<dyn Dial>,
    open: watch::Sender<usize>,
}

/// What others may ask of the shipper. Cheap to clone.
#[derive(Clone)]
pub struct LogShipperHandle {
    open: watch::Receiver<usize>,
}

impl LogShipperHandle {
    /// Waits until the controller has every spool wholly. The caller bounds the wait.
    pub async fn drained(&self) {
        // Fails only when the shipper is gone, and then nothing more will change.
        _ = self.open.clone().wait_for(|open| *open == 0).await;
    }
}

enum Event {
    Shutdown,
    Changed,
    Room(mpsc::OwnedPermit<LogChunk>),
    Answer(Result<Option<LogAck>, Status>),
}

/// One connection: what is under way on it.
struct Connection {
    chunks: mpsc::Sender<LogChunk>,
    answers: Streaming<LogAck>,
    windows: BTreeMap<AttemptId, Window>,
    /// Whose turn is over.
    last: Option<AttemptId>,
    next_sync: Instant,
    silent_at: Instant,
}

impl LogShipper {
    /// Makes a shipper and its handle.
    pub fn new(spools: Spools, dial: Arc<dyn Dial>) -> (LogShipper, LogShipperHandle) {
        let (open, seen) = watch::channel(usize::MAX);
        (LogShipper { spools, dial, open }, LogShipperHandle { open: seen })
    }

    /// Ships until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tries = 0;
        while !shutdown.is_cancelled() {
            if self.remove_done() == 0 {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.spools.changed() => {}
                    () = sleep(Duration::from_secs(1)) => {}
                }
                continue;
            }
            let mut answered = false;
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.connection(&shutdown, &mut answered) => ended,
            };
            let Err(error) = ended else { return };
            tries = if answered { 1 } else { tries + 1 };
            debug!(error = %Chain(&error), tries, "shipping logs was interrupted");
            if tries == 10 {
                warn!(error = %Chain(&error), "logs cannot be shipped; they are kept and will be tried again");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(RECONNECT.pause(tries, Backoff::jitter())) => {}
            }
        }
    }

    async fn connection(&self, shutdown: &CancellationToken, answered: &mut bool) -> Result<(), ShippingError> {
        let channel = tokio::time::timeout(ANSWER_WITHIN, self.dial.dial()).await.map_err(|_| ShippingError::Silent)?;
        let mut client = SessionClient::new(channel.map_err(ShippingError::Dial)?);
        let (chunks, queue) = mpsc::channel(2);
        let request = client.push_logs(ReceiverStream::new(queue));
        let answers = tokio::time::timeout(ANSWER_WITHIN, request).await.map_err(|_| ShippingError::Silent)??;
        let now = Instant::now();
        let mut connection = Connection {
            chunks,
            answers: answers.into_inner(),
            windows: BTreeMap::new(),
            last: None,
            next_sync: now,
            silent_at: now + ANSWER_WITHIN,
        };
        loop {
            self.sync_due(&mut connection).await?;
            match self.next_event(&mut connection, shutdown).await? {
                Event::Shutdown => return Ok(()),
                Event::Changed => {}
                Event::Room(permit) => self.send(&mut connection, permit)?,
                Event::Answer(answer) => {
                    let answer = answer?.ok_or(ShippingError::Closed)?;
                    *answered = true;
                    self.take_answer(&mut connection, &answer)?;
                }
            }
        }
    }

    async fn next_event(
        &self,
        connection: &mut Connection,
        shutdown: &CancellationToken,
    ) -> Result<Event, ShippingError> {
        let now = Instant::now();
        let waits_for_answer = connection.windows.values().any(|window| !window.is_idle());
        if !waits_for_answer {
            connection.silent_at = now + ANSWER_WITHIN;
        }
        let can_send = self.turn(connection, now).is_some();
        let look_again = connection.next_sync.max(now + SYNC_EVERY);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Ok(Event::Shutdown),
            answer = connection.answers.message() => Ok(Event::Answer(answer)),
            () = sleep_until(connection.silent_at), if waits_for_answer => Err(ShippingError::Silent),
            permit = connection.chunks.clone().reserve_owned(), if can_send => {
                permit.map(Event::Room).map_err(|_| ShippingError::Closed)
            }
            () = self.spools.changed(), if now >= connection.next_sync => Ok(Event::Changed),
            () = sleep_until(look_again) => Ok(Event::Changed),
        }
    }

    /// Makes what was appended fit to be shipped.
    async fn sync_due(&self, connection: &mut Connection) -> Result<(), ShippingError> {
        if Instant::now() < connection.next_sync {
            return Ok(());
        }
        let dirty: Vec<Spool> = self.spools.list().into_iter().filter(|spool| spool.synced() < spool.len()).collect();
        if dirty.is_empty() {
            return Ok(());
        }
        let synced = crate::blocking::run(move || dirty.iter().try_for_each(Spool::sync)).await;
        connection.next_sync = Instant::now() + SYNC_EVERY;
        Ok(synced.unwrap_or(Ok(()))?)
    }

    /// Picks the spool whose turn it is: the next one that may send, after the one that sent last.
    fn turn(&self, connection: &Connection, now: Instant) -> Option<Spool> {
        let may_send = |spool: &Spool| match connection.windows.get(spool.attempt()) {
            Some(window) => window.may_send(spool.synced(), now),
            None => spool.acknowledged() < spool.synced(),
        };
        let ready: Vec<Spool> = self.spools.list().into_iter().filter(may_send).collect();
        let after = ready.iter().find(|spool| connection.last.as_ref().is_none_or(|last| spool.attempt() > last));
        after.or(ready.first()).cloned()
    }

    fn send(&self, connection: &mut Connection, permit: mpsc::OwnedPermit<LogChunk>) -> Result<(), ShippingError> {
        let Some(spool) = self.turn(connection, Instant::now()) else { return Ok(()) };
        let attempt = spool.attempt().clone();
        let window = connection.windows.entry(attempt.clone()).or_insert_with(|| Window::new(spool.acknowledged()));
        let offset = window.sent();
        let data = spool.read(offset, CHUNK_BYTES)?;
        window.send(data.len() as u64);
        permit.send(LogChunk {
            job: spool.job().to_string(),
            attempt: attempt.to_string(),
            fence: spool.fence(),
            offset,
            crc32: crc32fast::hash(&data),
            data,
        });
        connection.last = Some(attempt);
        Ok(())
    }

    fn take_answer(&self, connection: &mut Connection, answer: &LogAck) -> Result<(), ShippingError> {
        connection.silent_at = Instant::now() + ANSWER_WITHIN;
        let found = self.spools.list().into_iter().find(|spool| spool.attempt().as_str() == answer.attempt);
        let Some(spool) = found else { return Ok(()) };
        if answer.refused {
            info!(attempt = %spool.attempt(), "the controller does not take this log; it is dropped");
            connection.windows.remove(spool.attempt());
            spool.remove()?;
        } else if let Some(window) = connection.windows.get_mut(spool.attempt()) {
            window.answer(answer.offset, Instant::now());
            spool.acknowledge(answer.offset)?;
        }
        if self.remove_done() == 0 {
            connection.windows.clear();
        }
        Ok(())
    }

    /// Removes what the controller has wholly; returns how many spools are left.
    fn remove_done(&self) -> usize {
        for spool in self.spools.list().into_iter().filter(Spool::is_done) {
            if let Err(error) = spool.remove() {
                warn!(attempt = %spool.attempt(), error = %Chain(&error), "a shipped log cannot be removed");
            }
        }
        let open = self.spools.list().len();
        self.open.send_replace(open);
        open
    }
}
