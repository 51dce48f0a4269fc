//! The timers of ownership, and the margins between them. A decider.
//!
//! ```text
//! proven send ── freeze ──▶ paused ─────────────────────── kill ──▶ removed       the host, by its own clock
//!      lease ends ──▶ seen gone ── grace ──▶ given to another host                the leader, by its own clock
//! ```
//! Even if the host's record goes the moment after a proof, grace outlasts freeze, one heartbeat and the freezing itself.

use std::time::Duration;

use devfleet_shared::units::Span;
use serde::Deserialize;

/// How long a host may take to pause what runs, once its deadline has passed.
pub const FREEZE_LATENCY: Duration = Duration::from_secs(5);

/// The timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timers {
    /// How often a host proves that it is there.
    pub heartbeat: Span,
    /// How long after the sending of its last proven heartbeat a host freezes its environments.
    pub freeze: Span,
    /// How long a host's record in the store outlasts its last heartbeat.
    pub host_lease: Span,
    /// How long after a host's record was seen gone its jobs are given to others.
    pub grace: Span,
    /// How long after the sending of its last proven heartbeat a host removes its environments.
    pub kill: Span,
}

impl Default for Timers {
    fn default() -> Self {
        let seconds = |seconds| Span(Duration::from_secs(seconds));
        Self {
            heartbeat: seconds(3),
            freeze: seconds(10),
            host_lease: seconds(15),
            grace: seconds(20),
            kill: seconds(60),
        }
    }
}

impl Timers {
    /// Checks the margins; says which inequality does not hold, and with which values.
    pub fn validate(&self) -> Result<(), String> {
        let Timers { heartbeat, freeze, host_lease, grace, kill } = *self;
        let second = Duration::from_secs(1);
        if heartbeat.0 < second || heartbeat.0 > 60 * second || !heartbeat.0.subsec_nanos().eq(&0) {
            return Err(format!("`heartbeat` is {heartbeat}: write whole seconds, from 1s to 60s"));
        }
        let rules = [
            (freeze.0 > 2 * heartbeat.0, "freeze > 2 x heartbeat", "one lost heartbeat must not freeze a host"),
            (host_lease.0 > freeze.0, "host_lease > freeze", "a host freezes before it is suspected"),
            (
                grace.0 > freeze.0 + heartbeat.0 + FREEZE_LATENCY,
                "grace > freeze + heartbeat + 5s",
                "otherwise a job could run twice when a host is cut off",
            ),
            (kill.0 > freeze.0 + heartbeat.0, "kill > freeze + heartbeat", "a short outage must not cost the work"),
        ];
        match rules.iter().find(|(holds, ..)| !holds) {
            None => Ok(()),
            Some((_, rule, why)) => Err(format!(
                "{rule} does not hold, and {why}; it is heartbeat = {heartbeat}, freeze = {freeze}, host_lease = \
                 {host_lease}, grace = {grace}, kill = {kill}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut Timers), expected: &str) {
        let mut timers = Timers::default();
        change(&mut timers);
        let problem = timers.validate().expect_err("a margin is missing");
        assert!(problem.contains(expected), "{problem}");
    }

    fn seconds(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    #[test]
    fn the_defaults_leave_the_margins() {
        assert_eq!(Timers::default().validate(), Ok(()));
    }

    #[test]
    fn timers_without_margins_are_refused_with_the_rule() {
        check(|timers| timers.grace = seconds(18), "grace > freeze + heartbeat + 5s");
        check(|timers| timers.freeze = seconds(6), "freeze > 2 x heartbeat");
        check(|timers| timers.host_lease = seconds(10), "host_lease > freeze");
        check(|timers| timers.kill = seconds(13), "kill > freeze + heartbeat");
        check(|timers| timers.heartbeat = Span(Duration::from_millis(1_500)), "whole seconds");
        check(|timers| timers.heartbeat = seconds(0), "whole seconds");
    }
}
