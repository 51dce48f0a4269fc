//! The dead man's switch, as the program that a daemon starts, on real Docker: it acts on what is proven no more, on nothing
//! else, and leaves when it has nothing to do.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use devfleet_host::engine::memory::Script;
use devfleet_host::engine::{ContainerSpec, ContainerState, ObjectKind, ObjectRef, label};
use devfleet_host::freeze::watchdog::{Watch, keep};
use devfleet_host::freeze::{Deadlines, Proofs};
use devfleet_host::ledger::{Entry, Ledger};
use devfleet_shared::attempt::AttemptResult;
use devfleet_shared::clock::Clock;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::engine_contract::{BASE, Bench, check, docker_address};
use crate::world::{World, until_real};

fn start(bench: &Bench, dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_devfleet-host"))
        .args(["watchdog", "--engine", &docker_address(), "--host", bench.host.as_str(), "--data-dir"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("the watchdog")
}

/// Waits until the container is so, or gone.
async fn until(bench: &Bench, what: &str, is: impl Fn(Option<bool>) -> bool) {
    let look = async || {
        let found = bench.engine.containers(&bench.labels()).await.expect("a list");
        is(found.first().map(|found| found.paused))
    };
    until_real(what, look).await;
}

#[tokio::test]
async fn what_is_proven_no_more_is_frozen_cut_and_killed_without_a_daemon() {
    check(Bench::docker(&[BASE]).await, async |bench| {
        let dir = tempfile::tempdir().expect("dir");
        let network = bench.network("network");
        bench.engine.ensure_network(&network).await.expect("a network");
        let mut spec = bench.container("agent", "sleep 600", Script::runs());
        spec.network = Some(network.name.clone());
        bench.run(&spec).await;
        let clock = Clock::system();
        let proofs = Proofs::open(dir.path().join("proof.json"), clock.clone());
        proofs.set_deadlines(Deadlines { freeze: Duration::from_secs(2), kill: Duration::from_secs(8) });
        proofs.proven(clock.boot());
        let mut first = start(&bench, dir.path());
        let turn = dir.path().join("watchdog");
        until_real("the first one's turn", async || turn.exists()).await;
        let mut second = start(&bench, dir.path());
        let left =
            tokio::time::timeout(Duration::from_secs(10), first.wait()).await.expect("the first one is replaced");
        assert!(left.expect("a status").success());
        // Proven for longer than the freeze takes: nothing happens to it.
        let mut heartbeats = tokio::time::interval(Duration::from_millis(500));
        for _ in 0..9 {
            heartbeats.tick().await;
            proofs.proven(clock.boot());
            let found = bench.engine.containers(&bench.labels()).await.expect("a list");
            assert!(!found[0].paused, "what is proven is left alone");
        }
        until(&bench, "paused", |paused| paused == Some(true)).await;
        until(&bench, "removed", |paused| paused.is_none()).await;
        assert_eq!(bench.engine.state(&spec.name).await.expect("an answer"), None);
        assert!(second.try_wait().expect("a status").is_none(), "it stays beside its daemon");
        drop(second.stdin.take());
        let left = tokio::time::timeout(Duration::from_secs(10), second.wait()).await.expect("it leaves");
        assert!(left.expect("a status").success());
        let note = std::fs::read_to_string(dir.path().join(format!("frozen/{}.json", spec.name))).expect("a note");
        assert!(note.contains(&network.name), "it was cut: {note}");
    })
    .await;
}

#[tokio::test]
async fn what_has_its_result_is_not_frozen_with_the_rest() {
    check(Bench::docker(&[BASE]).await, async |bench| {
        let dir = tempfile::tempdir().expect("dir");
        let over = World::new().assignment;
        let ledger = Ledger::create(&dir.path().join("ledger"), Clock::system(), &over).expect("a ledger");
        ledger.append(Entry::Result(AttemptResult::NoChange)).expect("written");
        let mut done = bench.container("done", "sleep 600", Script::runs());
        done.labels.insert(label::ATTEMPT.into(), over.attempt.to_string());
        let works = bench.container("works", "sleep 600", Script::runs());
        for spec in [&done, &works] {
            bench.run(spec).await;
        }
        // Nothing here was ever proven.
        let _watchdog = start(&bench, dir.path());
        let state = async |spec: &ContainerSpec| bench.engine.state(&spec.name).await.expect("an answer");
        let paused = async |spec: &ContainerSpec| {
            let found = bench.engine.containers(&spec.labels).await.expect("a list");
            found.iter().any(|found| found.paused)
        };
        until_real("the other is paused", async || paused(&works).await).await;
        assert!(!paused(&done).await, "its environment is being cleared away, which takes no leave");
        assert!(matches!(state(&done).await, Some(ContainerState::Running { .. })));
        bench
            .engine
            .remove(&ObjectRef { kind: ObjectKind::Container, name: done.name.clone() })
            .await
            .expect("removed");
    })
    .await;
}

#[tokio::test]
async fn without_a_daemon_it_stays_for_as_long_as_something_runs_that_is_proven() {
    check(Bench::docker(&[BASE]).await, async |bench| {
        let dir = tempfile::tempdir().expect("dir");
        let spec = bench.container("agent", "sleep 600", Script::runs());
        bench.run(&spec).await;
        let clock = Clock::system();
        Proofs::open(dir.path().join("proof.json"), clock.clone()).proven(clock.boot());
        let mut watchdog = start(&bench, dir.path());
        drop(watchdog.stdin.take());
        let early = tokio::time::timeout(Duration::from_secs(4), watchdog.wait()).await;
        assert!(early.is_err(), "it left something that runs: {early:?}");
        let state = bench.engine.state(&spec.name).await.expect("an answer");
        assert!(matches!(state, Some(ContainerState::Running { .. })), "{state:?}");
        bench.clean().await;
        let left = tokio::time::timeout(Duration::from_secs(10), watchdog.wait()).await.expect("it leaves");
        assert!(left.expect("a status").success());
    })
    .await;
}

#[tokio::test]
async fn beside_a_daemon_that_lives_it_stays_though_nothing_runs() {
    check(Bench::docker(&[BASE]).await, async |bench| {
        let dir = tempfile::tempdir().expect("dir");
        let watch = Watch { data_dir: dir.path().to_owned(), engine: docker_address(), host: bench.host.clone() };
        let shutdown = CancellationToken::new();
        let daemon = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { keep(Path::new(env!("CARGO_BIN_EXE_devfleet-host")), watch, shutdown).await }
        });
        let turn = dir.path().join("watchdog");
        until_real("its turn", async || turn.exists()).await;
        let first = std::fs::read_to_string(&turn).expect("its name");
        // For longer than a watchdog without a daemon stays, and the pause before another one is started.
        let replaced = until_real("another one", async || std::fs::read_to_string(&turn).expect("a name") != first);
        assert!(tokio::time::timeout(Duration::from_secs(4), replaced).await.is_err(), "no other one was needed");
        shutdown.cancel();
        daemon.await.expect("it ends");
    })
    .await;
}
