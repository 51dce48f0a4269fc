//! Simulated hosts: a real identity, the real session over real mutual TLS, and no engine behind it. Whatever a host is
//! given it takes on, says so, and never ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use devfleet_host::identity::HostIdentity;
use devfleet_proto::v1::controller_message::Kind as Down;
use devfleet_proto::v1::host_message::Kind as Up;
use devfleet_proto::v1::session_client::SessionClient;
use devfleet_proto::v1::{self, HostMessage};
use devfleet_shared::attempt::{Phase, Step};
use devfleet_shared::backoff::Backoff;
use devfleet_shared::endpoints::Endpoints;
use devfleet_shared::protocol::PROTOCOL;
use devfleet_shared::secret::Secret;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::ground::Ground;

/// As the host daemon does.
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(200), ceiling: Duration::from_secs(10) };
const WELCOME: Duration = Duration::from_secs(15);
const INVENTORY: Duration = Duration::from_secs(30);
/// How many hosts join at once.
const JOINING: usize = 32;

/// What all hosts share.
pub(crate) struct Shared {
    urls: Vec<String>,
    pub(crate) connected: AtomicUsize,
    /// Sessions that were opened, ever.
    pub(crate) welcomes: AtomicUsize,
    /// Sessions that could not be opened, or broke.
    pub(crate) errors: AtomicUsize,
    /// When each job was told to which host, in order.
    told: Mutex<BTreeMap<String, Vec<(Instant, usize)>>>,
    /// How long heartbeats took to be answered.
    proofs: Mutex<Vec<Duration>>,
    /// The recipes whose images all hosts say they have.
    recipes: watch::Sender<BTreeSet<String>>,
    /// Counts the times that all sessions are cut at once.
    cut: watch::Sender<u64>,
}

/// The hosts.
pub(crate) struct Hosts {
    pub(crate) shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Hosts {
    pub(crate) fn none(ground: &Ground) -> Hosts {
        let shared = Shared {
            urls: ground.urls(),
            connected: AtomicUsize::new(0),
            welcomes: AtomicUsize::new(0),
            errors: AtomicUsize::new(0),
            told: Mutex::default(),
            proofs: Mutex::default(),
            recipes: watch::Sender::default(),
            cut: watch::Sender::default(),
        };
        Hosts { shared: Arc::new(shared), tasks: Vec::new() }
    }

    pub(crate) fn count(&self) -> usize {
        self.tasks.len()
    }

    /// Lets so many hosts join with one token, many at once, and opens their sessions. Returns how long joining took.
    pub(crate) async fn grow(&mut self, ground: &Ground, to: usize) -> anyhow::Result<Duration> {
        let more = to.saturating_sub(self.count());
        let request = v1::CreateJoinTokenRequest { uses: more as u32, ttl_seconds: 3_600, ..Default::default() };
        let answer = ground.connection.fleet().create_join_token(request).await.context("make a join token")?;
        let token = Secret::new(answer.into_inner().token);
        let begun = Instant::now();
        let joins = (self.count()..to).map(|number| join(&self.shared, ground, &token, number));
        let joined: Vec<_> = futures_util::stream::iter(joins).buffered(JOINING).collect().await;
        let took = begun.elapsed();
        for identity in joined {
            let (shared, number) = (self.shared.clone(), self.tasks.len());
            self.tasks.push(tokio::spawn(live(shared, identity?, number)));
        }
        Ok(took)
    }

    /// Ends a host as a power cut would: nothing is said.
    pub(crate) fn kill(&mut self, number: usize) {
        self.tasks[number].abort();
        self.shared.connected.fetch_sub(1, Ordering::SeqCst);
    }

    /// Cuts all sessions at once; the hosts come back as they do after a controller's end.
    pub(crate) fn cut_all(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Counts the recipes whose images all hosts say they have.
    pub(crate) fn recipes_seen(&self) -> usize {
        self.shared.recipes.borrow().len()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    /// Returns when a job was told to which host, in order.
    pub(crate) fn told(&self, job: &str) -> Vec<(Instant, usize)> {
        lock(&self.told).get(job).cloned().unwrap_or_default()
    }

    /// Returns how many jobs were told to any host.
    pub(crate) fn told_jobs(&self) -> usize {
        lock(&self.told).len()
    }

    /// Counts the heartbeats that were answered since the last call of the next one.
    pub(crate) fn proofs(&self) -> usize {
        lock(&self.proofs).len()
    }

    /// Returns how long heartbeats took to be answered since the last call.
    pub(crate) fn take_proofs(&self) -> Vec<Duration> {
        std::mem::take(&mut *lock(&self.proofs))
    }
}

async fn join(shared: &Shared, ground: &Ground, token: &Secret, number: usize) -> anyhow::Result<HostIdentity> {
    let (dir, name) = (ground.directory(&format!("hosts/{number}")), format!("host-{number}"));
    let dir: &Path = &dir;
    let joined = HostIdentity::join(dir, &shared.urls[0], token, &name).await;
    joined.with_context(|| format!("let {name} join"))
}

/// Keeps a session, as a host daemon does.
async fn live(shared: Arc<Shared>, identity: HostIdentity, number: usize) {
    let Some(endpoints) = Endpoints::new(shared.urls.clone()) else { return };
    let endpoints = Arc::new(endpoints);
    let mut failures = 0;
    loop {
        let mut line = Line { shared: &shared, number, welcomed: false, taken: BTreeMap::new() };
        let ended = line.hold(&identity, &endpoints).await;
        if line.welcomed {
            shared.connected.fetch_sub(1, Ordering::SeqCst);
            failures = 0;
        }
        if ended.is_err() {
            shared.errors.fetch_add(1, Ordering::SeqCst);
            endpoints.elsewhere();
        }
        failures += 1;
        tokio::time::sleep(RECONNECT.pause(failures, Backoff::jitter())).await;
    }
}

/// One session.
struct Line<'a> {
    shared: &'a Shared,
    number: usize,
    welcomed: bool,
    taken: BTreeMap<String, u64>,
}

impl Line<'_> {
    /// Holds a session until all are cut (`Ok`) or it breaks.
    async fn hold(&mut self, identity: &HostIdentity, endpoints: &Arc<Endpoints>) -> anyhow::Result<()> {
        let mut cut = self.shared.cut.subscribe();
        let mut recipes = self.shared.recipes.subscribe();
        let (up, messages) = mpsc::channel(64);
        let hello = v1::Hello {
            incarnation: "1".into(),
            host_version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            inventory: Some(inventory(&recipes.borrow_and_update())),
            owned: Vec::new(),
        };
        send(&up, Up::Hello(hello)).await?;
        let mut client = SessionClient::new(identity.channel_to(endpoints.clone())?);
        let opening = async {
            let mut down = client.open(ReceiverStream::new(messages)).await?.into_inner();
            anyhow::Ok((down.message().await?, down))
        };
        let (first, mut down) = tokio::time::timeout(WELCOME, opening).await.context("wait for a welcome")??;
        let Some(Down::Welcome(welcome)) = first.and_then(|message| message.kind) else {
            anyhow::bail!("no welcome");
        };
        self.welcomed = true;
        self.shared.connected.fetch_add(1, Ordering::SeqCst);
        self.shared.welcomes.fetch_add(1, Ordering::SeqCst);
        self.take(welcome.assignments, &up).await?;
        let beat = Duration::from_secs(welcome.heartbeat_seconds.max(1));
        // Hosts that came at once do not beat at once.
        let first = Instant::now() + beat.mul_f64(Backoff::jitter());
        let mut beats = tokio::time::interval_at(first, beat);
        let mut looks = tokio::time::interval_at(Instant::now() + INVENTORY.mul_f64(Backoff::jitter()), INVENTORY);
        let mut sent: BTreeMap<u64, Instant> = BTreeMap::new();
        let mut sequence = 0;
        loop {
            tokio::select! {
                _ = cut.changed() => return Ok(()),
                _ = beats.tick() => {
                    anyhow::ensure!(sent.len() < 3, "three heartbeats without an answer");
                    sequence += 1;
                    sent.insert(sequence, Instant::now());
                    send(&up, Up::Heartbeat(v1::Heartbeat { sequence })).await?;
                }
                _ = looks.tick() => self.look(&mut recipes, &up).await?,
                _ = recipes.changed() => self.look(&mut recipes, &up).await?,
                message = down.message() => match message?.and_then(|message| message.kind) {
                    Some(Down::Assignments(set)) => self.take(Some(set), &up).await?,
                    Some(Down::Heartbeat(ack)) => {
                        if let Some(at) = sent.remove(&ack.sequence) {
                            lock(&self.shared.proofs).push(at.elapsed());
                        }
                        sent.retain(|earlier, _| *earlier > ack.sequence);
                    }
                    Some(_) => {}
                    None => anyhow::bail!("the session was ended"),
                },
            }
        }
    }

    async fn look(
        &self,
        recipes: &mut watch::Receiver<BTreeSet<String>>,
        up: &mpsc::Sender<HostMessage>,
    ) -> anyhow::Result<()> {
        let inventory = inventory(&recipes.borrow_and_update());
        send(up, Up::Inventory(inventory)).await
    }

    /// Takes on what is new, and reports that it runs.
    async fn take(&mut self, set: Option<v1::AssignmentSet>, up: &mpsc::Sender<HostMessage>) -> anyhow::Result<()> {
        for assignment in set.unwrap_or_default().assignments {
            if self.taken.insert(assignment.attempt.clone(), assignment.fence).is_some() {
                continue;
            }
            lock(&self.shared.told).entry(assignment.job.clone()).or_default().push((Instant::now(), self.number));
            if let Some(recipe) = &assignment.recipe {
                self.shared.recipes.send_if_modified(|known| known.insert(recipe.digest.clone()));
            }
            let report = v1::AttemptReport {
                job: assignment.job,
                attempt: assignment.attempt,
                fence: assignment.fence,
                state: Some(v1::AttemptState::from(&Phase::Running(Step::Agent))),
                sequence: 1,
                ..Default::default()
            };
            send(up, Up::Report(report)).await?;
        }
        Ok(())
    }
}

fn inventory(recipes: &BTreeSet<String>) -> v1::HostInventory {
    let gib = |count: u64| count << 30;
    let room = v1::Resources {
        cpu_millis: 16_000,
        memory_bytes: gib(64),
        disk_bytes: gib(500),
        disk_inodes: 10_000_000,
        slots: 8,
    };
    v1::HostInventory {
        total: Some(room),
        free: Some(room),
        host_version: env!("CARGO_PKG_VERSION").into(),
        recipes: recipes.iter().cloned().collect(),
        ..Default::default()
    }
}

async fn send(up: &mpsc::Sender<HostMessage>, kind: Up) -> anyhow::Result<()> {
    up.send(HostMessage { kind: Some(kind) }).await.context("the session is gone")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
