//! The `[store]` table: where decisions are kept.

use std::path::PathBuf;

use devfleet_shared::secret::SecretRef;
use serde::Deserialize;

use super::ConfigError;

/// Where decisions are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum StoreConfig {
    /// One file in the data directory, for one controller.
    Embedded {},
    /// An etcd cluster, for any number of controllers.
    Etcd(EtcdConfig),
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig::Embedded {}
    }
}

/// How the etcd cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// The members' client addresses.
    pub endpoints: Vec<String>,
    /// What stands before every key: one cluster may serve several fleets.
    #[serde(default)]
    pub prefix: String,
    /// The authority of the members' certificates, a PEM file.
    pub ca: Option<PathBuf>,
    /// Our certificate, a PEM file.
    pub certificate: Option<PathBuf>,
    /// Its key, a PEM file.
    pub key: Option<PathBuf>,
    /// Our user.
    pub user: Option<String>,
    /// Its password, by reference.
    pub password: Option<SecretRef>,
}

impl StoreConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let StoreConfig::Etcd(etcd) = self else { return Ok(()) };
        let refuse = |key, problem| Err(ConfigError::Value { key, problem });
        let (http, https) = (etcd.all_begin("http://"), etcd.all_begin("https://"));
        if etcd.endpoints.is_empty() || !(http || https) {
            return refuse("store.endpoints", "write at least one, all `https://name:2379` or all `http://name:2379`");
        }
        if https != etcd.ca.is_some() {
            return refuse("store.ca", "write it with `https` endpoints, and only with them");
        }
        if etcd.certificate.is_some() != etcd.key.is_some() || (etcd.key.is_some() && !https) {
            return refuse("store.certificate", "write `certificate` and `key` together, with `https` endpoints");
        }
        if etcd.user.is_some() != etcd.password.is_some() {
            return refuse("store.user", "write `user` and `password` together");
        }
        if !etcd.prefix.is_empty() && (!etcd.prefix.starts_with('/') || etcd.prefix.ends_with('/')) {
            return refuse("store.prefix", "begin it with a slash and end it without, as in `/team-a`");
        }
        Ok(())
    }
}

impl EtcdConfig {
    fn all_begin(&self, scheme: &str) -> bool {
        self.endpoints.iter().all(|endpoint| endpoint.starts_with(scheme))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &str) -> Result<StoreConfig, String> {
        let config: StoreConfig = toml::from_str(table).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_cluster_is_named_with_all_that_belongs_together() {
        assert_eq!(check("kind = \"embedded\""), Ok(StoreConfig::Embedded {}));
        let whole = "kind = \"etcd\"\nendpoints = [\"https://a:2379\", \"https://b:2379\"]\nprefix = \"/x\"\nca = \"/ca\"\n\
            certificate = \"/c\"\nkey = \"/k\"\nuser = \"u\"\npassword = \"env://P\"";
        assert!(matches!(check(whole), Ok(StoreConfig::Etcd(_))));
        assert!(check("kind = \"etcd\"\nendpoints = [\"http://a:2379\"]").is_ok());
    }

    #[test]
    fn halves_and_slips_are_named() {
        let etcd = |rest: &str| check(&format!("kind = \"etcd\"\nendpoints = [\"https://a:2379\"]\n{rest}"));
        assert!(etcd("").expect_err("no ca").contains("store.ca"));
        assert!(etcd("ca = \"/ca\"\nkey = \"/k\"").expect_err("half").contains("store.certificate"));
        assert!(etcd("ca = \"/ca\"\nuser = \"u\"").expect_err("half").contains("store.user"));
        assert!(etcd("ca = \"/ca\"\nprefix = \"x/\"").expect_err("slash").contains("store.prefix"));
        assert!(etcd("ca = \"/ca\"\npasword = \"env://P\"").expect_err("a slip").contains("pasword"));
        assert!(check("kind = \"etcd\"\nendpoints = []").expect_err("none").contains("store.endpoints"));
        assert!(check("kind = \"embedded\"\nendpoints = []").expect_err("not here").contains("endpoints"));
        assert!(check("kind = \"redis\"").expect_err("unknown").contains("redis"));
    }
}
