//! What freezing does to containers: paused and cut from their networks, put back and resumed, removed.
//!
//! ```text
//! freeze: pause ─▶ note its links ─▶ disconnect        thaw: connect as noted ─▶ resume
//! ```
//! A note stays for as long as its container is there, so a cut that crosses a thaw is mended at the next look. The
//! daemon and the watchdog both work so, side by side if need be: each step is safe to repeat.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use devfleet_shared::error::Chain;
use devfleet_shared::id::HostId;

use super::Stance;
use crate::engine::{EngineError, FoundObject, Labels, Link, SharedEngine, label};

const ENDING: &str = "json";

/// Why a container could not be frozen, thawed or removed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The engine failed.
    #[error("treat the container")]
    Engine(#[from] EngineError),
    /// Its links cannot be written down, so they are not cut.
    #[error("note its networks in {path}", path = path.display())]
    Note {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Treats the containers of one host.
#[derive(Clone)]
pub struct Hand {
    /// The engine.
    pub engine: SharedEngine,
    /// The host whose labels the containers carry.
    pub host: HostId,
    /// Where the links of what was cut are noted.
    pub notes: PathBuf,
}

impl Hand {
    /// Lists the containers of this host, in whatever state.
    pub async fn containers(&self) -> Result<Vec<FoundObject>, EngineError> {
        let ours = Labels::from([
            (label::APP.to_owned(), label::APP_VALUE.to_owned()),
            (label::HOST.to_owned(), self.host.to_string()),
        ]);
        self.engine.containers(&ours).await
    }

    /// Does to each of these what the stance wants; says whether all of it went well.
    pub async fn treat(&self, stance: Stance, containers: &[FoundObject]) -> bool {
        let acts = containers.iter().map(|found| async {
            let outcome = match stance {
                Stance::Run => self.thaw(found).await,
                Stance::Freeze => self.freeze(found).await,
                Stance::Kill => self.kill(found).await,
            };
            if let Err(error) = &outcome {
                tracing::warn!(container = found.object.name, error = %Chain(error), ?stance, "a container resists");
            }
            outcome.is_ok()
        });
        futures_util::future::join_all(acts).await.into_iter().all(|well| well)
    }

    /// Forgets the links of containers that are gone.
    pub fn forget_all_but(&self, containers: &[FoundObject]) {
        for entry in std::fs::read_dir(&self.notes).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            if !containers.iter().any(|found| Some(found.object.name.as_str()) == name) {
                // What stays is looked at again.
                drop(std::fs::remove_file(&path));
            }
        }
    }

    /// Pauses, then cuts; a container that cannot be paused is cut all the same.
    async fn freeze(&self, found: &FoundObject) -> Result<(), FreezeError> {
        let name = &found.object.name;
        let paused = if found.paused { Ok(()) } else { self.engine.pause(name).await };
        let links = self.engine.links(name).await?;
        if !links.is_empty() {
            self.note(name, &links)?;
        }
        for link in &links {
            self.engine.disconnect(name, &link.network).await?;
        }
        Ok(paused?)
    }

    /// Puts it back where it was, then resumes it: nothing in it sees that its network was away.
    async fn thaw(&self, found: &FoundObject) -> Result<(), FreezeError> {
        let name = &found.object.name;
        for link in self.noted(name) {
            self.engine.connect(name, &link).await?;
        }
        if found.paused {
            self.engine.unpause(name).await?;
        }
        Ok(())
    }

    async fn kill(&self, found: &FoundObject) -> Result<(), FreezeError> {
        Ok(self.engine.remove(&found.object).await?)
    }

    fn note(&self, container: &str, links: &[Link]) -> Result<(), FreezeError> {
        let path = self.path(container);
        let mut all: BTreeMap<String, Link> = BTreeMap::new();
        for link in self.noted(container).into_iter().chain(links.iter().cloned()) {
            all.insert(link.network.clone(), link);
        }
        // Of each process its own, so that no half a note is ever seen.
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let written = serde_json::to_vec(&all.into_values().collect::<Vec<_>>()).map_err(io::Error::other);
        let written = written.and_then(|bytes| {
            std::fs::create_dir_all(&self.notes)?;
            std::fs::write(&beside, bytes)?;
            std::fs::rename(&beside, &path)
        });
        written.map_err(|source| FreezeError::Note { path, source })
    }

    fn noted(&self, container: &str) -> Vec<Link> {
        let bytes = std::fs::read(self.path(container)).ok();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn path(&self, container: &str) -> PathBuf {
        self.notes.join(format!("{container}.{ENDING}"))
    }
}
