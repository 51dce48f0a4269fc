//! What every store keeps to: one suite of named cases, run against each implementation.
//!
//! Each case works under a prefix of its own, so that all of them share one store and disturb each other as the parts
//! of a real controller do.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::looking;
use devfleet_controller::store::embedded::Embedded;
use devfleet_controller::store::memory::MemoryStore;
use devfleet_controller::store::{
    Change, Commit, Compare, LeaseId, Revision, SharedStore, StoreError, Transaction, WatchEvent,
};
use devfleet_shared::clock::Clock;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;

const PATIENCE: Duration = Duration::from_secs(20);

type Watch = BoxStream<'static, Result<WatchEvent, StoreError>>;

/// Runs every case on a store. Leases of one second must be allowed, and the store must not be compacted meanwhile.
pub(crate) async fn contract(store: SharedStore) {
    reads_what_was_written(&store).await;
    ranges_are_ordered_and_stop_at_the_prefix(&store).await;
    created_begins_anew_after_a_deletion(&store).await;
    a_transaction_happens_whole_or_not_at_all(&store).await;
    a_transaction_that_changes_nothing_has_no_revision(&store).await;
    out_of_bounds_is_refused(&store).await;
    delete_prefix_deletes_exactly_the_prefix(&store).await;
    one_of_many_racers_wins(&store).await;
    every_increment_counts_once(&store).await;
    a_watch_replays_and_goes_on_without_gap_or_duplicate(&store).await;
    a_watch_sees_only_its_prefix(&store).await;
    a_watch_from_the_future_waits_for_it(&store).await;
    a_slow_watch_loses_nothing(&store).await;
    a_lease_that_ends_takes_its_keys_along(&store).await;
    a_lease_kept_alive_stays(&store).await;
    a_revoked_lease_is_gone_and_stays_gone(&store).await;
    a_key_leaves_its_lease_when_it_is_written_without(&store).await;
    // Last: it takes history away.
    compaction_is_told_to_watches(&store).await;
}

fn put(key: &str, value: &str) -> Change {
    Change::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }
}

fn leased(key: &str, lease: LeaseId) -> Change {
    Change::Put { key: key.to_owned(), value: Vec::new(), lease: Some(lease) }
}

async fn commit(store: &SharedStore, when: Vec<Compare>, then: Vec<Change>) -> Commit {
    store.commit(Transaction { when, then }).await.expect("commit")
}

async fn write(store: &SharedStore, key: &str, value: &str) -> Revision {
    match commit(store, Vec::new(), vec![put(key, value)]).await {
        Commit::Done(revision) => revision,
        Commit::Conflict => panic!("nothing was compared"),
    }
}

async fn value(store: &SharedStore, key: &str) -> Option<String> {
    let entry = store.get(key).await.expect("get")?;
    Some(String::from_utf8(entry.value).expect("text"))
}

async fn keys(store: &SharedStore, prefix: &str) -> Vec<String> {
    store.range(prefix).await.expect("range").entries.into_iter().map(|entry| entry.key).collect()
}

async fn next(watch: &mut Watch) -> WatchEvent {
    let event = tokio::time::timeout(PATIENCE, watch.next()).await.expect("an event in time");
    event.expect("the watch goes on").expect("event")
}

fn shown(event: &WatchEvent) -> (String, Revision) {
    match event {
        WatchEvent::Put(entry) => (format!("+{}={}", entry.key, String::from_utf8_lossy(&entry.value)), entry.modified),
        WatchEvent::Deleted { key, revision } => (format!("-{key}"), *revision),
    }
}

async fn head(store: &SharedStore) -> Revision {
    store.range("none/").await.expect("range").revision
}

async fn gone(store: &SharedStore, key: &str) {
    let gone = async || store.get(key).await.expect("get").is_none().then_some(());
    looking::until(PATIENCE, "the end of the key", gone).await;
}

async fn reads_what_was_written(store: &SharedStore) {
    assert_eq!(value(store, "ryw/a").await, None);
    for round in 0..20 {
        let revision = write(store, "ryw/a", &round.to_string()).await;
        let entry = store.get("ryw/a").await.expect("get").expect("there");
        assert_eq!((entry.modified, entry.value), (revision, round.to_string().into_bytes()));
        assert!(store.range("ryw/").await.expect("range").revision >= revision);
    }
}

async fn ranges_are_ordered_and_stop_at_the_prefix(store: &SharedStore) {
    for key in ["order/b", "order/a", "order/ab", "order/a/x", "orders", "ordeq", "order/ü"] {
        write(store, key, "").await;
    }
    assert_eq!(keys(store, "order/").await, ["order/a", "order/a/x", "order/ab", "order/b", "order/ü"]);
    assert_eq!(keys(store, "order/a/").await, ["order/a/x"]);
    assert!(keys(store, "order/z").await.is_empty());
}

async fn created_begins_anew_after_a_deletion(store: &SharedStore) {
    let first = write(store, "life/a", "1").await;
    let second = write(store, "life/a", "2").await;
    let entry = store.get("life/a").await.expect("get").expect("there");
    assert_eq!((entry.created, entry.modified), (first, second));
    assert_eq!(second, first + 1, "each transaction has the next revision");
    let deleted = commit(store, vec![], vec![Change::Delete("life/a".into())]).await;
    assert_eq!(deleted, Commit::Done(second + 1));
    assert_eq!(value(store, "life/a").await, None);
    let third = write(store, "life/a", "3").await;
    let entry = store.get("life/a").await.expect("get").expect("there");
    assert_eq!((entry.created, entry.modified), (third, third));
}

async fn a_transaction_happens_whole_or_not_at_all(store: &SharedStore) {
    let revision = write(store, "atom/a", "1").await;
    let then = || vec![put("atom/b", "b"), put("atom/c", "c"), Change::Delete("atom/a".into())];
    let before = head(store).await;
    for refused in [
        vec![Compare::Modified("atom/a".into(), revision), Compare::Exists("atom/none".into())],
        vec![Compare::Modified("atom/a".into(), revision + 1)],
        vec![Compare::Modified("atom/a".into(), 0)],
        vec![Compare::Exists("atom/b".into())],
    ] {
        assert_eq!(commit(store, refused.clone(), then()).await, Commit::Conflict, "{refused:?}");
    }
    assert_eq!((keys(store, "atom/").await, head(store).await), (vec!["atom/a".to_owned()], before));
    let holds = vec![
        Compare::Modified("atom/a".into(), revision),
        Compare::Exists("atom/a".into()),
        Compare::Modified("atom/b".into(), 0),
    ];
    let Commit::Done(done) = commit(store, holds, then()).await else { panic!("all conditions hold") };
    let snapshot = store.range("atom/").await.expect("range");
    let seen: Vec<_> = snapshot.entries.iter().map(|entry| (entry.key.as_str(), entry.modified)).collect();
    assert_eq!(seen, [("atom/b", done), ("atom/c", done)], "one revision for all changes");
}

async fn a_transaction_that_changes_nothing_has_no_revision(store: &SharedStore) {
    write(store, "idle/a", "").await;
    let before = head(store).await;
    for then in [vec![], vec![Change::Delete("idle/none".into())], vec![Change::DeletePrefix("idle/none/".into())]] {
        assert_eq!(commit(store, vec![Compare::Exists("idle/a".into())], then).await, Commit::Done(before));
    }
    assert_eq!(head(store).await, before);
}

async fn out_of_bounds_is_refused(store: &SharedStore) {
    let (long_key, big) = ("k".repeat(1025), "v".repeat((1 << 20) + 1));
    let before = head(store).await;
    let many: Vec<Change> = (0..129).map(|n| put(&format!("bounds/{n}"), "")).collect();
    let much: Vec<Change> = (0..2).map(|n| put(&format!("bounds/{n}"), &"v".repeat(800 << 10))).collect();
    for then in [
        vec![put(&long_key, "")],
        vec![put("", "")],
        vec![put("bounds/a", &big)],
        vec![Change::Delete(long_key.clone())],
        vec![Change::DeletePrefix(String::new())],
        vec![put("bounds/a", "1"), put("bounds/a", "2")],
        vec![put("bounds/a", "1"), Change::Delete("bounds/a".into())],
        vec![Change::DeletePrefix("bounds/".into()), put("bounds/a", "1")],
        many,
        much,
    ] {
        let refused = store.commit(Transaction { when: vec![], then }).await;
        assert!(matches!(refused, Err(StoreError::OutOfBounds { .. })), "{refused:?}");
    }
    let compare = vec![Compare::Exists(long_key)];
    let refused = store.commit(Transaction { when: compare, then: vec![put("bounds/a", "")] }).await;
    assert!(matches!(refused, Err(StoreError::OutOfBounds { .. })));
    assert!(matches!(store.grant_lease(Duration::ZERO).await, Err(StoreError::OutOfBounds { .. })));
    assert_eq!(head(store).await, before);
    let largest = vec![put(&format!("bounds/{}", "k".repeat(1017)), &"v".repeat(1 << 20))];
    assert!(matches!(commit(store, vec![], largest).await, Commit::Done(_)));
}

async fn delete_prefix_deletes_exactly_the_prefix(store: &SharedStore) {
    for key in ["sweep/a", "sweep/b/1", "sweep/b/2", "sweep/c"] {
        write(store, key, "").await;
    }
    let from = head(store).await + 1;
    commit(store, vec![], vec![Change::DeletePrefix("sweep/b/".into()), put("sweep/d", "")]).await;
    assert_eq!(keys(store, "sweep/").await, ["sweep/a", "sweep/c", "sweep/d"]);
    let mut watch = store.watch("sweep/", from).await.expect("watch");
    for expected in ["-sweep/b/1", "-sweep/b/2", "+sweep/d="] {
        assert_eq!(shown(&next(&mut watch).await), (expected.to_owned(), from));
    }
}

async fn one_of_many_racers_wins(store: &SharedStore) {
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..32 {
        let store = Arc::clone(store);
        racers.spawn(async move {
            let when = vec![Compare::Modified("race/prize".into(), 0)];
            (racer, commit(&store, when, vec![put("race/prize", &racer.to_string())]).await)
        });
    }
    let won: Vec<i32> = racers
        .join_all()
        .await
        .into_iter()
        .filter_map(|(racer, result)| matches!(result, Commit::Done(_)).then_some(racer))
        .collect();
    assert_eq!(won.len(), 1, "{won:?}");
    assert_eq!(value(store, "race/prize").await, Some(won[0].to_string()));
}

async fn every_increment_counts_once(store: &SharedStore) {
    write(store, "count/n", "0").await;
    let mut counters = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(store);
        counters.spawn(async move {
            for _ in 0..10 {
                loop {
                    let entry = store.get("count/n").await.expect("get").expect("there");
                    let n: u32 = String::from_utf8(entry.value).expect("text").parse().expect("number");
                    let when = vec![Compare::Modified("count/n".into(), entry.modified)];
                    if commit(&store, when, vec![put("count/n", &(n + 1).to_string())]).await != Commit::Conflict {
                        break;
                    }
                }
            }
        });
    }
    counters.join_all().await;
    assert_eq!(value(store, "count/n").await.as_deref(), Some("80"));
}

async fn a_watch_replays_and_goes_on_without_gap_or_duplicate(store: &SharedStore) {
    let from = head(store).await + 1;
    for n in 0..50 {
        write(store, "flow/n", &n.to_string()).await;
    }
    let mut watch = store.watch("flow/", from).await.expect("watch");
    let writer = {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            for n in 50..300 {
                write(&store, "flow/n", &n.to_string()).await;
            }
        })
    };
    let mut last = 0;
    for n in 0..300 {
        let (event, revision) = shown(&next(&mut watch).await);
        assert_eq!(event, format!("+flow/n={n}"));
        assert!(revision > last, "{revision} after {last}");
        last = revision;
    }
    writer.await.expect("writer");
    // The range says where to go on from: nothing is seen twice, nothing left out.
    let snapshot = store.range("flow/").await.expect("range");
    let mut watch = store.watch("flow/", snapshot.revision + 1).await.expect("watch");
    write(store, "flow/n", "end").await;
    assert_eq!(shown(&next(&mut watch).await).0, "+flow/n=end");
}

async fn a_watch_sees_only_its_prefix(store: &SharedStore) {
    let mut watch = store.watch("seen/", head(store).await + 1).await.expect("watch");
    write(store, "unseen/a", "").await;
    commit(store, vec![], vec![put("seen", ""), put("seen/a", ""), put("seen0", "")]).await;
    commit(store, vec![], vec![Change::Delete("seen/a".into())]).await;
    assert_eq!(shown(&next(&mut watch).await).0, "+seen/a=");
    assert_eq!(shown(&next(&mut watch).await).0, "-seen/a");
}

async fn a_watch_from_the_future_waits_for_it(store: &SharedStore) {
    let from = head(store).await + 3;
    let mut watch = store.watch("future/", from).await.expect("watch");
    for n in 0..4 {
        write(store, "future/n", &n.to_string()).await;
    }
    assert_eq!(shown(&next(&mut watch).await), ("+future/n=2".to_owned(), from));
}

async fn a_slow_watch_loses_nothing(store: &SharedStore) {
    let mut watch = store.watch("slow/", head(store).await + 1).await.expect("watch");
    let writers = (0..8).map(|writer| {
        let store = Arc::clone(store);
        async move {
            for n in 0..200 {
                write(&store, &format!("slow/{writer}"), &n.to_string()).await;
            }
        }
    });
    futures_util::future::join_all(writers).await;
    let mut seen = BTreeSet::new();
    let mut last = 0;
    for _ in 0..1_600 {
        let (event, revision) = shown(&next(&mut watch).await);
        assert!(revision > last && seen.insert(event), "in order, once");
        last = revision;
    }
}

async fn a_lease_that_ends_takes_its_keys_along(store: &SharedStore) {
    let lease = store.grant_lease(Duration::from_secs(1)).await.expect("lease");
    let mut watch = store.watch("lease/", head(store).await + 1).await.expect("watch");
    commit(store, vec![], vec![leased("lease/a", lease), leased("lease/b", lease), put("lease/c", "")]).await;
    assert_eq!(store.get("lease/a").await.expect("get").expect("there").lease, Some(lease));
    for expected in ["+lease/a=", "+lease/b=", "+lease/c="] {
        assert_eq!(shown(&next(&mut watch).await).0, expected);
    }
    let (first, second) = (shown(&next(&mut watch).await), shown(&next(&mut watch).await));
    assert_eq!((first.0.as_str(), second.0.as_str()), ("-lease/a", "-lease/b"));
    assert_eq!(first.1, second.1, "one transaction");
    assert_eq!(keys(store, "lease/").await, ["lease/c"]);
    assert!(matches!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded(ended)) if ended == lease));
    let late = store.commit(Transaction { when: vec![], then: vec![leased("lease/d", lease)] }).await;
    assert!(matches!(late, Err(StoreError::LeaseEnded(_))), "{late:?}");
    let unknown = store.keep_alive(LeaseId(i64::MAX)).await;
    assert!(matches!(unknown, Err(StoreError::LeaseEnded(_))), "{unknown:?}");
}

async fn a_lease_kept_alive_stays(store: &SharedStore) {
    let (kept, left) =
        tokio::join!(store.grant_lease(Duration::from_secs(2)), store.grant_lease(Duration::from_secs(2)));
    let (kept, left) = (kept.expect("lease"), left.expect("lease"));
    assert_ne!(kept, left);
    commit(store, vec![], vec![leased("alive/kept", kept), leased("alive/left", left)]).await;
    // Well within the lease.
    let mut pace = tokio::time::interval(Duration::from_millis(300));
    let keeping = async {
        loop {
            pace.tick().await;
            store.keep_alive(kept).await.expect("kept alive in time");
        }
    };
    tokio::select! {
        () = keeping => unreachable!("it never ends by itself"),
        () = gone(store, "alive/left") => {}
    }
    assert_eq!(keys(store, "alive/").await, ["alive/kept"]);
    store.revoke_lease(kept).await.expect("revoke");
}

async fn a_revoked_lease_is_gone_and_stays_gone(store: &SharedStore) {
    let lease = store.grant_lease(Duration::from_secs(600)).await.expect("lease");
    commit(store, vec![], vec![leased("revoke/a", lease)]).await;
    store.revoke_lease(lease).await.expect("revoke");
    assert_eq!(value(store, "revoke/a").await, None);
    let before = head(store).await;
    store.revoke_lease(lease).await.expect("already so");
    store.revoke_lease(LeaseId(i64::MAX)).await.expect("already so");
    assert_eq!(head(store).await, before);
    assert!(matches!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded(_))));
    assert_ne!(store.grant_lease(Duration::from_secs(600)).await.expect("lease"), lease, "never given twice");
}

async fn a_key_leaves_its_lease_when_it_is_written_without(store: &SharedStore) {
    let lease = store.grant_lease(Duration::from_secs(600)).await.expect("lease");
    commit(store, vec![], vec![leased("leave/a", lease), leased("leave/b", lease)]).await;
    write(store, "leave/a", "free").await;
    store.revoke_lease(lease).await.expect("revoke");
    assert_eq!(keys(store, "leave/").await, ["leave/a"]);
}

async fn compaction_is_told_to_watches(store: &SharedStore) {
    let first = write(store, "compact/a", "1").await;
    write(store, "compact/a", "2").await;
    let third = write(store, "compact/b", "3").await;
    store.compact(third).await.expect("compact");
    for asked in [0, 1, first, third - 1] {
        let refused = store.watch("compact/", asked).await.map(drop);
        let Err(StoreError::Compacted { asked: said, oldest }) = refused else { panic!("{asked}: {refused:?}") };
        assert_eq!((said, oldest), (asked.max(1), third));
    }
    let mut watch = store.watch("compact/", third).await.expect("kept");
    assert_eq!(shown(&next(&mut watch).await), ("+compact/b=3".to_owned(), third));
    assert_eq!(value(store, "compact/a").await.as_deref(), Some("2"), "current values stay");
    store.compact(first).await.expect("already so");
    store.compact(Revision::MAX).await.expect("no more than there is");
    let fourth = write(store, "compact/b", "4").await;
    let mut watch = store.watch("compact/", fourth).await.expect("kept");
    assert_eq!(shown(&next(&mut watch).await), ("+compact/b=4".to_owned(), fourth));
}

fn open(path: &Path) -> SharedStore {
    Embedded::open(path, Clock::system()).expect("open")
}

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    let store = MemoryStore::new(Clock::system());
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let leases = async {
        loop {
            looks.tick().await;
            store.expire();
        }
    };
    tokio::select! {
        () = leases => unreachable!("it never ends by itself"),
        () = contract(Arc::new(store.clone())) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("dir");
    contract(open(&directory.path().join("store.redb"))).await;
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract_on_one_thread_and_after_a_restart() {
    let directory = tempfile::tempdir().expect("dir");
    let path = directory.path().join("store.redb");
    write(&open(&path), "before", "1").await;
    contract(open(&path)).await;
}

#[tokio::test]
async fn entries_history_leases_and_compaction_outlive_a_restart() {
    let directory = tempfile::tempdir().expect("dir");
    let path = directory.path().join("deep/store.redb");
    let store = open(&path);
    for n in 0..1_200 {
        let then = vec![put("a", &n.to_string())];
        if n % 100 != 0 {
            // Group commit: most of them share a write.
            let both = tokio::join!(commit(&store, vec![], then), commit(&store, vec![], vec![put("b", "")]));
            assert!(matches!(both, (Commit::Done(_), Commit::Done(_))));
        }
    }
    let lease = store.grant_lease(Duration::from_secs(600)).await.expect("lease");
    commit(&store, vec![], vec![leased("leased", lease)]).await;
    store.compact(11).await.expect("compact");
    let before = store.range("").await.expect("range");
    drop(store);
    let store = open(&path);
    assert_eq!(store.range("").await.expect("range"), before);
    assert!(matches!(store.watch("", 10).await.map(drop), Err(StoreError::Compacted { oldest: 11, .. })));
    let mut watch = store.watch("", 11).await.expect("watch");
    for revision in 11..=before.revision {
        assert_eq!(shown(&next(&mut watch).await).1, revision);
    }
    store.keep_alive(lease).await.expect("it lives");
    assert_ne!(store.grant_lease(Duration::from_secs(1)).await.expect("lease"), lease);
    assert_eq!(write(&store, "a", "on").await, before.revision + 1);
}

#[tokio::test]
async fn leases_end_by_the_boot_clock_and_get_their_full_time_after_a_restart() {
    let directory = tempfile::tempdir().expect("dir");
    let path = directory.path().join("store.redb");
    let clock = Clock::fixed(devfleet_shared::clock::Timestamp(1_000_000));
    let open = || -> SharedStore { Embedded::open(&path, clock.clone()).expect("open") };
    let store = open();
    let lease = store.grant_lease(Duration::from_secs(10)).await.expect("lease");
    commit(&store, vec![], vec![leased("a", lease)]).await;
    clock.advance(Duration::from_secs(9));
    store.keep_alive(lease).await.expect("one second is left");
    clock.advance(Duration::from_secs(9));
    drop(store);
    let store = open();
    clock.advance(Duration::from_secs(9));
    store.keep_alive(lease).await.expect("a restart gives the full time");
    clock.advance(Duration::from_secs(10));
    assert!(matches!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded(_))), "before anyone swept it");
    gone(&store, "a").await;
    drop(store);
    assert!(matches!(open().keep_alive(lease).await, Err(StoreError::LeaseEnded(_))));
}

#[tokio::test]
async fn watches_end_when_the_store_is_dropped() {
    let directory = tempfile::tempdir().expect("dir");
    let store = open(&directory.path().join("store.redb"));
    let mut watch = store.watch("", 1).await.expect("watch");
    drop(store);
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time");
    assert!(ended.is_none(), "{ended:?}");
}
