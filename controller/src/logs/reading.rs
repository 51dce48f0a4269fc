//! Reading a log: records out of bytes that may end anywhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use devfleet_proto::v1::LogRecord;
use devfleet_proto::v1::log_record::Channel;
use devfleet_shared::id::{AttemptId, JobId};
use futures_util::stream;
use prost::Message as _;
use tokio::sync::watch;

use super::{JobLogs, LogError, RecordStream, Tip, blocking, on};

/// How much is read at once.
const READ_BYTES: usize = 256 * 1024;

/// The longest record that is believed, in bytes.
const LONGEST_RECORD: usize = 1024 * 1024;

/// What the beginning of some bytes is.
enum Next {
    Record(LogRecord, usize),
    Partial,
    Broken,
}

fn next_record(bytes: &[u8]) -> Next {
    let mut rest = bytes;
    let length = match prost::decode_length_delimiter(&mut rest) {
        Ok(length) if (1..=LONGEST_RECORD).contains(&length) => length,
        Err(_) if bytes.len() < 10 => return Next::Partial,
        _ => return Next::Broken,
    };
    match rest.get(..length).map(LogRecord::decode) {
        None => Next::Partial,
        Some(Ok(record)) => Next::Record(record, bytes.len() - rest.len() + length),
        Some(Err(_)) => Next::Broken,
    }
}

/// Returns how many bytes at the beginning of a file read as records, a partial one at the end included.
pub(super) fn readable_bytes(path: &Path, length: u64) -> Result<u64, LogError> {
    let (mut at, mut bytes) = (0, Vec::new());
    loop {
        let used = match next_record(&bytes) {
            Next::Record(_, used) => used,
            Next::Broken => return Ok(at),
            Next::Partial if at + bytes.len() as u64 >= length => return Ok(length),
            Next::Partial => {
                let more = read(path, at + bytes.len() as u64, length)?;
                if more.is_empty() {
                    return Ok(at + bytes.len() as u64);
                }
                bytes.extend(more);
                continue;
            }
        };
        bytes.drain(..used);
        at += used as u64;
    }
}

/// Returns the time of a log's first record.
pub(super) fn begun(path: &Path) -> u64 {
    match read(path, 0, u64::MAX).as_deref().map(next_record) {
        Ok(Next::Record(record, _)) => record.unix_ms,
        _ => u64::MAX,
    }
}

/// Reads some bytes between two offsets.
fn read(path: &Path, from: u64, to: u64) -> Result<Vec<u8>, LogError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(on("open", path))?,
    };
    let mut bytes = vec![0; to.saturating_sub(from).min(READ_BYTES as u64) as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], from + filled as u64).map_err(on("read", path))? {
            0 => break,
            more => filled += more,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// A reader's place in a log.
struct Reader {
    logs: JobLogs,
    job: JobId,
    attempt: AttemptId,
    follow: bool,
    tip: Option<watch::Receiver<Tip>>,
    /// What is stored as of this moment bounds a reading that does not follow.
    until: u64,
    at: u64,
    bytes: Vec<u8>,
    used: usize,
    done: bool,
}

/// Streams records from the first one on.
pub(super) fn stream(logs: JobLogs, job: JobId, attempt: AttemptId, follow: bool) -> RecordStream {
    let (bytes, used, done) = (Vec::new(), 0, false);
    let reader = Reader { logs, job, attempt, follow, tip: None, until: 0, at: 0, bytes, used, done };
    Box::pin(stream::unfold(reader, |mut reader| async move {
        let item = reader.next().await.transpose()?;
        reader.done |= item.is_err();
        Some((item, reader))
    }))
}

impl Reader {
    async fn next(&mut self) -> Result<Option<LogRecord>, LogError> {
        while !self.done {
            match next_record(&self.bytes[self.used..]) {
                Next::Record(record, used) => {
                    self.used += used;
                    self.done = record.channel() == Channel::End;
                    return Ok(Some(record));
                }
                Next::Partial => {
                    self.done = !self.fill().await?;
                    if self.done && self.tip.as_ref().is_some_and(|tip| tip.borrow().closed) {
                        return Ok(Some(
                            self.cut("the log ends here: its host was lost, or it is longer than is kept"),
                        ));
                    }
                }
                Next::Broken => {
                    self.done = true;
                    let text = "the rest of this log cannot be read: it was damaged on the controller's disk";
                    return Ok(Some(self.cut(text)));
                }
            }
        }
        Ok(None)
    }

    /// Reads on, after waiting if it must; `false`: there is no more.
    async fn fill(&mut self) -> Result<bool, LogError> {
        loop {
            let (tip, path) = self.look().await?;
            if self.at < tip.stored {
                let (from, to) = (self.at, tip.stored);
                let more = blocking(move || read(&path, from, to)).await?;
                self.bytes.drain(..self.used);
                self.used = 0;
                self.at += more.len() as u64;
                self.bytes.extend(&more);
                return Ok(!more.is_empty());
            }
            if !self.follow || tip.closed {
                return Ok(false);
            }
            if let Some(receiver) = &mut self.tip
                && receiver.changed().await.is_err()
            {
                return Ok(false);
            }
        }
    }

    /// Says how far the log is now, and where it lies.
    async fn look(&mut self) -> Result<(Tip, std::path::PathBuf), LogError> {
        let path = self.logs.dir.join(self.job.as_str()).join(format!("{}.log", self.attempt));
        if self.tip.is_none() {
            let tip = self.logs.with_log(&self.job, &self.attempt, |log| Ok(log.tip.subscribe())).await?;
            self.until = tip.borrow().stored;
            self.tip = Some(tip);
        }
        let mut tip = match &mut self.tip {
            Some(receiver) => *receiver.borrow_and_update(),
            None => return Err(LogError::Shutdown),
        };
        if !self.follow {
            tip.stored = self.until;
        }
        Ok((tip, path))
    }

    fn cut(&self, text: &str) -> LogRecord {
        LogRecord {
            source: "devfleet".to_owned(),
            channel: Channel::Cut.into(),
            data: text.as_bytes().to_vec(),
            attempt: self.attempt.to_string(),
            ..LogRecord::default()
        }
    }
}
