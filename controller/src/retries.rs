//! Which attempts deserve another. A decider.
//!
//! Only what the machinery did wrong is tried again: a lost host, a full disk, a broken engine. Work that failed is a
//! result, and trying it again would spend a person's budget on hope.

use std::time::Duration;

use devfleet_shared::attempt::AttemptResult;
use devfleet_shared::backoff::Backoff;

/// Says whether a job whose attempt ended so gets another: the pause before it, or nothing.
pub fn retry(result: &AttemptResult, attempts_made: u32, max_attempts: u32, cancelled: bool) -> Option<Duration> {
    let deserves = match result {
        AttemptResult::Lost => true,
        AttemptResult::Failed(failure) => failure.reason.is_retryable(),
        AttemptResult::Succeeded { .. } | AttemptResult::NoChange | AttemptResult::Cancelled => false,
    };
    let pace = Backoff { first: Duration::from_secs(5), ceiling: Duration::from_secs(300) };
    (deserves && !cancelled && attempts_made < max_attempts).then(|| pace.pause(attempts_made, 1.0))
}

#[cfg(test)]
mod tests {
    use devfleet_shared::attempt::{Failure, FailureReason};

    use super::*;

    fn check(result: AttemptResult, made: u32, cancelled: bool, expected: bool) {
        assert_eq!(retry(&result, made, 2, cancelled).is_some(), expected, "{result:?} {made} {cancelled}");
    }

    fn failed(reason: FailureReason) -> AttemptResult {
        AttemptResult::Failed(Failure { reason, message: String::new() })
    }

    #[test]
    fn only_the_machinerys_faults_are_tried_again_and_only_so_often() {
        check(AttemptResult::Lost, 1, false, true);
        check(AttemptResult::Lost, 2, false, false);
        check(AttemptResult::Lost, 1, true, false);
        check(failed(FailureReason::Engine), 1, false, true);
        check(failed(FailureReason::Agent), 1, false, false);
        check(AttemptResult::NoChange, 1, false, false);
        check(AttemptResult::Cancelled, 1, false, false);
        check(AttemptResult::Succeeded { commit: "c".into(), verified: true }, 1, false, false);
    }

    #[test]
    fn the_pause_grows() {
        let pause = |made| retry(&AttemptResult::Lost, made, 9, false).expect("it is tried again");
        assert!(pause(2) > pause(1));
    }
}
