//! The parts of a run, in order: each waits for states with a bound, and says what it waited for when that does not come.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use crate::ground::Ground;
use crate::hosts::Hosts;
use crate::records::Records;
use crate::report::{Report, percentile, shown};
use crate::{bare, progress, until};

/// The bound of waits that are not measured against a goal.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many hosts the first look at the time of a start is taken with.
const FEW: usize = 100;
/// How many jobs are submitted one after the other to see how soon each starts.
const SINGLES: usize = 100;
/// As many jobs as a fleet may be allowed to run.
const MOST: u64 = 100_000;
/// How many are submitted at once.
const SUBMITTING: usize = 16;
/// As many placements as the controller puts in one transaction.
const TOGETHER: usize = 42;

/// A run.
pub(crate) struct Stages<'a> {
    pub(crate) ground: Ground,
    pub(crate) hosts: Hosts,
    pub(crate) records: Records,
    pub(crate) report: &'a mut Report,
    pub(crate) submitted: usize,
}

impl Stages<'_> {
    pub(crate) async fn all(&mut self, hosts: usize, jobs: usize) -> anyhow::Result<()> {
        self.warm(hosts.min(FEW)).await?;
        if hosts > FEW {
            self.latency(None).await?;
            let empty = self.memory().await?;
            self.connect(hosts).await?;
            let grown = self.memory().await?.saturating_sub(empty) / (hosts - FEW) as u64;
            self.report.row("memory of the controller for each connected host", format!("{} KiB", grown >> 10));
        }
        self.latency(Some(Duration::from_millis(100)).filter(|_| hosts >= 1_000)).await?;
        self.placements(jobs).await?;
        self.storm().await?;
        self.host_failover().await?;
        self.leader_failover().await
    }

    async fn memory(&self) -> anyhow::Result<u64> {
        let leader = self.ground.leader().await?.context("nobody leads")?;
        self.ground.controllers[leader].memory()
    }

    /// Lets hosts join until there are so many, and waits until all have a session.
    async fn connect(&mut self, to: usize) -> anyhow::Result<()> {
        let (before, begun) = (self.hosts.count(), Instant::now());
        let joining = self.hosts.grow(&self.ground, to).await?;
        self.all_connected(PATIENCE).await?;
        let found =
            format!("{} for {} joins; all sessions open after {}", shown(joining), to - before, shown(begun.elapsed()));
        progress(&found);
        self.report.row(format!("{} hosts join with one token, 32 at once", to - before), found);
        Ok(())
    }

    async fn all_connected(&self, patience: Duration) -> anyhow::Result<()> {
        let (shared, count) = (self.hosts.shared.clone(), self.hosts.count());
        let connected = async || (shared.connected.load(Ordering::SeqCst) >= count).then_some(());
        let met = until("all sessions", patience, connected).await;
        met.with_context(|| format!("{} of {count} hosts have a session", shared.connected.load(Ordering::SeqCst)))
    }

    /// The first hosts and the first job: from then on every host has its image.
    async fn warm(&mut self, hosts: usize) -> anyhow::Result<()> {
        self.connect(hosts).await?;
        let job = self.submit().await?;
        self.told(&job, PATIENCE).await?;
        anyhow::ensure!(self.hosts.recipes_seen() == 1, "the first job has no recipe");
        Ok(())
    }

    async fn submit(&mut self) -> anyhow::Result<String> {
        self.submitted += 1;
        self.ground.submit(self.submitted).await
    }

    async fn told(&self, job: &str, patience: Duration) -> anyhow::Result<(Instant, usize)> {
        let shared = self.hosts.shared.clone();
        until("a job to reach a host", patience, async || shared.told(job).first().copied()).await
    }

    /// How soon a job starts that is submitted to a fleet with room.
    async fn latency(&mut self, goal: Option<Duration>) -> anyhow::Result<()> {
        let (mut whole, mut waited) = (Vec::new(), Vec::new());
        for _ in 0..SINGLES.min(self.hosts.count() * 2) {
            let begun = Instant::now();
            let job = self.submit().await?;
            let (told, _) = self.told(&job, PATIENCE).await?;
            whole.push(told.saturating_duration_since(begun));
            let records = &self.records;
            waited.push(until("a record of a start", PATIENCE, async || records.waited(&job)).await?);
        }
        let name = format!("with {} hosts", self.hosts.count());
        for (what, times) in
            [("submit to the host that was given the job", &mut whole), ("queued to assigned", &mut waited)]
        {
            let (half, most) = (percentile(times, 0.5), percentile(times, 0.99));
            let found = format!("p50 {}, p99 {}", shown(half), shown(most));
            progress(&format!("{what}, {name}: {found}"));
            self.report.row(format!("{what}, {name}, one job after the other"), found);
        }
        if let Some(goal) = goal {
            let met = percentile(&mut whole, 0.99) < goal;
            self.report.goal(format!("p99 of a start below {} {name}", shown(goal)), met);
        }
        Ok(())
    }

    /// How many jobs a second are given to hosts, when many are queued and there is room for all.
    async fn placements(&mut self, count: usize) -> anyhow::Result<()> {
        let before = self.memory().await?;
        self.ground.allow(1).await?;
        let (begun, first) = (Instant::now(), self.submitted);
        self.submitted += count;
        let ground = &self.ground;
        let submissions = (first..first + count).map(|number| ground.submit(number));
        let jobs: BTreeSet<String> =
            futures_util::stream::iter(submissions).buffer_unordered(SUBMITTING).try_collect().await?;
        let records = &self.records;
        let all = async || (records.queued(&jobs) == count).then_some(());
        let queued = until("all jobs to be queued", PATIENCE, all).await;
        queued.with_context(|| format!("{} of {count} jobs are queued", records.queued(&jobs)))?;
        let gates = count as f64 / begun.elapsed().as_secs_f64();
        let memory = self.memory().await?.saturating_sub(before) / count as u64;
        self.report.row("jobs submitted and through their gates, 16 at once", format!("{gates:.0} /s"));
        self.report.row("memory of the controller for each queued job", format!("{} KiB", memory >> 10));
        let begun = Instant::now();
        ground.allow(MOST).await?;
        let all = async || (records.assigned(&jobs).len() == count).then_some(());
        let assigned = until("all jobs to be assigned", PATIENCE, all).await;
        assigned.with_context(|| format!("{} of {count} jobs are assigned", records.assigned(&jobs).len()))?;
        let took = begun.elapsed();
        let transactions = records.assigned(&jobs).iter().map(|(_, revision)| *revision).collect::<BTreeSet<_>>().len();
        self.compare(&jobs, took, transactions).await?;
        let shared = self.hosts.shared.clone();
        let wanted = self.submitted + usize::from(first == 0);
        until("all jobs to reach their hosts", PATIENCE, async || (shared.told_jobs() >= wanted).then_some(())).await?;
        self.report.row("the same until the last host was told", shown(begun.elapsed()));
        Ok(())
    }

    async fn compare(&mut self, jobs: &BTreeSet<String>, took: Duration, transactions: usize) -> anyhow::Result<()> {
        let placed = bare::records(&self.ground, jobs.iter()).await?;
        let together = bare::write(&self.ground, "together", &placed, TOGETHER).await?;
        let alone = bare::write(&self.ground, "alone", &placed, 1).await?;
        let rate = |time: Duration| jobs.len() as f64 / time.as_secs_f64();
        let (ours, same, single) = (rate(took), rate(together), rate(alone));
        let found = format!("{ours:.0} /s, in {transactions} transactions");
        progress(&format!("{} placements: {found}; bare etcd {same:.0} /s together, {single:.0} /s alone", jobs.len()));
        self.report.row(format!("{} placements", jobs.len()), found);
        self.report.row(
            "bare etcd client, the same records in as many transactions",
            format!("{same:.0} /s; ratio {:.2}", ours / same),
        );
        self.report.row(
            "bare etcd client, a transaction for each placement",
            format!("{single:.0} /s; ratio {:.2}", ours / single),
        );
        self.report.goal("at least 0.5 of bare etcd with as many transactions", ours / same >= 0.5);
        self.report.goal("at least 0.5 of bare etcd with a transaction each", ours / single >= 0.5);
        Ok(())
    }

    /// All sessions at once are cut, and come back.
    async fn storm(&mut self) -> anyhow::Result<()> {
        let shared = self.hosts.shared.clone();
        let (mut quiet, count) = (shared.take_proofs(), self.hosts.count());
        let (errors, before) = (shared.errors.load(Ordering::SeqCst), shared.welcomes.load(Ordering::SeqCst));
        let begun = Instant::now();
        self.hosts.cut_all();
        let again = async || (shared.welcomes.load(Ordering::SeqCst) >= before + count).then_some(());
        until("all sessions to be opened again", PATIENCE, again).await?;
        self.all_connected(PATIENCE).await?;
        let back = begun.elapsed();
        let proofs = async || (shared.proofs() >= count).then_some(());
        until("a proof of every host", PATIENCE, proofs).await?;
        let mut during = shared.take_proofs();
        let errors = shared.errors.load(Ordering::SeqCst) - errors;
        let found = format!("all back after {}, {errors} errors", shown(back));
        progress(&format!("{count} sessions cut at once: {found}"));
        self.report.row(format!("{count} sessions cut at once"), found);
        let (before, after) = (percentile(&mut quiet, 0.99), percentile(&mut during, 0.99));
        self.report
            .row("p99 of a proof before, and while they came back", format!("{}, {}", shown(before), shown(after)));
        Ok(())
    }

    /// A host goes without a word: its job goes to another.
    async fn host_failover(&mut self) -> anyhow::Result<()> {
        let job = self.submit().await?;
        let (_, host) = self.told(&job, PATIENCE).await?;
        let begun = Instant::now();
        self.hosts.kill(host);
        let (shared, bound) = (self.hosts.shared.clone(), Duration::from_secs(90));
        let elsewhere = async || shared.told(&job).iter().find(|(_, to)| *to != host).copied();
        let (told, _) = until("a dead host's job to reach another", bound, elsewhere).await?;
        let took = told.saturating_duration_since(begun);
        progress(&format!("a dead host's job reached another after {}", shown(took)));
        self.report.row("a host dies: its job reaches another host, with default timers", shown(took));
        self.report.goal("a dead host's job elsewhere within 60 s", took <= Duration::from_secs(60));
        Ok(())
    }

    /// The leader is killed: another leads, all sessions come back, and a job starts.
    async fn leader_failover(&mut self) -> anyhow::Result<()> {
        let leader = self.ground.leader().await?.context("nobody leads")?;
        let begun = Instant::now();
        self.ground.controllers[leader].kill();
        let ground = &self.ground;
        let another = async || ground.leader().await.ok().flatten().filter(|now| *now != leader);
        until("another leader", Duration::from_secs(60), another).await?;
        let led = begun.elapsed();
        let job = self.submit().await?;
        self.told(&job, PATIENCE).await?;
        let started = begun.elapsed();
        let (shared, alive) = (self.hosts.shared.clone(), self.hosts.count() - 1);
        let back = async || (shared.connected.load(Ordering::SeqCst) >= alive).then_some(());
        until("all sessions", PATIENCE, back).await?;
        let found = format!(
            "another leads after {}, a job starts after {}, all sessions are back after {}",
            shown(led),
            shown(started),
            shown(begun.elapsed())
        );
        progress(&format!("kill -9 of the leader: {found}"));
        self.report.row("kill -9 of the leader", found);
        self.report.goal("another leader within 15 s", led <= Duration::from_secs(15));
        Ok(())
    }
}
