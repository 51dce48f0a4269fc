//! What exists on the engine in memory, and what making and removing does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use devfleet_shared::clock::Timestamp;

use super::containers::Container;
use super::{Call, Faults, Script};
use crate::engine::{
    ContainerSpec, ContainerState, EngineError, FoundObject, ImageFacts, Labels, NetworkSpec, ObjectKind, ObjectRef,
    label,
};

#[derive(Default)]
pub(super) struct State {
    pub(super) images: BTreeMap<String, ImageFacts>,
    pub(super) registry: BTreeMap<String, ImageFacts>,
    pub(super) networks: BTreeMap<String, NetworkSpec>,
    pub(super) foreign: Vec<String>,
    pub(super) taken: BTreeSet<String>,
    pub(super) volumes: BTreeMap<String, Labels>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) scripts: BTreeMap<String, Script>,
    pub(super) calls: Vec<Call>,
    pub(super) faults: Option<Faults>,
    pub(super) build_error: Option<String>,
    pub(super) build_time: Duration,
    pub(super) builds: usize,
}

pub(super) fn not_found(action: String) -> EngineError {
    EngineError::NotFound { action, detail: "no such object".into() }
}

impl State {
    pub(super) fn container(&mut self, verb: &str, name: &str) -> Result<&mut Container, EngineError> {
        self.containers.get_mut(name).ok_or_else(|| not_found(format!("{verb} container {name}")))
    }

    pub(super) fn make_network(&mut self, network: &NetworkSpec) -> Result<(), EngineError> {
        if self.networks.contains_key(&network.name) {
            return Ok(());
        }
        let ours = self.networks.values().any(|other| other.subnet == network.subnet);
        if ours || self.taken.contains(&network.subnet) {
            return Err(EngineError::SubnetTaken { name: network.name.clone(), subnet: network.subnet.clone() });
        }
        self.networks.insert(network.name.clone(), network.clone());
        Ok(())
    }

    pub(super) fn make_container(&mut self, spec: &ContainerSpec) -> Result<(), EngineError> {
        if self.containers.contains_key(&spec.name) {
            return Ok(());
        }
        if !self.images.iter().any(|(name, image)| *name == spec.image || image.id == spec.image) {
            return Err(not_found(format!("make container {}: image {}", spec.name, spec.image)));
        }
        let role = spec.labels.get(label::ROLE).map(String::as_str).unwrap_or_default();
        let default = if spec.stdin { Script::prints("", 0) } else { Script::runs() };
        let script = self.scripts.get(role).cloned().unwrap_or(default);
        self.containers.insert(spec.name.clone(), Container::new(spec.clone(), script));
        Ok(())
    }

    pub(super) fn remove(&mut self, object: &ObjectRef) -> Result<(), EngineError> {
        match object.kind {
            ObjectKind::Container => {
                if let Some(mut container) = self.containers.remove(&object.name) {
                    container.kill(137);
                }
            }
            ObjectKind::Network => drop(self.networks.remove(&object.name)),
            ObjectKind::Volume => {
                if self.containers.values().any(|container| container.uses_volume(&object.name)) {
                    let action = format!("remove volume {}", object.name);
                    return Err(EngineError::Other { action, status: 409, detail: "volume is in use".into() });
                }
                self.volumes.remove(&object.name);
            }
            ObjectKind::Image => drop(self.images.remove(&object.name)),
        }
        Ok(())
    }

    pub(super) fn list(&self, labels: &Labels) -> Vec<FoundObject> {
        let found = |kind, name: &str, labels: &Labels, in_use, subnet: Option<&String>| FoundObject {
            object: ObjectRef { kind, name: name.to_owned() },
            created: labels.get(label::CREATED).and_then(|text| text.parse().ok()).map(Timestamp),
            labels: labels.clone(),
            in_use,
            paused: self
                .containers
                .get(name)
                .is_some_and(|container| kind == ObjectKind::Container && container.paused),
            subnet: subnet.cloned(),
        };
        let running = |container: &Container| matches!(container.state(), ContainerState::Running { .. });
        let containers = self.containers.iter().map(|(name, container)| {
            found(ObjectKind::Container, name, &container.spec.labels, running(container), None)
        });
        let networks = self.networks.iter().map(|(name, network)| {
            let used = self.containers.values().any(|container| container.spec.network.as_ref() == Some(name));
            found(ObjectKind::Network, name, &network.labels, used, Some(&network.subnet))
        });
        let volumes = self.volumes.iter().map(|(name, labels)| {
            let used = self.containers.values().any(|container| container.uses_volume(name));
            found(ObjectKind::Volume, name, labels, used, None)
        });
        let images = self.images.iter().map(|(name, image)| {
            let used = self.containers.values().any(|container| container.spec.image == image.id);
            found(ObjectKind::Image, name, &image.labels, used, None)
        });
        let carries = |found: &FoundObject| labels.iter().all(|(name, value)| found.labels.get(name) == Some(value));
        containers.chain(networks).chain(volumes).chain(images).filter(carries).collect()
    }
}
