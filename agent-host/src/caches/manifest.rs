//! The manifests of sealed layers: one JSON file each, and beside it the list of the layer's files. A layer is sealed by
//! the rename that puts its manifest there, and its file's time stamp says when a job last used it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use devfleet_shared::clock::Timestamp;

use super::CacheError;
use super::rules::Layer;

fn manifest_path(dir: &Path, volume: &str) -> PathBuf {
    dir.join(format!("{volume}.json"))
}

/// Returns where the list of a layer's files lies.
pub(super) fn listing_path(dir: &Path, volume: &str) -> PathBuf {
    dir.join(format!("{volume}.files"))
}

/// Returns every sealed layer. What cannot be read is no layer.
pub(super) fn load(dir: &Path) -> Vec<Layer> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut layers: Vec<Layer> = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .filter_map(|path| {
            let layer: Layer = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            let used = path.metadata().and_then(|metadata| metadata.modified()).ok()?;
            let used = used.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
            (manifest_path(dir, &layer.volume) == path).then_some(Layer { used: Timestamp(used), ..layer })
        })
        .collect();
    layers.sort_by(|one, other| one.volume.cmp(&other.volume));
    layers
}

/// Seals a layer: the list first, then the manifest, both on the disk when this returns.
pub(super) fn seal(dir: &Path, layer: &Layer, listing: &[u8]) -> Result<(), CacheError> {
    std::fs::create_dir_all(dir).map_err(|source| disk("create", dir, source))?;
    write(dir, &listing_path(dir, &layer.volume), listing)?;
    write_manifest(dir, layer)
}

fn write_manifest(dir: &Path, layer: &Layer) -> Result<(), CacheError> {
    let path = manifest_path(dir, &layer.volume);
    let text = serde_json::to_vec(layer).map_err(|error| disk("write", &path, std::io::Error::other(error)))?;
    write(dir, &path, &text)
}

fn write(dir: &Path, path: &Path, content: &[u8]) -> Result<(), CacheError> {
    let part = path.with_extension("part");
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| disk("write", path, source))
}

/// Writes down that a job uses a layer.
pub(super) fn touch(dir: &Path, volume: &str, now: Timestamp) {
    if let Err(error) = stamp(dir, volume, now) {
        tracing::debug!(volume, %error, "the use of a cache layer is not written down");
    }
}

/// Writes down that every file was looked at, without that being a use.
pub(super) fn checked(dir: &Path, layer: &Layer, now: Timestamp) {
    let outcome = write_manifest(dir, &Layer { checked: now, ..layer.clone() });
    if outcome.is_err() || stamp(dir, &layer.volume, layer.used).is_err() {
        tracing::warn!(layer = layer.volume, "the check of a cache layer is not written down");
    }
}

fn stamp(dir: &Path, volume: &str, used: Timestamp) -> std::io::Result<()> {
    let file = File::options().append(true).open(manifest_path(dir, volume))?;
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_millis(used.0))
}

/// From now on it is no layer.
pub(super) fn forget(dir: &Path, volume: &str) {
    for path in [manifest_path(dir, volume), listing_path(dir, volume)] {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a manifest resists its removal");
        }
    }
}

pub(super) fn disk(action: &'static str, path: &Path, source: std::io::Error) -> CacheError {
    CacheError::Disk { action, path: path.to_owned(), source }
}
