//! Faults of a host's own parts: its daemon and its engine.

use std::time::Duration;

use crate::fleet::{HOSTS, last};
use crate::work::Stage;

pub(super) async fn a_host_daemon_that_is_killed_again_and_again_loses_nothing(stage: &Stage, chaos: bool) -> String {
    let (rounds, jobs, agent) = if chaos { (100, 20, "steady-120") } else { (20, 6, "steady-30") };
    let mut ids = Vec::new();
    for _ in 0..jobs {
        ids.push(stage.submit(agent).await);
    }
    for id in &ids {
        stage.working(id).await;
    }
    let before: Vec<_> = ids.iter().flat_map(|id| stage.running(id)).collect();
    for round in 0..rounds {
        let part = format!("{}.host", HOSTS[round % HOSTS.len()]);
        stage.fleet.kill(&part);
        stage.fleet.start(&part);
        // Some rounds kill it in the middle of its start.
        if round % 3 == 2 {
            stage.people.all_hosts_ready().await;
        }
    }
    for id in &ids {
        let job = stage.people.job(id).await;
        assert_eq!((job.phase.as_str(), job.attempts.len()), ("running", 1), "no attempt is charged: {job:#?}");
    }
    let after: Vec<_> = ids.iter().flat_map(|id| stage.running(id)).collect();
    assert_eq!(before, after, "the same containers, the same processes");
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "no attempt is charged: {job:#?}");
    }
    format!("{rounds} kills, {jobs} jobs")
}

pub(super) async fn an_engine_that_is_killed_keeps_its_containers(stage: &Stage, _chaos: bool) -> String {
    let mut jobs = Vec::new();
    for _ in HOSTS {
        jobs.push(stage.at_work("steady-30").await);
    }
    let running = || jobs.iter().flat_map(|(job, _)| stage.running(&job.id)).collect::<Vec<_>>();
    let before = running();
    for node in HOSTS {
        stage.fleet.kill(&format!("{node}.dockerd"));
    }
    last(Duration::from_secs(2)).await;
    assert_eq!(before, running(), "the containers run on without the engine");
    for node in HOSTS {
        stage.fleet.start(&format!("{node}.dockerd"));
    }
    assert_eq!(before, running(), "and with it again");
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
    String::new()
}

pub(super) async fn an_engine_that_hangs_is_waited_for(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-5").await;
    let pause = stage.fleet.pause(&format!("{node}.dockerd"));
    last(Duration::from_secs(12)).await;
    let host = stage.people.hosts().await.into_iter().find(|host| host.name == node).expect("the host");
    assert!(host.connected, "the session lives on without the engine: {host:#?}");
    drop(pause);
    let job = stage.people.ended(&job.id).await;
    assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    stage.settle().await;
    String::new()
}

pub(super) async fn a_host_daemon_that_is_killed_at_any_moment_of_a_job_finishes_it(
    stage: &Stage,
    chaos: bool,
) -> String {
    let kills = if chaos { 60 } else { 8 };
    for kill in 0..kills {
        let id = stage.submit("steady-1").await;
        let job = stage.people.until(&id, "an attempt", |job| !job.attempts.is_empty()).await;
        let node = stage.people.node_of(&job.attempts[0].host).await;
        // Another moment each time: making, checkout, the hand-over, the agent, verify, collect, push, tear-down.
        last(Duration::from_millis(kill * 379 % 5_000)).await;
        stage.fleet.kill(&format!("{node}.host"));
        stage.fleet.start(&format!("{node}.host"));
    }
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "no attempt is charged: {job:#?}");
    }
    format!("{kills} kills")
}

pub(super) async fn an_engine_that_dies_with_all_its_shims_leaves_no_process(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-15").await;
    stage.fleet.kill(&format!("{node}.dockerd"));
    let killed = stage.fleet.kill_below(&node, &["containerd", "containerd-shim"]);
    assert!(killed >= 2, "containerd and its shims: {killed}");
    stage.fleet.start(&format!("{node}.dockerd"));
    let job = stage.people.ended(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}");
    assert!(job.attempts.len() <= 2, "{job:#?}");
    stage.settle().await;
    format!("{killed} processes, {} attempts", job.attempts.len())
}
