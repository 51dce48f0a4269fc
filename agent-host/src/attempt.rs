//! One attempt, from its assignment to nothing being left: event in, `Phase::on`, effect out.
//!
//! ```text
//! ledger ─▶ course::resume ─▶ effect ─▶ event ─▶ Phase::on ─▶ effect … ─▶ Ended ─▶ acknowledged ─▶ forgotten
//! ```
//! Every effect is safe to repeat, so one path serves a first run and a restart at any point. An order to stop drops
//! whatever call is in flight; the tear-down that follows finds everything by its labels.

mod caches;
mod claude;
mod collect;
mod course;
mod ending;
mod log;
pub mod ports;
mod prepare;
mod publish;
pub mod reports;
mod scripts;
mod steps;
mod verdict;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devfleet_shared::assignment::Assignment;
use devfleet_shared::attempt::{AttemptResult, Effect, Event, Failure, FailureReason, Phase, Step};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::error::Chain;
use devfleet_shared::id::HostId;
use devfleet_shared::units::Span;
use tokio::sync::{OnceCell, watch};

use crate::admitted::Admitted;
use crate::caches::Caches;
use crate::disk::Gauge;
use crate::engine::{ImageFacts, SharedEngine};
use crate::environment::{Devbox, Images, SubnetPool};
use crate::freeze::{Proofs, Stance};
use crate::ledger::{Entry, History, Ledger};
use crate::mirror::Imported;
use crate::output::Recorder;
use crate::spool::Spools;
use course::Next;
use log::AttemptLog;
use ports::{Claim, Code, Controller, Grant};
use reports::{Board, Reporter};

/// How long after its time is over an environment may go even if the controller cannot be asked.
const EXPIRY_SLACK: Duration = Duration::from_secs(3_600);

/// What all attempts on a host share.
pub struct Surroundings {
    /// The engine.
    pub engine: SharedEngine,
    /// This host.
    pub host: HostId,
    /// The clocks.
    pub clock: Clock,
    /// Addresses for networks.
    pub pool: SubnetPool,
    /// Environments at the same time.
    pub slots: u64,
    /// What is set aside for which attempt.
    pub admitted: Admitted,
    /// Images.
    pub images: Images,
    /// Layers of dependency caches.
    pub caches: Caches,
    /// Mirrors and remotes.
    pub code: Arc<dyn Code>,
    /// The controller.
    pub controller: Arc<dyn Controller>,
    /// Logs on their way to the controller.
    pub spools: Spools,
    /// The daemon's data directory, where each attempt has a place for temporary files.
    pub data_dir: PathBuf,
    /// A directory on the engine's disk, to ask how much room is left; `None`: it cannot be seen from here.
    pub engine_disk: Option<PathBuf>,
    /// How that room is measured.
    pub gauge: Gauge,
    /// Where reports go.
    pub board: Board,
    /// Whether attempts may go on.
    pub proofs: Proofs,
}

/// What a supervisor wants of an attempt. Orders only rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Go on.
    Run,
    /// Stop, tear down, report `cancelled`. Ends a hold.
    Cancel,
    /// Stop, tear down, forget: nobody wants to hear of it.
    Drop,
    /// End the task at once and leave everything as it is: the daemon stops.
    Leave,
}

/// How an attempt's task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Nothing of the attempt is left here.
    Over,
    /// The daemon stops; the next one goes on from the ledger.
    Left,
}

/// Why an effect ended early.
#[derive(Debug)]
enum Halt {
    /// It failed.
    Failed(Failure),
    /// The controller does not want this attempt any more.
    Superseded,
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Halt::Failed(failure)
    }
}

/// One attempt under way.
pub struct Attempt {
    around: Arc<Surroundings>,
    assignment: Arc<Assignment>,
    ledger: Arc<Ledger>,
    reporter: Reporter,
    log: AttemptLog,
    order: watch::Receiver<Order>,
    grant: OnceCell<Grant>,
    image: OnceCell<ImageFacts>,
    imported: Mutex<Option<Imported>>,
    account: Mutex<claude::Reader>,
    /// The ledger is from before this daemon started.
    adopted: bool,
    /// A call that makes an object may still be under way in the engine.
    cut: AtomicBool,
}

impl Attempt {
    /// Takes up an attempt from its ledger, new or old.
    pub fn new(
        around: Arc<Surroundings>,
        assignment: Arc<Assignment>,
        ledger: Arc<Ledger>,
        order: watch::Receiver<Order>,
        adopted: bool,
    ) -> Self {
        let history = ledger.history();
        let claim = Claim::of(&assignment);
        let spool = around.spools.open(&claim.job, &claim.attempt, claim.fence.0).map_err(Into::into);
        let recorder = spool.and_then(|spool| Recorder::open(spool, assignment.limits.log_bytes, around.clock.clone()));
        let log = AttemptLog::new(recorder, around.clock.clone());
        let reporter = Reporter::new(around.board.clone(), claim, Arc::clone(&ledger));
        let cut = AtomicBool::new(adopted && history.latest_step().is_none());
        // On the board before anybody asks what this host has.
        reporter.phase(&course::resume(&assignment, &history).0, history.held().filter(|_| !history.torn_down()));
        let (grant, image, imported) = (OnceCell::new(), OnceCell::new(), Mutex::new(None));
        let account = Mutex::default();
        Self { around, assignment, ledger, reporter, log, order, grant, image, imported, account, adopted, cut }
    }

    /// Carries the attempt through to its end.
    pub async fn run(self) -> Departure {
        let (mut phase, mut next) = course::resume(&self.assignment, &self.ledger.history());
        if self.adopted && phase.result().is_none() {
            self.log.note("the host daemon was restarted; the attempt goes on");
        }
        loop {
            self.reporter.phase(&phase, self.held());
            tracing::info!(attempt = %self.assignment.attempt, phase = phase.name(), "attempt phase");
            let event = match next {
                Next::Event(event) => event,
                Next::Effect(effect) => match self.attended(effect, &phase).await {
                    Some(event) => event,
                    None => return Departure::Left,
                },
                Next::Nothing => return self.depart(&phase).await,
            };
            if let Event::Finished(result) = &event {
                self.announce(result);
                self.record(Entry::Result(result.clone()));
            }
            (phase, next) = match phase.clone().on(event) {
                Ok((phase, effect)) => (phase, effect.map_or(Next::Nothing, Next::Effect)),
                Err(refused) => (phase, self.defect(&refused.to_string())),
            };
        }
    }

    /// Carries out an effect for as long as nobody wants otherwise and the attempt's time lasts; `None`: the daemon stops.
    async fn attended(&self, effect: Effect, phase: &Phase) -> Option<Event> {
        let mut order = self.order.clone();
        if effect == Effect::TearDown {
            return tokio::select! {
                biased;
                () = reached(&mut order, Order::Leave) => None,
                () = self.end(phase.result()) => Some(Event::TornDown),
            };
        }
        let finished = |result| Some(Event::Finished(result));
        let mut stance = self.around.proofs.stance();
        loop {
            let event = tokio::select! {
                biased;
                () = reached(&mut order, Order::Cancel) => match *self.order.borrow() {
                    Order::Leave => return None,
                    Order::Drop => finished(AttemptResult::Lost),
                    Order::Run | Order::Cancel => finished(AttemptResult::Cancelled),
                },
                may = self.may_go_on(&mut stance) => match may {
                    true => tokio::select! {
                        biased;
                        () = reached(&mut order, Order::Cancel) => continue,
                        () = not_run(&mut stance) => {
                            // Dropped wherever it is: it is made again once the attempt may go on.
                            self.cut.store(true, Ordering::SeqCst);
                            continue;
                        }
                        event = self.perform(effect) => return Some(event),
                        () = tokio::time::sleep(self.time_left()) => {
                            finished(AttemptResult::Failed(self.out_of_time(phase)))
                        }
                    },
                    false => finished(AttemptResult::Lost),
                },
            };
            // The effect was dropped in the middle of a call.
            self.cut.store(true, Ordering::SeqCst);
            return event;
        }
    }

    /// Waits until it is proven that the attempt is this host's; false: that took too long, it is over.
    async fn may_go_on(&self, stance: &mut watch::Receiver<Stance>) -> bool {
        loop {
            let (now, frozen) = (*stance.borrow_and_update(), self.history().is_frozen());
            match now {
                Stance::Run if frozen => {
                    self.record(Entry::Thawed);
                    self.note("the controller is heard again: the attempt goes on");
                    return true;
                }
                Stance::Run => return true,
                Stance::Freeze if !frozen => {
                    self.record(Entry::Frozen);
                    self.note("the controller is not heard: the attempt stands still until it is");
                }
                Stance::Freeze => {}
                Stance::Kill => {
                    self.log.note("the controller was not heard for too long: the attempt is given up");
                    return false;
                }
            }
            // The sender lives as long as the host's surroundings, so this cannot fail.
            drop(stance.changed().await);
        }
    }

    async fn perform(&self, effect: Effect) -> Event {
        let outcome = match effect {
            Effect::PrepareEnvironment => self.prepare().await.map(|()| Event::Ready),
            Effect::StartStep(Step::Collect) => self.collect().await,
            Effect::StartStep(step) => self.step(step).await,
            Effect::Publish => self.publish().await.map(Event::Finished),
            Effect::TearDown => Ok(Event::TornDown),
        };
        match outcome {
            Ok(event) => event,
            Err(Halt::Failed(failure)) => Event::Finished(AttemptResult::Failed(failure)),
            Err(Halt::Superseded) => Event::Finished(AttemptResult::Lost),
        }
    }

    /// Gives an environment to make and unmake, whose notes go to the log and to the reports.
    fn devbox<'a>(&'a self, note: &'a (dyn Fn(&str) + Send + Sync)) -> Devbox<'a> {
        let created = self.ledger.history().began();
        let span = self.assignment.limits.attempt + self.assignment.hold + EXPIRY_SLACK;
        Devbox {
            engine: &self.around.engine,
            host: &self.around.host,
            assignment: &self.assignment,
            created,
            expires: created.after(span),
            ledger: self.ledger.as_ref(),
            note,
            pool: &self.around.pool,
            images: &self.around.images,
        }
    }

    /// Says something to people: in the log, and as what the attempt is doing.
    fn note(&self, text: &str) {
        self.log.note(text);
        self.reporter.doing(text);
    }

    fn history(&self) -> History {
        self.ledger.history()
    }

    /// Writes to the ledger, or fails the attempt: what is not written down must not be done.
    fn append(&self, entry: Entry) -> Result<(), Failure> {
        self.ledger.append(entry).map_err(|error| {
            let full = matches!(&error, crate::ledger::LedgerError::Disk { source, .. }
                if source.kind() == std::io::ErrorKind::StorageFull);
            let reason = if full { FailureReason::DiskFull } else { FailureReason::Internal };
            Failure { reason, message: format!("failed to {}", Chain(&error)) }
        })
    }

    /// Writes to the ledger what has happened anyway: without it a restart does it again.
    fn record(&self, entry: Entry) {
        if let Err(error) = self.ledger.append(entry) {
            tracing::warn!(attempt = %self.assignment.attempt, error = %Chain(&error), "ledger entry lost");
        }
    }

    fn announce(&self, result: &AttemptResult) {
        match result {
            AttemptResult::Failed(failure) => {
                self.log.note(&format!("failed ({}): {}", failure.reason.name(), failure.message));
            }
            other => self.log.note(&format!("result: {}", other.name())),
        }
    }

    fn held(&self) -> Option<Timestamp> {
        let history = self.history();
        history.held().filter(|_| !history.torn_down())
    }

    fn time_left(&self) -> Duration {
        let (history, now) = (self.history(), self.around.clock.now());
        let began = history.began();
        began.after(self.assignment.limits.attempt + history.frozen_between(began, now)).since(now)
    }

    fn out_of_time(&self, phase: &Phase) -> Failure {
        let limit = Span(self.assignment.limits.attempt);
        let message =
            format!("the attempt was stopped in its phase `{}`, after its time limit of {limit}", phase.name());
        Failure { reason: FailureReason::Timeout, message }
    }

    fn defect(&self, what: &str) -> Next {
        tracing::error!(attempt = %self.assignment.attempt, what, "defect in an attempt's course");
        let failure = Failure { reason: FailureReason::Internal, message: format!("a defect of devfleet: {what}") };
        Next::Event(Event::Finished(AttemptResult::Failed(failure)))
    }
}

/// Waits until attempts may not go on.
async fn not_run(stance: &mut watch::Receiver<Stance>) {
    if stance.wait_for(|stance| *stance != Stance::Run).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until the order is at least this. Without a supervisor there is none.
async fn reached(order: &mut watch::Receiver<Order>, least: Order) {
    if order.wait_for(|order| *order >= least).await.is_err() {
        std::future::pending::<()>().await;
    }
}
