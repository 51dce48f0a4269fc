//! What is too large for the store: logs and diffs, as objects that are written once, in a directory or in a bucket.
//!
//! logs, artifacts ─▶ `Files`: put, read, list, delete ─▶ directory (synced) │ S3 │ memory
//!
//! Every verb is safe to repeat. An object is there whole or not at all, and when `put` answered it is durable.

mod opening;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutPayload};

pub use opening::{OpenFilesError, open};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {name}: {advice}")]
pub struct FilesError {
    action: &'static str,
    name: String,
    advice: &'static str,
    is_retryable: bool,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl FilesError {
    /// Says whether the same call may go well later, without a person who changes something.
    pub fn is_retryable(&self) -> bool {
        self.is_retryable
    }

    fn of(action: &'static str, name: &str, error: Error) -> FilesError {
        const DENIED: &str = "the storage refuses this controller; check `files.access_key`, `files.secret_key` and their right to list, read, write and delete there (or the directory's owner)";
        let (advice, is_retryable) = match &error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (DENIED, false),
            Error::NotFound { .. } => ("there is no such place; check `files.bucket` and `files.endpoint`", false),
            _ => ("the storage cannot do it now; it is tried again", true),
        };
        let source = match error {
            Error::Generic { source, .. }
            | Error::NotFound { source, .. }
            | Error::PermissionDenied { source, .. }
            | Error::Unauthenticated { source, .. } => source,
            other => Box::new(other),
        };
        FilesError { action, name: name.to_owned(), advice, is_retryable, source }
    }
}

/// The objects of a fleet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Files {
    objects: Arc<dyn ObjectStore>,
}

impl Files {
    /// Keeps objects in a storage that is there already.
    pub fn on(objects: Arc<dyn ObjectStore>) -> Files {
        Files { objects }
    }

    /// Keeps objects in memory: for simulations.
    pub fn in_memory() -> Files {
        Files::on(Arc::new(object_store::memory::InMemory::new()))
    }

    /// Keeps objects in a directory, which is made if it does not exist.
    pub fn in_directory(path: &std::path::Path) -> std::io::Result<Files> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let directory = object_store::local::LocalFileSystem::new_with_prefix(path).map_err(std::io::Error::other)?;
        Ok(Files::on(Arc::new(directory.with_fsync(true))))
    }

    /// Writes an object, durably, over any that has its name.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), FilesError> {
        let written = self.objects.put(&Path::from(name), PutPayload::from_bytes(bytes)).await;
        written.map(drop).map_err(|error| FilesError::of("write", name, error))
    }

    /// Reads an object; `None` if there is none of this name.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, FilesError> {
        let read = async { self.objects.get(&Path::from(name)).await?.bytes().await };
        found(read.await, name)
    }

    /// Reads some bytes of an object; `None` if there is none of this name.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, FilesError> {
        found(self.objects.get_range(&Path::from(name), range).await, name)
    }

    /// Lists the objects in a folder and below it: what follows the folder in their names, and their sizes in bytes.
    pub async fn list(&self, folder: &str) -> Result<Vec<(String, u64)>, FilesError> {
        let prefix = Path::from(folder);
        let found: Vec<_> = self
            .objects
            .list(Some(&prefix))
            .try_collect()
            .await
            .map_err(|error| FilesError::of("list", folder, error))?;
        let rest = |object: object_store::ObjectMeta| {
            let name = object.location.as_ref().strip_prefix(prefix.as_ref())?.strip_prefix('/')?.to_owned();
            Some((name, object.size))
        };
        Ok(found.into_iter().filter_map(rest).collect())
    }

    /// Deletes an object; one that is not there is already so.
    pub async fn delete(&self, name: &str) -> Result<(), FilesError> {
        match self.objects.delete(&Path::from(name)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(FilesError::of("delete", name, error)),
        }
    }

    /// Tries every verb once, on an object that nobody else uses.
    pub async fn try_out(&self) -> Result<(), FilesError> {
        let folder = format!("probes/{}", uuid::Uuid::new_v4());
        let (name, text) = (format!("{folder}/probe"), Bytes::from_static(b"devfleet"));
        self.put(&name, text.clone()).await?;
        let (read, listed) = (self.get(&name).await?, self.list(&folder).await?);
        self.delete(&name).await?;
        if read.as_ref() != Some(&text) || listed.len() != 1 {
            let source = "what was written is not what is read".into();
            let advice = "the storage does not keep what it takes; look at it";
            return Err(FilesError { action: "read", name, advice, is_retryable: false, source });
        }
        Ok(())
    }
}

fn found(read: Result<Bytes, Error>, name: &str) -> Result<Option<Bytes>, FilesError> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::NotFound { source, .. }) if !source.to_string().contains("NoSuchBucket") => Ok(None),
        Err(error) => Err(FilesError::of("read", name, error)),
    }
}
