//! Faults of controllers: killed, standing still, cut off.

use std::time::Duration;

use crate::fleet::last;
use crate::work::Stage;

pub(super) async fn controllers_that_are_killed_lose_no_job_and_charge_no_attempt(
    stage: &Stage,
    chaos: bool,
) -> String {
    let (rounds, agent) = if chaos { (30, "steady-60") } else { (4, "steady-15") };
    let mut ids = Vec::new();
    for round in 0..rounds {
        // Submissions come in between: the client's key makes them safe to repeat.
        if round < 5 {
            ids.push(stage.submit(agent).await);
        }
        for part in stage.controllers() {
            stage.fleet.kill(&part);
            last(Duration::from_millis(500)).await;
            stage.fleet.start(&part);
            // The next one dies only when this one can serve again: the fleet is never without one for long.
            stage.people.answering().await;
        }
    }
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "no attempt is charged: {job:#?}");
    }
    format!("{} kills, {} jobs", rounds * stage.controllers().len(), ids.len())
}

pub(super) async fn a_leader_that_stands_still_writes_nothing_when_it_goes_on(stage: &Stage, chaos: bool) -> String {
    let mut paused = Vec::new();
    for _ in 0..if chaos { 5 } else { 1 } {
        stage.submit("steady-5").await;
        let leader = stage.leader().await;
        let pause = stage.fleet.pause(&leader);
        // Longer than the leader's lease and the longest election of the store.
        last(Duration::from_secs(30)).await;
        let next = stage.leader().await;
        assert_ne!(leader, next, "another one leads meanwhile");
        drop(pause);
        stage.people.answering().await;
        paused.push(leader);
    }
    let jobs = stage.settle().await;
    assert!(jobs.iter().all(|job| job.outcome == "succeeded"), "{jobs:#?}");
    format!("paused: {}", paused.join(", "))
}
