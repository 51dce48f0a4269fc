//! A controller's way to the store, which is slow, breaks, and lies as etcd was seen to lie.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_controller::store::memory::MemoryStore;
use devfleet_controller::store::{
    Commit, Entry, LeaseId, Revision, Snapshot, Store, StoreError, Transaction, WatchEvent,
};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::plan::Mutant;

/// How long a call waits for a store that is cut off.
const PATIENCE: Duration = Duration::from_secs(3);

/// How the way to the store is right now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mood {
    /// Nothing passes.
    pub(crate) cut: bool,
    /// Some answers to transactions are lost, after or before they were carried out.
    pub(crate) ambiguous: bool,
    /// A keep-alive is answered though the lease is gone.
    pub(crate) lying: bool,
    /// Watches are late, and break now and then.
    pub(crate) late: bool,
}

/// One controller's way to the store.
pub(crate) struct Way {
    truth: Arc<MemoryStore>,
    mood: Mutex<Mood>,
    chance: Mutex<StdRng>,
    mutant: Option<Mutant>,
}

fn lost(what: &'static str) -> StoreError {
    StoreError::Unavailable(what.into())
}

impl Way {
    pub(crate) fn new(truth: Arc<MemoryStore>, seed: u64, mutant: Option<Mutant>) -> Arc<Way> {
        let chance = Mutex::new(StdRng::seed_from_u64(seed));
        Arc::new(Way { truth, mood: Mutex::default(), chance, mutant })
    }

    pub(crate) fn mood(&self) -> MutexGuard<'_, Mood> {
        self.mood.lock().expect("no panic")
    }

    fn chance(&self, of: f64) -> bool {
        self.chance.lock().expect("no panic").random_bool(of)
    }

    /// Brings a call to the store.
    async fn pass(&self) -> Result<Mood, StoreError> {
        let ms = self.chance.lock().expect("no panic").random_range(1..8);
        // sleep: the way there
        tokio::time::sleep(Duration::from_millis(ms)).await;
        if self.mood().cut {
            // sleep: the time after which a call is given up
            tokio::time::sleep(PATIENCE).await;
            return Err(lost("no answer"));
        }
        Ok(*self.mood())
    }
}

/// The simulation's own name for a shared way.
pub(crate) struct SimStore(pub(crate) Arc<Way>);

#[async_trait]
impl Store for SimStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.0.pass().await?;
        self.0.truth.get(key).await
    }

    async fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.0.pass().await?;
        self.0.truth.range(prefix).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        let mood = self.0.pass().await?;
        if self.0.mutant == Some(Mutant::Durable) && self.0.chance(0.05) {
            return Ok(Commit::Done(self.0.truth.range("/").await?.revision));
        }
        if mood.ambiguous && self.0.chance(0.1) {
            return Err(lost("the request was lost"));
        }
        let outcome = self.0.truth.commit(transaction).await?;
        if mood.ambiguous && self.0.chance(0.1) {
            return Err(lost("the answer was lost"));
        }
        self.0.pass().await.map_err(|_| lost("the answer was lost"))?;
        Ok(outcome)
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        self.0.pass().await?;
        let (events, way) = (self.0.truth.watch(prefix, from).await?, Arc::clone(&self.0));
        let step = |(mut events, way): (BoxStream<'static, _>, Arc<Way>)| async move {
            let event = events.next().await?;
            let mood = *way.mood();
            if mood.cut || (mood.late && way.chance(0.02)) {
                // sleep: the time after which a broken watch is noticed
                tokio::time::sleep(PATIENCE).await;
                return Some((Err(lost("the watch broke")), (stream::empty().boxed(), way)));
            }
            let ms = if mood.late { 200 } else { 3 };
            // sleep: the way back
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Some((event, (events, way)))
        };
        Ok(stream::unfold((events, way), step).boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.0.pass().await?;
        self.0.truth.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mood = self.0.pass().await?;
        match self.0.truth.keep_alive(lease).await {
            Err(StoreError::LeaseEnded(_)) if mood.lying => Ok(()),
            answer => answer,
        }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.pass().await?;
        self.0.truth.revoke_lease(lease).await
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.0.pass().await?;
        self.0.truth.compact(before).await
    }
}
