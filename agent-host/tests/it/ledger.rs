//! Restarts of the daemon: killed at each entry of the ledger and at each call of the engine, it goes on to the same end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use devfleet_host::engine::memory::{Piece, Script};
use devfleet_shared::attempt::{AttemptResult, FailureReason, Phase};

use crate::world::{World, commit, until};

fn success() -> AttemptResult {
    AttemptResult::Succeeded { commit: commit(), verified: true }
}

/// Names of containers that exist twice although their command runs once.
fn second_containers(world: &World) -> Vec<String> {
    let calls = world.engine.calls();
    let names = ["checkout-2", "setup-2", "agent-2", "verify-2"].map(|role| world.name(role));
    names.into_iter().filter(|name| calls.iter().any(|call| call.about == *name)).collect()
}

#[tokio::test(start_paused = true)]
async fn whatever_entry_the_ledger_ends_at_the_result_is_the_same_and_no_step_runs_twice() {
    let mut world = World::new();
    world.assignment.hold = Duration::from_secs(3_600);
    let daemon = world.begin().await;
    daemon.ended(&world.attempt()).await;
    let text = std::fs::read_to_string(world.ledger()).expect("ledger");
    daemon.kill().await;
    let entries = text.lines().count();
    assert!(entries > 20, "{text}");
    for kept in 1..=entries {
        let cut: String = text.split_inclusive('\n').take(kept).collect();
        // Half a line behind the cut, as a crash leaves it.
        std::fs::write(world.ledger(), cut + "{\"at\":12,\"ent").expect("write");
        let daemon = world.start();
        daemon.handle.apply(world.set(1, false), true).await;
        let report = daemon.ended(&world.attempt()).await;
        assert_eq!(report.phase, Phase::Ended(success()), "after {kept} entries: {}", daemon.log());
        assert_eq!(second_containers(&world), [""; 0], "after {kept} entries");
        daemon.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn killed_before_each_engine_call_it_goes_on_to_the_same_end() {
    let world = World::new();
    world.carry_out().await;
    let calls = world.engine.calls().len();
    for number in 1..=calls {
        let world = World::new();
        // The task falls in the middle of a call; its supervisor takes it up again from the ledger.
        let alive = AtomicBool::new(true);
        world.engine.fail_when(move |call| {
            let dies = call.number == number && alive.swap(false, Ordering::SeqCst);
            assert!(!dies, "killed here on purpose");
            None
        });
        let daemon = world.begin().await;
        let result = world.finish(&daemon).await;
        assert_eq!(result, success(), "call {number}: {}", daemon.log());
        assert_eq!(second_containers(&world), [""; 0], "call {number}");
        assert_eq!(world.pushed().iter().collect::<std::collections::BTreeSet<_>>().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_runs_is_adopted_with_all_its_output_and_one_container() {
    let world = World::new();
    let line = |second: u64| Piece {
        after: Duration::from_secs(second),
        data: format!("line {second}\n").into(),
        ..Piece::default()
    };
    let output = (0..30).map(line).collect();
    world.engine.script("agent", Script { output, ..Script::ends(Duration::from_secs(30), 0) });
    let mut daemon = world.begin().await;
    world.running("agent").await;
    for round in 1..=5 {
        until("lines since the last restart", || daemon.log().contains(&format!("line {}\n", 4 * round))).await;
        daemon.kill().await;
        daemon = world.start();
        daemon.handle.apply(world.set(1, false), true).await;
    }
    assert_eq!(world.finish(&daemon).await, success());
    let log = daemon.log();
    let lines: Vec<_> =
        log.lines().filter(|line| line.contains("line ")).map(|line| line.replace("[agent] ", "")).collect();
    assert_eq!(lines, (0..30).map(|second| format!("line {second}")).collect::<Vec<_>>(), "{log}");
    assert_eq!(second_containers(&world), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_daemon_leaves_its_containers_running_and_lets_go_at_once() {
    let world = World::new();
    world.script_for("agent", "", Duration::from_secs(60), 0);
    let daemon = world.begin().await;
    world.running("agent").await;
    let asked = tokio::time::Instant::now();
    daemon.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert!(!world.engine.calls().iter().any(|call| ["stop", "remove"].contains(&call.verb)));
    let daemon = world.start();
    assert_eq!(daemon.handle.board().all().len(), 1, "adopted before anybody asks");
    daemon.handle.apply(world.set(1, false), true).await;
    assert_eq!(world.finish(&daemon).await, success());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_wants_after_the_restart_is_taken_down() {
    let world = World::new();
    world.engine.script("agent", Script::runs());
    let daemon = world.begin().await;
    world.running("agent").await;
    daemon.kill().await;
    let daemon = world.start();
    daemon.handle.apply(Default::default(), true).await;
    daemon.gone(&world.attempt()).await;
    world.assert_nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn variables_that_did_not_arrive_are_handed_over_again() {
    let world = World::new();
    // The daemon dies between the container's start and the ledger's entry; the entry script saw its input end.
    world.script("agent", "devfleet: no frame arrived\n", 125);
    let daemon = world.begin().await;
    world.running("agent").await;
    daemon.kill().await;
    let text = std::fs::read_to_string(world.ledger()).expect("ledger");
    let without: String =
        text.split_inclusive('\n').filter(|line| !line.contains("\"step_handed_over\":{\"step\":\"agent\"")).collect();
    assert_ne!(text, without, "the entry was there");
    std::fs::write(world.ledger(), without).expect("write");
    let daemon = world.start();
    daemon.handle.apply(world.set(1, false), true).await;
    until("the second container", || world.engine.container(&world.name("agent-2")).is_some()).await;
    assert!(world.engine.container(&world.name("agent")).is_none(), "the first one is removed");
    assert_eq!(world.finish(&daemon).await, success());
}

#[tokio::test(start_paused = true)]
async fn a_command_that_ended_with_125_after_the_hand_over_is_not_run_again() {
    let world = World::new();
    world.script("agent", "", 125);
    let daemon = world.begin().await;
    world.running("agent").await;
    daemon.kill().await;
    world.ended("agent").await;
    let daemon = world.start();
    daemon.handle.apply(world.set(1, false), true).await;
    let result = world.finish(&daemon).await;
    assert!(
        matches!(result, AttemptResult::Failed(ref failure) if failure.reason == FailureReason::Agent),
        "{result:?}"
    );
    assert_eq!(second_containers(&world), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_step_killed_while_nobody_watched_or_services_gone_is_the_engines_failure() {
    let killed_step = World::new();
    killed_step.script_killed("agent", false);
    let services_gone = World::new();
    services_gone.script("agent", "", 1);
    for (world, gone) in [(killed_step, false), (services_gone, true)] {
        let daemon = world.begin().await;
        world.running("agent").await;
        daemon.kill().await;
        world.ended("agent").await;
        if gone {
            use devfleet_host::engine::Engine as _;
            world.engine.stop(&world.name("redis"), Duration::ZERO).await.expect("stop");
        }
        let daemon = world.start();
        daemon.handle.apply(world.set(1, false), true).await;
        let result = world.finish(&daemon).await;
        let AttemptResult::Failed(failure) = result else { panic!("{result:?}") };
        assert_eq!(failure.reason, FailureReason::Engine, "{}", failure.message);
        assert!(failure.reason.is_retryable());
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_whose_container_someone_removed_is_not_run_again() {
    let world = World::new();
    world.engine.script("agent", Script::runs());
    let daemon = world.begin().await;
    world.running("agent").await;
    daemon.kill().await;
    use devfleet_host::engine::{Engine as _, ObjectKind, ObjectRef};
    let object = ObjectRef { kind: ObjectKind::Container, name: world.name("agent") };
    world.engine.remove(&object).await.expect("remove");
    let daemon = world.start();
    daemon.handle.apply(world.set(1, false), true).await;
    let result = world.finish(&daemon).await;
    assert!(
        matches!(result, AttemptResult::Failed(ref failure) if failure.reason == FailureReason::Engine),
        "{result:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_damaged_ledger_loses_its_attempt_which_is_reported_and_not_begun_again() {
    let world = World::new();
    world.engine.script("agent", Script::runs());
    let daemon = world.begin().await;
    world.running("agent").await;
    daemon.kill().await;
    let text = std::fs::read_to_string(world.ledger()).expect("ledger");
    std::fs::write(world.ledger(), text.replacen("step_made", "step_mad!", 1)).expect("write");
    let calls = world.engine.calls().len();
    let daemon = world.start();
    daemon.handle.apply(world.set(1, false), true).await;
    let report = daemon.ended(&world.attempt()).await;
    assert_eq!(report.phase, Phase::Ended(AttemptResult::Lost));
    assert_eq!(world.engine.calls().len(), calls, "its objects are left to the sweeper");
    daemon.handle.acknowledge(world.attempt(), report.sequence, false).await;
    daemon.gone(&world.attempt()).await;
    daemon.handle.apply(world.set(2, false), false).await;
    daemon.handle.reserved().await;
    assert!(daemon.handle.board().of(&world.attempt()).is_none());
    assert_eq!(std::fs::read_dir(world.dir.path().join("ledger")).expect("list").count(), 0);
}

#[tokio::test(start_paused = true)]
async fn report_numbers_grow_across_restarts() {
    let world = World::new();
    world.engine.script("agent", Script::runs());
    let mut last = 0;
    for _ in 0..4 {
        let daemon = world.start();
        daemon.handle.apply(world.set(1, false), true).await;
        world.running("agent").await;
        let report = daemon.handle.board().of(&world.attempt()).expect("reported");
        assert!(report.sequence > last, "{} after {last}", report.sequence);
        last = report.sequence;
        daemon.kill().await;
    }
}
