//! What a host has and what an environment takes. Subtraction stops at zero.

use serde::{Deserialize, Serialize};

/// An amount of everything that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Room on the engine's disk in bytes.
    pub disk_bytes: u64,
    /// Room on the engine's disk in inodes.
    pub disk_inodes: u64,
    /// Environments.
    pub slots: u64,
}

impl Resources {
    /// Adds, stopping at the largest number.
    pub fn plus(self, other: Resources) -> Resources {
        self.zip(other, u64::saturating_add)
    }

    /// Subtracts, stopping at zero.
    pub fn minus(self, other: Resources) -> Resources {
        self.zip(other, u64::saturating_sub)
    }

    /// Says which of the wanted amounts exceed what is here, by name; empty means it fits.
    pub fn lacking(&self, wanted: &Resources) -> Vec<&'static str> {
        [
            ("cpu", self.cpu_millis, wanted.cpu_millis),
            ("memory", self.memory_bytes, wanted.memory_bytes),
            ("disk", self.disk_bytes, wanted.disk_bytes),
            ("inodes", self.disk_inodes, wanted.disk_inodes),
            ("slots", self.slots, wanted.slots),
        ]
        .into_iter()
        .filter(|(_, have, want)| want > have)
        .map(|(name, _, _)| name)
        .collect()
    }

    fn zip(self, other: Resources, combine: fn(u64, u64) -> u64) -> Resources {
        Resources {
            cpu_millis: combine(self.cpu_millis, other.cpu_millis),
            memory_bytes: combine(self.memory_bytes, other.memory_bytes),
            disk_bytes: combine(self.disk_bytes, other.disk_bytes),
            disk_inodes: combine(self.disk_inodes, other.disk_inodes),
            slots: combine(self.slots, other.slots),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtraction_stops_at_zero_and_lack_is_named() {
        let host = Resources { cpu_millis: 2_000, memory_bytes: 100, slots: 1, ..Resources::default() };
        let wanted = Resources { cpu_millis: 500, memory_bytes: 300, slots: 1, ..Resources::default() };
        assert_eq!(host.lacking(&wanted), ["memory"]);
        assert_eq!(host.minus(wanted).memory_bytes, 0);
        assert_eq!(host.minus(wanted).plus(wanted).memory_bytes, 300);
    }
}
