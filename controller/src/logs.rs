//! Job output, as the hosts bring it and as people read it.

use std::path::PathBuf;

use devfleet_proto::v1::LogRecord;
use devfleet_shared::id::{AttemptId, JobId};
use futures_util::stream::BoxStream;

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
        source: std::io::Error,
    },
    /// The log is as long as a log may be. The host is to forget it.
    #[error("store the log of attempt {attempt}: it is longer than {limit_bytes} bytes")]
    Full {
        /// The attempt.
        attempt: AttemptId,
        /// The limit.
        limit_bytes: u64,
    },
}

/// Records, in order.
pub type RecordStream = BoxStream<'static, Result<LogRecord, LogError>>;

/// The logs of all jobs. Cheap to clone.
#[derive(Clone)]
pub struct JobLogs {
    _dir: PathBuf,
}

impl JobLogs {
    /// Keeps logs under this folder.
    pub fn new(dir: PathBuf) -> JobLogs {
        JobLogs { _dir: dir }
    }
    /// Stores bytes at an offset and returns up to where the log is stored (on disk, synced). Bytes that are there
    /// are skipped; bytes beyond a gap or with a wrong checksum are not taken, and the answer says what is there.
    pub async fn append(&self, _job: &JobId, _attempt: &AttemptId, offset: u64, _bytes: &[u8], _crc32: u32) -> Result<u64, LogError> {
        Ok(offset)
    }
    /// Streams the records that are stored.
    pub fn records(&self, _job: &JobId, _attempt: &AttemptId) -> RecordStream {
        Box::pin(futures_util::stream::empty())
    }
    /// Streams the records that are stored and those that come, until the log is complete.
    pub fn follow(&self, _job: &JobId, _attempt: &AttemptId) -> RecordStream {
        Box::pin(futures_util::stream::empty())
    }
    /// Says that nothing more is expected (a lost host): followers end. What comes all the same is stored.
    pub async fn complete(&self, _job: &JobId, _attempt: &AttemptId) -> Result<(), LogError> {
        Ok(())
    }
    /// Lists the attempts that have a log, oldest first.
    pub async fn attempts(&self, _job: &JobId) -> Result<Vec<AttemptId>, LogError> {
        Ok(Vec::new())
    }
}
