//! Job output, as hosts bring it and as people read it: `<dir>/<job>/<attempt>.log`, length-delimited records.
//!
//! host ─chunk at offset─▶ append, sync, answer ─▶ tip ─▶ any number of followers, each at its own pace
//!
//! Hosts cut the bytes anywhere; only readers look for records. What was answered for is on disk. Beside a log may
//! stand `<attempt>.closed`: nothing more is expected, because the host is gone or the log is as long as may be.

mod reading;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use devfleet_proto::v1::{LogChunk, LogRecord};
use devfleet_shared::id::{AttemptId, JobId};
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use tracing::warn;

/// How long one attempt's log may be, in bytes. Hosts keep far less.
pub const LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// Why a log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The log is as long as a log may be. The host is to forget it.
    #[error("store the log of attempt {attempt}: it is longer than {limit_bytes} bytes")]
    Full {
        /// The attempt.
        attempt: AttemptId,
        /// The limit.
        limit_bytes: u64,
    },
    /// The work was given up because the program ends.
    #[error("work on a log: the controller is shutting down")]
    Shutdown,
}

impl LogError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, LogError::Full { .. })
    }
}

fn on<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LogError + 'a {
    move |source| LogError::File { action, path: path.to_owned(), source }
}

/// Records, in order.
pub type RecordStream = BoxStream<'static, Result<LogRecord, LogError>>;

/// The logs of all jobs. Cheap to clone; one per folder.
#[derive(Clone)]
pub struct JobLogs {
    dir: Arc<PathBuf>,
    limit_bytes: u64,
    open: Arc<Mutex<BTreeMap<PathBuf, Arc<Log>>>>,
}

/// One attempt's log.
struct Log {
    attempt: AttemptId,
    path: PathBuf,
    writing: Mutex<()>,
    tip: watch::Sender<Tip>,
}

/// How far a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tip {
    /// Bytes on disk.
    stored: u64,
    /// Nothing more is expected.
    closed: bool,
}

impl JobLogs {
    /// Keeps logs under this folder.
    pub fn new(dir: PathBuf) -> JobLogs {
        JobLogs { dir: Arc::new(dir), limit_bytes: LIMIT_BYTES, open: Arc::default() }
    }

    /// Keeps shorter logs than usual.
    pub fn with_limit(self, limit_bytes: u64) -> JobLogs {
        JobLogs { limit_bytes, ..self }
    }

    /// Stores a chunk and returns up to where the log is stored: on disk, synced.
    ///
    /// Bytes that are there are skipped. Bytes beyond a gap or with a wrong checksum are not taken, and the answer
    /// says what is there. Fails with `Full` once the log is as long as may be: the host is to forget it.
    pub async fn append(&self, job: &JobId, attempt: &AttemptId, chunk: &LogChunk) -> Result<u64, LogError> {
        let (offset, crc32, bytes) = (chunk.offset, chunk.crc32, chunk.data.clone());
        let limit_bytes = self.limit_bytes;
        self.with_log(job, attempt, move |log| {
            if crc32fast::hash(&bytes) != crc32 {
                warn!(attempt = %log.attempt, offset, "a log chunk was damaged on its way");
                return Ok(log.tip.borrow().stored);
            }
            log.append(offset, &bytes, limit_bytes)
        })
        .await
    }

    /// Streams the records that are stored.
    pub fn records(&self, job: &JobId, attempt: &AttemptId) -> RecordStream {
        reading::stream(self.clone(), job.clone(), attempt.clone(), false)
    }

    /// Streams the records that are stored and those that come, until the log is complete or closed.
    pub fn follow(&self, job: &JobId, attempt: &AttemptId) -> RecordStream {
        reading::stream(self.clone(), job.clone(), attempt.clone(), true)
    }

    /// Says that nothing more is expected, as of a lost host: followers end. What comes all the same is stored.
    pub async fn complete(&self, job: &JobId, attempt: &AttemptId) -> Result<(), LogError> {
        self.with_log(job, attempt, |log| log.close()).await
    }

    /// Lists the attempts that have a log, the one that was begun first at the front.
    pub async fn attempts(&self, job: &JobId) -> Result<Vec<AttemptId>, LogError> {
        let dir = self.dir.join(job.as_str());
        blocking(move || {
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries.map_err(on("list", &dir))?,
            };
            let mut found = Vec::new();
            for entry in entries {
                let path = entry.map_err(on("list", &dir))?.path();
                let attempt = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
                if let Some(attempt) = attempt.filter(|_| path.extension().is_some_and(|extension| extension == "log"))
                {
                    found.push((reading::begun(&path), attempt));
                }
            }
            found.sort();
            Ok(found.into_iter().map(|(_, attempt)| attempt).collect())
        })
        .await
    }

    /// Opens a log off the async threads and works on it.
    async fn with_log<T: Send + 'static>(
        &self,
        job: &JobId,
        attempt: &AttemptId,
        work: impl FnOnce(&Log) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let (logs, job, attempt) = (self.clone(), job.clone(), attempt.clone());
        blocking(move || work(&*logs.log(&job, &attempt)?)).await
    }

    fn log(&self, job: &JobId, attempt: &AttemptId) -> Result<Arc<Log>, LogError> {
        let path = self.dir.join(job.as_str()).join(format!("{attempt}.log"));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = open.get(&path) {
            return Ok(log.clone());
        }
        let log = Arc::new(Log::open(attempt.clone(), path.clone())?);
        open.insert(path, log.clone());
        Ok(log)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    crate::blocking::run(work).await.map_err(|_| LogError::Shutdown)?
}

impl Log {
    /// Opens a log. What a power cut left behind the last thing that reads as records is cut off; a record that is
    /// not whole stays, its rest is still to come.
    fn open(attempt: AttemptId, path: PathBuf) -> Result<Log, LogError> {
        let length = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            found => found.map_err(on("look at", &path))?.len(),
        };
        let readable = reading::readable_bytes(&path, length)?;
        if readable < length {
            warn!(%attempt, length, readable, "the end of a stored log cannot be read; it is asked for again");
            let file = File::options().write(true).open(&path).map_err(on("open", &path))?;
            file.set_len(readable).and_then(|()| file.sync_all()).map_err(on("cut", &path))?;
        }
        let closed = closed_path(&path).exists();
        let (tip, _) = watch::channel(Tip { stored: readable, closed });
        Ok(Log { attempt, path, writing: Mutex::new(()), tip })
    }

    fn append(&self, offset: u64, bytes: &[u8], limit_bytes: u64) -> Result<u64, LogError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = self.tip.borrow().stored;
        let end = offset + bytes.len() as u64;
        if offset > stored || end <= stored {
            return Ok(stored);
        }
        if end > limit_bytes {
            self.close()?;
            return Err(LogError::Full { attempt: self.attempt.clone(), limit_bytes });
        }
        self.write(&bytes[(stored - offset) as usize..], stored)?;
        self.tip.send_modify(|tip| tip.stored = end);
        Ok(end)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), LogError> {
        let options = || File::options().create(true).truncate(false).write(true).open(&self.path);
        let file = match options() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let dir = self.path.parent().unwrap_or(Path::new("."));
                fs::create_dir_all(dir).map_err(on("make folder", dir))?;
                options()
            }
            file => file,
        };
        let file = file.map_err(on("open", &self.path))?;
        file.write_all_at(bytes, at).map_err(on("write", &self.path))?;
        file.sync_data().map_err(on("sync", &self.path))?;
        match (at, self.path.parent()) {
            (0, Some(dir)) => File::open(dir).and_then(|dir| dir.sync_all()).map_err(on("sync", dir)),
            _ => Ok(()),
        }
    }

    fn close(&self) -> Result<(), LogError> {
        let path = closed_path(&self.path);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(on("make folder", dir))?;
        }
        fs::write(&path, b"").map_err(on("write", &path))?;
        self.tip.send_modify(|tip| tip.closed = true);
        Ok(())
    }
}

fn closed_path(log: &Path) -> PathBuf {
    log.with_extension("closed")
}
