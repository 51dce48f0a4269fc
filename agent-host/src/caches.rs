//! Dependency caches: sealed layers that jobs read through views of their own.
//!
//! ```text
//! no layer yet:  setup fills a volume of the attempt ─▶ succeeded ─▶ copied into a layer, sealed by its manifest
//! a layer:       setup, agent, verify see a view: the layer below, a volume of the attempt on top
//! ```
//! What `agent` and `verify` write stays in the attempt's own volumes and goes with them: a job never writes what another
//! one reads. A layer is sealed once its manifest stands in the data directory; a volume without one is a leftover.

mod copying;
mod manifest;
mod probe;
pub mod rules;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devfleet_shared::clock::Timestamp;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, Digest, HostId};
use devfleet_shared::mask::Needles;

use crate::engine::{EngineError, Labels, ObjectKind, ObjectRef, SharedEngine, label};
use crate::environment::{EnvironmentError, host_labels};
use rules::Layer;

/// Files and directories in one layer; more is not kept. A node_modules of a large project has about 100,000.
const LAYER_ENTRIES: u64 = 300_000;
/// The share of the budget that one layer may take.
const LAYER_SHARE: u64 = 4;

/// Why a cache could not be sealed or read. Never a reason to fail a job.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The ledger cannot be written.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The disk failed.
    #[error("{action} {path}", path = path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than a layer may be.
    #[error("keep more than {limit}: raise `cache_budget` of this host")]
    TooLarge {
        /// What is allowed.
        limit: String,
    },
    /// A secret of the job stands in it.
    #[error("keep a file in which a secret of the job stands")]
    Secret,
    /// A path or content that nobody wrote here.
    #[error("trust the layer: {path} is not what was sealed", path = path.display())]
    Changed {
        /// The first such file.
        path: PathBuf,
    },
    /// The job was stopped.
    #[error("go on: the job was stopped")]
    Stopped,
    /// The engine's volumes cannot be seen from here.
    #[error("see the engine's volumes from here: the engine is on another machine, or this user may not")]
    OutOfSight,
}

/// The layers of this host.
pub struct Caches {
    engine: SharedEngine,
    host: HostId,
    dir: PathBuf,
    budget_bytes: u64,
    /// Held while a layer is chosen and its view made, and while layers are evicted: so none goes in between.
    turn: tokio::sync::Mutex<()>,
}

/// What is to be sealed.
pub struct Filling<'a> {
    /// What it is, without sizes.
    pub layer: Layer,
    /// The files, on this machine. Nothing writes there any more.
    pub from: &'a Path,
    /// The attempt that filled it.
    pub attempt: &'a AttemptId,
    /// The attempt's secrets: a layer must hold none.
    pub needles: Option<Arc<Needles>>,
}

impl Caches {
    /// Keeps layers on this engine and their manifests in this directory. A budget of 0 keeps nothing.
    pub fn new(engine: SharedEngine, host: HostId, data_dir: &Path, budget_bytes: u64) -> Self {
        Self { engine, host, dir: directory(data_dir), budget_bytes, turn: tokio::sync::Mutex::default() }
    }

    /// Says whether anything is kept at all.
    pub fn enabled(&self) -> bool {
        self.budget_bytes > 0
    }

    /// Keeps layers from being evicted until the guard is dropped.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Returns how many layers are sealed here.
    pub fn count(&self) -> u64 {
        manifest::load(&self.dir).len() as u64
    }

    /// Returns the layer with this key and where it lies, after a look at some of its files. One that is not what was
    /// sealed is set aside with an error for people, and there is none.
    pub async fn find(&self, key: &Digest, now: Timestamp) -> Result<Option<(Layer, PathBuf)>, CacheError> {
        let layers = manifest::load(&self.dir);
        let Some(layer) = rules::choose(&layers, key, now).cloned() else { return Ok(None) };
        let Some(path) = self.engine.volume_path(&layer.volume).await? else {
            manifest::forget(&self.dir, &layer.volume);
            return Ok(None);
        };
        match self.verify(&layer, &path, copying::SAMPLE).await {
            Ok(()) => {
                manifest::touch(&self.dir, &layer.volume, now);
                Ok(Some((layer, path)))
            }
            Err(error) => {
                tracing::error!(layer = layer.volume, error = %Chain(&error), "a cache layer is set aside");
                manifest::forget(&self.dir, &layer.volume);
                Ok(None)
            }
        }
    }

    /// Compares a layer's files with its manifest: `sample` of them, or all.
    async fn verify(&self, layer: &Layer, path: &Path, sample: usize) -> Result<(), CacheError> {
        let (listing, path, layer) = (manifest::listing_path(&self.dir, &layer.volume), path.to_owned(), layer.clone());
        blocking(move || copying::verify(&listing, &layer.listing, &path, sample)).await
    }

    /// Copies what a successful `setup` left into a layer and seals it. `Ok(None)`: there was nothing to keep, or another
    /// job was faster. `announce` writes down the volume before it is made.
    pub async fn seal(
        &self,
        filling: Filling<'_>,
        announce: &(dyn Fn(&str) -> Result<(), EnvironmentError> + Sync),
    ) -> Result<Option<Layer>, CacheError> {
        let mut layer = filling.layer;
        if rules::choose(&manifest::load(&self.dir), &layer.key, layer.sealed).is_some() {
            return Ok(None);
        }
        announce(&layer.volume)?;
        let mut labels = host_labels(&self.host);
        labels.insert(label::ROLE.into(), label::CACHE_ROLE.into());
        labels.insert(label::CREATED.into(), layer.sealed.0.to_string());
        labels.insert(label::CACHE_FILLER.into(), filling.attempt.to_string());
        self.engine.ensure_volume(&layer.volume, &labels).await?;
        let to = self.engine.volume_path(&layer.volume).await?.ok_or(CacheError::OutOfSight)?;
        let stop = StopOnDrop::default();
        let copy = copying::Copy {
            from: filling.from.to_owned(),
            to,
            limit_bytes: self.budget_bytes / LAYER_SHARE,
            limit_entries: LAYER_ENTRIES,
            needles: filling.needles,
            stop: Arc::clone(&stop.0),
        };
        let copied = blocking(move || copy.run()).await;
        let outcome = match copied {
            Ok(copied) if copied.bytes == 0 => Ok(None),
            Ok(copied) => {
                (layer.bytes, layer.entries) = (copied.bytes, copied.entries);
                self.commit(layer, copied.listing).await
            }
            Err(error) => Err(error),
        };
        if !matches!(outcome, Ok(Some(_))) {
            self.discard(filling.attempt).await?;
        }
        outcome
    }

    async fn commit(&self, mut layer: Layer, listing: Vec<u8>) -> Result<Option<Layer>, CacheError> {
        let _turn = self.turn().await;
        if rules::choose(&manifest::load(&self.dir), &layer.key, layer.sealed).is_some() {
            return Ok(None);
        }
        layer.listing = Digest::of(&listing);
        let (dir, sealed) = (self.dir.clone(), layer.clone());
        blocking(move || manifest::seal(&dir, &sealed, &listing)).await?;
        self.evict().await?;
        Ok(Some(layer))
    }

    /// Removes the least recently used layers beyond the budget, and never one that a job reads.
    async fn evict(&self) -> Result<(), CacheError> {
        let found = self.engine.list(&host_labels(&self.host)).await?;
        let in_use: BTreeSet<String> =
            found.iter().filter_map(|found| found.labels.get(label::CACHE_LAYER)).cloned().collect();
        for volume in rules::evict(&manifest::load(&self.dir), &in_use, self.budget_bytes) {
            tracing::info!(volume, "a cache layer goes, for lack of room");
            self.remove(volume).await?;
        }
        Ok(())
    }

    /// The manifest goes first: what a crash leaves is then a leftover, never a layer that lacks files.
    async fn remove(&self, volume: String) -> Result<(), CacheError> {
        manifest::forget(&self.dir, &volume);
        Ok(self.engine.remove(&ObjectRef { kind: ObjectKind::Volume, name: volume }).await?)
    }

    /// Removes the layers that an attempt began and did not seal. Safe to repeat.
    pub async fn discard(&self, attempt: &AttemptId) -> Result<(), CacheError> {
        let mut labels: Labels = host_labels(&self.host);
        labels.insert(label::CACHE_FILLER.into(), attempt.to_string());
        let sealed = sealed(&self.dir);
        for found in self.engine.list(&labels).await? {
            if found.object.kind == ObjectKind::Volume && !sealed.contains(&found.object.name) {
                self.engine.remove(&found.object).await?;
            }
        }
        Ok(())
    }

    /// Looks at every file of the layer that was not looked at for longest, and drops manifests without a volume.
    pub async fn inspect(&self, now: Timestamp) -> Result<(), CacheError> {
        let layers = manifest::load(&self.dir);
        let due = rules::due(&layers, now).cloned();
        let Some(layer) = due else { return Ok(()) };
        let outcome = match self.engine.volume_path(&layer.volume).await? {
            None => Err(CacheError::OutOfSight),
            Some(path) => self.verify(&layer, &path, usize::MAX).await,
        };
        match outcome {
            Ok(()) => manifest::checked(&self.dir, &layer, now),
            Err(error) => {
                tracing::error!(layer = layer.volume, error = %Chain(&error), "a cache layer is set aside");
                manifest::forget(&self.dir, &layer.volume);
            }
        }
        Ok(())
    }
}

/// Returns the volumes of a daemon's data directory that are sealed layers.
pub fn sealed_layers(data_dir: &Path) -> BTreeSet<String> {
    sealed(&directory(data_dir))
}

fn sealed(dir: &Path) -> BTreeSet<String> {
    manifest::load(dir).into_iter().map(|layer| layer.volume).collect()
}

fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("caches")
}

pub use copying::copy_plainly;
pub use probe::mountable;

/// Tells a copy that is under way to stop once nobody waits for it.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
