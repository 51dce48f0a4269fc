//! The simulated network under the real TLS: a listener for controllers, a way to dial for hosts and people.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_controller::identity::Listener;
use devfleet_host::spool::shipping::Dial;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Where controllers listen.
pub(crate) const PORT: u16 = 7443;
const CONNECT: Duration = Duration::from_secs(5);

/// Listens on the simulated network.
pub(crate) struct SimListener(turmoil::net::TcpListener);

impl SimListener {
    pub(crate) async fn bind() -> io::Result<SimListener> {
        Ok(SimListener(turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?))
    }
}

/// A connection of the simulated network.
pub(crate) struct SimStream(turmoil::net::TcpStream);

impl Listener for SimListener {
    type Connection = SimStream;

    async fn accept(&mut self) -> io::Result<SimStream> {
        Ok(SimStream(self.0.accept().await?.0))
    }
}

impl Connected for SimStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.0.local_addr().ok(), remote_addr: self.0.peer_addr().ok() }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Makes a channel that connects when it is first used.
pub(crate) fn channel(controller: &str, config: Arc<ClientConfig>) -> Channel {
    let name = controller.to_owned();
    let connect = move |_: http::Uri| {
        let (name, config) = (name.clone(), Arc::clone(&config));
        async move {
            let connecting = async {
                let tcp = turmoil::net::TcpStream::connect((name.as_str(), PORT)).await?;
                let server = ServerName::try_from(name.clone()).map_err(io::Error::other)?;
                TlsConnector::from(config).connect(server, SimStream(tcp)).await
            };
            match tokio::time::timeout(CONNECT, connecting).await {
                Ok(opened) => opened.map(TokioIo::new),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            }
        }
    };
    Endpoint::from_shared(format!("http://{controller}:{PORT}"))
        .expect("an address")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(service_fn(connect))
}

/// Connects a controller to another; its endpoint does the TLS.
pub(crate) fn reach(endpoint: Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(service_fn(|uri: http::Uri| async move {
        let name = uri.host().unwrap_or_default().to_owned();
        let tcp = turmoil::net::TcpStream::connect((name.as_str(), PORT)).await?;
        Ok::<_, io::Error>(TokioIo::new(SimStream(tcp)))
    }))
}

/// Dials one controller after the other.
pub(crate) struct SimDial {
    pub(crate) controllers: Vec<String>,
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) turn: AtomicUsize,
}

#[async_trait]
impl Dial for SimDial {
    async fn dial(&self) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Ok(channel(&self.controllers[turn % self.controllers.len()], Arc::clone(&self.config)))
    }
}
