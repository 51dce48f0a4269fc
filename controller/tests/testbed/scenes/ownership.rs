//! Who may run a job when its host is silent: for a while, for long, for good, together with most others.
//!
//! All with the default timers: frozen 10 s after the last proof, given away 20 s after a lease of 15 s, removed after 60 s.

use std::time::Duration;

use devfleet_proto::v1;

use crate::fleet::{HOSTS, last, now, wait_for};
use crate::history::Running;
use crate::network::{Cut, Unplugged, Way};
use crate::work::Stage;

const CONTROLLERS: [&str; 2] = ["c1", "c2"];
/// Until when a silent host stands still: the freeze after its last proof, and the time that freezing may take.
const STILL: Duration = Duration::from_secs(15);
/// Until when the job of a host that is dead goes on elsewhere.
const FAILOVER: Duration = Duration::from_secs(60);

fn still(running: &[Running]) -> bool {
    !running.is_empty() && running.iter().all(|one| one.frozen)
}

/// What runs, whether it is frozen or not.
fn processes(running: &[Running]) -> Vec<(String, i32)> {
    running.iter().map(|one| (one.name.clone(), one.pid)).collect()
}

/// Waits until a job stands still, in time; returns how long that took.
async fn stands_still(stage: &Stage, job: &str, cut: Duration) -> f32 {
    stage.kernel(job, "a frozen environment", still).await;
    let took = now() - cut;
    assert!(took < STILL, "it is frozen in time, not after {took:?}");
    took.as_secs_f32()
}

/// Waits until a job's second attempt is at work; returns it.
async fn goes_on_elsewhere(stage: &Stage, job: &v1::Job) -> v1::Attempt {
    stage.people.until(&job.id, "a second attempt", |job| job.attempts.len() == 2).await;
    let job = stage.people.until(&job.id, "its agent at work", |job| crate::people::phase(job) == "agent").await;
    assert_ne!(job.attempts[0].host, job.attempts[1].host, "on another host: {job:#?}");
    job.attempts[1].clone()
}

/// The result is that of the second attempt, and nothing of the first one took effect.
fn replaced(stage: &Stage, job: &v1::Job) {
    assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 2), "{job:#?}");
    let opened = job.merge_request.as_ref().expect("a merge request");
    assert!(opened.source_branch.starts_with(&job.attempts[1].branch), "{job:#?}");
    let stale = stage.gitlab.head(&stage.project, &job.attempts[0].branch);
    assert_eq!(stale, None, "the fenced attempt pushed nothing: {job:#?}");
}

pub(super) async fn a_partition_longer_than_the_freeze_costs_time_alone(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-15").await;
    let before = processes(&stage.running(&job.id));
    let cut_at = now();
    let cut = Unplugged::node(&stage.fleet, &node);
    let frozen = stands_still(stage, &job.id, cut_at).await;
    assert_eq!(before, processes(&stage.running(&job.id)), "the same processes, which stand still");
    drop(cut);
    let heals = now();
    let after = stage.kernel(&job.id, "work that goes on", |all| !all.is_empty() && all.iter().all(|one| !one.frozen));
    assert_eq!(before, processes(&after.await), "the same processes go on");
    let thawed = (now() - heals).as_secs_f32();
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
    format!("frozen {frozen:.1} s after the cut, goes on {thawed:.1} s after its end")
}

pub(super) async fn a_partition_of_half_a_minute_moves_a_job_at_most_once(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-30").await;
    let cut_at = now();
    let cut = Unplugged::node(&stage.fleet, &node);
    let frozen = stands_still(stage, &job.id, cut_at).await;
    last(Duration::from_secs(30).saturating_sub(now() - cut_at)).await;
    drop(cut);
    let mut attempts = 0;
    for job in stage.settle().await {
        assert_eq!(job.outcome, "succeeded", "{job:#?}");
        assert!(job.attempts.len() <= 2, "{job:#?}");
        attempts = job.attempts.len();
    }
    format!("frozen after {frozen:.1} s, {attempts} attempts")
}

pub(super) async fn a_partition_of_minutes_fences_what_it_cut_off(stage: &Stage, _chaos: bool) -> String {
    stage.only(&HOSTS[..1]).await;
    let (long, node) = stage.at_work("steady-60").await;
    let (short, _) = stage.at_work("steady-5").await;
    stage.only(&HOSTS).await;
    // From the controllers alone: it could still push, if it were let.
    let cut_at = now();
    let cut = Cut::between(&stage.fleet, &node, &CONTROLLERS, Way::Both);
    let on_node = |all: &[Running]| all.iter().filter(|one| one.node == node).cloned().collect::<Vec<_>>();
    stage.kernel(&long.id, "a frozen environment", |all| still(&on_node(all))).await;
    for job in [&short, &long] {
        goes_on_elsewhere(stage, job).await;
    }
    let moved = (now() - cut_at).as_secs_f32();
    stage.kernel(&long.id, "its removal by the host that is cut off", |all| on_node(all).is_empty()).await;
    let removed = (now() - cut_at).as_secs_f32();
    last(Duration::from_secs(300).saturating_sub(now() - cut_at)).await;
    drop(cut);
    for job in stage.settle().await {
        replaced(stage, &job);
    }
    format!("both jobs at work elsewhere after {moved:.1} s, what was cut off gone after {removed:.1} s")
}

pub(super) async fn a_partition_of_one_way_is_one_of_both(stage: &Stage, _chaos: bool) -> String {
    let mut report = Vec::new();
    for (way, name) in [(Way::In, "in"), (Way::Out, "out")] {
        let (job, node) = stage.at_work("steady-30").await;
        let cut_at = now();
        let cut = Cut::between(&stage.fleet, &node, &CONTROLLERS, way);
        let frozen = stands_still(stage, &job.id, cut_at).await;
        goes_on_elsewhere(stage, &job).await;
        let moved = (now() - cut_at).as_secs_f32();
        drop(cut);
        for job in stage.settle().await {
            replaced(stage, &job);
        }
        report.push(format!("{name}: frozen after {frozen:.1} s, elsewhere after {moved:.1} s"));
    }
    report.join("; ")
}

pub(super) async fn a_host_daemon_that_stands_still_is_frozen_by_its_watchdog(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-30").await;
    let paused_at = now();
    let pause = stage.fleet.pause(&format!("{node}.host"));
    let frozen = stands_still(stage, &job.id, paused_at).await;
    goes_on_elsewhere(stage, &job).await;
    drop(pause);
    for job in stage.settle().await {
        replaced(stage, &job);
    }
    format!("frozen after {frozen:.1} s")
}

pub(super) async fn the_job_of_a_host_that_died_goes_on_elsewhere(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-5").await;
    let died = now();
    stage.power_off(&node);
    let job = {
        goes_on_elsewhere(stage, &job).await;
        stage.working(&job.id).await
    };
    let took = now() - died;
    assert!(took <= FAILOVER, "it works elsewhere after {took:?}: {job:#?}");
    stage.fleet.start(&format!("{node}.dockerd"));
    stage.fleet.start(&format!("{node}.host"));
    for job in stage.settle().await {
        replaced(stage, &job);
    }
    format!("its agent at work on another host {:.1} s after the death", took.as_secs_f32())
}

pub(super) async fn most_hosts_silent_at_once_lose_nothing(stage: &Stage, _chaos: bool) -> String {
    let mut jobs = Vec::new();
    for node in HOSTS {
        stage.only(&[node]).await;
        jobs.push(stage.at_work("steady-30").await);
    }
    stage.only(&HOSTS).await;
    let cut_at = now();
    let cuts = [Unplugged::node(&stage.fleet, &jobs[0].1), Unplugged::node(&stage.fleet, &jobs[1].1)];
    for (job, _) in &jobs[..2] {
        stands_still(stage, &job.id, cut_at).await;
    }
    let braked = async || {
        let says = |part: String| stage.fleet.log(&part).contains("most hosts are silent at once");
        stage.controllers().into_iter().any(says).then_some(())
    };
    wait_for("the brake", braked).await;
    // A lease and the grace, and some: one host alone would have lost its jobs; none has killed them yet.
    last(Duration::from_secs(42).saturating_sub(now() - cut_at)).await;
    for (job, _) in &jobs[..2] {
        let job = stage.people.job(&job.id).await;
        assert_eq!((job.phase.as_str(), job.attempts.len()), ("running", 1), "nothing is given away: {job:#?}");
    }
    drop(cuts);
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
    "two of three for 42 s".into()
}
