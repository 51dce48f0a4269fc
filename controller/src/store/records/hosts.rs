//! The hosts of the fleet: who joined, what operators want of each, and who was removed.

use std::collections::BTreeMap;

use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::HostId;
use serde::{Deserialize, Serialize};

use super::PREFIX;

/// A host that joined. Written by controllers alone, by compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The host.
    pub id: HostId,
    /// The name it gave itself.
    pub name: String,
    /// When it joined.
    pub joined: Timestamp,
    /// When its certificate ends.
    pub certificate_ends: Timestamp,
    /// What its join token and operators say of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What operators want of it.
    #[serde(default)]
    pub desired: Desired,
}

/// What operators want of a host, and who said so.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Desired {
    /// What.
    pub wish: Wish,
    /// Who; empty: nobody has said anything yet.
    pub by: String,
    /// Why, in that person's words; may be empty.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// When it was resumed last: what it failed at before counts no more.
    pub resumed: Timestamp,
}

/// What is wanted of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// It takes jobs.
    #[default]
    Active,
    /// It takes no new jobs; what runs goes on.
    Cordoned,
    /// It takes no new jobs, and is to be empty.
    Draining {
        /// Until when what runs may finish.
        deadline: Timestamp,
        /// What becomes of the rest.
        then: AfterDrain,
    },
}

/// What becomes of attempts that have not finished at the deadline of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterDrain {
    /// They are stopped, and their jobs go elsewhere.
    Requeue,
    /// They go on.
    Wait,
}

impl AfterDrain {
    /// Returns the name as people write it.
    pub fn name(self) -> &'static str {
        match self {
            AfterDrain::Requeue => "requeue",
            AfterDrain::Wait => "wait",
        }
    }

    /// Finds it by its name.
    pub fn named(name: &str) -> Option<AfterDrain> {
        [AfterDrain::Requeue, AfterDrain::Wait].into_iter().find(|then| then.name() == name)
    }
}

impl Desired {
    /// Says why the host gets no new jobs; `None`: it may get some.
    pub fn closed(&self) -> Option<String> {
        let what = match self.wish {
            Wish::Active => return None,
            Wish::Cordoned => "cordoned",
            Wish::Draining { .. } => "draining",
        };
        let why = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        Some(format!("{what} by {}{why}", self.by))
    }
}

/// A host that was taken out of the fleet. Stands for ever: its id does not come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The name it had.
    pub name: String,
    /// Who removed it.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Where it stands that a host was removed.
pub fn removed_key(host: &HostId) -> String {
    format!("{PREFIX}removed/{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_from_before_the_wish_is_of_an_active_host() {
        let id = HostId::random();
        let old = format!(r#"{{"id":"{id}","name":"box","joined":1,"certificate_ends":2}}"#);
        let record: HostRecord = serde_json::from_str(&old).expect("readable");
        assert_eq!((record.desired.wish, record.desired.closed()), (Wish::Active, None));
    }

    #[test]
    fn who_closed_it_and_why_is_said() {
        let desired = Desired { wish: Wish::Cordoned, by: "ada".into(), ..Desired::default() };
        assert_eq!(desired.closed().as_deref(), Some("cordoned by ada"));
        let wish = Wish::Draining { deadline: Timestamp(9), then: AfterDrain::Wait };
        let desired = Desired { wish, reason: "new kernel".into(), ..desired };
        assert_eq!(desired.closed().as_deref(), Some("draining by ada: new kernel"));
        for then in [AfterDrain::Requeue, AfterDrain::Wait] {
            assert_eq!(AfterDrain::named(then.name()), Some(then));
        }
    }
}
