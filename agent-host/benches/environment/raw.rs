//! The yardstick of bare engine calls: as few as do, one after the other, with nothing looked at, retried or written down.
//!
//! The containers are recorded from an environment that the saga made, so their settings are the same by construction.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;

use anyhow::Context as _;
use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, EndpointSettings, NetworkCreateRequest, NetworkingConfig, VolumeCreateRequest,
};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, RemoveContainerOptions, RemoveVolumeOptions,
};
use devfleet_host::environment::frame;
use devfleet_shared::id::AttemptId;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::saga::{FIRST_LINE, SERVICE_NAME, STEP, Saga};
use crate::{SOCKET, Spans};

/// The port of the service.
const PORT: u16 = 6379;
/// The pause between two tries to connect, as the saga has it.
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct Raw {
    client: Docker,
    pattern: Pattern,
    networks: AtomicU32,
}

/// What an environment consists of, as JSON in which its attempt stands for that of each copy.
struct Pattern {
    attempt: AttemptId,
    network: String,
    volume: String,
    service: String,
    step: String,
}

impl Raw {
    pub(crate) async fn record(saga: &Saga) -> anyhow::Result<Raw> {
        let client = Docker::connect_with_unix(SOCKET, 600, bollard::API_DEFAULT_VERSION)?.negotiate_version().await?;
        let attempt = AttemptId::random();
        let pattern = saga.showing(attempt.clone(), async || Pattern::record(&client, attempt.clone()).await).await?;
        Ok(Raw { client, pattern, networks: AtomicU32::new(0) })
    }

    pub(crate) async fn once(&self) -> anyhow::Result<Spans> {
        let copy = Copy::new(&self.pattern, self.networks.fetch_add(1, Ordering::Relaxed) % 2048)?;
        let begin = Instant::now();
        self.bring_up(&copy).await?;
        let up = begin.elapsed();
        let begin = Instant::now();
        self.tear_down(&copy).await?;
        Ok(Spans { up, down: begin.elapsed() })
    }

    async fn bring_up(&self, copy: &Copy) -> anyhow::Result<()> {
        self.client.create_network(copy.network.clone()).await?;
        self.client.create_volume(copy.volume.clone()).await?;
        let (service, step) = (copy.name(SERVICE_NAME), copy.name(STEP.name()));
        self.client.create_container(named(&service), copy.service.clone()).await?;
        self.client.start_container(&service, None).await?;
        self.until_ready(&service).await?;
        self.client.create_container(named(&step), copy.step.clone()).await?;
        let options = AttachContainerOptions { stream: true, stdin: true, stdout: true, ..Default::default() };
        let mut ends = self.client.attach_container(&step, Some(options)).await?;
        self.client.start_container(&step, None).await?;
        ends.input.write_all(&frame(&BTreeMap::new())?).await?;
        ends.input.shutdown().await?;
        let first = ends.output.next().await.context("the step ended without a line")??.into_bytes();
        anyhow::ensure!(first.starts_with(FIRST_LINE.as_bytes()), "the step printed {first:?}");
        Ok(())
    }

    async fn until_ready(&self, service: &str) -> anyhow::Result<()> {
        let facts = self.client.inspect_container(service, None).await?;
        let networks = facts.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let address = networks.into_values().find_map(|network| network.ip_address?.parse().ok());
        let address = SocketAddr::new(address.context("the service has no address")?, PORT);
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn tear_down(&self, copy: &Copy) -> anyhow::Result<()> {
        for role in [STEP.name(), SERVICE_NAME] {
            let options = RemoveContainerOptions { v: true, force: true, link: false };
            self.client.remove_container(&copy.name(role), Some(options)).await?;
        }
        self.client.remove_network(&copy.name("network")).await?;
        self.client.remove_volume(&copy.name("workspace"), None::<RemoveVolumeOptions>).await?;
        Ok(())
    }
}

fn named(name: &str) -> Option<CreateContainerOptions> {
    Some(CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() })
}

impl Pattern {
    async fn record(client: &Docker, attempt: AttemptId) -> anyhow::Result<Pattern> {
        let network = client.inspect_network(&attempt.object_name("network"), None).await?;
        let volume = client.inspect_volume(&attempt.object_name("workspace")).await?;
        Ok(Pattern {
            network: json!({
                "Name": network.name,
                "Driver": "bridge",
                "EnableIPv6": false,
                "Labels": network.labels,
            })
            .to_string(),
            volume: json!({ "Name": volume.name, "Driver": "local", "Labels": volume.labels }).to_string(),
            service: container(client, &attempt, SERVICE_NAME, &[SERVICE_NAME]).await?,
            step: container(client, &attempt, STEP.name(), &[]).await?,
            attempt,
        })
    }
}

/// Describes a container that is there for making another like it.
async fn container(client: &Docker, attempt: &AttemptId, role: &str, aliases: &[&str]) -> anyhow::Result<String> {
    let facts = client.inspect_container(&attempt.object_name(role), None).await?;
    let mut body = serde_json::to_value(facts.config.context("a container without settings")?)?;
    let fields = body.as_object_mut().context("settings that are no object")?;
    // The engine derived it from the container's id.
    fields.remove("Hostname");
    fields.insert("HostConfig".into(), serde_json::to_value(facts.host_config)?);
    let endpoint = EndpointSettings {
        aliases: Some(aliases.iter().map(|alias| (*alias).to_owned()).collect()),
        ..EndpointSettings::default()
    };
    let endpoints = HashMap::from([(attempt.object_name("network"), endpoint)]);
    fields.insert(
        "NetworkingConfig".into(),
        serde_json::to_value(NetworkingConfig { endpoints_config: Some(endpoints) })?,
    );
    Ok(Value::to_string(&body))
}

/// What one environment consists of.
struct Copy {
    attempt: AttemptId,
    network: NetworkCreateRequest,
    volume: VolumeCreateRequest,
    service: ContainerCreateBody,
    step: ContainerCreateBody,
}

impl Copy {
    fn new(pattern: &Pattern, number: u32) -> anyhow::Result<Copy> {
        let attempt = AttemptId::random();
        let own = |text: &str| text.replace(pattern.attempt.as_str(), attempt.as_str());
        let mut network: Value = serde_json::from_str(&own(&pattern.network))?;
        // Beside the addresses that the saga uses.
        let subnet = format!("10.231.{}.{}/28", 128 + number / 16, number % 16 * 16);
        network["IPAM"] = json!({ "Config": [{ "Subnet": subnet }] });
        Ok(Copy {
            network: serde_json::from_value(network)?,
            volume: serde_json::from_str(&own(&pattern.volume))?,
            service: serde_json::from_str(&own(&pattern.service))?,
            step: serde_json::from_str(&own(&pattern.step))?,
            attempt,
        })
    }

    fn name(&self, role: &str) -> String {
        self.attempt.object_name(role)
    }
}
