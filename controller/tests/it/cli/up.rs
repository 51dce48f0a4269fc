//! `devfleet up` with two stand-ins for its children: scripts beside a link to the real binary.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::fake::{Fake, Ran, TOKEN, host, until};

/// A child that notes how it was started and ends on SIGTERM.
const CHILD: &str = "#!/bin/sh
name=$(basename \"$0\")
echo \"$name $* join=${DEVFLEET_JOIN_TOKEN:-none}\" >>\"$STARTS\"
trap 'echo \"$name stopped\" >>\"$STARTS\"; exit 0' TERM
echo \"$name runs\"
while :; do sleep 0.05; done
";

struct Place {
    fake: Fake,
    programs: PathBuf,
    data: PathBuf,
    context: PathBuf,
}

impl Place {
    /// Prepares what a controller would have written at its first start.
    async fn new() -> Place {
        let fake = Fake::start().await;
        let programs = fake.dir.path().join("bin");
        std::fs::create_dir(&programs).expect("created");
        let binary = Path::new(env!("CARGO_BIN_EXE_devfleet"));
        let own = programs.join("devfleet");
        std::fs::hard_link(binary, &own).or_else(|_| std::fs::copy(binary, &own).map(drop)).expect("linked");
        let data = fake.dir.path().join("data");
        std::fs::create_dir_all(data.join("controller/ca")).expect("created");
        std::fs::write(data.join("controller/ca/authority.pem"), &fake.authority).expect("written");
        std::fs::write(data.join("bootstrap-token"), format!("{TOKEN}\n")).expect("written");
        let context = fake.dir.path().join("new/context.toml");
        let place = Place { fake, programs, data, context };
        place.program("devfleet-controller", CHILD);
        place.program("devfleet-host", CHILD);
        place
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.programs.join(name);
        std::fs::write(&path, script).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.programs.join("devfleet"));
        command.arg("up").arg("--data-dir").arg(&self.data).arg("--listen").arg(self.fake.address.to_string());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.fake.dir.path());
        command.env("DEVFLEET_CONTEXT", &self.context).env("STARTS", self.starts_file());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    fn starts_file(&self) -> PathBuf {
        self.fake.dir.path().join("starts")
    }

    fn starts(&self) -> String {
        std::fs::read_to_string(self.starts_file()).unwrap_or_default()
    }

    /// Lets the host appear as connected under the name that host.toml gave it.
    async fn connect_host(&self) {
        let file = self.data.join("host.toml");
        let name = until("host.toml", || {
            let table: toml::Table = std::fs::read_to_string(&file).ok()?.parse().ok()?;
            Some(table.get("name")?.as_str()?.to_owned())
        });
        let name = name.await;
        self.fake.canned.script(|script| script.hosts = vec![host(&name)]);
    }

    async fn up(&self) -> Up {
        let mut child = self.command().spawn().expect("started");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        self.connect_host().await;
        let mut ready = String::new();
        while !ready.contains("Ctrl-C stops devfleet") {
            let mut line = String::new();
            let read = tokio::time::timeout(std::time::Duration::from_secs(20), out.read_line(&mut line)).await;
            if read.expect("a line in time").expect("read") == 0 {
                let mut err = String::new();
                child.stderr.take().expect("piped").read_to_string(&mut err).await.expect("read");
                panic!("it ended: {ready} {err}");
            }
            ready.push_str(&line);
        }
        Up { child, ready, _out: out }
    }

    fn pid(&self, name: &str) -> Option<rustix::process::Pid> {
        let text = std::fs::read_to_string(self.data.join(format!("run/{name}.pid"))).ok()?;
        rustix::process::Pid::from_raw(text.trim().parse().ok()?)
    }
}

struct Up {
    child: Child,
    ready: String,
    _out: BufReader<ChildStdout>,
}

impl Up {
    async fn end(mut self, signal: rustix::process::Signal) -> String {
        let pid = rustix::process::Pid::from_raw(self.child.id().expect("it runs") as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("signalled");
        let mut err = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut err).await.expect("read");
        let status = self.child.wait().await.expect("ended");
        assert!(signal != rustix::process::Signal::TERM || status.success(), "{status}: {err}");
        err
    }
}

#[tokio::test]
async fn up_brings_up_controller_and_host_and_stops_both_on_sigterm() {
    let place = Place::new().await;
    let up = place.up().await;
    assert!(up.ready.starts_with("devfleet is ready: controller https://127.0.0.1:"), "{}", up.ready);
    assert!(up.ready.contains("with 10 slots") && up.ready.contains("devfleet submit"), "{}", up.ready);
    // The stand-in's host counts as connected at once, so the scripts may be a little behind.
    let started = |text: &str| place.starts().contains(text).then_some(());
    until("the controller's start", || started("--bootstrap-token-file")).await;
    until("the host's start", || started("join=dfj_joincanary")).await;
    assert!(place.starts().contains("devfleet-host --config"), "{}", place.starts());
    let mode = std::fs::metadata(&place.context).expect("written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let log = place.data.join("logs/host.log");
    until("the host's log", || std::fs::read_to_string(&log).ok().filter(|log| log == "devfleet-host runs\n")).await;

    let second = Ran::of(place.command()).await;
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.err.contains("is up already") && second.err.contains("--data-dir"), "{second:?}");

    let err = up.end(rustix::process::Signal::TERM).await;
    assert!(err.contains("jobs that run go on"), "{err}");
    let starts = place.starts();
    assert!(starts.contains("devfleet-controller stopped") && starts.contains("devfleet-host stopped"), "{starts}");
}

#[tokio::test]
async fn a_child_that_dies_is_started_again_and_that_is_said() {
    let place = Place::new().await;
    let up = place.up().await;
    until("the first start", || (place.starts().matches("devfleet-host --config").count() == 1).then_some(())).await;
    let first = place.pid("host").expect("noted");
    rustix::process::kill_process(first, rustix::process::Signal::KILL).expect("killed");
    let again = until("another host daemon", || place.pid("host").filter(|pid| *pid != first)).await;
    until("its start", || (place.starts().matches("devfleet-host --config").count() == 2).then_some(())).await;
    assert!(place.starts().lines().last().is_some_and(|line| line.ends_with("join=none")), "a token is used once");
    let err = up.end(rustix::process::Signal::TERM).await;
    assert!(err.contains("the host ended (signal: 9") && err.contains("the host is started again"), "{err}");
    assert!(err.contains("host.log"), "{err}");
    assert!(rustix::process::test_kill_process(again).is_err(), "it is stopped too");
}

#[tokio::test]
async fn a_start_after_a_kill_takes_over_and_keeps_what_is_there() {
    let place = Place::new().await;
    let up = place.up().await;
    let orphan = place.pid("controller").expect("noted");
    until("the first host's start", || (place.starts().matches("devfleet-host --config").count() == 1).then_some(()))
        .await;
    up.end(rustix::process::Signal::KILL).await;
    assert!(rustix::process::test_kill_process(orphan).is_ok(), "children outlive a killed parent");
    std::fs::create_dir_all(place.data.join("host/identity")).expect("created");
    std::fs::write(place.data.join("host/identity/host.pem"), "x").expect("written");
    std::fs::write(place.data.join("host/identity/authority.pem"), &place.fake.authority).expect("written");
    std::fs::write(place.data.join("host/identity/host-id"), "h1\n").expect("written");
    std::fs::remove_file(place.data.join("bootstrap-token")).expect("removed");

    let up = place.up().await;
    until("the orphan's end", || rustix::process::test_kill_process(orphan).is_err().then_some(())).await;
    until("the second host's start", || (place.starts().matches("devfleet-host --config").count() == 2).then_some(()))
        .await;
    let starts = place.starts();
    let hosts: Vec<_> = starts.lines().filter(|line| line.starts_with("devfleet-host --config")).collect();
    assert!(hosts.len() == 2 && hosts[1].ends_with("join=none"), "a host joins once: {starts}");
    up.end(rustix::process::Signal::TERM).await;
}

#[tokio::test]
async fn a_controller_that_cannot_start_is_explained_with_its_last_lines() {
    let place = Place::new().await;
    place.program("devfleet-controller", "#!/bin/sh\necho 'the store is damaged' >&2\nexit 3\n");
    let mut fake_is_gone = place.command();
    fake_is_gone.arg("--slots").arg("3");
    let ran = Ran::of(fake_is_gone).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("the store is damaged") && ran.err.contains("controller.log"), "{ran:?}");
    assert!(!place.starts().contains("devfleet-host"), "no host without a controller");
    std::fs::remove_file(place.programs.join("devfleet-host")).expect("removed");
    let ran = Ran::of(place.command()).await;
    assert!(ran.code == 1 && ran.err.contains("there is no devfleet-host beside"), "{ran:?}");
}

#[tokio::test]
async fn a_context_for_another_controller_is_left_alone() {
    let mut place = Place::new().await;
    place.context = place.fake.dir.path().join("other.toml");
    let text = format!(
        "controller = 'https://fleet.example.com'\nauthority = '''\n{}'''\ntoken = 'dft_x'\n",
        place.fake.authority
    );
    std::fs::write(&place.context, &text).expect("written");
    std::fs::set_permissions(&place.context, std::fs::Permissions::from_mode(0o600)).expect("private");
    let ran = Ran::of(place.command()).await;
    assert!(
        ran.code == 1 && ran.err.contains("is for another controller") && ran.err.contains("--context-file"),
        "{ran:?}"
    );
    assert_eq!(std::fs::read_to_string(&place.context).expect("read"), text);
    assert!(place.starts().is_empty(), "nothing was started");
}
