//! Which session a host has now: a record on a lease.
//!
//! It raises suspicion, no more: that it is gone does not say that the host is, and that it stands does not say that the
//! host lives. Owners are changed by claims alone.

use devfleet_shared::id::HostId;
use serde::{Deserialize, Serialize};

/// A host's session, as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// The start of the controller that holds the session.
    pub controller: String,
    /// The session, by that controller's count: with `controller` it names one session.
    pub number: u64,
    /// The start of the host daemon.
    pub incarnation: String,
    /// The newest heartbeat that was proven.
    pub sequence: u64,
}

impl Live {
    /// Says whether this record is of the same session.
    pub fn is_session_of(&self, other: &Live) -> bool {
        self.controller == other.controller && self.number == other.number
    }
}

/// Where all of them stand.
pub const LIVE: &str = "/devfleet/v1/live/";

/// Where a host's session stands.
pub fn key(host: &HostId) -> String {
    format!("{LIVE}{host}")
}
