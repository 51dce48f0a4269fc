//! Merge requests of plain git: records in the store, numbered in the order they were opened.

use std::time::Duration;

use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use devfleet_shared::id::Digest;

use super::super::text::{cap, one_line};
use super::super::{ForgeError, MergeRequest, MergeRequestDraft};
use crate::store::{Change, Commit, Compare, SharedStore, StoreError, Transaction};

/// How often a lost race, or a store that does not answer, is met with another look.
const LOOKS: u32 = 32;
const DESCRIPTION_BYTES: usize = 256 << 10;

/// Returns the key of a source branch's merge request.
pub fn merge_request_key(repository: &str, source_branch: &str) -> String {
    format!("/devfleet/v1/merge-requests/{}/{source_branch}", Digest::of(repository.as_bytes()).hex())
}

/// Returns the key of the last number given out.
fn number_key(repository: &str) -> String {
    format!("/devfleet/v1/merge-request-numbers/{}", Digest::of(repository.as_bytes()).hex())
}

/// Returns the merge request of this source branch, or records one under the next number.
pub(super) async fn ensure(
    store: &SharedStore,
    repository: &str,
    draft: &MergeRequestDraft,
) -> Result<MergeRequest, ForgeError> {
    let pace = Backoff { first: Duration::from_millis(5), ceiling: Duration::from_millis(500) };
    let mut seen = "other writers were quicker each time".to_owned();
    for tries in 1..=LOOKS {
        match look_or_write(store, repository, draft).await {
            Ok(Some(settled)) => return Ok(settled),
            Ok(None) => {}
            Err(error) if error.is_retryable() => seen = Chain(&error).to_string(),
            Err(error) => return Err(ForgeError::Refused { action: action(draft), detail: Chain(&error).to_string() }),
        }
        tokio::time::sleep(pace.pause(tries, Backoff::jitter())).await;
    }
    Err(ForgeError::Unavailable { action: action(draft), detail: seen, retry_after: None })
}

fn action(draft: &MergeRequestDraft) -> String {
    format!("record the merge request of {}", draft.source_branch)
}

/// One look at the store and one attempt to write; `None` when another was quicker.
async fn look_or_write(
    store: &SharedStore,
    repository: &str,
    draft: &MergeRequestDraft,
) -> Result<Option<MergeRequest>, StoreError> {
    let (key, number_key) = (merge_request_key(repository, &draft.source_branch), number_key(repository));
    if let Some(entry) = store.get(&key).await? {
        return Ok(Some(read(&key, &entry.value)?));
    }
    let last = store.get(&number_key).await?;
    let number = last.as_ref().map_or(Ok(0), |entry| read::<u64>(&number_key, &entry.value))? + 1;
    let made = MergeRequest {
        number,
        url: String::new(),
        title: one_line(&draft.title, 255),
        description: cap(&draft.description, DESCRIPTION_BYTES),
        source_branch: draft.source_branch.clone(),
        target_branch: draft.target_branch.clone(),
        commit: draft.commit.clone(),
    };
    let put = |key: &str, value: Vec<u8>| Change::Put { key: key.to_owned(), value, lease: None };
    let transaction = Transaction {
        when: vec![
            Compare::Modified(key.clone(), 0),
            Compare::Modified(number_key.clone(), last.map_or(0, |entry| entry.modified)),
        ],
        then: vec![put(&key, write(&key, &made)?), put(&number_key, number.to_string().into_bytes())],
    };
    Ok(match store.commit(transaction).await? {
        Commit::Done(_) => Some(made),
        Commit::Conflict => None,
    })
}

fn read<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value)
        .map_err(|error| StoreError::Damaged { path: key.to_owned(), detail: error.to_string() })
}

fn write(key: &str, made: &MergeRequest) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(made).map_err(|error| StoreError::Damaged { path: key.to_owned(), detail: error.to_string() })
}
