//! One channel of one source: its masking, and where reading goes on after a restart.
//!
//! Frames of one channel carry ascending stamps, several may carry the same. The place to go on from is the stamp of
//! the first frame with bytes that masking has not let go, and how many bytes from the first frame with that stamp on
//! it has. Channels are counted apart: the engine may mix them in another order the next time.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use devfleet_shared::mask::{Emitted, Masker, Needles};

use crate::engine::OutputFrame;

/// A place in a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The stamp of a frame.
    pub(super) stamp: String,
    /// Bytes of the channel from the first frame with this stamp on.
    pub(super) skip: u64,
}

/// What is new in a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fresh<'a> {
    /// The bytes that are not in the log.
    pub(super) bytes: &'a [u8],
    /// The engine does not have the frame any more at which reading was to go on.
    pub(super) gap: bool,
}

/// Looking for the place at which an earlier reading stopped.
#[derive(Debug)]
struct Resume {
    place: Place,
    /// Bytes behind the stamp that were skipped.
    passed: u64,
    /// A frame with the stamp came.
    found: bool,
    /// It was this run that read them: masking holds its own part of them already.
    counted: bool,
}

/// One channel.
#[derive(Debug)]
pub(super) struct Stream {
    masker: Masker,
    /// Frames that are not wholly let go, by stamp, and the last one: stamp, and where it begins.
    stamps: VecDeque<(String, u64)>,
    seen: u64,
    settled: u64,
    /// Where an earlier reading stopped; `None` once that place is passed.
    resume: Option<Resume>,
    /// The place in the newest record.
    recorded: Place,
}

impl Stream {
    pub(super) fn new(needles: Arc<Needles>) -> Stream {
        let masker = Masker::new(needles);
        Stream { masker, stamps: VecDeque::new(), seen: 0, settled: 0, resume: None, recorded: Place::default() }
    }

    /// Takes up where a record of an earlier run says.
    pub(super) fn learn(&mut self, place: Place) {
        self.recorded = place.clone();
        self.resume = Some(Resume { place, passed: 0, found: false, counted: false });
    }

    /// Prepares for reading once more, and returns the stamp from which the engine is to be asked.
    pub(super) fn resume(&mut self) -> Option<&str> {
        if let Some((stamp, start)) = self.stamps.back() {
            let place = Place { stamp: stamp.clone(), skip: self.seen - start };
            self.resume = Some(Resume { place, passed: 0, found: false, counted: true });
        }
        self.resume.as_ref().map(|resume| resume.place.stamp.as_str())
    }

    pub(super) fn replace(&mut self, needles: Arc<Needles>) {
        self.masker.replace(needles);
    }

    /// Skips what the log has.
    pub(super) fn admit<'a>(&mut self, frame: &'a OutputFrame) -> Fresh<'a> {
        let mut fresh = Fresh { bytes: &frame.data, gap: false };
        let Some(stamp) = &frame.stamp else {
            self.resume = None;
            self.seen += frame.data.len() as u64;
            return fresh;
        };
        let order = self.resume.as_ref().map_or(Ordering::Greater, |resume| compare(stamp, &resume.place.stamp));
        if order == Ordering::Less {
            fresh.bytes = &[];
            return fresh;
        }
        if self.stamps.back().is_none_or(|(last, _)| last != stamp) {
            self.stamps.push_back((stamp.clone(), self.seen));
        }
        if order == Ordering::Greater {
            fresh.gap = self.resume.take().is_some_and(|resume| !resume.found || resume.passed < resume.place.skip);
        } else if let Some(resume) = &mut self.resume {
            let known = (resume.place.skip - resume.passed).min(frame.data.len() as u64);
            resume.found = true;
            resume.passed += known;
            fresh.bytes = &frame.data[known as usize..];
            if !resume.counted {
                self.seen += known;
                self.settled += known;
            }
        }
        self.seen += fresh.bytes.len() as u64;
        self.forget_settled();
        fresh
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Emitted {
        self.masker.push(bytes)
    }

    pub(super) fn flush(&mut self) -> Emitted {
        self.masker.flush()
    }

    /// Notes that masking let go this many more bytes of what was read.
    pub(super) fn settle(&mut self, bytes: u64) {
        self.settled += bytes;
        self.forget_settled();
    }

    /// Returns the place behind what is settled, which is about to be recorded.
    pub(super) fn record_place(&mut self) -> Place {
        if let Some((stamp, start)) = self.stamps.front() {
            self.recorded = Place { stamp: stamp.clone(), skip: self.settled.saturating_sub(*start) };
        }
        self.recorded.clone()
    }

    /// Says whether the newest record is behind what is settled.
    pub(super) fn is_ahead(&self) -> bool {
        self.stamps.front().is_some_and(|(stamp, start)| {
            *stamp != self.recorded.stamp || self.settled.saturating_sub(*start) != self.recorded.skip
        })
    }

    fn forget_settled(&mut self) {
        while self.stamps.get(1).is_some_and(|(_, start)| *start <= self.settled) {
            self.stamps.pop_front();
        }
    }
}

/// Compares two of the engine's stamps in time.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    if left.len() == right.len() && left.ends_with('Z') && right.ends_with('Z') {
        return left.cmp(right);
    }
    match (left.parse::<jiff::Timestamp>(), right.parse::<jiff::Timestamp>()) {
        (Ok(left), Ok(right)) => left.cmp(&right),
        _ => left.cmp(right),
    }
}
