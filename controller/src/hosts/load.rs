//! What is on each host, as the records have it. A decider.

use std::collections::BTreeMap;

use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::{AttemptId, HostId};

use crate::jobs::Claim;
use crate::quarantine::{self, Rules, Standing};
use crate::store::records::HostRecord;
use crate::store::records::hosts::{AfterDrain, Wish};
use crate::view::Records;

/// What is on a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Load {
    /// Every attempt that owns its job, until its environment is gone.
    pub attempts: Vec<AttemptId>,
    /// Those of them that have no result yet and are not to be stopped.
    pub running: u64,
    /// Those that are being stopped or cleared away.
    pub stopping: u64,
    /// Those whose environments are held for people.
    pub held: u64,
    /// When those without a result were given to the host.
    pub under_way: Vec<Timestamp>,
}

/// Returns what is on each host that has something.
pub fn loads(records: &Records) -> BTreeMap<HostId, Load> {
    let mut loads: BTreeMap<HostId, Load> = BTreeMap::new();
    for job in records.active_jobs() {
        let Some((owner, _)) = &job.owner else { continue };
        let load = loads.entry(owner.host.clone()).or_default();
        load.attempts.push(owner.attempt.clone());
        let Some(attempt) = job.state.attempts.iter().find(|attempt| attempt.id == owner.attempt) else { continue };
        let stops = attempt.recalled.is_some() || job.state.cancelled_by.is_some();
        match (attempt.result(), attempt.held_until) {
            (Some(_), Some(_)) => load.held += 1,
            (Some(_), None) => load.stopping += 1,
            (None, _) if stops => load.stopping += 1,
            (None, _) => load.running += 1,
        }
        if attempt.result().is_none() {
            load.under_way.push(attempt.assigned);
        }
    }
    loads
}

/// Says where a host stands after what became of its attempts.
pub fn standing(records: &Records, host: &HostRecord, load: &Load, rules: &Rules, now: Timestamp) -> Standing {
    quarantine::standing(records.outcomes(&host.id), &load.under_way, host.desired.resumed, rules, now)
}

/// Lists the attempts that are to leave hosts whose drain is past its deadline, and why.
pub fn to_recall(records: &Records, now: Timestamp) -> Vec<(Claim, String)> {
    let over = |host: &HostRecord| match host.desired.wish {
        Wish::Draining { deadline, then: AfterDrain::Requeue } if deadline <= now => host.desired.closed(),
        _ => None,
    };
    let due: BTreeMap<_, _> =
        records.hosts.values().filter_map(|host| Some((&host.id, (over(host)?, &host.name)))).collect();
    if due.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for job in records.active_jobs() {
        let Some((owner, fence)) = &job.owner else { continue };
        let Some((why, name)) = due.get(&owner.host) else { continue };
        let attempt = job.state.attempts.iter().find(|attempt| attempt.id == owner.attempt);
        if attempt.is_some_and(|attempt| attempt.result().is_none() && attempt.recalled.is_none()) {
            let claim = Claim {
                host: owner.host.clone(),
                job: job.spec.id.clone(),
                attempt: owner.attempt.clone(),
                fence: *fence,
            };
            found.push((claim, format!("host {name} is {why}")));
        }
    }
    found
}
