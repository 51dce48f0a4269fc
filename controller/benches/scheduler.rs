//! How long one plan takes: 10,000 hosts, 100,000 queued jobs of 200 projects, 1,000 placements.
//!
//! `cargo bench -p devfleet-controller --bench scheduler`

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a benchmark measures time and talks to the terminal"
)]

use std::sync::Arc;
use std::time::Instant;

use devfleet_controller::scheduler::{HostView, Needs, QueuedJob, Snapshot, plan};
use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::Digest;
use devfleet_shared::resources::Resources;

const HOSTS: usize = 10_000;
const JOBS: usize = 100_000;
const PROJECTS: usize = 200;
const PLACEMENTS: usize = 1_000;
const GOAL_MS: u128 = 250;

fn main() {
    let full = snapshot(PLACEMENTS);
    let open = snapshot(JOBS);
    let placed = report("1,000 placements", &full);
    report("as many placements as fit", &open);
    if placed > GOAL_MS {
        eprintln!("a plan took {placed} ms, {GOAL_MS} are the goal");
        std::process::exit(1);
    }
}

fn report(what: &str, snapshot: &Snapshot) -> u128 {
    let mut times: Vec<u128> = (0..7)
        .map(|_| {
            let begun = Instant::now();
            let made = plan(snapshot);
            let took = begun.elapsed().as_millis();
            assert_eq!(made.assign.len() + made.wait.len(), JOBS);
            took
        })
        .collect();
    times.sort_unstable();
    let placed = plan(snapshot).assign.len();
    println!("{what}: {HOSTS} hosts, {JOBS} jobs, {placed} placed: median {} ms, {times:?}", times[3]);
    times[3]
}

fn snapshot(max_running: usize) -> Snapshot {
    let gib = |count: u64| count << 30;
    let hosts = (0..HOSTS).map(|number| {
        let id = format!("00000000-0000-4000-8000-{number:012}").parse().expect("a UUID");
        let mut host = HostView::new(id, format!("host-{number}"));
        let total = Resources {
            cpu_millis: 16_000,
            memory_bytes: gib(64),
            disk_bytes: gib(500),
            disk_inodes: 10_000_000,
            slots: 8,
        };
        (host.total, host.free) = (total, Resources { slots: (number % 9) as u64, ..total });
        host.recipes = (0..5).map(|shift| recipe((number + shift * 37) % PROJECTS)).collect();
        host.mirrors = (0..5).map(|shift| format!("mirror-{}", (number + shift * 41) % PROJECTS)).collect();
        host
    });
    let needs: Vec<_> = (0..PROJECTS)
        .map(|project| {
            let (memory_bytes, disk_bytes) = (gib(4 + project as u64 % 3), gib(10));
            let resources = Resources { cpu_millis: 0, memory_bytes, disk_bytes, disk_inodes: 100_000, slots: 1 };
            let (recipe, repository) = (Some(recipe(project)), format!("mirror-{project}"));
            Arc::new(Needs { resources, recipe, repository, ..Needs::default() })
        })
        .collect();
    let queued = (0..JOBS).map(|number| QueuedJob {
        job: format!("10000000-0000-4000-8000-{:012}", (number * 7_919) % JOBS).parse().expect("a UUID"),
        project: format!("project-{}", number % PROJECTS).parse().expect("a name"),
        priority: (number % 3) as i32,
        submitted: Timestamp(number as u64),
        since: Timestamp(number as u64),
        not_before: Timestamp(0),
        needs: needs[number % PROJECTS].clone(),
    });
    Snapshot {
        now: Timestamp(600_000),
        max_running,
        hosts: hosts.collect(),
        queued: queued.collect(),
        ..Snapshot::default()
    }
}

fn recipe(number: usize) -> Digest {
    Digest::of(number.to_string().as_bytes())
}
