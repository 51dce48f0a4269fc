//! What a daemon, an engine and a host find again when they start anew.

use std::time::Duration;

use crate::fleet::{HOSTS, last, now};
use crate::work::Stage;

pub(super) async fn twenty_jobs_survive_their_daemon_and_its_upgrade(stage: &Stage, _chaos: bool) -> String {
    let node = HOSTS[0];
    stage.only(&[node]).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(stage.submit("steady-120").await);
    }
    for id in &ids {
        stage.working(id).await;
    }
    stage.only(&HOSTS).await;
    let running = || ids.iter().flat_map(|id| stage.running(id)).collect::<Vec<_>>();
    let before = running();
    assert!(before.len() >= 20 && before.iter().all(|one| one.node == node), "{before:#?}");
    let part = format!("{node}.host");
    stage.fleet.kill(&part);
    stage.fleet.start(&part);
    stage.people.all_hosts_ready().await;
    assert_eq!(before, running(), "killed: the same containers, the same processes");
    // Another program at another place, as a package brings it.
    let program = stage.fleet.change_command(&part, |command| {
        let path = command.split('\'').find(|word| word.ends_with("/devfleet-host")).expect("its program").to_owned();
        let newer = stage.fleet.dir().join(node).join("newer");
        std::fs::create_dir_all(&newer).expect("a folder");
        std::fs::copy(&path, newer.join("devfleet-host")).expect("copied");
        command.replace(&path, &newer.join("devfleet-host").display().to_string())
    });
    let begun = now();
    stage.fleet.stop(&part);
    stage.fleet.start(&part);
    stage.people.all_hosts_ready().await;
    let took = (now() - begun).as_secs_f32();
    assert_eq!(before, running(), "upgraded: the same containers, the same processes");
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "no attempt is charged: {job:#?}");
    }
    stage.fleet.stop(&part);
    program.put_back();
    stage.fleet.start(&part);
    stage.people.all_hosts_ready().await;
    format!("{} containers; the upgrade took {took:.1} s", before.len())
}

pub(super) async fn an_engine_without_live_restore_costs_an_attempt(stage: &Stage, _chaos: bool) -> String {
    let node = HOSTS[0];
    let part = format!("{node}.dockerd");
    let command = stage.fleet.change_command(&part, |command| command.replace(" '--live-restore'", ""));
    let mut report = Vec::new();
    for (name, killed) in [("stopped", false), ("killed", true)] {
        stage.fleet.stop(&part);
        stage.fleet.start(&part);
        stage.people.all_hosts_ready().await;
        stage.only(&[node]).await;
        let (job, _) = stage.at_work("steady-15").await;
        stage.only(&HOSTS).await;
        if killed {
            stage.fleet.kill(&part)
        } else {
            stage.fleet.stop(&part)
        }
        stage.fleet.start(&part);
        let job = stage.people.ended(&job.id).await;
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 2), "it is tried again: {job:#?}");
        stage.settle().await;
        report.push(format!("{name}: {} attempts", job.attempts.len()));
    }
    stage.fleet.stop(&part);
    command.put_back();
    stage.fleet.start(&part);
    stage.people.all_hosts_ready().await;
    report.join("; ")
}

pub(super) async fn a_host_that_starts_anew_leaves_nothing(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-15").await;
    stage.power_off(&node);
    stage.fleet.forget_run(&node);
    last(Duration::from_secs(5)).await;
    stage.fleet.start(&format!("{node}.dockerd"));
    stage.fleet.start(&format!("{node}.host"));
    let job = stage.people.ended(&job.id).await;
    assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 2), "it is tried again: {job:#?}");
    stage.settle().await;
    String::new()
}
