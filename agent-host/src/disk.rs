//! Room on the host's disks, and whether another environment fits.
//!
//! A full engine disk stops the engine from starting at all, and inodes run out as well as bytes: so both are watched,
//! and a host takes nothing on past 85 % of either.

use std::path::{Path, PathBuf};

use devfleet_shared::resources::Resources;

use crate::engine::EngineFacts;

/// Past this share of a disk, in percent, the host reports a problem and takes nothing on.
pub const WATERMARK_PERCENT: u64 = 85;

/// A disk that cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("ask how much room is left at {}", path.display())]
pub struct DiskError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Room on one file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size in bytes, without what is set aside for root or denied by a quota: as `df` counts.
    pub total_bytes: u64,
    /// What is free for an ordinary user, in bytes.
    pub free_bytes: u64,
    /// Its inodes; 0: it does not count them.
    pub total_inodes: u64,
    /// The free ones of them.
    pub free_inodes: u64,
}

impl Space {
    /// A disk that cannot be seen from here: without limit.
    pub const UNSEEN: Space = Space { total_bytes: u64::MAX, free_bytes: u64::MAX, total_inodes: 0, free_inodes: 0 };

    /// Asks the file system on which a path lies.
    pub fn at(path: &Path) -> Result<Space, DiskError> {
        let stat =
            rustix::fs::statvfs(path).map_err(|errno| DiskError { path: path.to_owned(), source: errno.into() })?;
        Ok(Space {
            total_bytes: ordinary(stat.f_blocks, stat.f_bfree, stat.f_bavail).saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_inodes: ordinary(stat.f_files, stat.f_ffree, stat.f_favail),
            free_inodes: stat.f_favail,
        })
    }

    /// Returns what may still be given out before the watermark, in bytes.
    pub fn usable_bytes(&self) -> u64 {
        self.free_bytes.saturating_sub(reserve(self.total_bytes))
    }

    /// Returns what may still be given out before the watermark, in inodes; without limit where they are not counted.
    pub fn usable_inodes(&self) -> u64 {
        if self.total_inodes == 0 {
            return u64::MAX;
        }
        self.free_inodes.saturating_sub(reserve(self.total_inodes))
    }
}

/// Measures the room at a path: [`Space::at`], unless a test stands for a disk of its own.
pub type Gauge = fn(&Path) -> Result<Space, DiskError>;

/// Returns what is there for ordinary users, as `df` counts: what is used and what they may still take.
fn ordinary(all: u64, free: u64, available: u64) -> u64 {
    all.saturating_sub(free).saturating_add(available)
}

/// What stays free, of a whole.
fn reserve(total: u64) -> u64 {
    total - total / 100 * WATERMARK_PERCENT
}

/// Returns the engine's data directory, where it can be seen from here.
pub fn of_engine(facts: &EngineFacts) -> Option<PathBuf> {
    Some(PathBuf::from(&facts.data_root)).filter(|path| path.is_dir())
}

/// Says in full sentences which of these disks are past the watermark; `name` is what people call the disk.
pub fn problems(disks: &[(&str, Space)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, space) in disks {
        if space.usable_bytes() == 0 {
            lines.push(full(name, "room", space.total_bytes, space.free_bytes));
        }
        if space.usable_inodes() == 0 {
            lines.push(full(name, "inodes", space.total_inodes, space.free_inodes));
        }
    }
    lines
}

fn full(name: &str, what: &str, total: u64, free: u64) -> String {
    let used = total.saturating_sub(free).saturating_mul(100).checked_div(total).unwrap_or(100);
    format!(
        "{used} % of the {what} on {name} is used, past the limit of {WATERMARK_PERCENT} %: this host takes no more jobs; \
         free some, for example with `docker system df` and `devfleet sweep`"
    )
}

/// Returns all that a host has to give, with nothing running on it.
pub fn total(facts: &EngineFacts, engine_disk: &Space, slots: u64) -> Resources {
    Resources {
        cpu_millis: facts.cpus.saturating_mul(1_000),
        memory_bytes: facts.memory_bytes,
        disk_bytes: engine_disk.total_bytes.saturating_sub(reserve(engine_disk.total_bytes)),
        disk_inodes: match engine_disk.total_inodes {
            0 => u64::MAX,
            inodes => inodes.saturating_sub(reserve(inodes)),
        },
        slots,
    }
}

/// Returns what is left of `total` when `reserved` is set aside and the disk is as full as it is.
pub fn free(total: Resources, reserved: Resources, engine_disk: &Space) -> Resources {
    let left = total.minus(reserved);
    Resources {
        disk_bytes: left.disk_bytes.min(engine_disk.usable_bytes()),
        disk_inodes: left.disk_inodes.min(engine_disk.usable_inodes()),
        ..left
    }
}

#[cfg(test)]
mod tests {
    use devfleet_shared::admission;

    use super::*;

    fn space(used_percent: u64, used_inodes_percent: u64) -> Space {
        Space {
            total_bytes: 1_000_000,
            free_bytes: 10_000 * (100 - used_percent),
            total_inodes: 1_000,
            free_inodes: 10 * (100 - used_inodes_percent),
        }
    }

    #[test]
    fn problems_name_the_disk_and_what_ran_short() {
        assert!(problems(&[("a", space(84, 84))]).is_empty());
        let lines = problems(&[("the engine's disk", space(85, 10)), ("the data disk", space(10, 99))]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("85 % of the room on the engine's disk"), "{}", lines[0]);
        assert!(lines[1].starts_with("99 % of the inodes on the data disk"), "{}", lines[1]);
        let uncounted = Space { total_inodes: 0, free_inodes: 0, ..space(0, 0) };
        assert!(problems(&[("btrfs", uncounted)]).is_empty());
    }

    #[test]
    fn what_is_free_stops_at_the_watermark_and_at_what_is_promised() {
        let facts = EngineFacts {
            version: "1".into(),
            api: "1.41".into(),
            storage_driver: "overlay2".into(),
            data_root: "/".into(),
            cpus: 2,
            memory_bytes: 1_000,
            runtimes: Default::default(),
        };
        let all = total(&facts, &space(0, 0), 4);
        assert_eq!((all.cpu_millis, all.disk_bytes, all.disk_inodes), (2_000, 850_000, 850));
        let one = Resources { cpu_millis: 500, memory_bytes: 400, disk_bytes: 100_000, disk_inodes: 10, slots: 1 };
        let left = free(all, one, &space(0, 0));
        assert_eq!((left.disk_bytes, left.slots, left.memory_bytes), (750_000, 3, 600));
        assert_eq!(free(all, one, &space(80, 0)).disk_bytes, 50_000);
        assert_eq!(admission::admit(&left, &one), Ok(()));
        let refused = admission::admit(&free(all, one, &space(90, 0)), &one).expect_err("a full disk");
        assert_eq!(refused.lacking, ["disk"]);
    }

    #[test]
    fn what_is_set_aside_for_root_does_not_count_as_used() {
        // 252,000 blocks, 62,000 used, 30,000 for ordinary users: `df` says 68 %.
        let total = ordinary(252_000, 190_000, 30_000);
        assert_eq!(total, 92_000);
        let space = Space { total_bytes: total, free_bytes: 30_000, total_inodes: 0, free_inodes: 0 };
        assert!(problems(&[("a", space)]).is_empty());
        assert_eq!(ordinary(0, 0, 0), 0, "a file system that does not count");
    }

    #[test]
    fn this_machine_has_a_disk() {
        let space = Space::at(Path::new("/")).expect("the root");
        assert!(space.total_bytes > 0 && space.free_bytes <= space.total_bytes);
        assert!(Space::at(Path::new("/nowhere/at/all")).is_err());
    }
}
