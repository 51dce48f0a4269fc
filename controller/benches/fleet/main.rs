//! How fast a fleet is: simulated hosts speak the real session over real TLS to real controllers on a real etcd, beside a
//! bare etcd client that does as many transactions in the same run.
//!
//! Run it with `make bench-fleet`. `DEVFLEET_BENCH_HOSTS` (`100,1000`) and `DEVFLEET_BENCH_JOBS` (1000) say how much is measured;
//! with `DEVFLEET_BENCH_RECORD` set, the table goes into `docs/benchmarks.md` as well.

#![expect(clippy::print_stdout, reason = "a benchmark talks to the terminal")]

mod bare;
mod hosts;
mod processes;
mod table;
mod work;

use std::time::Duration;

use anyhow::Context as _;
use devfleet_controller::cli::connection::Connection;
use devfleet_proto::v1;
use tokio::time::Instant;

use hosts::{Hosts, SLOTS};
use processes::{Controllers, configuration};
use table::Measured;
use work::Work;

/// How many calls of people are under way at once.
const AT_ONCE: usize = 64;
/// Transactions that placing a job takes, from its approval to its host's knowing of it: approve, assign.
const TRANSACTIONS: usize = 2;
/// How many jobs the wait from submission to assignment is taken from, and how many come a second.
const PACED: usize = 200;
const PACE: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    devfleet_shared::tls::install_provider();
    let sizes = std::env::var("DEVFLEET_BENCH_HOSTS").unwrap_or_else(|_| "100,1000".into());
    let jobs: usize = std::env::var("DEVFLEET_BENCH_JOBS").unwrap_or_else(|_| "1000".into()).parse()?;
    let mut rows = Vec::new();
    for size in sizes.split(',') {
        let size: usize = size.trim().parse().context("DEVFLEET_BENCH_HOSTS is a list of numbers")?;
        println!("{size} hosts …");
        rows.push(measure(size, jobs).await?);
    }
    table::publish(&table::render(&rows))
}

/// Measures a fleet of this size.
async fn measure(size: usize, jobs: usize) -> anyhow::Result<Measured> {
    let dir = tempfile::Builder::new().prefix("devfleet-bench-").tempdir()?;
    let (_etcd, endpoint) = processes::etcd(dir.path()).await?;
    let mut controllers = Controllers::start(dir.path(), &endpoint, 2).await?;
    let connection = controllers.connection(0)?;
    let alone = controllers.memory(0)? + controllers.memory(1)?;
    let join = v1::CreateJoinTokenRequest { uses: u32::try_from(size)?, ..Default::default() };
    let token = connection.fleet().create_join_token(join).await?.into_inner().token;
    let hosts = Hosts::join(dir.path(), &controllers.urls, &token, size).await?;
    let with_hosts = controllers.memory(0)? + controllers.memory(1)?;
    let work = Work::prepare(dir.path(), &connection).await?;

    let jobs = jobs.min(size * usize::try_from(SLOTS)? * 3 / 4);
    let (submitted, placed) = work.place(&connection, &hosts, jobs, AT_ONCE).await?;
    let with_jobs = controllers.memory(0)? + controllers.memory(1)?;
    let bare = bare::run(&endpoint, jobs * TRANSACTIONS, AT_ONCE).await?;
    hosts.seen.end_at_once.store(true, std::sync::atomic::Ordering::SeqCst);
    work.cancel(&connection, &submitted).await?;
    let waits = work.paced(&connection, &hosts, PACED, PACE).await?;

    controllers.kill(0);
    controllers.start_again(0).await?;
    let storm = hosts.all_connected(size).await?;
    let host_failover = work.lose_host(&connection, &hosts).await?;
    let leader_failover = lose_leader(&mut controllers, &work, &hosts).await?;
    Ok(Measured {
        hosts: size,
        jobs,
        per_second: jobs as f64 / placed.as_secs_f64(),
        bare_per_second: jobs as f64 / bare.as_secs_f64(),
        waits,
        host_bytes: with_hosts.saturating_sub(alone) as f64 / size as f64,
        job_bytes: with_jobs.saturating_sub(with_hosts) as f64 / jobs as f64,
        storm,
        host_failover,
        leader_failover,
    })
}

/// Kills the leader, and measures until the other controller places a job.
async fn lose_leader(controllers: &mut Controllers, work: &Work, hosts: &Hosts) -> anyhow::Result<Duration> {
    let leader = leader(controllers).await?;
    let other = 1 - leader;
    let begin = Instant::now();
    controllers.kill(leader);
    let connection: Connection = controllers.connection(other)?;
    let job = work.submit(&connection, true).await?;
    work.arrives(hosts, &job, Duration::from_secs(120)).await?;
    Ok(begin.elapsed())
}

async fn leader(controllers: &Controllers) -> anyhow::Result<usize> {
    let _ = controllers;
    anyhow::bail!("who leads is not known yet")
}
