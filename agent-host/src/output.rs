//! What an attempt's containers print: masked, bounded, and in the spool without a lost or doubled byte.
//!
//! engine ─frame─▶ skip what is known ─▶ mask ─▶ gather ─▶ record ─▶ spool
//!                                                  └─ beyond the limit: only the end of each source
//!
//! Each record says up to where the engine's output is in the log, per source and channel. So whatever was gathered
//! but not recorded when the daemon was killed is read again, and masking goes on at exactly the byte where it was.

mod overflow;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use devfleet_proto::v1::LogRecord;
use devfleet_proto::v1::log_record::Channel;
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::mask::{Emitted, Masker, Needles, WeakSecret};
use devfleet_shared::secret::Secret;
use prost::Message as _;

use crate::engine::OutputFrame;
use crate::spool::{Spool, SpoolError};
use overflow::Overflow;
use stream::{Place, Stream, compare};

/// The source of what the host itself says.
const OWN_SOURCE: &str = "devfleet";

/// The most bytes of output in one record.
const RECORD_BYTES: usize = 32 * 1024;

/// How long output is gathered for one record.
const GATHER: Duration = Duration::from_millis(100);

/// How much of a source's end [`Recorder::tail`] returns, in bytes.
const TAIL_BYTES: usize = 4 * 1024;

/// How much the host itself may say about one attempt, in bytes.
const NOTE_LIMIT_BYTES: u64 = 1024 * 1024;

/// Why output was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The spool failed.
    #[error("record output")]
    Spool(#[from] SpoolError),
}

/// Records the output of one attempt.
pub struct Recorder {
    spool: Spool,
    limit_bytes: u64,
    clock: Clock,
    secrets: Vec<Secret>,
    needles: Arc<Needles>,
    sources: BTreeMap<String, Source>,
    gathered: Option<Gathered>,
    /// Bytes of output in the spool, with what surrounds them.
    stored: u64,
    noted: u64,
    ended: bool,
}

/// One source: a step, or the host itself.
struct Source {
    out: Stream,
    err: Stream,
    end: VecDeque<u8>,
    overflow: Overflow,
}

/// Output that will be one record.
struct Gathered {
    source: String,
    channel: Channel,
    bytes: Vec<u8>,
    since: Timestamp,
}

impl Source {
    fn new(needles: &Arc<Needles>) -> Source {
        let (out, err) = (Stream::new(needles.clone()), Stream::new(needles.clone()));
        Source { out, err, end: VecDeque::new(), overflow: Overflow::default() }
    }

    fn stream(&mut self, channel: Channel) -> &mut Stream {
        match channel {
            Channel::Err => &mut self.err,
            _ => &mut self.out,
        }
    }

    fn remember(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        let over = (self.end.len() + bytes.len()).saturating_sub(TAIL_BYTES);
        self.end.drain(..over);
        self.end.extend(bytes);
    }
}

impl Recorder {
    /// Takes up where the spool ends. `limit_bytes` bounds what is kept of the attempt's output, on disk.
    pub fn open(spool: Spool, limit_bytes: u64, clock: Clock) -> Result<Recorder, OutputError> {
        let mut recorder = Recorder {
            spool: spool.clone(),
            limit_bytes,
            clock,
            secrets: Vec::new(),
            needles: Arc::new(Needles::default()),
            sources: BTreeMap::new(),
            gathered: None,
            stored: 0,
            noted: 0,
            ended: false,
        };
        spool.records(|record| recorder.learn(record))?;
        Ok(recorder)
    }

    /// Takes note of a record of an earlier run.
    fn learn(&mut self, record: LogRecord) {
        let needles = self.needles.clone();
        let source = self.sources.entry(record.source.clone()).or_insert_with(|| Source::new(&needles));
        match record.channel() {
            channel @ (Channel::Out | Channel::Err) => {
                self.stored += record.encoded_len() as u64;
                source.remember(&record.data);
                if !record.resume_stamp.is_empty() {
                    let place = Place { stamp: record.resume_stamp, skip: record.resume_skip };
                    source.stream(channel).learn(place);
                }
            }
            Channel::Note => self.noted += record.encoded_len() as u64,
            Channel::Cut => source.overflow.announced = true,
            Channel::End => self.ended = true,
            Channel::Unspecified => {}
        }
    }

    /// Masks these secrets too, from now on, in whatever is not recorded yet.
    ///
    /// Fails, and masks what it did before, if one of them is too weak to be masked.
    pub fn add_secrets(&mut self, secrets: &[Secret]) -> Result<(), WeakSecret> {
        let all: Vec<Secret> = self.secrets.iter().chain(secrets).cloned().collect();
        let needles = Needles::new(&all)
            .map_err(|weak| WeakSecret { number: weak.number.saturating_sub(self.secrets.len()), rule: weak.rule })?;
        self.secrets = all;
        self.needles = Arc::new(needles);
        for source in self.sources.values_mut() {
            source.out.replace(self.needles.clone());
            source.err.replace(self.needles.clone());
        }
        Ok(())
    }

    /// Records a line that the host itself says, masked.
    pub fn note(&mut self, text: &str) -> Result<(), OutputError> {
        if self.ended {
            return Ok(());
        }
        let mut masker = Masker::new(self.needles.clone());
        let masked = [masker.push(text.as_bytes()), masker.flush()].map(|emitted| emitted.bytes).concat();
        self.write_gathered()?;
        let needles = self.needles.clone();
        let source = self.sources.entry(OWN_SOURCE.to_owned()).or_insert_with(|| Source::new(&needles));
        source.remember(&masked);
        source.remember(b"\n");
        for line in masked.chunks(RECORD_BYTES) {
            let record = self.record(OWN_SOURCE, Channel::Note, line.to_vec(), Place::default());
            let size = record.encoded_len() as u64;
            if self.noted + size <= NOTE_LIMIT_BYTES {
                self.noted += size;
                self.spool.append(&record)?;
            } else if let Some(source) = self.sources.get_mut(OWN_SOURCE) {
                source.overflow.push(Channel::Note, line);
                source.overflow.push(Channel::Note, b"\n");
            }
        }
        Ok(())
    }

    /// Returns the stamp from which the engine is to be asked for a source's output; `None`: from the beginning.
    ///
    /// To be called before each reading, the first one and every one after the engine broke off.
    pub fn resume(&mut self, source: &str) -> Option<String> {
        let source = self.sources.get_mut(source)?;
        let (out, err) = (source.out.resume(), source.err.resume());
        let (out, err) = (out?, err?);
        Some(if compare(out, err).is_le() { out } else { err }.to_owned())
    }

    /// Records a frame; what the spool has already is skipped.
    pub fn frame(&mut self, source: &str, frame: &OutputFrame) -> Result<(), OutputError> {
        if self.ended {
            return Ok(());
        }
        if !self.sources.contains_key(source) {
            self.sources.insert(source.to_owned(), Source::new(&self.needles));
        }
        let Some(entry) = self.sources.get_mut(source) else { return Ok(()) };
        let channel = if frame.is_error { Channel::Err } else { Channel::Out };
        let stream = entry.stream(channel);
        let fresh = stream.admit(frame);
        let emitted = stream.push(fresh.bytes);
        if fresh.gap {
            self.write_gathered()?;
            let text = b"output from around a restart of the host daemon is missing here: the engine does not have it any more";
            self.spool.append(&self.record(source, Channel::Cut, text.to_vec(), Place::default()))?;
        }
        self.keep(source, channel, &emitted)?;
        self.settle(self.clock.now())
    }

    /// Gathers what masking let go, or drops it beyond the limit.
    fn keep(&mut self, source: &str, channel: Channel, emitted: &Emitted) -> Result<(), OutputError> {
        for piece in emitted.pieces(RECORD_BYTES) {
            let other = |gathered: &Gathered| gathered.source != source || gathered.channel != channel;
            let full = |gathered: &Gathered| gathered.bytes.len() + piece.bytes.len() > RECORD_BYTES;
            let due = self.gathered.as_ref().is_some_and(|gathered| other(gathered) || full(gathered));
            if due || self.is_over_limit() {
                self.write_gathered()?;
            }
            let over = self.is_over_limit();
            let Some(entry) = self.sources.get_mut(source) else { return Ok(()) };
            entry.stream(channel).settle(piece.settled);
            entry.remember(piece.bytes);
            if over {
                entry.overflow.push(channel, piece.bytes);
                self.announce_cut(source)?;
                continue;
            }
            let since = self.clock.now();
            let gathered = self.gathered.get_or_insert_with(|| Gathered {
                source: source.to_owned(),
                channel,
                bytes: Vec::with_capacity(RECORD_BYTES),
                since,
            });
            gathered.bytes.extend_from_slice(piece.bytes);
        }
        Ok(())
    }

    fn is_over_limit(&self) -> bool {
        let gathered = self.gathered.as_ref().map_or(0, |gathered| gathered.bytes.len() as u64);
        self.stored + gathered >= self.limit_bytes
    }

    /// Says once per source, as soon as it is so, that output is being cut.
    fn announce_cut(&mut self, source: &str) -> Result<(), OutputError> {
        let Some(entry) = self.sources.get_mut(source) else { return Ok(()) };
        if entry.overflow.announced || entry.overflow.cut_bytes == 0 {
            return Ok(());
        }
        entry.overflow.announced = true;
        let text = format!(
            "the log has reached its limit of {} bytes: what follows is cut, and its last 64 KiB are shown when the step ends",
            self.limit_bytes
        );
        Ok(self.spool.append(&self.record(source, Channel::Cut, text.into_bytes(), Place::default()))?)
    }

    /// Writes out what has been gathered for long enough; to be called by a timer, about every 100 ms.
    ///
    /// What masking holds back may be the beginning of a secret: time alone never lets it go.
    pub fn settle(&mut self, now: Timestamp) -> Result<(), OutputError> {
        match &self.gathered {
            Some(gathered) if now.since(gathered.since) >= GATHER => self.write_gathered(),
            _ => Ok(()),
        }
    }

    fn write_gathered(&mut self) -> Result<(), OutputError> {
        let Some(gathered) = self.gathered.take() else { return Ok(()) };
        let Gathered { source, channel, bytes, since } = gathered;
        let place = self.sources.get_mut(&source).map(|entry| entry.stream(channel).record_place()).unwrap_or_default();
        let mut record = self.record(&source, channel, bytes, place);
        record.unix_ms = since.0;
        self.stored += record.encoded_len() as u64;
        Ok(self.spool.append(&record)?)
    }

    fn record(&self, source: &str, channel: Channel, data: Vec<u8>, place: Place) -> LogRecord {
        LogRecord {
            unix_ms: self.clock.now().0,
            source: source.to_owned(),
            channel: channel.into(),
            data,
            attempt: self.spool.attempt().to_string(),
            resume_stamp: place.stamp,
            resume_skip: place.skip,
        }
    }

    /// Ends a source: lets go what masking held back, and the end of what was cut. Safe to repeat.
    pub fn end_source(&mut self, source: &str) -> Result<(), OutputError> {
        for channel in [Channel::Out, Channel::Err] {
            let Some(entry) = self.sources.get_mut(source) else { return Ok(()) };
            let emitted = entry.stream(channel).flush();
            self.keep(source, channel, &emitted)?;
        }
        self.write_gathered()?;
        let Some(entry) = self.sources.get_mut(source) else { return Ok(()) };
        let (cut_bytes, pieces) = entry.overflow.take();
        let mut parts: Vec<(Channel, Vec<u8>)> = Vec::new();
        if cut_bytes > 0 {
            parts.push((Channel::Cut, format!("{cut_bytes} bytes of output were cut here").into_bytes()));
        }
        for (channel, bytes) in pieces {
            parts.extend(bytes.chunks(RECORD_BYTES).map(|part| (channel, part.to_vec())));
        }
        for channel in [Channel::Out, Channel::Err] {
            if entry.stream(channel).is_ahead() && !parts.iter().any(|(other, _)| *other == channel) {
                parts.push((channel, Vec::new()));
            }
        }
        self.write_parts(source, parts)
    }

    /// Writes the end of a source in one go: each record says that everything up to the end is in the log.
    fn write_parts(&mut self, source: &str, parts: Vec<(Channel, Vec<u8>)>) -> Result<(), OutputError> {
        let mut records = Vec::new();
        for (channel, bytes) in parts {
            let place = match (channel, self.sources.get_mut(source)) {
                (Channel::Out | Channel::Err, Some(entry)) => entry.stream(channel).record_place(),
                _ => Place::default(),
            };
            let record = self.record(source, channel, bytes, place);
            self.stored += record.encoded_len() as u64;
            records.push(record);
        }
        match records.is_empty() {
            true => Ok(()),
            false => Ok(self.spool.append_all(&records)?),
        }
    }

    /// Returns the last 4 KiB of a source's output, masked, as text.
    pub fn tail(&self, source: &str) -> String {
        let Some(source) = self.sources.get(source) else { return String::new() };
        let is_inner = |byte: &&u8| (0x80..0xc0).contains(*byte);
        let inner = source.end.iter().take(3).take_while(is_inner).count();
        let bytes: Vec<u8> = source.end.iter().skip(inner).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ends the attempt's log. Nothing is recorded after it. Safe to repeat.
    pub fn finish(&mut self) -> Result<(), OutputError> {
        if !self.ended {
            for source in self.sources.keys().cloned().collect::<Vec<_>>() {
                self.end_source(&source)?;
            }
            self.spool.append(&self.record(OWN_SOURCE, Channel::End, Vec::new(), Place::default()))?;
            self.ended = true;
        }
        Ok(self.spool.complete()?)
    }
}
