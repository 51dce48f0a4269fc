//! The embedded store against crashes, damage, a second process and a full disk.
//!
//! The crashing process is this test binary again, told by an environment variable to commit until it is killed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use devfleet_controller::store::embedded::Embedded;
use devfleet_controller::store::{Change, Commit, Revision, Snapshot, Store as _, StoreError, Transaction, WatchEvent};
use devfleet_shared::clock::Clock;
use futures_util::StreamExt as _;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const STORE_VARIABLE: &str = "DEVFLEET_TEST_CRASHING_STORE";
const ROUNDS: u64 = 20;
const WRITERS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(20);

fn open(path: &Path) -> Result<Arc<Embedded>, StoreError> {
    Embedded::open(path, Clock::system())
}

async fn put(store: &Embedded, key: &str, value: Vec<u8>) -> Result<Revision, StoreError> {
    let then = vec![Change::Put { key: key.to_owned(), value, lease: None }];
    match store.commit(Transaction { when: Vec::new(), then }).await? {
        Commit::Done(revision) => Ok(revision),
        Commit::Conflict => unreachable!("nothing is compared"),
    }
}

/// Replays all of history up to a revision, and checks that it has no gap.
async fn replay(store: &Embedded, head: Revision) -> Vec<WatchEvent> {
    let mut watch = store.watch("", 1).await.expect("watch");
    let (mut events, mut last) = (Vec::new(), 0);
    while last < head {
        let event = tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time").expect("more").expect("event");
        let revision = match &event {
            WatchEvent::Put(entry) => entry.modified,
            WatchEvent::Deleted { revision, .. } => *revision,
        };
        assert!(revision == last || revision == last + 1, "{revision} after {last}");
        last = revision;
        events.push(event);
    }
    events
}

/// Not a test by itself: the process that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_commits_until_it_is_killed() {
    let Ok(path) = std::env::var(STORE_VARIABLE) else { return };
    let store = open(Path::new(&path)).expect("open");
    let start = store.range("").await.expect("range").revision;
    println!("\nopen {start}");
    let writers = (0..WRITERS).map(|writer| {
        let store = Arc::clone(&store);
        async move {
            for n in 0.. {
                let key = format!("{writer}/{start}/{n}");
                let revision = put(&store, &key, vec![b'v'; (n as usize * 37) % 3_000]).await.expect("commit");
                println!("\nack {key} {revision}");
            }
        }
    });
    futures_util::future::join_all(writers).await;
}

struct Crashing {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Crashing {
    fn start(path: &Path) -> Crashing {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "store_crash::child_commits_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env(STORE_VARIABLE, path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("child");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        Crashing { child, lines }
    }

    /// Reads the next acknowledged key and its revision; `None` when the process is gone.
    async fn acknowledged(&mut self) -> Option<(String, Revision)> {
        loop {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("in time").expect("pipe")?;
            let mut words = line.split(' ');
            if words.next() == Some("ack") {
                // The last line may be cut off by the kill; then it was not acknowledged.
                let (Some(key), Some(Ok(revision))) = (words.next(), words.next().map(str::parse)) else { continue };
                return Some((key.to_owned(), revision));
            }
        }
    }

    async fn opened(&mut self) {
        while let Some(line) = self.lines.next_line().await.expect("pipe") {
            if line.starts_with("open ") {
                return;
            }
        }
        panic!("the child did not open the store");
    }

    /// Kills the process and returns what it still acknowledged.
    async fn kill(mut self) -> Vec<(String, Revision)> {
        self.child.start_kill().expect("kill");
        let mut rest = Vec::new();
        while let Some(acknowledged) = self.acknowledged().await {
            rest.push(acknowledged);
        }
        self.child.wait().await.expect("wait");
        rest
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let directory = tempfile::tempdir().expect("dir");
    let path = directory.path().join("store.redb");
    let mut acknowledged: BTreeMap<String, Revision> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut crashing = Crashing::start(&path);
        // From "while the file is being opened" to "after a few hundred commits".
        for _ in 0..rand::random_range(0..300) * u64::from(round % 5 != 0) {
            acknowledged.extend(crashing.acknowledged().await);
        }
        // And at any moment between two of them.
        let moment = Duration::from_micros(rand::random_range(0..20_000));
        let going_on = async {
            while let Some(one) = crashing.acknowledged().await {
                acknowledged.extend([one]);
            }
        };
        assert!(tokio::time::timeout(moment, going_on).await.is_err(), "round {round}: it ended by itself");
        acknowledged.extend(crashing.kill().await);

        let store = open(&path).expect("a killed process leaves a good store");
        let snapshot = store.range("").await.expect("range");
        let found: BTreeMap<_, _> = snapshot.entries.iter().map(|entry| (entry.key.as_str(), entry.modified)).collect();
        for (key, revision) in &acknowledged {
            assert_eq!(found.get(key.as_str()), Some(revision), "round {round}: {key}");
        }
        assert_eq!(replay(&store, snapshot.revision).await.len() as u64, snapshot.revision);
        let next = put(&store, &format!("parent/{round}"), Vec::new()).await.expect("commit");
        assert_eq!(next, snapshot.revision + 1, "revisions go on");
    }
    assert!(acknowledged.len() > 300, "only {} commits in all rounds", acknowledged.len());
}

#[tokio::test]
async fn a_second_process_is_refused_and_disturbs_nothing() {
    let directory = tempfile::tempdir().expect("dir");
    let path = directory.path().join("store.redb");
    let mut other = Crashing::start(&path);
    other.opened().await;
    let refused = open(&path).expect_err("in use");
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused:?}");
    assert!(refused.to_string().contains("another process"));
    assert!(other.acknowledged().await.is_some(), "the first goes on");
    other.kill().await;
    let ours = open(&path).expect("free again");
    assert!(matches!(open(&path), Err(StoreError::InUse { .. })), "the same process may not open it twice either");
    drop(ours);
    assert!(open(&path).is_ok());
}

/// Makes a store with some history and returns its bytes and what it holds.
async fn healthy(path: &Path) -> (Vec<u8>, Snapshot, Vec<WatchEvent>) {
    let store = open(path).expect("open");
    for n in 0..200_usize {
        put(&store, &format!("key/{}", n % 120), vec![n as u8; n * 7]).await.expect("commit");
    }
    let snapshot = store.range("").await.expect("range");
    let events = replay(&store, snapshot.revision).await;
    drop(store);
    (std::fs::read(path).expect("read"), snapshot, events)
}

fn zeroed(bytes: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[range].fill(0);
    bytes
}

fn random(length: usize) -> Vec<u8> {
    (0..length).map(|_| rand::random()).collect()
}

#[tokio::test]
async fn a_damaged_file_is_named_as_such_and_left_as_it_is() {
    let directory = tempfile::tempdir().expect("dir");
    let path = directory.path().join("store.redb");
    let (good, ..) = healthy(&path).await;
    let noise = |start: usize, length: usize| {
        let mut bytes = good.clone();
        bytes[start..start + length].copy_from_slice(&random(length));
        bytes
    };
    let kinds: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("one byte", good[..1].to_vec()),
        ("cut in the header", good[..100].to_vec()),
        ("cut after the header", good[..4_096].to_vec()),
        ("cut in the middle", good[..good.len() / 2].to_vec()),
        ("header zeroed", zeroed(&good, 0..4_096)),
        ("all zeroed", vec![0; good.len()]),
        ("all but the header zeroed", zeroed(&good, 4_096..good.len())),
        ("header random", noise(0, 512)),
        ("all but the header random", noise(4_096, good.len() - 4_096)),
        ("all random", random(good.len())),
        ("a text", b"this is not a store\n".repeat(400)),
    ];
    for (kind, bytes) in kinds {
        std::fs::write(&path, &bytes).expect("write");
        let Err(refused) = open(&path) else { panic!("{kind}: it opens") };
        assert!(matches!(refused, StoreError::Damaged { .. }), "{kind}: {refused:?}");
        assert!(refused.to_string().contains("restore it from a copy"), "{kind}: {refused}");
        assert_eq!(std::fs::read(&path).expect("read").len(), bytes.len(), "{kind}: the file is kept for inspection");
    }
}

#[tokio::test]
async fn a_flipped_bit_is_found_or_harms_nothing() {
    let directory = tempfile::tempdir().expect("dir");
    let path = directory.path().join("store.redb");
    let (good, snapshot, events) = healthy(&path).await;
    let mut found = 0;
    // Every 1021 bytes: a prime, so that all parts of pages are hit; and the header densely.
    for position in (0..512).step_by(7).chain((512..good.len()).step_by(1_021)) {
        let mut bytes = good.clone();
        bytes[position] ^= 1 << (position % 8);
        std::fs::write(&path, &bytes).expect("write");
        match open(&path) {
            Err(StoreError::Damaged { .. }) => found += 1,
            Err(other) => panic!("{position}: {other:?}"),
            Ok(store) => {
                assert_eq!(store.range("").await.expect("range"), snapshot, "{position}");
                assert_eq!(replay(&store, snapshot.revision).await, events, "{position}");
            }
        }
    }
    assert!(found > 50, "only {found} flips were found");
}

#[tokio::test]
async fn what_is_no_file_is_not_taken_for_damage() {
    let directory = tempfile::tempdir().expect("dir");
    let refused = open(directory.path()).expect_err("a directory");
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
    let below = directory.path().join("file");
    std::fs::write(&below, "").expect("write");
    let refused = open(&below.join("store.redb")).expect_err("a file is no directory");
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
}

#[tokio::test]
async fn only_its_owner_can_read_the_file_and_nothing_else_is_left_beside_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("dir");
    let path = directory.path().join("store.redb");
    let store = open(&path).expect("open");
    assert_eq!(path.metadata().expect("file").permissions().mode() & 0o777, 0o600);
    let beside: Vec<_> = std::fs::read_dir(directory.path()).expect("list").collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    drop(store);
}

/// A small file system in memory, gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it; `None` without the right to.
    #[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
    fn mount(at: &Path) -> Option<SmallDisk> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root may mount a small disk");
            return None;
        }
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=12m", "devfleet-test"])
            .arg(at)
            .status()
            .expect("mount");
        assert!(mounted.success(), "root may mount");
        Some(SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_reads_go_on() {
    let directory = tempfile::tempdir().expect("dir");
    let Some(disk) = SmallDisk::mount(directory.path()) else { return };
    let (path, ballast) = (disk.0.join("store.redb"), disk.0.join("ballast"));
    std::fs::write(&ballast, vec![1; 4 << 20]).expect("ballast");
    let store = open(&path).expect("open");
    let mut acknowledged = BTreeMap::new();
    let full = loop {
        let key = format!("key/{:05}", acknowledged.len());
        match put(&store, &key, vec![b'v'; 20_000]).await {
            Ok(revision) => drop(acknowledged.insert(key, revision)),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 1_000, "the disk never fills");
    };
    assert!(matches!(full, StoreError::DiskFull), "{full:?}");
    assert!(full.is_retryable());
    let check = |snapshot: &Snapshot| {
        let found: BTreeMap<_, _> = snapshot.entries.iter().map(|entry| (entry.key.clone(), entry.modified)).collect();
        assert!(acknowledged.iter().all(|(key, revision)| found.get(key) == Some(revision)));
    };
    for _ in 0..3 {
        let again = put(&store, "more", vec![b'v'; 900_000]).await;
        assert!(matches!(again, Err(StoreError::DiskFull)), "{again:?}");
        check(&store.range("key/").await.expect("reads go on"));
    }
    replay(&store, store.range("").await.expect("range").revision).await;
    drop(store);
    let store = open(&path).expect("it opens on a full disk too");
    check(&store.range("key/").await.expect("range"));
    std::fs::remove_file(&ballast).expect("room");
    let head = store.range("").await.expect("range").revision;
    assert_eq!(put(&store, "after", Vec::new()).await.expect("it goes on by itself"), head + 1);
    drop(store);
    let store = open(&path).expect("open");
    check(&store.range("key/").await.expect("range"));
    assert_eq!(replay(&store, head + 1).await.len() as u64, head + 1);
    drop(store);
}
