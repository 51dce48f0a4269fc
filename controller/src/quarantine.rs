//! Which hosts get no new jobs because they failed one after the other, and when one is tried again. A decider.
//!
//! ```text
//! sound ── jobs in a row fail through its fault ─▶ quarantined ── the pause is over ─▶ probed with one job
//!   ▲                                                   ▲                               │
//!   ╰──── a job that was given after the pause works ───┼───────────────────────────────┤
//!                                                       ╰──── fails: a longer pause ────╯
//! ```
//! Nothing is stored: all of it follows from what became of the attempts that a host had.

use std::collections::BTreeSet;
use std::time::Duration;

use devfleet_shared::attempt::{AttemptResult, FailureReason};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::{JobId, ProjectName};

/// When a host is put in quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// After how many jobs in a row that failed through its fault; 0: never.
    pub after: u32,
    /// Within which time they failed.
    pub within: Duration,
    /// How long it gets nothing; doubled each time that a probing job fails.
    pub pause: Duration,
    /// The longest such pause.
    pub longest: Duration,
}

/// What an attempt says of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The host did its part, whatever came of the work.
    Works,
    /// The host failed.
    HostFailed(FailureReason),
    /// The host failed or the project is wrong: of each project it counts once.
    EitherFailed(FailureReason),
}

/// What became of an attempt, as far as its host goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// When it was given to the host.
    pub assigned: Timestamp,
    /// When its result stood.
    pub finished: Timestamp,
    /// The job.
    pub job: JobId,
    /// Its project.
    pub project: ProjectName,
    /// What it says of the host.
    pub verdict: Verdict,
}

/// Where a host stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It gets jobs. So many failed there lately through its fault, and none has worked since.
    Sound {
        /// How many.
        failures: u32,
    },
    /// It gets none.
    Quarantined {
        /// Until when; then one is tried.
        until: Timestamp,
        /// Why, for people.
        why: String,
    },
    /// It gets one job, which decides.
    Probed {
        /// Why it was put in quarantine.
        why: String,
    },
}

/// Says what a result says of the host; `None`: nothing.
pub fn verdict(result: &AttemptResult) -> Option<Verdict> {
    use FailureReason::*;
    let failure = match result {
        AttemptResult::Succeeded { .. } | AttemptResult::NoChange => return Some(Verdict::Works),
        AttemptResult::Cancelled | AttemptResult::Lost => return None,
        AttemptResult::Failed(failure) => failure.reason,
    };
    match failure {
        Engine | DiskFull | Internal => Some(Verdict::HostFailed(failure)),
        ImagePull | ImageBuild | ServiceNotReady | Checkout => Some(Verdict::EitherFailed(failure)),
        Setup | Agent | Verify | Collect | Push | MergeRequest => Some(Verdict::Works),
        Derivation | Forge | ImageUnusable | Timeout | NoRoom | Secret => None,
    }
}

/// What a failure is counted by, so that neither one job nor one wrong project brings a host into quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cause<'a> {
    Job(&'a JobId),
    Project(&'a ProjectName),
}

/// What a host's history comes to so far.
#[derive(Default)]
struct Course<'a> {
    faults: Vec<(Timestamp, Cause<'a>, FailureReason)>,
    /// Since when a pause is over or will be, and how many there were.
    paused: Option<(Timestamp, u32)>,
}

impl<'a> Course<'a> {
    fn learn(&mut self, outcome: &'a Outcome, rules: &Rules) {
        let (cause, reason) = match outcome.verdict {
            Verdict::Works => {
                // What was given before says nothing of how the host is since.
                if self.paused.is_none_or(|(until, _)| outcome.assigned >= until) {
                    self.faults.retain(|(at, ..)| *at > outcome.assigned && self.paused.is_none());
                    self.paused = None;
                }
                return;
            }
            Verdict::HostFailed(reason) => (Cause::Job(&outcome.job), reason),
            Verdict::EitherFailed(reason) => (Cause::Project(&outcome.project), reason),
        };
        self.faults.push((outcome.finished, cause, reason));
        let pace = Backoff { first: rules.pause, ceiling: rules.longest };
        match self.paused {
            Some((until, pauses)) if outcome.assigned >= until => {
                self.paused = Some((outcome.finished.after(pace.pause(pauses + 1, 1.0)), pauses + 1));
            }
            Some(_) => {}
            None => {
                self.faults.retain(|(at, ..)| outcome.finished.since(*at) <= rules.within);
                let causes: BTreeSet<_> = self.faults.iter().map(|(_, cause, _)| *cause).collect();
                if rules.after > 0 && causes.len() as u64 >= u64::from(rules.after) {
                    self.paused = Some((outcome.finished.after(pace.pause(1, 1.0)), 1));
                }
            }
        }
    }

    fn why(&self) -> String {
        let classes: BTreeSet<_> = self.faults.iter().map(|(_, _, reason)| reason.name()).collect();
        let classes: Vec<_> = classes.into_iter().collect();
        format!("{} attempts failed through its own fault ({})", self.faults.len(), classes.join(", "))
    }
}

/// Decides where a host stands: from what became of its attempts, oldest end first; when those under way were given to
/// it; and since when its history counts.
pub fn standing<'a>(
    history: impl IntoIterator<Item = &'a Outcome>,
    under_way: &[Timestamp],
    resumed: Timestamp,
    rules: &Rules,
    now: Timestamp,
) -> Standing {
    let mut course = Course::default();
    if rules.after > 0 {
        history.into_iter().filter(|outcome| outcome.finished > resumed).for_each(|one| course.learn(one, rules));
    }
    match course.paused {
        None => {
            let lately = course.faults.iter().filter(|(at, ..)| now.since(*at) <= rules.within);
            Standing::Sound { failures: lately.count() as u32 }
        }
        Some((until, _)) if now < until => Standing::Quarantined { until, why: course.why() },
        Some((until, _)) if under_way.iter().any(|assigned| *assigned >= until) => {
            Standing::Quarantined { until, why: format!("{}; one job is tried on it now", course.why()) }
        }
        Some(_) => Standing::Probed { why: course.why() },
    }
}

#[cfg(test)]
mod tests {
    use devfleet_shared::attempt::Failure;

    use super::*;

    const RULES: Rules = Rules {
        after: 3,
        within: Duration::from_secs(3_600),
        pause: Duration::from_secs(300),
        longest: Duration::from_secs(1_000),
    };

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000)
    }

    /// An attempt of a job by number, given and finished in these seconds.
    fn outcome(job: u64, (assigned, finished): (u64, u64), verdict: Verdict) -> Outcome {
        let job: JobId = uuid::Uuid::from_u128(job.into()).to_string().parse().expect("an id");
        let project = "web".parse().expect("a name");
        Outcome { assigned: at(assigned), finished: at(finished), job, project, verdict }
    }

    fn engine(job: u64, finished: u64) -> Outcome {
        outcome(job, (finished - 1, finished), Verdict::HostFailed(FailureReason::Engine))
    }

    fn three() -> Vec<Outcome> {
        vec![engine(1, 10), engine(2, 20), engine(3, 30)]
    }

    fn check(history: &[Outcome], under_way: &[u64], now: u64, expected: &str) {
        let under_way: Vec<_> = under_way.iter().map(|assigned| at(*assigned)).collect();
        let told = match standing(history, &under_way, at(0), &RULES, at(now)) {
            Standing::Sound { failures } => format!("sound {failures}"),
            Standing::Quarantined { until, .. } => format!("until {}", until.0 / 1_000),
            Standing::Probed { .. } => "probed".to_owned(),
        };
        assert_eq!(told, expected, "{history:?} {under_way:?} at {now}");
    }

    #[test]
    fn distinct_jobs_in_a_row_count_and_one_that_works_ends_the_row() {
        check(&[], &[], 100, "sound 0");
        check(&three()[..2], &[], 100, "sound 2");
        check(&three(), &[], 100, "until 330");
        check(&[engine(1, 10), engine(1, 20), engine(1, 30)], &[], 100, "sound 3");
        let works = outcome(9, (21, 25), Verdict::Works);
        check(&[engine(1, 10), engine(2, 20), works, engine(3, 30)], &[], 100, "sound 1");
        // What ran before the faults began says nothing of the host since.
        let long = outcome(9, (1, 25), Verdict::Works);
        check(&[engine(1, 10), engine(2, 20), long, engine(3, 30)], &[], 100, "until 330");
        check(&[engine(1, 10), engine(2, 20), engine(3, 3_700)], &[], 3_700, "sound 1");
        check(&three()[..2], &[], 9_000, "sound 0");
    }

    #[test]
    fn a_wrong_project_alone_brings_no_host_into_quarantine() {
        let pull = |job| outcome(job, (1, job * 10), Verdict::EitherFailed(FailureReason::ImagePull));
        check(&[pull(1), pull(2), pull(3), pull(4)], &[], 100, "sound 4");
        check(&[pull(1), engine(2, 20), engine(3, 30)], &[], 100, "until 330");
    }

    #[test]
    fn after_the_pause_one_job_decides_and_each_failure_doubles_the_pause() {
        let mut history = three();
        check(&history, &[], 329, "until 330");
        check(&history, &[], 330, "probed");
        check(&history, &[20], 330, "probed");
        check(&history, &[331], 340, "until 330");
        // One that was given before the quarantine and works does not lift it.
        history.push(outcome(8, (5, 300), Verdict::Works));
        check(&history, &[], 301, "until 330");
        history.push(outcome(4, (331, 340), Verdict::HostFailed(FailureReason::DiskFull)));
        check(&history, &[], 341, "until 940");
        history.push(outcome(5, (941, 950), Verdict::HostFailed(FailureReason::Engine)));
        check(&history, &[], 951, "until 1950");
        let why = standing(&history, &[], at(0), &RULES, at(951));
        assert!(
            matches!(&why, Standing::Quarantined { why, .. } if why == "5 attempts failed through its own fault (disk-full, engine)"),
            "{why:?}"
        );
        history.push(outcome(6, (1_951, 1_960), Verdict::Works));
        check(&history, &[], 1_961, "sound 0");
    }

    #[test]
    fn a_resumed_host_begins_anew_and_zero_means_never() {
        assert_eq!(standing(&three(), &[], at(30), &RULES, at(100)), Standing::Sound { failures: 0 });
        let never = Rules { after: 0, ..RULES };
        assert_eq!(standing(&three(), &[], at(0), &never, at(100)), Standing::Sound { failures: 0 });
    }

    #[test]
    fn every_result_says_something_or_nothing_of_the_host() {
        let failed = |reason| verdict(&AttemptResult::Failed(Failure { reason, message: String::new() }));
        assert_eq!(verdict(&AttemptResult::NoChange), Some(Verdict::Works));
        assert_eq!((verdict(&AttemptResult::Lost), verdict(&AttemptResult::Cancelled)), (None, None));
        let of = |kind: fn(&Verdict) -> bool| {
            FailureReason::ALL.into_iter().filter(|reason| failed(*reason).as_ref().is_some_and(kind)).count()
        };
        assert_eq!(of(|verdict| matches!(verdict, Verdict::HostFailed(_))), 3);
        assert_eq!(of(|verdict| matches!(verdict, Verdict::EitherFailed(_))), 4);
        assert_eq!(of(|verdict| *verdict == Verdict::Works), 6);
    }
}
