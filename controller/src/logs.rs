//! Job output, as hosts bring it and as people read it: `logs/<job>/<attempt>/<start>-<end>`, length-delimited records.
//!
//! host ─chunk at offset─▶ a segment, durable ─▶ answer ─▶ tip ─▶ any number of followers, each at its own pace
//!                              └ small ones become large ones, now and then, and when the log rests
//!
//! Hosts cut the bytes anywhere; only readers look for records. Beside the segments may stand `closed`: nothing more is
//! expected, because the host is gone or the log is as long as may be. docs/decisions has why segments may overlap.

mod reading;
mod segments;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use devfleet_proto::v1::{LogChunk, LogRecord};
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, JobId};
use futures_util::stream::BoxStream;
use tokio::sync::{MutexGuard, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::files::{Files, FilesError};
use crate::leader::Term;
use segments::{Segment, chain, merge, merge_all, superfluous};

/// How long one attempt's log may be, in bytes. Hosts keep far less.
pub const LIMIT_BYTES: u64 = 64 * 1024 * 1024;
/// A log to which nothing was added for this time has its segments merged.
const REST: Duration = Duration::from_secs(60);
/// How often a listing is repeated that another controller's merging fell into.
const LISTINGS: usize = 4;

/// Why a log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The storage failed.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The log is as long as a log may be. The host is to forget it.
    #[error("store the log of attempt {attempt}: it is longer than {limit_bytes} bytes")]
    Full {
        /// The attempt.
        attempt: AttemptId,
        /// The limit.
        limit_bytes: u64,
    },
    /// Another controller leads now, and has what hosts bring.
    #[error("follow the log of attempt {0}: another controller leads now; open it again")]
    NotLeading(AttemptId),
    /// A segment that is listed cannot be read.
    #[error("read the log of attempt {0}: a part of it is listed and is not there")]
    Missing(AttemptId),
}

impl LogError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        match self {
            LogError::Files(error) => error.is_retryable(),
            LogError::Full { .. } => false,
            LogError::NotLeading(_) | LogError::Missing(_) => true,
        }
    }
}

/// Records, in order.
pub type RecordStream = BoxStream<'static, Result<LogRecord, LogError>>;

/// The logs of all jobs. Cheap to clone; one per process.
#[derive(Clone)]
pub struct JobLogs {
    files: Files,
    limit_bytes: u64,
    open: Arc<Mutex<BTreeMap<String, Arc<Log>>>>,
}

/// One attempt's log.
struct Log {
    attempt: AttemptId,
    folder: String,
    files: Files,
    /// Held while the log is looked at or changed.
    writing: tokio::sync::Mutex<Writing>,
    tip: watch::Sender<Tip>,
}

/// What only who writes needs.
struct Writing {
    /// The storage was looked at.
    known: bool,
    /// Segments pushed since the last merge.
    fresh: usize,
    touched: Instant,
}

/// How far a log is.
#[derive(Debug, Clone, Default)]
struct Tip {
    /// What holds it, without a gap.
    chain: Arc<Vec<Segment>>,
    /// Nothing more is expected.
    closed: bool,
    /// What is more comes to another controller.
    elsewhere: bool,
}

impl Tip {
    /// Returns how many bytes are stored.
    fn stored(&self) -> u64 {
        self.chain.last().map_or(0, |last| last.end)
    }
}

impl JobLogs {
    /// Keeps logs among these files.
    pub fn new(files: Files) -> JobLogs {
        JobLogs { files, limit_bytes: LIMIT_BYTES, open: Arc::default() }
    }

    /// Keeps shorter logs than usual.
    pub fn with_limit(self, limit_bytes: u64) -> JobLogs {
        JobLogs { limit_bytes, ..self }
    }

    /// Stores a chunk and returns up to where the log is stored, durably.
    ///
    /// Bytes that are there are skipped. Bytes beyond a gap or with a wrong checksum are not taken, and the answer
    /// says what is there. Fails with `Full` once the log is as long as may be: the host is to forget it.
    pub async fn append(&self, job: &JobId, attempt: &AttemptId, chunk: LogChunk) -> Result<u64, LogError> {
        let log = self.log(job, attempt);
        if crc32fast::hash(&chunk.data) != chunk.crc32 {
            warn!(%attempt, offset = chunk.offset, "a log chunk was damaged on its way");
            let _known = log.known().await?;
            return Ok(log.tip.borrow().stored());
        }
        log.append(chunk.offset, Bytes::from(chunk.data), self.limit_bytes).await
    }

    /// Streams the records that are stored.
    pub fn records(&self, job: &JobId, attempt: &AttemptId) -> RecordStream {
        reading::stream(self.log(job, attempt), false)
    }

    /// Streams the records that are stored and those that come, until the log is complete or closed. Fails with
    /// `NotLeading` when they come to another controller.
    pub fn follow(&self, job: &JobId, attempt: &AttemptId) -> RecordStream {
        reading::stream(self.log(job, attempt), true)
    }

    /// Says that nothing more is expected, as of a lost host: followers end. What comes all the same is stored.
    pub async fn complete(&self, job: &JobId, attempt: &AttemptId) -> Result<(), LogError> {
        let log = self.log(job, attempt);
        let _known = log.known().await?;
        log.close().await
    }

    /// Merges the segments of a log into as few as may be, and removes what others hold.
    pub async fn settle(&self, job: &JobId, attempt: &AttemptId) -> Result<(), LogError> {
        self.log(job, attempt).settle().await
    }

    /// Settles logs that rest, and forgets them.
    pub async fn settle_resting(self, shutdown: CancellationToken) {
        let mut due = tokio::time::interval(REST / 4);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = due.tick() => {}
            }
            let open: Vec<_> = self.lock().iter().map(|(folder, log)| (folder.clone(), log.clone())).collect();
            for (folder, log) in open {
                if log.writing.lock().await.touched.elapsed() < REST {
                    continue;
                }
                if let Err(error) = log.settle().await {
                    warn!(attempt = %log.attempt, error = %Chain(&error), "the segments of a log could not be merged");
                }
                // Ours, and the one in the map: nobody follows it.
                let mut open = self.lock();
                if Arc::strong_count(&log) <= 2 {
                    open.remove(&folder);
                }
            }
        }
    }

    /// Sends followers elsewhere when another controller leads, and forgets what it may have changed meanwhile.
    pub async fn only_while_leading(self, mut term: watch::Receiver<Option<Term>>, shutdown: CancellationToken) {
        loop {
            term.borrow_and_update();
            self.leave();
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = term.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Ends every follower, and forgets all logs: the next call looks at the storage.
    pub fn leave(&self) {
        for log in std::mem::take(&mut *self.lock()).into_values() {
            log.tip.send_modify(|tip| tip.elsewhere = true);
        }
    }

    fn log(&self, job: &JobId, attempt: &AttemptId) -> Arc<Log> {
        let folder = format!("logs/{job}/{attempt}");
        let make = || Arc::new(Log::new(attempt.clone(), folder.clone(), self.files.clone()));
        self.lock().entry(folder.clone()).or_insert_with(make).clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Log>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn new(attempt: AttemptId, folder: String, files: Files) -> Log {
        let writing = Writing { known: false, fresh: 0, touched: Instant::now() };
        let (tip, _) = watch::channel(Tip::default());
        Log { attempt, folder, files, writing: tokio::sync::Mutex::new(writing), tip }
    }

    /// Waits for its turn, and until it is known what is stored.
    async fn known(&self) -> Result<MutexGuard<'_, Writing>, LogError> {
        let mut writing = self.writing.lock().await;
        writing.touched = Instant::now();
        if !writing.known {
            self.look(&mut writing).await?;
        }
        Ok(writing)
    }

    /// Looks at the storage. Returns all segments, those that others hold included.
    async fn look(&self, writing: &mut Writing) -> Result<Vec<Segment>, LogError> {
        let mut listings = 1;
        let (all, picked, closed) = loop {
            let objects = self.files.list(&self.folder).await?;
            let closed = objects.iter().any(|(name, _)| name == "closed");
            let all: Vec<_> = objects.iter().filter_map(|(name, size)| Segment::parse(name, *size)).collect();
            let picked = chain(all.clone());
            let end = |segments: &[Segment]| segments.iter().map(|segment| segment.end).max();
            // A gap is no truth: the listing began before a merge and ended after it.
            if end(&all) == end(&picked) || listings == LISTINGS {
                break (all, picked, closed);
            }
            listings += 1;
        };
        (writing.known, writing.fresh) = (true, picked.len());
        self.tip.send_modify(|tip| {
            tip.chain = Arc::new(picked);
            tip.closed |= closed;
        });
        Ok(all)
    }

    /// Looks again at what is stored: another controller may have merged it.
    async fn refresh(&self) -> Result<(), LogError> {
        let mut writing = self.writing.lock().await;
        self.look(&mut writing).await.map(drop)
    }

    async fn append(&self, offset: u64, bytes: Bytes, limit_bytes: u64) -> Result<u64, LogError> {
        let mut writing = self.known().await?;
        if offset > self.tip.borrow().stored() {
            // The host brought what comes before to another controller.
            self.look(&mut writing).await?;
        }
        let stored = self.tip.borrow().stored();
        let end = offset + bytes.len() as u64;
        if offset > stored || end <= stored {
            return Ok(stored);
        }
        if end > limit_bytes {
            self.close().await?;
            return Err(LogError::Full { attempt: self.attempt.clone(), limit_bytes });
        }
        let segment = Segment { start: stored, end };
        self.files.put(&self.path(&segment), bytes.slice((stored - offset) as usize..)).await?;
        self.tip.send_modify(|tip| Arc::make_mut(&mut tip.chain).push(segment));
        writing.fresh += 1;
        let chain = self.tip.borrow().chain.clone();
        if let Some(range) = merge(&chain, writing.fresh) {
            // What was pushed is stored. That it is not merged costs room for names, and the next try takes it along.
            match self.merge(&chain[range.clone()]).await {
                Ok(Some(merged)) => {
                    self.tip.send_modify(|tip| drop(Arc::make_mut(&mut tip.chain).splice(range, [merged])))
                }
                Ok(None) => writing.known = false,
                Err(error) => debug!(attempt = %self.attempt, error = %Chain(&error), "segments could not be merged"),
            }
            writing.fresh = 0;
        }
        Ok(end)
    }

    /// Writes one segment that holds these, then removes them; `None`: another controller did so meanwhile.
    async fn merge(&self, parts: &[Segment]) -> Result<Option<Segment>, LogError> {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(None) };
        let merged = Segment { start: first.start, end: last.end };
        let mut bytes = BytesMut::with_capacity(merged.len() as usize);
        for part in parts {
            let have = merged.start + bytes.len() as u64;
            match self.files.get_range(&self.path(part), have - part.start..part.len()).await? {
                Some(more) => bytes.extend_from_slice(&more),
                None => return Ok(None),
            }
        }
        self.files.put(&self.path(&merged), bytes.freeze()).await?;
        for part in parts {
            self.files.delete(&self.path(part)).await?;
        }
        Ok(Some(merged))
    }

    async fn settle(&self) -> Result<(), LogError> {
        let mut writing = self.writing.lock().await;
        self.look(&mut writing).await?;
        let chain = self.tip.borrow().chain.clone();
        for group in merge_all(&chain) {
            self.merge(&chain[group]).await?;
        }
        let all = self.look(&mut writing).await?;
        let chain = self.tip.borrow().chain.clone();
        for segment in superfluous(&all, &chain) {
            self.files.delete(&self.path(&segment)).await?;
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), LogError> {
        self.files.put(&format!("{}/closed", self.folder), Bytes::new()).await?;
        self.tip.send_modify(|tip| tip.closed = true);
        Ok(())
    }

    fn path(&self, segment: &Segment) -> String {
        format!("{}/{}", self.folder, segment.name())
    }
}
