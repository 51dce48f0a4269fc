//! Derives environments from broken CI configurations, `FUZZ_EXECUTIONS` times from `FUZZ_FIRST` on, from those made to
//! do harm, and from the largest.
//!
//! `FUZZ_EXECUTIONS=1000000 cargo bench -p devfleet-controller --bench fuzz`. The seeds are the configurations of the tests;
//! `LARGE_FILE=PATH` is timed too. It fails when one panics, takes longer than a second, when the process ever needed more
//! than a gibibyte, or when the largest configuration takes 20 ms.

#[path = "../tests/it/derivation/hostile.rs"]
mod hostile;
#[path = "../tests/it/derivation/large.rs"]
mod large;
#[path = "../tests/it/derivation/mutate.rs"]
mod mutate;

use std::path::Path;
use std::time::{Duration, Instant};

use devfleet_controller::environment::{Context, derive};
use devfleet_controller::forge::CiConfig;

const SLOWEST: Duration = Duration::from_secs(1);
/// Texts of ten megabytes are built and copied meanwhile.
const SLOWEST_HOSTILE: Duration = Duration::from_secs(5);
const LARGEST_KIB: u64 = 1 << 20;
/// For a configuration as large as the largest real one.
const LARGE_FILE_MS: f64 = 20.0;

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

fn raw(text: &str) -> CiConfig {
    let files = [(".gitlab-ci.yml", text), ("a.yml", "x: {script: y}\n")];
    let files = files.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
    CiConfig::Raw { path: ".gitlab-ci.yml".to_owned(), files, notes: Vec::new() }
}

/// The best of twenty, in milliseconds.
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
fn milliseconds(what: &str, text: &str) -> f64 {
    let config = raw(text);
    let once = |_| {
        let start = Instant::now();
        assert!(derive(&config, &Context::default()).is_ok(), "{what} is refused");
        start.elapsed()
    };
    let best = (0..20).map(once).min().unwrap_or_default();
    best.as_secs_f64() * 1e3
}

#[expect(clippy::print_stdout, reason = "the result is what it is run for")]
fn time_large() {
    for jobs in [60, 400] {
        let text = large::configuration(jobs);
        let what = format!("a configuration of {jobs} jobs and {} KiB", text.len() / 1024);
        let needed = milliseconds(&what, &text);
        println!("{what} is derived in {needed:.2} ms");
        assert!(needed < LARGE_FILE_MS || jobs > 60, "{what} took {needed} ms");
    }
    if let Some(path) = std::env::var_os("LARGE_FILE") {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        println!("{} of {} bytes is derived in {:.2} ms", path.display(), text.len(), milliseconds("it", &text));
    }
}

#[expect(clippy::print_stdout, reason = "the result is what it is run for")]
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
fn refuse_hostile() {
    let mut slowest = Duration::ZERO;
    for (what, text) in hostile::texts() {
        let config = raw(&text);
        let start = Instant::now();
        assert!(derive(&config, &Context::default()).is_err(), "{what} is not refused");
        slowest = slowest.max(start.elapsed());
        assert!(slowest < SLOWEST_HOSTILE, "{what} took {slowest:?}");
    }
    let peak = peak_kib() / 1024;
    println!("what is made to do harm is refused in {:.1} ms at most, with {peak} MiB", slowest.as_secs_f64() * 1e3);
}

#[expect(clippy::print_stdout, reason = "the result is what it is run for")]
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
fn main() {
    let (first, count) = (number("FUZZ_FIRST", 0), number("FUZZ_EXECUTIONS", 2_000));
    let seeds = seeds();
    assert!(seeds.len() > 60, "only {} seeds were found", seeds.len());
    time_large();
    refuse_hostile();
    let began = Instant::now();
    let (mut derived, mut slowest) = (0_u64, (Duration::ZERO, first));
    for execution in first..first + count {
        let start = Instant::now();
        derived += u64::from(mutate::execution(&seeds, execution));
        slowest = slowest.max((start.elapsed(), execution));
        assert!(slowest.0 < SLOWEST, "execution {execution} took {slowest:?}");
    }
    let peak = peak_kib();
    assert!(peak < LARGEST_KIB, "{peak} KiB were needed");
    println!(
        "{count} executions in {:.0} s, {derived} derived, the slowest ({}) in {:.1} ms, at most {} MiB",
        began.elapsed().as_secs_f64(),
        slowest.1,
        slowest.0.as_secs_f64() * 1e3,
        peak / 1024
    );
}
