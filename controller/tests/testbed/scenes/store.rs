//! Faults of the store's members, and of controllers that lose it.

use std::time::Duration;

use tonic::Code;

use crate::fleet::{MEMBERS, last, run, wait_for};
use crate::people::{phase, submission};
use crate::work::Stage;

fn etcd(member: &str) -> String {
    format!("{member}.etcd")
}

/// Returns the member that leads.
pub(super) async fn leading_member(stage: &Stage) -> &'static str {
    wait_for("a leading member", async || {
        MEMBERS.into_iter().find(|member| {
            let text = etcdctl(stage, member, &["endpoint", "status", "--write-out", "json"]).unwrap_or_default();
            let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let status = &status[0]["Status"];
            status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
        })
    })
    .await
}

fn etcdctl(stage: &Stage, member: &str, arguments: &[&str]) -> Option<String> {
    let endpoint = format!("--endpoints=http://{}:2379", stage.fleet.address(member));
    let output = std::process::Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args([&endpoint, "--command-timeout=5s"])
        .args(arguments)
        .output()
        .expect("etcdctl can be run");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn unharmed(stage: &Stage) {
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
}

pub(super) async fn a_member_that_is_killed_is_not_noticed(stage: &Stage, _chaos: bool) -> String {
    stage.at_work("steady-15").await;
    let leading = leading_member(stage).await;
    stage.fleet.kill(&etcd(leading));
    stage.submit("steady-1").await;
    last(Duration::from_secs(6)).await;
    stage.fleet.start(&etcd(leading));
    unharmed(stage).await;
    "the leading one".into()
}

pub(super) async fn a_leading_member_that_stands_still_is_not_noticed(stage: &Stage, _chaos: bool) -> String {
    stage.at_work("steady-15").await;
    let leading = leading_member(stage).await;
    let pause = stage.fleet.pause(&etcd(leading));
    last(Duration::from_secs(8)).await;
    drop(pause);
    unharmed(stage).await;
    String::new()
}

pub(super) async fn a_store_that_is_away_costs_time_alone(stage: &Stage, chaos: bool) -> String {
    stage.at_work("steady-15").await;
    for member in MEMBERS {
        stage.fleet.kill(&etcd(member));
    }
    let seconds = if chaos { 60 } else { 12 };
    last(Duration::from_secs(seconds)).await;
    for member in MEMBERS {
        stage.fleet.start(&etcd(member));
    }
    let jobs = stage.settle().await;
    assert!(jobs.iter().all(|job| job.outcome == "succeeded"), "{jobs:#?}");
    format!("all members away for {seconds} s")
}

/// A disk on which nothing can be written; the end of the value thaws it.
struct FrozenDisk(std::path::PathBuf);

impl FrozenDisk {
    fn of(stage: &Stage, member: &str) -> Self {
        let path = stage.fleet.dir().join(member).join("disk");
        run(std::process::Command::new("fsfreeze").arg("--freeze").arg(&path));
        Self(path)
    }
}

impl Drop for FrozenDisk {
    fn drop(&mut self) {
        drop(std::process::Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).output());
    }
}

pub(super) async fn a_lease_that_lies_moves_no_job_that_is_proven(stage: &Stage, chaos: bool) -> String {
    for _ in 0..if chaos { 3 } else { 1 } {
        stage.at_work("steady-30").await;
        let leading = leading_member(stage).await;
        let disk = FrozenDisk::of(stage, leading);
        last(Duration::from_secs(10)).await;
        drop(disk);
        let jobs = stage.settle().await;
        assert!(jobs.iter().all(|job| job.outcome == "succeeded"), "{jobs:#?}");
    }
    "the leading member's disk frozen for 10 s".into()
}

pub(super) async fn a_store_without_room_refuses_jobs_and_finishes_what_runs(stage: &Stage, _chaos: bool) -> String {
    let (job, _) = stage.at_work("steady-15").await;
    let value = "x".repeat(100_000);
    let mut filled = 0;
    while etcdctl(stage, "e1", &["put", "/filler", &value]).is_some() {
        filled += 1;
        assert!(filled < 2_000, "the quota is reached");
    }
    let request = submission("app", "steady-1");
    let refused = stage.people.once(async |to| to.jobs().submit(request.clone()).await).await;
    let refused = refused.expect_err("no room for another job");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    // The running job's agent ends meanwhile; what it has to say waits on its host.
    last(Duration::from_secs(10)).await;
    let status = etcdctl(stage, "e1", &["endpoint", "status", "--write-out", "json"]).expect("a status");
    let status: serde_json::Value = serde_json::from_str(&status).expect("json");
    let revision = status[0]["Status"]["header"]["revision"].as_u64().expect("a revision").to_string();
    etcdctl(stage, "e1", &["compact", &revision]).expect("compacted");
    for member in MEMBERS {
        etcdctl(stage, member, &["defrag"]).expect("defragmented");
    }
    etcdctl(stage, "e1", &["alarm", "disarm"]).expect("disarmed");
    let job = stage.people.ended(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{}: {job:#?}", phase(&job));
    stage.settle().await;
    format!("{filled} values of 100 kB")
}

pub(super) async fn a_history_that_is_compacted_is_read_anew(stage: &Stage, _chaos: bool) -> String {
    stage.at_work("steady-15").await;
    // While a controller stands still, the history that its watch is to go on from disappears.
    let controllers = stage.controllers();
    let pause = stage.fleet.pause(controllers.last().expect("a controller"));
    stage.submit("steady-1").await;
    last(Duration::from_secs(5)).await;
    let status = etcdctl(stage, "e1", &["endpoint", "status", "--write-out", "json"]).expect("a status");
    let status: serde_json::Value = serde_json::from_str(&status).expect("json");
    let revision = status[0]["Status"]["header"]["revision"].as_u64().expect("a revision").to_string();
    etcdctl(stage, "e1", &["compact", &revision]).expect("compacted");
    drop(pause);
    stage.people.answering().await;
    unharmed(stage).await;
    String::new()
}
