//! The controllers that run: a record each, on a lease.

use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::ControllerId;
use serde::{Deserialize, Serialize};

use super::PREFIX;

/// A controller that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerRecord {
    /// The controller.
    pub id: ControllerId,
    /// Where other controllers reach it.
    pub address: String,
    /// The version of the program.
    pub version: String,
    /// The protocol that it speaks with hosts.
    pub protocol: u32,
    /// When it was started.
    pub started: Timestamp,
}

/// Where a controller's record stands.
pub fn key(id: &ControllerId) -> String {
    format!("{PREFIX}controllers/{id}")
}
