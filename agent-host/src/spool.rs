//! Log records on disk until the controller has them: one append-only file of length-delimited records per attempt.
//!
//! recorder ─append─▶ <attempt>.log ─sync, read─▶ shipper ─▶ controller
//!                    <attempt>.json: job, fence, what is acknowledged
//!
//! Only what is synced may be shipped, so what the controller has is never ahead of the disk. What was not synced when
//! the machine lost power is simply missing: the recorder reads it from the engine once more.

pub mod frames;
pub mod shipping;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devfleet_proto::v1::LogRecord;
use devfleet_proto::v1::log_record::Channel;
use devfleet_shared::id::{AttemptId, JobId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::warn;

use frames::{Scan, encode, scan};

/// Why the spool failed.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn on<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SpoolError + 'a {
    move |source| SpoolError::File { action, path: path.to_owned(), source }
}

/// What the file beside the records says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sidecar {
    job: JobId,
    attempt: AttemptId,
    fence: u64,
    /// The controller has every byte before it.
    acknowledged: u64,
    /// Which offset the file's first byte has; not 0 only after damage.
    base: u64,
}

/// All spools of this host. Cheap to clone.
#[derive(Clone)]
pub struct Spools {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    changed: Arc<Notify>,
    all: Mutex<BTreeMap<AttemptId, Spool>>,
}

impl Spools {
    /// Opens the folder and every spool that is left in it.
    pub fn open_dir(dir: PathBuf) -> Result<Spools, SpoolError> {
        fs::create_dir_all(&dir).map_err(on("make folder", &dir))?;
        let mut all = BTreeMap::new();
        let changed = Arc::new(Notify::new());
        for entry in fs::read_dir(&dir).map_err(on("list", &dir))? {
            let path = entry.map_err(on("list", &dir))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read_sidecar(&path)? {
                    Some(sidecar) => {
                        let spool = Spool::load(&dir, sidecar, changed.clone())?;
                        all.insert(spool.attempt().clone(), spool);
                    }
                    None => warn!(path = %path.display(), "the file beside a spool cannot be read; the spool stays"),
                }
            }
        }
        Ok(Spools { shared: Arc::new(Shared { dir, changed, all: Mutex::new(all) }) })
    }

    /// Opens an attempt's spool, new or left from before.
    pub fn open(&self, job: &JobId, attempt: &AttemptId, fence: u64) -> Result<Spool, SpoolError> {
        let mut all = self.all();
        if let Some(spool) = all.get(attempt).filter(|spool| !spool.is_gone()) {
            spool.renew(fence)?;
            return Ok(spool.clone());
        }
        let sidecar = Sidecar { job: job.clone(), attempt: attempt.clone(), fence, acknowledged: 0, base: 0 };
        write_sidecar(&self.shared.dir, &sidecar, true)?;
        let spool = Spool::load(&self.shared.dir, sidecar, self.shared.changed.clone())?;
        all.insert(attempt.clone(), spool.clone());
        Ok(spool)
    }

    /// Lists the spools that the controller does not have wholly.
    pub fn list(&self) -> Vec<Spool> {
        let mut all = self.all();
        all.retain(|_, spool| !spool.is_gone());
        all.values().cloned().collect()
    }

    /// Waits until something was appended since the last wait.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Spool>> {
        self.shared.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One attempt's records. Cheap to clone. Offsets are those of the wire: they outlive damage to the file.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

struct Inner {
    job: JobId,
    attempt: AttemptId,
    dir: PathBuf,
    path: PathBuf,
    file: File,
    changed: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sidecar: Sidecar,
    /// Bytes in the file.
    size: u64,
    /// Bytes in the file that outlive a power cut.
    synced: u64,
    complete: bool,
    gone: bool,
}

impl Spool {
    /// Opens the file; cuts off a torn record, and everything behind a damaged one, which leaves a mark.
    fn load(dir: &Path, sidecar: Sidecar, changed: Arc<Notify>) -> Result<Spool, SpoolError> {
        let path = dir.join(format!("{}.log", sidecar.attempt));
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(on("open", &path))?;
        let bytes = fs::read(&path).map_err(on("read", &path))?;
        let mut complete = false;
        let Scan { whole, broken } = scan(&bytes, |record| complete = record.channel() == Channel::End);
        let size = whole as u64;
        file.set_len(size).map_err(on("cut", &path))?;
        let state = State { sidecar, size, synced: 0, complete, gone: false };
        let inner = Inner {
            job: state.sidecar.job.clone(),
            attempt: state.sidecar.attempt.clone(),
            dir: dir.to_owned(),
            path,
            file,
            changed,
            state: Mutex::new(state),
        };
        let spool = Spool { inner: Arc::new(inner) };
        spool.settle_base()?;
        if broken && !complete {
            warn!(attempt = %spool.attempt(), kept_bytes = size, "a spool was damaged; its end is cut off");
            spool.append(&damage_mark(spool.attempt()))?;
        }
        Ok(spool)
    }

    /// Returns the job.
    pub fn job(&self) -> &JobId {
        &self.inner.job
    }

    /// Returns the attempt.
    pub fn attempt(&self) -> &AttemptId {
        &self.inner.attempt
    }

    /// Returns the fence under which the log is shipped.
    pub fn fence(&self) -> u64 {
        self.state().sidecar.fence
    }

    /// Adds a record.
    pub fn append(&self, record: &LogRecord) -> Result<(), SpoolError> {
        self.append_all(std::slice::from_ref(record))
    }

    /// Adds records with one write: a killed daemon leaves all of them or none. Dropped once the spool is removed.
    pub fn append_all(&self, records: &[LogRecord]) -> Result<(), SpoolError> {
        let bytes = encode(records);
        let mut state = self.state();
        if state.gone {
            return Ok(());
        }
        self.inner.file.write_all_at(&bytes, state.size).map_err(on("write", &self.inner.path))?;
        state.size += bytes.len() as u64;
        state.complete |= records.iter().any(|record| record.channel() == Channel::End);
        drop(state);
        self.inner.changed.notify_one();
        Ok(())
    }

    /// Hands every record to `see`, in order.
    pub fn records(&self, see: impl FnMut(LogRecord)) -> Result<(), SpoolError> {
        if !self.is_gone() {
            let bytes = fs::read(&self.inner.path).map_err(on("read", &self.inner.path))?;
            scan(&bytes, see);
        }
        Ok(())
    }

    /// Makes everything appended outlive a power cut. Blocks for as long as the disk takes.
    pub fn sync(&self) -> Result<(), SpoolError> {
        let (size, synced) = {
            let state = self.state();
            (state.size, state.synced)
        };
        if size > synced {
            self.inner.file.sync_data().map_err(on("sync", &self.inner.path))?;
            let mut state = self.state();
            state.synced = state.synced.max(size);
        }
        Ok(())
    }

    /// Reads at most `max` synced bytes from an offset on.
    pub fn read(&self, offset: u64, max: usize) -> Result<Vec<u8>, SpoolError> {
        let (base, synced) = {
            let state = self.state();
            (state.sidecar.base, state.synced)
        };
        let at = offset.saturating_sub(base);
        let mut bytes = vec![0; synced.saturating_sub(at).min(max as u64) as usize];
        self.inner.file.read_exact_at(&mut bytes, at).map_err(on("read", &self.inner.path))?;
        Ok(bytes)
    }

    /// Returns the offset of the end.
    pub fn len(&self) -> u64 {
        let state = self.state();
        state.sidecar.base + state.size
    }

    /// Says whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the offset up to which bytes may be shipped.
    pub fn synced(&self) -> u64 {
        let state = self.state();
        state.sidecar.base + state.synced
    }

    /// Returns the offset before which the controller has everything.
    pub fn acknowledged(&self) -> u64 {
        self.state().sidecar.acknowledged
    }

    /// Takes the controller's word for what it has, be it less or more than before.
    pub fn acknowledge(&self, offset: u64) -> Result<(), SpoolError> {
        let mut state = self.state();
        if state.gone || state.sidecar.acknowledged == offset {
            return Ok(());
        }
        state.sidecar.acknowledged = offset;
        state.sidecar.base = state.sidecar.base.min(offset);
        state.cover_acknowledged();
        write_sidecar(&self.inner.dir, &state.sidecar, false)
    }

    /// Makes the whole log outlive a power cut, after its last record.
    pub fn complete(&self) -> Result<(), SpoolError> {
        self.state().complete = true;
        self.sync()?;
        self.inner.changed.notify_one();
        Ok(())
    }

    /// Says whether nothing more will be appended.
    pub fn is_complete(&self) -> bool {
        self.state().complete
    }

    /// Says whether the controller has the whole log.
    pub fn is_done(&self) -> bool {
        let state = self.state();
        state.complete && state.sidecar.acknowledged >= state.sidecar.base + state.size
    }

    /// Says whether it has been removed.
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// Removes it from disk; later records are dropped.
    pub fn remove(&self) -> Result<(), SpoolError> {
        let mut state = self.state();
        state.gone = true;
        for path in [self.inner.path.clone(), sidecar_path(&self.inner.dir, &self.inner.attempt)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(on("remove", &path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts the end of a file that lost bytes behind what the controller has, for good.
    fn settle_base(&self) -> Result<(), SpoolError> {
        let mut state = self.state();
        let before = state.sidecar.base;
        state.cover_acknowledged();
        match state.sidecar.base == before {
            true => Ok(()),
            false => write_sidecar(&self.inner.dir, &state.sidecar, true),
        }
    }

    fn renew(&self, fence: u64) -> Result<(), SpoolError> {
        let mut state = self.state();
        if state.sidecar.fence == fence {
            return Ok(());
        }
        state.sidecar.fence = fence;
        write_sidecar(&self.inner.dir, &state.sidecar, true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// After damage the file may end before what the controller has: the next byte then goes behind that.
    fn cover_acknowledged(&mut self) {
        let end = self.sidecar.base + self.size;
        self.sidecar.base += self.sidecar.acknowledged.saturating_sub(end);
    }
}

fn damage_mark(attempt: &AttemptId) -> LogRecord {
    LogRecord {
        source: "devfleet".to_owned(),
        channel: Channel::Cut.into(),
        data: b"a part of this log was damaged on the host's disk and is cut out here".to_vec(),
        attempt: attempt.to_string(),
        ..LogRecord::default()
    }
}

fn sidecar_path(dir: &Path, attempt: &AttemptId) -> PathBuf {
    dir.join(format!("{attempt}.json"))
}

fn read_sidecar(path: &Path) -> Result<Option<Sidecar>, SpoolError> {
    let bytes = fs::read(path).map_err(on("read", path))?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Replaces the file at once. Without `sync` a power cut may bring the older one back, which costs only shipping again.
fn write_sidecar(dir: &Path, sidecar: &Sidecar, sync: bool) -> Result<(), SpoolError> {
    let path = sidecar_path(dir, &sidecar.attempt);
    let fresh = path.with_extension("fresh");
    let bytes = serde_json::to_vec(sidecar).map_err(io::Error::from).map_err(on("write", &path))?;
    let written = fs::write(&fresh, bytes).and_then(|()| match sync {
        true => File::open(&fresh)?.sync_all(),
        false => Ok(()),
    });
    written.and_then(|()| fs::rename(&fresh, &path)).map_err(on("write", &path))
}

#[cfg(test)]
mod tests;
