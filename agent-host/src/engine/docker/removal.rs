//! Removing objects for good, and what Docker needs to be told twice about.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::NetworkDisconnectRequest;
use bollard::query_parameters::{ListNetworksOptions, RemoveContainerOptions, RemoveImageOptions, RemoveVolumeOptions};
use tokio::time::Instant;

use super::{DEADLINE, DockerEngine};
use crate::engine::{EngineError, ObjectKind, ObjectRef};

/// How long the removal of one container may take: its file tree goes too.
const REMOVE_DEADLINE: Duration = Duration::from_secs(120);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

impl DockerEngine {
    pub(super) async fn remove_object(&self, object: &ObjectRef) -> Result<(), EngineError> {
        let outcome = match object.kind {
            ObjectKind::Container => self.remove_container(&object.name).await,
            ObjectKind::Network => self.remove_network(&object.name).await,
            ObjectKind::Volume => self.remove_volume(&object.name).await,
            ObjectKind::Image => self.remove_image(&object.name).await,
        };
        match outcome {
            Err(EngineError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    async fn remove_container(&self, name: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let action = || format!("remove container {name}");
        // With its anonymous volumes: images declare some, and nobody would ever find them again.
        let options = RemoveContainerOptions { v: true, force: true, link: false };
        match self.within(REMOVE_DEADLINE, action, client.remove_container(name, Some(options))).await {
            Err(EngineError::Other { status: 409, detail, .. }) if detail.contains("already in progress") => {
                self.until_gone(name).await
            }
            other => other,
        }
    }

    /// Waits for a removal that is under way already.
    async fn until_gone(&self, name: &str) -> Result<(), EngineError> {
        let begin = Instant::now();
        while self.inspect_container(name).await?.is_some() {
            if begin.elapsed() > DEADLINE {
                return Err(EngineError::Deadline { action: format!("remove container {name}"), after: DEADLINE });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let action = || format!("remove network {name}");
        match self.within(DEADLINE, action, client.remove_network(name)).await {
            Err(EngineError::Other { detail, .. }) if detail.contains("is ambiguous") => {
                return self.remove_namesakes(name).await;
            }
            Err(EngineError::Other { detail, .. }) if detail.contains("has active endpoints") => {}
            other => return other,
        }
        // Left by a crash of the engine: the endpoint is there and its container may not be, so by name and by force.
        let facts = self.within(DEADLINE, action, client.inspect_network(name, None)).await?;
        let endpoints = facts.containers.unwrap_or_default();
        for (id, endpoint) in endpoints {
            let container = endpoint.name.filter(|name| !name.is_empty()).unwrap_or(id);
            let request = NetworkDisconnectRequest { container, force: Some(true) };
            if let Err(error) = self.within(DEADLINE, action, client.disconnect_network(name, request)).await {
                tracing::warn!(network = name, %error, "an endpoint resists its removal");
            }
        }
        self.within(DEADLINE, action, client.remove_network(name)).await
    }

    /// Removes networks that share one name: two calls that crossed can make them, and Docker then refuses the name.
    async fn remove_namesakes(&self, name: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let action = || format!("remove network {name}");
        let filters = Some(HashMap::from([("name".to_owned(), vec![name.to_owned()])]));
        let options = ListNetworksOptions { filters };
        let networks = self.within(DEADLINE, action, client.list_networks(Some(options))).await?;
        // The filter also finds names that only contain this one.
        for network in networks.into_iter().filter(|network| network.name.as_deref() == Some(name)) {
            let id = network.id.unwrap_or_default();
            match self.within(DEADLINE, action, client.remove_network(&id)).await {
                Ok(()) | Err(EngineError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let options = RemoveVolumeOptions { force: true };
        let remove = client.remove_volume(name, Some(options));
        self.within(REMOVE_DEADLINE, || format!("remove volume {name}"), remove).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let remove = client.remove_image(name, None::<RemoveImageOptions>, None);
        self.within(REMOVE_DEADLINE, || format!("remove image {name}"), remove).await.map(drop)
    }
}
