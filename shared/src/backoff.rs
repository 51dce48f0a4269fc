//! When to try again: exponential, with a ceiling and full jitter.

use std::time::Duration;

/// The pace of repeated tries.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The longest first pause.
    pub first: Duration,
    /// The longest pause of all.
    pub ceiling: Duration,
}

impl Backoff {
    /// Returns the pause before try number `tries` (1 is the first repetition).
    ///
    /// `jitter` is a random number in 0..1: the pause lies between a half and the whole of the step, so that many
    /// clients that failed at once do not come back at once.
    pub fn pause(&self, tries: u32, jitter: f64) -> Duration {
        let step = self.first.saturating_mul(1u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX));
        step.min(self.ceiling).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// Returns a random number in 0..1 for [`Backoff::pause`].
    pub fn jitter() -> f64 {
        rand::random::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_ceiling_and_never_below_a_half() {
        let backoff = Backoff { first: Duration::from_millis(100), ceiling: Duration::from_secs(1) };
        assert_eq!(backoff.pause(1, 1.0), Duration::from_millis(100));
        assert_eq!(backoff.pause(3, 1.0), Duration::from_millis(400));
        assert_eq!(backoff.pause(40, 1.0), Duration::from_secs(1));
        assert_eq!(backoff.pause(40, 0.0), Duration::from_millis(500));
    }
}
