//! One at a time per repository: within this process, and between processes on one folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::OwnedMutexGuard;

use super::{MirrorError, on};

/// The locks of this process.
#[derive(Default)]
pub(super) struct Locks {
    held: Mutex<BTreeMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>,
}

/// Holds a repository until it is dropped.
pub(super) struct Lock {
    _process: OwnedMutexGuard<()>,
    _file: File,
}

impl Locks {
    /// Waits for a folder, by the file `<folder>.lock`.
    pub(super) async fn lock(&self, dir: &Path, within: Duration) -> Result<Lock, MirrorError> {
        let action = || "wait for another user of the repository's mirror".to_owned();
        let timeout = |_| MirrorError::Timeout { action: action(), after: within };
        tokio::time::timeout(within, self.wait(dir)).await.map_err(timeout)?
    }

    /// Waits for a folder that no other process uses.
    pub(super) async fn turn(&self, dir: &Path) -> OwnedMutexGuard<()> {
        self.of(dir).lock_owned().await
    }

    async fn wait(&self, dir: &Path) -> Result<Lock, MirrorError> {
        let process = self.turn(dir).await;
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(on("make folder", parent))?;
        }
        let path = dir.with_extension("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(on("open", &path))?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _process: process, _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(errno) => return Err(on("lock", &path)(errno.into())),
            }
        }
    }

    fn of(&self, dir: &Path) -> Arc<tokio::sync::Mutex<()>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = held.get(dir).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        held.insert(dir.to_owned(), Arc::downgrade(&lock));
        lock
    }
}
