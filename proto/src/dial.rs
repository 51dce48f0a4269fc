//! Connections to a controller: TCP, then TLS with settings that are asked for anew each time, then HTTP/2.
//!
//! tonic's own TLS takes its certificates once and for all, and knows one address; a host's certificate changes every few
//! hours, and a fleet has several controllers.
//!
//!   call ─▶ channel ─ broken? ─▶ the address that answered last, then the others ─▶ TCP, TLS ─▶ HTTP/2

use std::io;
use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::endpoints::Endpoints;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// TCP and TLS together, to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same to all addresses, one after the other.
const CONNECT_TIMEOUT_ALL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The controller's address is not usable.
    #[error("use the controller's address {0:?}: write https://HOST:PORT")]
    BadUrl(String),
    /// The controller cannot be reached, or is not trusted.
    #[error("connect to the controller at {url}")]
    Connect {
        /// The address.
        url: String,
        /// The cause.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects now.
pub async fn connect(
    url: &str,
    config: impl Fn() -> Arc<ClientConfig> + Clone + Send + Sync + 'static,
) -> Result<Channel, DialError> {
    let (endpoint, target) = endpoint(url)?;
    endpoint
        .connect_with_connector(service_fn(move |_: Uri| open(target.clone(), config())))
        .await
        .map_err(|source| DialError::Connect { url: url.to_owned(), source })
}

/// Connects when the channel is first used, and again whenever the connection broke: to the first address that answers.
pub fn lazily(
    endpoints: Arc<Endpoints>,
    config: impl Fn() -> Arc<ClientConfig> + Clone + Send + Sync + 'static,
) -> Result<Channel, DialError> {
    let made = endpoints.urls().iter().map(|url| endpoint(url)).collect::<Result<Vec<_>, _>>()?;
    let targets: Arc<[Target]> = made.iter().map(|(_, target)| target.clone()).collect();
    // The address of the endpoint is a name for HTTP alone.
    let endpoint = made.into_iter().next().map(|(endpoint, _)| endpoint);
    let endpoint = endpoint.ok_or_else(|| DialError::BadUrl(String::new()))?;
    let timeout = if targets.len() > 1 { CONNECT_TIMEOUT_ALL } else { CONNECT_TIMEOUT };
    let connector = service_fn(move |_: Uri| open_any(Arc::clone(&endpoints), Arc::clone(&targets), config()));
    Ok(endpoint.connect_timeout(timeout).connect_with_connector_lazy(connector))
}

#[derive(Debug, Clone)]
struct Target {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

fn endpoint(url: &str) -> Result<(Endpoint, Target), DialError> {
    let bad = || DialError::BadUrl(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad());
    }
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(bad)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
    let target = Target { host, port: authority.port_u16().unwrap_or(443), name };
    // To tonic the connection is plain: the connector has done TLS already, and would be refused an https address.
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .and_then(|endpoint| endpoint.user_agent(concat!("devfleet/", env!("CARGO_PKG_VERSION"))))
        .map_err(|_| bad())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok((endpoint, target))
}

/// Connects to the first that answers, beginning with the one that did so last.
async fn open_any(
    endpoints: Arc<Endpoints>,
    targets: Arc<[Target]>,
    config: Arc<ClientConfig>,
) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let mut last = io::Error::from(io::ErrorKind::NotConnected);
    for place in endpoints.order() {
        match open(targets[place].clone(), Arc::clone(&config)).await {
            Ok(connection) => {
                endpoints.answered(place);
                return Ok(connection);
            }
            Err(error) => {
                tracing::debug!(url = endpoints.urls()[place], %error, "a controller cannot be reached");
                last = error;
            }
        }
    }
    Err(last)
}

async fn open(target: Target, config: Arc<ClientConfig>) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let connecting = async {
        let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(config).connect(target.name, tcp).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(opened) => opened.map(TokioIo::new),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 seconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_with_nothing_behind_the_port() {
        for good in ["https://controller:7443", "https://127.0.0.1:7443/", "https://[::1]:7443", "https://controller"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in
            ["", "controller:7443", "http://controller:7443", "https://", "https://c/x", "https://u@c:1", "https://c?x"]
        {
            assert!(matches!(endpoint(bad), Err(DialError::BadUrl(_))), "{bad}");
        }
        assert_eq!(endpoint("https://[::1]:7443").expect("address").1.host, "::1");
    }
}
