//! What an attempt leaves behind besides its log: the diff of its work. One object an attempt, replaced as a whole.
//!
//! An attempt that lost its job may still write its own, and never another one's.

use bytes::Bytes;
use devfleet_shared::id::{AttemptId, JobId};

use crate::files::{Files, FilesError};

/// The largest diff that is kept, in bytes. Hosts cut at the same size.
pub const DIFF_BYTES: usize = 1 << 20;

/// The artifacts of all jobs.
#[derive(Debug, Clone)]
pub struct Artifacts {
    files: Files,
}

/// A diff as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDiff {
    /// The text.
    pub text: String,
    /// It was longer than is kept.
    pub truncated: bool,
}

impl Artifacts {
    /// Keeps artifacts among these files.
    pub fn new(files: Files) -> Self {
        Self { files }
    }

    /// Keeps an attempt's diff, durably. A later one replaces it.
    pub async fn keep_diff(
        &self,
        job: &JobId,
        attempt: &AttemptId,
        text: &str,
        truncated: bool,
    ) -> Result<(), FilesError> {
        let mark = if truncated { "truncated\n" } else { "whole\n" };
        self.files.put(&name(job, attempt), Bytes::from([mark, text].concat())).await
    }

    /// Reads an attempt's diff; `None` if it left none.
    pub async fn diff(&self, job: &JobId, attempt: &AttemptId) -> Result<Option<KeptDiff>, FilesError> {
        let Some(bytes) = self.files.get(&name(job, attempt)).await? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        let (mark, text) = text.split_once('\n').unwrap_or(("whole", &text));
        Ok(Some(KeptDiff { text: text.to_owned(), truncated: mark == "truncated" }))
    }
}

fn name(job: &JobId, attempt: &AttemptId) -> String {
    format!("artifacts/{job}/{attempt}.diff")
}
