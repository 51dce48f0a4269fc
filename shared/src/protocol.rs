//! Which versions of what hosts and controllers say to each other go together. A decider.
//!
//! A side speaks its own version and the one before it. So a fleet is upgraded one program at a time, in any order; who
//! is left further behind is told which side to upgrade.

/// The version that this program speaks. Raised when a message changes its meaning; a field that the other side may
/// leave out is no such change.
///
/// 1: up to the first fleets, without the field that says so. 2: protocol, generation, runtimes, recalled attempts.
pub const PROTOCOL: u32 = 2;

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A host daemon.
    Host,
    /// A controller.
    Controller,
}

/// Two versions that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the host speaks version {host} of the protocol, the controller {controller}, and neither knows more than the one before its own: upgrade {} first", match .upgrade { Side::Host => "devfleet-host on this host", Side::Controller => "the controllers" })]
pub struct Skew {
    /// What the host speaks.
    pub host: u32,
    /// What the controller speaks.
    pub controller: u32,
    /// The side that is behind.
    pub upgrade: Side,
}

/// Reads the version that a message says; what is from before the field says nothing and speaks 1.
pub fn said(version: u32) -> u32 {
    version.max(1)
}

/// Decides whether a host and a controller understand each other: at most one version lies between them.
pub fn agree(host: u32, controller: u32) -> Result<(), Skew> {
    match (host.saturating_add(1) < controller, controller.saturating_add(1) < host) {
        (true, _) => Err(Skew { host, controller, upgrade: Side::Host }),
        (_, true) => Err(Skew { host, controller, upgrade: Side::Controller }),
        (false, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: u32, controller: u32, upgrade: Option<Side>) {
        let refused = agree(host, controller).err();
        assert_eq!(refused.as_ref().map(|skew| skew.upgrade), upgrade, "host {host}, controller {controller}");
    }

    #[test]
    fn one_version_may_lie_between_and_of_two_the_older_side_is_named() {
        check(5, 5, None);
        check(4, 5, None);
        check(6, 5, None);
        check(3, 5, Some(Side::Host));
        check(7, 5, Some(Side::Controller));
        check(said(0), PROTOCOL, None);
        let told = agree(1, 3).expect_err("too far").to_string();
        assert!(told.contains("upgrade devfleet-host") && told.contains("version 1"), "{told}");
        assert!(agree(3, 1).expect_err("too far").to_string().contains("upgrade the controllers"));
    }
}
