//! Faults on a fleet of real parts: `deploy/testbed` brought up once, scene after scene on it, every invariant checked
//! after each from what was recorded, not from what devfleet says of itself. docs/faults.md lists the scenes.
//!
//! ```text
//! cargo test -p devfleet-controller --test testbed               the scenes of `make test`
//! cargo test -p devfleet-controller --test testbed -- partition  those with this in their name, long ones too
//! DEVFLEET_CHAOS=1 cargo test -p devfleet-controller --test testbed    all, at full length: `make chaos`
//! ```

mod engine_proxy;
mod fleet;
mod history;
mod invariants;
mod network;
mod people;
mod runner;
mod scanner;
mod scenes;
mod watcher;
mod work;

#[path = "../it/support"]
#[expect(dead_code, reason = "the other test binary uses all of it")]
mod support {
    pub(crate) mod gitlab;
    pub(crate) mod looking;
}

fn main() -> std::process::ExitCode {
    runner::run()
}
