//! What a fleet carries: simulated hosts speak the real session over real TLS to real controllers on a real etcd, beside a
//! bare etcd client that writes the same records.
//!
//! Run it with `make bench-fleet`. It needs etcd and git. `DEVFLEET_BENCH_HOSTS` (1000) and `DEVFLEET_BENCH_JOBS` (2000) say
//! how much is measured; with `DEVFLEET_BENCH_RECORD` set the result goes into `docs/benchmarks.md` as well.

#![expect(clippy::print_stderr, reason = "a benchmark talks to the terminal")]

mod bare;
mod ground;
mod hosts;
#[path = "../../../agent-host/benches/environment/record.rs"]
mod record;
mod records;
mod report;
mod stages;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use ground::Ground;
use hosts::Hosts;
use records::Records;
use report::Report;
use stages::Stages;

/// The time for all of it.
const WHOLE: Duration = Duration::from_secs(600);
/// How often a state is looked at.
const LOOK: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    devfleet_shared::tls::install_provider();
    let (hosts, jobs) = (number("DEVFLEET_BENCH_HOSTS", 1_000)?, number("DEVFLEET_BENCH_JOBS", 2_000)?);
    let mut report = Report::default();
    let ground = Ground::start().await?;
    let begun = Instant::now();
    let outcome = tokio::time::timeout(WHOLE, measure(ground, hosts, jobs, &mut report)).await;
    let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it did not end within {} s", WHOLE.as_secs())));
    if let Err(error) = outcome {
        report.broken = Some(format!("{error:#}"));
    }
    progress(&format!("{:.0} s in all", begun.elapsed().as_secs_f64()));
    record::publish("fleet run", &report.text())?;
    Ok(if report.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure(ground: Ground, hosts: usize, jobs: usize, report: &mut Report) -> anyhow::Result<()> {
    let records = Records::follow(ground.store.clone()).await?;
    let fleet = Hosts::none(&ground);
    let mut stages = Stages { ground, hosts: fleet, records, report, submitted: 0 };
    let outcome = stages.all(hosts, jobs).await;
    if outcome.is_err() {
        eprintln!("{}", stages.ground.logs());
    }
    outcome
}

/// Waits for a state, looking again and again, at most for this time.
pub(crate) async fn until<T>(what: &str, patience: Duration, look: impl AsyncFn() -> Option<T>) -> anyhow::Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let patience_s = patience.as_secs();
    tokio::time::timeout(patience, looking).await.with_context(|| format!("waited {patience_s} s in vain for {what}"))
}

/// Says where the run stands.
pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}

fn number(variable: &str, default: usize) -> anyhow::Result<usize> {
    match std::env::var(variable) {
        Ok(text) => {
            text.parse().ok().filter(|number| *number > 0).with_context(|| format!("{variable} is no number: {text}"))
        }
        Err(_) => Ok(default),
    }
}
