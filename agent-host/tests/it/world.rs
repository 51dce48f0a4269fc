//! A host in a test: the real supervisor, attempts, ledgers and logs, over an engine, a repository and a controller in
//! memory. The daemon can be killed and started again at any point; time stands still unless nothing else can happen.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_host::assignments::{AssignmentSet, Wanted};
use devfleet_host::attempt::Surroundings;
use devfleet_host::attempt::ports::{
    Claim, Code, CodeError, Controller, ControllerError, Grant, Leave, PublishRequest,
};
use devfleet_host::attempt::reports::{Board, Report};
use devfleet_host::caches::Caches;
use devfleet_host::disk::{Gauge, Space};
use devfleet_host::engine::ImageFacts;
use devfleet_host::engine::memory::{End, MemoryEngine, Piece, Script};
use devfleet_host::environment::Images;
use devfleet_host::freeze::Proofs;
use devfleet_host::mirror::{GitLogin, Imported};
use devfleet_host::spool::Spools;
use devfleet_host::supervisor::{Supervisor, SupervisorHandle};
use devfleet_proto::v1::LogRecord;
use devfleet_shared::assignment::{AgentKind, AgentSpec, Assignment, Limits, Repository};
use devfleet_shared::attempt::{AttemptResult, Phase};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::environment::{EnvironmentSpec, Recipe, ServiceSpec};
use devfleet_shared::id::{AttemptId, Fence, HostId, JobId};
use devfleet_shared::secret::Secret;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const ATTEMPT: &str = "a3f91c20";
pub(crate) const CANARY: &str = "canary-7f3a9c51e2";
/// What `collect` prints, and the commit that it brings.
pub(crate) const BUNDLE: &str = "# v2 git bundle, as it were";

pub(crate) fn commit() -> String {
    "c".repeat(40)
}

/// The repository: answers are given in the order in which they were prepared, then success.
#[derive(Default)]
pub(crate) struct MemoryCode {
    pub(crate) fetches: Mutex<VecDeque<CodeError>>,
    pub(crate) imports: Mutex<VecDeque<CodeError>>,
    pub(crate) pushes: Mutex<VecDeque<CodeError>>,
    /// Calls that go well never answer.
    pub(crate) stuck: Mutex<Option<&'static str>>,
    /// The call that never answers, while somebody waits for it.
    waits: Mutex<Option<&'static str>>,
    asked: Mutex<Vec<&'static str>>,
    pub(crate) pushed: Mutex<Vec<String>>,
    /// What the change looks like; `None`: a line.
    pub(crate) diff: Mutex<Option<String>>,
}

pub(crate) fn trouble(message: &str, retryable: bool) -> CodeError {
    CodeError { message: message.into(), retryable, no_change: false }
}

/// A call that somebody waits for, until it is given up.
struct Stuck<'a>(&'a MemoryCode);

impl Drop for Stuck<'_> {
    fn drop(&mut self) {
        *self.0.waits.lock().expect("waits") = None;
    }
}

impl MemoryCode {
    /// Says which call is waited for that never answers.
    pub(crate) fn waits(&self) -> Option<&'static str> {
        *self.waits.lock().expect("waits")
    }

    /// Says how often a call was made.
    pub(crate) fn asked(&self, verb: &str) -> usize {
        self.asked.lock().expect("asked").iter().filter(|asked| **asked == verb).count()
    }

    async fn answer(&self, verb: &'static str, prepared: &Mutex<VecDeque<CodeError>>) -> Result<(), CodeError> {
        self.asked.lock().expect("asked").push(verb);
        let stuck = *self.stuck.lock().expect("stuck") == Some(verb);
        if stuck {
            *self.waits.lock().expect("waits") = Some(verb);
            let _waits = Stuck(self);
            std::future::pending::<()>().await;
        }
        prepared.lock().expect("prepared").pop_front().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Code for MemoryCode {
    async fn fetch(&self, _: &Assignment, login: Option<&GitLogin>) -> Result<PathBuf, CodeError> {
        assert_eq!(login.map(|login| login.username.as_str()), Some("git"));
        self.answer("fetch", &self.fetches).await?;
        Ok("/mirrors/web.git".into())
    }

    async fn objects(&self, _: &Assignment, _: &[String]) -> Result<BTreeMap<String, String>, CodeError> {
        Ok(BTreeMap::new())
    }

    async fn import(&self, _: &Assignment, bundle: &Path) -> Result<Imported, CodeError> {
        self.answer("import", &self.imports).await?;
        let content = std::fs::read_to_string(bundle).expect("the bundle is there");
        match content == BUNDLE {
            true => {
                let diff = self.diff.lock().expect("diff").clone().unwrap_or_else(|| "+fix".into());
                Ok(Imported { commit: commit(), diff, diff_truncated: false })
            }
            false => Err(trouble("take in the job's bundle: it is none", false)),
        }
    }

    async fn push(&self, assignment: &Assignment, _: Option<&GitLogin>, commit: &str) -> Result<(), CodeError> {
        self.answer("push", &self.pushes).await?;
        self.pushed.lock().expect("pushed").push(format!("{} {commit}", assignment.repository.work_branch));
        Ok(())
    }
}

/// The controller.
#[derive(Default)]
pub(crate) struct MemoryController {
    pub(crate) grants: Mutex<VecDeque<ControllerError>>,
    pub(crate) leaves: Mutex<VecDeque<Result<Leave, ControllerError>>>,
    pub(crate) asked: Mutex<Vec<PublishRequest>>,
    pub(crate) weak_secret: Mutex<bool>,
}

#[async_trait]
impl Controller for MemoryController {
    async fn get_grant(&self, _: &Claim) -> Result<Grant, ControllerError> {
        if let Some(error) = self.grants.lock().expect("grants").pop_front() {
            return Err(error);
        }
        let secret = if *self.weak_secret.lock().expect("weak") { "aaa" } else { CANARY };
        Ok(Grant {
            variables: BTreeMap::from([("MODEL_KEY".to_owned(), Secret::new(secret))]),
            git: Some(GitLogin { username: "git".into(), password: Secret::new("forge-password-93aa1") }),
            ..Grant::default()
        })
    }

    async fn authorize_publish(&self, request: &PublishRequest) -> Result<Leave, ControllerError> {
        self.asked.lock().expect("asked").push(request.clone());
        self.leaves.lock().expect("leaves").pop_front().unwrap_or(Ok(Leave::Granted))
    }
}

/// A started daemon.
pub(crate) struct Daemon {
    pub(crate) handle: SupervisorHandle,
    pub(crate) around: Arc<Surroundings>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) supervisor: JoinHandle<()>,
    spools: Spools,
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) code: Arc<MemoryCode>,
    pub(crate) controller: Arc<MemoryController>,
    pub(crate) assignment: Assignment,
    /// Asked for its room; `None`: the machine's own disk does not matter.
    pub(crate) engine_disk: Option<PathBuf>,
    pub(crate) gauge: Gauge,
    pub(crate) clock: Clock,
    host: HostId,
}

impl World {
    /// A host with nothing on it, and an assignment whose every step passes.
    pub(crate) fn new() -> World {
        let engine = MemoryEngine::new();
        let image = |number: u8| ImageFacts { id: format!("sha256:base{number}"), ..ImageFacts::default() };
        engine.add_to_registry("app:1", image(1));
        engine.add_to_registry("redis:7", image(2));
        engine.script("redis", Script::runs());
        let world = World {
            dir: tempfile::tempdir().expect("dir"),
            engine,
            code: Arc::default(),
            controller: Arc::default(),
            assignment: assignment(),
            engine_disk: None,
            // Not this machine's, which may be full.
            gauge: |_| Ok(Space::UNSEEN),
            clock: Clock::system(),
            host: HostId::random(),
        };
        for step in ["checkout", "setup", "agent", "verify"] {
            world.script(step, &format!("{step} was here\n"), 0);
        }
        world.script("collect", BUNDLE, 0);
        for round in 2..50 {
            world.script(&format!("collect-{round}"), BUNDLE, 0);
        }
        world
    }

    /// Makes a step print this and end with this status, half a second after its start.
    pub(crate) fn script(&self, step: &str, output: &str, status: i64) {
        self.script_for(step, output, Duration::from_millis(500), status);
    }

    pub(crate) fn script_for(&self, step: &str, output: &str, time: Duration, status: i64) {
        let piece = Piece { data: output.to_owned().into(), ..Piece::default() };
        let output = if output.is_empty() { Vec::new() } else { vec![piece] };
        self.engine.script(step, Script { output, ..Script::ends(time, status) });
    }

    pub(crate) fn script_killed(&self, step: &str, out_of_memory: bool) {
        let exit = devfleet_host::engine::Exit { status: 137, out_of_memory };
        let end = Some(End { after: Duration::from_millis(500), exit });
        self.engine.script(step, Script { end, ..Script::default() });
    }

    pub(crate) fn around(&self, spools: Spools) -> Arc<Surroundings> {
        let engine: devfleet_host::engine::SharedEngine = Arc::clone(&self.engine) as _;
        Arc::new(Surroundings {
            images: Images::new(Arc::clone(&engine), self.host.clone()),
            caches: Caches::new(Arc::clone(&engine), self.host.clone(), self.dir.path(), 1 << 30),
            engine,
            host: self.host.clone(),
            clock: self.clock.clone(),
            pool: "10.213.0.0/16".parse().expect("pool"),
            slots: 4,
            admitted: Default::default(),
            code: Arc::clone(&self.code) as _,
            controller: Arc::clone(&self.controller) as _,
            spools,
            data_dir: self.dir.path().to_owned(),
            engine_disk: self.engine_disk.clone(),
            gauge: self.gauge,
            board: Board::default(),
            proofs: Proofs::fresh(self.clock.clone()),
        })
    }

    /// Starts a daemon, which adopts what is there.
    pub(crate) fn start(&self) -> Daemon {
        let spools = Spools::open_dir(self.dir.path().join("spool")).expect("spools");
        let around = self.around(spools.clone());
        let (supervisor, handle) =
            Supervisor::adopt(Arc::clone(&around), self.dir.path().join("ledger")).expect("adopt");
        let shutdown = CancellationToken::new();
        let supervisor = tokio::spawn(supervisor.run(shutdown.clone()));
        Daemon { handle, around, shutdown, supervisor, spools }
    }

    /// Starts a daemon and gives it the assignment.
    pub(crate) async fn begin(&self) -> Daemon {
        let daemon = self.start();
        daemon.handle.apply(self.set(1, false), true).await;
        daemon
    }

    pub(crate) fn set(&self, generation: u64, cancel: bool) -> AssignmentSet {
        let wanted = Wanted { assignment: self.assignment.clone(), cancel };
        AssignmentSet { generation, wanted: BTreeMap::from([(self.attempt(), wanted)]), ..AssignmentSet::default() }
    }

    pub(crate) fn attempt(&self) -> AttemptId {
        self.assignment.attempt.clone()
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.dir.path().join(format!("ledger/{ATTEMPT}.jsonl"))
    }

    /// Runs the assignment to its acknowledged end and returns the result, having checked that nothing is left.
    pub(crate) async fn carry_out(&self) -> AttemptResult {
        let daemon = self.begin().await;
        self.finish(&daemon).await
    }

    /// Waits for the end, acknowledges it, and checks that nothing is left.
    pub(crate) async fn finish(&self, daemon: &Daemon) -> AttemptResult {
        let report = daemon.ended(&self.attempt()).await;
        self.assert_nothing_is_left();
        daemon.handle.acknowledge(self.attempt(), report.sequence, false).await;
        daemon.gone(&self.attempt()).await;
        assert!(!self.ledger().exists(), "the ledger is removed with the acknowledgement");
        match report.phase {
            Phase::Ended(result) => result,
            other => panic!("not ended: {other:?}"),
        }
    }

    pub(crate) fn assert_nothing_is_left(&self) {
        assert_eq!(self.engine.objects(), [], "objects are left");
        assert!(!self.dir.path().join(format!("tmp/devbox-{ATTEMPT}")).exists(), "temporary files are left");
    }

    /// Returns how often a container with this name was made.
    pub(crate) fn pushed(&self) -> Vec<String> {
        self.code.pushed.lock().expect("pushed").clone()
    }

    pub(crate) fn asked(&self) -> Vec<PublishRequest> {
        self.controller.asked.lock().expect("asked").clone()
    }

    pub(crate) fn name(&self, role: &str) -> String {
        self.attempt().object_name(role)
    }

    /// Waits until a container of this role is there and runs.
    pub(crate) async fn running(&self, role: &str) {
        self.called("start", role).await;
    }

    /// Waits until the engine was asked for something about the container of this role.
    pub(crate) async fn called(&self, verb: &str, role: &str) {
        let name = self.name(role);
        let called = || self.engine.calls().iter().any(|call| call.verb == verb && call.about == name);
        until(&format!("{verb} of {role}"), called).await;
    }

    /// Waits until the first process of the container of this role has ended, whether somebody watches or not.
    pub(crate) async fn ended(&self, role: &str) {
        use devfleet_host::engine::{ContainerState, Engine as _};
        let name = self.name(role);
        let ended = async || matches!(self.engine.state(&name).await, Ok(Some(ContainerState::Exited(_))));
        until_async(&format!("the end of {role}"), ended).await;
    }
}

impl Daemon {
    /// Waits for the report of the attempt's end.
    pub(crate) async fn ended(&self, attempt: &AttemptId) -> Report {
        let ended = |report: Report| matches!(report.phase, Phase::Ended(_)).then_some(report);
        self.reported("the end", attempt, ended).await
    }

    pub(crate) async fn reported<T>(&self, what: &str, attempt: &AttemptId, pick: impl Fn(Report) -> Option<T>) -> T {
        let mut changes = self.handle.board().changes();
        let found = async {
            loop {
                if let Some(found) = self.handle.board().of(attempt).and_then(&pick) {
                    return found;
                }
                changes.changed().await.expect("the board stands");
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(100 * 3600), found).await;
        found.unwrap_or_else(|_| panic!("{what} was never reported; last: {:?}", self.handle.board().of(attempt)))
    }

    /// Waits until the attempt is forgotten.
    pub(crate) async fn gone(&self, attempt: &AttemptId) {
        until("forgotten", || self.handle.board().of(attempt).is_none()).await;
        // The supervisor has buried it when it answers again.
        self.handle.reserved().await;
    }

    /// Ends the daemon as `kill -9` does: between two of its steps, without a word.
    pub(crate) async fn kill(self) {
        self.supervisor.abort();
        assert!(self.supervisor.await.is_err_and(|error| error.is_cancelled()), "the supervisor was at work");
        // Attempts go with the supervisor's task set.
        tokio::task::yield_now().await;
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.supervisor.await.expect("the supervisor ends");
    }

    /// Returns everything that the attempt's log holds.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        for spool in self.spools.list() {
            let see =
                |record: LogRecord| text += &format!("[{}] {}\n", record.source, String::from_utf8_lossy(&record.data));
            spool.records(see).expect("records");
        }
        text
    }
}

/// Waits until something is so, for at most an hour of the test's time.
pub(crate) async fn until(what: &str, so: impl Fn() -> bool) {
    until_async(what, async || so()).await;
}

async fn until_async(what: &str, so: impl AsyncFn() -> bool) {
    within(Duration::from_secs(3_600), Duration::from_millis(1), what, so).await;
}

/// Waits until something is so on the real engine, for at most a minute.
pub(crate) async fn until_real(what: &str, so: impl AsyncFn() -> bool) {
    within(Duration::from_secs(60), Duration::from_millis(50), what, so).await;
}

async fn within(time: Duration, pace: Duration, what: &str, so: impl AsyncFn() -> bool) {
    let mut looks = tokio::time::interval(pace);
    let looking = async {
        while !so().await {
            looks.tick().await;
        }
    };
    tokio::time::timeout(time, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn assignment() -> Assignment {
    let service = ServiceSpec {
        name: "redis".into(),
        image: "redis:7".into(),
        aliases: vec!["redis".into()],
        ..ServiceSpec::default()
    };
    Assignment {
        job: JobId::random(),
        attempt: ATTEMPT.parse().expect("attempt id"),
        fence: Fence(3),
        project: "web".parse().expect("name"),
        task: "Fix it".into(),
        plan: "Carefully".into(),
        environment: EnvironmentSpec {
            image: "app:1".into(),
            services: vec![service],
            variables: BTreeMap::from([("CI".to_owned(), "true".to_owned())]),
            setup: vec!["pip install -r requirements.txt".into()],
            verify: vec!["pytest".into()],
            ..EnvironmentSpec::default()
        },
        recipe: Recipe::new("FROM app:1".into(), Vec::new(), String::new()),
        repository: Repository {
            url: "/srv/web.git".into(),
            base_commit: "a".repeat(40),
            base_branch: "main".into(),
            work_branch: "devfleet/job-a3f91c20".into(),
        },
        agent: AgentSpec {
            name: "script".parse().expect("name"),
            kind: AgentKind::Script,
            command: "./agent".into(),
            variables: BTreeMap::new(),
            secrets: vec!["MODEL_KEY".into()],
        },
        limits: Limits::default(),
        hold: Duration::ZERO,
    }
}

/// The wall clock of the tests' worlds is the machine's: it stands still where tokio's races ahead.
pub(crate) fn now() -> Timestamp {
    Clock::system().now()
}
