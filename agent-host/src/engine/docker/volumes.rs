//! Volumes: plain ones, and views that are an overlay of directories on the engine's disk.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::VolumeCreateRequest;

use super::{DEADLINE, DockerEngine};
use crate::engine::{EngineError, Labels, ViewSpec};

impl DockerEngine {
    pub(super) async fn make_volume(&self, name: &str, labels: &Labels) -> Result<(), EngineError> {
        self.create_volume(name, labels, None).await
    }

    /// The engine mounts the overlay when the first container with it starts, and takes the mount away with the last.
    pub(super) async fn make_view(&self, view: &ViewSpec) -> Result<(), EngineError> {
        let client = self.client().await?;
        // Newer engines refuse a name that is there with other options, older ones pass over it in silence.
        match self
            .within(DEADLINE, || format!("look for volume {}", view.name), client.inspect_volume(&view.name))
            .await
        {
            Ok(_) => return Ok(()),
            Err(EngineError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let (lower, upper, work) = (view.lower.display(), view.upper.display(), view.work.display());
        let options = HashMap::from([
            ("type".to_owned(), "overlay".to_owned()),
            ("device".to_owned(), "overlay".to_owned()),
            ("o".to_owned(), format!("lowerdir={lower},upperdir={upper},workdir={work}")),
        ]);
        self.create_volume(&view.name, &view.labels, Some(options)).await
    }

    async fn create_volume(
        &self,
        name: &str,
        labels: &Labels,
        options: Option<HashMap<String, String>>,
    ) -> Result<(), EngineError> {
        let client = self.client().await?;
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            driver: Some("local".into()),
            driver_opts: options,
            labels: Some(labels.clone().into_iter().collect()),
            ..VolumeCreateRequest::default()
        };
        self.within(DEADLINE, || format!("make volume {name}"), client.create_volume(request)).await.map(drop)
    }

    pub(super) async fn place_of_volume(&self, name: &str) -> Result<Option<PathBuf>, EngineError> {
        let client = self.client().await?;
        match self.within(DEADLINE, || format!("look for volume {name}"), client.inspect_volume(name)).await {
            Ok(volume) => Ok(Some(PathBuf::from(volume.mountpoint)).filter(|path| path.is_dir())),
            Err(EngineError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
