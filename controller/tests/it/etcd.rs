//! The store on a real etcd: the contract, and what becomes of it when members die and answers are lost.

use std::time::Duration;

use devfleet_controller::store::{Change, Commit, Compare, SharedStore, StoreError, Transaction, WatchEvent};
use devfleet_shared::secret::Secret;
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Certificate, Client, ConnectOptions, Identity, Permission, PermissionType,
    TlsOptions,
};
use futures_util::StreamExt as _;

use crate::store_contract::contract;
use crate::support::etcd::{Cluster, connect};
use crate::support::looking;
use crate::support::proxy::{Loses, Proxy};

const PATIENCE: Duration = Duration::from_secs(60);

fn put(key: &str, value: &str) -> Change {
    Change::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }
}

async fn write(store: &SharedStore, key: &str, value: &str) -> Commit {
    store.commit(Transaction { when: Vec::new(), then: vec![put(key, value)] }).await.expect("committed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_keep_the_contract() {
    let cluster = Cluster::start(3);
    contract(cluster.store(0, "a").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_a_certificate_and_rights_to_the_prefix_keeps_the_contract_and_others_are_refused() {
    let cluster = Cluster::with_tls();
    connect(cluster.settings(0), "probe").await;
    let settings = cluster.settings(0);
    let (certificate, key) = settings.identity.clone().expect("TLS");
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(settings.ca.clone().expect("TLS")))
        .identity(Identity::from_pem(certificate, key.expose()));
    let options = ConnectOptions::new().with_tls(tls);
    let root = Client::connect(&settings.endpoints, Some(options)).await.expect("connected");
    let mut auth = root.auth_client();
    auth.user_add("root", "root", None).await.expect("user");
    auth.user_grant_role("root", "root").await.expect("granted");
    auth.role_add("devfleet").await.expect("role");
    let prefix = Permission::new(PermissionType::Readwrite, "/devfleet-test").with_prefix();
    auth.role_grant_permission("devfleet", prefix).await.expect("granted");
    auth.user_add("devfleet", "secret", None).await.expect("user");
    auth.user_grant_role("devfleet", "devfleet").await.expect("granted");
    auth.auth_enable().await.expect("enabled");

    let mut known = settings.clone();
    known.user = Some(("devfleet".into(), Secret::new("secret")));
    contract(connect(known.clone(), "a").await).await;

    let refused =
        |settings| async move { devfleet_controller::store::etcd::Etcd::connect(settings, "b").await.map(drop) };
    let mut wrong = known.clone();
    wrong.user = Some(("devfleet".into(), Secret::new("guess")));
    let error = refused(wrong).await;
    assert!(matches!(error, Err(StoreError::NotAllowed(_))), "{error:?}");
    let mut elsewhere = known.clone();
    elsewhere.prefix = "/another".into();
    let error = refused(elsewhere).await;
    assert!(matches!(error, Err(StoreError::NotAllowed(_))), "{error:?}");
    let mut nameless = known;
    nameless.identity = None;
    assert!(refused(nameless).await.is_err(), "no certificate, no answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_are_killed_cost_time_and_nothing_else() {
    let mut cluster = Cluster::start(3);
    let watcher = cluster.store(0, "watcher").await;
    let from = watcher.range("kill/").await.expect("range").revision + 1;
    let mut events = watcher.watch("kill/", from).await.expect("watch");
    let mut counters = tokio::task::JoinSet::new();
    for number in 0..3 {
        let store = cluster.store(number, &format!("counter-{number}")).await;
        counters.spawn(async move { count_to(&store, 60).await });
    }
    for round in 0..4 {
        // Some counting between the blows, and some without the member.
        counted(&watcher, round * 40 + 20).await;
        cluster.kill(round % 3);
        counted(&watcher, round * 40 + 40).await;
        cluster.revive(round % 3);
    }
    let done = tokio::time::timeout(PATIENCE, counters.join_all()).await.expect("in time");
    assert_eq!(done.iter().sum::<u64>(), 180);
    let entry = watcher.get("kill/n").await.expect("get").expect("there");
    assert_eq!(String::from_utf8(entry.value).expect("text"), "180", "every acknowledged step counts exactly once");
    let mut seen = Vec::new();
    while seen.len() < 180 {
        match tokio::time::timeout(PATIENCE, events.next()).await.expect("in time") {
            Some(Ok(WatchEvent::Put(entry))) => seen.push(String::from_utf8(entry.value).expect("text")),
            other => panic!("{other:?}"),
        }
    }
    let expected: Vec<String> = (1..=180).map(|n: u64| n.to_string()).collect();
    assert_eq!(seen, expected, "the watch has no gap and no duplicate");
}

/// Waits until it was counted so far.
async fn counted(store: &SharedStore, at_least: usize) {
    let so_far = async || {
        let entry = store.get("kill/n").await.ok()??;
        let count = String::from_utf8_lossy(&entry.value).parse::<usize>().expect("a number");
        (count >= at_least).then_some(())
    };
    looking::until(PATIENCE, "the count to go on", so_far).await;
}

/// Adds one so many times, whoever else does.
async fn count_to(store: &SharedStore, steps: u64) -> u64 {
    let mut done = 0;
    while done < steps {
        let Ok(entry) = store.get("kill/n").await else { continue };
        let (value, revision) = entry.map_or((0, 0), |entry| {
            (String::from_utf8_lossy(&entry.value).parse::<u64>().expect("a number"), entry.modified)
        });
        let when = vec![Compare::Modified("kill/n".into(), revision)];
        match store.commit(Transaction { when, then: vec![put("kill/n", &(value + 1).to_string())] }).await {
            Ok(Commit::Done(_)) => done += 1,
            Ok(Commit::Conflict) => {}
            Err(error) => panic!("a majority was always there: {error:?}"),
        }
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_members_were_down_everything_goes_on_where_it_was() {
    let mut cluster = Cluster::start(3);
    let store = cluster.store(0, "a").await;
    let lease = store.grant_lease(Duration::from_secs(600)).await.expect("lease");
    write(&store, "down/a", "1").await;
    let from = store.range("down/").await.expect("range").revision + 1;
    let mut events = store.watch("down/", from).await.expect("watch");
    for member in 0..3 {
        cluster.kill(member);
    }
    let lost = store.get("down/a").await;
    assert!(matches!(&lost, Err(error) if error.is_retryable()), "{lost:?}");
    for member in 0..3 {
        cluster.revive(member);
    }
    let again = cluster.store(0, "b").await;
    write(&again, "down/a", "2").await;
    match tokio::time::timeout(PATIENCE, events.next()).await.expect("in time") {
        Some(Ok(WatchEvent::Put(entry))) => assert_eq!(entry.value, b"2"),
        other => panic!("{other:?}"),
    }
    store.keep_alive(lease).await.expect("it lives");
    write(&store, "down/a", "3").await;
}

/// A store whose first member is behind a proxy, and whose second is not.
async fn behind_a_proxy(cluster: &Cluster) -> (Proxy, SharedStore) {
    drop(cluster.store(0, "probe").await);
    let proxy = Proxy::to(cluster.address(0)).await;
    let mut settings = cluster.settings(0);
    settings.endpoints = vec![format!("http://{}", proxy.address), format!("http://{}", cluster.address(0))];
    let store = connect(settings, "a").await;
    (proxy, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_answer_is_lost_is_known_to_have_happened() {
    let cluster = Cluster::start(1);
    let (proxy, store) = behind_a_proxy(&cluster).await;
    write(&store, "lost/warm", "").await;
    proxy.lose(Loses::Answers);
    let when = vec![Compare::Modified("lost/a".into(), 0)];
    let outcome = store.commit(Transaction { when, then: vec![put("lost/a", "1")] }).await;
    let entry = store.get("lost/a").await.expect("get").expect("it happened");
    assert!(matches!(outcome, Ok(Commit::Done(revision)) if revision == entry.modified), "{outcome:?} {entry:?}");
    assert_eq!(entry.created, entry.modified, "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_never_arrived_is_sent_again() {
    let cluster = Cluster::start(1);
    let (proxy, store) = behind_a_proxy(&cluster).await;
    write(&store, "lost/warm", "").await;
    proxy.lose(Loses::Requests);
    let outcome = write(&store, "lost/a", "1").await;
    let entry = store.get("lost/a").await.expect("get").expect("it happened");
    assert_eq!(outcome, Commit::Done(entry.modified));
    assert_eq!(entry.created, entry.modified, "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_arrives_after_it_was_given_up_does_nothing() {
    let cluster = Cluster::start(1);
    let (proxy, store) = behind_a_proxy(&cluster).await;
    write(&store, "late/warm", "").await;
    let other = cluster.store(0, "b").await;
    write(&other, "late/a", "another's").await;
    proxy.lose(Loses::Time);
    let wanted =
        || Transaction { when: vec![Compare::Modified("late/a".into(), 0)], then: vec![put("late/a", "a ghost")] };
    assert_eq!(store.commit(wanted()).await.expect("an answer"), Commit::Conflict, "its caller is told, and goes on");
    // Now its condition would hold.
    let then = vec![Change::Delete("late/a".into())];
    other.commit(Transaction { when: Vec::new(), then }).await.expect("deleted");
    proxy.let_go().await;
    assert_eq!(other.get("late/a").await.expect("an answer"), None, "it was told to have failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_lags_behind_a_compaction_is_told() {
    let cluster = Cluster::start(1);
    let (proxy, store) = behind_a_proxy(&cluster).await;
    let from = store.range("lag/").await.expect("range").revision + 1;
    let mut events = store.watch("lag/", from).await.expect("watch");
    write(&store, "lag/a", "1").await;
    assert!(matches!(events.next().await, Some(Ok(WatchEvent::Put(_)))));
    // The watch breaks, and nobody polls it while history goes.
    proxy.lose(Loses::Answers);
    let direct = cluster.store(0, "b").await;
    for n in 0..5 {
        write(&direct, "lag/a", &n.to_string()).await;
    }
    let head = direct.range("lag/").await.expect("range").revision;
    direct.compact(head).await.expect("compacted");
    let told = tokio::time::timeout(PATIENCE, events.next()).await.expect("in time");
    assert!(matches!(told, Some(Err(StoreError::Compacted { .. }))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_is_reached_is_told_loses_nothing_and_ends_with_its_alarm() {
    let mut cluster = Cluster::start(1);
    drop(cluster.store(0, "probe").await);
    cluster.kill(0);
    cluster.limit(4 << 20);
    cluster.revive(0);
    let store = cluster.store(0, "a").await;
    let value = "x".repeat(256 << 10);
    let mut written = Vec::new();
    let refused = loop {
        let key = format!("full/{:02}", written.len());
        match store.commit(Transaction { when: Vec::new(), then: vec![put(&key, &value)] }).await {
            Ok(Commit::Done(revision)) => written.push((key, revision)),
            Ok(Commit::Conflict) => panic!("nothing was compared"),
            Err(error) => break error,
        }
        assert!(written.len() < 64, "the quota is reached");
    };
    assert!(matches!(refused, StoreError::QuotaReached), "{refused:?}");
    assert!(refused.to_string().contains("quota"), "{refused}");
    assert!(refused.is_retryable(), "whoever asked tries again");
    let stands = async |store: &SharedStore| {
        let entries = store.range("full/").await.expect("it can be read").entries;
        let found: Vec<_> = entries.iter().map(|entry| (entry.key.clone(), entry.modified)).collect();
        assert_eq!(found, written, "all that was acknowledged, and nothing else");
        assert!(entries.iter().all(|entry| entry.value.len() == value.len()), "whole");
    };
    stands(&store).await;

    cluster.kill(0);
    cluster.limit(64 << 20);
    cluster.revive(0);
    let client = Client::connect([format!("http://{}", cluster.address(0))], None).await.expect("a client");
    let disarm = async || {
        let mut maintenance = client.maintenance_client();
        let alarm = maintenance.alarm(AlarmAction::Get, AlarmType::Nospace, None).await.ok()?;
        let mut options = AlarmOptions::new();
        options.with_member(alarm.alarms().first()?.member_id());
        maintenance.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await.ok().map(drop)
    };
    looking::until(PATIENCE, "the alarm", disarm).await;
    let goes_on = async || {
        let then = vec![put("full-no-more", "1")];
        store.commit(Transaction { when: Vec::new(), then }).await.ok()
    };
    looking::until(PATIENCE, "a write by the same connection", goes_on).await;
    stands(&store).await;
}
