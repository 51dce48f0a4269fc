//! Whose jobs are given to others, because their host has been silent for too long. A decider.
//!
//! A host that is silent is suspected and no more: it may be cut off and still run what it has. By the time its jobs go
//! to others it has frozen them by its own clock. When most hosts fall silent at once, the fault is more likely on this
//! side, and nothing is taken from anybody.

use std::collections::BTreeMap;
use std::time::Duration;

use devfleet_shared::clock::Boot;
use devfleet_shared::id::HostId;

/// Of how many hosts on their silence at once is suspicious.
const FEW: usize = 3;
/// Which share of the hosts must not be silent at once, in percent. The share at which Kubernetes stops evictions.
const MOST: usize = 55;
/// An outage that lasts longer than this is believed.
const BELIEVED: Duration = Duration::from_secs(600);

/// What the leader saw of the hosts.
#[derive(Debug, Clone, Default)]
pub struct Sightings {
    /// Now, on the leader's boot clock.
    pub now: Boot,
    /// How many hosts have a session.
    pub live: usize,
    /// Since when the others were seen without one, during this term.
    pub silent: BTreeMap<HostId, Boot>,
    /// When most hosts were silent at once for the last time, during this term.
    pub braked: Option<Boot>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expiry {
    /// Hosts whose jobs go to others.
    pub expired: Vec<HostId>,
    /// Most hosts are silent at once: how many, of how many. Nothing is taken from anybody.
    pub brake: Option<(usize, usize)>,
}

/// Decides whose jobs are given to others.
pub fn expired(sightings: &Sightings, grace: Duration) -> Expiry {
    let for_how_long = |since: &Boot| sightings.now.0.saturating_sub(since.0);
    let recent = sightings.silent.values().filter(|since| for_how_long(since) < BELIEVED).count();
    let all = sightings.live + recent;
    if all >= FEW && recent * 100 >= all * MOST {
        return Expiry { expired: Vec::new(), brake: Some((recent, all)) };
    }
    // What ended for some is about to end for others: they get the whole time of grace from then on.
    let counted = |since: &Boot| for_how_long(&sightings.braked.map_or(*since, |braked| braked.max(*since)));
    let over = sightings.silent.iter().filter(|(_, since)| counted(since) >= grace);
    Expiry { expired: over.map(|(host, _)| host.clone()).collect(), brake: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(20);

    fn check(live: usize, silent_s: &[u64], expired_count: usize, brake: Option<(usize, usize)>) {
        let now = Boot(Duration::from_secs(10_000));
        let since = |seconds: &u64| (HostId::random(), Boot(Duration::from_secs(10_000 - seconds)));
        let sightings = Sightings { now, live, silent: silent_s.iter().map(since).collect(), braked: None };
        let expiry = expired(&sightings, GRACE);
        assert_eq!((expiry.expired.len(), expiry.brake), (expired_count, brake), "{live} live, silent {silent_s:?}");
    }

    #[test]
    fn a_host_keeps_its_jobs_for_the_time_of_grace() {
        check(2, &[19], 0, None);
        check(2, &[20], 1, None);
        check(0, &[20], 1, None);
        check(1, &[20], 1, None);
        check(9, &[25, 5], 1, None);
    }

    #[test]
    fn when_most_hosts_fall_silent_at_once_nobody_loses_anything() {
        check(1, &[30, 30], 0, Some((2, 3)));
        check(45, &[30; 55], 0, Some((55, 100)));
        check(46, &[30; 54], 54, None);
    }

    #[test]
    fn after_most_were_silent_those_that_still_are_have_the_time_of_grace_anew() {
        let at = |seconds| Boot(Duration::from_secs(seconds));
        let silent = BTreeMap::from([(HostId::random(), at(9_900))]);
        let after = |braked| {
            let sightings = Sightings { now: at(10_000), live: 2, silent: silent.clone(), braked: Some(at(braked)) };
            expired(&sightings, GRACE).expired.len()
        };
        assert_eq!((after(9_981), after(9_980), after(9_000)), (0, 1, 1));
    }

    #[test]
    fn a_silence_that_lasts_is_believed_and_does_not_brake_for_others() {
        check(0, &[601, 601, 601], 3, None);
        check(2, &[601, 601, 601, 601, 25], 5, None);
    }
}
