//! The jobs that are placed: of a small project on a plain git remote, one that approves by itself and one that does not.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use devfleet_controller::cli::connection::Connection;
use devfleet_proto::v1;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::hosts::Hosts;

/// How long a job may take to be where it is waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// The pace of looking.
const LOOK: Duration = Duration::from_millis(2);
const CI: &str = "image: registry.example.com/tools:1\ntest:\n  script:\n    - make test\n";

/// Projects that jobs are submitted to.
pub(crate) struct Work;

impl Work {
    /// Makes the repository and both projects.
    pub(crate) async fn prepare(dir: &Path, connection: &Connection) -> anyhow::Result<Work> {
        let (work, bare) = (dir.join("work"), dir.join("app.git"));
        std::fs::create_dir_all(&work)?;
        std::fs::write(work.join(".gitlab-ci.yml"), CI)?;
        git(&work, &["init", "--quiet", "--initial-branch=main"])?;
        git(&work, &["add", "--all"])?;
        git(
            &work,
            &["-c", "user.name=Bench", "-c", "user.email=bench@example.com", "commit", "--quiet", "--message=Begin"],
        )?;
        git(&work, &["clone", "--quiet", "--bare", ".", &bare.display().to_string()])?;
        for (name, approval) in [("auto", "auto"), ("asked", "required")] {
            let toml = format!(
                "name = {name:?}\nrepository = {bare:?}\napproval = {approval:?}\nmax_attempts = 3\n\
                 [agents.fix]\nkind = \"script\"\ncommand = \"true\"\n"
            );
            connection.jobs().apply_project(v1::ApplyProjectRequest { toml }).await.context("apply the project")?;
        }
        Ok(Work)
    }

    /// Submits a job; returns its id.
    pub(crate) async fn submit(&self, connection: &Connection, auto: bool) -> anyhow::Result<String> {
        let request = v1::SubmitRequest {
            project: if auto { "auto" } else { "asked" }.into(),
            task: "mend it".into(),
            idempotency_key: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let answer = connection.jobs().submit(request).await.context("submit")?.into_inner();
        Ok(answer.job.context("no job")?.id)
    }

    /// Has this many jobs wait for approval, then approves them all, and measures until each is at a host.
    pub(crate) async fn place(
        &self,
        connection: &Connection,
        hosts: &Hosts,
        jobs: usize,
        at_once: usize,
    ) -> anyhow::Result<(Vec<String>, Duration)> {
        let submissions = futures_util::stream::iter(0..jobs).map(|_| self.submit(connection, false));
        let submitted: Vec<anyhow::Result<String>> = submissions.buffer_unordered(at_once).collect().await;
        let submitted: Vec<String> = submitted.into_iter().collect::<anyhow::Result<_>>()?;
        for job in &submitted {
            self.awaits_approval(connection, job).await?;
        }
        let begin = Instant::now();
        let approvals = futures_util::stream::iter(&submitted).map(|job| async move {
            let request = v1::ApproveRequest { job: job.clone(), digest: String::new() };
            connection.jobs().approve(request).await
        });
        let approved: Vec<_> = approvals.buffer_unordered(at_once).collect().await;
        for approved in approved {
            approved.context("approve")?;
        }
        let mut last = begin;
        for job in &submitted {
            last = last.max(self.arrives(hosts, job, PATIENCE).await?);
        }
        Ok((submitted, last - begin))
    }

    async fn awaits_approval(&self, connection: &Connection, job: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let found = connection.jobs().get_job(v1::GetJobRequest { job: job.to_owned() }).await?.into_inner();
            match found.phase.as_str() {
                "awaiting-approval" => return Ok(()),
                "ended" => anyhow::bail!("a job ended before it could be approved: {found:?}"),
                _ => anyhow::ensure!(begin.elapsed() < PATIENCE, "a job waits for its proposal for too long"),
            }
            tokio::time::sleep(LOOK * 10).await;
        }
    }

    /// Waits until a job is at a host; returns when it came there.
    pub(crate) async fn arrives(&self, hosts: &Hosts, job: &str, patience: Duration) -> anyhow::Result<Instant> {
        let begin = Instant::now();
        loop {
            if let Some((at, _)) = hosts.seen.arrival(job) {
                return Ok(at);
            }
            anyhow::ensure!(begin.elapsed() < patience, "job {job} came to no host");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Submits jobs one after the other at a pace; returns how long each took from submission to its host, sorted.
    pub(crate) async fn paced(
        &self,
        connection: &Connection,
        hosts: &Hosts,
        jobs: usize,
        pace: Duration,
    ) -> anyhow::Result<Vec<Duration>> {
        let mut ticks = tokio::time::interval(pace);
        let mut begun = Vec::new();
        for _ in 0..jobs {
            ticks.tick().await;
            begun.push((Instant::now(), self.submit(connection, true).await?));
        }
        let mut waits = Vec::new();
        for (begin, job) in begun {
            waits.push(self.arrives(hosts, &job, PATIENCE).await? - begin);
        }
        waits.sort();
        Ok(waits)
    }

    /// Cancels jobs and lets their hosts forget them.
    pub(crate) async fn cancel(&self, connection: &Connection, jobs: &[String]) -> anyhow::Result<()> {
        for job in jobs {
            connection.jobs().cancel(v1::CancelRequest { job: job.clone() }).await.context("cancel")?;
        }
        Ok(())
    }

    /// Kills a host with a job, and measures until another has it.
    pub(crate) async fn lose_host(&self, connection: &Connection, hosts: &Hosts) -> anyhow::Result<Duration> {
        hosts.seen.end_at_once.store(false, std::sync::atomic::Ordering::SeqCst);
        let job = self.submit(connection, true).await?;
        self.arrives(hosts, &job, PATIENCE).await?;
        let (_, first) = hosts.seen.arrival(&job).context("it arrived")?;
        let begin = Instant::now();
        hosts.kill(&first);
        loop {
            if hosts.seen.arrival(&job).is_some_and(|(_, host)| host != first) {
                return Ok(begin.elapsed());
            }
            anyhow::ensure!(begin.elapsed() < PATIENCE, "the job of the dead host came to no other");
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn git(dir: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("git").current_dir(dir).args(arguments).output()?;
    anyhow::ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
