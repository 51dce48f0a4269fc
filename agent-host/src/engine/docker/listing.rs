//! Lists what carries our labels.

use std::collections::{BTreeSet, HashMap};

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, Ipam};
use bollard::query_parameters::{ListContainersOptions, ListImagesOptions, ListNetworksOptions, ListVolumesOptions};
use devfleet_shared::clock::Timestamp;

use super::{DEADLINE, DockerEngine};
use crate::engine::{EngineError, FoundObject, Labels, ObjectKind, ObjectRef};

/// What containers use, by name or id.
#[derive(Default)]
struct Used(BTreeSet<String>);

impl DockerEngine {
    pub(super) async fn list_objects(&self, labels: &Labels) -> Result<Vec<FoundObject>, EngineError> {
        let client = self.client().await?;
        let action = || "list objects".to_owned();
        let filters = Some(filters(labels));
        let containers =
            ListContainersOptions { all: true, filters: filters.clone(), ..ListContainersOptions::default() };
        let networks = ListNetworksOptions { filters: filters.clone() };
        let volumes = ListVolumesOptions { filters: filters.clone() };
        let images = ListImagesOptions { filters, ..ListImagesOptions::default() };
        let (containers, networks, volumes, images) = tokio::try_join!(
            self.within(DEADLINE, action, client.list_containers(Some(containers))),
            self.within(DEADLINE, action, client.list_networks(Some(networks))),
            self.within(DEADLINE, action, client.list_volumes(Some(volumes))),
            self.within(DEADLINE, action, client.list_images(Some(images))),
        )?;
        let mut used = Used::default();
        let mut found: Vec<FoundObject> =
            containers.into_iter().filter_map(|summary| used.container(summary)).collect();
        for network in networks {
            let Some(name) = network.name else { continue };
            let in_use = used.0.contains(&name);
            let subnet = network.ipam.and_then(|ipam| subnets_of(ipam).next());
            let created = network.created.as_deref().and_then(moment);
            found.push(FoundObject { in_use, subnet, ..object(ObjectKind::Network, name, network.labels, created) });
        }
        for volume in volumes.volumes.unwrap_or_default() {
            let in_use = used.0.contains(&volume.name);
            let created = volume.created_at.as_deref().and_then(moment);
            found.push(FoundObject { in_use, ..object(ObjectKind::Volume, volume.name, Some(volume.labels), created) });
        }
        for image in images {
            let in_use = used.0.contains(&image.id);
            let named: Vec<_> = image.repo_tags.into_iter().filter(|tag| tag != "<none>:<none>").collect();
            for name in if named.is_empty() { vec![image.id] } else { named } {
                let created = seconds(image.created);
                found.push(FoundObject {
                    in_use,
                    ..object(ObjectKind::Image, name, Some(image.labels.clone()), created)
                });
            }
        }
        Ok(found)
    }
}

impl DockerEngine {
    pub(super) async fn list_containers(&self, labels: &Labels) -> Result<Vec<FoundObject>, EngineError> {
        let client = self.client().await?;
        let options = ListContainersOptions { all: true, filters: Some(filters(labels)), ..Default::default() };
        let list = client.list_containers(Some(options));
        let containers = self.within(DEADLINE, || "list containers".to_owned(), list).await?;
        let mut used = Used::default();
        Ok(containers.into_iter().filter_map(|summary| used.container(summary)).collect())
    }
}

fn filters(labels: &Labels) -> HashMap<String, Vec<String>> {
    let wanted = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    HashMap::from([("label".to_owned(), wanted)])
}

impl Used {
    /// Takes one container in, and what it uses.
    fn container(&mut self, summary: ContainerSummary) -> Option<FoundObject> {
        let name = summary.names?.into_iter().next()?.trim_start_matches('/').to_owned();
        let networks = summary.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        self.0.extend(networks.into_keys());
        self.0.extend(summary.mounts.unwrap_or_default().into_iter().filter_map(|mount| mount.name));
        self.0.extend(summary.image_id);
        let resting =
            [ContainerSummaryStateEnum::CREATED, ContainerSummaryStateEnum::EXITED, ContainerSummaryStateEnum::DEAD];
        let in_use = summary.state.is_some_and(|state| !resting.contains(&state));
        let paused = summary.state == Some(ContainerSummaryStateEnum::PAUSED);
        let created = summary.created.and_then(seconds);
        Some(FoundObject { in_use, paused, ..object(ObjectKind::Container, name, summary.labels, created) })
    }
}

/// Names an object with its labels; how it is used and what its addresses are is for the caller to add.
fn object(
    kind: ObjectKind,
    name: String,
    labels: Option<HashMap<String, String>>,
    created: Option<Timestamp>,
) -> FoundObject {
    let labels = labels.unwrap_or_default().into_iter().collect();
    FoundObject { object: ObjectRef { kind, name }, labels, created, in_use: false, paused: false, subnet: None }
}

/// Returns the addresses of a network.
pub(super) fn subnets_of(ipam: Ipam) -> impl Iterator<Item = String> {
    ipam.config.unwrap_or_default().into_iter().filter_map(|config| config.subnet)
}

fn moment(text: &str) -> Option<Timestamp> {
    let moment = text.parse::<jiff::Timestamp>().ok()?;
    u64::try_from(moment.as_millisecond()).ok().map(Timestamp)
}

fn seconds(seconds: i64) -> Option<Timestamp> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(|seconds| Timestamp(seconds.saturating_mul(1_000)))
}
