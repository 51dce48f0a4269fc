//! The service containers: made and started at once, waited for until each accepts connections.
//!
//! Ready means: one of the TCP ports that the image exposes accepts a connection from this host. A service that exposes
//! none is ready when it runs. One that ends is reported at once, with the end of its log.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use devfleet_shared::environment::ServiceSpec;
use futures_util::StreamExt as _;
use futures_util::future::{join_all, select_all};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::steps::CAPABILITIES;
use super::{Devbox, EnvironmentError, Pulls, Wanted};
use crate::engine::{ContainerSpec, ContainerState, EngineError, ImageFacts};

/// A service gets this much memory at most, in bytes.
const MEMORY_CEILING: u64 = 512 << 20;
/// The pause between two tries to connect.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the engine is asked whether the service still runs.
const LOOK: Duration = Duration::from_millis(500);
/// How long one try to connect may take.
const CONNECT: Duration = Duration::from_secs(1);
/// How much of a service's log an error shows.
const LOG_LINES: usize = 20;

/// Splits an environment's memory: what a step gets, and what each service gets. 0 means no limit.
///
/// Services get a half of it together, and never more than 512 MiB each; steps run one at a time and get the rest.
pub(super) fn memory_shares(memory_bytes: u64, services: u64) -> (u64, u64) {
    if services == 0 || memory_bytes == 0 {
        return (memory_bytes, 0);
    }
    let each = (memory_bytes / 2 / services).min(MEMORY_CEILING);
    (memory_bytes - each * services, each)
}

impl Devbox<'_> {
    /// Brings all services up side by side; returns the first failure in the order of the CI file.
    pub(super) async fn make_services(
        &self,
        pulls: &Pulls,
        given_up: &CancellationToken,
    ) -> Result<(), EnvironmentError> {
        let services = self.assignment.environment.services.iter();
        let ready = services.map(|service| async move {
            self.make_service(service, pulls, given_up).await.inspect_err(|_| given_up.cancel())
        });
        let outcomes = join_all(ready).await;
        let mut failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        failures.sort_by_key(|error| matches!(error, EnvironmentError::ServiceGivenUp { .. }));
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    async fn make_service(
        &self,
        service: &ServiceSpec,
        pulls: &Pulls,
        given_up: &CancellationToken,
    ) -> Result<(), EnvironmentError> {
        let image = self.images.present(&Wanted::service(service), pulls, self.note).await?;
        let name = self.make_container(self.service_container(service, &image)).await?;
        let failed = |source| EnvironmentError::Engine { action: format!("start service {}", service.name), source };
        self.engine.start(&name, None, false).await.map_err(failed)?;
        self.until_ready(service, &name, &image.ports, given_up).await
    }

    fn service_container(&self, service: &ServiceSpec, image: &ImageFacts) -> ContainerSpec {
        let limits = &self.assignment.limits;
        let count = self.assignment.environment.services.len() as u64;
        let (_, memory_bytes) = memory_shares(limits.resources.memory_bytes, count);
        ContainerSpec {
            name: self.name(&service.name),
            image: image.id.clone(),
            entrypoint: service.entrypoint.clone(),
            command: service.command.clone(),
            variables: service.variables.clone(),
            network: Some(self.network_name()),
            aliases: service.aliases.clone(),
            capabilities: CAPABILITIES.map(Into::into).to_vec(),
            cpu_millis: limits.resources.cpu_millis,
            memory_bytes,
            pids: limits.pids,
            runtime: limits.runtime.clone(),
            init: true,
            keep_output: true,
            labels: self.labels(&service.name),
            ..ContainerSpec::default()
        }
    }

    async fn until_ready(
        &self,
        service: &ServiceSpec,
        name: &str,
        ports: &[u16],
        given_up: &CancellationToken,
    ) -> Result<(), EnvironmentError> {
        let waited = self.assignment.limits.service_ready;
        let begin = Instant::now();
        loop {
            let address = self.running_address(service, name).await?;
            if ports.is_empty() {
                return Ok(());
            }
            let look_again = Instant::now() + LOOK;
            while Instant::now() < look_again {
                if let Some(address) = address
                    && accepts(address, ports).await
                {
                    return Ok(());
                }
                if given_up.is_cancelled() {
                    return Err(EnvironmentError::ServiceGivenUp { service: service.name.clone() });
                }
                if begin.elapsed() >= waited {
                    // It may have ended since the last look: that says more than a time-out.
                    self.running_address(service, name).await?;
                    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
                    let log = self.log_tail(name).await;
                    return Err(EnvironmentError::ServiceNotReady {
                        service: service.name.clone(),
                        ports,
                        waited,
                        log,
                    });
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn running_address(&self, service: &ServiceSpec, name: &str) -> Result<Option<IpAddr>, EnvironmentError> {
        let action = || format!("look at service {}", service.name);
        match self.engine.state(name).await {
            Ok(Some(ContainerState::Running { address })) => Ok(address),
            Ok(Some(ContainerState::Created)) => Ok(None),
            Ok(Some(ContainerState::Exited(exit))) => Err(EnvironmentError::ServiceEnded {
                service: service.name.clone(),
                status: exit.status,
                log: self.log_tail(name).await,
            }),
            Ok(None) => {
                let detail = "it was removed by someone else".to_owned();
                let source = EngineError::NotFound { action: format!("inspect {name}"), detail };
                Err(EnvironmentError::Engine { action: action(), source })
            }
            Err(source) => Err(EnvironmentError::Engine { action: action(), source }),
        }
    }

    /// Reads the last lines of a container's kept output; whatever is silent for a second has been read.
    async fn log_tail(&self, name: &str) -> String {
        let mut lines: VecDeque<String> = VecDeque::new();
        let mut rest = String::new();
        if let Ok(mut output) = self.engine.output(name, None).await {
            while let Ok(Some(Ok(frame))) = tokio::time::timeout(Duration::from_secs(1), output.next()).await {
                rest.push_str(&String::from_utf8_lossy(&frame.data));
                while let Some((line, after)) = rest.split_once('\n') {
                    lines.push_back(line.trim_end().to_owned());
                    rest = after.to_owned();
                }
                lines.drain(..lines.len().saturating_sub(LOG_LINES));
            }
        }
        lines.extend((!rest.is_empty()).then_some(rest));
        if lines.is_empty() { "(it printed nothing)".into() } else { Vec::from(lines).join("\n") }
    }
}

/// Tries all ports at once; one that accepts is enough.
async fn accepts(address: IpAddr, ports: &[u16]) -> bool {
    let tries = ports.iter().map(|port| Box::pin(TcpStream::connect(SocketAddr::new(address, *port))));
    let mut tries: Vec<_> = tries.collect();
    let any = async {
        while !tries.is_empty() {
            let (outcome, _, rest) = select_all(tries).await;
            if outcome.is_ok() {
                return true;
            }
            tries = rest;
        }
        false
    };
    tokio::time::timeout(CONNECT, any).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_never_promised_twice() {
        assert_eq!(memory_shares(2 << 30, 0), (2 << 30, 0));
        assert_eq!(memory_shares(2 << 30, 2), (1 << 30, 512 << 20));
        assert_eq!(memory_shares(4 << 30, 1), ((4 << 30) - (512 << 20), 512 << 20));
        assert_eq!(memory_shares(0, 3), (0, 0));
        let (step, service) = memory_shares(1 << 30, 7);
        assert!(step + 7 * service <= 1 << 30 && step >= 512 << 20);
    }
}
