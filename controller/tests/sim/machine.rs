//! A host of the simulation: the real daemon over an engine and a repository in memory, which outlive it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_host::attempt::ports::{Code, CodeError};
use devfleet_host::config::Config;
use devfleet_host::daemon;
use devfleet_host::disk::Space;
use devfleet_host::engine::memory::{Fault, MemoryEngine, Piece, Script};
use devfleet_host::engine::{ImageFacts, label};
use devfleet_host::mirror::{GitLogin, Imported};
use devfleet_host::spool::shipping::Dial;
use devfleet_shared::assignment::Assignment;
use devfleet_shared::clock::Clock;
use devfleet_shared::id::{Digest, HostId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::plan::Mutant;

const BUNDLE: &str = "# v2 git bundle, as it were";
/// How often it is noted what runs.
const LOOK: Duration = Duration::from_millis(100);

/// A job and its attempt that run on a host right now, unfrozen.
pub(crate) type Runs = BTreeSet<(String, String)>;

/// Everything of a host that outlives its daemon.
pub(crate) struct Machine {
    pub(crate) host: HostId,
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) clock: Clock,
    pub(crate) config: Config,
    /// Whether the daemon is to run.
    pub(crate) up: watch::Sender<bool>,
    /// What runs.
    pub(crate) runs: Mutex<Runs>,
}

impl Machine {
    /// Returns how many logs the controllers have not taken wholly.
    pub(crate) fn unshipped(&self) -> usize {
        std::fs::read_dir(self.config.data_dir.join("spool")).map_or(0, Iterator::count)
    }
}

/// The text that the agent's step prints.
pub(crate) fn agent_output() -> String {
    (0..20).map(|line| format!("agent line {line}\n")).collect()
}

/// Makes an engine whose every step goes well, the agent's after this time.
pub(crate) fn engine(agent: Duration, mutant: Option<Mutant>) -> Arc<MemoryEngine> {
    let engine = MemoryEngine::new();
    if mutant == Some(Mutant::Freeze) {
        engine.fail_when(|call| (call.verb == "pause").then_some(Fault::Before));
    }
    let image = ImageFacts { id: "sha256:base".into(), ..ImageFacts::default() };
    engine.add_to_registry("app:1", image);
    let script = |role: &str, output: &str, after: Duration| {
        let pieces = output.split_inclusive('\n').zip(0u32..);
        let piece =
            |(text, n): (&str, u32)| Piece { after: after * n / 20, data: text.to_owned().into(), ..Piece::default() };
        engine.script(role, Script { output: pieces.map(piece).collect(), ..Script::ends(after, 0) });
    };
    let quick = Duration::from_millis(400);
    for step in ["checkout", "setup", "verify"] {
        script(step, &format!("{step} was here\n"), quick);
    }
    script("agent", &agent_output(), agent);
    script("collect", BUNDLE, quick);
    for round in 2..50 {
        script(&format!("collect-{round}"), BUNDLE, quick);
    }
    engine
}

/// Keeps the daemon running whenever it is to run, and notes what its containers do.
pub(crate) async fn run(machine: Arc<Machine>) -> turmoil::Result {
    tokio::spawn(look(Arc::clone(&machine)));
    let mut up = machine.up.subscribe();
    loop {
        up.wait_for(|up| *up).await?;
        let ground = daemon::Ground {
            host: machine.host.clone(),
            engine: machine.engine.clone(),
            code: Arc::new(MemoryCode),
            dial: Arc::clone(&machine.dial),
            clock: machine.clock.clone(),
            // Not this machine's, which may be full.
            gauge: |_| Ok(Space::UNSEEN),
        };
        let parts = daemon::start(ground, &machine.config, &CancellationToken::new()).await?;
        up.wait_for(|up| !*up).await?;
        // As kill -9 does: without a word, containers run on.
        drop(parts);
        tokio::task::yield_now().await;
    }
}

async fn look(machine: Arc<Machine>) {
    loop {
        let labels = machine.engine.running();
        let name = |labels: &devfleet_host::engine::Labels| {
            Some((labels.get(label::JOB)?.clone(), labels.get(label::ATTEMPT)?.clone()))
        };
        *machine.runs.lock().expect("no panic") = labels.iter().filter_map(name).collect();
        // sleep: the interval of the look
        tokio::time::sleep(LOOK).await;
    }
}

/// A repository that takes everything.
struct MemoryCode;

#[async_trait]
impl Code for MemoryCode {
    async fn fetch(&self, _: &Assignment, _: Option<&GitLogin>) -> Result<PathBuf, CodeError> {
        // sleep: a fetch takes its time
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok("/mirrors/web.git".into())
    }

    async fn import(&self, assignment: &Assignment, _: &Path) -> Result<Imported, CodeError> {
        let commit = Digest::of(assignment.attempt.as_str().as_bytes()).hex()[..40].to_owned();
        Ok(Imported { commit, diff: "+fix".into(), diff_truncated: false })
    }

    async fn objects(&self, _: &Assignment, _: &[String]) -> Result<BTreeMap<String, String>, CodeError> {
        Ok(BTreeMap::new())
    }

    async fn push(&self, _: &Assignment, _: Option<&GitLogin>, _: &str) -> Result<(), CodeError> {
        // sleep: a push takes its time
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(())
    }
}
