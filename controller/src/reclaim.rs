//! Gives the jobs of silent hosts to others. Only the leader does it.
//!
//! view, timer ──▶ tick: who has no session, and since when was that seen ─▶ expiry ─▶ take, by compare-and-swap
//!
//! Since when a host is silent is what this leader saw itself, by its own boot clock: a new leader counts anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_shared::clock::{Boot, Clock};
use devfleet_shared::error::Chain;
use devfleet_shared::id::HostId;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::expiry::{Sightings, expired};
use crate::jobs::{Claim, Jobs};
use crate::leader::{LeadOnly, Term};
use crate::logs::JobLogs;
use crate::view::{JobRecords, View};

/// The loop looks again after this time even if nothing woke it.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many jobs are taken at one look: a mistake spreads slowly.
const AT_ONCE: usize = 20;

/// The loop and what it works with.
pub struct Reclaim {
    /// The records.
    pub view: Arc<View>,
    /// Moves jobs.
    pub jobs: Arc<Jobs>,
    /// Job output: what is lost is not waited for.
    pub logs: JobLogs,
    /// Tells the time.
    pub clock: Clock,
    /// How long a silent host keeps its jobs.
    pub grace: Duration,
}

/// Since when hosts were seen without a session, and whether the brake is on.
#[derive(Debug, Default)]
pub struct Seen {
    silent: BTreeMap<HostId, Boot>,
    braked: bool,
    /// When the brake was on for the last time.
    last_braked: Option<Boot>,
}

#[async_trait]
impl LeadOnly for Reclaim {
    async fn run(&self, term: Term, shutdown: CancellationToken) {
        self.view.reach(term.revision).await;
        let mut records = self.view.changed();
        let mut seen = Seen::default();
        loop {
            self.tick(&term, &mut seen).await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = records.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }
}

impl Reclaim {
    /// Looks once, and takes what is to be taken. Returns how many jobs that were.
    pub async fn tick(&self, term: &Term, seen: &mut Seen) -> usize {
        let (sightings, owned) = self.look(seen);
        let expiry = expired(&sightings, self.grace);
        if expiry.brake.is_some() {
            seen.last_braked = Some(sightings.now);
        }
        if expiry.brake.is_some() != seen.braked {
            seen.braked = expiry.brake.is_some();
            match expiry.brake {
                Some((silent, hosts)) => {
                    warn!(silent, hosts, "most hosts are silent at once, their jobs stay theirs");
                }
                None => info!("enough hosts are heard again, silent ones may lose their jobs"),
            }
        }
        let due = owned.into_iter().filter(|(claim, _)| expiry.expired.contains(&claim.host));
        let mut taken = 0;
        for (claim, max_attempts) in due.take(AT_ONCE) {
            match self.jobs.reclaim(term, &claim, max_attempts).await {
                Ok(Some(revision)) => {
                    warn!(job = %claim.job, attempt = %claim.attempt, host = %claim.host, "an attempt is lost with its host");
                    if let Err(error) = self.logs.complete(&claim.job, &claim.attempt).await {
                        warn!(attempt = %claim.attempt, error = %Chain(&error), "the log of a lost attempt could not be closed");
                    }
                    self.view.reach(revision).await;
                    taken += 1;
                }
                // The host is back, or the job moved: the next look sees it.
                Ok(None) => {}
                Err(error) => warn!(job = %claim.job, error = %Chain(&error), "a job could not be taken from its host"),
            }
        }
        taken
    }

    /// Notes who has no session, and lists what they own.
    fn look(&self, seen: &mut Seen) -> (Sightings, Vec<(Claim, u32)>) {
        let now = self.clock.boot();
        let records = self.view.read();
        let owned: Vec<JobRecords> = records.active_jobs().filter(|job| job.owner.is_some()).collect();
        let owners = owned.iter().filter_map(|job| job.owner.as_ref().map(|(owner, _)| owner.host.clone()));
        let known = records.hosts.keys().cloned().chain(owners);
        let silent = known.filter(|host| !records.live.contains_key(host));
        seen.silent = silent.map(|host| (host.clone(), seen.silent.get(&host).copied().unwrap_or(now))).collect();
        let silent = seen.silent.clone();
        let sightings = Sightings { now, live: records.live.len(), silent, braked: seen.last_braked };
        let claims = owned.iter().filter_map(|job| {
            let (owner, fence) = job.owner.clone()?;
            let max_attempts = records.projects.get(&job.spec.project).map_or(1, |project| project.config.max_attempts);
            let claim = Claim { host: owner.host, job: job.spec.id.clone(), attempt: owner.attempt, fence };
            Some((claim, max_attempts))
        });
        (sightings, claims.collect())
    }
}
