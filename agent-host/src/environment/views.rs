//! The volumes through which an environment sees its caches: one that `setup` fills, or a view of a sealed layer.
//!
//! All of them are the attempt's own and go with it. The volume that is mounted is made last, so what a crash leaves half
//! made is never mounted.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use devfleet_shared::error::Chain;

use super::{Devbox, EnvironmentError, WORKSPACE, attempt_labels};
use crate::caches::{CacheError, copy_plainly, mountable};
use crate::engine::{EngineError, FoundObject, Mount, ObjectKind, ObjectRef, ViewSpec, label};

/// Says where a cached path appears in the steps.
fn target(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{WORKSPACE}/{path}") }
}

fn role(number: usize) -> String {
    format!("cache-{number}")
}

impl Devbox<'_> {
    /// Makes an empty volume for a cached path, which a layer with this key may be made from. Safe to repeat.
    pub async fn make_filling(&self, number: usize, key: &str) -> Result<(), CacheError> {
        let path = self.cache_volume(&role(number), (label::CACHE_KEY, key)).await;
        if path.is_err() {
            self.give_up_cache(number).await?;
        }
        path.map(drop)
    }

    /// Makes a view of a layer for a cached path; a copy where this machine refuses views. Safe to repeat.
    pub async fn make_view(&self, number: usize, layer: &str, lower: PathBuf) -> Result<(), CacheError> {
        let of = (label::CACHE_LAYER, layer);
        let upper = self.cache_volume(&format!("cache-{number}-upper"), of).await?;
        let work = self.cache_volume(&format!("cache-{number}-work"), of).await?;
        let mut view =
            ViewSpec { name: self.name(&role(number)), lower, upper, work, labels: self.labels(&role(number)) };
        view.labels.insert(of.0.into(), of.1.into());
        self.announce(ObjectKind::Volume, &view.name)?;
        let Err(error) = mountable(&view) else { return Ok(self.engine.ensure_view(&view).await?) };
        (self.note)(&format!("this host cannot mount an overlay ({}), so the cache is copied", Chain(&error)));
        self.copy_instead(number, view).await
    }

    async fn copy_instead(&self, number: usize, view: ViewSpec) -> Result<(), CacheError> {
        // What an earlier try copied may be half of it.
        self.give_up_cache(number).await?;
        let to = self.cache_volume(&role(number), (label::CACHE_LAYER, &view.labels[label::CACHE_LAYER])).await?;
        let copied = tokio::task::spawn_blocking(move || copy_plainly(&view.lower, &to)).await;
        let copied = copied.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        if copied.is_err() {
            self.give_up_cache(number).await?;
        }
        copied
    }

    /// Removes the volume that would be mounted.
    async fn give_up_cache(&self, number: usize) -> Result<(), EngineError> {
        self.engine.remove(&ObjectRef { kind: ObjectKind::Volume, name: self.name(&role(number)) }).await
    }

    /// Makes a plain volume into which every user of the image may write, and says where it lies.
    async fn cache_volume(&self, role: &str, (label, value): (&str, &str)) -> Result<PathBuf, CacheError> {
        let name = self.name(role);
        self.announce(ObjectKind::Volume, &name)?;
        let mut labels = self.labels(role);
        labels.insert(label.into(), value.into());
        self.engine.ensure_volume(&name, &labels).await?;
        let path = self.engine.volume_path(&name).await?.ok_or(CacheError::OutOfSight)?;
        open_to_all(&path).map_err(|source| CacheError::Disk { action: "open", path: path.clone(), source })?;
        Ok(path)
    }

    /// Lists the volumes of this environment that have to do with caches.
    pub async fn cache_volumes(&self) -> Result<Vec<FoundObject>, EngineError> {
        let found = self.engine.list(&attempt_labels(self.host, &self.assignment.attempt)).await?;
        let is_cache = |found: &FoundObject| {
            found.labels.contains_key(label::CACHE_LAYER) || found.labels.contains_key(label::CACHE_KEY)
        };
        Ok(found.into_iter().filter(|found| found.object.kind == ObjectKind::Volume && is_cache(found)).collect())
    }

    /// Returns the mounts for the cached paths that have a volume.
    pub async fn cache_mounts(&self) -> Result<Vec<Mount>, EngineError> {
        let caches = &self.assignment.environment.caches;
        if caches.is_empty() {
            return Ok(Vec::new());
        }
        let volumes = self.cache_volumes().await?;
        let mount = |(number, path): (usize, &str)| {
            let name = self.name(&role(number));
            let stands = volumes.iter().any(|volume| volume.object.name == name);
            stands.then(|| Mount::Volume { name, target: target(path) })
        };
        Ok(caches.iter().map(|cache| cache.path.as_str()).enumerate().filter_map(mount).collect())
    }

    /// Returns the number of the cached path that a volume is filled for, if it is one of those.
    pub fn filled_by(&self, volume: &FoundObject) -> Option<usize> {
        let filling = volume.labels.contains_key(label::CACHE_KEY);
        (0..self.assignment.environment.caches.len())
            .find(|number| filling && volume.object.name == self.name(&role(*number)))
    }

    /// Writes down that a layer is about to be made.
    pub fn announce_layer(&self, volume: &str) -> Result<(), EnvironmentError> {
        self.announce(ObjectKind::Volume, volume)
    }
}

fn open_to_all(path: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))
}
