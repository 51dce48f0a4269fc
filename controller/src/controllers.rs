//! The controllers of the fleet: what each one is called, and which of them run.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use devfleet_shared::error::Chain;
use devfleet_shared::id::ControllerId;
use devfleet_shared::protocol::PROTOCOL;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::leader::Leader;
use crate::store::records::controllers::{self, ControllerRecord};
use crate::store::records::{RecordError, put};
use crate::store::{Change, LeaseId, SharedStore, Transaction};

/// The file in the data directory that holds the controller's id.
const ID_FILE: &str = "controller-id";
/// How often a controller says that it runs; it is forgotten after three times as long.
const SHOWN: Duration = Duration::from_secs(5);

/// Why a controller does not know its id.
#[derive(Debug, thiserror::Error)]
pub enum ControllerIdError {
    /// The file cannot be read or written.
    #[error("use the controller's id in {path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("read the controller's id in {path}: it is not an id; remove the file, a new id is made then")]
    Malformed {
        /// The file.
        path: String,
    },
}

/// Returns the id that stands in the data directory; makes one at the first start.
pub fn own_id(data_dir: &Path) -> Result<ControllerId, ControllerIdError> {
    let path = data_dir.join(ID_FILE);
    let shown = || path.display().to_string();
    let failed = |source| ControllerIdError::File { path: shown(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| ControllerIdError::Malformed { path: shown() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = ControllerId::random();
            let mut file = tempfile_beside(&path).map_err(failed)?;
            writeln!(file.0, "{id}").and_then(|()| file.0.sync_all()).map_err(failed)?;
            std::fs::rename(&file.1, &path).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}

fn tempfile_beside(path: &Path) -> std::io::Result<(std::fs::File, std::path::PathBuf)> {
    let beside = path.with_extension("new");
    Ok((std::fs::File::create(&beside)?, beside))
}

/// Keeps a record in the store for as long as this controller runs, so that people can see it.
pub struct Presence {
    /// Where.
    pub store: SharedStore,
    /// What it says.
    pub record: ControllerRecord,
}

impl Presence {
    /// Makes what says that a candidate for the lead runs.
    pub fn of(leader: &Leader) -> Presence {
        let record = ControllerRecord {
            id: leader.controller.clone(),
            address: leader.address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            started: leader.clock.now(),
        };
        Presence { store: leader.store.clone(), record }
    }

    /// Runs until the shutdown. The record is gone a little later than the controller.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut lease = None;
        loop {
            match self.show(&mut lease).await {
                Ok(()) => {}
                Err(error) => {
                    debug!(error = %Chain(&error), "this controller cannot be seen in the store, it is tried again");
                    lease = None;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(SHOWN) => {}
            }
        }
        if let Some(lease) = lease {
            // Fails at worst: then it ends by itself.
            drop(tokio::time::timeout(SHOWN, self.store.revoke_lease(lease)).await);
        }
    }

    async fn show(&self, lease: &mut Option<LeaseId>) -> Result<(), RecordError> {
        if let Some(lease) = lease {
            return Ok(self.store.keep_alive(*lease).await?);
        }
        let granted = self.store.grant_lease(SHOWN * 3).await?;
        let mut change = put(controllers::key(&self.record.id), &self.record)?;
        if let Change::Put { lease, .. } = &mut change {
            *lease = Some(granted);
        }
        self.store.commit(Transaction { when: Vec::new(), then: vec![change] }).await?;
        *lease = Some(granted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_stays_and_something_else_is_refused() {
        let directory = tempfile::tempdir().expect("dir");
        let id = own_id(directory.path()).expect("made");
        assert_eq!(own_id(directory.path()).expect("read"), id);
        std::fs::write(directory.path().join(ID_FILE), "").expect("written");
        assert!(matches!(own_id(directory.path()), Err(ControllerIdError::Malformed { .. })));
    }
}
