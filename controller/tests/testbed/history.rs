//! What a scene leaves for the checkers: recorded by the client, the forge's ledger, the kernel and the store's own
//! watch, and read only after the scene.

use std::time::Duration;

/// Everything that was recorded while one scene ran.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    /// The jobs whose submission was acknowledged, as the client wrote them down.
    pub(crate) accepted: Vec<String>,
    /// What became of every job of the scene.
    pub(crate) jobs: Vec<JobEnd>,
    /// The merge requests in the forge's own ledger.
    pub(crate) merge_requests: Vec<Opened>,
    /// What the kernel ran, scan by scan; a scan like the one before is left out.
    pub(crate) scans: Vec<Scan>,
    /// The logs, one per attempt.
    pub(crate) logs: Vec<AttemptLog>,
    /// Every change of the store, in order.
    pub(crate) changes: Vec<Change>,
    /// What of environments was left after the scene, on engines and in the kernel.
    pub(crate) left: Vec<String>,
}

/// How a job ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobEnd {
    pub(crate) id: String,
    pub(crate) phase: String,
    pub(crate) outcome: String,
    /// The failure's class, of a job that failed.
    pub(crate) reason: String,
    /// The branches of its attempts.
    pub(crate) branches: Vec<String>,
    /// The commit of its merge request, as the job says.
    pub(crate) commit: String,
}

/// A merge request as the forge has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opened {
    pub(crate) source_branch: String,
    /// Where the branch points now.
    pub(crate) head: String,
}

/// What ran at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Scan {
    /// When, on the boot clock.
    pub(crate) at: Duration,
    /// The environments with processes.
    pub(crate) running: Vec<Running>,
}

/// A container with processes in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Running {
    pub(crate) job: String,
    pub(crate) attempt: String,
    pub(crate) node: String,
    pub(crate) name: String,
    pub(crate) pid: i32,
    pub(crate) frozen: bool,
}

/// One attempt's log.
#[derive(Debug, Clone, Default)]
pub(crate) struct AttemptLog {
    pub(crate) attempt: String,
    /// Whether the attempt brought the job's result, so that its log must be whole.
    pub(crate) whole: bool,
    /// The numbers of the agent's lines as they stand in the log; `None` is a mark that something was cut.
    pub(crate) lines: Vec<Option<u64>>,
    /// How many lines the agent wrote.
    pub(crate) written: u64,
}

/// One change of one key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) key: String,
    /// The new value; `None`: deleted.
    pub(crate) value: Option<serde_json::Value>,
}
