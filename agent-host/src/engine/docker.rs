//! Docker, over its socket.
//!
//! Each call has a deadline of its own, since a Docker daemon can hang on one container for ever. The archive API
//! (`docker cp`) is never used: on unpatched engines it lets a container write to its host. Nothing is ever privileged.

mod containers;
mod context;
mod errors;
mod images;
mod links;
mod listing;
mod output;
mod removal;
mod volumes;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::sync::OnceCell;

use super::{
    Attached, ContainerSpec, ContainerState, Engine, EngineError, EngineFacts, Exit, FoundObject, ImageBuild,
    ImageFacts, Labels, Link, NetworkSpec, ObjectRef, OutputStream, Progress, RegistryCredential, ViewSpec,
};

/// The oldest API we work with: Docker 20.10.
const API_FLOOR: (usize, usize) = (1, 41);
/// How long an ordinary call may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a container may take to start: the engine does them one after another when many start at once.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// Docker's client library has a time-out of its own, for answers' heads. It must never be the one that strikes.
const LIBRARY_TIMEOUT_S: u64 = 48 * 3600;

/// Docker at one socket.
pub struct DockerEngine {
    address: String,
    client: OnceCell<Docker>,
}

impl DockerEngine {
    /// Names the engine at `unix:///path` (or a plain path). Nothing is asked until the first call.
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned(), client: OnceCell::new() }
    }

    /// Returns the client, once the engine has answered and is new enough.
    async fn client(&self) -> Result<&Docker, EngineError> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Docker, EngineError> {
        let action = || "ask for the engine's version".to_owned();
        let client = Docker::connect_with_unix(&self.address, LIBRARY_TIMEOUT_S, API_DEFAULT_VERSION)
            .map_err(|error| self.error(error, action()))?;
        let client = self.within(DEADLINE, action, client.negotiate_version()).await?;
        let api = client.client_version();
        if (api.major_version, api.minor_version) < API_FLOOR {
            let version = self.within(DEADLINE, action, client.version()).await?;
            return Err(EngineError::TooOld {
                version: version.version.unwrap_or_default(),
                api: api.to_string(),
                needed: format!("{}.{}", API_FLOOR.0, API_FLOOR.1),
            });
        }
        Ok(client)
    }

    /// Carries out one call within a deadline.
    async fn within<T>(
        &self,
        deadline: Duration,
        action: impl Fn() -> String,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(deadline, call).await {
            Ok(outcome) => outcome.map_err(|error| self.error(error, action())),
            Err(_) => Err(EngineError::Deadline { action: action(), after: deadline }),
        }
    }

    fn error(&self, error: bollard::errors::Error, action: String) -> EngineError {
        errors::translate(error, action, &self.address)
    }
}

#[async_trait]
impl Engine for DockerEngine {
    async fn facts(&self) -> Result<EngineFacts, EngineError> {
        let client = self.client().await?;
        let facts = self.within(DEADLINE, || "ask what the engine is".into(), client.info()).await?;
        Ok(EngineFacts {
            version: facts.server_version.unwrap_or_default(),
            api: client.client_version().to_string(),
            storage_driver: facts.driver.unwrap_or_default(),
            data_root: facts.docker_root_dir.unwrap_or_default(),
            cpus: facts.ncpu.and_then(|cpus| cpus.try_into().ok()).unwrap_or(0),
            memory_bytes: facts.mem_total.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0),
            runtimes: facts.runtimes.unwrap_or_default().into_keys().collect(),
        })
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageFacts>, EngineError> {
        self.inspect_image(reference).await
    }

    async fn pull(
        &self,
        reference: &str,
        platform: &str,
        login: Option<&RegistryCredential>,
    ) -> Result<ImageFacts, EngineError> {
        self.pull_image(reference, platform, login).await
    }

    async fn build(&self, build: &ImageBuild, progress: &Progress<'_>) -> Result<ImageFacts, EngineError> {
        self.build_image(build, progress).await
    }

    async fn ensure_network(&self, network: &NetworkSpec) -> Result<(), EngineError> {
        let client = self.client().await?;
        let action = || format!("make network {}", network.name);
        // Docker takes two networks of one name, so it has to be asked first.
        let found = self.within(DEADLINE, action, client.inspect_network(&network.name, None)).await;
        match found {
            Err(EngineError::NotFound { .. }) => {}
            other => return other.map(drop),
        }
        let request = NetworkCreateRequest {
            name: network.name.clone(),
            driver: Some("bridge".into()),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig { subnet: Some(network.subnet.clone()), ..IpamConfig::default() }]),
                ..Ipam::default()
            }),
            enable_ipv6: Some(false),
            labels: Some(network.labels.clone().into_iter().collect()),
            ..NetworkCreateRequest::default()
        };
        match self.within(DEADLINE, action, client.create_network(request)).await {
            Ok(_) => Ok(()),
            Err(EngineError::Other { detail, .. }) if errors::is_subnet_taken(&detail) => {
                Err(EngineError::SubnetTaken { name: network.name.clone(), subnet: network.subnet.clone() })
            }
            Err(error) => Err(error),
        }
    }

    async fn ensure_volume(&self, name: &str, labels: &Labels) -> Result<(), EngineError> {
        self.make_volume(name, labels).await
    }

    async fn volume_path(&self, name: &str) -> Result<Option<PathBuf>, EngineError> {
        self.place_of_volume(name).await
    }

    async fn ensure_view(&self, view: &ViewSpec) -> Result<(), EngineError> {
        self.make_view(view).await
    }

    async fn ensure_container(&self, container: &ContainerSpec) -> Result<(), EngineError> {
        self.create_container(container).await
    }

    async fn start(&self, name: &str, input: Option<&[u8]>, attach: bool) -> Result<Attached, EngineError> {
        self.start_container(name, input, attach).await
    }

    async fn state(&self, name: &str) -> Result<Option<ContainerState>, EngineError> {
        self.inspect_container(name).await
    }

    async fn wait(&self, name: &str) -> Result<Exit, EngineError> {
        self.wait_for_exit(name).await
    }

    async fn output(&self, name: &str, since: Option<&str>) -> Result<OutputStream, EngineError> {
        self.kept_output(name, since).await
    }

    async fn stop(&self, name: &str, grace: Duration) -> Result<(), EngineError> {
        self.stop_container(name, grace).await
    }

    async fn pause(&self, name: &str) -> Result<(), EngineError> {
        self.pause_container(name).await
    }

    async fn unpause(&self, name: &str) -> Result<(), EngineError> {
        self.unpause_container(name).await
    }

    async fn links(&self, name: &str) -> Result<Vec<Link>, EngineError> {
        self.links_of(name).await
    }

    async fn disconnect(&self, name: &str, network: &str) -> Result<(), EngineError> {
        self.take_out(name, network).await
    }

    async fn connect(&self, name: &str, link: &Link) -> Result<(), EngineError> {
        self.put_back(name, link).await
    }

    async fn remove(&self, object: &ObjectRef) -> Result<(), EngineError> {
        self.remove_object(object).await
    }

    async fn list(&self, labels: &Labels) -> Result<Vec<FoundObject>, EngineError> {
        self.list_objects(labels).await
    }

    async fn containers(&self, labels: &Labels) -> Result<Vec<FoundObject>, EngineError> {
        self.list_containers(labels).await
    }

    async fn subnets(&self) -> Result<Vec<String>, EngineError> {
        let client = self.client().await?;
        let networks = self.within(DEADLINE, || "list networks".into(), client.list_networks(None)).await?;
        Ok(networks.into_iter().filter_map(|network| network.ipam).flat_map(listing::subnets_of).collect())
    }
}
