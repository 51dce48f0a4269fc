//! What the controller is to know about every attempt here: the newest report of each, until it is acknowledged.
//!
//! Attempts post, the session sends what is pending, and acknowledgements come back. Sequence numbers grow across
//! restarts: the ledger reserves them in blocks, so that a report costs no disk write.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devfleet_shared::attempt::Phase;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::AttemptId;
use tokio::sync::watch;

use super::ports::Claim;
use crate::ledger::{Entry, Ledger, LedgerError};

/// How many sequence numbers one ledger entry reserves.
const BLOCK: u64 = 1_024;
/// The longest line that says what an attempt is doing, in characters.
const DOING_LIMIT: usize = 200;

/// Where one attempt is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whose report it is.
    pub claim: Claim,
    /// The phase.
    pub phase: Phase,
    /// What it is doing right now, for people.
    pub doing: String,
    /// The tokens that its agent says it has used; 0: it says nothing.
    pub tokens: u64,
    /// Until when the environment is held.
    pub held_until: Option<Timestamp>,
    /// Grows with every report of the attempt.
    pub sequence: u64,
}

#[derive(Debug)]
struct Posted {
    report: Report,
    acknowledged: u64,
}

/// The newest report of every attempt. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Board {
    posted: Arc<Mutex<BTreeMap<AttemptId, Posted>>>,
    changed: watch::Sender<u64>,
}

impl Default for Board {
    fn default() -> Self {
        Self { posted: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl Board {
    /// Puts a report in the place of the attempt's last one.
    pub fn post(&self, report: Report) {
        let mut posted = self.lock();
        let acknowledged = posted.get(&report.claim.attempt).map_or(0, |before| before.acknowledged);
        posted.insert(report.claim.attempt.clone(), Posted { report, acknowledged });
        drop(posted);
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Returns the newest report of every attempt.
    pub fn all(&self) -> Vec<Report> {
        self.lock().values().map(|posted| posted.report.clone()).collect()
    }

    /// Returns the reports that the controller has not acknowledged.
    pub fn pending(&self) -> Vec<Report> {
        let posted = self.lock();
        let pending = posted.values().filter(|posted| posted.acknowledged < posted.report.sequence);
        pending.map(|posted| posted.report.clone()).collect()
    }

    /// Returns the newest report of one attempt.
    pub fn of(&self, attempt: &AttemptId) -> Option<Report> {
        self.lock().get(attempt).map(|posted| posted.report.clone())
    }

    /// Notes that the controller has this report.
    pub fn acknowledge(&self, attempt: &AttemptId, sequence: u64) {
        if let Some(posted) = self.lock().get_mut(attempt) {
            posted.acknowledged = posted.acknowledged.max(sequence);
        }
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Forgets an attempt.
    pub fn forget(&self, attempt: &AttemptId) {
        self.lock().remove(attempt);
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Returns what wakes whenever a report or an acknowledgement came.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Waits until the attempt's newest report is acknowledged. An attempt that is not here needs none.
    pub async fn acknowledged(&self, attempt: &AttemptId) {
        let mut changes = self.changes();
        let waiting = |posted: &Posted| posted.acknowledged < posted.report.sequence;
        while self.lock().get(attempt).is_some_and(waiting) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Posted>> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Posts the reports of one attempt.
pub struct Reporter {
    board: Board,
    claim: Claim,
    ledger: Arc<Ledger>,
    state: Mutex<ReporterState>,
}

struct ReporterState {
    phase: Phase,
    doing: String,
    tokens: u64,
    held_until: Option<Timestamp>,
    next: u64,
    reserved: u64,
}

impl Reporter {
    /// Makes a reporter that goes on behind the numbers that the ledger says may be used.
    pub fn new(board: Board, claim: Claim, ledger: Arc<Ledger>) -> Self {
        let reserved = ledger.history().reported();
        let state = ReporterState {
            phase: Phase::Assigned,
            doing: String::new(),
            tokens: 0,
            held_until: None,
            next: reserved + 1,
            reserved,
        };
        Self { board, claim, ledger, state: Mutex::new(state) }
    }

    /// Reports a phase.
    pub fn phase(&self, phase: &Phase, held_until: Option<Timestamp>) {
        self.post(|state| {
            state.phase = phase.clone();
            state.held_until = held_until;
            if !matches!(phase, Phase::Preparing | Phase::Stopping(_)) {
                state.doing.clear();
            }
        });
    }

    /// Reports what the attempt is doing.
    pub fn doing(&self, text: &str) {
        self.post(|state| state.doing = text.chars().take(DOING_LIMIT).collect());
    }

    /// Reports how many tokens the agent says it has used; nothing where that is no news.
    pub fn tokens(&self, tokens: u64) {
        let known = self.state.lock().unwrap_or_else(PoisonError::into_inner).tokens;
        if tokens > known {
            self.post(|state| state.tokens = tokens);
        }
    }

    fn post(&self, change: impl FnOnce(&mut ReporterState)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let sequence = state.next;
        state.next += 1;
        if sequence > state.reserved {
            state.reserved = sequence + BLOCK - 1;
            if let Err(error) = self.reserve(state.reserved) {
                tracing::warn!(attempt = %self.claim.attempt, %error, "report numbers not written down");
            }
        }
        let report = Report {
            claim: self.claim.clone(),
            phase: state.phase.clone(),
            doing: state.doing.clone(),
            tokens: state.tokens,
            held_until: state.held_until,
            sequence,
        };
        self.board.post(report);
    }

    fn reserve(&self, sequence: u64) -> Result<(), LedgerError> {
        self.ledger.append(Entry::Reported { sequence })
    }
}

#[cfg(test)]
mod tests {
    use devfleet_shared::clock::Clock;

    use super::*;
    use crate::assignments::tests::assignment;

    #[test]
    fn numbers_grow_across_restarts_and_cost_one_entry_in_a_thousand() {
        let dir = tempfile::tempdir().expect("dir");
        let assignment = assignment("a3f91c20", 1);
        let board = Board::default();
        let claim = Claim::of(&assignment);
        let mut last = 0;
        for start in 0..3 {
            let found = Ledger::load_all(dir.path(), &Clock::system()).expect("load").ledgers.pop();
            let ledger = found.unwrap_or_else(|| {
                assert_eq!(start, 0);
                Ledger::create(dir.path(), Clock::system(), &assignment).expect("create")
            });
            let reporter = Reporter::new(board.clone(), claim.clone(), Arc::new(ledger));
            for _ in 0..(BLOCK + 5) {
                reporter.doing("building the image");
                let sequence = board.of(&claim.attempt).expect("posted").sequence;
                assert!(sequence > last);
                last = sequence;
            }
        }
        let text = std::fs::read_to_string(dir.path().join("a3f91c20.jsonl")).expect("read");
        assert_eq!(text.lines().count(), 1 + 3 * 2);
    }

    #[tokio::test]
    async fn a_report_is_pending_until_its_own_number_is_acknowledged() {
        let dir = tempfile::tempdir().expect("dir");
        let assignment = assignment("a3f91c20", 1);
        let (board, claim) = (Board::default(), Claim::of(&assignment));
        let ledger = Arc::new(Ledger::create(dir.path(), Clock::system(), &assignment).expect("create"));
        let reporter = Reporter::new(board.clone(), claim.clone(), ledger);
        reporter.phase(&Phase::Preparing, None);
        reporter.phase(&Phase::Publishing, None);
        board.acknowledge(&claim.attempt, 1);
        assert_eq!(board.pending().len(), 1);
        assert_eq!(board.pending()[0].phase, Phase::Publishing);
        board.acknowledge(&claim.attempt, 2);
        assert!(board.pending().is_empty());
        board.acknowledged(&claim.attempt).await;
    }
}
