//! What the controller wants here against what is here: which attempts start, stop, go on.
//!
//! A set is complete: an attempt that is not in it any more is stopped and taken down. Only an environment that is held
//! on purpose outlives its place in the set. Pure, so that every case stands in a table.

use std::collections::{BTreeMap, BTreeSet};

use devfleet_shared::assignment::Assignment;
use devfleet_shared::id::{AttemptId, Fence, JobId};

/// All that the host is to have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssignmentSet {
    /// Of two sets the one with the greater number is the newer.
    pub generation: u64,
    /// The attempts.
    pub wanted: BTreeMap<AttemptId, Wanted>,
    /// Attempts that are wanted in words that this host does not understand, and what it stumbles over. What is here of
    /// them goes on; what is not cannot begin.
    pub unreadable: BTreeMap<AttemptId, Unreadable>,
}

/// An attempt that cannot begin because its assignment cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The job.
    pub job: JobId,
    /// The ownership epoch.
    pub fence: Fence,
    /// What is wrong with the assignment.
    pub problem: String,
}

/// One attempt in a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What is to be done.
    pub assignment: Assignment,
    /// It is to be stopped, and its environment taken down.
    pub cancel: bool,
}

/// An attempt that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    /// Under which ownership epoch.
    pub fence: Fence,
    /// What becomes of it.
    pub activity: Activity,
}

/// What becomes of an attempt that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// A task works on it.
    Working,
    /// Its task was told to stop, or its result stands: it ends by itself.
    Ending,
    /// It is over, and its environment is held on purpose.
    Held,
    /// It has a ledger and no task.
    Orphaned,
}

/// What to do about one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing of it is here: begin it.
    Start,
    /// Stop it, take its environment down, report `cancelled`.
    Cancel,
    /// It goes on as it is.
    Keep,
    /// It has a ledger and no task: give it one, which goes on from the ledger.
    Adopt,
    /// Nobody wants it any more: stop it, take its environment down, report nothing new.
    Drop,
}

/// Decides what becomes of every attempt that is wanted or here. `None`: the set is older than the newest one seen.
///
/// `over` are attempts that ended here and whose end the controller knows; a set that was on its way still names them.
pub fn decide(
    newest: Option<u64>,
    set: &AssignmentSet,
    here: &BTreeMap<AttemptId, Here>,
    over: &BTreeSet<AttemptId>,
) -> Option<BTreeMap<AttemptId, Action>> {
    if newest.is_some_and(|newest| set.generation < newest) {
        return None;
    }
    let named = |attempt: &AttemptId| set.wanted.contains_key(attempt) || set.unreadable.contains_key(attempt);
    let unwanted = here.iter().filter(|(attempt, _)| !named(attempt));
    let unwanted = unwanted.map(|(attempt, here)| (attempt.clone(), without_place(here.activity)));
    let wanted = set.wanted.iter().filter(|(attempt, _)| !over.contains(attempt));
    let wanted = wanted.map(|(attempt, wanted)| (attempt.clone(), with_place(wanted, here.get(attempt))));
    Some(unwanted.chain(wanted).collect())
}

fn without_place(activity: Activity) -> Action {
    match activity {
        Activity::Working | Activity::Orphaned => Action::Drop,
        Activity::Ending | Activity::Held => Action::Keep,
    }
}

fn with_place(wanted: &Wanted, here: Option<&Here>) -> Action {
    let Some(here) = here else {
        // A cancelled attempt that never began here is begun nevertheless: it ends at once, and its end is reported.
        return Action::Start;
    };
    if wanted.assignment.fence > here.fence {
        return without_place(here.activity);
    }
    match (here.activity, wanted.cancel) {
        (Activity::Orphaned, _) => Action::Adopt,
        (Activity::Working | Activity::Held, true) => Action::Cancel,
        (Activity::Working | Activity::Held, false) | (Activity::Ending, _) => Action::Keep,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use devfleet_shared::assignment::{AgentKind, AgentSpec, Limits, Repository};
    use devfleet_shared::environment::{EnvironmentSpec, Recipe};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn assignment(attempt: &str, fence: u64) -> Assignment {
        Assignment {
            job: JobId::random(),
            attempt: attempt.parse().expect("attempt id"),
            fence: Fence(fence),
            project: "web".parse().expect("name"),
            task: "fix it".into(),
            plan: String::new(),
            environment: EnvironmentSpec { image: "app:1".into(), ..EnvironmentSpec::default() },
            recipe: Recipe::new("FROM scratch".into(), Vec::new(), String::new()),
            repository: Repository {
                url: "/srv/web.git".into(),
                base_commit: "a".repeat(40),
                base_branch: "main".into(),
                work_branch: "devfleet/x".into(),
            },
            agent: AgentSpec {
                name: "script".parse().expect("name"),
                kind: AgentKind::Script,
                command: "true".into(),
                variables: BTreeMap::new(),
                secrets: Vec::new(),
            },
            limits: Limits::default(),
            hold: Duration::ZERO,
        }
    }

    const ATTEMPT: &str = "a3f91c20";

    fn set(generation: u64, wanted: &[(&str, u64, bool)]) -> AssignmentSet {
        let wanted = wanted.iter().map(|(attempt, fence, cancel)| {
            let assignment = assignment(attempt, *fence);
            (assignment.attempt.clone(), Wanted { assignment, cancel: *cancel })
        });
        AssignmentSet { generation, wanted: wanted.collect(), ..AssignmentSet::default() }
    }

    fn check(wanted: Option<(u64, bool)>, here: Option<(u64, Activity)>, expected: Option<Action>) {
        let wanted: Vec<_> = wanted.into_iter().map(|(fence, cancel)| (ATTEMPT, fence, cancel)).collect();
        let id: AttemptId = ATTEMPT.parse().expect("attempt id");
        let here =
            here.map(|(fence, activity)| (id.clone(), Here { fence: Fence(fence), activity })).into_iter().collect();
        let actions = decide(Some(6), &set(7, &wanted), &here, &BTreeSet::new()).expect("newest set");
        assert_eq!(actions.get(&id).copied(), expected, "{wanted:?} {here:?}");
    }

    #[test]
    fn every_pair_of_wish_and_state_has_its_action() {
        use Activity::*;
        check(None, None, None);
        check(Some((5, false)), None, Some(Action::Start));
        check(Some((5, true)), None, Some(Action::Start));
        check(Some((5, false)), Some((5, Working)), Some(Action::Keep));
        check(Some((5, true)), Some((5, Working)), Some(Action::Cancel));
        check(Some((5, false)), Some((5, Ending)), Some(Action::Keep));
        check(Some((5, true)), Some((5, Ending)), Some(Action::Keep));
        check(Some((5, false)), Some((5, Held)), Some(Action::Keep));
        check(Some((5, true)), Some((5, Held)), Some(Action::Cancel));
        check(Some((5, false)), Some((5, Orphaned)), Some(Action::Adopt));
        check(Some((5, true)), Some((5, Orphaned)), Some(Action::Adopt));
        check(None, Some((5, Working)), Some(Action::Drop));
        check(None, Some((5, Orphaned)), Some(Action::Drop));
        check(None, Some((5, Ending)), Some(Action::Keep));
        check(None, Some((5, Held)), Some(Action::Keep));
        check(Some((6, false)), Some((5, Working)), Some(Action::Drop));
        check(Some((4, false)), Some((5, Working)), Some(Action::Keep));
    }

    #[test]
    fn an_older_set_is_not_acted_on_and_the_same_one_is() {
        let wanted = set(3, &[(ATTEMPT, 1, false)]);
        assert_eq!(decide(Some(4), &wanted, &BTreeMap::new(), &BTreeSet::new()), None);
        assert!(decide(Some(3), &wanted, &BTreeMap::new(), &BTreeSet::new()).is_some());
        assert!(decide(None, &wanted, &BTreeMap::new(), &BTreeSet::new()).is_some());
    }

    #[test]
    fn what_runs_goes_on_though_its_assignment_cannot_be_read_any_more() {
        let id: AttemptId = ATTEMPT.parse().expect("attempt id");
        let unreadable = Unreadable { job: JobId::random(), fence: Fence(1), problem: "newer words".into() };
        let set = AssignmentSet { unreadable: BTreeMap::from([(id.clone(), unreadable)]), ..AssignmentSet::default() };
        let here = BTreeMap::from([(id, Here { fence: Fence(1), activity: Activity::Working })]);
        assert_eq!(decide(None, &set, &here, &BTreeSet::new()), Some(BTreeMap::new()));
    }

    #[test]
    fn an_attempt_that_is_over_is_not_begun_again() {
        let over = BTreeSet::from([ATTEMPT.parse().expect("attempt id")]);
        let actions = decide(None, &set(1, &[(ATTEMPT, 1, false)]), &BTreeMap::new(), &over).expect("newest");
        assert!(actions.is_empty(), "{actions:?}");
    }

    fn any_here() -> impl Strategy<Value = BTreeMap<AttemptId, Here>> {
        let activity = prop_oneof![
            Just(Activity::Working),
            Just(Activity::Ending),
            Just(Activity::Held),
            Just(Activity::Orphaned)
        ];
        prop::collection::btree_map(0..6u8, (1..4u64, activity), 0..6).prop_map(|here| {
            let one = |(id, (fence, activity)): (u8, (u64, Activity))| {
                (format!("0000000{id}").parse().expect("attempt id"), Here { fence: Fence(fence), activity })
            };
            here.into_iter().map(one).collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_wanted_lives_and_what_is_not_goes(
            here in any_here(),
            wanted in prop::collection::btree_map(0..6u8, (1..4u64, any::<bool>()), 0..6),
        ) {
            let wanted: Vec<_> = wanted.into_iter().map(|(id, (fence, cancel))| (format!("0000000{id}"), fence, cancel)).collect();
            let borrowed: Vec<_> = wanted.iter().map(|(id, fence, cancel)| (id.as_str(), *fence, *cancel)).collect();
            let set = set(1, &borrowed);
            let actions = decide(None, &set, &here, &BTreeSet::new()).expect("newest");
            for (attempt, action) in &actions {
                // Starting is only for what is not here: no attempt ever gets a second task.
                prop_assert_eq!(*action == Action::Start, !here.contains_key(attempt));
                if *action == Action::Drop {
                    let fence = here[attempt].fence;
                    prop_assert!(set.wanted.get(attempt).is_none_or(|wanted| wanted.assignment.fence > fence));
                }
            }
            for attempt in set.wanted.keys().chain(here.keys()) {
                prop_assert!(actions.contains_key(attempt));
            }
            // Applied, the set asks for nothing more.
            let after: BTreeMap<_, _> = actions.iter().filter_map(|(attempt, action)| {
                let fence = set.wanted.get(attempt).map(|wanted| wanted.assignment.fence);
                let activity = match action {
                    Action::Start | Action::Adopt => Activity::Working,
                    Action::Cancel | Action::Drop => Activity::Ending,
                    Action::Keep => here[attempt].activity,
                };
                let fence = here.get(attempt).map(|here| here.fence).or(fence)?;
                Some((attempt.clone(), Here { fence, activity }))
            }).collect();
            let again = decide(None, &set, &after, &BTreeSet::new()).expect("newest");
            let cancelled = |attempt: &AttemptId| set.wanted.get(attempt).is_some_and(|wanted| wanted.cancel);
            prop_assert!(again.iter().all(|(attempt, action)| *action == Action::Keep || cancelled(attempt)), "{:?}", again);
        }
    }
}
