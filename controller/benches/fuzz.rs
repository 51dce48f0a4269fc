//! Derives environments from broken CI configurations, `FUZZ_EXECUTIONS` times from `FUZZ_FIRST` on.
//!
//! `FUZZ_EXECUTIONS=1000000 cargo bench -p devfleet-controller --bench fuzz`. The seeds are the configurations of the tests.
//! It fails when one panics, takes longer than a second, or when the process ever needed more than a gibibyte.

#[path = "../tests/it/derivation/mutate.rs"]
mod mutate;

use std::path::Path;
use std::time::{Duration, Instant};

const SLOWEST: Duration = Duration::from_secs(1);
const LARGEST_KIB: u64 = 1 << 20;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seeds() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut folders = vec![root.join("ci"), root.join("ci-cases")];
    let mut paths = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "yml") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

/// The most memory that this process ever had, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[expect(clippy::print_stdout, reason = "the result is what it is run for")]
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
fn main() {
    let (first, count) = (number("FUZZ_FIRST", 0), number("FUZZ_EXECUTIONS", 2_000));
    let seeds = seeds();
    assert!(seeds.len() > 60, "only {} seeds were found", seeds.len());
    let began = Instant::now();
    let (mut derived, mut slowest) = (0_u64, Duration::ZERO);
    for execution in first..first + count {
        let start = Instant::now();
        derived += u64::from(mutate::execution(&seeds, execution));
        slowest = slowest.max(start.elapsed());
        assert!(slowest < SLOWEST, "execution {execution} took {slowest:?}");
    }
    let peak = peak_kib();
    assert!(peak < LARGEST_KIB, "{peak} KiB were needed");
    println!(
        "{count} executions in {:.0} s, {derived} derived, the slowest in {:.1} ms, at most {} MiB",
        began.elapsed().as_secs_f64(),
        slowest.as_secs_f64() * 1e3,
        peak / 1024
    );
}
