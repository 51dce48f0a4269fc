//! What one attempt did here, on disk, for after a crash: an append-only file of JSON lines per attempt.
//!
//! An entry is on the disk before its append returns, and the entry about an object is there before the object is. A
//! last line that a crash tore is cut off; a file that is damaged before its end is set aside (`….damaged`), and the
//! attempt is given up as lost. Holds no secret.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use devfleet_shared::assignment::Assignment;
use devfleet_shared::attempt::{AttemptResult, Failure, Step};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{AttemptId, Fence, JobId};
use serde::{Deserialize, Serialize};

use crate::engine::{ObjectKind, ObjectRef};
use crate::environment::CreationLog;

const ENDING: &str = "jsonl";
const DAMAGED: &str = "damaged";

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// The attempt was taken on. Always the first.
    Assigned(Box<Assignment>),
    /// An object of this kind and name is about to be made.
    AboutToMake {
        /// Its kind.
        kind: ObjectKind,
        /// Its name.
        name: String,
    },
    /// A step's container is made, and not started.
    StepMade {
        /// The step.
        step: Step,
        /// Its first container is number 1.
        round: u32,
        /// The container.
        container: String,
    },
    /// The container has its variables and its command runs: it must never be made again.
    StepHandedOver {
        /// The step.
        step: Step,
        /// Which container of the step.
        round: u32,
    },
    /// The container ended and its output is read to the end.
    StepEnded(StepEnd),
    /// The commit is in the mirror.
    Collected {
        /// 40 or 64 hex digits.
        commit: String,
    },
    /// The controller gave leave to push.
    PushGranted,
    /// The branch is on the forge.
    Pushed,
    /// The result stands.
    Result(AttemptResult),
    /// The environment stays until then, on a person's wish.
    Held {
        /// Until when.
        until: Timestamp,
    },
    /// It is no longer proven that the attempt is this host's: it stands still.
    Frozen,
    /// It is proven again: it goes on.
    Thawed,
    /// Nothing of the environment is left.
    TornDown,
    /// Reports up to this number may have been sent.
    Reported {
        /// The number.
        sequence: u64,
    },
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepEnd {
    /// The step.
    pub step: Step,
    /// Its exit status; absent: it was stopped at its time limit.
    pub status: Option<i64>,
    /// What is wrong with it, if anything.
    pub failure: Option<Failure>,
    /// How long it ran, in seconds.
    pub seconds: u64,
    /// The end of its output, masked; 4 KiB at most.
    pub tail: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    at: Timestamp,
    entry: Entry,
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be written or read.
    #[error("{action} the ledger {path}", path = path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file was changed by something else than us, or the disk lost a part of it.
    #[error("read the ledger {path}: line {line} is damaged", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
}

/// The ledger of one attempt.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    lines: Vec<Line>,
}

/// What a start finds in the ledger directory.
#[derive(Debug, Default)]
pub struct Found {
    /// Attempts to go on with.
    pub ledgers: Vec<Ledger>,
    /// Attempts whose ledgers are damaged, now or at an earlier start: they are lost.
    pub damaged: Vec<Casualty>,
}

/// An attempt whose ledger is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Casualty {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its job and fence, where the first line still tells.
    pub claim: Option<(JobId, Fence)>,
}

impl Ledger {
    /// Begins the ledger of an attempt.
    pub fn create(dir: &Path, clock: Clock, assignment: &Assignment) -> Result<Ledger, LedgerError> {
        let path = dir.join(format!("{}.{ENDING}", assignment.attempt));
        let disk = |action| move |source| LedgerError::Disk { action, path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(disk("create the directory of"))?;
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.map_err(|source| LedgerError::Disk { action: "create", path: path.clone(), source })?;
        let ledger = Ledger { path, clock, state: Mutex::new(State { file, lines: Vec::new() }) };
        ledger.append(Entry::Assigned(Box::new(assignment.clone())))?;
        sync_directory(dir).map_err(disk("sync the directory of"))?;
        Ok(ledger)
    }

    /// Reads a ledger and cuts off a last line that is torn. `None`: the crash came before its first line was whole, so
    /// nothing was made; the file is removed.
    pub fn open(path: &Path, clock: Clock) -> Result<Option<Ledger>, LedgerError> {
        let disk = |action| move |source| LedgerError::Disk { action, path: path.to_owned(), source };
        let bytes = std::fs::read(path).map_err(disk("read"))?;
        let (lines, whole) = parse(&bytes).map_err(|line| LedgerError::Damaged { path: path.to_owned(), line })?;
        if lines.is_empty() {
            std::fs::remove_file(path).map_err(disk("remove"))?;
            return Ok(None);
        }
        let file = OpenOptions::new().append(true).open(path).map_err(disk("open"))?;
        if whole < bytes.len() {
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(disk("cut"))?;
        }
        Ok(Some(Ledger { path: path.to_owned(), clock, state: Mutex::new(State { file, lines }) }))
    }

    /// Reads every ledger of a directory; damaged ones are set aside with a warning.
    pub fn load_all(dir: &Path, clock: &Clock) -> Result<Found, LedgerError> {
        let disk = |action| move |source| LedgerError::Disk { action, path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(disk("create the directory of"))?;
        let mut found = Found::default();
        let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(disk("list"))?;
        let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(ENDING) => found.add(&path, clock)?,
                Some(DAMAGED) => found.damaged.extend(casualty(&path)),
                _ => tracing::warn!(path = %path.display(), "foreign file in the ledger directory"),
            }
        }
        Ok(found)
    }

    /// Returns the attempts whose result stands, and changes nothing: for those who are not the daemon.
    pub fn ended(dir: &Path) -> BTreeSet<String> {
        let mut ended = BTreeSet::new();
        for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let lines = std::fs::read(&path).ok().and_then(|bytes| parse(&bytes).ok());
            let has_result = lines.is_some_and(|(lines, _)| History { lines }.result().is_some());
            if let Some(attempt) = path.file_stem().and_then(|name| name.to_str()).filter(|_| has_result) {
                ended.insert(attempt.to_owned());
            }
        }
        ended
    }

    /// Removes a damaged ledger: the controller knows that its attempt is lost.
    pub fn discard_damaged(dir: &Path, attempt: &AttemptId) {
        let path = dir.join(format!("{attempt}.{DAMAGED}"));
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "damaged ledger not removed");
        }
    }

    /// Writes one entry; it is on the disk when this returns.
    pub fn append(&self, entry: Entry) -> Result<(), LedgerError> {
        let disk = |source| LedgerError::Disk { action: "write", path: self.path.clone(), source };
        let line = Line { at: self.clock.now(), entry };
        let mut text = serde_json::to_vec(&line).map_err(|error| disk(io::Error::other(error)))?;
        text.push(b'\n');
        let mut state = self.state();
        state.file.write_all(&text).and_then(|()| state.file.sync_data()).map_err(disk)?;
        state.lines.push(line);
        Ok(())
    }

    /// Returns what the entries add up to.
    pub fn history(&self) -> History {
        let state = self.state();
        History { lines: state.lines.clone() }
    }

    /// Removes the file: nothing of the attempt is left, and the controller knows its end.
    pub fn remove(&self) -> Result<(), LedgerError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LedgerError::Disk { action: "remove", path: self.path.clone(), source: error })
            }
            _ => Ok(()),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl CreationLog for Ledger {
    fn about_to_make(&self, object: &ObjectRef) -> io::Result<()> {
        let entry = Entry::AboutToMake { kind: object.kind, name: object.name.clone() };
        self.append(entry).map_err(io::Error::other)
    }
}

/// What a ledger's entries add up to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    lines: Vec<Line>,
}

impl History {
    /// Returns the assignment.
    pub fn assignment(&self) -> Option<&Assignment> {
        self.last(|entry| match entry {
            Entry::Assigned(assignment) => Some(assignment.as_ref()),
            _ => None,
        })
    }

    /// Returns when the attempt was taken on.
    pub fn began(&self) -> Timestamp {
        self.lines.first().map_or(Timestamp(0), |line| line.at)
    }

    /// Returns how this step ended, if it did.
    pub fn ended(&self, step: Step) -> Option<&StepEnd> {
        self.last(|entry| match entry {
            Entry::StepEnded(end) if end.step == step => Some(end),
            _ => None,
        })
    }

    /// Returns the number of the step's newest container; 0: none was made.
    pub fn round(&self, step: Step) -> u32 {
        self.last(|entry| match entry {
            Entry::StepMade { step: made, round, .. } if *made == step => Some(*round),
            _ => None,
        })
        .unwrap_or(0)
    }

    /// Returns the name of the step's newest container.
    pub fn container(&self, step: Step) -> Option<&str> {
        self.last(|entry| match entry {
            Entry::StepMade { step: made, container, .. } if *made == step => Some(container.as_str()),
            _ => None,
        })
    }

    /// Returns when this container's command began to run, if it did.
    pub fn handed_over(&self, step: Step, round: u32) -> Option<Timestamp> {
        let this = |line: &&Line| line.entry == Entry::StepHandedOver { step, round };
        self.lines.iter().rev().find(this).map(|line| line.at)
    }

    /// Returns the latest step for which a container was made.
    pub fn latest_step(&self) -> Option<Step> {
        Step::ALL.into_iter().rev().find(|step| self.round(*step) > 0)
    }

    /// Returns the commit in the mirror.
    pub fn collected(&self) -> Option<&str> {
        self.last(|entry| match entry {
            Entry::Collected { commit } => Some(commit.as_str()),
            _ => None,
        })
    }

    /// Says whether the branch is on the forge.
    pub fn pushed(&self) -> bool {
        self.has(&Entry::Pushed)
    }

    /// Returns the result, once it stands.
    pub fn result(&self) -> Option<&AttemptResult> {
        self.last(|entry| match entry {
            Entry::Result(result) => Some(result),
            _ => None,
        })
    }

    /// Returns until when the environment is held.
    pub fn held(&self) -> Option<Timestamp> {
        self.last(|entry| match entry {
            Entry::Held { until } => Some(*until),
            _ => None,
        })
    }

    /// Says whether the attempt stands still.
    pub fn is_frozen(&self) -> bool {
        self.last(|entry| match entry {
            Entry::Frozen => Some(true),
            Entry::Thawed => Some(false),
            _ => None,
        })
        .unwrap_or(false)
    }

    /// Returns how long the attempt stood still between these moments. No time limit counts it.
    pub fn frozen_between(&self, from: Timestamp, to: Timestamp) -> Duration {
        let (mut total, mut since) = (Duration::ZERO, None);
        let end = Line { at: to, entry: Entry::Thawed };
        for line in self.lines.iter().chain([&end]) {
            match line.entry {
                Entry::Frozen => since = since.or(Some(line.at.max(from))),
                Entry::Thawed => total += since.take().map_or(Duration::ZERO, |since| line.at.min(to).since(since)),
                _ => {}
            }
        }
        total
    }

    /// Says whether nothing of the environment is left.
    pub fn torn_down(&self) -> bool {
        self.has(&Entry::TornDown)
    }

    /// Returns the greatest report number that may have been sent.
    pub fn reported(&self) -> u64 {
        self.last(|entry| match entry {
            Entry::Reported { sequence } => Some(*sequence),
            _ => None,
        })
        .unwrap_or(0)
    }

    fn has(&self, entry: &Entry) -> bool {
        self.lines.iter().any(|line| line.entry == *entry)
    }

    fn last<'a, T>(&'a self, pick: impl Fn(&'a Entry) -> Option<T>) -> Option<T> {
        self.lines.iter().rev().find_map(|line| pick(&line.entry))
    }
}

impl Found {
    fn add(&mut self, path: &Path, clock: &Clock) -> Result<(), LedgerError> {
        match Ledger::open(path, clock.clone()) {
            Ok(ledger) => self.ledgers.extend(ledger),
            Err(error @ LedgerError::Damaged { .. }) => {
                let aside = path.with_extension(DAMAGED);
                tracing::warn!(
                    %error, kept = %aside.display(),
                    "damaged ledger set aside, its attempt is lost and its objects are left to the sweeper"
                );
                std::fs::rename(path, &aside).map_err(|source| LedgerError::Disk {
                    action: "set aside",
                    path: path.to_owned(),
                    source,
                })?;
                self.damaged.extend(casualty(&aside));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn casualty(path: &Path) -> Option<Casualty> {
    let attempt = path.file_stem()?.to_str()?.parse().ok()?;
    let bytes = std::fs::read(path).ok()?;
    let first: Option<Line> =
        bytes.split(|byte| *byte == b'\n').next().and_then(|line| serde_json::from_slice(line).ok());
    let claim = match first {
        Some(Line { entry: Entry::Assigned(assignment), .. }) => Some((assignment.job, assignment.fence)),
        _ => None,
    };
    Some(Casualty { attempt, claim })
}

/// Returns the whole lines and how many bytes they take, or the number of a damaged line.
fn parse(bytes: &[u8]) -> Result<(Vec<Line>, usize), usize> {
    let mut lines = Vec::new();
    let mut whole = 0;
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    for end in ends {
        let line: Line = serde_json::from_slice(&bytes[whole..end]).map_err(|_| lines.len() + 1)?;
        let first_is_assigned = matches!(line.entry, Entry::Assigned(_)) == lines.is_empty();
        if !first_is_assigned {
            return Err(lines.len() + 1);
        }
        lines.push(line);
        whole = end + 1;
    }
    Ok((lines, whole))
}

fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assignments::tests::assignment;

    const ATTEMPT: &str = "a3f91c20";

    fn written(dir: &Path) -> (Ledger, Vec<Entry>) {
        let assignment = assignment(ATTEMPT, 3);
        let ledger = Ledger::create(dir, Clock::fixed(Timestamp(5)), &assignment).expect("create");
        let entries = vec![
            Entry::AboutToMake { kind: ObjectKind::Network, name: "devbox-a3f91c20-network".into() },
            Entry::StepMade { step: Step::Checkout, round: 1, container: "devbox-a3f91c20-checkout".into() },
            Entry::StepHandedOver { step: Step::Checkout, round: 1 },
            Entry::Reported { sequence: 1_024 },
            Entry::Result(AttemptResult::NoChange),
            Entry::TornDown,
        ];
        for entry in &entries {
            ledger.append(entry.clone()).expect("append");
        }
        (ledger, entries)
    }

    fn path(dir: &Path) -> PathBuf {
        dir.join(format!("{ATTEMPT}.jsonl"))
    }

    #[test]
    fn entries_come_back_after_a_restart() {
        let dir = tempfile::tempdir().expect("dir");
        let (ledger, _) = written(dir.path());
        let found = Ledger::load_all(dir.path(), &Clock::system()).expect("load");
        let history = found.ledgers.first().expect("one ledger").history();
        assert_eq!(history, ledger.history());
        assert_eq!(history.round(Step::Checkout), 1);
        assert_eq!(history.handed_over(Step::Checkout, 1), Some(Timestamp(5)));
        assert_eq!(history.handed_over(Step::Checkout, 2), None);
        assert_eq!(history.latest_step(), Some(Step::Checkout));
        assert_eq!(history.reported(), 1_024);
        assert_eq!(history.result(), Some(&AttemptResult::NoChange));
        assert!(history.torn_down() && !history.pushed());
        ledger.remove().expect("remove");
        ledger.remove().expect("remove again");
        assert!(Ledger::load_all(dir.path(), &Clock::system()).expect("load").ledgers.is_empty());
    }

    #[test]
    fn wherever_a_crash_tears_the_file_the_whole_lines_before_it_are_kept() {
        let dir = tempfile::tempdir().expect("dir");
        written(dir.path());
        let bytes = std::fs::read(path(dir.path())).expect("read");
        for length in 0..bytes.len() {
            std::fs::write(path(dir.path()), &bytes[..length]).expect("write");
            let whole = bytes[..length].iter().filter(|byte| **byte == b'\n').count();
            let ledger = Ledger::open(&path(dir.path()), Clock::system()).expect("torn is not damaged");
            assert_eq!(ledger.as_ref().map_or(0, |ledger| ledger.history().lines.len()), whole);
            let Some(ledger) = ledger else {
                assert!(!path(dir.path()).exists(), "a ledger without an assignment is removed");
                continue;
            };
            ledger.append(Entry::Pushed).expect("append after the cut");
            let again = Ledger::open(&path(dir.path()), Clock::system()).expect("reads").expect("is there");
            assert!(again.history().pushed());
        }
    }

    #[test]
    fn a_file_damaged_before_its_end_is_set_aside_and_its_attempt_lost_for_good() {
        let dir = tempfile::tempdir().expect("dir");
        let (ledger, _) = written(dir.path());
        let text = std::fs::read_to_string(path(dir.path())).expect("read");
        std::fs::write(path(dir.path()), text.replace("step_handed_over", "step_handed_0ver")).expect("write");
        let job = ledger.history().assignment().expect("assignment").job.clone();
        for start in ["first", "second"] {
            let found = Ledger::load_all(dir.path(), &Clock::system()).expect("load");
            assert!(found.ledgers.is_empty(), "{start}");
            let attempt = ATTEMPT.parse().expect("attempt id");
            assert_eq!(found.damaged, [Casualty { attempt, claim: Some((job.clone(), Fence(3))) }], "{start}");
        }
        assert!(dir.path().join("a3f91c20.damaged").exists());
    }

    #[test]
    fn an_attempt_cannot_be_begun_twice() {
        let dir = tempfile::tempdir().expect("dir");
        written(dir.path());
        let again = Ledger::create(dir.path(), Clock::system(), &assignment(ATTEMPT, 3));
        assert!(matches!(again, Err(LedgerError::Disk { action: "create", .. })), "{again:?}");
    }
}
