//! A child process of `devfleet up`: its log file, its end, its restart.
//!
//! Children are in process groups of their own, so that Ctrl-C reaches only us, and we stop them in good order. If we
//! are killed they live on; the process id that we noted lets the next start stop them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::Boot;
use devfleet_shared::secret::Secret;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::super::Session;
use super::super::failure::CliError;
use super::settings::Settings;

/// How long a child may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(7);
/// A child that ran for so long starts with a fresh pace.
const STEADY: Duration = Duration::from_secs(60);
/// The pace of restarts.
const PACE: Backoff = Backoff { first: Duration::from_secs(1), ceiling: Duration::from_secs(30) };

/// One child.
#[derive(Debug)]
pub(super) struct Child {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
    pid_file: PathBuf,
    log_start: u64,
    process: Option<tokio::process::Child>,
}

impl Child {
    /// Finds the program beside our own.
    pub(super) fn new(name: &'static str, program: &str, settings: &Settings) -> Result<Child, CliError> {
        let own = std::env::current_exe().unwrap_or_default();
        let path = own.parent().unwrap_or(Path::new(".")).join(program);
        if !path.is_file() {
            return Err(CliError::Local {
                problem: format!("there is no {program} beside {}", own.display()),
                advice: "install all three programs in one folder; from the sources, `cargo build` makes them all"
                    .into(),
            });
        }
        Ok(Child {
            name,
            program: path,
            arguments: Vec::new(),
            log: settings.logs.join(format!("{name}.log")),
            pid_file: settings.run.join(format!("{name}.pid")),
            log_start: 0,
            process: None,
        })
    }

    /// Adds an argument. Never a secret: everyone on the machine sees arguments.
    pub(super) fn argument(mut self, argument: impl Into<OsString>) -> Child {
        self.arguments.push(argument.into());
        self
    }

    /// Starts it, with the join token in its environment if there is one.
    pub(super) async fn start(&mut self, join_token: Option<&Secret>) -> Result<(), CliError> {
        self.stop_leftover().await;
        let file = |source| CliError::File { action: "write", path: self.log.clone(), source };
        let log = File::options().create(true).append(true).open(&self.log).map_err(file)?;
        self.log_start = log.metadata().map_err(file)?.len();
        let also = log.try_clone().map_err(file)?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log).stderr(also);
        command.process_group(0).kill_on_drop(true).env_remove("DEVFLEET_JOIN_TOKEN");
        if let Some(token) = join_token {
            command.env("DEVFLEET_JOIN_TOKEN", token.expose());
        }
        let process = command.spawn().map_err(|error| CliError::Local {
            problem: format!("cannot start {}: {error}", self.program.display()),
            advice: "see that the file is a program that you may run".into(),
        })?;
        if let Some(pid) = process.id() {
            // Without it a leftover is not found later; that is no reason not to run.
            let _ = std::fs::write(&self.pid_file, pid.to_string());
        }
        self.process = Some(process);
        Ok(())
    }

    /// Fails with the end of its log if it has ended.
    pub(super) fn check(&mut self) -> Result<(), CliError> {
        let ended = self.process.as_mut().map(tokio::process::Child::try_wait);
        match ended {
            Some(Ok(Some(status))) => Err(self.died(&format!("the {} ended at once ({status})", self.name))),
            Some(Ok(None)) => Ok(()),
            Some(Err(error)) => Err(self.died(&format!("the {} cannot be watched: {error}", self.name))),
            None => Err(self.died(&format!("the {} does not run", self.name))),
        }
    }

    /// Makes the error that shows the end of its log.
    pub(super) fn died(&self, problem: &str) -> CliError {
        let tail = self.tail();
        let problem = if tail.is_empty() { problem.to_owned() } else { format!("{problem}; its log ends:\n{tail}") };
        CliError::Local { problem, advice: format!("the whole log is {}", self.log.display()) }
    }

    /// Keeps it up until told to stop, then stops it.
    pub(super) async fn keep(&mut self, session: &Session, stop: &CancellationToken) {
        let mut restarts = 0;
        loop {
            let started = session.clock.boot();
            tokio::select! {
                status = self.ended() => self.tell_end(status, session),
                () = stop.cancelled() => return self.stop().await,
            }
            restarts = if steady(started, session.clock.boot()) { 1 } else { restarts + 1 };
            let pause = PACE.pause(restarts, Backoff::jitter());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            match self.start(None).await {
                Ok(()) => session.output.note(&format!("the {} is started again", self.name)),
                Err(error) => session.output.note(&format!("{error}")),
            }
        }
    }

    fn tell_end(&self, status: Option<ExitStatus>, session: &Session) {
        let status = status.map(|status| format!(" ({status})")).unwrap_or_default();
        let tail = self.tail();
        session.output.note(&format!(
            "the {} ended{status}; it is started again. Its log, {}, ends:\n{tail}",
            self.name,
            self.log.display()
        ));
    }

    async fn ended(&mut self) -> Option<ExitStatus> {
        match self.process.as_mut() {
            Some(process) => process.wait().await.ok(),
            None => None,
        }
    }

    /// Ends it: SIGTERM, seven seconds, SIGKILL.
    pub(super) async fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        if let Some(pid) = process.id().and_then(|id| Pid::from_raw(id as i32)) {
            // It may have ended by itself just now.
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(GRACE, process.wait()).await.is_err() {
            let _ = process.kill().await;
        }
        let _ = std::fs::remove_file(&self.pid_file);
    }

    /// Ends the process of an earlier `devfleet up` that was killed, if it lives.
    async fn stop_leftover(&self) {
        let Some(pid) = self.leftover() else { return };
        let _ = kill_process(pid, Signal::TERM);
        for _ in 0..GRACE.as_millis() / 50 {
            if test_kill_process(pid).is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if self.leftover() == Some(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Returns the noted process, if it still is this program with these arguments.
    fn leftover(&self) -> Option<Pid> {
        let id: i32 = std::fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()?;
        let command_line = std::fs::read(format!("/proc/{id}/cmdline")).ok()?;
        let mut ours = Vec::new();
        for argument in &self.arguments {
            ours.extend_from_slice(argument.as_encoded_bytes());
            ours.push(0);
        }
        command_line.ends_with(&ours).then(|| Pid::from_raw(id)).flatten()
    }

    /// Returns the last lines that it wrote since its start.
    fn tail(&self) -> String {
        tail(&self.log, self.log_start).unwrap_or_default()
    }
}

fn steady(started: Boot, now: Boot) -> bool {
    now.0.saturating_sub(started.0) > STEADY
}

fn tail(path: &Path, start: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(16 << 10)).min(length)))?;
    let mut bytes = Vec::new();
    file.take(16 << 10).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(15)..];
    Ok(last.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_fifteen_lines_since_the_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let old = "old\n".repeat(3);
        let new: String = (1..=20).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, format!("{old}{new}")).expect("written");
        let shown = tail(&path, old.len() as u64).expect("read");
        assert!(shown.starts_with("  line 6\n") && shown.ends_with("  line 20"), "{shown}");
        std::fs::write(&path, format!("{old}new\n")).expect("written");
        assert_eq!(tail(&path, old.len() as u64).expect("read"), "  new");
    }
}
