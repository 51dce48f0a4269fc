//! What the bench stands on: an etcd with its data on this disk, two controllers as processes, a repository, a project.
//!
//! All of it lies in one directory and ends with it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use devfleet_controller::cli::connection::Connection;
use devfleet_controller::cli::context::Context;
use devfleet_controller::store::SharedStore;
use devfleet_controller::store::etcd::{Etcd, EtcdSettings};
use devfleet_controller::store::records::decode;
use devfleet_controller::store::records::leadership::{LeaderRecord, leader_key};
use devfleet_proto::v1;
use devfleet_shared::secret::Secret;

use crate::until;

const PREFIX: &str = "/devfleet-bench";
const CI: &str = "image: python:3.11\ntest:\n  script:\n    - sh check.sh\n";
const START: Duration = Duration::from_secs(30);

/// A process that ends with its handle.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One controller.
pub(crate) struct Controller {
    pub(crate) url: String,
    process: Option<Process>,
}

/// The ground.
pub(crate) struct Ground {
    pub(crate) controllers: Vec<Controller>,
    pub(crate) connection: Connection,
    pub(crate) store: SharedStore,
    pub(crate) endpoint: String,
    dir: tempfile::TempDir,
    _etcd: Process,
}

impl Ground {
    /// Starts everything, and waits until one controller leads.
    pub(crate) async fn start() -> anyhow::Result<Ground> {
        let dir = tempfile::Builder::new().prefix("fleet-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let (endpoint, etcd) = etcd(dir.path())?;
        let settings = EtcdSettings {
            endpoints: vec![endpoint.clone()],
            prefix: PREFIX.into(),
            ca: None,
            identity: None,
            user: None,
        };
        let connect = async || Etcd::connect(settings.clone(), "bench").await.ok();
        let store: SharedStore = until("etcd to answer", START, connect).await?;
        let first = Controller::start(dir.path(), "a", &endpoint)?;
        let token = dir.path().join("token-a");
        let written = async || std::fs::read_to_string(&token).ok().filter(|text| text.ends_with('\n'));
        let token = until("the first controller's token", START, written).await?;
        let second = Controller::start(dir.path(), "b", &endpoint)?;
        let controllers = vec![first, second];
        let connection = connection(dir.path(), &controllers, token.trim())?;
        let ground = Ground { controllers, connection, store, endpoint, dir, _etcd: etcd };
        until("a leader", START, async || ground.leader().await.ok().flatten()).await?;
        until("both controllers", START, async || {
            let answer = ground.connection.fleet().list_controllers(v1::ListControllersRequest {}).await.ok()?;
            (answer.into_inner().controllers.len() == 2).then_some(())
        })
        .await?;
        ground.make_project().await?;
        Ok(ground)
    }

    /// Returns a directory below the bench's own.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the URLs of the controllers.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.controllers.iter().map(|controller| controller.url.clone()).collect()
    }

    /// Returns which of the controllers leads.
    pub(crate) async fn leader(&self) -> anyhow::Result<Option<usize>> {
        let Some(entry) = self.store.get(&leader_key()).await? else { return Ok(None) };
        let record: LeaderRecord = decode(&entry.key, &entry.value)?;
        Ok(self.controllers.iter().position(|controller| controller.url == record.address))
    }

    async fn make_project(&self) -> anyhow::Result<()> {
        let (work, bare) = (self.directory("work"), self.directory("sample.git"));
        std::fs::create_dir_all(&work)?;
        std::fs::write(work.join(".gitlab-ci.yml"), CI)?;
        std::fs::write(work.join("check.sh"), "true\n")?;
        let names = ["-c", "user.name=Bench", "-c", "user.email=bench@example.com"];
        git(&work, &["init", "--quiet", "--initial-branch=main"])?;
        git(&work, &["add", "--all"])?;
        git(&work, &[&names[..], &["commit", "--quiet", "--message=Begin"]].concat())?;
        git(&work, &["clone", "--quiet", "--bare", ".", &bare.display().to_string()])?;
        let toml = format!(
            "name = \"sample\"\nrepository = {bare:?}\napproval = \"auto\"\n\n[limits]\nmemory = \"256MiB\"\n\
             disk = \"64MiB\"\n\n[agents.worker]\nkind = \"script\"\ncommand = \"true\"\n"
        );
        self.connection.jobs().apply_project(v1::ApplyProjectRequest { toml }).await.context("make the project")?;
        Ok(())
    }

    /// Says how many jobs may run at once.
    pub(crate) async fn allow(&self, running: u64) -> anyhow::Result<()> {
        let request = v1::SetSettingsRequest { max_running: Some(running), ..Default::default() };
        self.connection.fleet().set_settings(request).await.context("set max_running")?;
        Ok(())
    }

    /// Submits a job, and returns its id.
    pub(crate) async fn submit(&self, number: usize) -> anyhow::Result<String> {
        let request = v1::SubmitRequest {
            project: "sample".into(),
            task: format!("task {number}"),
            idempotency_key: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let call = async || self.connection.jobs().submit(request.clone()).await;
        let answer = self.connection.read(call).await.map_err(|error| anyhow::anyhow!("submit: {error}"))?;
        Ok(answer.job.context("an answer without its job")?.id)
    }

    /// Returns the end of the controllers' logs.
    pub(crate) fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.directory(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(25)..].join("\n"))
        };
        tail("a.log") + &tail("b.log")
    }
}

impl Controller {
    fn start(dir: &Path, name: &str, endpoint: &str) -> anyhow::Result<Controller> {
        let port = free_port()?;
        let (url, root) = (format!("https://localhost:{port}"), dir.display());
        let text = format!(
            "data_dir = \"{root}/{name}\"\nca_dir = \"{root}/ca\"\nlisten = \"127.0.0.1:{port}\"\naddress = {url:?}\n\
             max_running = 100000\nfiles = {{ kind = \"directory\", path = \"{root}/files\" }}\n\
             [store]\nkind = \"etcd\"\nendpoints = [{endpoint:?}]\nprefix = {PREFIX:?}\n"
        );
        let config = dir.join(format!("{name}.toml"));
        std::fs::write(&config, text)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_devfleet-controller"));
        command.arg("--config").arg(config).arg("--bootstrap-token-file").arg(dir.join(format!("token-{name}")));
        // A line per job would be measured too; what goes wrong is wanted.
        command.env("DEVFLEET_LOG", "warn");
        let process = spawn(command, &dir.join(format!("{name}.log")))?;
        Ok(Controller { url, process: Some(process) })
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Returns the memory that it holds, in bytes.
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        let Some(process) = &self.process else { bail!("the controller does not run") };
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok(kib << 10)
    }
}

fn etcd(dir: &Path) -> anyhow::Result<(String, Process)> {
    let (client, peer) = (format!("http://127.0.0.1:{}", free_port()?), format!("http://127.0.0.1:{}", free_port()?));
    let mut command = Command::new("etcd");
    command
        .args(["--name", "m", "--logger", "zap", "--log-level", "error"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("m={peer}"), "--initial-cluster-state", "new"])
        .arg("--data-dir")
        .arg(dir.join("etcd"));
    let process = spawn(command, &dir.join("etcd.log")).context("start etcd; deploy/setup.sh bench installs it")?;
    Ok((client, process))
}

fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Process> {
    let log = std::fs::File::create(log)?;
    let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
    Ok(Process(child.with_context(|| format!("start {:?}", command.get_program()))?))
}

fn connection(dir: &Path, controllers: &[Controller], token: &str) -> anyhow::Result<Connection> {
    let authority = std::fs::read_to_string(dir.join("ca/authority.pem")).context("read the authority")?;
    let urls = controllers.iter().map(|controller| controller.url.clone()).collect();
    let context = Context { controllers: urls, authority, token: Secret::new(token) };
    Connection::new(&context).map_err(|error| anyhow::anyhow!("use the context: {error}"))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn git(dir: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("git").current_dir(dir).args(arguments).output().context("run git")?;
    if !output.status.success() {
        bail!("git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
