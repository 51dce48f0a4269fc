//! The two programs of a devfleet, as child processes that can be ended at any moment.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A program that runs.
pub(crate) struct Program(Child);

impl Program {
    /// Starts a controller of a site by its name.
    pub(super) fn controller(dir: &Path, name: &str, variables: &[(String, String)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_devfleet-controller"));
        command.arg("--config").arg(dir.join(format!("{name}.toml")));
        command.arg("--bootstrap-token-file").arg(dir.join("token"));
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        Self::spawn(command, &dir.join(format!("{name}.log")))
    }

    /// Starts the host daemon of a site; it joins with the token, or has an identity already.
    pub(super) fn host(dir: &Path, join_token: Option<&str>) -> Self {
        let mut command = Command::new(host_binary());
        command.arg("--config").arg(dir.join("host.toml"));
        if let Some(token) = join_token {
            command.env("DEVFLEET_JOIN_TOKEN", token);
        }
        Self::spawn(command, &dir.join("host.log"))
    }

    fn spawn(mut command: Command, log: &Path) -> Self {
        let log = append(log);
        let output = log.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn();
        Self(child.unwrap_or_else(|error| panic!("{:?} cannot be started: {error}", command.get_program())))
    }

    /// Sends it a signal by name: `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status();
        assert!(sent.expect("kill can be run").success(), "{name} is not sent");
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub(crate) fn kill(mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The host daemon belongs to another package; cargo builds it into the same directory.
fn host_binary() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_devfleet-controller")).with_file_name("devfleet-host");
    assert!(path.exists(), "{} does not exist; run `cargo build --bins` first, as `make test` does", path.display());
    path
}

fn append(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("a log file")
}
