//! A single machine's store moves into etcd: whole, once, and again after the move was killed.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_controller::config::Config;
use devfleet_controller::server::{self, StartError};
use devfleet_controller::store::embedded::Embedded;
use devfleet_controller::store::migrate::{MigrateError, migrate};
use devfleet_controller::store::records::fleet::moving_key;
use devfleet_controller::store::{Change, Commit, Entry, SharedStore, StoreError, Transaction};
use devfleet_shared::clock::Clock;
use tokio::process::Command;

use crate::support::between::{Between, Meddling};
use crate::support::etcd::Cluster;
use crate::support::looking;

const VALUE_BYTES: usize = 20_000;

/// Fills a store with projects, an idempotency key, and what belongs to a process.
async fn fill(store: &SharedStore, projects: usize) {
    let lease = store.grant_lease(Duration::from_secs(600)).await.expect("lease");
    let put = |key: String, lease| Change::Put { key, value: vec![b'v'; VALUE_BYTES], lease };
    for n in 0..projects {
        let then = vec![put(format!("/devfleet/v1/projects/p{n}"), None)];
        store.commit(Transaction { when: Vec::new(), then }).await.expect("commit");
    }
    let then =
        vec![put("/devfleet/v1/idempotency/a".into(), Some(lease)), put("/devfleet/v1/leader".into(), Some(lease))];
    store.commit(Transaction { when: Vec::new(), then }).await.expect("commit");
}

async fn entries(store: &SharedStore) -> Vec<Entry> {
    store.range("/devfleet/v1/").await.expect("range").entries
}

fn plain(entries: Vec<Entry>) -> Vec<(String, Vec<u8>)> {
    entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

/// The settings of the fleet's first controller.
fn settings(dir: &Path, cluster: &Cluster) -> PathBuf {
    let file = dir.join("fleet.toml");
    let text = format!(
        "data_dir = \"{}/fleet\"\nlisten = \"127.0.0.1:0\"\n[store]\nkind = \"etcd\"\nendpoints = [\"http://{}\"]\nprefix = \"/devfleet-test\"\n",
        dir.display(),
        cluster.address(0)
    );
    std::fs::write(&file, text).expect("written");
    file
}

fn command(from: &Path, to_config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devfleet"));
    command.args(["store", "migrate", "--output", "json", "--from"]).arg(from).arg("--to-config").arg(to_config);
    command.kill_on_drop(true);
    command
}

async fn moved(from: &Path, to_config: &Path) -> Output {
    command(from, to_config).output().await.expect("devfleet runs")
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_moves_whole_only_into_an_empty_one_and_not_while_it_is_used() {
    let (dir, cluster) = (tempfile::tempdir().expect("dir"), Cluster::start(1));
    let (source, config) = (dir.path().join("single"), settings(dir.path(), &cluster));
    assert!(complaint(&moved(&source, &config).await).contains("there is no store at"));
    std::fs::create_dir(&source).expect("made");
    let from: SharedStore = Embedded::open(&source.join("store.redb"), Clock::system()).expect("open");
    fill(&from, 100).await;
    let expected: Vec<_> =
        plain(entries(&from).await).into_iter().filter(|(key, _)| !key.ends_with("leader")).collect();
    let to = cluster.store(0, "migrate").await;
    assert!(complaint(&moved(&source, &config).await).contains("another process uses this store"));
    drop(from);

    let first = looking::until(Duration::from_secs(30), "the store to be let go", async || {
        let output = moved(&source, &config).await;
        output.status.success().then_some(output)
    })
    .await;
    let said: serde_json::Value = serde_json::from_slice(&first.stdout).expect("JSON");
    assert_eq!((said["keys"].as_u64(), said["bytes"].as_u64()), (Some(101), Some(101 * VALUE_BYTES as u64)));
    let copied = entries(&to).await;
    assert!(copied.iter().any(|entry| entry.lease.is_some()), "idempotency keys stay on a lease");
    assert_eq!(plain(copied), expected, "everything but what belongs to a process");

    let again = complaint(&moved(&source, &config).await);
    assert!(again.contains("it holds 101 keys already that are no broken-off copy"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_was_killed_lets_no_controller_start_and_is_repeated_to_its_end() {
    let (dir, cluster) = (tempfile::tempdir().expect("dir"), Cluster::start(1));
    let (source, config) = (dir.path().join("single"), settings(dir.path(), &cluster));
    std::fs::create_dir(&source).expect("made");
    {
        let from: SharedStore = Embedded::open(&source.join("store.redb"), Clock::system()).expect("open");
        fill(&from, 400).await;
    }
    let to = cluster.store(0, "test").await;
    let mut killed = looking::until(Duration::from_secs(30), "the move to begin", async || {
        let running = Mutex::new(command(&source, &config).spawn().expect("devfleet runs"));
        let ended = || running.lock().expect("no panic").try_wait().expect("ours").is_some();
        let begun = async || match to.get(&moving_key()).await.expect("get") {
            Some(_) => Some(true),
            None => ended().then_some(false),
        };
        // It ends at once while the store is not let go.
        let begun = looking::until(Duration::from_secs(30), "a mark or an end", begun).await;
        begun.then(|| running.into_inner().expect("no panic"))
    })
    .await;
    killed.kill().await.expect("ours");
    let left = entries(&to).await.len();
    assert!(to.get(&moving_key()).await.expect("get").is_some() && left < 402, "it was not done: {left}");

    let parsed = Config::load(&config).expect("valid");
    let refused = server::start(&parsed, Clock::system()).await.err().expect("refused");
    assert!(matches!(refused, StartError::Fleet(_)), "{refused:?}");
    // Whatever the copy left, also what the source has not any more.
    let stray = Change::Put { key: "/devfleet/v1/projects/gone".into(), value: b"{}".to_vec(), lease: None };
    to.commit(Transaction { when: Vec::new(), then: vec![stray] }).await.expect("commit");

    let second = moved(&source, &config).await;
    assert!(second.status.success(), "{second:?}");
    let keys: Vec<String> = entries(&to).await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys.len(), 401, "all of the source and nothing else");
    assert!(!keys.contains(&moving_key()) && !keys.iter().any(|key| key.ends_with("/gone")));
}

/// Another copy takes the target right before this one writes its first record.
#[derive(Default)]
struct Another(AtomicBool);

#[async_trait]
impl Meddling for Another {
    async fn commit(&self, inner: &SharedStore, transaction: Transaction) -> Result<Commit, StoreError> {
        let writes = |change: &Change| matches!(change, Change::Put { key, .. } if key.contains("/projects/"));
        if transaction.then.iter().any(writes) && !self.0.swap(true, Ordering::SeqCst) {
            let mark = Change::Put { key: moving_key(), value: b"another".to_vec(), lease: None };
            inner.commit(Transaction { when: Vec::new(), then: vec![mark] }).await?;
        }
        inner.commit(transaction).await
    }
}

#[tokio::test]
async fn of_two_moves_into_one_target_the_one_that_lost_its_mark_writes_nothing_more() {
    let dir = tempfile::tempdir().expect("dir");
    let open = |name: &str| -> SharedStore { Embedded::open(&dir.path().join(name), Clock::system()).expect("open") };
    let (from, target) = (open("from"), open("to"));
    fill(&from, 3).await;
    let to: SharedStore = Arc::new(Between::new(target.clone(), Another::default()));
    let raced = migrate(&from, &to).await.expect_err("another one moves");
    assert!(matches!(raced, MigrateError::Raced), "{raced:?}");
    let keys: Vec<String> = entries(&target).await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [moving_key()], "the other's mark stands, and nothing of this one");
}
