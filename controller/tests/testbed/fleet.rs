//! The testbed as scenes see it: its parts, by name, as processes that are started, killed and paused.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use devfleet_shared::clock::Clock;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::looking::until;

/// The bound of every wait: generous, since the machine may be busy; it is reached only when a scene fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The hosts' nodes.
pub(crate) const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// The store's members' nodes.
pub(crate) const MEMBERS: [&str; 3] = ["e1", "e2", "e3"];

/// A testbed that is up. Dropping it takes it down; so does the end of this process, whatever ends it.
pub(crate) struct Fleet {
    dir: PathBuf,
    tag: String,
    net: String,
    guard: std::process::Child,
}

impl Fleet {
    /// Brings a testbed up, at this machine's one place for it. Waits while another test process has it.
    pub(crate) fn up() -> Fleet {
        let dir = PathBuf::from("/tmp/devfleet-faults");
        let lock = File::create("/tmp/devfleet-faults.lock").expect("a lock file");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("the lock");
        // The guard holds the lock with its standard input, so that nobody begins while it still takes down.
        let guard = Command::new("setsid")
            .args(["sh", "-c", "while [ -d \"/proc/$1\" ]; do sleep 0.5; done; exec \"$2\" \"$3\"", "guard"])
            .arg(std::process::id().to_string())
            .arg(script("down.sh"))
            .arg(&dir)
            .stdin(Stdio::from(lock))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a guard");
        run(Command::new(script("down.sh")).arg(&dir));
        let bin = Path::new(env!("CARGO_BIN_EXE_devfleet-controller")).parent().expect("a folder").to_owned();
        run(Command::new(script("up.sh")).arg(&dir).env("DEVFLEET_BIN", bin));
        let state = std::fs::read_to_string(dir.join("state")).expect("the testbed's state");
        let value = |name: &str| {
            let line = state.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{name} in {state}")).to_owned()
        };
        Fleet { tag: value("TAG"), net: value("NET"), dir, guard }
    }

    /// Returns the directory under which everything of the testbed lies.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the address of this machine, or of a node.
    pub(crate) fn address(&self, node: &str) -> String {
        let number = match node.split_at(1) {
            ("h", number) => format!("10{number}"),
            ("c", number) => format!("1{number}"),
            ("e", number) => format!("2{number}"),
            _ => "1".to_owned(),
        };
        format!("{}.{number}", self.net)
    }

    /// Returns the pid of a part that runs.
    pub(crate) fn pid(&self, part: &str) -> Pid {
        let text = self.part("pid", part);
        let number = text.trim().parse().ok().and_then(Pid::from_raw);
        number.unwrap_or_else(|| panic!("{part} has the pid {text:?}"))
    }

    /// Ends a part with SIGKILL; when this returns, it is gone.
    pub(crate) fn kill(&self, part: &str) {
        self.part("kill", part);
    }

    /// Ends with SIGKILL the programs of these names that work below a node's directory; returns how many.
    pub(crate) fn kill_below(&self, node: &str, names: &[&str]) -> usize {
        let below = format!("{}/{node}/", self.dir.display());
        let read = |pid: &str, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let mut killed = 0;
        for entry in std::fs::read_dir("/proc").expect("processes").flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let Some(number) = pid.parse().ok().and_then(Pid::from_raw) else { continue };
            if names.contains(&read(&pid, "comm").trim()) && read(&pid, "cmdline").contains(&below) {
                killed += usize::from(kill_process(number, Signal::KILL).is_ok());
            }
        }
        killed
    }

    /// Ends a process with SIGKILL, if it is still there.
    pub(crate) fn kill_process(&self, pid: i32) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Asks a part to end; when this returns, it is gone.
    pub(crate) fn stop(&self, part: &str) {
        self.part("stop", part);
    }

    /// Removes what of a host's engine does not outlive a start of the machine: mounts, links, and what lies in `/run`.
    pub(crate) fn forget_run(&self, node: &str) {
        let below = format!("{}/{node}/", self.dir.display());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let places = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
        for place in places.filter(|place| place.starts_with(&below)) {
            run(Command::new("umount").args(["--lazy", place]));
        }
        for line in self.in_node(node, &["ip", "-o", "link"]).lines() {
            let name = line.split(": ").nth(1).unwrap_or_default().split('@').next().unwrap_or_default();
            if name.starts_with("br-") || name == "docker0" {
                self.in_node(node, &["ip", "link", "del", name]);
            }
        }
        std::fs::remove_dir_all(self.dir.join(node).join("exec")).expect("removed");
    }

    /// Changes how a part is started from now on.
    pub(crate) fn change_command(&self, part: &str, change: impl FnOnce(&str) -> String) -> Changed {
        let path = self.dir.join("run").join(format!("{part}.sh"));
        let before = std::fs::read_to_string(&path).expect("the part's command");
        let after = change(&before);
        assert_ne!(before, after, "the command of {part} is another one");
        std::fs::write(&path, after).expect("written");
        Changed { path, before }
    }

    /// Starts a part; when this returns, its process runs.
    pub(crate) fn start(&self, part: &str) {
        self.part("start", part);
    }

    /// Stops a part's process where it is; the end of the value lets it go on.
    pub(crate) fn pause(&self, part: &str) -> Pause {
        let pid = self.pid(part);
        kill_process(pid, Signal::STOP).expect("it can be paused");
        Pause { pid }
    }

    /// Returns what a part wrote to its log.
    pub(crate) fn log(&self, part: &str) -> String {
        let bytes = std::fs::read(self.dir.join("run").join(format!("{part}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the end of every part's log.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for part in ["c1.controller", "c2.controller", "h1.host", "h2.host", "h3.host"] {
            let log = self.log(part);
            let lines: Vec<_> = log.lines().collect();
            text += &format!("--- {part}\n{}\n", lines[lines.len().saturating_sub(25)..].join("\n"));
        }
        text
    }

    /// Runs `docker` on a host's engine and returns what it printed.
    pub(crate) fn docker(&self, host: &str, arguments: &[&str]) -> String {
        let socket = format!("unix://{}", self.dir.join(host).join("docker.sock").display());
        run(Command::new("docker").args(["-H", &socket]).args(arguments).env_remove("DOCKER_CONTEXT"))
    }

    /// Runs a program in a node's network.
    pub(crate) fn in_node(&self, node: &str, arguments: &[&str]) -> String {
        let namespace = format!("--net=/run/netns/{}-{node}", self.tag);
        run(Command::new("nsenter").arg(namespace).args(arguments))
    }

    fn part(&self, verb: &str, part: &str) -> String {
        run(Command::new(script("part.sh")).arg(&self.dir).args([verb, part]))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        drop(Command::new(script("down.sh")).arg(&self.dir).output());
        drop(self.guard.kill());
        drop(self.guard.wait());
    }
}

/// How a part was started before.
pub(crate) struct Changed {
    path: PathBuf,
    before: String,
}

impl Changed {
    /// Starts it so again, the next time.
    pub(crate) fn put_back(self) {
        std::fs::write(self.path, self.before).expect("written");
    }
}

/// A process that stands still.
pub(crate) struct Pause {
    pid: Pid,
}

impl Drop for Pause {
    fn drop(&mut self) {
        let _ = kill_process(self.pid, Signal::CONT);
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/testbed").join(name)
}

/// Runs a program that must succeed, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the time since the machine was started.
pub(crate) fn now() -> Duration {
    Clock::system().boot().0
}

/// Waits for a value that is looked for again and again, with a bound.
pub(crate) async fn wait_for<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    until(PATIENCE, what, look).await
}

/// Lets a fault last.
pub(crate) async fn last(time: Duration) {
    // sleep: how long a fault lasts is what the scene is about
    tokio::time::sleep(time).await;
}
