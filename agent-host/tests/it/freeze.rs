//! What is not proven to be this host's stands still, goes on when it is proven again, and is killed when that takes too
//! long. The clock that counts is moved by hand; nothing happens by the passing of the tests' own time.

use std::sync::Arc;
use std::time::Duration;

use devfleet_host::assignments::AssignmentSet;
use devfleet_host::engine::Engine as _;
use devfleet_host::freeze::Freezer;
use devfleet_shared::attempt::AttemptResult;
use devfleet_shared::clock::{Clock, Timestamp};

use crate::world::{Daemon, World, until};

const FREEZE: Duration = Duration::from_secs(10);
const KILL: Duration = Duration::from_secs(60);

fn world() -> World {
    let mut world = World::new();
    world.clock = Clock::fixed(Timestamp(1_800_000_000_000));
    world
}

/// Begins the assignment on a host whose freezing is looked after.
async fn begin(world: &World) -> (Daemon, tokio::task::JoinHandle<()>) {
    let daemon = world.begin().await;
    let freezer = Freezer { around: Arc::clone(&daemon.around), supervisor: daemon.handle.clone() };
    let task = tokio::spawn(freezer.run(daemon.shutdown.clone()));
    (daemon, task)
}

fn ledger(world: &World) -> String {
    std::fs::read_to_string(world.ledger()).unwrap_or_default()
}

fn calls(world: &World, verb: &str, role: &str) -> usize {
    let name = world.name(role);
    world.engine.calls().iter().filter(|call| call.verb == verb && call.about == name).count()
}

#[tokio::test(start_paused = true)]
async fn what_is_proven_no_more_is_paused_and_goes_on_when_it_is_proven_again() {
    let world = world();
    world.script_for("agent", "working\n", Duration::from_secs(120), 0);
    let (daemon, _freezer) = begin(&world).await;
    world.running("agent").await;
    world.clock.advance(FREEZE);
    until("paused", || world.engine.is_paused(&world.name("agent"))).await;
    until("its service is paused too", || world.engine.is_paused(&world.name("redis"))).await;
    until("written down", || ledger(&world).contains("frozen")).await;
    let links = async || world.engine.links(&world.name("redis")).await.expect("links");
    until("cut from its network", || calls(&world, "disconnect", "redis") > 0).await;
    assert_eq!(links().await, Vec::new());
    daemon.around.proofs.proven(world.clock.boot());
    until("resumed", || !world.engine.is_paused(&world.name("agent"))).await;
    until("its service too", || !world.engine.is_paused(&world.name("redis"))).await;
    assert_eq!(links().await.len(), 1, "put back before it was resumed");
    assert!(matches!(world.finish(&daemon).await, AttemptResult::Succeeded { .. }));
    assert_eq!(calls(&world, "ensure_container", "agent"), 1, "the agent ran once");
    assert_eq!(world.pushed().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_proven_again_in_time_is_killed_and_reported_lost() {
    let world = world();
    world.script_for("agent", "working\n", Duration::from_secs(3_600), 0);
    let (daemon, _freezer) = begin(&world).await;
    world.running("agent").await;
    world.clock.advance(KILL);
    assert_eq!(world.finish(&daemon).await, AttemptResult::Lost);
    assert_eq!(world.pushed(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_taken_away_meanwhile_does_not_go_on() {
    let world = world();
    world.script_for("agent", "working\n", Duration::from_secs(3_600), 0);
    let (daemon, _freezer) = begin(&world).await;
    world.running("agent").await;
    world.clock.advance(FREEZE);
    until("paused", || world.engine.is_paused(&world.name("agent"))).await;
    // As a session does it with a welcome: the set first, then the proof.
    daemon.handle.apply(AssignmentSet { generation: 9, ..AssignmentSet::default() }, true).await;
    daemon.around.proofs.proven(world.clock.boot());
    daemon.gone(&world.attempt()).await;
    assert_eq!(calls(&world, "unpause", "agent"), 0, "it was resumed before it was removed");
    world.assert_nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_pushed_while_it_is_not_proven() {
    let world = world();
    *world.code.stuck.lock().expect("stuck") = Some("push");
    let (daemon, _freezer) = begin(&world).await;
    until("the push is under way", || world.code.waits() == Some("push")).await;
    world.clock.advance(FREEZE);
    until("written down", || ledger(&world).contains("frozen")).await;
    *world.code.stuck.lock().expect("stuck") = None;
    until("the push is given up", || world.code.waits().is_none()).await;
    assert_eq!((world.code.asked("push"), world.pushed()), (1, Vec::new()));
    daemon.around.proofs.proven(world.clock.boot());
    assert!(matches!(world.finish(&daemon).await, AttemptResult::Succeeded { .. }));
    assert_eq!(world.pushed().len(), 1);
}
