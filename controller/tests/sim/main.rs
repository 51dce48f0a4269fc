//! Simulation: a fleet under trouble that a seed decides, and what must hold whatever happens.
//!
//! Each seed runs in a process of its own, where everything that is left to chance comes from the seed. A run that
//! fails says how to repeat it: `DEVFLEET_SIM_SEED=17 cargo test -p devfleet-controller --test sim one_seed`.

mod check;
mod fleet;
mod forge;
mod machine;
mod net;
mod people;
mod plan;
mod store;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use devfleet_shared::id::Digest;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use fleet::Fleet;
use plan::{Mutant, Plan};

const SEEDS: u64 = 200;
const SEED: &str = "DEVFLEET_SIM_SEED";
const MUTANT: &str = "DEVFLEET_SIM_MUTANT";
const TRACE: &str = "trace ";

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What one seed came to.
struct Outcome {
    went_well: bool,
    trace: Option<String>,
    output: String,
}

/// Runs a seed in a process of its own.
fn run(seed: u64, mutant: Option<Mutant>) -> Outcome {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args(["--exact", "one_seed", "--nocapture", "--test-threads=1"])
        .env(SEED, seed.to_string())
        .env(MUTANT, mutant.map(|mutant| format!("{mutant:?}")).unwrap_or_default())
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let trace = text.lines().find_map(|line| line.split_once(TRACE)).map(|(_, trace)| trace.to_owned());
    Outcome { went_well: output.status.success(), trace, output: text.into_owned() }
}

/// Runs seeds until one fails, as many side by side as there are processors; returns the failures.
fn run_all(mutant: Option<Mutant>, stop_at_first: bool) -> Vec<(u64, String)> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let enough = stop_at_first && !failed.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
            if seed >= variable("DEVFLEET_SIM_SEEDS").map_or(SEEDS, |count| count.parse().expect("a number")) || enough
            {
                return;
            }
            let outcome = run(seed, mutant);
            if !outcome.went_well && mutant.is_none_or(|mutant| outcome.output.contains(mutant.complaint())) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push((seed, outcome.output));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn one_seed() {
    let seed = variable(SEED).map_or(0, |seed| seed.parse().expect("a number"));
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let mutant = variable(MUTANT).map(|name| Mutant::named(&name).expect("a mutant"));
    // A thread of its own: what the standard library draws once for each thread is drawn from the seed.
    std::thread::spawn(move || {
        devfleet_host::blocking::in_line();
        let mut fleet = Fleet::new(Plan::of(seed), mutant);
        fleet.run();
        let wrong = check::check(&fleet);
        let history = format!("{:?}", fleet.store.history());
        let seen = format!("{:?}", fleet.seen);
        println!("{TRACE}{}", Digest::over([history.as_bytes(), seen.as_bytes()]).hex());
        if variable("DEVFLEET_SIM_SHOW").is_some() {
            println!("{:#?}\n{:#?}\n{history}", fleet.plan, fleet.seen);
        }
        let repeat = format!("{SEED}={seed} cargo test -p devfleet-controller --test sim one_seed -- --nocapture");
        assert!(wrong.is_empty(), "seed {seed}:\n  {}\nrepeat it with: {repeat}", wrong.join("\n  "));
    })
    .join()
    .expect("the seed goes well");
}

#[test]
fn whatever_a_seed_breaks_the_invariants_hold() {
    let failed = run_all(None, false);
    let shown: Vec<&str> = failed.iter().map(|(_, output)| output.as_str()).collect();
    assert!(failed.is_empty(), "{} seeds failed:\n{}", failed.len(), shown.join("\n"));
}

#[test]
fn a_seed_repeats_to_the_last_revision() {
    for seed in [0, 1, 2, 3] {
        let (first, second) = (run(seed, None), run(seed, None));
        assert!(first.trace.is_some(), "seed {seed} has no trace: {}", first.output);
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
}

#[test]
fn without_a_guard_some_seed_fails() {
    for mutant in Mutant::ALL {
        assert!(!run_all(Some(mutant), true).is_empty(), "no seed notices {mutant:?}");
    }
}
