//! What a controller stands on: its data directory, its id, the store, and the fleet's authority.

use std::path::Path;
use std::sync::Arc;

use devfleet_shared::clock::Clock;
use devfleet_shared::id::ControllerId;

use super::{StartError, make_dir, open_files};
use crate::api::passing::Reach;
use crate::config::Config;
use crate::controllers::own_id;
use crate::files::Files;
use crate::forges::Forges;
use crate::identity::Authority;
use crate::store::SharedStore;
use crate::store::opening;
use crate::store::records::fleet;

/// What a controller stands on, given from outside.
pub struct Ground {
    /// Who it is.
    pub id: ControllerId,
    /// Where its decisions are kept.
    pub store: SharedStore,
    /// Where logs and diffs are kept.
    pub files: Files,
    /// Certifies it and the hosts.
    pub authority: Arc<Authority>,
    /// Makes the forges of projects.
    pub forges: Forges,
    /// Connects to other controllers.
    pub reach: Reach,
    /// Tells the time.
    pub clock: Clock,
    /// Held as long as the controller runs.
    pub lock: Option<std::fs::File>,
}

/// Opens the store, and checks that this controller belongs to its fleet.
pub(super) async fn open_ground(config: &Config, clock: Clock) -> Result<Ground, StartError> {
    let data_dir = make_dir(&config.data_dir)?;
    let lock = lock(&data_dir.join("lock"))?;
    let id = own_id(&data_dir)?;
    let files = open_files(config).await?;
    let store = opening::open(config, &id, &clock).await?;
    let ca_dir = config.ca_dir.clone().unwrap_or_else(|| data_dir.join("ca"));
    let authority = Arc::new(Authority::open_or_create(&ca_dir, &clock)?);
    fleet::belong(&store, &authority.fingerprint()).await?;
    let forges = Forges::new(store.clone(), make_dir(&data_dir.join("repositories"))?);
    let reach: Reach = |endpoint| endpoint.connect_lazy();
    Ok(Ground { id, store, files, authority, forges, reach, clock, lock: Some(lock) })
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
