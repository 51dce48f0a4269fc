//! Hosts in the fleet, against a real controller over real mutual TLS; the hosts are spoken by hand, message by message.

use std::path::Path;
use std::time::Duration;

use devfleet_controller::config::Config;
use devfleet_controller::identity::{JoinTerms, Role};
use devfleet_controller::server::{self, Running};
use devfleet_host::identity::HostIdentity;
use devfleet_proto::v1::controller_message::Kind as Down;
use devfleet_proto::v1::fleet_client::FleetClient;
use devfleet_proto::v1::host_message::Kind as Up;
use devfleet_proto::v1::session_client::SessionClient;
use devfleet_proto::v1::{self, ControllerMessage, HostMessage};
use devfleet_shared::clock::Clock;
use devfleet_shared::protocol::PROTOCOL;
use devfleet_shared::secret::Secret;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;

const PATIENCE: Duration = Duration::from_secs(60);

/// A controller with the embedded store, and an operator.
struct Site {
    dir: tempfile::TempDir,
    controller: Running,
    operator: Secret,
}

type Fleet =
    FleetClient<InterceptedService<Channel, Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status> + Send>>>;

impl Site {
    async fn new() -> Site {
        let dir = tempfile::tempdir().expect("dir");
        let text = format!("data_dir = \"{}/c\"\nlisten = \"127.0.0.1:0\"\n", dir.path().display());
        std::fs::write(dir.path().join("controller.toml"), text).expect("written");
        let config = Config::load(&dir.path().join("controller.toml")).expect("valid");
        let controller = server::start(&config, Clock::system()).await.expect("it starts");
        let (_, operator) = controller.tokens.create("ada", Role::Operator, None).await.expect("token");
        Site { dir, controller, operator }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.controller.address.port())
    }

    fn fleet(&self) -> Fleet {
        let authority = Certificate::from_pem(self.controller.authority.certificate_pem());
        let channel = Endpoint::from_shared(self.url())
            .and_then(|endpoint| endpoint.tls_config(ClientTlsConfig::new().ca_certificate(authority)))
            .expect("settings")
            .connect_lazy();
        let bearer: MetadataValue<_> = format!("Bearer {}", self.operator.expose()).parse().expect("a header");
        FleetClient::with_interceptor(
            channel,
            Box::new(move |mut request: Request<()>| {
                request.metadata_mut().insert("authorization", bearer.clone());
                Ok(request)
            }),
        )
    }

    /// A host that joins.
    async fn joined(&self, name: &str) -> HostIdentity {
        let terms = JoinTerms::once(Duration::from_secs(600));
        let fingerprint = self.controller.authority.fingerprint();
        let (join, _) = self.controller.tokens.create_join(&terms, &fingerprint).await.expect("token");
        let directory: &Path = &self.dir.path().join(name);
        HostIdentity::join(directory, &self.url(), &join, name).await.expect("it joins")
    }

    async fn host(&self, name: &str) -> v1::Host {
        let request = v1::GetHostRequest { host: name.to_owned() };
        self.fleet().get_host(request).await.expect("a host").into_inner()
    }
}

/// A session as a host holds it.
struct Line {
    up: mpsc::Sender<HostMessage>,
    down: Streaming<ControllerMessage>,
}

impl Line {
    /// Opens one with this hello, and returns it with the first answer.
    async fn open(site: &Site, identity: &HostIdentity, hello: v1::Hello) -> (Line, Result<Down, Status>) {
        let (up, messages) = mpsc::channel(8);
        up.send(HostMessage { kind: Some(Up::Hello(hello)) }).await.expect("room");
        let mut client = SessionClient::new(identity.channel(&site.url()).expect("channel"));
        let opened = within("an answer", client.open(ReceiverStream::new(messages))).await;
        let mut line = Line { up, down: opened.expect("a stream").into_inner() };
        let first = line.next().await;
        (line, first)
    }

    async fn next(&mut self) -> Result<Down, Status> {
        let message = within("a message", self.down.message()).await?;
        message.and_then(|message| message.kind).ok_or_else(|| Status::aborted("the stream ended"))
    }

    async fn send(&self, kind: Up) {
        self.up.send(HostMessage { kind: Some(kind) }).await.expect("the controller listens");
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

fn hello() -> v1::Hello {
    v1::Hello { incarnation: "1".into(), host_version: "9.9.9".into(), protocol: PROTOCOL, ..v1::Hello::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_host_is_refused_at_every_call_and_its_open_session_ends_at_once() {
    let site = Site::new().await;
    let (identity, other) = (site.joined("box-1").await, site.joined("box-2").await);
    let (mut line, first) = Line::open(&site, &identity, hello()).await;
    assert!(matches!(first, Ok(Down::Welcome(_))), "{first:?}");
    // A stream of logs that was opened while the host was part of the fleet.
    let mut client = SessionClient::new(identity.channel(&site.url()).expect("channel"));
    let (chunks, queue) = mpsc::channel(4);
    let mut acks = client.push_logs(ReceiverStream::new(queue)).await.expect("a stream").into_inner();

    let request = v1::RemoveHostRequest { host: "box-1".into(), reason: "sold".into(), force: false };
    site.fleet().remove_host(request).await.expect("removed");
    let ended = line.next().await.expect_err("the session ends");
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::PermissionDenied, "HOST_REMOVED"));
    assert!(ended.message().contains("by ada") && ended.message().contains("sold"), "{}", ended.message());

    let refused = |outcome: Result<(), Status>, call: &str| {
        let status = outcome.expect_err(call);
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "HOST_REMOVED"), "{call}");
    };
    let (job, attempt) = (uuid::Uuid::new_v4().to_string(), "a3f91c20".to_owned());
    let chunk = v1::LogChunk { job: job.clone(), attempt: attempt.clone(), ..v1::LogChunk::default() };
    chunks.send(chunk).await.expect("room");
    refused(within("an answer", acks.message()).await.map(drop), "a chunk on an open stream");
    let grant = v1::GetGrantRequest { job: job.clone(), attempt: attempt.clone(), fence: 1 };
    refused(client.get_grant(grant).await.map(drop), "GetGrant");
    let publish = v1::AuthorizePublishRequest { job, attempt, ..v1::AuthorizePublishRequest::default() };
    refused(client.authorize_publish(publish).await.map(drop), "AuthorizePublish");
    let empty = tokio_stream::empty::<v1::LogChunk>();
    refused(client.push_logs(empty).await.map(drop), "PushLogs");
    let empty = tokio_stream::empty::<HostMessage>();
    refused(client.open(empty).await.map(drop), "Open");
    let mut renewing = FleetClient::new(identity.channel(&site.url()).expect("channel"));
    let renew = v1::RenewCertificateRequest { signing_request: String::new() };
    refused(renewing.renew_certificate(renew).await.map(drop), "RenewCertificate");

    let (_line, welcomed) = Line::open(&site, &other, hello()).await;
    assert!(matches!(welcomed, Ok(Down::Welcome(_))), "others are let in: {welcomed:?}");
    site.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_protocol_version_may_lie_between_and_who_is_further_behind_is_told_which_side_to_upgrade() {
    let site = Site::new().await;
    let identity = site.joined("box-1").await;
    // Nothing of the newest protocol is said: so speaks a host of the version before it.
    let before = v1::Hello { protocol: 0, ..hello() };
    let (line, first) = Line::open(&site, &identity, before).await;
    let Ok(Down::Welcome(welcome)) = first else { panic!("{first:?}") };
    assert_eq!((welcome.protocol, welcome.generation.map(|generation| generation.number)), (PROTOCOL, Some(1)));
    let mut line = line;
    line.send(Up::Heartbeat(v1::Heartbeat { sequence: 1 })).await;
    let proven = line.next().await;
    assert!(matches!(proven, Ok(Down::Heartbeat(v1::HeartbeatAck { sequence: 1 }))), "{proven:?}");
    assert_eq!(site.host("box-1").await.protocol, 1);
    drop(line);

    let newer = v1::Hello { protocol: PROTOCOL + 1, ..hello() };
    let (_line, first) = Line::open(&site, &identity, newer).await;
    assert!(matches!(first, Ok(Down::Welcome(_))), "{first:?}");
    let too_new = v1::Hello { protocol: PROTOCOL + 2, ..hello() };
    let (_line, first) = Line::open(&site, &identity, too_new).await;
    let refused = first.expect_err("too new");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "PROTOCOL_SKEW"));
    assert!(refused.message().contains("upgrade the controllers"), "{}", refused.message());
    site.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_of_a_host_is_shown_with_who_and_why_and_outlasts_the_controller() {
    let site = Site::new().await;
    let identity = site.joined("box-1").await;
    let mut fleet = site.fleet();
    let cordon = v1::CordonHostRequest { host: "box-1".into(), reason: "odd noises".into() };
    let host = fleet.cordon_host(cordon.clone()).await.expect("cordoned").into_inner();
    let said = (host.state.as_str(), host.state_by.as_str(), host.state_reason.as_str());
    assert_eq!(said, ("cordoned", "ada", "odd noises"));
    let drain = |deadline_seconds, then: &str| v1::DrainHostRequest {
        host: "box-1".into(),
        reason: String::new(),
        deadline_seconds,
        then: then.into(),
    };
    let host = fleet.drain_host(drain(60, "wait")).await.expect("drained").into_inner();
    assert_eq!((host.state.as_str(), host.drain_then.as_str()), ("drained", "wait"), "nothing is on it");
    for (request, wanted) in [(drain(60, "explode"), "NO_SUCH_DRAIN"), (drain(u64::MAX, "wait"), "DEADLINE_TOO_FAR")] {
        assert_eq!(reason(&fleet.drain_host(request).await.expect_err("refused")), wanted);
    }
    let labels = |set: &[(&str, &str)], remove: &[&str]| v1::LabelHostRequest {
        host: "box-1".into(),
        set: set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        remove: remove.iter().map(|name| (*name).to_owned()).collect(),
    };
    fleet.label_host(labels(&[("zone", "eu"), ("gpu", "yes")], &[])).await.expect("labelled");
    let host = fleet.label_host(labels(&[("zone", "us")], &["gpu", "none"])).await.expect("labelled").into_inner();
    assert_eq!(host.labels, [("zone".to_owned(), "us".to_owned())].into());
    assert_eq!(reason(&fleet.label_host(labels(&[("a b", "c")], &[])).await.expect_err("refused")), "INVALID_LABEL");

    let Site { dir, controller, operator } = site;
    controller.stop().await;
    let restored = std::process::Command::new(env!("CARGO_BIN_EXE_devfleet"))
        .args(["store", "restored", "--output", "json", "--config"])
        .arg(dir.path().join("controller.toml"))
        .output()
        .expect("devfleet runs");
    let printed = String::from_utf8_lossy(&restored.stdout).into_owned();
    assert!(restored.status.success() && printed.contains("\"number\": 2"), "{restored:?}");
    let config = Config::load(&dir.path().join("controller.toml")).expect("valid");
    let controller = server::start(&config, Clock::system()).await.expect("it starts again");
    let site = Site { dir, controller, operator };
    let host = site.host("box-1").await;
    assert_eq!((host.state.as_str(), host.labels.len()), ("drained", 1), "it was written down");
    let (_line, welcome) = Line::open(&site, &identity, hello()).await;
    let Ok(Down::Welcome(welcome)) = welcome else { panic!("{welcome:?}") };
    assert_eq!(welcome.generation.map(|generation| generation.number), Some(2), "hosts are told of the restore");
    let resume = v1::ResumeHostRequest { host: "box-1".into(), reason: String::new() };
    assert_eq!(site.fleet().resume_host(resume).await.expect("resumed").into_inner().state, "active");

    let listed = site.fleet().list_controllers(v1::ListControllersRequest {}).await.expect("listed").into_inner();
    let [one] = &listed.controllers[..] else { panic!("{listed:?}") };
    assert!(one.leads && one.leads_since_unix_ms > 0 && one.term == 2 && one.version == env!("CARGO_PKG_VERSION"));
    site.controller.stop().await;
}
