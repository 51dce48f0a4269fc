//! What a job leaves behind besides its log: the diff of its work. One file a job, replaced as a whole.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use devfleet_shared::id::JobId;

/// The largest diff that is kept, in bytes. Hosts cut at the same size.
pub const DIFF_BYTES: usize = 1 << 20;

/// The artifacts of all jobs.
#[derive(Debug, Clone)]
pub struct Artifacts {
    dir: PathBuf,
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
    /// Opens the directory, and makes it if it does not exist.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Keeps a job's diff, durably. A later one replaces it.
    pub fn keep_diff(&self, job: &JobId, text: &str, truncated: bool) -> io::Result<()> {
        let path = self.path(job);
        let fresh = path.with_extension("new");
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(if truncated { b"truncated\n" } else { b"whole\n" })?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        std::fs::File::open(&self.dir)?.sync_all()
    }

    /// Reads a job's diff; `None` if it left none.
    pub fn diff(&self, job: &JobId) -> io::Result<Option<KeptDiff>> {
        let text = match std::fs::read_to_string(self.path(job)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (mark, text) = text.split_once('\n').unwrap_or(("whole", &text));
        Ok(Some(KeptDiff { text: text.to_owned(), truncated: mark == "truncated" }))
    }

    fn path(&self, job: &JobId) -> PathBuf {
        self.dir.join(format!("{job}.diff"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_diff_of_a_job_is_the_one_that_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let artifacts = Artifacts::open(dir.path()).expect("opened");
        let job = JobId::random();
        assert_eq!(artifacts.diff(&job).expect("read"), None);
        artifacts.keep_diff(&job, "first", false).expect("kept");
        artifacts.keep_diff(&job, "+second\n", true).expect("kept");
        let kept = artifacts.diff(&job).expect("read").expect("there is one");
        assert_eq!(kept, KeptDiff { text: "+second\n".into(), truncated: true });
    }
}
