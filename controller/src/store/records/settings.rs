//! What operators change while the fleet runs. What is not set here has the value of the controller's configuration.

use devfleet_shared::clock::Timestamp;
use serde::{Deserialize, Serialize};

use super::PREFIX;

/// The settings, and who changed them last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Settings {
    /// How many jobs may run in the fleet at once.
    #[serde(default)]
    pub max_running: Option<usize>,
    /// After how many jobs in a row that failed through its fault a host gets no new ones; 0: never.
    #[serde(default)]
    pub quarantine_after: Option<u32>,
    /// Who changed them.
    pub changed_by: String,
    /// When.
    pub changed: Timestamp,
}

/// The key of the settings.
pub fn key() -> String {
    format!("{PREFIX}settings")
}
