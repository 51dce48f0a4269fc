//! What operators want of hosts, and how hosts are shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use devfleet_proto::v1;
use devfleet_shared::error::Chain;
use devfleet_shared::id::HostId;
use tonic::{Code, Status};
use tracing::info;

use super::fleet::FleetService;
use super::{invalid, record_status, refusal, show};
use crate::hosts::load::{Load, loads, standing};
use crate::hosts::{HostError, Hosts, Removal};
use crate::store::Revision;
use crate::store::records::HostRecord;
use crate::store::records::hosts::{AfterDrain, Desired, Wish};

/// The longest reason that is kept, in characters.
const REASON_CHARS: usize = 500;
/// The longest deadline of a drain.
const DRAIN_MOST: Duration = Duration::from_secs(30 * 24 * 3_600);
/// The most labels of a host.
const LABELS_MOST: usize = 64;

impl FleetService {
    /// Returns what changes hosts.
    pub(crate) fn hosts(&self) -> Hosts {
        Hosts { store: self.store.clone(), clock: self.clock.clone() }
    }

    pub(super) fn list(&self) -> Vec<v1::Host> {
        let ids: Vec<HostId> = self.view.read().hosts.keys().cloned().collect();
        let loads = loads(&self.view.read());
        ids.iter().filter_map(|id| self.show_with(id, &loads)).collect()
    }

    pub(super) fn show(&self, id: &HostId) -> Result<v1::Host, Status> {
        let loads = loads(&self.view.read());
        self.show_with(id, &loads).ok_or_else(|| no_such_host(id.as_str()))
    }

    fn show_with(&self, id: &HostId, loads: &BTreeMap<HostId, Load>) -> Option<v1::Host> {
        let connected = self.sessions.connected();
        let records = self.view.read();
        let record = records.hosts.get(id)?;
        let load = loads.get(id).cloned().unwrap_or_default();
        let rules = self.defaults.under(&records).quarantine;
        let standing = standing(&records, record, &load, &rules, self.clock.now());
        Some(show::host(record, connected.get(id), &load, standing))
    }

    pub(super) fn name(&self, id: &HostId) -> String {
        self.view.read().hosts.get(id).map_or_else(|| id.to_string(), |record| record.name.clone())
    }

    /// Finds a host by its id, the unique beginning of one, or its name.
    pub(super) fn find(&self, wanted: &str) -> Result<HostId, Status> {
        let records = self.view.read();
        let fits = |host: &&Arc<HostRecord>| {
            host.name == wanted || (!wanted.is_empty() && host.id.as_str().starts_with(wanted))
        };
        let found: Vec<_> = records.hosts.values().filter(fits).collect();
        match found[..] {
            [host] => Ok(host.id.clone()),
            [] => Err(no_such_host(wanted)),
            _ => Err(invalid("AMBIGUOUS_HOST", format!("{wanted:?} fits several hosts; name one by its id"))),
        }
    }

    pub(super) async fn cordon(&self, wanted: v1::CordonHostRequest, by: &str) -> Result<v1::Host, Status> {
        self.wish(&wanted.host, Wish::Cordoned, &wanted.reason, by).await
    }

    pub(super) async fn drain(&self, wanted: v1::DrainHostRequest, by: &str) -> Result<v1::Host, Status> {
        let then = AfterDrain::named(&wanted.then).ok_or_else(|| {
            invalid(
                "NO_SUCH_DRAIN",
                "say what becomes of attempts that have not finished at the deadline: requeue or wait",
            )
        })?;
        let left = Duration::from_secs(wanted.deadline_seconds);
        if left > DRAIN_MOST {
            return Err(invalid("DEADLINE_TOO_FAR", "a drain may take 30 days; `devfleet hosts cordon` has no end"));
        }
        let deadline = self.clock.now().after(left);
        self.wish(&wanted.host, Wish::Draining { deadline, then }, &wanted.reason, by).await
    }

    pub(super) async fn resume(&self, wanted: v1::ResumeHostRequest, by: &str) -> Result<v1::Host, Status> {
        self.wish(&wanted.host, Wish::Active, &wanted.reason, by).await
    }

    async fn wish(&self, host: &str, wish: Wish, reason: &str, by: &str) -> Result<v1::Host, Status> {
        let (id, reason) = (self.find(host)?, checked_reason(reason)?);
        let hosts = self.hosts();
        let done = hosts.change(&id, |record, now| {
            let resumed = if wish == Wish::Active { now } else { record.desired.resumed };
            record.desired = Desired { wish, by: by.to_owned(), reason: reason.clone(), since: now, resumed };
        });
        let revision = done.await.map_err(|error| host_status(&error))?;
        info!(host = %id, by, reason, ?wish, "what is wanted of a host has changed");
        self.after(revision, &id).await
    }

    pub(super) async fn label(&self, wanted: v1::LabelHostRequest, by: &str) -> Result<v1::Host, Status> {
        let id = self.find(&wanted.host)?;
        for (name, value) in &wanted.set {
            if !is_label(name) || value.chars().count() > 200 || value.chars().any(char::is_control) {
                let advice = "a label's name has 1 to 63 letters, digits, dots, dashes or slashes, its value up to 200 printable characters";
                return Err(invalid("INVALID_LABEL", format!("{name}={value}: {advice}")));
            }
        }
        let kept = self.view.read().hosts.get(&id).map_or(0, |record| record.labels.len());
        if kept + wanted.set.len() > LABELS_MOST {
            return Err(invalid("TOO_MANY_LABELS", format!("a host may have {LABELS_MOST} labels")));
        }
        let hosts = self.hosts();
        let done = hosts.change(&id, |record, _| {
            wanted.remove.iter().for_each(|name| drop(record.labels.remove(name)));
            record.labels.extend(wanted.set.clone());
        });
        let revision = done.await.map_err(|error| host_status(&error))?;
        info!(host = %id, by, "the labels of a host have changed");
        self.after(revision, &id).await
    }

    pub(super) async fn remove(
        &self,
        wanted: v1::RemoveHostRequest,
        by: &str,
    ) -> Result<v1::RemoveHostResponse, Status> {
        let (id, reason) = (self.find(&wanted.host)?, checked_reason(&wanted.reason)?);
        let name = self.name(&id);
        let jobs = loads(&self.view.read()).get(&id).map_or(0, |load| load.attempts.len());
        let removal = Removal { by, reason: &reason, jobs, force: wanted.force };
        let revision = self.hosts().remove(&id, removal).await.map_err(|error| host_status(&error))?;
        self.view.reach(revision).await;
        Ok(v1::RemoveHostResponse { host_id: id.to_string(), name, jobs: jobs as u64 })
    }

    async fn after(&self, revision: Revision, id: &HostId) -> Result<v1::Host, Status> {
        self.view.reach(revision).await;
        self.show(id)
    }

    pub(super) fn controllers(&self) -> Vec<v1::Controller> {
        let records = self.view.read();
        records.controllers.values().map(|one| show::controller(one, records.leader.as_ref())).collect()
    }
}

fn checked_reason(reason: &str) -> Result<String, Status> {
    let reason = reason.trim();
    match reason.chars().count() <= REASON_CHARS && !reason.chars().any(char::is_control) {
        true => Ok(reason.to_owned()),
        false => Err(invalid("INVALID_REASON", format!("a reason is one line of {REASON_CHARS} characters at most"))),
    }
}

fn is_label(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'/');
    (1..=63).contains(&name.len()) && name.bytes().all(fits)
}

pub(super) fn host_status(error: &HostError) -> Status {
    match error {
        HostError::NoSuchHost(_) => refusal(Code::NotFound, "NO_SUCH_HOST", Chain(error).to_string()),
        HostError::Busy { .. } => refusal(Code::FailedPrecondition, "HOST_BUSY", error.to_string()),
        HostError::Record(error) => record_status(error),
    }
}

fn no_such_host(wanted: &str) -> Status {
    refusal(
        Code::NotFound,
        "NO_SUCH_HOST",
        format!("there is no host {wanted:?}; `devfleet hosts list` shows what there is"),
    )
}
