//! How soon a job would start on a host, in milliseconds. Estimates: what counts is which of two hosts is better.

use devfleet_shared::resources::Resources;

use super::HostView;

/// Making or pulling an image.
pub(super) const IMAGE_MS: u64 = 120_000;
/// Cloning a repository into a new mirror.
pub(super) const MIRROR_MS: u64 = 15_000;
/// What each environment that is being made on the host slows down the next.
const START_MS: u64 = 3_000;
/// What a host that is all taken would cost, from nothing for one that is empty.
const TAKEN_MS: u64 = 10_000;
/// What a host costs whose processors are promised twice over.
const CPU_MS: u64 = 20_000;
/// What a disk costs that is full, from nothing for one with a fifth free.
const DISK_MS: u64 = 60_000;
/// What each failure costs that the host caused lately.
const FAILURE_MS: u64 = 30_000;

/// Returns what a host costs whatever the job: load, starts, disk, failures.
pub(super) fn base(host: &HostView, free: &Resources, starting: u32, cpu_millis_given: u64) -> u64 {
    let taken = |total: u64, free: u64| total.saturating_sub(free).saturating_mul(1_000) / total.max(1);
    let slots = taken(host.total.slots, free.slots);
    let memory = taken(host.total.memory_bytes, free.memory_bytes);
    let promised = (cpu_millis_given.saturating_mul(1_000) / host.total.cpu_millis.max(1)).min(2_000);
    let cpu = if host.total.cpu_millis == 0 { 0 } else { promised };
    let disk = taken(host.total.disk_bytes, free.disk_bytes).max(taken(host.total.disk_inodes, free.disk_inodes));
    slots.max(memory) * TAKEN_MS / 1_000
        + cpu * CPU_MS / 2_000
        + disk.saturating_sub(800) * DISK_MS / 200
        + u64::from(starting) * START_MS
        + u64::from(host.recent_failures) * FAILURE_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle() -> HostView {
        let id = "00000000-0000-4000-8000-000000000001".parse().expect("a UUID");
        let mut host = HostView::new(id, "box");
        host.total =
            Resources { cpu_millis: 1_000, memory_bytes: 1_000, disk_bytes: 1_000, disk_inodes: 1_000, slots: 10 };
        host.free = host.total;
        host
    }

    #[test]
    fn each_kind_of_load_costs_what_it_says_and_an_idle_host_costs_nothing() {
        let check = |change: fn(&mut HostView), expected: u64| {
            let mut host = idle();
            change(&mut host);
            assert_eq!(base(&host, &host.free, host.starting, host.cpu_millis_given), expected);
        };
        check(|_| {}, 0);
        check(|host| host.free.slots = 0, TAKEN_MS);
        check(|host| host.free.memory_bytes = 500, TAKEN_MS / 2);
        check(
            |host| {
                host.free.memory_bytes = 500;
                host.free.slots = 2;
            },
            TAKEN_MS * 8 / 10,
        );
        check(|host| host.cpu_millis_given = 1_000, CPU_MS / 2);
        check(|host| host.cpu_millis_given = 9_000, CPU_MS);
        check(
            |host| {
                host.total.cpu_millis = 0;
                host.cpu_millis_given = 9_000;
            },
            0,
        );
        check(|host| host.free.disk_bytes = 200, 0);
        check(|host| host.free.disk_bytes = 100, DISK_MS / 2);
        check(|host| host.free.disk_inodes = 0, DISK_MS);
        check(|host| host.starting = 2, 2 * START_MS);
        check(|host| host.recent_failures = 1, FAILURE_MS);
    }
}
