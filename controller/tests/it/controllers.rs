//! Several controllers over one etcd: one fleet, one authority, one first token, one leader.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use devfleet_controller::config::Config;
use devfleet_controller::identity::{JoinTerms, Role};
use devfleet_controller::server::{self, Running, StartError};
use devfleet_controller::store::records::leadership::leader_key;
use devfleet_controller::store::{Change, SharedStore, Transaction};
use devfleet_host::identity::HostIdentity;
use devfleet_proto::v1::controller_message::Kind;
use devfleet_proto::v1::fleet_client::FleetClient;
use devfleet_proto::v1::session_client::SessionClient;
use devfleet_proto::v1::{self, ControllerMessage, HostMessage, host_message};
use devfleet_shared::clock::Clock;
use devfleet_shared::endpoints::Endpoints;
use devfleet_shared::secret::Secret;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Streaming};

use crate::support::etcd::Cluster;
use crate::support::looking;

const PATIENCE: Duration = Duration::from_secs(60);

fn config(dir: &Path, name: &str, ca: &str, cluster: &Cluster) -> Config {
    let text = format!(
        "data_dir = \"{0}/{name}\"\nca_dir = \"{0}/{ca}\"\nlisten = \"127.0.0.1:0\"\n[store]\nkind = \"etcd\"\n\
         endpoints = [\"http://{1}\"]\nprefix = \"/devfleet-test\"\n",
        dir.display(),
        cluster.address(0)
    );
    let file = dir.join(format!("{name}.toml"));
    std::fs::write(&file, text).expect("written");
    Config::load(&file).expect("valid")
}

async fn start(config: &Config) -> Running {
    server::start(config, Clock::system()).await.expect("it starts")
}

async fn leader_of(store: &SharedStore) -> Vec<u8> {
    let leads = async || store.get(&leader_key()).await.expect("get").map(|entry| entry.value);
    looking::until(PATIENCE, "a leader", leads).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_are_one_fleet_and_when_the_leader_stops_the_other_leads() {
    let (dir, cluster) = (tempfile::tempdir().expect("dir"), Cluster::start(1));
    let store = cluster.store(0, "test").await;
    let first = start(&config(dir.path(), "a", "ca", &cluster)).await;
    let led_by = leader_of(&store).await;
    let second = start(&config(dir.path(), "b", "ca", &cluster)).await;
    let (one, two) = (dir.path().join("token-a"), dir.path().join("token-b"));
    let both = tokio::join!(server::bootstrap(&first, &one), server::bootstrap(&second, &two));
    assert!(both.0.is_ok() && both.1.is_ok(), "{both:?}");
    assert!(one.exists() != two.exists(), "one token, whoever made it");

    let stranger = server::start(&config(dir.path(), "c", "another-ca", &cluster), Clock::system()).await.map(drop);
    assert!(matches!(stranger, Err(StartError::Fleet(_))), "{stranger:?}");
    let twin = server::start(&config(dir.path(), "b", "ca", &cluster), Clock::system()).await.map(drop);
    assert!(matches!(twin, Err(StartError::InUse { .. })), "{twin:?}");

    assert_eq!(leader_of(&store).await, led_by, "it still leads");
    first.stop().await;
    let moved = async || (leader_of(&store).await != led_by).then_some(());
    looking::until(PATIENCE, "the other to lead", moved).await;
    second.stop().await;
}

fn url(controller: &Running) -> String {
    format!("https://localhost:{}", controller.address.port())
}

/// Has a host join at this controller.
async fn joined(dir: &Path, at: &Running) -> HostIdentity {
    let terms = JoinTerms::once(Duration::from_secs(600));
    let (join, _) = at.tokens.create_join(&terms, &at.authority.fingerprint()).await.expect("token");
    HostIdentity::join(&dir.join("host"), &url(at), &join, "host-1").await.expect("joined")
}

/// A channel without a certificate, as people have.
fn plain(controller: &Running) -> Channel {
    let trust = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(controller.authority.certificate_pem()));
    Endpoint::from_shared(url(controller))
        .and_then(|endpoint| endpoint.tls_config(trust))
        .expect("settings")
        .connect_lazy()
}

/// Opens a session and returns it once it was welcomed; the sender keeps it open.
async fn welcomed(identity: &HostIdentity, at: &Running) -> (mpsc::Sender<HostMessage>, Streaming<ControllerMessage>) {
    welcomed_by(|| identity.channel(&url(at)).expect("channel")).await
}

/// The same, over such channels.
async fn welcomed_by(channel: impl Fn() -> Channel) -> (mpsc::Sender<HostMessage>, Streaming<ControllerMessage>) {
    let opening = async || {
        let (up, messages) = mpsc::channel(4);
        let hello = v1::Hello { incarnation: "1".into(), ..Default::default() };
        up.send(HostMessage { kind: Some(host_message::Kind::Hello(hello)) }).await.expect("room");
        let mut client = SessionClient::new(channel());
        if let Ok(answer) = client.open(ReceiverStream::new(messages)).await {
            let mut down = answer.into_inner();
            if let Ok(Some(ControllerMessage { kind: Some(Kind::Welcome(_)) })) = down.message().await {
                return Some((up, down));
            }
        }
        None
    };
    looking::until(PATIENCE, "a welcome", opening).await
}

/// Asks a controller for the hosts that are connected.
async fn connected(at: &Running, token: &Secret) -> Vec<String> {
    let mut request = Request::new(v1::ListHostsRequest {});
    let bearer = format!("Bearer {}", token.expose()).parse().expect("a header");
    request.metadata_mut().insert("authorization", bearer);
    let answer = FleetClient::new(plain(at)).list_hosts(request).await.expect("an answer").into_inner();
    answer.hosts.into_iter().filter(|host| host.connected).map(|host| host.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_and_people_may_come_to_any_controller() {
    let (dir, cluster) = (tempfile::tempdir().expect("dir"), Cluster::start(1));
    let store = cluster.store(0, "test").await;
    let leader = start(&config(dir.path(), "a", "ca", &cluster)).await;
    leader_of(&store).await;
    let other = start(&config(dir.path(), "b", "ca", &cluster)).await;
    let (_, operator) = other.tokens.create("test", Role::Operator, None).await.expect("token");
    let identity = joined(dir.path(), &other).await;

    let (_up, mut down) = welcomed(&identity, &other).await;
    assert_eq!(connected(&leader, &operator).await, ["host-1"], "the session is the leader's");
    assert_eq!(connected(&other, &operator).await, ["host-1"], "and everybody knows");

    // The name of a host alone opens nothing: it counts beside a controller's certificate only.
    let mut claimed = Request::new(tokio_stream::empty::<HostMessage>());
    claimed.metadata_mut().insert("devfleet-host", identity.host().as_str().parse().expect("a header"));
    for controller in [&leader, &other] {
        let mut claimed_here = Request::new(tokio_stream::empty::<HostMessage>());
        *claimed_here.metadata_mut() = claimed.metadata().clone();
        let refused = SessionClient::new(plain(controller)).open(claimed_here).await.map(drop);
        assert_eq!(refused.expect_err("refused").code(), Code::PermissionDenied);
    }

    leader.stop().await;
    let ended = tokio::time::timeout(PATIENCE, async { while let Ok(Some(_)) = down.message().await {} }).await;
    assert!(ended.is_ok(), "its session ends with the leader");
    let (_up, _down) = welcomed(&identity, &other).await;
    assert_eq!(connected(&other, &operator).await, ["host-1"], "the next leader has it");
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_stream_ends_with_the_term_of_who_takes_it_though_that_controller_lives() {
    let (dir, cluster) = (tempfile::tempdir().expect("dir"), Cluster::start(1));
    let store = cluster.store(0, "test").await;
    let controller = start(&config(dir.path(), "a", "ca", &cluster)).await;
    leader_of(&store).await;
    let identity = joined(dir.path(), &controller).await;
    // Welcomed, so that the controller leads and knows the host.
    let _session = welcomed(&identity, &controller).await;
    let (_chunks, queue) = mpsc::channel::<v1::LogChunk>(1);
    let mut client = SessionClient::new(identity.channel(&url(&controller)).expect("channel"));
    let mut answers = client.push_logs(ReceiverStream::new(queue)).await.expect("a stream").into_inner();
    let then = vec![Change::Delete(leader_key())];
    store.commit(Transaction { when: Vec::new(), then }).await.expect("deposed");
    let ended = tokio::time::timeout(PATIENCE, async { while let Ok(Some(_)) = answers.message().await {} }).await;
    assert!(ended.is_ok(), "what comes now belongs to whoever leads next");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_list_of_controllers_goes_to_the_next_when_its_own_dies_and_people_see_who_leads() {
    let (dir, cluster) = (tempfile::tempdir().expect("dir"), Cluster::start(1));
    let store = cluster.store(0, "test").await;
    let first = start(&config(dir.path(), "a", "ca", &cluster)).await;
    leader_of(&store).await;
    let second = start(&config(dir.path(), "b", "ca", &cluster)).await;
    let (_, operator) = first.tokens.create("test", Role::Operator, None).await.expect("token");
    let identity = joined(dir.path(), &first).await;
    let endpoints = Arc::new(Endpoints::new(vec![url(&first), url(&second)]).expect("some"));

    let (_up, mut down) = welcomed_by(|| identity.channel_to(Arc::clone(&endpoints)).expect("channel")).await;
    assert_eq!(endpoints.current(), url(&first));
    // What another one wrote is seen a moment later.
    let led = crate::support::site::wait_async("two controllers, of which one leads", async || {
        let listed = controllers(&second, &operator).await;
        let mut leads = listed.iter().filter(|one| one.leads && one.leads_since_unix_ms > 0);
        let led = leads.next().filter(|_| listed.len() == 2)?;
        assert!(leads.next().is_none(), "{listed:?}");
        Some(led.id.clone())
    })
    .await;

    first.stop().await;
    let ended = tokio::time::timeout(PATIENCE, async { while let Ok(Some(_)) = down.message().await {} }).await;
    assert!(ended.is_ok(), "its session ends with its controller");
    let (_up, _down) = welcomed_by(|| identity.channel_to(Arc::clone(&endpoints)).expect("channel")).await;
    assert_eq!(endpoints.current(), url(&second), "the list was gone through");
    assert_eq!(connected(&second, &operator).await, ["host-1"]);
    crate::support::site::wait_async("the other one alone, and it leads", async || {
        let left = controllers(&second, &operator).await;
        (left.len() == 1 && left[0].leads && left[0].id != led).then_some(())
    })
    .await;
    second.stop().await;
}

/// Asks a controller which controllers run.
async fn controllers(at: &Running, token: &Secret) -> Vec<v1::Controller> {
    let mut request = Request::new(v1::ListControllersRequest {});
    let bearer = format!("Bearer {}", token.expose()).parse().expect("a header");
    request.metadata_mut().insert("authorization", bearer);
    FleetClient::new(plain(at)).list_controllers(request).await.expect("an answer").into_inner().controllers
}
