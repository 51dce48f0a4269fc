//! What a controller stands on: its data directory, its id, the store, and the fleet's authority.

use std::path::Path;
use std::sync::Arc;

use devfleet_shared::clock::Clock;
use devfleet_shared::id::ControllerId;

use super::{StartError, make_dir};
use crate::config::Config;
use crate::controllers::own_id;
use crate::identity::Authority;
use crate::store::SharedStore;
use crate::store::opening;
use crate::store::records::fleet;

/// What a controller stands on.
pub(super) struct Ground {
    pub(super) id: ControllerId,
    pub(super) store: SharedStore,
    pub(super) authority: Arc<Authority>,
    /// Held as long as the controller runs.
    pub(super) lock: std::fs::File,
}

/// Opens the store, and checks that this controller belongs to its fleet.
pub(super) async fn open_ground(config: &Config, clock: &Clock) -> Result<Ground, StartError> {
    let data_dir = make_dir(&config.data_dir)?;
    let lock = lock(&data_dir.join("lock"))?;
    let id = own_id(&data_dir)?;
    let store = opening::open(config, &id, clock).await?;
    let ca_dir = config.ca_dir.clone().unwrap_or_else(|| data_dir.join("ca"));
    let authority = Arc::new(Authority::open_or_create(&ca_dir, clock)?);
    fleet::belong(&store, &authority.fingerprint()).await?;
    Ok(Ground { id, store, authority, lock })
}

/// Locks the data directory: two processes of one id would take the lead from each other.
fn lock(path: &Path) -> Result<std::fs::File, StartError> {
    let failed = |source| StartError::Directory { path: path.display().to_string(), source };
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::InUse { path: path.display().to_string() }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}
