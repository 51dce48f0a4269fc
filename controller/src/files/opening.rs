//! From the configuration to files that can be used: references resolved, the client's patience set.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};

use super::Files;
use crate::config::{Config, FilesConfig, S3Config};
use crate::secrets::{self, SecretError};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(8);
/// How long a call is repeated. Hosts wait 20 s for the answer to a chunk.
const PATIENCE: Duration = Duration::from_secs(6);

/// Why files cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenFilesError {
    /// The directory cannot be made or used.
    #[error("use the directory {path} for logs and diffs")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key cannot be had.
    #[error("resolve `files.{key}`")]
    Secret {
        /// The configuration's key.
        key: &'static str,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// The authority cannot be read.
    #[error("read {path}, named by `files.ca`")]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The client cannot be made of what the configuration says.
    #[error("use the bucket {bucket}")]
    Client {
        /// The bucket.
        bucket: String,
        /// Why.
        #[source]
        source: object_store::Error,
    },
}

/// Opens the files that the configuration names. Does not reach out: see [`Files::try_out`].
pub async fn open(config: &Config) -> Result<Files, OpenFilesError> {
    let directory = match &config.files {
        Some(FilesConfig::S3(s3)) => return open_bucket(s3).await,
        Some(FilesConfig::Directory { path }) => path,
        None => &config.data_dir,
    };
    Files::in_directory(directory).map_err(|source| OpenFilesError::Directory { path: directory.clone(), source })
}

async fn open_bucket(config: &S3Config) -> Result<Files, OpenFilesError> {
    let secret = |key: &'static str| move |source| OpenFilesError::Secret { key, source };
    let access_key = secrets::resolve(&config.access_key).await.map_err(secret("access_key"))?;
    let secret_key = secrets::resolve(&config.secret_key).await.map_err(secret("secret_key"))?;
    let mut client = ClientOptions::new()
        .with_timeout(REQUEST)
        .with_connect_timeout(Duration::from_secs(3))
        .with_allow_http(config.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")));
    if let Some(path) = &config.ca {
        let failed = |source| OpenFilesError::Authority { path: path.clone(), source };
        let pem = std::fs::read(path).map_err(|error| failed(error.into()))?;
        client = client.with_root_certificate(Certificate::from_pem(&pem).map_err(|error| failed(error.into()))?);
    }
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2.0 };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&config.bucket)
        .with_region(&config.region)
        .with_access_key_id(access_key.expose())
        .with_secret_access_key(secret_key.expose())
        .with_client_options(client)
        .with_retry(RetryConfig { backoff, max_retries: 4, retry_timeout: PATIENCE });
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let failed = |source| OpenFilesError::Client { bucket: config.bucket.clone(), source };
    let bucket = builder.build().map_err(failed)?;
    Ok(Files::on(Arc::new(PrefixStore::new(bucket, config.prefix.as_str()))))
}
