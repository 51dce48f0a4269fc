//! Which attempts deserve another. A decider.
//!
//! Only what the machinery did wrong is tried again: a lost host, a full disk, a broken engine. Work that failed is a
//! result, and trying it again would spend a person's budget on hope.

use std::time::Duration;

use devfleet_shared::attempt::{AttemptResult, FailureReason};
use devfleet_shared::backoff::Backoff;

use crate::store::records::AttemptRecord;

/// So often hosts may refuse a job before that is a result: more means that planning and hosts disagree.
const REFUSALS_MOST: u32 = 50;
/// So often a job may lose its host before that is a result.
const LOSSES_MOST: u32 = 5;

/// What a job's attempts so far came to, with the one that just ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Attempts that count against the project's `max_attempts`.
    pub charged: u32,
    /// Attempts that their hosts did not take on.
    pub refused: u32,
    /// Attempts that were lost with their hosts: the job did nothing wrong.
    pub lost: u32,
}

impl Made {
    /// Counts attempts.
    pub fn of(attempts: &[AttemptRecord]) -> Made {
        let count = |is: fn(&AttemptResult) -> bool| {
            attempts.iter().filter(|attempt| attempt.result().is_some_and(is)).count() as u32
        };
        let (refused, lost) = (count(is_refusal), count(|result| *result == AttemptResult::Lost));
        let recalled = |attempt: &&AttemptRecord| {
            attempt.recalled.is_some() && attempt.result() == Some(&AttemptResult::Cancelled)
        };
        let recalled = attempts.iter().filter(recalled).count() as u32;
        Made { charged: attempts.len() as u32 - refused - lost - recalled, refused, lost }
    }
}

/// Says whether an attempt that ended so was not taken on by its host: it does not count.
pub fn is_refusal(result: &AttemptResult) -> bool {
    matches!(result, AttemptResult::Failed(failure) if failure.reason == FailureReason::NoRoom)
}

/// Who wanted an attempt to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Nobody.
    ByNobody,
    /// A person, who cancelled the job.
    ByAPerson,
    /// The fleet, so that another host can do the job.
    ForAnotherHost,
}

/// Says whether a job whose attempt ended so gets another: the pause before it, or nothing.
pub fn retry(result: &AttemptResult, made: Made, max_attempts: u32, stopped: Stopped) -> Option<Duration> {
    let cancelled = stopped == Stopped::ByAPerson;
    if stopped == Stopped::ForAnotherHost && matches!(result, AttemptResult::Cancelled | AttemptResult::Lost) {
        return Some(Duration::ZERO);
    }
    let deserves = match result {
        AttemptResult::Lost => true,
        AttemptResult::Failed(failure) => failure.reason.is_retryable(),
        AttemptResult::Succeeded { .. } | AttemptResult::NoChange | AttemptResult::Cancelled => false,
    };
    let pace = Backoff { first: Duration::from_secs(5), ceiling: Duration::from_secs(300) };
    let allowed = match result {
        AttemptResult::Lost => made.lost <= LOSSES_MOST,
        other if is_refusal(other) => made.refused <= REFUSALS_MOST,
        _ => made.charged < max_attempts,
    };
    (deserves && !cancelled && allowed).then(|| pace.pause(made.charged + made.refused + made.lost, 1.0))
}

#[cfg(test)]
mod tests {
    use devfleet_shared::attempt::Failure;

    use super::*;

    fn check(result: AttemptResult, (charged, lost): (u32, u32), cancelled: bool, expected: bool) {
        let made = Made { charged, refused: 0, lost };
        let stopped = if cancelled { Stopped::ByAPerson } else { Stopped::ByNobody };
        assert_eq!(retry(&result, made, 2, stopped).is_some(), expected, "{result:?} {made:?} {cancelled}");
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
    fn a_refusal_does_not_count_but_does_not_go_on_for_ever() {
        let refused = failed(FailureReason::NoRoom);
        assert!(retry(&refused, Made { charged: 0, refused: 1, lost: 0 }, 1, Stopped::ByNobody).is_some());
        assert!(
            retry(&refused, Made { charged: 0, refused: REFUSALS_MOST + 1, lost: 0 }, 9, Stopped::ByNobody).is_none()
        );
        assert!(retry(&AttemptResult::Lost, Made { charged: 1, refused: 40, lost: 1 }, 2, Stopped::ByNobody).is_some());
    }

    #[test]
    fn an_attempt_that_left_its_host_for_another_is_followed_at_once_and_not_charged() {
        use devfleet_shared::attempt::Phase;
        use devfleet_shared::clock::Timestamp;
        use devfleet_shared::id::{AttemptId, HostId};
        let made = Made { charged: 9, refused: 0, lost: 9 };
        for result in [AttemptResult::Cancelled, AttemptResult::Lost] {
            assert_eq!(retry(&result, made, 1, Stopped::ForAnotherHost), Some(Duration::ZERO));
            assert_eq!(retry(&result, made, 1, Stopped::ByAPerson), None);
        }
        // What failed by itself meanwhile is judged as ever.
        assert_eq!(retry(&failed(FailureReason::Agent), made, 99, Stopped::ForAnotherHost), None);
        let mut attempt = AttemptRecord::assigned(AttemptId::random(), HostId::random(), "b".into(), Timestamp(1));
        attempt.phase = Phase::Ended(AttemptResult::Cancelled);
        assert_eq!(Made::of(&[attempt.clone()]).charged, 1);
        attempt.recalled = Some("the host is draining".into());
        assert_eq!(Made::of(&[attempt]), Made { charged: 0, refused: 0, lost: 0 });
    }

    #[test]
    fn the_pause_grows() {
        let pause = |lost| {
            retry(&AttemptResult::Lost, Made { charged: 0, refused: 0, lost }, 9, Stopped::ByNobody).expect("again")
        };
        assert!(pause(2) > pause(1));
    }
}
