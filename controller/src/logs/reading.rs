//! Reading a log: records out of bytes that may end anywhere.

use std::sync::Arc;

use devfleet_proto::v1::LogRecord;
use devfleet_proto::v1::log_record::Channel;
use futures_util::stream;
use prost::Message as _;
use tokio::sync::watch;

use super::{Log, LogError, RecordStream, Tip};

/// How much is read at once, in bytes.
const READ_BYTES: u64 = 1024 * 1024;
/// How often a segment that is gone is looked for anew.
const MISSING: usize = 5;

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

/// A reader's place in a log.
struct Reader {
    log: Arc<Log>,
    follow: bool,
    tip: Option<watch::Receiver<Tip>>,
    /// What is stored as of the first look bounds a reading that does not follow.
    until: u64,
    at: u64,
    bytes: Vec<u8>,
    used: usize,
    done: bool,
}

/// Streams records from the first one on.
pub(super) fn stream(log: Arc<Log>, follow: bool) -> RecordStream {
    let reader = Reader { log, follow, tip: None, until: 0, at: 0, bytes: Vec::new(), used: 0, done: false };
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
                    let text = "the rest of this log cannot be read: it was damaged in the controller's storage";
                    return Ok(Some(self.cut(text)));
                }
            }
        }
        Ok(None)
    }

    /// Reads on, after waiting if it must; `false`: there is no more.
    async fn fill(&mut self) -> Result<bool, LogError> {
        let mut missing = 0;
        loop {
            let tip = self.look().await?;
            let end = if self.follow { tip.stored() } else { tip.stored().min(self.until) };
            if self.at < end {
                if self.read(&tip, end).await? {
                    return Ok(true);
                }
                // It was merged a moment ago: the bytes lie elsewhere now.
                missing += 1;
                if missing > MISSING {
                    return Err(LogError::Missing(self.log.attempt.clone()));
                }
                self.log.refresh().await?;
                continue;
            }
            if !self.follow || tip.closed {
                return Ok(false);
            }
            if tip.elsewhere {
                return Err(LogError::NotLeading(self.log.attempt.clone()));
            }
            if let Some(receiver) = &mut self.tip
                && receiver.changed().await.is_err()
            {
                return Ok(false);
            }
        }
    }

    /// Reads some bytes from where it is; `false`: the segment that had them is gone.
    async fn read(&mut self, tip: &Tip, end: u64) -> Result<bool, LogError> {
        let Some(segment) = tip.chain.iter().find(|segment| (segment.start..segment.end).contains(&self.at)) else {
            return Ok(false);
        };
        let from = self.at - segment.start;
        let to = (end.min(segment.end) - segment.start).min(from + READ_BYTES);
        let Some(more) = self.log.files.get_range(&self.log.path(segment), from..to).await? else { return Ok(false) };
        self.bytes.drain(..self.used);
        self.used = 0;
        self.at += more.len() as u64;
        self.bytes.extend_from_slice(&more);
        Ok(!more.is_empty())
    }

    /// Says how far the log is now.
    async fn look(&mut self) -> Result<Tip, LogError> {
        if self.tip.is_none() {
            let _known = self.log.known().await?;
            let tip = self.log.tip.subscribe();
            self.until = tip.borrow().stored();
            self.tip = Some(tip);
        }
        Ok(self.tip.as_mut().map(|tip| tip.borrow_and_update().clone()).unwrap_or_default())
    }

    fn cut(&self, text: &str) -> LogRecord {
        LogRecord {
            source: "devfleet".to_owned(),
            channel: Channel::Cut.into(),
            data: text.as_bytes().to_vec(),
            attempt: self.log.attempt.to_string(),
            ..LogRecord::default()
        }
    }
}
