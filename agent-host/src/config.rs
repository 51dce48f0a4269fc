//! The host daemon's settings: one TOML file, every field described here and in docs/configuration.md.
//!
//! A field that is not known is refused, and every complaint names the file, the line or key, and what to write instead.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use devfleet_shared::endpoints::is_controller;
use devfleet_shared::units::{ByteSize, Span};
use serde::Deserialize;

/// What `host.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the daemon keeps its identity, ledgers, spools, mirrors and temporary files. An absolute path, on a disk
    /// that survives a restart, owned by one daemon.
    pub data_dir: PathBuf,
    /// Where the controllers listen: `https://name:port` each. The host holds a session with one of them, and goes to the
    /// next when that is away. Left out: `https://127.0.0.1:7443`.
    #[serde(default)]
    pub controllers: Vec<String>,
    /// The same for a single controller. Not beside `controllers`.
    #[serde(default)]
    pub controller: Option<String>,
    /// The name under which people see this host: 1 to 63 letters, digits, dots or dashes.
    pub name: String,
    /// The container engine's socket: `unix:///path`.
    #[serde(default = "default_engine")]
    pub engine: String,
    /// The addresses from which every environment gets a /28 of its own: IPv4, a prefix of 8 to 26 bits. It must not
    /// overlap a network that environments have to reach.
    #[serde(default = "default_network_pool")]
    pub network_pool: String,
    /// How many environments may stand at the same time, 1 to 1000.
    #[serde(default = "default_slots")]
    pub slots: u32,
    /// How old an object that nobody owns must be before the sweeper removes it: at least `1s`; `10m` and `2h` are
    /// written so.
    #[serde(default = "default_protection_window")]
    pub protection_window: Span,
    /// How much of the engine's disk sealed dependency caches may take: `20GiB`. `0` keeps none.
    #[serde(default = "default_cache_budget")]
    pub cache_budget: ByteSize,
    /// Mirrors that are asked before a registry, by the registry's name: `"docker.io" = "mirror.example.com:5000/hub"`.
    /// A registry whose mirror fails is asked itself.
    #[serde(default)]
    pub registry_mirrors: BTreeMap<String, String>,
    /// A file with the join token, for the first start. Deleted once the host has joined. The variable
    /// `DEVFLEET_JOIN_TOKEN` comes before it.
    #[serde(default)]
    pub join_token_file: Option<PathBuf>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}; give the path of a host.toml with --config (deploy/host.toml is a sample)", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML, or a field has a wrong name or type.
    #[error("understand {path}: {detail}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column, and what is wrong there.
        detail: String,
    },
    /// A field's value is not allowed.
    #[error("use `{key} = {value}` of {path}: {advice}", path = path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What to write.
        advice: &'static str,
    },
}

/// A field's value that is not allowed.
#[derive(Debug, PartialEq, Eq)]
struct BadValue {
    key: &'static str,
    value: String,
    advice: &'static str,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Reads and checks a file's text; `path` is for the messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            detail: error.to_string().trim_end().to_owned(),
        })?;
        config.validate().map_err(|BadValue { key, value, advice }| ConfigError::Value {
            path: path.to_owned(),
            key,
            value,
            advice,
        })?;
        Ok(config)
    }

    /// Returns where the controllers listen, the one that is tried first in front.
    pub fn endpoints(&self) -> Vec<String> {
        match (&self.controller, self.controllers.is_empty()) {
            (Some(one), _) => vec![one.clone()],
            (None, true) => vec!["https://127.0.0.1:7443".into()],
            (None, false) => self.controllers.clone(),
        }
    }

    fn validate(&self) -> Result<(), BadValue> {
        let bad = |key, value: &dyn std::fmt::Debug, advice| Err(BadValue { key, value: format!("{value:?}"), advice });
        if !self.data_dir.is_absolute() {
            return bad("data_dir", &self.data_dir, "write an absolute path, for example \"/var/lib/devfleet-host\"");
        }
        if let Some(controller) = self.controller.as_ref().filter(|controller| !is_controller(controller)) {
            return bad("controller", controller, "write the address as \"https://name:port\", without a path");
        }
        if let Some(controller) = self.controllers.iter().find(|controller| !is_controller(controller)) {
            return bad("controllers", controller, "write each address as \"https://name:port\", without a path");
        }
        if self.controller.is_some() && !self.controllers.is_empty() {
            return bad("controllers", &self.controllers, "write all addresses here, and leave `controller` out");
        }
        if !is_host_name(&self.name) {
            return bad(
                "name",
                &self.name,
                "write 1 to 63 letters, digits, dots or dashes, starting with a letter or digit",
            );
        }
        if !self.engine.strip_prefix("unix://").is_some_and(|path| path.starts_with('/')) {
            return bad(
                "engine",
                &self.engine,
                "write the engine's socket, for example \"unix:///var/run/docker.sock\"",
            );
        }
        if !is_pool(&self.network_pool) {
            return bad(
                "network_pool",
                &self.network_pool,
                "write IPv4 addresses with a prefix of 8 to 26 bits and no bits after it, for example \"10.213.0.0/16\"",
            );
        }
        if !(1..=1000).contains(&self.slots) {
            return bad("slots", &self.slots, "write a number from 1 to 1000");
        }
        let is_place = |text: &str| {
            !text.is_empty() && !text.contains("://") && !text.contains([' ', '@']) && !text.ends_with('/')
        };
        if !self
            .registry_mirrors
            .iter()
            .all(|(registry, mirror)| is_place(registry) && !registry.contains('/') && is_place(mirror))
        {
            return bad(
                "registry_mirrors",
                &self.registry_mirrors,
                "write registries and mirrors as host names without a scheme, for example { \"docker.io\" = \"mirror.example.com:5000/hub\" }",
            );
        }
        if self.protection_window < Span(Duration::from_secs(1)) {
            return bad(
                "protection_window",
                &self.protection_window.0,
                "write at least \"1s\"; \"10m\" is the default",
            );
        }
        Ok(())
    }
}

fn default_engine() -> String {
    "unix:///var/run/docker.sock".into()
}

fn default_network_pool() -> String {
    "10.213.0.0/16".into()
}

fn default_slots() -> u32 {
    10
}

fn default_cache_budget() -> ByteSize {
    ByteSize(20 << 30)
}

fn default_protection_window() -> Span {
    Span(Duration::from_secs(600))
}

fn is_host_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-')
}

fn is_pool(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let (Ok(address), Ok(bits)) = (address.parse::<std::net::Ipv4Addr>(), bits.parse::<u32>()) else { return false };
    (8..=26).contains(&bits) && u32::from(address).trailing_zeros() >= 32 - bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("host.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn two_lines_are_enough_and_the_rest_has_defaults() {
        let config = parse("data_dir = \"/var/lib/devfleet-host\"\nname = \"box-1\"").expect("valid");
        assert_eq!(config.endpoints(), ["https://127.0.0.1:7443"]);
        assert_eq!(config.network_pool, "10.213.0.0/16");
        assert_eq!(config.slots, 10);
        assert_eq!(config.protection_window, Span(Duration::from_secs(600)));
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_line() {
        let refused = parse("data_dir = \"/d\"\nname = \"a\"\nslot = 3").expect_err("unknown field");
        assert!(refused.contains("line 3") && refused.contains("slot"), "{refused}");
    }

    #[test]
    fn every_refused_value_names_its_key_and_what_to_write() {
        let table = [
            ("data_dir = \"relative\"\nname = \"a\"", "data_dir", "absolute"),
            ("data_dir = \"/d\"\nname = \"\"", "name", "1 to 63"),
            ("data_dir = \"/d\"\nname = \"a\"\ncontroller = \"http://a:1\"", "controller", "https://"),
            ("data_dir = \"/d\"\nname = \"a\"\ncontroller = \"https://a:1/x\"", "controller", "without a path"),
            ("data_dir = \"/d\"\nname = \"a\"\ncontrollers = [\"https://a:1\", \"b\"]", "controllers", "each address"),
            (
                "data_dir = \"/d\"\nname = \"a\"\ncontroller = \"https://a:1\"\ncontrollers = [\"https://b:1\"]",
                "controllers",
                "leave `controller` out",
            ),
            ("data_dir = \"/d\"\nname = \"a\"\nengine = \"tcp://a\"", "engine", "unix://"),
            ("data_dir = \"/d\"\nname = \"a\"\nnetwork_pool = \"10.213.0.1/16\"", "network_pool", "prefix"),
            ("data_dir = \"/d\"\nname = \"a\"\nnetwork_pool = \"10.213.0.0/30\"", "network_pool", "8 to 26"),
            (
                "data_dir = \"/d\"\nname = \"a\"\nregistry_mirrors = {\"docker.io\" = \"https://a\"}",
                "registry_mirrors",
                "without a scheme",
            ),
            ("data_dir = \"/d\"\nname = \"a\"\nslots = 0", "slots", "1 to 1000"),
            ("data_dir = \"/d\"\nname = \"a\"\nprotection_window = \"0s\"", "protection_window", "1s"),
            ("data_dir = \"/d\"\nname = \"a\"\nprotection_window = \"soon\"", "line 3", "15m"),
        ];
        for (text, key, advice) in table {
            let refused = parse(text).expect_err(text);
            assert!(refused.contains(key) && refused.contains(advice), "{text}: {refused}");
        }
    }

    #[test]
    fn the_sample_in_deploy_is_valid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/host.toml");
        let config = Config::load(&path).expect("the sample loads");
        assert!(config.data_dir.is_absolute());
    }
}
