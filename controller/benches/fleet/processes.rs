//! The real programs that are measured: etcd and controllers, as child processes that end with the bench.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use devfleet_controller::cli::connection::Connection;
use devfleet_controller::cli::context::Context as CliContext;
use devfleet_proto::v1;
use devfleet_shared::secret::Secret;
use tokio::time::Instant;

/// How long a program may take to start.
const START: Duration = Duration::from_secs(60);

/// A child process.
pub(crate) struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Program {
    fn start(mut command: Command, log: &Path) -> anyhow::Result<Program> {
        let output = File::create(log)?;
        let error = output.try_clone()?;
        let name = command.get_program().to_owned();
        let child = command.stdin(Stdio::null()).stdout(output).stderr(error).spawn();
        Ok(Program(child.with_context(|| format!("start {}", name.display()))?))
    }

    /// Returns the memory that it holds, in bytes.
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib << 10)
    }
}

/// Takes a port that nobody has right now.
fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts an etcd of one member and waits for its health; returns its endpoint too.
pub(crate) async fn etcd(dir: &Path) -> anyhow::Result<(Program, String)> {
    let (client, peer) = (free_port()?, free_port()?);
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new("etcd");
    command.args(["--name", "bench", "--log-level", "error", "--quota-backend-bytes", "8589934592"]);
    command.arg("--data-dir").arg(dir.join("etcd"));
    for (flag, value) in [
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
    ] {
        command.args([flag, value]);
    }
    command.args(["--initial-cluster", &format!("bench={peer}")]);
    let program = Program::start(command, &dir.join("etcd.log")).context("install it with deploy/setup.sh test")?;
    let begin = Instant::now();
    loop {
        let answer = async { etcd_client::Client::connect([&client], None).await?.status().await };
        if tokio::time::timeout(Duration::from_secs(1), answer).await.is_ok_and(|answer| answer.is_ok()) {
            return Ok((program, client));
        }
        anyhow::ensure!(begin.elapsed() < START, "etcd does not answer; see {}", dir.join("etcd.log").display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Controllers over one etcd.
pub(crate) struct Controllers {
    dir: PathBuf,
    programs: Vec<Option<Program>>,
    /// Where each listens.
    pub(crate) urls: Vec<String>,
    token: String,
    authority: String,
}

impl Controllers {
    /// Starts this many, one after the other, so that the first makes authority and token.
    pub(crate) async fn start(dir: &Path, endpoint: &str, count: usize) -> anyhow::Result<Controllers> {
        let (programs, urls) = (Vec::new(), Vec::new());
        let (token, authority) = (String::new(), String::new());
        let mut controllers = Controllers { dir: dir.to_owned(), programs, urls, token, authority };
        for number in 0..count {
            let address = format!("127.0.0.1:{}", free_port()?);
            let home = dir.join(format!("controller-{number}"));
            std::fs::create_dir_all(&home)?;
            std::fs::write(
                dir.join(format!("controller-{number}.toml")),
                configuration(dir, &home, &address, endpoint),
            )?;
            controllers.urls.push(format!("https://{address}"));
            controllers.programs.push(None);
            controllers.start_again(number).await?;
        }
        Ok(controllers)
    }

    /// Starts one that does not run, and waits until it serves.
    pub(crate) async fn start_again(&mut self, number: usize) -> anyhow::Result<()> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_devfleet-controller"));
        command.arg("--config").arg(self.dir.join(format!("controller-{number}.toml")));
        command.arg("--bootstrap-token-file").arg(self.dir.join("token"));
        command.env("RUST_LOG", "warn");
        let log = self.dir.join(format!("controller-{number}.log"));
        self.programs[number] = Some(Program::start(command, &log)?);
        let begin = Instant::now();
        loop {
            if self.serves(number).await {
                return Ok(());
            }
            anyhow::ensure!(begin.elapsed() < START, "a controller does not serve; see {}", log.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn serves(&mut self, number: usize) -> bool {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        self.token = read(self.dir.join("token")).trim().to_owned();
        self.authority = read(self.dir.join("ca/authority.pem"));
        let Ok(connection) = self.connection(number) else { return false };
        let answer = tokio::time::timeout(Duration::from_secs(1), async {
            connection.fleet().who_am_i(v1::WhoAmIRequest {}).await
        });
        answer.await.is_ok_and(|answer| answer.is_ok())
    }

    /// Connects to one, as its operator.
    pub(crate) fn connection(&self, number: usize) -> anyhow::Result<Connection> {
        let context = CliContext {
            controller: self.urls[number].clone(),
            authority: self.authority.clone(),
            token: Secret::new(self.token.clone()),
        };
        Ok(Connection::new(&context)?)
    }

    /// Ends one with SIGKILL.
    pub(crate) fn kill(&mut self, number: usize) {
        self.programs[number] = None;
    }

    /// Returns the memory of one, in bytes.
    pub(crate) fn memory(&self, number: usize) -> anyhow::Result<u64> {
        self.programs[number].as_ref().context("it does not run")?.memory()
    }
}
