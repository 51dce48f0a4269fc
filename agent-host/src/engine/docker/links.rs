//! A container's places in networks: looked up, given up, taken again.
//!
//! Docker makes the address that is asked for anew with the same hardware address, so open connections within a network
//! outlive this. What goes on in the kernel of a paused container ends with its link.

use bollard::models::{EndpointIpamConfig, EndpointSettings, NetworkConnectRequest, NetworkDisconnectRequest};

use super::containers::already;
use super::{DEADLINE, DockerEngine};
use crate::engine::{EngineError, Link};

impl DockerEngine {
    pub(super) async fn links_of(&self, name: &str) -> Result<Vec<Link>, EngineError> {
        let client = self.client().await?;
        let inspect = client.inspect_container(name, None);
        let facts = match self.within(DEADLINE, || format!("look at the networks of {name}"), inspect).await {
            Ok(facts) => facts,
            Err(EngineError::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let networks = facts.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let link = |(network, endpoint): (String, EndpointSettings)| {
            // A container without a network is in one called `none`, without an address.
            let address = endpoint.ip_address?.parse().ok()?;
            Some(Link { network, address, aliases: endpoint.aliases.unwrap_or_default() })
        };
        let mut links: Vec<Link> = networks.into_iter().filter_map(link).collect();
        links.sort_by(|one, other| one.network.cmp(&other.network));
        Ok(links)
    }

    pub(super) async fn take_out(&self, name: &str, network: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let request = NetworkDisconnectRequest { container: name.to_owned(), force: Some(false) };
        let action = || format!("take container {name} out of network {network}");
        let outcome = self.within(DEADLINE, action, client.disconnect_network(network, request)).await;
        already(outcome, &["is not connected to"])
    }

    pub(super) async fn put_back(&self, name: &str, link: &Link) -> Result<(), EngineError> {
        let client = self.client().await?;
        let ipam = EndpointIpamConfig { ipv4_address: Some(link.address.to_string()), ..EndpointIpamConfig::default() };
        let endpoint = EndpointSettings {
            ipam_config: Some(ipam),
            aliases: Some(link.aliases.clone()),
            ..EndpointSettings::default()
        };
        let request = NetworkConnectRequest { container: name.to_owned(), endpoint_config: Some(endpoint) };
        let action = || format!("put container {name} back into network {}", link.network);
        let outcome = self.within(DEADLINE, action, client.connect_network(&link.network, request)).await;
        already(outcome, &["already exists in network"])
    }
}
