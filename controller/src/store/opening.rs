//! From the configuration to an open store: files read, references resolved, the cluster reached.

use std::path::{Path, PathBuf};

use devfleet_shared::clock::Clock;
use devfleet_shared::id::ControllerId;
use devfleet_shared::secret::Secret;

use super::embedded::Embedded;
use super::etcd::{Etcd, EtcdSettings};
use super::{SharedStore, StoreError};
use crate::config::{Config, EtcdConfig, StoreConfig};
use crate::secrets::{self, SecretError};

/// The name of the embedded store in the data directory.
pub const EMBEDDED_FILE: &str = "store.redb";

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// A file of the `[store]` table cannot be read.
    #[error("read {path}, named by `store.{key}`")]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The password cannot be had.
    #[error("resolve `store.password`")]
    Password(#[from] SecretError),
    /// The store does not answer, or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Opens the store that the configuration names. `own` is who writes.
pub async fn open(config: &Config, own: &ControllerId, clock: &Clock) -> Result<SharedStore, OpenStoreError> {
    match &config.store {
        StoreConfig::Embedded {} => Ok(Embedded::open(&config.data_dir.join(EMBEDDED_FILE), clock.clone())?),
        StoreConfig::Etcd(etcd) => Ok(Etcd::connect(settings(etcd).await?, own.as_str()).await?),
    }
}

async fn settings(config: &EtcdConfig) -> Result<EtcdSettings, OpenStoreError> {
    let ca = config.ca.as_deref().map(|path| read("ca", path)).transpose()?;
    let identity = match (&config.certificate, &config.key) {
        (Some(certificate), Some(key)) => Some((read("certificate", certificate)?, Secret::new(read("key", key)?))),
        _ => None,
    };
    let user = match (&config.user, &config.password) {
        (Some(user), Some(password)) => Some((user.clone(), secrets::resolve(password).await?)),
        _ => None,
    };
    Ok(EtcdSettings { endpoints: config.endpoints.clone(), prefix: config.prefix.clone(), ca, identity, user })
}

fn read(key: &'static str, path: &Path) -> Result<String, OpenStoreError> {
    std::fs::read_to_string(path).map_err(|source| OpenStoreError::File { key, path: path.to_owned(), source })
}
