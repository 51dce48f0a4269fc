//! Owns the task of every attempt on this host: begins, adopts, orders, buries.
//!
//! ```text
//! ledgers ─▶ adopt ─┐                                   ┌─▶ over: forgotten, not begun again
//! session ─▶ assignment set ─▶ assignments::decide ─▶ tasks ─▶ fallen: adopted again, a few times
//! ```
//! When the daemon stops, tasks end at once and containers run on; the next daemon goes on from the ledgers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::assignment::Assignment;
use devfleet_shared::attempt::{AttemptResult, Failure, FailureReason, Phase};
use devfleet_shared::error::Chain;
use devfleet_shared::id::AttemptId;
use devfleet_shared::resources::Resources;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::assignments::{Action, Activity, AssignmentSet, Here, Unreadable, decide};
use crate::attempt::ports::Claim;
use crate::attempt::reports::{Board, Report};
use crate::attempt::{Attempt, Departure, Order, Surroundings};
use crate::ledger::{Ledger, LedgerError};

/// How often an attempt whose task fell over a defect is taken up again.
const FALLS: u32 = 3;
/// How long tasks may take to end when the daemon stops.
const LEAVE: Duration = Duration::from_secs(5);

/// What the supervisor is told.
enum Message {
    Apply { set: AssignmentSet, first: bool, done: oneshot::Sender<()> },
    Acknowledge { attempt: AttemptId, sequence: u64, superseded: bool },
    Reserved(oneshot::Sender<Resources>),
    Working(oneshot::Sender<Vec<AttemptId>>),
}

/// An attempt that is here.
struct Resident {
    assignment: Arc<Assignment>,
    ledger: Arc<Ledger>,
    order: watch::Sender<Order>,
    has_task: bool,
    falls: u32,
}

/// Owns the tasks.
pub struct Supervisor {
    around: Arc<Surroundings>,
    ledgers: PathBuf,
    inbox: mpsc::Receiver<Message>,
    residents: BTreeMap<AttemptId, Resident>,
    tasks: JoinSet<(AttemptId, Departure)>,
    task_names: HashMap<tokio::task::Id, AttemptId>,
    /// Ended here, and the controller knows.
    over: BTreeSet<AttemptId>,
    /// Given up because their ledgers are damaged.
    damaged: BTreeSet<AttemptId>,
    newest: Option<u64>,
}

/// How others speak to the supervisor. Cheap to clone.
#[derive(Clone)]
pub struct SupervisorHandle {
    inbox: mpsc::Sender<Message>,
    board: Board,
}

impl SupervisorHandle {
    /// Hands over a set of assignments, and returns when it is acted on. The `first` of a session counts whatever its
    /// generation is.
    pub async fn apply(&self, set: AssignmentSet, first: bool) {
        let (done, acted) = oneshot::channel();
        self.send(Message::Apply { set, first, done }).await;
        drop(acted.await);
    }

    /// Hands over the controller's acknowledgement of a report.
    pub async fn acknowledge(&self, attempt: AttemptId, sequence: u64, superseded: bool) {
        self.send(Message::Acknowledge { attempt, sequence, superseded }).await;
    }

    /// Returns what is set aside for the attempts that are here.
    pub async fn reserved(&self) -> Resources {
        let (answer, reserved) = oneshot::channel();
        self.send(Message::Reserved(answer)).await;
        reserved.await.unwrap_or_default()
    }

    /// Returns the attempts that nobody ordered to stop.
    pub async fn working(&self) -> Vec<AttemptId> {
        let (answer, working) = oneshot::channel();
        self.send(Message::Working(answer)).await;
        working.await.unwrap_or_default()
    }

    /// Returns the board with every attempt's newest report.
    pub fn board(&self) -> &Board {
        &self.board
    }

    async fn send(&self, message: Message) {
        // Fails only while the daemon stops.
        let _ = self.inbox.send(message).await;
    }
}

impl Supervisor {
    /// Takes up every attempt that has a ledger, so that all of them are on the board when this returns.
    pub fn adopt(around: Arc<Surroundings>, ledgers: PathBuf) -> Result<(Supervisor, SupervisorHandle), LedgerError> {
        let (sender, inbox) = mpsc::channel(64);
        let handle = SupervisorHandle { inbox: sender, board: around.board.clone() };
        let found = Ledger::load_all(&ledgers, &around.clock)?;
        let mut supervisor = Supervisor {
            around,
            ledgers,
            inbox,
            residents: BTreeMap::new(),
            tasks: JoinSet::new(),
            task_names: HashMap::new(),
            over: BTreeSet::new(),
            damaged: BTreeSet::new(),
            newest: None,
        };
        for casualty in found.damaged {
            if let Some((job, fence)) = casualty.claim {
                supervisor.lost(Claim { job, attempt: casualty.attempt.clone(), fence });
            }
            supervisor.damaged.insert(casualty.attempt);
        }
        for ledger in found.ledgers {
            if let Some(assignment) = ledger.history().assignment().cloned() {
                tracing::info!(attempt = %assignment.attempt, job = %assignment.job, "attempt adopted from its ledger");
                supervisor.admit(Arc::new(assignment), Arc::new(ledger), Order::Run, true);
            }
        }
        Ok((supervisor, handle))
    }

    /// Runs until the daemon stops.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.bury(ended),
                message = self.inbox.recv() => match message {
                    Some(Message::Apply { set, first, done }) => {
                        self.apply(&set, first);
                        // Whoever waited may be gone.
                        let _ = done.send(());
                    }
                    Some(Message::Working(answer)) => drop(answer.send(self.working())),
                    Some(Message::Acknowledge { attempt, sequence, superseded }) => {
                        self.acknowledge(&attempt, sequence, superseded);
                    }
                    Some(Message::Reserved(answer)) => drop(answer.send(self.reserved())),
                    None => break,
                },
            }
        }
        self.leave().await;
    }

    fn apply(&mut self, set: &AssignmentSet, first: bool) {
        let newest = self.newest.filter(|_| !first);
        let here = self.residents.iter().map(|(attempt, resident)| (attempt.clone(), self.here(attempt, resident)));
        let Some(actions) = decide(newest, set, &here.collect(), &self.over) else {
            tracing::debug!(generation = set.generation, "an older set of assignments is not acted on");
            return;
        };
        self.newest = Some(set.generation);
        self.over.retain(|attempt| set.wanted.contains_key(attempt) || set.unreadable.contains_key(attempt));
        for (attempt, unreadable) in &set.unreadable {
            self.decline(attempt, unreadable);
        }
        for (attempt, action) in actions {
            match action {
                Action::Keep => {}
                Action::Cancel => self.order(&attempt, Order::Cancel),
                Action::Drop => self.order(&attempt, Order::Drop),
                Action::Adopt => self.take_up(&attempt),
                Action::Start => {
                    if let Some(wanted) = set.wanted.get(&attempt) {
                        self.begin(&wanted.assignment, wanted.cancel);
                    }
                }
            }
        }
    }

    fn here(&self, attempt: &AttemptId, resident: &Resident) -> Here {
        let report = self.around.board.of(attempt);
        let held = report.as_ref().is_some_and(|report| report.held_until.is_some());
        let has_result = report.as_ref().is_some_and(|report| report.phase.result().is_some());
        let activity = match (*resident.order.borrow(), resident.has_task) {
            (_, false) => Activity::Orphaned,
            (Order::Run, true) if held => Activity::Held,
            (Order::Run, true) if !has_result => Activity::Working,
            (_, true) => Activity::Ending,
        };
        Here { fence: resident.assignment.fence, activity }
    }

    fn begin(&mut self, assignment: &Assignment, cancel: bool) {
        let claim = Claim::of(assignment);
        if self.damaged.contains(&assignment.attempt) {
            self.lost(claim);
            return;
        }
        match Ledger::create(&self.ledgers, self.around.clock.clone(), assignment) {
            Ok(ledger) => {
                let order = if cancel { Order::Cancel } else { Order::Run };
                tracing::info!(attempt = %assignment.attempt, job = %assignment.job, "attempt begun");
                self.admit(Arc::new(assignment.clone()), Arc::new(ledger), order, false);
            }
            Err(error) => {
                tracing::error!(attempt = %assignment.attempt, error = %Chain(&error), "attempt not begun");
                let message = format!("failed to {}", Chain(&error));
                let failure = Failure { reason: FailureReason::DiskFull, message };
                self.post_end(claim, AttemptResult::Failed(failure));
                self.over.insert(assignment.attempt.clone());
            }
        }
    }

    /// Reports the failure of an attempt that cannot begin, because what is to be done cannot be read.
    fn decline(&mut self, attempt: &AttemptId, unreadable: &Unreadable) {
        if self.residents.contains_key(attempt) || !self.over.insert(attempt.clone()) {
            return;
        }
        tracing::error!(%attempt, problem = unreadable.problem, "an assignment cannot be read");
        let problem = &unreadable.problem;
        let message = format!(
            "the host daemon does not understand the assignment ({problem}); are host and controller of one version?"
        );
        let claim = Claim { job: unreadable.job.clone(), attempt: attempt.clone(), fence: unreadable.fence };
        self.post_end(claim, AttemptResult::Failed(Failure { reason: FailureReason::Internal, message }));
    }

    fn admit(&mut self, assignment: Arc<Assignment>, ledger: Arc<Ledger>, order: Order, adopted: bool) {
        let attempt = assignment.attempt.clone();
        if adopted {
            self.around.admitted.keep(&attempt, assignment.limits.resources);
        }
        let resident = Resident { assignment, ledger, order: watch::Sender::new(order), has_task: false, falls: 0 };
        self.residents.insert(attempt.clone(), resident);
        self.spawn(&attempt, adopted);
    }

    fn take_up(&mut self, attempt: &AttemptId) {
        self.spawn(attempt, true);
    }

    fn spawn(&mut self, attempt: &AttemptId, adopted: bool) {
        let Some(resident) = self.residents.get_mut(attempt) else { return };
        resident.has_task = true;
        let order = resident.order.subscribe();
        let work = Attempt::new(
            Arc::clone(&self.around),
            Arc::clone(&resident.assignment),
            Arc::clone(&resident.ledger),
            order,
            adopted,
        );
        let attempt = attempt.clone();
        let name = attempt.clone();
        let task = self.tasks.spawn(async move { (attempt, work.run().await) });
        self.task_names.insert(task.id(), name);
    }

    fn order(&self, attempt: &AttemptId, order: Order) {
        if let Some(resident) = self.residents.get(attempt) {
            tracing::info!(%attempt, ?order, "attempt ordered to stop");
            raise(&resident.order, order);
        }
    }

    fn acknowledge(&mut self, attempt: &AttemptId, sequence: u64, superseded: bool) {
        self.around.board.acknowledge(attempt, sequence);
        match self.residents.get(attempt) {
            // A held environment has ended for the controller; the hold is between this host and a person.
            Some(resident) if superseded && self.here(attempt, resident).activity != Activity::Held => {
                self.order(attempt, Order::Drop);
            }
            Some(_) => {}
            None => {
                self.around.board.forget(attempt);
                if self.damaged.remove(attempt) {
                    Ledger::discard_damaged(&self.ledgers, attempt);
                    self.over.insert(attempt.clone());
                }
            }
        }
    }

    fn working(&self) -> Vec<AttemptId> {
        let working = self.residents.iter().filter(|(_, resident)| *resident.order.borrow() == Order::Run);
        working.map(|(attempt, _)| attempt.clone()).collect()
    }

    fn reserved(&self) -> Resources {
        let amounts = self.residents.values().map(|resident| resident.assignment.limits.resources);
        amounts.fold(Resources::default(), Resources::plus)
    }

    fn bury(&mut self, ended: Result<(tokio::task::Id, (AttemptId, Departure)), tokio::task::JoinError>) {
        match ended {
            Ok((task, (attempt, departure))) => {
                self.task_names.remove(&task);
                if departure == Departure::Over {
                    self.around.admitted.release(&attempt);
                    self.residents.remove(&attempt);
                    tracing::info!(%attempt, "attempt over");
                    self.over.insert(attempt);
                }
            }
            Err(error) => {
                if let Some(attempt) = self.task_names.remove(&error.id()) {
                    self.fallen(&attempt, &error);
                }
            }
        }
    }

    /// A defect ended a task. The ledger is whole, so the attempt is taken up again; but not for ever.
    fn fallen(&mut self, attempt: &AttemptId, error: &tokio::task::JoinError) {
        tracing::error!(%attempt, %error, "the task of an attempt fell");
        let Some(resident) = self.residents.get_mut(attempt) else { return };
        resident.has_task = false;
        resident.falls += 1;
        if resident.falls < FALLS {
            self.spawn(attempt, true);
            return;
        }
        let Some(resident) = self.residents.remove(attempt) else { return };
        self.around.admitted.release(attempt);
        let message = "a defect of devfleet ended the attempt again and again; see the host daemon's log".to_owned();
        let failure = Failure { reason: FailureReason::Internal, message };
        self.post_end(Claim::of(&resident.assignment), AttemptResult::Failed(failure));
        if let Err(error) = resident.ledger.remove() {
            tracing::warn!(%attempt, error = %Chain(&error), "ledger not removed");
        }
        self.over.insert(attempt.clone());
    }

    fn lost(&self, claim: Claim) {
        self.post_end(claim, AttemptResult::Lost);
    }

    /// Reports the end of an attempt that has no task. The clock's number is greater than any that a ledger gave.
    fn post_end(&self, claim: Claim, result: AttemptResult) {
        let sequence = self.around.clock.now().0;
        let phase = Phase::Ended(result);
        self.around.board.post(Report { claim, phase, doing: String::new(), tokens: 0, held_until: None, sequence });
    }

    async fn leave(mut self) {
        for resident in self.residents.values() {
            raise(&resident.order, Order::Leave);
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LEAVE, all).await.is_err() {
            tracing::warn!("some attempts did not let go in time");
        }
        self.tasks.shutdown().await;
    }
}

fn raise(order: &watch::Sender<Order>, to: Order) {
    order.send_if_modified(|now| {
        let higher = to > *now;
        *now = to.max(*now);
        higher
    });
}
