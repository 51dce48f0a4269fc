//! Looks at the kernel every 100 ms: which containers of environments have processes, and which of them are frozen.
//!
//! It asks no engine: control groups say what runs, and the engine's own files below its data root say whose it is.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::fleet::{HOSTS, now};
use crate::history::{Running, Scan};

/// The pace of looking.
const PACE: Duration = Duration::from_millis(100);
/// Where Docker puts the control groups of containers.
const GROUPS: &str = "/sys/fs/cgroup/freezer/docker";

/// A thread that records what the kernel runs.
pub(crate) struct Scanner {
    scans: Arc<Mutex<Vec<Scan>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scanner {
    /// Starts looking at the containers of a testbed.
    pub(crate) fn start(dir: &Path) -> Self {
        assert!(Path::new("/sys/fs/cgroup/freezer").is_dir(), "the scanner reads control groups of version 1");
        let (scans, over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let look = Look { dir: dir.to_owned(), known: BTreeMap::new() };
        let thread = std::thread::spawn({
            let (scans, over) = (Arc::clone(&scans), Arc::clone(&over));
            move || look.run(&scans, &over)
        });
        Self { scans, over, thread: Some(thread) }
    }

    /// Returns what was seen since the last call.
    pub(crate) fn take(&self) -> Vec<Scan> {
        std::mem::take(&mut *self.scans.lock().expect("the scans"))
    }

    /// Returns what runs now.
    pub(crate) fn latest(&self) -> Vec<Running> {
        self.scans.lock().expect("the scans").last().map(|scan| scan.running.clone()).unwrap_or_default()
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Says whether a process is the first of its container, by the numbers it has in the namespaces it lives in.
fn is_first(pid: &str) -> bool {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
}

/// Says whether a process is killed already, or on its way out: an engine thaws what it has sent SIGKILL, so that it dies.
fn is_dying(pid: i32) -> bool {
    const EXITING: u64 = 4;
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & (1 << 8) != 0)
    };
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    status.is_empty() || pending("SigPnd:") || pending("ShdPnd:") || flags.is_none_or(|flags| flags & EXITING != 0)
}

/// Whose a container is.
#[derive(Clone)]
struct Owner {
    node: String,
    name: String,
    job: String,
    attempt: String,
}

struct Look {
    dir: PathBuf,
    /// What is known of containers; `None`: no environment's.
    known: BTreeMap<String, Option<Owner>>,
}

impl Look {
    fn run(mut self, scans: &Mutex<Vec<Scan>>, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            let (at, running) = (now(), self.look());
            let mut scans = scans.lock().expect("the scans");
            if scans.last().is_none_or(|last| last.running != running) {
                scans.push(Scan { at, running });
            }
            drop(scans);
            std::thread::park_timeout(PACE);
        }
    }

    fn look(&mut self) -> Vec<Running> {
        let mut running = Vec::new();
        for entry in std::fs::read_dir(GROUPS).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let Ok(pids) = read_to_string(entry.path().join("cgroup.procs")) else { continue };
            let Some(pid) = pids.lines().find(|pid| is_first(pid)).or(pids.lines().next()) else { continue };
            let pid = pid.parse().unwrap_or_default();
            let Some(owner) = self.owner(&id) else { continue };
            let state = read_to_string(entry.path().join("freezer.state")).unwrap_or_default();
            let Owner { node, name, job, attempt } = owner;
            running.push(Running { job, attempt, node, name, pid, frozen: state.trim() == "FROZEN" || is_dying(pid) });
        }
        running.sort();
        running
    }

    fn owner(&mut self, id: &str) -> Option<Owner> {
        if let Some(known) = self.known.get(id) {
            return known.clone();
        }
        let ours = HOSTS.iter().find_map(|node| {
            let path = self.dir.join(node).join("data/containers").join(id).join("config.v2.json");
            Some((*node, serde_json::from_str::<Value>(&read_to_string(path).ok()?).ok()?))
        });
        // Another engine's containers stay unknown: they are looked up anew, since ours may be being written just now.
        let (node, config) = ours?;
        let label = |name: &str| config["Config"]["Labels"][name].as_str().map(str::to_owned);
        let owner = label("devfleet.job").zip(label("devfleet.attempt")).map(|(job, attempt)| Owner {
            node: node.to_owned(),
            name: config["Name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned(),
            job,
            attempt,
        });
        self.known.insert(id.to_owned(), owner.clone());
        owner
    }
}
