//! The TLS side of the controller's listener.
//!
//! A client may show a certificate; if it does, it must be ours. Whoever shows none is a person, known by a token, or a
//! host that joins. Nothing is resumed, so a connection never carries a certificate over from an older one. The
//! listener's own certificate can be replaced while connections stand.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use devfleet_shared::id::{ControllerId, HostId};
use devfleet_shared::tls;
use futures_util::stream::{self, Stream};
use rustls::crypto::ring;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tracing::{debug, warn};

use super::authority::{Authority, Issued, chain};
use super::{IdentityError, controller_of, host_of};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever comes while so many shake hands waits in the kernel's queue.
const HANDSHAKES: usize = 256;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Settings for the listener, and the handle by which its certificate is replaced.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<rustls::ServerConfig>,
    certificate: Arc<Certificate>,
}

#[derive(Debug)]
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl ServerTls {
    /// Returns the settings, for a `tokio_rustls::TlsAcceptor`.
    pub fn config(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Accepts connections, for `serve_with_incoming`. Handshakes run side by side, and none takes longer than 5 s; who
    /// fails at it is dropped. Never ends by itself.
    pub fn incoming(&self, listener: TcpListener) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> + use<> {
        let accepting = Accepting { listener, acceptor: TlsAcceptor::from(self.config()), handshakes: JoinSet::new() };
        stream::unfold(accepting, |mut accepting| async move { Some((Ok(accepting.next().await), accepting)) })
    }

    /// Shows this certificate to whoever connects from now on; standing connections stay.
    pub fn replace(&self, authority: &Authority, issued: &Issued) -> Result<(), IdentityError> {
        let fresh = Arc::new(certified_key(authority, issued)?);
        *self.certificate.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

struct Accepting {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    handshakes: JoinSet<io::Result<TlsStream<TcpStream>>>,
}

impl Accepting {
    async fn next(&mut self) -> TlsStream<TcpStream> {
        loop {
            tokio::select! {
                Some(finished) = self.handshakes.join_next() => match finished {
                    Ok(Ok(stream)) => return stream,
                    Ok(Err(error)) => debug!(%error, "handshake failed"),
                    Err(error) => debug!(%error, "handshake ended early"),
                },
                accepted = self.listener.accept(), if self.handshakes.len() < HANDSHAKES => match accepted {
                    Ok((tcp, _)) => self.shake_hands(tcp),
                    Err(error) => {
                        // Out of file descriptors, most likely: trying at once would only spin.
                        warn!(%error, "no connection accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn shake_hands(&mut self, tcp: TcpStream) {
        let acceptor = self.acceptor.clone();
        self.handshakes.spawn(async move {
            tcp.set_nodelay(true)?;
            tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await?
        });
    }
}

/// Makes settings for the listener: TLS 1.3, HTTP/2, client certificates optional and only of this authority.
pub fn server_tls(authority: &Authority, issued: &Issued) -> Result<ServerTls, IdentityError> {
    let settings = |error: &dyn std::error::Error| IdentityError::Settings(error.to_string());
    let provider = Arc::new(ring::default_provider());
    let trusted = tls::certificates(authority.certificate_pem(), "authority").map_err(IdentityError::Tls)?;
    let roots = tls::roots(&trusted).map_err(IdentityError::Tls)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| settings(&error))?;
    let certificate = Arc::new(Certificate(RwLock::new(Arc::new(certified_key(authority, issued)?))));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| settings(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(&certificate) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(ServerTls { config: Arc::new(config), certificate })
}

/// Returns the host at the other end of a call's connection, from the request's extensions.
///
/// `None` if the client showed no certificate. The handshake has checked who signed the certificate and that it has
/// not ended at that time; it may have ended since, and the host may have been removed since.
pub fn peer_host(extensions: &http::Extensions) -> Option<HostId> {
    let certificates = extensions.get::<TlsConnectInfo<TcpConnectInfo>>()?.peer_certs()?;
    host_of(certificates.first()?)
}

/// Returns the controller at the other end of a call's connection, likewise.
pub fn peer_controller(extensions: &http::Extensions) -> Option<ControllerId> {
    let certificates = extensions.get::<TlsConnectInfo<TcpConnectInfo>>()?.peer_certs()?;
    controller_of(certificates.first()?)
}

fn certified_key(authority: &Authority, issued: &Issued) -> Result<CertifiedKey, IdentityError> {
    let key = tls::private_key(&issued.key_pem).map_err(IdentityError::Tls)?;
    CertifiedKey::from_der(chain(authority, issued)?, key, &ring::default_provider())
        .map_err(|error| IdentityError::Settings(error.to_string()))
}
