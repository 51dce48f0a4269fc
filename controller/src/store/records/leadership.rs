//! Who leads, and how often the lead has changed.

use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::ControllerId;
use serde::{Deserialize, Serialize};

use super::PREFIX;

/// The key that the leader holds, on a lease. The revision of its creation is the term's.
pub fn leader_key() -> String {
    format!("{PREFIX}leader")
}

/// The key that counts terms. On no lease: numbers never begin anew.
pub fn terms_key() -> String {
    format!("{PREFIX}terms")
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// The controller.
    pub controller: ControllerId,
    /// The number of its term.
    pub term: u64,
    /// Where other controllers reach it: `https://name:port`.
    #[serde(default)]
    pub address: String,
    /// Since when.
    #[serde(default)]
    pub since: Timestamp,
}

/// How many terms there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Terms {
    /// The number of the last one; the first is 1.
    pub last: u64,
}
