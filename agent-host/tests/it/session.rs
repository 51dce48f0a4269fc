//! The session against a controller on loopback: hello, assignments, reports until acknowledged, silence, sweeps.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_host::attempt::reports::Board;
use devfleet_host::disk::Space;
use devfleet_host::session::followed::Followed;
use devfleet_host::session::inventory::Inventory;
use devfleet_host::session::{Session as HostSession, Sweeping};
use devfleet_host::spool::Spools;
use devfleet_host::spool::shipping::Dial;
use devfleet_host::supervisor::Supervisor;
use devfleet_proto::convert::assignment_to_wire;
use devfleet_proto::v1::controller_message::Kind as Down;
use devfleet_proto::v1::host_message::Kind as Up;
use devfleet_proto::v1::session_server::{Session, SessionServer};
use devfleet_proto::v1::{self, AttemptPhase, ControllerMessage, HostMessage, LogAck, LogChunk};
use futures_util::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::world::World;

/// One stream, seen from the controller.
struct Line {
    hello: v1::Hello,
    up: Streaming<HostMessage>,
    down: mpsc::Sender<Result<ControllerMessage, Status>>,
}

/// Hands each stream that is opened to the test.
struct Fake {
    lines: mpsc::Sender<Line>,
}

#[async_trait]
impl Session for Fake {
    type OpenStream = BoxStream<'static, Result<ControllerMessage, Status>>;
    type PushLogsStream = BoxStream<'static, Result<LogAck, Status>>;

    async fn open(&self, request: Request<Streaming<HostMessage>>) -> Result<Response<Self::OpenStream>, Status> {
        let mut up = request.into_inner();
        let (down, receiver) = mpsc::channel(64);
        let lines = self.lines.clone();
        tokio::spawn(async move {
            if let Ok(Some(HostMessage { kind: Some(Up::Hello(hello)) })) = up.message().await {
                let _ = lines.send(Line { hello, up, down }).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn push_logs(&self, _: Request<Streaming<LogChunk>>) -> Result<Response<Self::PushLogsStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn get_grant(&self, _: Request<v1::GetGrantRequest>) -> Result<Response<v1::Grant>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn authorize_publish(
        &self,
        _: Request<v1::AuthorizePublishRequest>,
    ) -> Result<Response<v1::AuthorizePublishResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

/// Dials one address, and counts how often another was wished for.
struct PlainDial(String, Arc<AtomicUsize>);

#[async_trait]
impl Dial for PlainDial {
    async fn dial(&self) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Endpoint::from_shared(self.0.clone())?.connect().await?)
    }

    fn elsewhere(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// A host with a session, and the controller's end of it.
struct Pair {
    world: World,
    lines: mpsc::Receiver<Line>,
    shutdown: CancellationToken,
    tasks: tokio::task::JoinSet<()>,
    welcomed: tokio::sync::watch::Receiver<bool>,
    elsewhere: Arc<AtomicUsize>,
    board: Board,
}

impl Pair {
    async fn new() -> Pair {
        Pair::of(World::new()).await
    }

    async fn of(world: World) -> Pair {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = format!("http://{}", listener.local_addr().expect("address"));
        let (sender, lines) = mpsc::channel(4);
        let shutdown = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        let service = SessionServer::new(Fake { lines: sender });
        tasks.spawn(async move {
            let served =
                Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await;
            served.expect("serve");
        });
        let around = world.around(Spools::open_dir(world.dir.path().join("spool")).expect("spools"));
        let ledgers = world.dir.path().join("ledger");
        let (supervisor, handle) = Supervisor::adopt(Arc::clone(&around), ledgers).expect("adopt");
        tasks.spawn(supervisor.run(shutdown.clone()));
        let (proofs, board, elsewhere) = (around.proofs.clone(), around.board.clone(), Arc::default());
        let sweeping =
            Arc::new(Sweeping { around: Arc::clone(&around), protection: Duration::ZERO, turn: Default::default() });
        let welcomed = tokio::sync::watch::Sender::new(false);
        let seen = welcomed.subscribe();
        let session = HostSession {
            dial: Arc::new(PlainDial(address, Arc::clone(&elsewhere))),
            supervisor: handle.clone(),
            inventory: Inventory { around, supervisor: handle, mirrors: "/nowhere".into() },
            sweeping,
            incarnation: "i1".into(),
            proofs: proofs.clone(),
            clock: world.clock.clone(),
            welcomed,
            followed: Followed::open(world.dir.path().join("store.json")),
            removal: world.dir.path().join("removed"),
        };
        tasks.spawn(session.run(shutdown.clone()));
        Pair { world, lines, shutdown, tasks, welcomed: seen, elsewhere, board }
    }

    async fn line(&mut self) -> Line {
        within("a stream", self.lines.recv()).await.expect("the server stands")
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        self.tasks.shutdown().await;
    }
}

impl Line {
    async fn send(&self, kind: Down) {
        self.down.send(Ok(ControllerMessage { kind: Some(kind) })).await.expect("the host listens");
    }

    async fn welcome(&self, assignments: v1::AssignmentSet) {
        // No field of the newest protocol is set: so speaks the version before it.
        self.welcome_as(assignments, v1::Welcome::default()).await;
    }

    async fn welcome_as(&self, assignments: v1::AssignmentSet, welcome: v1::Welcome) {
        let controller_version = "test".to_owned();
        self.send(Down::Welcome(v1::Welcome {
            heartbeat_seconds: 1,
            controller_version,
            assignments: Some(assignments),
            ..welcome
        }))
        .await;
    }

    /// Reads until something is found; answers heartbeats on the way.
    async fn hear<T>(&mut self, what: &str, find: impl Fn(Up) -> Option<T>) -> T {
        let found = async {
            loop {
                let message = self.up.message().await.expect("the stream stands").expect("a message");
                match message.kind.expect("a kind") {
                    Up::Heartbeat(beat) => {
                        self.send(Down::Heartbeat(v1::HeartbeatAck { sequence: beat.sequence })).await
                    }
                    other => {
                        if let Some(found) = find(other) {
                            return found;
                        }
                    }
                }
            }
        };
        within(what, found).await
    }

    async fn end_report(&mut self) -> v1::AttemptReport {
        let ended = |up| match up {
            Up::Report(report) if phase(&report) == AttemptPhase::Ended => Some(report),
            _ => None,
        };
        self.hear("the end", ended).await
    }
}

fn phase(report: &v1::AttemptReport) -> AttemptPhase {
    report.state.as_ref().map_or(AttemptPhase::Unspecified, v1::AttemptState::phase)
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap_or_else(|_| panic!("{what} never came"))
}

fn set(world: &World, generation: u64) -> v1::AssignmentSet {
    v1::AssignmentSet { generation, assignments: vec![assignment_to_wire(&world.assignment, false)] }
}

#[tokio::test]
async fn a_job_goes_from_the_welcome_to_its_acknowledged_end_across_a_lost_stream() {
    let mut pair = Pair::new().await;
    let line = pair.line().await;
    assert_eq!(line.hello.incarnation, "i1");
    assert!(line.hello.owned.is_empty());
    let inventory = line.hello.inventory.as_ref().expect("inventory");
    assert_eq!(inventory.total.as_ref().map(|total| (total.cpu_millis, total.slots)), Some((2_000, 4)));
    assert!(!*pair.welcomed.borrow(), "nothing is swept before the welcome");
    line.welcome(set(&pair.world, 7)).await;
    within("the welcome", pair.welcomed.wait_for(|welcomed| *welcomed)).await.expect("session");
    let mut line = line;
    let report = line.end_report().await;
    // The stream breaks before the acknowledgement: the host comes back, says what it has, and repeats the report.
    drop(line);
    let mut line = pair.line().await;
    let owned = &line.hello.owned[0];
    assert_eq!((owned.attempt.as_str(), owned.fence), ("a3f91c20", 3));
    line.welcome(v1::AssignmentSet { generation: 3, assignments: Vec::new() }).await;
    let again = line.end_report().await;
    assert_eq!((again.sequence, &again.state), (report.sequence, &report.state));
    let ack = v1::ReportAck { attempt: again.attempt, sequence: again.sequence, superseded: false };
    line.send(Down::Report(ack)).await;
    let ledger = pair.world.ledger();
    crate::world::until("the ledger is removed", || !ledger.exists()).await;
    assert_eq!(pair.world.pushed().len(), 1);
    pair.end().await;
}

#[tokio::test]
async fn an_assignment_that_cannot_be_read_fails_alone() {
    let mut pair = Pair::new().await;
    let mut line = pair.line().await;
    let mut set = set(&pair.world, 1);
    set.assignments[0].environment = None;
    line.welcome(set).await;
    let report = line.end_report().await;
    let result = report.state.and_then(|state| state.result).and_then(|result| result.kind);
    let Some(v1::attempt_result::Kind::Failed(failure)) = result else { panic!("{result:?}") };
    assert!(failure.reason == "internal" && failure.message.contains("of one version"), "{failure:?}");
    pair.end().await;
}

#[tokio::test]
async fn a_report_without_acknowledgement_is_repeated_on_the_same_stream() {
    let mut pair = Pair::new().await;
    let mut line = pair.line().await;
    line.welcome(set(&pair.world, 1)).await;
    let first = line.end_report().await;
    let second = line.end_report().await;
    assert_eq!(first, second);
    pair.end().await;
}

#[tokio::test]
async fn a_controller_that_does_not_answer_heartbeats_is_dialled_anew() {
    let mut pair = Pair::new().await;
    let line = pair.line().await;
    line.welcome(v1::AssignmentSet::default()).await;
    // The stream stands and stays silent.
    let again = pair.line().await;
    assert_eq!(again.hello.incarnation, "i1");
    drop(line);
    pair.end().await;
}

#[tokio::test]
async fn a_sweep_is_answered_and_spares_what_runs() {
    let mut pair = Pair::new().await;
    pair.world.engine.script("agent", devfleet_host::engine::memory::Script::runs());
    let mut line = pair.line().await;
    line.welcome(set(&pair.world, 1)).await;
    pair.world.running("agent").await;
    line.send(Down::Sweep(v1::SweepOrder { request: 5, dry_run: false })).await;
    let swept = |up| match up {
        Up::Sweep(result) => Some(result),
        _ => None,
    };
    let result = line.hear("the sweep", swept).await;
    assert_eq!((result.request, result.error.as_str()), (5, ""));
    let agent = pair.world.name("agent");
    let object = result.objects.iter().find(|object| object.name == agent).expect("listed");
    assert!(!object.removed && object.reason.contains("under way"), "{object:?}");
    assert!(pair.world.engine.container(&agent).is_some());
    pair.end().await;
}

#[tokio::test]
async fn a_host_whose_engine_is_away_says_so_and_offers_nothing() {
    let mut pair = Pair::new().await;
    let mut line = pair.line().await;
    let away = Arc::new(Mutex::new(0));
    let count = Arc::clone(&away);
    pair.world.engine.fail_when(move |call| {
        *count.lock().expect("count") += 1;
        (call.verb == "facts").then_some(devfleet_host::engine::memory::Fault::Before)
    });
    line.welcome(v1::AssignmentSet::default()).await;
    let inventory = |up| match up {
        Up::Inventory(inventory) => Some(inventory),
        _ => None,
    };
    let inventory = line.hear("an inventory", inventory).await;
    assert!(inventory.problems.iter().any(|problem| problem.starts_with("this host failed to")), "{inventory:?}");
    assert!(inventory.free.is_none() || inventory.free == Some(v1::Resources::default()));
    pair.end().await;
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing_to_give() {
    let mut world = World::new();
    world.gauge = |_| Ok(Space { total_bytes: 100 << 30, free_bytes: 15 << 30, ..Space::UNSEEN });
    let mut pair = Pair::of(world).await;
    let line = pair.line().await;
    let inventory = line.hello.inventory.as_ref().expect("inventory");
    let full = "85 % of the room on the data disk is used, past the limit of 85 %: this host takes no more jobs";
    assert!(inventory.problems.iter().any(|problem| problem.starts_with(full)), "{inventory:?}");
    assert_eq!(inventory.free, Some(v1::Resources::default()));
    pair.end().await;
}

#[tokio::test]
async fn a_host_that_was_removed_starts_again_only_with_a_new_token() {
    let dir = tempfile::tempdir().expect("dir");
    let (file, token) = (dir.path().join("host.toml"), dir.path().join("token"));
    let text = format!(
        "name = \"box-1\"\ncontroller = \"https://127.0.0.1:1\"\ndata_dir = \"{}/data\"\njoin_token_file = \"{}\"\n",
        dir.path().display(),
        token.display()
    );
    std::fs::write(&file, text).expect("written");
    let config = devfleet_host::config::Config::load(&file).expect("valid");
    let identity = dir.path().join("data/identity");
    std::fs::create_dir_all(&identity).expect("made");
    std::fs::write(identity.join("removed"), "host box-1 was removed by ada").expect("written");
    std::fs::write(identity.join("host-id"), "3b124ed8-47ca-4fbc-b33c-c0dfe60f34be\n").expect("written");
    let start = |shutdown| {
        devfleet_host::daemon::run_on(devfleet_host::engine::memory::MemoryEngine::new(), config.clone(), shutdown)
    };
    let refused = start(CancellationToken::new()).await.expect_err("refused").to_string();
    for part in ["host box-1 was removed by ada", "devfleet join-token create", "identity/removed"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(identity.join("removed").exists(), "it is still known");

    std::fs::write(&token, format!("dfj_id_secret_{}", "0".repeat(64))).expect("written");
    let told = CancellationToken::new();
    told.cancel();
    start(told).await.expect("it waits for the controller until it is told to end");
    assert!(!identity.join("removed").exists(), "it joins as another");
}

/// Runs an attempt up to its agent, which does not end by itself.
async fn with_agent(pair: &mut Pair) -> Line {
    pair.world.engine.script("agent", devfleet_host::engine::memory::Script::runs());
    let line = pair.line().await;
    line.welcome_as(set(&pair.world, 1), generation(2)).await;
    let board = pair.board.clone();
    crate::world::until("the agent runs", || board.all().iter().any(|report| report.phase.name() == "agent")).await;
    line
}

fn generation(number: u64) -> v1::Welcome {
    let generation = Some(v1::Generation { id: "store".into(), number });
    v1::Welcome { generation, protocol: devfleet_shared::protocol::PROTOCOL, ..v1::Welcome::default() }
}

#[tokio::test]
async fn a_controller_on_an_older_store_or_too_new_is_not_followed_and_another_is_looked_for() {
    let mut pair = Pair::new().await;
    let line = with_agent(&mut pair).await;
    drop(line);
    // Nothing is wanted here, say controllers that this host must not follow.
    let too_new = v1::Welcome { protocol: devfleet_shared::protocol::PROTOCOL + 2, ..generation(2) };
    for welcome in [generation(1), too_new] {
        let mut refused = pair.line().await;
        let before = pair.elsewhere.load(Ordering::SeqCst);
        refused.welcome_as(v1::AssignmentSet { generation: 9, assignments: Vec::new() }, welcome).await;
        let closed = async { while let Ok(Some(_)) = refused.up.message().await {} };
        within("the end of the stream", closed).await;
        crate::world::until("it looks elsewhere", || pair.elsewhere.load(Ordering::SeqCst) > before).await;
        assert!(pair.board.all().iter().any(|report| report.phase.name() == "agent"), "the attempt goes on");
    }
    let newest = pair.line().await;
    newest.welcome_as(v1::AssignmentSet { generation: 2, assignments: Vec::new() }, generation(3)).await;
    let ledger = pair.world.ledger();
    crate::world::until("the newest is followed", || !ledger.exists()).await;
    pair.end().await;
}

#[tokio::test]
async fn a_host_that_was_removed_stops_what_it_has_writes_it_down_and_does_not_ask_again_at_once() {
    use tonic_types::{ErrorDetails, StatusExt as _};
    let mut pair = Pair::new().await;
    let line = with_agent(&mut pair).await;
    let details = ErrorDetails::with_error_info("HOST_REMOVED", "devfleet", []);
    let removed = Status::with_error_details(tonic::Code::PermissionDenied, "removed by ada", details);
    line.down.send(Err(removed)).await.expect("the host listens");
    let ledger = pair.world.ledger();
    crate::world::until("nothing is left", || !ledger.exists() && pair.world.engine.objects().is_empty()).await;
    let marker = pair.world.dir.path().join("removed");
    assert_eq!(std::fs::read_to_string(marker).expect("written down"), "removed by ada");
    // sleep: that nothing comes is looked at for as long as twenty tries of the usual pace take at least
    assert!(tokio::time::timeout(Duration::from_secs(4), pair.lines.recv()).await.is_err(), "it asks again at once");
    pair.end().await;
}
