//! The hosts that are connected to this controller right now, and what they said of themselves last.
//!
//! In memory only: a host that reconnects says it all again. Inventories stay in their wire form, since all that
//! happens to most of them is to be shown.

pub mod prover;
pub mod stream;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use devfleet_proto::v1;
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{AttemptId, HostId};
use devfleet_shared::protocol;
use devfleet_shared::resources::Resources;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::leader::Term;

/// How long a host may take to answer a sweep.
const SWEEP_TIME: Duration = Duration::from_secs(120);

/// How often a controller that does not lead looks for sessions to close.
const CLOSING: Duration = Duration::from_secs(1);

/// Why a host did not sweep.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// It has no session.
    #[error("reach host {0}: it is not connected")]
    NotConnected(HostId),
    /// It did not answer.
    #[error("hear from host {0}: it did not answer in time")]
    NoAnswer(HostId),
}

/// What a session may be told to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Sweep, and answer here.
    Sweep { dry_run: bool, answer: oneshot::Sender<v1::SweepResult> },
    /// Another session of the same host took over.
    Close,
}

/// A connected host.
#[derive(Debug, Clone)]
pub struct Connected {
    /// The daemon's start.
    pub incarnation: String,
    /// When it was last heard of.
    pub last_seen: Timestamp,
    /// The protocol that it speaks.
    pub protocol: u32,
    /// What it said of itself last.
    pub inventory: v1::HostInventory,
    number: u64,
    orders: mpsc::Sender<Order>,
}

impl Connected {
    /// Returns all that the host has.
    pub fn total(&self) -> Resources {
        self.inventory.total.map(Resources::from).unwrap_or_default()
    }

    /// Returns what the host finds free right now.
    pub fn free(&self) -> Resources {
        self.inventory.free.map(Resources::from).unwrap_or_default()
    }
}

/// What a host tells of an attempt for people, and the store is not asked to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// What it is doing right now.
    pub doing: String,
    /// The tokens that the agent says it has used so far.
    pub tokens: u64,
}

/// The registry.
#[derive(Debug)]
pub struct Sessions {
    hosts: Mutex<BTreeMap<HostId, Connected>>,
    told: Mutex<BTreeMap<AttemptId, Told>>,
    changed: watch::Sender<u64>,
    numbers: AtomicU64,
    clock: Clock,
}

impl Sessions {
    /// Makes an empty one.
    pub fn new(clock: Clock) -> Self {
        Self {
            hosts: Mutex::default(),
            told: Mutex::default(),
            changed: watch::Sender::new(0),
            numbers: AtomicU64::new(1),
            clock,
        }
    }

    /// Returns a receiver that changes when hosts come, go, or say something new of themselves.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns the hosts that are connected.
    pub fn connected(&self) -> BTreeMap<HostId, Connected> {
        self.lock().clone()
    }

    /// Asks a host to sweep.
    pub async fn sweep(&self, host: &HostId, dry_run: bool) -> Result<v1::SweepResult, SweepError> {
        let orders = self.lock().get(host).map(|connected| connected.orders.clone());
        let orders = orders.ok_or_else(|| SweepError::NotConnected(host.clone()))?;
        let (answer, answered) = oneshot::channel();
        let gone = |_| SweepError::NotConnected(host.clone());
        orders.send(Order::Sweep { dry_run, answer }).await.map_err(gone)?;
        match tokio::time::timeout(SWEEP_TIME, answered).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(SweepError::NotConnected(host.clone())),
            Err(_) => Err(SweepError::NoAnswer(host.clone())),
        }
    }

    /// Returns a number that no other session of this controller has.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Registers a session; an older one of the same host is told to close. Returns its orders.
    pub(crate) fn open(&self, host: &HostId, number: u64, hello: &v1::Hello) -> mpsc::Receiver<Order> {
        let (orders, receiver) = mpsc::channel(8);
        let mut hosts = self.lock();
        let connected = Connected {
            incarnation: hello.incarnation.clone(),
            last_seen: self.clock.now(),
            protocol: protocol::said(hello.protocol),
            inventory: hello.inventory.clone().unwrap_or_default(),
            number,
            orders,
        };
        if let Some(older) = hosts.insert(host.clone(), connected) {
            drop(older.orders.try_send(Order::Close));
        }
        drop(hosts);
        self.announce();
        receiver
    }

    /// Notes that a host was heard, and what it said of itself.
    pub(crate) fn heard(&self, host: &HostId, number: u64, inventory: Option<v1::HostInventory>) {
        let mut hosts = self.lock();
        let Some(connected) = hosts.get_mut(host).filter(|connected| connected.number == number) else { return };
        connected.last_seen = self.clock.now();
        if let Some(inventory) = inventory {
            connected.inventory = inventory;
            drop(hosts);
            self.announce();
        }
    }

    /// Removes a session, unless a newer one has taken its place.
    pub(crate) fn close(&self, host: &HostId, number: u64) {
        let mut hosts = self.lock();
        if hosts.get(host).is_some_and(|connected| connected.number == number) {
            hosts.remove(host);
        }
        drop(hosts);
        self.announce();
    }

    /// Closes the sessions of a controller that does not lead (any more): hosts come back, and are passed on.
    pub async fn only_while_leading(
        self: Arc<Self>,
        mut term: watch::Receiver<Option<Term>>,
        shutdown: CancellationToken,
    ) {
        loop {
            if term.borrow_and_update().is_none() {
                for connected in self.lock().values() {
                    drop(connected.orders.try_send(Order::Close));
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = term.changed() => {}
                // One that was opened at the very end of a term.
                () = tokio::time::sleep(CLOSING) => {}
            }
        }
    }

    /// Returns what the host of an attempt told last of it.
    pub fn told(&self, attempt: &AttemptId) -> Told {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).get(attempt).cloned().unwrap_or_default()
    }

    /// Notes what the host that owns an attempt tells of it.
    pub(crate) fn note(&self, attempt: &AttemptId, told: Told) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt.clone(), told);
    }

    /// Forgets what was told of an attempt that is over.
    pub(crate) fn forget(&self, attempt: &AttemptId) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(attempt);
    }

    fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<HostId, Connected>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
