//! Which attempts deserve another. A decider.
//!
//! Only what the machinery did wrong is tried again: a lost host, a full disk, a broken engine. Work that failed is a
//! result, and trying it again would spend a person's budget on hope.

use std::time::Duration;

use devfleet_shared::attempt::{AttemptResult, FailureReason};
use devfleet_shared::backoff::Backoff;

/// So often hosts may refuse a job before that is a result: more means that planning and hosts disagree.
const REFUSALS_MOST: u32 = 50;

/// What a job's attempts so far came to.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// Attempts that count against the project's `max_attempts`, with the one that just ended.
    pub charged: u32,
    /// Attempts that their hosts did not take on.
    pub refused: u32,
}

/// Says whether an attempt that ended so was not taken on by its host: it does not count.
pub fn is_refusal(result: &AttemptResult) -> bool {
    matches!(result, AttemptResult::Failed(failure) if failure.reason == FailureReason::NoRoom)
}

/// Says whether a job whose attempt ended so gets another: the pause before it, or nothing.
pub fn retry(result: &AttemptResult, made: Made, max_attempts: u32, cancelled: bool) -> Option<Duration> {
    let deserves = match result {
        AttemptResult::Lost => true,
        AttemptResult::Failed(failure) => failure.reason.is_retryable(),
        AttemptResult::Succeeded { .. } | AttemptResult::NoChange | AttemptResult::Cancelled => false,
    };
    let pace = Backoff { first: Duration::from_secs(5), ceiling: Duration::from_secs(300) };
    let allowed = if is_refusal(result) { made.refused <= REFUSALS_MOST } else { made.charged < max_attempts };
    (deserves && !cancelled && allowed).then(|| pace.pause(made.charged + made.refused, 1.0))
}

#[cfg(test)]
mod tests {
    use devfleet_shared::attempt::Failure;

    use super::*;

    fn made(charged: u32) -> Made {
        Made { charged, refused: 0 }
    }

    fn check(result: AttemptResult, charged: u32, cancelled: bool, expected: bool) {
        let made = made(charged);
        assert_eq!(retry(&result, made, 2, cancelled).is_some(), expected, "{result:?} {made:?} {cancelled}");
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
    fn a_refusal_does_not_count_but_does_not_go_on_for_ever() {
        let refused = failed(FailureReason::NoRoom);
        assert!(retry(&refused, Made { charged: 1, refused: 1 }, 1, false).is_some());
        assert!(retry(&refused, Made { charged: 0, refused: REFUSALS_MOST + 1 }, 9, false).is_none());
        assert!(retry(&AttemptResult::Lost, Made { charged: 1, refused: 40 }, 2, false).is_some());
    }

    #[test]
    fn the_pause_grows() {
        let pause = |charged| retry(&AttemptResult::Lost, made(charged), 9, false).expect("it is tried again");
        assert!(pause(2) > pause(1));
    }
}
