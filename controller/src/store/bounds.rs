//! What every store refuses, so that what works on one works on all: the limits of etcd, and the shapes it does not take.

use std::collections::BTreeSet;

use super::{Change, Compare, StoreError, Transaction};

const KEY_BYTES: usize = 1 << 10;
const VALUE_BYTES: usize = 1 << 20;
/// As etcd's `--max-request-bytes`, with room for what the client adds.
const TRANSACTION_BYTES: usize = (3 << 19) - (4 << 10);
/// As etcd's `--max-txn-ops`, less the one that the client adds.
const OPERATIONS: usize = 127;

/// Refuses what some store could not carry out.
pub(super) fn check_bounds(transaction: &Transaction) -> Result<(), StoreError> {
    let refuse = |what, rule| Err(StoreError::OutOfBounds { what, rule });
    if transaction.when.len() > OPERATIONS || transaction.then.len() > OPERATIONS {
        return refuse("a transaction", "it has at most 127 conditions and 127 changes");
    }
    let compared = transaction.when.iter().map(|compare| match compare {
        Compare::Modified(key, _) | Compare::Exists(key) => key,
    });
    let changed = transaction.then.iter().map(|change| match change {
        Change::Put { key, .. } | Change::Delete(key) | Change::DeletePrefix(key) => key,
    });
    let (mut bytes, mut puts, mut deletes) = (0, BTreeSet::new(), Vec::new());
    for key in compared.chain(changed) {
        if key.is_empty() || key.len() > KEY_BYTES {
            return refuse("a key", "it has 1 to 1024 bytes");
        }
        bytes += key.len();
    }
    for change in &transaction.then {
        match change {
            Change::Put { key, value, .. } => {
                if value.len() > VALUE_BYTES {
                    return refuse("a value", "it has at most 1 MiB");
                }
                bytes += value.len();
                if !puts.insert(key.as_str()) {
                    return refuse("a transaction", "it writes a key only once");
                }
            }
            Change::Delete(_) | Change::DeletePrefix(_) => deletes.push(change),
        }
    }
    if bytes > TRANSACTION_BYTES {
        return refuse("a transaction", "its keys and values have at most 1.5 MiB together");
    }
    let both = |put: &&str| {
        deletes.iter().any(|change| match change {
            Change::Delete(key) => key == put,
            Change::DeletePrefix(prefix) => put.starts_with(prefix.as_str()),
            Change::Put { .. } => false,
        })
    };
    if puts.iter().any(both) {
        return refuse("a transaction", "it does not both write and delete a key");
    }
    Ok(())
}
