//! Time as an input: the only place that reads a clock.
//!
//! Deciders take `Timestamp` arguments; doers ask a `Clock`. `Boot` counts on while the machine sleeps (deadlines),
//! `Timestamp` is for people and records.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment on the wall clock, in milliseconds since 1970, for people and records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Returns the moment this much later.
    pub fn after(self, span: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(millis(span)))
    }

    /// Returns how long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0 as i64) {
            Ok(time) => write!(f, "{}", time.strftime("%Y-%m-%dT%H:%M:%SZ")),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

/// A moment on the boot clock, which also counts while the machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Boot(pub Duration);

/// Reads the clocks.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    fixed: Option<Arc<AtomicU64>>,
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self { fixed: None }
    }

    /// A clock that stands still at `start` until it is moved, for tests.
    pub fn fixed(start: Timestamp) -> Self {
        Self { fixed: Some(Arc::new(AtomicU64::new(start.0))) }
    }

    /// Moves a fixed clock ahead; the machine's clocks move by themselves.
    pub fn advance(&self, span: Duration) {
        if let Some(fixed) = &self.fixed {
            fixed.fetch_add(millis(span), Ordering::SeqCst);
        }
    }

    /// Returns the moment on the wall clock.
    pub fn now(&self) -> Timestamp {
        match &self.fixed {
            Some(fixed) => Timestamp(fixed.load(Ordering::SeqCst)),
            None => Timestamp(millis(read(ClockId::Realtime))),
        }
    }

    /// Returns the moment on the boot clock.
    pub fn boot(&self) -> Boot {
        match &self.fixed {
            Some(fixed) => Boot(Duration::from_millis(fixed.load(Ordering::SeqCst))),
            None => Boot(read(ClockId::Boottime)),
        }
    }
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_clock_moves_only_when_it_is_moved() {
        let clock = Clock::fixed(Timestamp(1_000));
        assert_eq!(clock.now(), Timestamp(1_000));
        clock.clone().advance(Duration::from_secs(2));
        assert_eq!(clock.now(), Timestamp(3_000));
        assert_eq!(clock.now().since(Timestamp(1_000)), Duration::from_secs(2));
    }

    #[test]
    fn timestamps_read_as_people_write_them() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00Z");
        assert!(Clock::system().now() > Timestamp(1_700_000_000_000));
    }
}
