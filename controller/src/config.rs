//! The controller's TOML. Every field has a default but the data directory; unknown keys are refused.

mod files;
mod quarantine;
mod store;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use devfleet_shared::units::Span;
use serde::Deserialize;

use crate::timers::Timers;
pub use files::{FilesConfig, S3Config};
pub use quarantine::QuarantineConfig;
pub use store::{EtcdConfig, StoreConfig};

/// The controller's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where store, certificates, logs and repositories are kept. Made if it does not exist.
    pub data_dir: PathBuf,
    /// Where people and hosts connect.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The names and addresses under which people and hosts reach this controller: its certificate is for these.
    #[serde(default = "default_names")]
    pub names: Vec<String>,
    /// How many jobs may run in the fleet at once.
    #[serde(default = "default_max_running")]
    pub max_running: usize,
    /// How old a connection may grow: then it is asked to end, and a new one shows its certificate anew.
    #[serde(default = "default_connection_age")]
    pub connection_age: Span,
    /// How hosts prove that they are there, and when their jobs are given to others.
    #[serde(default)]
    pub timers: Timers,
    /// When a host that fails job after job gets no new ones.
    #[serde(default)]
    pub quarantine: QuarantineConfig,
    /// Where the fleet's authority lies, `authority.pem` and `authority.key`. `None`: `ca` in the data directory.
    pub ca_dir: Option<PathBuf>,
    /// Where other controllers reach this one, `https://name:port`. `None`: the first of `names`, and the port.
    pub address: Option<String>,
    /// Where logs and diffs are kept. `None`: in the data directory. Several controllers share one place.
    pub files: Option<FilesConfig>,
    /// Where decisions are kept.
    #[serde(default)]
    pub store: StoreConfig,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not the TOML it should be.
    #[error("read the configuration {path}: {problem}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key.
        problem: String,
    },
    /// A value makes no sense.
    #[error("use the configuration: `{key}`: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong, and what to write.
        problem: String,
    },
}

impl Config {
    /// Returns the defaults around a data directory.
    pub fn in_directory(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: default_listen(),
            names: default_names(),
            max_running: default_max_running(),
            connection_age: default_connection_age(),
            timers: Timers::default(),
            quarantine: QuarantineConfig::default(),
            ca_dir: None,
            address: None,
            files: None,
            store: StoreConfig::default(),
        }
    }

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Config = toml::from_str(&text)
            .map_err(|error| ConfigError::Toml { path: path.to_owned(), problem: error.to_string() })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what types cannot say.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !self.data_dir.is_absolute() {
            return Err(ConfigError::Value { key: "data_dir", problem: "write an absolute path".into() });
        }
        if self.ca_dir.as_ref().is_some_and(|directory| !directory.is_absolute()) {
            return Err(ConfigError::Value { key: "ca_dir", problem: "write an absolute path".into() });
        }
        if self.address.as_ref().is_some_and(|address| !address.starts_with("https://")) {
            return Err(ConfigError::Value { key: "address", problem: "write `https://name:port`".into() });
        }
        self.store.validate()?;
        self.files.as_ref().map_or(Ok(()), FilesConfig::validate)?;
        if self.names.is_empty() || self.names.iter().any(|name| name.trim().is_empty()) {
            return Err(ConfigError::Value { key: "names", problem: "write at least one host name or address".into() });
        }
        if self.max_running == 0 {
            return Err(ConfigError::Value {
                key: "max_running",
                problem: "write 1 or more; with 0 no job would ever start".into(),
            });
        }
        if self.connection_age.0.is_zero() {
            return Err(ConfigError::Value { key: "connection_age", problem: "write a time such as 1h".into() });
        }
        self.quarantine.validate().map_err(|problem| ConfigError::Value { key: "quarantine", problem })?;
        self.timers.validate().map_err(|problem| ConfigError::Value { key: "timers", problem })
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7443))
}

fn default_names() -> Vec<String> {
    vec!["localhost".into(), "127.0.0.1".into()]
}

fn default_max_running() -> usize {
    5
}

fn default_connection_age() -> Span {
    Span(std::time::Duration::from_secs(3_600))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        Config::load(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn one_line_is_enough() {
        assert_eq!(load("data_dir = \"/var/lib/devfleet\""), Ok(Config::in_directory("/var/lib/devfleet")));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        assert!(load("data_dir = \"x\"").expect_err("relative").contains("data_dir"));
        assert!(load("data_dir = \"/x\"\nmax_runing = 5").expect_err("a slip").contains("max_runing"));
        assert!(load("data_dir = \"/x\"\nmax_running = 0").expect_err("zero").contains("max_running"));
        assert!(load("data_dir = \"/x\"\nnames = []").expect_err("none").contains("names"));
        let (after, pause) = ("[quarantine]\nafter = 51", "[quarantine]\npause = \"2h\"");
        assert!(load(&format!("data_dir = \"/x\"\n{after}")).expect_err("too many").contains("quarantine"));
        assert!(load(&format!("data_dir = \"/x\"\n{pause}")).expect_err("too long").contains("longest_pause"));
        assert!(Config::load(Path::new("/nonexistent.toml")).is_err());
    }

    #[test]
    fn the_sample_is_valid() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/controller.toml");
        Config::load(Path::new(sample)).expect("the sample is right");
    }
}
