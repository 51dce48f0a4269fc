//! Whether an environment fits into what is free. A decider, and the same one on both sides: the controller plans with
//! it, and a host looks again before it begins, since its disk may have filled meanwhile.

use crate::resources::Resources;

/// What an environment lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("take the job on: not enough {} is free on this host", lacking.join(", "))]
pub struct Refused {
    /// The amounts that do not suffice, by name.
    pub lacking: Vec<&'static str>,
}

/// Says whether an environment fits into what is free. Cheap: planning asks for every host.
pub fn fits(free: &Resources, wanted: &Resources) -> bool {
    wanted.cpu_millis <= free.cpu_millis
        && wanted.memory_bytes <= free.memory_bytes
        && wanted.disk_bytes <= free.disk_bytes
        && wanted.disk_inodes <= free.disk_inodes
        && wanted.slots <= free.slots
}

/// Decides whether an environment fits into what is free, and says what is lacking.
pub fn admit(free: &Resources, wanted: &Resources) -> Result<(), Refused> {
    match fits(free, wanted) {
        true => Ok(()),
        false => Err(Refused { lacking: free.lacking(wanted) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(free: Resources, wanted: Resources, lacking: &[&str]) {
        let refused = admit(&free, &wanted).map_or_else(|refused| refused.lacking, |()| vec![]);
        assert_eq!(refused, lacking, "{free:?} {wanted:?}");
        assert_eq!(fits(&free, &wanted), lacking.is_empty());
    }

    #[test]
    fn each_amount_is_looked_at() {
        let one = Resources { cpu_millis: 1, memory_bytes: 1, disk_bytes: 1, disk_inodes: 1, slots: 1 };
        check(one, one, &[]);
        check(Resources { cpu_millis: 0, ..one }, one, &["cpu"]);
        check(Resources { memory_bytes: 0, ..one }, one, &["memory"]);
        check(Resources { disk_bytes: 0, ..one }, one, &["disk"]);
        check(Resources { disk_inodes: 0, ..one }, one, &["inodes"]);
        check(Resources { slots: 0, ..one }, one, &["slots"]);
    }
}
