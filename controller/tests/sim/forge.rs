//! The forge of the simulation, which a mutant keeps from looking for what is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use devfleet_controller::forge::memory::MemoryForge;
use devfleet_controller::forge::{Base, CiConfig, Forge, ForgeError, GitAccess, MergeRequest, MergeRequestDraft};
use devfleet_shared::secret::Secret;

/// Opens a merge request each time it is asked.
pub(crate) struct Blind(pub(crate) Arc<MemoryForge>, pub(crate) AtomicUsize);

#[async_trait]
impl Forge for Blind {
    async fn base(&self, branch: Option<&str>) -> Result<Base, ForgeError> {
        self.0.base(branch).await
    }

    async fn ci_config(&self, commit: &str) -> Result<CiConfig, ForgeError> {
        self.0.ci_config(commit).await
    }

    async fn read_file(&self, commit: &str, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        self.0.read_file(commit, path).await
    }

    async fn git_access(&self) -> Result<GitAccess, ForgeError> {
        self.0.git_access().await
    }

    async fn ensure_merge_request(&self, draft: &MergeRequestDraft) -> Result<MergeRequest, ForgeError> {
        let number = self.1.fetch_add(1, Ordering::Relaxed);
        let source_branch = format!("{}-{number}", draft.source_branch);
        self.0.ensure_merge_request(&MergeRequestDraft { source_branch, ..draft.clone() }).await
    }

    async fn ensure_note(&self, issue: u64, marker: &str, markdown: &str) -> Result<(), ForgeError> {
        self.0.ensure_note(issue, marker, markdown).await
    }

    async fn ci_variables(&self, names: &[String]) -> Result<BTreeMap<String, Result<Secret, String>>, ForgeError> {
        self.0.ci_variables(names).await
    }

    async fn check(&self) -> Result<String, ForgeError> {
        self.0.check().await
    }
}
