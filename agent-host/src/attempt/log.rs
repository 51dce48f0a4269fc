//! The log of one attempt: the recorder behind a lock, for lines of the host and output of the steps.

use std::sync::{Mutex, MutexGuard, PoisonError};

use devfleet_shared::attempt::{Failure, FailureReason};
use devfleet_shared::clock::Clock;
use devfleet_shared::error::Chain;
use devfleet_shared::mask::WeakSecret;
use devfleet_shared::secret::Secret;

use crate::engine::OutputFrame;
use crate::output::{OutputError, Recorder};

/// The log of one attempt.
pub(super) struct AttemptLog {
    recorder: Mutex<Result<Recorder, Failure>>,
    clock: Clock,
}

impl AttemptLog {
    /// Takes a recorder, or why there is none.
    pub(super) fn new(recorder: Result<Recorder, OutputError>, clock: Clock) -> Self {
        Self { recorder: Mutex::new(recorder.map_err(|error| failure(&error))), clock }
    }

    /// Fails if nothing can be recorded.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.lock().as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Masks these secrets too, from now on.
    pub(super) fn add_secrets(&self, secrets: &[Secret]) -> Result<(), WeakSecret> {
        self.lock().as_mut().map_or(Ok(()), |recorder| recorder.add_secrets(secrets))
    }

    /// Records a line that the host says. A log that cannot be written shows at the next frame.
    pub(super) fn note(&self, text: &str) {
        self.quietly(|recorder| recorder.note(text));
    }

    /// Returns the stamp from which the engine is to be asked for a step's output.
    pub(super) fn resume(&self, source: &str) -> Option<String> {
        self.lock().as_mut().ok().and_then(|recorder| recorder.resume(source))
    }

    /// Records a piece of a step's output.
    pub(super) fn frame(&self, source: &str, frame: &OutputFrame) -> Result<(), Failure> {
        match self.lock().as_mut() {
            Ok(recorder) => recorder.frame(source, frame).map_err(|error| failure(&error)),
            Err(failure) => Err(failure.clone()),
        }
    }

    /// Writes out what was gathered for long enough.
    pub(super) fn settle(&self) {
        let now = self.clock.now();
        self.quietly(|recorder| recorder.settle(now));
    }

    /// Ends a step's output.
    pub(super) fn end_source(&self, source: &str) {
        self.quietly(|recorder| recorder.end_source(source));
    }

    /// Returns the end of a step's output, masked; 4 KiB at most.
    pub(super) fn tail(&self, source: &str) -> String {
        self.lock().as_ref().map(|recorder| recorder.tail(source)).unwrap_or_default()
    }

    /// Ends the log.
    pub(super) fn finish(&self) {
        self.quietly(Recorder::finish);
    }

    fn quietly(&self, write: impl FnOnce(&mut Recorder) -> Result<(), OutputError>) {
        if let Ok(recorder) = self.lock().as_mut()
            && let Err(error) = write(recorder)
        {
            tracing::warn!(error = %Chain(&error), "a part of an attempt's log is lost");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Result<Recorder, Failure>> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failure(error: &OutputError) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut reason = FailureReason::Internal;
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull) {
            reason = FailureReason::DiskFull;
        }
        cause = error.source();
    }
    Failure { reason, message: format!("failed to {}", Chain(error)) }
}
