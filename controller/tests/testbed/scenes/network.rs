//! Faults of the network between hosts and controllers.

use std::time::Duration;

use crate::fleet::{HOSTS, last};
use crate::network::{Cut, Slow, Unplugged, Way};
use crate::work::Stage;

const CONTROLLERS: [&str; 2] = ["c1", "c2"];

/// Nothing is visible of it: one attempt, and it succeeds.
async fn unnoticed(stage: &Stage) {
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
}

pub(super) async fn a_partition_shorter_than_the_freeze_is_not_noticed(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-15").await;
    let before = stage.running(&job.id);
    let cut = Unplugged::node(&stage.fleet, &node);
    last(Duration::from_secs(3)).await;
    assert_eq!(before, stage.running(&job.id), "it works on");
    drop(cut);
    unnoticed(stage).await;
    String::new()
}

pub(super) async fn lost_packets_cost_time_alone(stage: &Stage, chaos: bool) -> String {
    let mut cuts = Vec::new();
    for node in HOSTS {
        cuts.push(Cut::lossy(&stage.fleet, node, 0.1));
    }
    for _ in 0..if chaos { 9 } else { 3 } {
        stage.submit("steady-5").await;
    }
    unnoticed(stage).await;
    drop(cuts);
    "10 % lost in each direction".into()
}

pub(super) async fn a_slow_link_full_of_log_lines_keeps_the_session(stage: &Stage, _chaos: bool) -> String {
    let (_, node) = stage.at_work("flood").await;
    let slow = Slow::node(&stage.fleet, &node, "1mbit");
    for _ in 0..100 {
        let host = stage.people.hosts().await.into_iter().find(|host| host.name == node).expect("the host");
        assert!(host.connected, "the session lives beside the log: {host:#?}");
        last(Duration::from_millis(100)).await;
    }
    drop(slow);
    unnoticed(stage).await;
    "1 Mbit/s for 10 s".into()
}

pub(super) async fn a_flapping_link_causes_no_thrashing(stage: &Stage, chaos: bool) -> String {
    let rounds = if chaos { 60 } else { 8 };
    let (_, node) = stage.at_work(if chaos { "steady-120" } else { "steady-15" }).await;
    for round in 0..rounds {
        let way = [Way::Both, Way::In, Way::Out][round % 3];
        let cut = Cut::between(&stage.fleet, &node, &CONTROLLERS, way);
        last(Duration::from_millis(200 * (round as u64 % 8 + 1))).await;
        drop(cut);
        last(Duration::from_millis(150 * (round as u64 % 5 + 1))).await;
    }
    unnoticed(stage).await;
    format!("{rounds} cuts of up to 1.6 s")
}
