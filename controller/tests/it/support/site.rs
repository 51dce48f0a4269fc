//! A whole devfleet for one test: the real controller and the real host daemon as processes, on the real engine.
//!
//! Everything that it makes carries its own host id and lives under its own directory, so that tests run side by side.
//! Dropping it ends its processes and removes whatever is left of it on the engine.

mod process;
mod repository;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::looking;
use devfleet_controller::cli::connection::Connection;
use devfleet_controller::cli::context::Context;
use devfleet_proto::v1;
use devfleet_shared::clock::Clock;
use devfleet_shared::secret::Secret;
use tempfile::TempDir;
use tonic::Status;

pub(crate) use process::Program;
pub(crate) use repository::Repository;

/// The bound of every wait: generous, since the machine may be busy; it is reached only when a test fails.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often a state is looked at while it is awaited.
const LOOK: Duration = Duration::from_millis(50);

/// What differs from the usual devfleet.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) max_running: usize,
    pub(crate) slots: u32,
    pub(crate) protection_window: &'static str,
    /// The engine's address, where it is not Docker's usual socket.
    pub(crate) engine: Option<String>,
    /// The host's data directory, where it does not lie with all else.
    pub(crate) host_dir: Option<PathBuf>,
    /// Environment variables of the controller, where secrets come from.
    pub(crate) variables: Vec<(String, String)>,
    /// Further tables of the controllers' configuration.
    pub(crate) tables: String,
    /// Whether there is a second controller: the tables name a store for both.
    pub(crate) two_controllers: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_running: 5,
            slots: 10,
            protection_window: "10m",
            engine: None,
            host_dir: None,
            variables: Vec::new(),
            tables: String::new(),
            two_controllers: false,
        }
    }
}

/// The devfleet of one test.
pub(crate) struct Site {
    dir: TempDir,
    settings: Settings,
    controllers: BTreeMap<String, Program>,
    host: Option<Program>,
    connection: Connection,
    /// The operator's token.
    pub(crate) token: String,
    addresses: Vec<String>,
    host_id: String,
}

impl Site {
    /// Starts a devfleet and waits until its host is connected.
    pub(crate) async fn start(settings: Settings) -> Site {
        devfleet_shared::tls::install_provider();
        let dir = tempfile::Builder::new().prefix("devfleet-site-").tempdir().expect("a directory");
        let names = if settings.two_controllers { &["controller", "second"][..] } else { &["controller"] };
        let addresses: Vec<String> = names.iter().map(|_| free_address()).collect();
        for (name, address) in names.iter().zip(&addresses) {
            write(&dir.path().join(format!("{name}.toml")), &controller_toml(dir.path(), name, address, &settings));
        }
        write(&dir.path().join("host.toml"), &host_toml(dir.path(), &addresses, &settings));
        let token_file = dir.path().join("token");
        let controller = Program::controller(dir.path(), names[0], &settings.variables);
        let token = wait_for("the bootstrap token", || {
            std::fs::read_to_string(&token_file).ok().filter(|text| text.ends_with('\n'))
        })
        .await;
        let token = token.trim().to_owned();
        let connection = Connection::new(&context(dir.path(), &addresses, &token)).expect("a connection");
        let mut site = Site {
            dir,
            settings,
            controllers: BTreeMap::from([(names[0].to_owned(), controller)]),
            host: None,
            connection,
            token,
            addresses,
            host_id: String::new(),
        };
        site.controller_ready().await;
        for name in &names[1..] {
            let program = Program::controller(site.dir.path(), name, &site.settings.variables);
            site.controllers.insert((*name).to_owned(), program);
        }
        let join = site.connection.fleet().create_join_token(v1::CreateJoinTokenRequest::default()).await;
        let join = join.expect("a join token").into_inner().token;
        site.host = Some(Program::host(site.dir.path(), Some(&join)));
        site.host_connected().await;
        site
    }

    /// Starts a usual devfleet.
    pub(crate) async fn usual() -> Site {
        Site::start(Settings::default()).await
    }

    /// Returns the directory under which everything of this devfleet lies.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the way to the controller.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Connects with another token.
    pub(crate) fn connection_with(&self, token: &str) -> Connection {
        Connection::new(&context(self.dir.path(), &self.addresses, token)).expect("a connection")
    }

    /// Writes the context of the CLI, and returns where it is.
    pub(crate) fn context_file(&self) -> PathBuf {
        let file = self.dir.path().join("context.toml");
        context(self.dir.path(), &self.addresses, &self.token).save(&file).expect("written");
        file
    }

    /// Makes a bare repository with these files on its `main` branch.
    pub(crate) fn repository(&self, name: &str, files: &[(&str, &str)]) -> Repository {
        Repository::make(&self.dir.path().join("repositories"), name, files)
    }

    /// Applies a project.
    pub(crate) async fn apply(&self, toml: &str) {
        self.try_apply(toml).await.expect("the project is right");
    }

    /// Applies a project, or says what is wrong with it.
    pub(crate) async fn try_apply(&self, toml: &str) -> Result<v1::Project, Status> {
        let request = v1::ApplyProjectRequest { toml: toml.to_owned() };
        self.connection
            .jobs()
            .apply_project(request)
            .await
            .map(|answer| answer.into_inner().project.expect("a project"))
    }

    /// Submits a job, and says what is wrong with it if it is refused.
    pub(crate) async fn try_submit(&self, request: v1::SubmitRequest) -> Result<v1::Job, Status> {
        let request = match request.idempotency_key.as_str() {
            "" => v1::SubmitRequest { idempotency_key: uuid::Uuid::new_v4().to_string(), ..request },
            _ => request,
        };
        self.connection.jobs().submit(request).await.map(|answer| answer.into_inner().job.expect("a job"))
    }

    /// Submits a job with this task to a project.
    pub(crate) async fn submit(&self, project: &str, task: &str) -> v1::Job {
        let request = v1::SubmitRequest { project: project.into(), task: task.into(), ..Default::default() };
        self.try_submit(request).await.expect("the job is accepted")
    }

    /// Reads a job.
    pub(crate) async fn job(&self, id: &str) -> v1::Job {
        let read = async || self.connection.jobs().get_job(v1::GetJobRequest { job: id.to_owned() }).await;
        self.connection.read(read).await.expect("the job can be read")
    }

    /// Waits until a job is as wanted; fails, with what it is and the logs of both programs, if it does not get so.
    pub(crate) async fn until(&self, id: &str, what: &str, wanted: impl Fn(&v1::Job) -> bool) -> v1::Job {
        let deadline = now() + PATIENCE;
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let job = self.job(id).await;
            if wanted(&job) {
                return job;
            }
            let stuck = now() > deadline || (job.phase == "ended" && all_ended(&job));
            assert!(
                !stuck,
                "waited for {what}, the job is {job:#?}\nits log: {}\n{}",
                self.log(id).await,
                self.program_logs()
            );
            looks.tick().await;
        }
    }

    /// Approves a job as soon as it awaits approval.
    pub(crate) async fn approve(&self, id: &str) -> v1::Job {
        let job = self.until(id, "a proposal", |job| job.phase == "awaiting-approval").await;
        let request = v1::ApproveRequest { job: id.to_owned(), digest: job.proposal_digest.clone() };
        self.connection.jobs().approve(request).await.expect("it is approved").into_inner()
    }

    /// Waits until a job and all its attempts have ended.
    pub(crate) async fn ended(&self, id: &str) -> v1::Job {
        self.until(id, "the end", |job| job.phase == "ended" && all_ended(job)).await
    }

    /// Waits until the job's newest attempt is in a phase: `preparing`, a step's name, `publishing`, `stopping`.
    pub(crate) async fn in_phase(&self, id: &str, phase: &str) -> v1::Job {
        self.until(id, phase, |job| attempt_phase(job) == phase).await
    }

    /// Returns a job's log as text: every step's output and the host's notes, in order.
    pub(crate) async fn log(&self, id: &str) -> String {
        let records = self.log_records(id).await;
        String::from_utf8_lossy(&records.iter().flat_map(|record| record.data.clone()).collect::<Vec<_>>()).into_owned()
    }

    /// Returns a job's log records.
    pub(crate) async fn log_records(&self, id: &str) -> Vec<v1::LogRecord> {
        let request = v1::ReadLogsRequest { job: id.to_owned(), follow: false, attempt: String::new() };
        let mut stream = self.connection.streams().read_logs(request).await.expect("logs").into_inner();
        let mut records = Vec::new();
        while let Some(record) = stream.message().await.expect("a record") {
            records.push(record);
        }
        records
    }

    /// Waits until the log of a job's newest attempt is complete, and returns it as text.
    pub(crate) async fn whole_log(&self, id: &str) -> String {
        wait_async("the end of the log", async || {
            let end = v1::log_record::Channel::End as i32;
            self.log_records(id).await.iter().any(|record| record.channel == end).then_some(())
        })
        .await;
        self.log(id).await
    }

    /// Cancels a job.
    pub(crate) async fn cancel(&self, id: &str) -> Result<v1::Job, Status> {
        let request = v1::CancelRequest { job: id.to_owned() };
        self.connection.jobs().cancel(request).await.map(tonic::Response::into_inner)
    }

    /// Reads a job's diff.
    pub(crate) async fn diff(&self, id: &str) -> Result<v1::Diff, Status> {
        let request = v1::GetDiffRequest { job: id.to_owned() };
        self.connection.jobs().get_diff(request).await.map(tonic::Response::into_inner)
    }

    /// Lists what of this devfleet's environments is on the engine.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        left_on_engine(&self.host_id).into_iter().filter(|name| !name.starts_with(LAYER)).collect()
    }

    /// Returns the volumes that are layers of dependency caches, sealed or not.
    pub(crate) fn layers(&self) -> Vec<String> {
        let volumes = left_on_engine(&self.host_id).into_iter();
        volumes
            .filter(|name| name.starts_with(LAYER))
            .filter_map(|name| Some(name.split_once(' ')?.1.to_owned()))
            .collect()
    }

    /// Ends the controller with SIGKILL and starts it again.
    pub(crate) async fn kill_controller(&mut self) {
        self.controllers.remove("controller").expect("it runs").kill();
        let again = Program::controller(self.dir.path(), "controller", &self.settings.variables);
        self.controllers.insert("controller".into(), again);
        self.controller_ready().await;
    }

    /// Ends the controller that leads with SIGKILL, and leaves it at that.
    pub(crate) async fn kill_leader(&mut self) {
        let leader = wait_async("two controllers, one of which leads", async || {
            let asked = self.connection.fleet().list_controllers(v1::ListControllersRequest {}).await;
            let listed = asked.ok()?.into_inner().controllers;
            let leader = listed.iter().find(|controller| controller.leads)?.address.clone();
            (listed.len() == self.controllers.len()).then_some(leader)
        })
        .await;
        let at = self.addresses.iter().position(|address| leader.ends_with(address.as_str())).expect("one of ours");
        self.controllers.remove(["controller", "second"][at]).expect("it runs").kill();
    }

    /// Ends the host daemon with SIGKILL and starts it again.
    pub(crate) async fn kill_host(&mut self) {
        self.host.take().expect("it runs").kill();
        self.host = Some(Program::host(self.dir.path(), None));
    }

    /// Sends the host daemon a signal by name: `STOP`, `CONT`.
    pub(crate) fn signal_host(&self, name: &str) {
        self.host.as_ref().expect("it runs").signal(name);
    }

    /// Ends the host daemon with SIGKILL, and starts it with a new join token.
    pub(crate) async fn rejoin_host(&mut self) {
        self.host.take().expect("it runs").kill();
        let join = self.connection.fleet().create_join_token(v1::CreateJoinTokenRequest::default()).await;
        let join = join.expect("a join token").into_inner().token;
        self.host = Some(Program::host(self.dir.path(), Some(&join)));
    }

    /// Waits until the one host is as wanted.
    pub(crate) async fn until_host(&self, what: &str, wanted: impl Fn(&v1::Host) -> bool) -> v1::Host {
        wait_async(what, async || {
            let hosts = self.connection.fleet().list_hosts(v1::ListHostsRequest {}).await.ok()?.into_inner().hosts;
            hosts.into_iter().find(&wanted)
        })
        .await
    }

    /// Returns all that the host daemon wrote to its own log.
    pub(crate) fn host_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("host.log")).unwrap_or_default()
    }

    /// Returns the end of both programs' own logs.
    pub(crate) fn program_logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("--- {name}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"))
        };
        format!("{}\n{}\n{}", tail("controller.log"), tail("second.log"), tail("host.log"))
    }

    async fn controller_ready(&self) {
        wait_async("the controller", async || self.connection.fleet().who_am_i(v1::WhoAmIRequest {}).await.ok()).await;
    }

    /// Waits until the host is connected, and remembers its id.
    pub(crate) async fn host_connected(&mut self) {
        self.host_id = wait_async("the host", async || {
            let hosts = self.connection.fleet().list_hosts(v1::ListHostsRequest {}).await.ok()?.into_inner().hosts;
            hosts.into_iter().find(|host| host.connected).map(|host| host.id)
        })
        .await;
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let controllers = std::mem::take(&mut self.controllers).into_values();
        for program in self.host.take().into_iter().chain(controllers) {
            program.kill();
        }
        if !self.host_id.is_empty() {
            remove_from_engine(&self.host_id);
        }
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "a failing test shows what both programs said")]
            {
                eprintln!("{}", self.program_logs());
            }
        }
    }
}

/// Returns the phase of a job's newest attempt, by its name.
pub(crate) fn attempt_phase(job: &v1::Job) -> String {
    let state = job.attempts.last().and_then(|attempt| attempt.state.clone());
    let phase = state.and_then(|state| devfleet_shared::attempt::Phase::try_from(state).ok());
    phase.map(|phase| phase.name().to_owned()).unwrap_or_default()
}

/// Returns the class of a job's failure.
pub(crate) fn failure_reason(job: &v1::Job) -> String {
    job.failure.as_ref().map(|failure| failure.reason.clone()).unwrap_or_default()
}

fn all_ended(job: &v1::Job) -> bool {
    job.attempts.iter().all(|attempt| attempt.ended_unix_ms > 0)
}

/// Waits for a value, looking again and again, with a bound.
pub(crate) async fn wait_for<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    wait_async(what, async || look()).await
}

/// Waits for a value that is looked for asynchronously, with a bound.
pub(crate) async fn wait_async<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    looking::until(PATIENCE, what, look).await
}

/// Returns the time since the machine was started.
pub(crate) fn now() -> Duration {
    Clock::system().boot().0
}

/// Runs `docker` and returns what it printed.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = std::process::Command::new("docker").args(arguments).output().expect("docker can be run");
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How the layers of dependency caches, which are to stay, begin in a list of what is left.
const LAYER: &str = "volume devfleet-cache-";

fn left_on_engine(host_id: &str) -> Vec<String> {
    let filter = format!("label=devfleet.host={host_id}");
    let lists: [&[&str]; 3] = [
        &["ps", "--all", "--format", "container {{.Names}}", "--filter", &filter],
        &["network", "ls", "--format", "network {{.Name}}", "--filter", &filter],
        &["volume", "ls", "--format", "volume {{.Name}}", "--filter", &filter],
    ];
    lists.iter().flat_map(|list| docker(list).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn remove_from_engine(host_id: &str) {
    for line in left_on_engine(host_id) {
        let Some((kind, name)) = line.split_once(' ') else { continue };
        let arguments: &[&str] = match kind {
            "container" => &["rm", "--force", "--volumes", name],
            "network" => &["network", "rm", name],
            _ => &["volume", "rm", name],
        };
        drop(std::process::Command::new("docker").args(arguments).output());
    }
}

fn context(dir: &Path, addresses: &[String], token: &str) -> Context {
    let authority = std::fs::read_to_string(dir.join("controller/ca/authority.pem")).expect("the authority");
    let controllers = addresses.iter().map(|address| format!("https://{address}")).collect();
    Context { controllers, authority, token: Secret::new(token) }
}

fn free_address() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    socket.expect("a port").to_string()
}

fn controller_toml(dir: &Path, name: &str, address: &str, settings: &Settings) -> String {
    let (data_dir, ca_dir) = (dir.join(name), dir.join("controller/ca"));
    format!(
        "data_dir = {data_dir:?}\nca_dir = {ca_dir:?}\nlisten = {address:?}\naddress = \"https://{address}\"\nmax_running = {}\n{}",
        settings.max_running, settings.tables
    )
}

fn host_toml(dir: &Path, addresses: &[String], settings: &Settings) -> String {
    let data_dir: PathBuf = settings.host_dir.clone().unwrap_or_else(|| dir.join("host"));
    let engine = settings.engine.clone().unwrap_or_else(super::engine::real_engine);
    let controllers: Vec<String> = addresses.iter().map(|address| format!("https://{address}")).collect();
    format!(
        "data_dir = {data_dir:?}\ncontrollers = {controllers:?}\nname = \"host-1\"\nslots = {}\nprotection_window = {:?}\nengine = {engine:?}\n",
        settings.slots, settings.protection_window
    )
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
}
