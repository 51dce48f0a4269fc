//! The caches of an attempt: opened before the first step, sealed between `setup` and `agent`, discarded at the end.
//!
//! No trouble with a cache fails an attempt: it goes on without, and says so in the log. Only a ledger that cannot be
//! written stops it, as everywhere.

use std::sync::Arc;

use devfleet_shared::attempt::Step;
use devfleet_shared::environment::CacheSpec;
use devfleet_shared::error::Chain;
use devfleet_shared::id::Digest;
use devfleet_shared::mask::Needles;
use devfleet_shared::units::ByteSize;

use super::{Attempt, Halt};
use crate::caches::rules::{self, Layer};
use crate::caches::{CacheError, Filling};
use crate::engine::{FoundObject, Mount, label};
use crate::environment::Devbox;

impl Attempt {
    /// Gives every cached path a volume: a view of the layer that fits, or an empty one.
    pub(super) async fn open_caches(&self) -> Result<(), Halt> {
        let caches = &self.assignment.environment.caches;
        if caches.is_empty() || !self.around.caches.enabled() {
            return Ok(());
        }
        let relative = |path: &&String| !path.starts_with('/');
        let files = caches.iter().flat_map(|cache| &cache.lock_files);
        let paths: Vec<String> =
            caches.iter().map(|cache| &cache.path).chain(files).filter(relative).cloned().collect();
        let objects = match self.around.code.objects(&self.assignment, &paths).await {
            Ok(objects) => objects,
            Err(error) => {
                self.note(&format!("failed to {error}; going on without caches"));
                return Ok(());
            }
        };
        let image = self.image().await?.id.clone();
        let note = |text: &str| self.note(text);
        let devbox = self.devbox(&note);
        for (number, cache) in caches.iter().enumerate() {
            if let Some(why) = rules::unmountable(&cache.path, objects.contains_key(&cache.path)) {
                self.log.note(&format!("the cached path {} is not kept: {why}", cache.path));
                continue;
            }
            let key = rules::key_of(&self.assignment, cache, &image, &objects);
            let opened = self.open_cache(&devbox, number, &key).await;
            self.tolerate(&format!("open the cache {}", cache.path), opened)?;
        }
        Ok(())
    }

    async fn open_cache(&self, devbox: &Devbox<'_>, number: usize, key: &Digest) -> Result<(), CacheError> {
        let path = &self.assignment.environment.caches[number].path;
        let _turn = self.around.caches.turn().await;
        match self.around.caches.find(key, self.around.clock.now()).await? {
            Some((layer, lower)) => {
                self.log.note(&format!("cache {path}: {} in {} entries", ByteSize(layer.bytes), layer.entries));
                devbox.make_view(number, &layer.volume, lower).await
            }
            None => {
                self.log.note(&format!("cache {path}: nothing is kept yet"));
                devbox.make_filling(number, key.as_str()).await
            }
        }
    }

    /// Returns what the steps mount: `setup`, `agent` and `verify` alone.
    pub(super) async fn cache_mounts(&self, step: Step) -> Result<Vec<Mount>, Halt> {
        if !matches!(step, Step::Setup | Step::Agent | Step::Verify) {
            return Ok(Vec::new());
        }
        let note = |text: &str| self.note(text);
        let devbox = self.devbox(&note);
        self.patiently(|| devbox.cache_mounts()).await
    }

    /// Seals what a successful `setup` left, before there is a container in which the agent could change it.
    pub(super) async fn seal_caches(&self) -> Result<(), Halt> {
        let caches = &self.assignment.environment.caches;
        let history = self.history();
        let set_up = history.ended(Step::Setup).is_some_and(|end| end.failure.is_none());
        if caches.is_empty() || !set_up || history.round(Step::Agent) > 0 {
            return Ok(());
        }
        let note = |text: &str| self.note(text);
        let devbox = self.devbox(&note);
        for volume in self.patiently(|| devbox.cache_volumes()).await? {
            if let Some(number) = devbox.filled_by(&volume) {
                let sealed = self.seal_cache(&devbox, &volume, &caches[number]).await;
                self.tolerate(&format!("keep the cache {}", caches[number].path), sealed)?;
            }
        }
        Ok(())
    }

    async fn seal_cache(&self, devbox: &Devbox<'_>, volume: &FoundObject, cache: &CacheSpec) -> Result<(), CacheError> {
        let name = &volume.object.name;
        let from = self.around.engine.volume_path(name).await?.ok_or(CacheError::OutOfSight)?;
        let Some(key) = volume.labels.get(label::CACHE_KEY).and_then(|key| key.parse::<Digest>().ok()) else {
            return Ok(());
        };
        let secrets = self.grant.get().map(super::Grant::secrets).unwrap_or_default();
        let now = self.around.clock.now();
        let layer = Layer {
            volume: format!("devfleet-cache-{}-{}", &key.hex()[..12], self.assignment.attempt),
            project: self.assignment.project.to_string(),
            path: cache.path.clone(),
            locked: !cache.lock_files.is_empty(),
            sealed: now,
            bytes: 0,
            entries: 0,
            listing: Digest::of(b""),
            checked: now,
            used: now,
            key,
        };
        let needles = Needles::new(&secrets).map_err(|_| CacheError::Secret)?;
        let needles = (!secrets.is_empty()).then(|| Arc::new(needles));
        let filling = Filling { layer, from: &from, attempt: &self.assignment.attempt, needles };
        let announce = |volume: &str| devbox.announce_layer(volume);
        if let Some(layer) = self.around.caches.seal(filling, &announce).await? {
            let (bytes, entries) = (ByteSize(layer.bytes), layer.entries);
            self.log.note(&format!("cache {}: kept for the next job, {bytes} in {entries} entries", cache.path));
        }
        Ok(())
    }

    /// Removes layers that this attempt began and did not seal.
    pub(super) async fn discard_caches(&self) {
        if self.assignment.environment.caches.is_empty() {
            return;
        }
        if let Err(error) = self.around.caches.discard(&self.assignment.attempt).await {
            tracing::warn!(attempt = %self.assignment.attempt, error = %Chain(&error), "unsealed layers stay for now");
        }
    }

    fn tolerate(&self, what: &str, outcome: Result<(), CacheError>) -> Result<(), Halt> {
        match outcome {
            Ok(()) => Ok(()),
            Err(CacheError::Environment(error)) => Err(Halt::Failed(error.failure())),
            Err(error) => {
                self.log.note(&format!("failed to {what}: {}; going on without it", Chain(&error)));
                Ok(())
            }
        }
    }
}
