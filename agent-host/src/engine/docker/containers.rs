//! Containers: made, started with their input, watched, stopped.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bollard::container::{AttachContainerResults, LogOutput};
use bollard::models::{
    ContainerCreateBody, ContainerStateStatusEnum, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig,
    Mount as DockerMount, MountType, NetworkingConfig, ResourcesUlimits,
};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, StopContainerOptions, WaitContainerOptions,
};
use futures_util::{StreamExt as _, stream};
use tokio::io::AsyncWriteExt as _;

use super::{DEADLINE, DockerEngine, START_DEADLINE, errors};
use crate::engine::{Attached, ContainerSpec, ContainerState, EngineError, Exit, Mount, OutputFrame};

/// Open files of one process. An engine cannot give more than it was given itself, and 20,000 is a common limit.
const OPEN_FILES: i64 = 16_384;
/// The longest single wait; then the engine is asked again how things are.
const WAIT: Duration = Duration::from_secs(60);
/// The pause before something that was cut short is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// How much output is set aside while the input is being written, in bytes.
const SET_ASIDE: usize = 4 << 20;

impl DockerEngine {
    pub(super) async fn create_container(&self, spec: &ContainerSpec) -> Result<(), EngineError> {
        let client = self.client().await?;
        let options = CreateContainerOptions { name: Some(spec.name.clone()), ..CreateContainerOptions::default() };
        let create = client.create_container(Some(options), body(spec));
        match self.within(DEADLINE, || format!("make container {}", spec.name), create).await {
            Ok(_) => Ok(()),
            Err(EngineError::Other { status: 409, detail, .. }) if detail.contains("already in use") => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn start_container(
        &self,
        name: &str,
        input: Option<&[u8]>,
        attach: bool,
    ) -> Result<Attached, EngineError> {
        let client = self.client().await?;
        let action = || format!("start container {name}");
        let before = self.inspect_container(name).await?;
        match before {
            None => return Err(EngineError::NotFound { action: action(), detail: "it does not exist".into() }),
            // Docker would run it once more.
            Some(ContainerState::Exited(_)) => return Ok(Attached { output: attach.then(|| stream::empty().boxed()) }),
            Some(_) => {}
        }
        // What was started before has its input already.
        let input = input.filter(|_| before == Some(ContainerState::Created));
        let mut ends = None;
        if input.is_some() || attach {
            let options = AttachContainerOptions {
                stream: true,
                stdin: input.is_some(),
                stdout: attach,
                stderr: attach,
                ..AttachContainerOptions::default()
            };
            ends = Some(self.within(DEADLINE, action, client.attach_container(name, Some(options))).await?);
        }
        match self.within(START_DEADLINE, action, client.start_container(name, None)).await {
            Ok(()) => {}
            Err(EngineError::Other { detail, .. } | EngineError::NotFound { detail, .. })
                if errors::is_not_runnable(&detail) =>
            {
                return Err(EngineError::NotRunnable { name: name.to_owned(), detail });
            }
            Err(error) => return Err(error),
        }
        let Some(ends) = ends else { return Ok(Attached { output: None }) };
        let output = tokio::time::timeout(DEADLINE, feed(ends, input.unwrap_or_default()))
            .await
            .map_err(|_| EngineError::Deadline { action: format!("write the input of {name}"), after: DEADLINE })?;
        if attach {
            let address = self.address.clone();
            let name = name.to_owned();
            let output = output.map(move |item| {
                let read = item.map(|item| frame(item, None));
                read.map_err(|error| errors::translate(error, format!("read the output of {name}"), &address))
            });
            return Ok(Attached { output: Some(output.boxed()) });
        }
        // The engine hangs up once it has passed everything on; until then the input might still be lost with us.
        let _ = tokio::time::timeout(DEADLINE, output.for_each(async |_| ())).await;
        Ok(Attached { output: None })
    }

    pub(super) async fn inspect_container(&self, name: &str) -> Result<Option<ContainerState>, EngineError> {
        let client = self.client().await?;
        let inspect = client.inspect_container(name, None);
        let facts = match self.within(DEADLINE, || format!("look at container {name}"), inspect).await {
            Ok(facts) => facts,
            Err(EngineError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = facts.state.unwrap_or_default();
        if state.running == Some(true) {
            let networks = facts.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
            let address = networks.into_values().find_map(|network| network.ip_address?.parse().ok());
            return Ok(Some(ContainerState::Running { address }));
        }
        if state.status == Some(ContainerStateStatusEnum::CREATED) {
            return Ok(Some(ContainerState::Created));
        }
        let out_of_memory = state.oom_killed.unwrap_or(false);
        Ok(Some(ContainerState::Exited(Exit { status: state.exit_code.unwrap_or(-1), out_of_memory })))
    }

    pub(super) async fn wait_for_exit(&self, name: &str) -> Result<Exit, EngineError> {
        let client = self.client().await?;
        loop {
            match self.inspect_container(name).await? {
                Some(ContainerState::Exited(exit)) => return Ok(exit),
                Some(ContainerState::Created) => tokio::time::sleep(PAUSE).await,
                Some(ContainerState::Running { .. }) => {
                    let options = WaitContainerOptions { condition: "not-running".into() };
                    let mut wait = Box::pin(client.wait_container(name, Some(options)));
                    // Whatever this says, and whether it was cut or not: how things are is asked above.
                    let waited = tokio::time::timeout(WAIT, wait.next()).await;
                    if matches!(waited, Ok(None | Some(Err(bollard::errors::Error::HyperLegacyError { .. })))) {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                None => {
                    let action = format!("wait for container {name}");
                    return Err(EngineError::NotFound { action, detail: "it does not exist".into() });
                }
            }
        }
    }

    pub(super) async fn pause_container(&self, name: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let paused = self.within(DEADLINE, || format!("pause container {name}"), client.pause_container(name)).await;
        already(paused, &["is already paused", "is not running"])
    }

    pub(super) async fn unpause_container(&self, name: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let resumed =
            self.within(DEADLINE, || format!("resume container {name}"), client.unpause_container(name)).await;
        already(resumed, &["is not paused", "is not running"])
    }

    pub(super) async fn stop_container(&self, name: &str, grace: Duration) -> Result<(), EngineError> {
        let client = self.client().await?;
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let stop = client.stop_container(name, Some(StopContainerOptions { signal: None, t: Some(seconds) }));
        match self.within(grace + DEADLINE, || format!("stop container {name}"), stop).await {
            Err(EngineError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}

/// Takes what is so already for success.
pub(super) fn already(outcome: Result<(), EngineError>, so: &[&str]) -> Result<(), EngineError> {
    match outcome {
        Err(EngineError::NotFound { .. }) => Ok(()),
        Err(EngineError::Other { detail, .. }) if so.iter().any(|so| detail.contains(so)) => Ok(()),
        other => other,
    }
}

/// Writes the input and closes it, reading what comes meanwhile: a program that prints while it reads must not block.
async fn feed(
    ends: AttachContainerResults,
    bytes: &[u8],
) -> impl futures_util::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send + use<> {
    let AttachContainerResults { mut output, mut input } = ends;
    let mut aside = VecDeque::new();
    let mut length = 0;
    {
        let write = async {
            // A program that ends without reading cuts us off; its exit status tells.
            if input.write_all(bytes).await.is_ok() {
                let _ = input.flush().await;
            }
            let _ = input.shutdown().await;
        };
        tokio::pin!(write);
        let mut open = true;
        loop {
            tokio::select! {
                () = &mut write => break,
                item = output.next(), if open && length < SET_ASIDE => match item {
                    Some(item) => {
                        length += item.as_ref().map_or(0, |item| item.as_ref().len());
                        aside.push_back(item);
                    }
                    None => open = false,
                },
            }
        }
    }
    // The input goes along: dropping it before the end would close the connection on some transports.
    stream::iter(aside).chain(output).map(move |item| {
        let _ = &input;
        item
    })
}

/// Takes one piece of output as it is.
pub(super) fn frame(item: LogOutput, stamp: Option<String>) -> OutputFrame {
    let is_error = matches!(item, LogOutput::StdErr { .. });
    OutputFrame { is_error, stamp, data: item.into_bytes() }
}

/// Describes a container to Docker: everything that is not wished for is off.
fn body(spec: &ContainerSpec) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: spec.entrypoint.clone(),
        cmd: spec.command.clone(),
        env: Some(spec.variables.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        labels: Some(spec.labels.clone().into_iter().collect()),
        open_stdin: Some(spec.stdin),
        stdin_once: Some(spec.stdin),
        attach_stdin: Some(spec.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(false),
        stop_signal: Some("SIGTERM".into()),
        // An image's health check can hang the engine, and nobody here looks at it.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
        host_config: Some(host_config(spec)),
        networking_config: spec.network.as_ref().map(|network| {
            let endpoint = EndpointSettings { aliases: Some(spec.aliases.clone()), ..EndpointSettings::default() };
            NetworkingConfig { endpoints_config: Some(HashMap::from([(network.clone(), endpoint)])) }
        }),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &ContainerSpec) -> HostConfig {
    let amount = |number: u64| (number > 0).then(|| i64::try_from(number).unwrap_or(i64::MAX));
    let limit = |name: &str, limit| ResourcesUlimits { name: Some(name.into()), soft: Some(limit), hard: Some(limit) };
    HostConfig {
        network_mode: Some(spec.network.clone().unwrap_or_else(|| "none".into())),
        mounts: Some(spec.mounts.iter().map(mount).collect()),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(spec.capabilities.clone()),
        security_opt: Some(vec!["no-new-privileges".into()]),
        privileged: Some(false),
        ipc_mode: Some("private".into()),
        memory: amount(spec.memory_bytes),
        // The same number means: no swap on top of it.
        memory_swap: amount(spec.memory_bytes),
        nano_cpus: amount(spec.cpu_millis.saturating_mul(1_000_000)),
        pids_limit: amount(spec.pids),
        runtime: spec.runtime.clone(),
        init: Some(spec.init),
        ulimits: Some(vec![limit("nofile", OPEN_FILES), limit("core", 0)]),
        log_config: Some(log_config(spec.keep_output)),
        ..HostConfig::default()
    }
}

/// What is kept is bounded; the default driver's file would grow until the disk is full.
fn log_config(keep: bool) -> HostConfigLogConfig {
    let options = [("max-size", "10m"), ("max-file", "3"), ("compress", "false")];
    let config = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    match keep {
        true => HostConfigLogConfig { typ: Some("local".into()), config: Some(HashMap::from(config)) },
        false => HostConfigLogConfig { typ: Some("none".into()), config: None },
    }
}

fn mount(mount: &Mount) -> DockerMount {
    let (typ, source, target, read_only) = match mount {
        Mount::Volume { name, target } => (MountType::VOLUME, name.clone(), target, false),
        Mount::ReadOnlyDirectory { source, target } => {
            (MountType::BIND, source.to_string_lossy().into_owned(), target, true)
        }
    };
    DockerMount {
        typ: Some(typ),
        source: Some(source),
        target: Some(target.clone()),
        read_only: Some(read_only),
        ..DockerMount::default()
    }
}
