//! What belongs to the fleet as a whole: which store this is, and whose certificates count.

use devfleet_shared::id::{ControllerId, Digest};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{PREFIX, RecordError, decode, put};
use crate::store::{Commit, Compare, SharedStore, Transaction};

/// Names this store: hosts that have seen a newer one do not follow an older.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Random, made with the store.
    pub id: Uuid,
    /// Raised by hand after a restore from a copy.
    pub number: u64,
}

/// Whose certificates count in this fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// The SHA-256 of the authority's certificate.
    pub fingerprint: Digest,
}

/// Why a controller does not belong to the fleet of this store.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The store cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its authority is another.
    #[error(
        "join the fleet: its authority is {standing}, this controller's is {own}; copy `authority.pem` and `authority.key` of a controller of the fleet into `ca_dir`, or use another prefix for another fleet"
    )]
    AnotherAuthority {
        /// The fleet's.
        standing: Digest,
        /// The controller's.
        own: Digest,
    },
    /// The store is the half of a copy.
    #[error(
        "join the fleet: its store is half copied from another; run the `devfleet store migrate` that was broken off once more, to its end"
    )]
    HalfMoved,
}

/// The key of the generation.
pub fn generation_key() -> String {
    format!("{PREFIX}generation")
}

/// The key that stands in a store for as long as another is copied into it.
pub fn moving_key() -> String {
    format!("{PREFIX}moving")
}

/// The key of the authority's fingerprint.
pub fn authority_key() -> String {
    format!("{PREFIX}authority")
}

/// The key that says which controller makes the first operator token.
pub fn bootstrap_key() -> String {
    format!("{PREFIX}bootstrap")
}

/// Checks that this authority is the fleet's; the first controller of a fleet makes it so. Safe to repeat and to race.
pub async fn belong(store: &SharedStore, own: &Digest) -> Result<(), FleetError> {
    let (authority, generation, moving) = (authority_key(), generation_key(), moving_key());
    loop {
        if store.get(&moving).await.map_err(RecordError::Store)?.is_some() {
            return Err(FleetError::HalfMoved);
        }
        if let Some(entry) = store.get(&authority).await.map_err(RecordError::Store)? {
            let AuthorityRecord { fingerprint } = decode(&authority, &entry.value)?;
            if fingerprint == *own {
                return Ok(());
            }
            return Err(FleetError::AnotherAuthority { standing: fingerprint, own: own.clone() });
        }
        let mut transaction = Transaction {
            when: vec![Compare::Modified(authority.clone(), 0), Compare::Modified(moving.clone(), 0)],
            then: vec![put(authority.clone(), &AuthorityRecord { fingerprint: own.clone() })?],
        };
        if store.get(&generation).await.map_err(RecordError::Store)?.is_none() {
            transaction.when.push(Compare::Modified(generation.clone(), 0));
            transaction.then.push(put(generation.clone(), &Generation { id: Uuid::new_v4(), number: 1 })?);
        }
        store.commit(transaction).await.map_err(RecordError::Store)?;
    }
}

/// Raises the number of the store's generation, which says that it was restored from a copy: from then on hosts do not
/// follow a controller that works on what was before. Returns what stands then; `None`: there is no fleet in the store.
pub async fn raise_generation(store: &SharedStore) -> Result<Option<Generation>, RecordError> {
    let key = generation_key();
    loop {
        let Some(entry) = store.get(&key).await? else { return Ok(None) };
        let standing: Generation = decode(&key, &entry.value)?;
        let raised = Generation { number: standing.number + 1, ..standing };
        let transaction = Transaction {
            when: vec![Compare::Modified(key.clone(), entry.modified)],
            then: vec![put(key.clone(), &raised)?],
        };
        if let Commit::Done(_) = store.commit(transaction).await? {
            return Ok(Some(raised));
        }
    }
}

/// Says whether this controller is the one that makes the first operator token; of several that start at once, one is.
pub async fn may_bootstrap(store: &SharedStore, own: &ControllerId) -> Result<bool, RecordError> {
    let key = bootstrap_key();
    let claim = Transaction { when: vec![Compare::Modified(key.clone(), 0)], then: vec![put(key.clone(), own)?] };
    if let Commit::Done(_) = store.commit(claim).await? {
        return Ok(true);
    }
    // It may have been killed before it wrote the token down.
    let standing = store.get(&key).await?.map(|entry| decode::<ControllerId>(&key, &entry.value)).transpose()?;
    Ok(standing.as_ref() == Some(own))
}
