//! When a host that fails job after job gets no new ones, as the configuration says it.

use std::time::Duration;

use devfleet_shared::units::Span;
use serde::Deserialize;

use crate::quarantine::Rules;

/// The `[quarantine]` of `controller.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuarantineConfig {
    /// After how many jobs in a row that failed through its fault, 0 to 50; 0: never. `devfleet settings` goes before it.
    #[serde(default = "after")]
    pub after: u32,
    /// Within which time they failed.
    #[serde(default = "within")]
    pub within: Span,
    /// How long it gets nothing, before one job is tried on it. Doubled each time that this job fails.
    #[serde(default = "pause")]
    pub pause: Span,
    /// The longest such pause.
    #[serde(default = "longest_pause")]
    pub longest_pause: Span,
}

impl Default for QuarantineConfig {
    fn default() -> Self {
        Self { after: after(), within: within(), pause: pause(), longest_pause: longest_pause() }
    }
}

impl QuarantineConfig {
    /// Returns the rules.
    pub fn rules(&self) -> Rules {
        Rules { after: self.after, within: self.within.0, pause: self.pause.0, longest: self.longest_pause.0 }
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if self.after > 50 {
            return Err("write `after` as a number from 0 to 50; 0 switches it off".into());
        }
        if self.pause.0.is_zero() || self.within.0.is_zero() {
            return Err("write `pause` and `within` as times such as 5m".into());
        }
        if self.pause > self.longest_pause {
            return Err("write a `longest_pause` that is not shorter than `pause`".into());
        }
        Ok(())
    }
}

fn after() -> u32 {
    3
}

fn within() -> Span {
    Span(Duration::from_secs(3_600))
}

fn pause() -> Span {
    Span(Duration::from_secs(300))
}

fn longest_pause() -> Span {
    Span(Duration::from_secs(3_600))
}
