//! The file: four redb tables, read whole at the start and written one batch at a time.
//!
//! A new file is made under another name and linked into place, so an empty or half file at the store's path is damage
//! and never a beginning. redb checks every page's checksum at the start; where it panics on bytes that no redb wrote,
//! the panic ends here.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::batch::Changes;
use super::state::Events;
use crate::store::{Entry, LeaseId, Revision, StoreError, WatchEvent};

/// key → created, modified, lease (0: none), value.
const CURRENT: TableDefinition<'_, &str, (u64, u64, i64, &[u8])> = TableDefinition::new("current");
/// revision, number in it → event.
const HISTORY: TableDefinition<'_, (u64, u32), Row<'_>> = TableDefinition::new("history");
/// lease → its time in milliseconds.
const LEASES: TableDefinition<'_, i64, u64> = TableDefinition::new("leases");
/// name → number.
const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");

/// What happened, key, created, lease, value.
type Row<'a> = (u8, &'a str, u64, i64, &'a [u8]);

const FORMAT: u64 = 1;
const PUT: u8 = 1;
const DELETED: u8 = 2;
const CACHE_BYTES: usize = 32 << 20;

/// What a file holds, history aside.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) entries: Vec<Entry>,
    pub(super) leases: Vec<(LeaseId, Duration)>,
    pub(super) next_lease: i64,
    pub(super) head: Revision,
    pub(super) oldest: Revision,
}

/// An open file.
pub(super) struct StoreFile {
    path: PathBuf,
    database: Database,
}

/// How thoroughly a file is looked at when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Every checksum.
    Whole,
    /// As much as is needed; for a file that this process itself wrote a moment ago.
    Quick,
}

impl StoreFile {
    /// Opens a file, or makes one if nothing stands at the path.
    pub(super) fn open(path: &Path, look: Look) -> Result<(StoreFile, Contents), StoreError> {
        if !path.try_exists().map_err(unavailable)? {
            create(path)?;
        }
        if path.metadata().map_err(unavailable)?.len() == 0 {
            return Err(damaged(path, "the file is empty"));
        }
        guarded(path, || {
            let handle = OpenOptions::new().read(true).write(true).open(path).map_err(unavailable)?;
            let file = StoreFile { path: path.to_owned(), database: database(path, handle, look)? };
            let contents = file.contents()?;
            Ok((file, contents))
        })
    }

    /// Writes a batch. Durable when it returns.
    pub(super) fn write(&self, changes: &Changes) -> Result<(), StoreError> {
        guarded(&self.path, || self.try_write(changes).map_err(|error| self.failed(error)))
    }

    /// Reads whole revisions of history from one on, until there are at least so many events.
    pub(super) fn history(&self, from: Revision, enough: usize) -> Result<Vec<(Revision, Events)>, StoreError> {
        guarded(&self.path, || self.try_history(from, enough).map_err(|error| self.failed(error)))
    }

    fn failed(&self, error: redb::Error) -> StoreError {
        translate(&self.path, error)
    }

    fn contents(&self) -> Result<Contents, StoreError> {
        let contents = self.try_contents().map_err(|error| self.failed(error))?;
        contents.ok_or_else(|| damaged(&self.path, "it is not a devfleet store, or one of a newer version"))
    }

    /// Reads everything but history; `None` if the facts are missing or do not fit the entries.
    fn try_contents(&self) -> Result<Option<Contents>, redb::Error> {
        let reading = self.database.begin_read()?;
        let facts = reading.open_table(FACTS)?;
        let fact = |name: &str| Ok::<_, redb::Error>(facts.get(name)?.map(|value| value.value()));
        let (Some(FORMAT), Some(head), Some(oldest), Some(next_lease)) =
            (fact("format")?, fact("head")?, fact("oldest")?, fact("next_lease")?)
        else {
            return Ok(None);
        };
        let Ok(next_lease) = i64::try_from(next_lease) else { return Ok(None) };
        let mut entries = Vec::new();
        for row in reading.open_table(CURRENT)?.iter()? {
            let (key, value) = row?;
            let (created, modified, lease, value) = value.value();
            if modified > head {
                return Ok(None);
            }
            entries.push(entry(key.value(), created, modified, lease, value));
        }
        let mut leases = Vec::new();
        for row in reading.open_table(LEASES)?.iter()? {
            let (id, ttl) = row?;
            leases.push((LeaseId(id.value()), Duration::from_millis(ttl.value())));
        }
        Ok(Some(Contents { entries, leases, next_lease, head, oldest }))
    }

    fn try_write(&self, changes: &Changes) -> Result<(), redb::Error> {
        let writing = self.database.begin_write()?;
        {
            let mut current = writing.open_table(CURRENT)?;
            for (key, entry) in &changes.entries {
                match entry {
                    Some(Entry { created, modified, lease, value, .. }) => {
                        current.insert(key.as_str(), (*created, *modified, number(*lease), value.as_slice()))?;
                    }
                    None => drop(current.remove(key.as_str())?),
                }
            }
            let mut history = writing.open_table(HISTORY)?;
            for (revision, events) in &changes.history {
                for (index, event) in (0..).zip(events.iter()) {
                    history.insert((*revision, index), row(event))?;
                }
            }
            let mut facts = writing.open_table(FACTS)?;
            facts.insert("head", changes.head)?;
            facts.insert("next_lease", changes.next_lease.unsigned_abs())?;
            let before = facts.insert("oldest", changes.oldest)?.map_or(0, |oldest| oldest.value());
            if before < changes.oldest {
                history.retain_in(..(changes.oldest, 0), |_, _| false)?;
            }
            let mut leases = writing.open_table(LEASES)?;
            for (id, ttl) in &changes.granted {
                leases.insert(id.0, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
            }
            for id in &changes.ended {
                leases.remove(id.0)?;
            }
        }
        writing.commit()?;
        Ok(())
    }

    fn try_history(&self, from: Revision, enough: usize) -> Result<Vec<(Revision, Events)>, redb::Error> {
        let reading = self.database.begin_read()?;
        let (mut found, mut open, mut count): (Vec<(Revision, Events)>, Vec<WatchEvent>, usize) = Default::default();
        let mut at = from;
        for row in reading.open_table(HISTORY)?.range((from, 0)..)? {
            let (position, value) = row?;
            let (revision, _) = position.value();
            if revision != at {
                if !open.is_empty() {
                    found.push((at, std::mem::take(&mut open).into()));
                }
                if count >= enough {
                    return Ok(found);
                }
                at = revision;
            }
            let (what, key, created, lease, value) = value.value();
            open.push(match what {
                DELETED => WatchEvent::Deleted { key: key.to_owned(), revision },
                _ => WatchEvent::Put(entry(key, created, revision, lease, value)),
            });
            count += 1;
        }
        if !open.is_empty() {
            found.push((at, open.into()));
        }
        Ok(found)
    }
}

/// Makes a new file whole before it has the store's name. If another process is faster, its file stays.
fn create(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(unavailable)?;
    let part = path.with_extension(format!("{}.part", std::process::id()));
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(unavailable(error)),
        _ => {}
    }
    let made = guarded(path, || {
        let handle = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&part);
        let made = database(path, handle.map_err(unavailable)?, Look::Quick)?;
        begin(&made).map_err(|error| translate(path, error))
    });
    let linked = made.and_then(|()| match std::fs::hard_link(&part, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(unavailable(error)),
        _ => Ok(()),
    });
    drop(std::fs::remove_file(&part));
    linked?;
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(unavailable)
}

fn begin(database: &Database) -> Result<(), redb::Error> {
    let writing = database.begin_write()?;
    {
        writing.open_table(CURRENT)?;
        writing.open_table(HISTORY)?;
        writing.open_table(LEASES)?;
        let mut facts = writing.open_table(FACTS)?;
        for (name, number) in [("format", FORMAT), ("head", 0), ("oldest", 1), ("next_lease", 1)] {
            facts.insert(name, number)?;
        }
    }
    writing.commit()?;
    Ok(())
}

fn database(path: &Path, handle: File, look: Look) -> Result<Database, StoreError> {
    let opened = FileBackend::new(handle).and_then(|backend| {
        Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(look == Look::Whole)
            .create_with_backend(backend)
    });
    opened.map_err(|error| translate(path, error.into()))
}

fn entry(key: &str, created: Revision, modified: Revision, lease: i64, value: &[u8]) -> Entry {
    let lease = (lease != 0).then_some(LeaseId(lease));
    Entry { key: key.to_owned(), value: value.to_vec(), created, modified, lease }
}

fn row(event: &WatchEvent) -> Row<'_> {
    match event {
        WatchEvent::Put(entry) => (PUT, &entry.key, entry.created, number(entry.lease), &entry.value),
        WatchEvent::Deleted { key, .. } => (DELETED, key, 0, 0, &[]),
    }
}

fn number(lease: Option<LeaseId>) -> i64 {
    lease.map_or(0, |lease| lease.0)
}

/// Runs what may panic on a damaged file.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(damaged(path, "reading it fails inside redb")))
}

fn damaged(path: &Path, detail: impl Into<String>) -> StoreError {
    StoreError::Damaged { path: path.display().to_string(), detail: detail.into() }
}

fn unavailable(error: std::io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::DiskFull,
        _ => StoreError::Unavailable(Box::new(error)),
    }
}

fn translate(path: &Path, error: redb::Error) -> StoreError {
    use redb::Error as Redb;
    match error {
        Redb::DatabaseAlreadyOpen | Redb::LockProtocolMismatch => {
            StoreError::InUse { path: path.display().to_string() }
        }
        Redb::Io(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            damaged(path, error.to_string())
        }
        Redb::Io(error) => unavailable(error),
        Redb::Corrupted(_)
        | Redb::UpgradeRequired(_)
        | Redb::RepairAborted
        | Redb::TableTypeMismatch { .. }
        | Redb::TableIsMultimap(_)
        | Redb::TableDoesNotExist(_)
        | Redb::TypeDefinitionChanged { .. } => damaged(path, error.to_string()),
        other => StoreError::Unavailable(Box::new(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_over_a_damaged_file_becomes_an_error() {
        let caught: Result<(), StoreError> = guarded(Path::new("store.redb"), || panic!("as redb does on some damage"));
        assert!(matches!(caught, Err(StoreError::Damaged { path, .. }) if path == "store.redb"));
    }
}
