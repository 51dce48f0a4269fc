//! Simulated hosts: real identities and the real session over real TLS, and nothing behind it.
//!
//! A host takes what it is assigned at once, says so, and by the mode ends it or lets it run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use devfleet_host::identity::HostIdentity;
use devfleet_proto::v1;
use devfleet_proto::v1::controller_message::Kind as Down;
use devfleet_proto::v1::host_message::Kind as Up;
use devfleet_proto::v1::session_client::SessionClient;
use devfleet_shared::attempt::{AttemptResult, Phase, Step};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::id::HostId;
use devfleet_shared::secret::Secret;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

/// The pace of new connections: the host daemon's own.
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(200), ceiling: Duration::from_secs(10) };
/// How many hosts join at once.
const JOINING: usize = 32;
/// Slots of each host.
pub(crate) const SLOTS: u64 = 8;

/// What the hosts saw.
#[derive(Default)]
pub(crate) struct Seen {
    /// When each job's newest assignment arrived, and where.
    arrivals: Mutex<BTreeMap<String, (Instant, HostId)>>,
    /// How many hosts have a session.
    pub(crate) connected: AtomicUsize,
    /// Hosts end what they get at once; else it goes on running.
    pub(crate) end_at_once: AtomicBool,
}

impl Seen {
    /// Returns when a job's newest assignment arrived, and where.
    pub(crate) fn arrival(&self, job: &str) -> Option<(Instant, HostId)> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).get(job).cloned()
    }
}

/// All simulated hosts. They end with it.
pub(crate) struct Hosts {
    pub(crate) seen: Arc<Seen>,
    tasks: JoinSet<()>,
    handles: BTreeMap<HostId, AbortHandle>,
}

impl Hosts {
    /// Lets hosts join with one token and opens their sessions.
    pub(crate) async fn join(dir: &Path, urls: &[String], token: &str, count: usize) -> anyhow::Result<Hosts> {
        let (seen, token) = (Arc::new(Seen::default()), Secret::new(token));
        let joins = futures_util::stream::iter(0..count).map(|number| {
            let (dir, url, token) = (dir.join(format!("host-{number}")), urls[number % urls.len()].clone(), &token);
            async move { HostIdentity::join(&dir, &url, token, &format!("host-{number}")).await }
        });
        let identities: Vec<_> = joins.buffer_unordered(JOINING).collect().await;
        let mut hosts = Hosts { seen, tasks: JoinSet::new(), handles: BTreeMap::new() };
        for (number, identity) in identities.into_iter().enumerate() {
            let identity = identity.context("a host could not join")?;
            let host = Host { identity, urls: urls.to_vec(), next: number, seen: hosts.seen.clone() };
            let id = host.identity.host().clone();
            hosts.handles.insert(id, hosts.tasks.spawn(host.run()));
        }
        hosts.all_connected(count).await?;
        Ok(hosts)
    }

    /// Waits until this many have a session, and says how long that took.
    pub(crate) async fn all_connected(&self, count: usize) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        while self.seen.connected.load(Ordering::SeqCst) < count {
            let connected = self.seen.connected.load(Ordering::SeqCst);
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(180), "only {connected} of {count} hosts connected");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(begin.elapsed())
    }

    /// Ends a host without a word, as `kill -9` would.
    pub(crate) fn kill(&self, host: &HostId) {
        if let Some(handle) = self.handles.get(host) {
            handle.abort();
        }
    }
}

struct Host {
    identity: HostIdentity,
    urls: Vec<String>,
    next: usize,
    seen: Arc<Seen>,
}

/// Counts a session for as long as it stands, however it ends.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Host {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let greeted = self.hold().await.is_ok_and(|greeted| greeted);
            failures = if greeted { 1 } else { failures + 1 };
            self.next += 1;
            tokio::time::sleep(RECONNECT.pause(failures, Backoff::jitter())).await;
        }
    }

    /// Holds one session until it breaks; says whether there was a welcome.
    async fn hold(&self) -> anyhow::Result<bool> {
        let channel = self.identity.channel(&self.urls[self.next % self.urls.len()])?;
        let (up, receiver) = mpsc::channel(64);
        let hello = v1::Hello {
            incarnation: "bench".into(),
            host_version: env!("CARGO_PKG_VERSION").into(),
            owned: Vec::new(),
            inventory: Some(inventory()),
        };
        up.try_send(v1::HostMessage { kind: Some(Up::Hello(hello)) })?;
        let mut client = SessionClient::new(channel).max_decoding_message_size(64 << 20);
        let mut down = client.open(ReceiverStream::new(receiver)).await?.into_inner();
        let Some(v1::ControllerMessage { kind: Some(Down::Welcome(welcome)) }) = down.message().await? else {
            anyhow::bail!("no welcome");
        };
        self.seen.connected.fetch_add(1, Ordering::SeqCst);
        let _counted = Counted(&self.seen.connected);
        let mut talk = Talk { up, seen: &self.seen, host: self.identity.host(), known: BTreeSet::new() };
        talk.take(welcome.assignments.unwrap_or_default()).await?;
        let mut beat = tokio::time::interval(Duration::from_secs(welcome.heartbeat_seconds.max(1)));
        let mut sequence = 0;
        loop {
            tokio::select! {
                message = down.message() => match message {
                    Ok(Some(v1::ControllerMessage { kind: Some(Down::Assignments(set)) })) => talk.take(set).await?,
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Ok(true),
                },
                _ = beat.tick() => {
                    sequence += 1;
                    talk.send(Up::Heartbeat(v1::Heartbeat { sequence })).await?;
                }
            }
        }
    }
}

struct Talk<'a> {
    up: mpsc::Sender<v1::HostMessage>,
    seen: &'a Seen,
    host: &'a HostId,
    known: BTreeSet<String>,
}

impl Talk<'_> {
    async fn send(&self, kind: Up) -> anyhow::Result<()> {
        Ok(self.up.send(v1::HostMessage { kind: Some(kind) }).await?)
    }

    async fn take(&mut self, set: v1::AssignmentSet) -> anyhow::Result<()> {
        let now = Instant::now();
        for assignment in set.assignments {
            if !self.known.insert(assignment.attempt.clone()) {
                continue;
            }
            let arrival = (now, self.host.clone());
            self.seen.arrivals.lock().unwrap_or_else(PoisonError::into_inner).insert(assignment.job.clone(), arrival);
            let phase = match self.seen.end_at_once.load(Ordering::SeqCst) {
                true => Phase::Ended(AttemptResult::NoChange),
                false => Phase::Running(Step::Agent),
            };
            let report = v1::AttemptReport {
                job: assignment.job,
                attempt: assignment.attempt,
                fence: assignment.fence,
                state: Some((&phase).into()),
                sequence: 1,
                ..Default::default()
            };
            self.send(Up::Report(report)).await?;
        }
        Ok(())
    }
}

fn inventory() -> v1::HostInventory {
    let room = v1::Resources {
        cpu_millis: 64_000,
        memory_bytes: 256 << 30,
        disk_bytes: 1 << 40,
        disk_inodes: 50_000_000,
        slots: SLOTS,
        ..Default::default()
    };
    v1::HostInventory {
        total: Some(room),
        free: Some(room),
        engine_version: "26.1.5".into(),
        engine_api: "1.45".into(),
        storage_driver: "overlay2".into(),
        host_version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    }
}
