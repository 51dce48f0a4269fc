//! The `[files]` table: where logs and diffs are kept.

use std::path::PathBuf;

use devfleet_shared::secret::SecretRef;
use serde::Deserialize;

use super::ConfigError;

/// Where logs and diffs are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum FilesConfig {
    /// A directory; several controllers share one.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A bucket of a storage that speaks the protocol of S3.
    S3(S3Config),
}

/// How the bucket is reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The bucket. It exists already.
    pub bucket: String,
    /// Where the storage answers; `None`: AWS, by region.
    pub endpoint: Option<String>,
    /// The region.
    #[serde(default = "default_region")]
    pub region: String,
    /// What stands before every name: one bucket may serve several fleets.
    #[serde(default)]
    pub prefix: String,
    /// The id of the key, by reference.
    pub access_key: SecretRef,
    /// The key, by reference.
    pub secret_key: SecretRef,
    /// The authority of the endpoint's certificate, a PEM file, where it is not one that the machine trusts.
    pub ca: Option<PathBuf>,
}

fn default_region() -> String {
    "us-east-1".into()
}

impl FilesConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: &str| Err(ConfigError::Value { key, problem: problem.to_owned() });
        let s3 = match self {
            FilesConfig::Directory { path } if !path.is_absolute() => {
                return refuse("files.path", "write an absolute path");
            }
            FilesConfig::Directory { .. } => return Ok(()),
            FilesConfig::S3(s3) => s3,
        };
        let of_a_bucket = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if !(3..=63).contains(&s3.bucket.len()) || !s3.bucket.chars().all(of_a_bucket) {
            return refuse("files.bucket", "write a bucket's name: 3 to 63 lower-case letters, digits, dots or dashes");
        }
        let https = s3.endpoint.as_ref().is_none_or(|endpoint| endpoint.starts_with("https://"));
        if !https && !s3.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
            return refuse("files.endpoint", "write `https://name` or `http://name:port`");
        }
        if s3.region.is_empty() {
            return refuse("files.region", "write the bucket's region; a storage without regions takes `us-east-1`");
        }
        let parts_are_plain = s3.prefix.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if !s3.prefix.is_empty() && !parts_are_plain {
            return refuse("files.prefix", "write it without a slash at either end, as in `team-a/devfleet`");
        }
        if s3.ca.is_some() && !https {
            return refuse("files.ca", "write it with an `https` endpoint only");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &str) -> Result<FilesConfig, String> {
        let config: FilesConfig = toml::from_str(table).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    const KEYS: &str = "access_key = \"env://A\"\nsecret_key = \"file:///etc/b\"\n";

    #[test]
    fn a_directory_or_a_bucket_is_named_with_all_that_belongs_to_it() {
        let path = "/srv/devfleet".into();
        assert_eq!(check("kind = \"directory\"\npath = \"/srv/devfleet\""), Ok(FilesConfig::Directory { path }));
        let bucket = format!("kind = \"s3\"\nbucket = \"logs\"\n{KEYS}");
        let Ok(FilesConfig::S3(s3)) = check(&bucket) else { panic!("a bucket") };
        assert_eq!((s3.region.as_str(), s3.prefix.as_str(), s3.endpoint), ("us-east-1", "", None));
        let own = "endpoint = \"https://s3.example.com\"\nregion = \"eu\"\nprefix = \"a/b\"\nca = \"/etc/ca.pem\"";
        assert!(check(&format!("{bucket}{own}")).is_ok());
        assert!(check(&format!("{bucket}endpoint = \"http://10.0.0.1:9000\"")).is_ok());
    }

    #[test]
    fn halves_and_slips_are_named() {
        let s3 = |rest: &str| check(&format!("kind = \"s3\"\nbucket = \"logs\"\n{KEYS}{rest}")).expect_err(rest);
        assert!(s3("endpoint = \"s3.example.com\"").contains("files.endpoint"));
        assert!(s3("prefix = \"/a\"").contains("files.prefix"));
        assert!(s3("prefix = \"a/../b\"").contains("files.prefix"));
        assert!(s3("region = \"\"").contains("files.region"));
        assert!(s3("endpoint = \"http://a:1\"\nca = \"/ca\"").contains("files.ca"));
        assert!(s3("path = \"/x\"").contains("path"));
        assert!(
            check(&format!("kind = \"s3\"\nbucket = \"Logs\"\n{KEYS}")).expect_err("name").contains("files.bucket")
        );
        assert!(check("kind = \"s3\"\nbucket = \"logs\"").expect_err("no key").contains("access_key"));
        let plain = check("kind = \"s3\"\nbucket = \"logs\"\naccess_key = \"AKIA\"\nsecret_key = \"x\"");
        assert!(plain.is_err(), "a key stands in no file of ours");
        assert!(check("kind = \"directory\"\npath = \"x\"").expect_err("relative").contains("files.path"));
        assert!(check("kind = \"ftp\"").expect_err("unknown").contains("ftp"));
    }
}
