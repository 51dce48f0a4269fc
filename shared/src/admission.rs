//! Whether an environment fits into what is free. A decider, and the same one on both sides: the controller plans with
//! it, and a host judges again before it begins, since what it has may have changed meanwhile.

use crate::resources::Resources;

/// What an environment lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("take the job on: not enough {} is free on this host", lacking.join(", "))]
pub struct Refused {
    /// The amounts that do not suffice, by name.
    pub lacking: Vec<&'static str>,
}

/// Returns what an environment takes away from others on its host. Processors are shared by those who want them: how
/// many an environment may use is a limit, which the host must have, and no reservation.
pub fn set_aside(wanted: Resources) -> Resources {
    Resources { cpu_millis: 0, ..wanted }
}

/// Returns what a host has room for, beside what is `taken` already. Of its disk that is no more than what is `measured`
/// to be free right now.
pub fn room(total: Resources, taken: Resources, measured: Resources) -> Resources {
    let left = total.minus(set_aside(taken));
    Resources {
        disk_bytes: left.disk_bytes.min(measured.disk_bytes),
        disk_inodes: left.disk_inodes.min(measured.disk_inodes),
        ..left
    }
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
    #[test]
    fn processors_are_shared_and_all_else_is_set_aside() {
        let total = Resources { cpu_millis: 2_000, memory_bytes: 100, disk_bytes: 100, disk_inodes: 100, slots: 4 };
        let taken = Resources { cpu_millis: 2_000, memory_bytes: 60, disk_bytes: 10, disk_inodes: 10, slots: 1 };
        let measured = Resources { disk_bytes: 50, disk_inodes: 95, ..Resources::default() };
        let free = room(total, taken, measured);
        assert_eq!(free, Resources { cpu_millis: 2_000, memory_bytes: 40, disk_bytes: 50, disk_inodes: 90, slots: 3 });
        check(free, Resources { cpu_millis: 2_001, memory_bytes: 41, ..Resources::default() }, &["cpu", "memory"]);
    }
}
