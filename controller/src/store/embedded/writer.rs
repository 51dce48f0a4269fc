//! The store's one writer: takes what is asked for, decides it in order, writes it in batches, then shows it.
//!
//! Whoever asks while the disk works shares the next write. Disk work runs on blocking threads. After a write that
//! failed the file is opened again before the next one, because what it holds is no longer known.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use devfleet_shared::clock::Clock;
use devfleet_shared::error::Chain;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, warn};

use super::batch::{Batch, Changes};
use super::file::{Look, StoreFile};
use super::state::{Events, State};
use crate::store::{Commit, LeaseId, Revision, StoreError, Transaction};

const BATCH: usize = 256;
/// The boot clock also counts while the machine sleeps, timers do not: deadlines are looked at this often.
const LEASE_LOOK: Duration = Duration::from_millis(200);
const EXPIRY_RETRY: Duration = Duration::from_secs(1);

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer can be asked for.
pub(super) enum Ask {
    Commit(Transaction, Answer<Commit>),
    Grant(Duration, Answer<LeaseId>),
    Revoke(LeaseId, Answer<()>),
    Compact(Revision, Answer<()>),
}

/// The file, while it can be used.
pub(super) enum Slot {
    Open(StoreFile),
    /// A write failed; the file is to be opened again.
    Broken,
    /// The store is dropped.
    Closed,
}

/// What readers, watches and the writer share.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) clock: Clock,
    state: RwLock<State>,
    slot: RwLock<Slot>,
}

/// An ask that is decided and waits for the disk.
type Decided = Box<dyn FnOnce(Option<&StoreError>) + Send>;

/// Runs until nobody can ask any more. `heads` tells watches of new revisions.
pub(super) async fn run(shared: Arc<Shared>, mut asks: mpsc::Receiver<Ask>, heads: watch::Sender<Revision>) {
    let mut pause = shared.until_next_lease();
    loop {
        let mut taken = Vec::new();
        tokio::select! {
            count = asks.recv_many(&mut taken, BATCH) => if count == 0 { return },
            () = sleep(pause) => {}
        }
        let worker = Arc::clone(&shared);
        let written = tokio::task::spawn_blocking(move || worker.carry_out(taken)).await.unwrap_or(false);
        pause = shared.until_next_lease().map(|pause| if written { pause } else { pause.max(EXPIRY_RETRY) });
        heads.send_replace(shared.state().head);
    }
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    pub(super) fn new(path: PathBuf, clock: Clock, file: StoreFile, state: State) -> Self {
        Self { path, clock, state: RwLock::new(state), slot: RwLock::new(Slot::Open(file)) }
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the file once a write in progress has ended.
    pub(super) fn close(&self) {
        *self.slot.write().unwrap_or_else(PoisonError::into_inner) = Slot::Closed;
    }

    /// Reads history from the file.
    pub(super) fn history(&self, from: Revision, enough: usize) -> Result<Vec<(Revision, Events)>, StoreError> {
        match &*self.slot.read().unwrap_or_else(PoisonError::into_inner) {
            Slot::Open(file) => file.history(from, enough),
            Slot::Broken => Err(StoreError::Unavailable("a write failed; the file is not open again yet".into())),
            Slot::Closed => Err(StoreError::Unavailable("the store is closed".into())),
        }
    }

    fn until_next_lease(&self) -> Option<Duration> {
        let deadline = self.state().next_deadline()?;
        let left = deadline.0.saturating_sub(self.clock.boot().0);
        Some(left.clamp(Duration::from_millis(1), LEASE_LOOK))
    }

    /// Decides, writes, shows, answers; says whether what had to be written was.
    fn carry_out(&self, taken: Vec<Ask>) -> bool {
        // First, because it may change what decisions rest on.
        let usable = self.reopen();
        let (changes, answers) = {
            let state = self.state();
            let now = self.clock.boot();
            let mut batch = Batch::new(&state, now);
            for lease in state.overdue(now) {
                batch.end_lease(lease);
            }
            let answers: Vec<Decided> = taken.into_iter().map(|ask| decide(&mut batch, ask)).collect();
            (batch.finish(), answers)
        };
        let outcome = match changes {
            None => Ok(()),
            Some(changes) => usable.and_then(|()| self.write(changes)),
        };
        for answer in answers {
            answer(outcome.as_ref().err());
        }
        outcome.is_ok()
    }

    fn write(&self, changes: Changes) -> Result<(), StoreError> {
        let written = match &*self.slot.read().unwrap_or_else(PoisonError::into_inner) {
            Slot::Open(file) => file.write(&changes),
            Slot::Broken | Slot::Closed => return Err(StoreError::Unavailable("the store is closed".into())),
        };
        let Err(error) = written else {
            self.state_mut().apply(changes, self.clock.boot());
            return Ok(());
        };
        warn!(error = %Chain(&error), "store write failed");
        self.mark_broken();
        // Opened again at once, so that old history can be read; if that fails too, before the next write.
        match self.reopen() {
            Ok(()) if !changes.history.is_empty() && self.state().head >= changes.head => Ok(()),
            _ => Err(error),
        }
    }

    fn mark_broken(&self) {
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*slot, Slot::Open(_)) {
            *slot = Slot::Broken;
        }
    }

    /// Opens the file again if a write failed, and takes over what it holds: the failed write may have been durable.
    fn reopen(&self) -> Result<(), StoreError> {
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*slot, Slot::Broken) {
            return Ok(());
        }
        let (file, contents) = StoreFile::open(&self.path, Look::Quick)?;
        let mut state = self.state_mut();
        if contents.head < state.head {
            error!(expected = state.head, found = contents.head, "store file lost acknowledged changes");
            let detail = format!("it ends at revision {}, {} was acknowledged", contents.head, state.head);
            return Err(StoreError::Damaged { path: self.path.display().to_string(), detail });
        }
        if contents.head > state.head {
            state.reload(contents, self.clock.boot());
        }
        *slot = Slot::Open(file);
        Ok(())
    }
}

fn decide(batch: &mut Batch<'_>, ask: Ask) -> Decided {
    match ask {
        Ask::Commit(transaction, answer) => later(batch.commit(&transaction), answer),
        Ask::Grant(ttl, answer) => later(batch.grant(ttl), answer),
        Ask::Revoke(lease, answer) => {
            batch.end_lease(lease);
            later(Ok(()), answer)
        }
        Ask::Compact(before, answer) => {
            batch.compact(before);
            later(Ok(()), answer)
        }
    }
}

/// Answers with the decision, or with the failure of the write that was to make it durable.
fn later<T: Send + 'static>(decided: Result<T, StoreError>, answer: Answer<T>) -> Decided {
    Box::new(move |failure| {
        let result = match failure {
            None => decided,
            Some(StoreError::DiskFull) => Err(StoreError::DiskFull),
            Some(StoreError::Damaged { path, detail }) => {
                Err(StoreError::Damaged { path: path.clone(), detail: detail.clone() })
            }
            Some(other) => Err(StoreError::Unavailable(Chain(other).to_string().into())),
        };
        drop(answer.send(result));
    })
}
