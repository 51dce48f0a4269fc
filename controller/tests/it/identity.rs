//! Joining, renewing and mutual TLS, between the real host identity and the real authority over real connections.
//!
//! The Fleet service here is a stand-in that knows the two calls which concern identity.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use devfleet_controller::config::Config;
use devfleet_controller::identity::{Authority, JoinTerms, ServerTls, Tokens, key_of_request, peer_host, server_tls};
use devfleet_controller::store::embedded::Embedded;
use devfleet_host::identity::{HostIdentity, IdentityError};
use devfleet_proto::v1::fleet_server::{Fleet, FleetServer};
use devfleet_proto::v1::*;
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::error::Chain;
use devfleet_shared::id::{Digest, HostId};
use devfleet_shared::secret::Secret;
use devfleet_shared::tls;
use devfleet_shared::units::Span;
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const HOUR: Duration = Duration::from_secs(3_600);

/// The calls of the stand-in.
struct FakeFleet {
    authority: Arc<Authority>,
    tokens: Tokens,
    renewals: Arc<AtomicUsize>,
    lose_answers: Arc<AtomicBool>,
}

/// Calls that the stand-in does not know.
macro_rules! unknown_calls {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl Fleet for FakeFleet {
            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented(stringify!($name)))
            })*

            async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
                let name = peer_host(request.extensions()).map_or_else(String::new, String::from);
                Ok(Response::new(WhoAmIResponse { name, role: String::new() }))
            }

            async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
                let request = request.into_inner();
                let key = key_of_request(&request.signing_request).expect("a request");
                let redeemed = self.tokens.redeem_join(&request.token, &HostId::random(), &key).await;
                let host = redeemed.map_err(|error| Status::permission_denied(error.to_string()))?.host;
                if self.lose_answers.swap(false, Ordering::SeqCst) {
                    return Err(Status::unavailable("the answer is lost"));
                }
                let signed = self.authority.sign_host(&request.signing_request, &host);
                let signed = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
                Ok(Response::new(JoinResponse {
                    host_id: host.into(),
                    certificate: signed.certificate_pem,
                    authority: self.authority.certificate_pem().to_owned(),
                    controller_name: "controller".to_owned(),
                }))
            }

            async fn renew_certificate(
                &self,
                request: Request<RenewCertificateRequest>,
            ) -> Result<Response<RenewCertificateResponse>, Status> {
                let host = peer_host(request.extensions()).ok_or_else(|| Status::unauthenticated("no certificate"))?;
                let signed = self.authority.sign_host(&request.into_inner().signing_request, &host);
                let certificate = signed.map_err(|error| Status::invalid_argument(error.to_string()))?.certificate_pem;
                self.renewals.fetch_add(1, Ordering::SeqCst);
                let authority = self.authority.certificate_pem().to_owned();
                Ok(Response::new(RenewCertificateResponse { certificate, authority }))
            }
        }
    };
}

unknown_calls! {
    list_hosts(ListHostsRequest) -> ListHostsResponse;
    get_host(GetHostRequest) -> Host;
    cordon_host(CordonHostRequest) -> Host;
    drain_host(DrainHostRequest) -> Host;
    resume_host(ResumeHostRequest) -> Host;
    label_host(LabelHostRequest) -> Host;
    remove_host(RemoveHostRequest) -> RemoveHostResponse;
    list_controllers(ListControllersRequest) -> ListControllersResponse;
    create_join_token(CreateJoinTokenRequest) -> CreateJoinTokenResponse;
    create_token(CreateTokenRequest) -> CreateTokenResponse;
    list_tokens(ListTokensRequest) -> ListTokensResponse;
    revoke_token(RevokeTokenRequest) -> RevokeTokenResponse;
    sweep(SweepRequest) -> SweepResponse;
    doctor(DoctorRequest) -> DoctorResponse;
    get_settings(GetSettingsRequest) -> Settings;
    set_settings(SetSettingsRequest) -> Settings;
}

/// A controller that knows nothing but identities.
struct Controller {
    authority: Arc<Authority>,
    tokens: Tokens,
    tls: ServerTls,
    address: SocketAddr,
    renewals: Arc<AtomicUsize>,
    lose_answers: Arc<AtomicBool>,
    _directory: tempfile::TempDir,
    _serving: JoinSet<()>,
}

impl Controller {
    async fn start() -> Controller {
        let directory = tempfile::tempdir().expect("dir");
        let clock = Clock::system();
        let authority = Arc::new(Authority::open_or_create(&directory.path().join("ca"), &clock).expect("authority"));
        let store = Embedded::open(&directory.path().join("store"), clock.clone()).expect("store");
        let tokens = Tokens::new(store, clock);
        let issued = authority.issue_server(&["localhost".into(), "127.0.0.1".into()]).expect("issued");
        let tls = server_tls(&authority, &issued).expect("tls");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        let renewals = Arc::new(AtomicUsize::new(0));
        let lose_answers = Arc::new(AtomicBool::new(false));
        let fleet = FakeFleet {
            authority: Arc::clone(&authority),
            tokens: tokens.clone(),
            renewals: Arc::clone(&renewals),
            lose_answers: Arc::clone(&lose_answers),
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<FleetServer<FakeFleet>>().await;
        let incoming = tls.incoming(listener);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(health).add_service(FleetServer::new(fleet));
            server.serve_with_incoming(incoming).await.expect("serves");
        });
        Controller { authority, tokens, tls, address, renewals, lose_answers, _directory: directory, _serving: serving }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    async fn join_token(&self) -> Secret {
        self.tokens.create_join(&JoinTerms::once(HOUR), &self.authority.fingerprint()).await.expect("token").0
    }

    async fn join(&self, directory: &Path) -> Result<HostIdentity, IdentityError> {
        HostIdentity::join(directory, &self.url(), &self.join_token().await, "host-1").await
    }

    /// Shakes hands with these settings and returns the server's own certificate; TLS 1.3 tells a client only with the
    /// first bytes that its certificate was refused, so those are waited for.
    async fn handshake(&self, config: rustls::ClientConfig) -> std::io::Result<Vec<u8>> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").expect("name");
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        stream.read_exact(&mut [0; 9]).await?;
        let certificates = stream.get_ref().1.peer_certificates().expect("certificates");
        assert_eq!(certificates.len(), 2, "the authority is shown, so that it can be pinned");
        Ok(certificates[0].to_vec())
    }
}

async fn who_am_i(identity: &HostIdentity, url: &str) -> Result<String, Status> {
    let mut client = fleet_client::FleetClient::new(identity.channel(url).expect("channel"));
    Ok(client.who_am_i(WhoAmIRequest {}).await?.into_inner().name)
}

#[tokio::test]
async fn a_host_joins_and_is_known_by_its_certificate_from_then_on() {
    let (controller, home) = (Controller::start().await, tempfile::tempdir().expect("dir"));
    let directory = home.path().join("identity");
    let identity = controller.join(&directory).await.expect("joined");
    assert_eq!(who_am_i(&identity, &controller.url()).await.expect("answer"), identity.host().as_str());

    let loaded = HostIdentity::load(&directory).expect("load").expect("joined");
    assert_eq!((loaded.host(), loaded.ends()), (identity.host(), identity.ends()));
    assert_eq!(who_am_i(&loaded, &controller.url()).await.expect("answer"), identity.host().as_str());
    let mode = directory.join("host.key").metadata().expect("key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::read_to_string(directory.join("host.key")).expect("key");
    let middle = key.lines().nth(1).expect("a line of the key");
    assert!(!format!("{identity:?} {:?} {:?}", controller.tls, controller.authority).contains(middle));

    // The real health service, over the same connection settings.
    let mut health = HealthClient::new(identity.channel(&controller.url()).expect("channel"));
    let service = "devfleet.v1.Fleet".to_owned();
    let answer = health.check(HealthCheckRequest { service }).await.expect("healthy").into_inner();
    assert_eq!(answer.status, tonic_health::pb::health_check_response::ServingStatus::Serving as i32);

    let again = controller.join(&directory).await.expect_err("it has joined");
    assert!(matches!(again, IdentityError::AlreadyJoined { .. }), "{again:?}");
}

#[tokio::test]
async fn a_pinned_token_refuses_a_server_with_another_authority() {
    let (ours, impostor) = (Controller::start().await, Controller::start().await);
    let home = tempfile::tempdir().expect("dir");
    let token = ours.join_token().await;
    let refused = HostIdentity::join(home.path(), &impostor.url(), &token, "host-1").await.expect_err("refused");
    assert!(matches!(refused, IdentityError::Connect { .. }), "{refused:?}");
    assert!(!refused.is_retryable(), "trying again would not help");
    assert!(Chain(&refused).to_string().contains("does not present the authority"), "{}", Chain(&refused));
    assert!(HostIdentity::load(home.path()).expect("load").is_none());
    // The token was not shown to the impostor, and still serves.
    HostIdentity::join(home.path(), &ours.url(), &token, "host-1").await.expect("joined");
}

#[tokio::test]
async fn refused_join_tokens_say_why_and_leave_no_identity() {
    let (controller, home) = (Controller::start().await, tempfile::tempdir().expect("dir"));
    let token = controller.join_token().await;
    HostIdentity::join(&home.path().join("first"), &controller.url(), &token, "a").await.expect("joined");
    let second = home.path().join("second");
    let used = HostIdentity::join(&second, &controller.url(), &token, "b").await.expect_err("used");
    assert!(used.to_string().contains("already used by host") && !used.is_retryable(), "{used}");
    let (foreign, _) = {
        let other = Controller::start().await;
        other.tokens.create_join(&JoinTerms::once(HOUR), &controller.authority.fingerprint()).await.expect("token")
    };
    let wrong = HostIdentity::join(&second, &controller.url(), &foreign, "b").await.expect_err("wrong");
    assert!(wrong.to_string().contains("join token is wrong"), "{wrong}");
    let malformed = HostIdentity::join(&second, &controller.url(), &Secret::new("dfj_x"), "b").await;
    assert!(matches!(malformed, Err(IdentityError::MalformedToken)));
    assert!(HostIdentity::load(&second).expect("load").is_none());
    let nobody = HostIdentity::join(&second, "https://127.0.0.1:1", &token, "b").await.expect_err("nobody there");
    assert!(nobody.is_retryable(), "{nobody:?}");
}

#[tokio::test]
async fn a_host_whose_joining_was_not_answered_joins_with_the_same_token() {
    let (controller, home) = (Controller::start().await, tempfile::tempdir().expect("dir"));
    let token = controller.join_token().await;
    controller.lose_answers.store(true, Ordering::SeqCst);
    let lost = HostIdentity::join(home.path(), &controller.url(), &token, "host-1").await.expect_err("no answer");
    assert!(lost.is_retryable(), "{lost:?}");
    let identity = HostIdentity::join(home.path(), &controller.url(), &token, "host-1").await.expect("joined");
    assert_eq!(who_am_i(&identity, &controller.url()).await.expect("answer"), identity.host().as_str());
    // Another host, which has another key, is not let in by it.
    let other = HostIdentity::join(&home.path().join("other"), &controller.url(), &token, "host-2").await;
    assert!(other.expect_err("used").to_string().contains(identity.host().as_str()));
}

#[tokio::test]
async fn a_certificate_is_renewed_when_it_is_due_and_not_before() {
    let (controller, home) = (Controller::start().await, tempfile::tempdir().expect("dir"));
    let identity = controller.join(home.path()).await.expect("joined");
    let now = Clock::system().now();
    let (url, before) = (controller.url(), std::fs::read_to_string(home.path().join("host.pem")).expect("pem"));
    assert!(!identity.renew_if_due(&url, now).await.expect("not due"));
    assert_eq!(controller.renewals.load(Ordering::SeqCst), 0);
    // 80 % of 25 hours (24, and the one it is backdated) are over.
    assert!(identity.renew_if_due(&url, now.after(HOUR * 20)).await.expect("due"));
    assert_eq!(controller.renewals.load(Ordering::SeqCst), 1);
    assert_ne!(std::fs::read_to_string(home.path().join("host.pem")).expect("pem"), before);
    assert_eq!(who_am_i(&identity, &url).await.expect("answer"), identity.host().as_str());
    let loaded = HostIdentity::load(home.path()).expect("load").expect("joined");
    assert_eq!((loaded.host(), loaded.ends()), (identity.host(), identity.ends()));
    let expired = identity.renew_if_due(&url, identity.ends()).await.expect_err("it has ended");
    assert!(expired.to_string().contains("devfleet join-token create"), "{expired}");
}

/// Makes settings that show a certificate for a new key, signed by this authority.
fn showing(trusted: &Authority, signer: &Authority) -> rustls::ClientConfig {
    let made = tls::signing_request().expect("request");
    let signed = signer.sign_host(&made.request_pem, &HostId::random()).expect("signed");
    tls::client(trusted.certificate_pem(), Some((&signed.certificate_pem, &made.key_pem))).expect("settings")
}

#[tokio::test]
async fn certificates_of_another_authority_or_past_their_time_or_purpose_are_refused() {
    let (controller, home) = (Controller::start().await, tempfile::tempdir().expect("dir"));
    let ours = &controller.authority;
    controller.handshake(showing(ours, ours)).await.expect("ours is accepted");
    controller.handshake(tls::client(ours.certificate_pem(), None).expect("settings")).await.expect("none is accepted");

    let theirs = Authority::open_or_create(&home.path().join("ca"), &Clock::system()).expect("authority");
    controller.handshake(showing(ours, &theirs)).await.expect_err("another authority");

    // The same key and certificate, opened by somebody whose clock stands two days ago.
    let ago = Clock::fixed(Timestamp(Clock::system().now().0 - 48 * 3_600_000));
    let past = Authority::open_or_create(&controller._directory.path().join("ca"), &ago).expect("authority");
    assert_eq!(past.fingerprint(), ours.fingerprint());
    controller.handshake(showing(ours, &past)).await.expect_err("it has ended");

    let server = ours.issue_server(&["localhost".into()]).expect("issued");
    let config = tls::client(ours.certificate_pem(), Some((&server.certificate_pem, &server.key_pem)));
    controller.handshake(config.expect("settings")).await.expect_err("a server's certificate names no client");
    let trusting_others = tls::client(theirs.certificate_pem(), None).expect("settings");
    controller.handshake(trusting_others).await.expect_err("the client trusts another authority");
}

#[tokio::test]
async fn the_listeners_certificate_is_replaced_while_it_serves() {
    let controller = Controller::start().await;
    let config = || tls::pinned_client(&controller.authority.fingerprint()).expect("settings");
    let first = controller.handshake(config()).await.expect("handshake");
    assert_eq!(controller.handshake(config()).await.expect("handshake"), first);
    let issued = controller.authority.issue_server(&["localhost".into()]).expect("issued");
    controller.tls.replace(&controller.authority, &issued).expect("replaced");
    let second = controller.handshake(config()).await.expect("handshake");
    assert_ne!(Digest::of(&first), Digest::of(&second));
}

#[tokio::test]
async fn nothing_is_resumed_so_no_connection_inherits_a_certificate() {
    let controller = Controller::start().await;
    let mut config = tls::client(controller.authority.certificate_pem(), None).expect("settings");
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    for _ in 0..3 {
        let tcp = TcpStream::connect(controller.address).await.expect("tcp");
        let name = ServerName::try_from("localhost").expect("name");
        let mut stream = TlsConnector::from(Arc::clone(&config)).connect(name, tcp).await.expect("tls");
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        // Tickets would come with the server's first bytes.
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut [0; 9]).await.expect("settings frame");
    }
}

#[tokio::test]
async fn silent_and_broken_clients_do_not_keep_others_out() {
    let (controller, home) = (Controller::start().await, tempfile::tempdir().expect("dir"));
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(TcpStream::connect(controller.address).await.expect("tcp"));
    }
    for stream in &mut idle[..20] {
        tokio::io::AsyncWriteExt::write_all(stream, b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
    }
    tokio::time::timeout(Duration::from_secs(4), controller.join(home.path())).await.expect("in time").expect("joined");
}

#[tokio::test]
async fn a_crowd_of_silent_clients_waits_outside_and_is_sent_away() {
    let (controller, home) = (Controller::start().await, tempfile::tempdir().expect("dir"));
    let mut crowd = Vec::new();
    for _ in 0..256 {
        crowd.push(TcpStream::connect(controller.address).await.expect("tcp"));
    }
    // As many shake hands as may at once: who comes now waits in the kernel's queue.
    let early = tokio::time::timeout(Duration::from_secs(2), controller.handshake(showing_nothing(&controller))).await;
    assert!(early.is_err(), "served beside 256 others");
    let join = tokio::time::timeout(Duration::from_secs(20), controller.join(home.path())).await;
    join.expect("the crowd is sent away").expect("joined");
    for stream in &mut crowd {
        let mut byte = [0; 1];
        let read = tokio::io::AsyncReadExt::read(stream, &mut byte);
        let ended = tokio::time::timeout(Duration::from_secs(10), read).await.expect("closed");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
}

fn showing_nothing(controller: &Controller) -> rustls::ClientConfig {
    tls::client(controller.authority.certificate_pem(), None).expect("settings")
}

#[tokio::test]
async fn a_connection_that_is_too_old_ends_and_the_next_one_works() {
    let home = tempfile::tempdir().expect("dir");
    let mut config = Config::in_directory(home.path());
    config.listen = ([127, 0, 0, 1], 0).into();
    config.connection_age = Span(Duration::from_millis(300));
    let running = devfleet_controller::server::start(&config, Clock::system()).await.expect("starts");
    let authority = running.authority.certificate_pem().to_owned();
    let trust = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{}", running.address)).expect("url");
    let channel = endpoint.tls_config(trust).expect("settings").connect().await.expect("connected");
    let mut health = HealthClient::new(channel);
    let service = || HealthCheckRequest { service: "devfleet.v1.Jobs".to_owned() };
    let mut watching = health.watch(service()).await.expect("answer").into_inner();
    watching.message().await.expect("an answer").expect("its health");
    // The stream alone would go on for ever.
    let ended = tokio::time::timeout(Duration::from_secs(20), watching.message()).await.expect("it is ended");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    health.check(service()).await.expect("the channel connects anew");
    running.stop().await;
}
