//! What is kept of a source's output beyond the limit: its end, so that the outcome stays visible.

use std::collections::VecDeque;

use devfleet_proto::v1::log_record::Channel;

/// How much of the end is kept, in bytes.
const KEPT_BYTES: usize = 64 * 1024;

/// What one more piece costs beside its bytes: many tiny ones must not grow without bound.
const PIECE_COST: usize = 64;

/// Output beyond the limit.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    pieces: VecDeque<(Channel, VecDeque<u8>)>,
    bytes: usize,
    /// Bytes that were cut.
    pub(super) cut_bytes: u64,
    /// The log says already that output is being cut.
    pub(super) announced: bool,
}

impl Overflow {
    /// Keeps masked output, and cuts as much as must be at the front.
    pub(super) fn push(&mut self, channel: Channel, bytes: &[u8]) {
        self.bytes += bytes.len();
        match self.pieces.back_mut() {
            Some((last, kept)) if *last == channel => kept.extend(bytes),
            _ => self.pieces.push_back((channel, bytes.iter().copied().collect())),
        }
        while self.bytes + self.pieces.len() * PIECE_COST > KEPT_BYTES + PIECE_COST {
            let over = self.bytes + (self.pieces.len() - 1) * PIECE_COST - KEPT_BYTES;
            let Some((_, front)) = self.pieces.front_mut() else { break };
            let cut = over.min(front.len());
            front.drain(..cut);
            self.bytes -= cut;
            self.cut_bytes += cut as u64;
            if front.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    /// Takes out what is kept, and how many bytes before it were cut.
    pub(super) fn take(&mut self) -> (u64, Vec<(Channel, Vec<u8>)>) {
        self.bytes = 0;
        let pieces = self.pieces.drain(..).map(|(channel, bytes)| (channel, bytes.into_iter().collect()));
        (std::mem::take(&mut self.cut_bytes), pieces.collect())
    }
}
