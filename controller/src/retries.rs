//! Which attempts deserve another. A decider.
//!
//! Only what the machinery did wrong is tried again: a lost host, a full disk, a broken engine. Work that failed is a
//! result, and trying it again would spend a person's budget on hope.

use std::time::Duration;

use devfleet_shared::attempt::AttemptResult;
use devfleet_shared::backoff::Backoff;

use crate::store::records::AttemptRecord;

/// How often a job may lose its host. Such an attempt is not counted against the job: it did nothing wrong.
const LOSSES: u32 = 5;

/// The attempts at a job so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Those that ended by themselves or are under way.
    pub own: u32,
    /// Those that were lost with their host.
    pub lost: u32,
}

impl Made {
    /// Counts attempts.
    pub fn of(attempts: &[AttemptRecord]) -> Made {
        let lost = attempts.iter().filter(|attempt| attempt.result() == Some(&AttemptResult::Lost)).count() as u32;
        Made { own: attempts.len() as u32 - lost, lost }
    }
}

/// Says whether a job whose attempt ended so gets another: the pause before it, or nothing.
pub fn retry(result: &AttemptResult, made: Made, max_attempts: u32, cancelled: bool) -> Option<Duration> {
    let deserves = match result {
        AttemptResult::Lost => made.lost <= LOSSES,
        AttemptResult::Failed(failure) => failure.reason.is_retryable() && made.own < max_attempts,
        AttemptResult::Succeeded { .. } | AttemptResult::NoChange | AttemptResult::Cancelled => false,
    };
    let pace = Backoff { first: Duration::from_secs(5), ceiling: Duration::from_secs(300) };
    (deserves && !cancelled).then(|| pace.pause(made.own + made.lost, 1.0))
}

#[cfg(test)]
mod tests {
    use devfleet_shared::attempt::{Failure, FailureReason};

    use super::*;

    fn check(result: AttemptResult, (own, lost): (u32, u32), cancelled: bool, expected: bool) {
        let made = Made { own, lost };
        assert_eq!(retry(&result, made, 2, cancelled).is_some(), expected, "{result:?} {made:?} {cancelled}");
    }

    fn failed(reason: FailureReason) -> AttemptResult {
        AttemptResult::Failed(Failure { reason, message: String::new() })
    }

    #[test]
    fn only_the_machinerys_faults_are_tried_again_and_only_so_often() {
        check(AttemptResult::Lost, (0, 1), false, true);
        check(AttemptResult::Lost, (2, 5), false, true);
        check(AttemptResult::Lost, (0, 6), false, false);
        check(AttemptResult::Lost, (0, 1), true, false);
        check(failed(FailureReason::Engine), (1, 0), false, true);
        check(failed(FailureReason::Engine), (1, 5), false, true);
        check(failed(FailureReason::Engine), (2, 0), false, false);
        check(failed(FailureReason::Agent), (1, 0), false, false);
        check(AttemptResult::NoChange, (1, 0), false, false);
        check(AttemptResult::Cancelled, (1, 0), false, false);
        check(AttemptResult::Succeeded { commit: "c".into(), verified: true }, (1, 0), false, false);
    }

    #[test]
    fn the_pause_grows() {
        let pause = |lost| retry(&AttemptResult::Lost, Made { own: 0, lost }, 9, false).expect("it is tried again");
        assert!(pause(2) > pause(1));
    }
}
