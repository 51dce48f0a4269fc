//! Wires the controller together and serves it: one listener, TLS always, people and hosts on the same port.

mod ground;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use devfleet_proto::v1::fleet_server::FleetServer;
use devfleet_proto::v1::jobs_server::JobsServer;
use devfleet_proto::v1::session_server::SessionServer;
use devfleet_shared::clock::Clock;
use devfleet_shared::error::Chain;
use devfleet_shared::id::ControllerId;
use futures_util::Stream;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tracing::{info, warn};

pub use self::ground::Ground;
use self::ground::open_ground;
use crate::api::access::AccessLayer;
use crate::api::fleet::FleetService;
use crate::api::jobs::JobsService;
use crate::api::passing::{Passing, PassingLayer};
use crate::api::session::SessionService;
use crate::artifacts::Artifacts;
use crate::config::Config;
use crate::controllers::{ControllerIdError, Presence};
use crate::files::{self, Files, FilesError, OpenFilesError};
use crate::gates::Gates;
use crate::hosts::drain::Drain;
use crate::identity::{Authority, IdentityError, Listener, Role, ServerTls, Tokens, server_tls};
use crate::jobs::Jobs;
use crate::leader::{LeadOnly, Leader};
use crate::logs::JobLogs;
use crate::publish::Publisher;
use crate::reclaim::Reclaim;
use crate::reconcile::snapshot::Defaults;
use crate::reconcile::{Reconciler, Waiting};
use crate::sessions::Sessions;
use crate::sessions::prover::Prover;
use crate::sessions::stream::SessionParts;
use crate::store::SharedStore;
use crate::store::opening::OpenStoreError;
use crate::store::records::RecordError;
use crate::store::records::fleet::{self, FleetError};
use crate::upkeep::{Compaction, Upkeep};
use crate::view::View;

/// The largest message either side may send: a diff of 1 MiB and what surrounds it.
const MESSAGE_BYTES: usize = 4 << 20;
/// Streams on one connection.
const STREAMS: u32 = 256;
/// Bytes of headers.
const HEADER_BYTES: u32 = 16 << 10;
/// The deadline of every call: an answer, or the beginning of a stream, comes within it.
const CALL_TIME: Duration = Duration::from_secs(30);
/// How long what is under way on a connection that is too old may go on.
const AGE_GRACE: Duration = Duration::from_secs(10);
/// How long calls under way may take to end at shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// Why the controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory cannot be made.
    #[error("make directory {path}")]
    Directory {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be opened.
    #[error("open the store")]
    Store(#[from] OpenStoreError),
    /// The files cannot be opened.
    #[error("open the files: logs and diffs")]
    Files(#[from] OpenFilesError),
    /// The files cannot be used.
    #[error("try the files: logs and diffs")]
    TryFiles(#[from] FilesError),
    /// The store holds something that does not belong there.
    #[error("read the store")]
    Record(#[from] RecordError),
    /// The controller does not know its id.
    #[error("find out who this controller is")]
    Id(#[from] ControllerIdError),
    /// Another process works in the data directory.
    #[error("lock {path}: another controller runs in this data directory; stop it, or choose another `data_dir`")]
    InUse {
        /// The file.
        path: String,
    },
    /// The controller does not belong to the fleet of the store.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The authority or a certificate cannot be had.
    #[error("set up identities")]
    Identity(#[from] IdentityError),
    /// The address is taken or not ours.
    #[error("listen on {address}; another program may use it, choose another with `listen`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Reflection cannot be set up: a defect.
    #[error("set up reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The bootstrap token cannot be written.
    #[error("write the bootstrap token to {path}")]
    BootstrapToken {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A controller that runs.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its authority.
    pub authority: Arc<Authority>,
    /// Its tokens.
    pub tokens: Tokens,
    /// Its records.
    pub view: Arc<View>,
    id: ControllerId,
    store: SharedStore,
    _lock: Option<std::fs::File>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    /// Ends it: no new calls, those under way get a grace period.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE * 2, self.tasks.wait()).await.is_err() {
            warn!("some tasks did not end in time");
        }
    }
}

/// Starts a controller. It runs until it is stopped.
pub async fn start(config: &Config, clock: Clock) -> Result<Running, StartError> {
    devfleet_shared::tls::install_provider();
    let ground = open_ground(config, clock).await?;
    let (listener, address) = listen(config.listen).await?;
    start_on(config, ground, listener, address).await
}

/// Starts a controller on this ground, with this listener, whose address is said in its log.
pub async fn start_on<L: Listener>(
    config: &Config,
    ground: Ground,
    listener: L,
    address: SocketAddr,
) -> Result<Running, StartError> {
    let Ground { id, store, files, authority, forges, reach, clock, lock } = ground;
    let tls = server_tls(&authority, &authority.issue_server(&config.names)?)?;

    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let view = View::open(&store).await?;
    let jobs = Jobs::new(store.clone(), clock.clone());
    let sessions = Arc::new(Sessions::new(clock.clone()));
    let tokens = Tokens::new(store.clone(), clock.clone());
    let (logs, artifacts) = (JobLogs::new(files.clone()), Artifacts::new(files));
    let (waiting, waits) = watch::channel(Waiting::new());
    let (prove, prover) = Prover::new(store.clone(), this_start(&id), config.timers.host_lease.0);
    let mut lead_only = of_hosts(&view, &jobs, &logs, &clock, config);
    let defaults = Defaults { max_running: config.max_running, quarantine: config.quarantine.rules() };

    let reconciler = Reconciler {
        view: view.clone(),
        sessions: sessions.clone(),
        jobs: jobs.clone(),
        gates: Gates { jobs: jobs.clone(), forges: forges.clone() },
        publisher: Publisher { jobs: jobs.clone(), forges: forges.clone() },
        defaults,
        clock: clock.clone(),
        waiting,
    };
    let jobs_service = JobsService {
        store: store.clone(),
        view: view.clone(),
        jobs: jobs.clone(),
        forges: forges.clone(),
        sessions: sessions.clone(),
        logs: logs.clone(),
        artifacts: artifacts.clone(),
        waiting: waits,
        clock: clock.clone(),
    };
    let fleet_service = FleetService {
        store: store.clone(),
        view: view.clone(),
        sessions: sessions.clone(),
        tokens: tokens.clone(),
        authority: authority.clone(),
        forges: forges.clone(),
        defaults,
        clock: clock.clone(),
    };
    let (timers, of_sessions) = (config.timers, sessions.clone());
    let parts = SessionParts { view: view.clone(), jobs, sessions: of_sessions, logs: logs.clone(), prover, timers };
    let leader = Leader::new(store.clone(), clock, id.clone(), own_address(config, address));
    let term = leader.term.subscribe();
    let (ends, counts) = (shutdown.clone(), tasks.clone());
    let session = SessionService { parts, forges, artifacts, term: term.clone(), shutdown: ends, tasks: counts };
    let passing = Passing::new(term.clone(), view.clone(), authority.clone(), id.clone(), reach);
    let services = Services { jobs: jobs_service, fleet: fleet_service, session, passing: Arc::new(passing) };

    lead_only.extend([Arc::new(reconciler) as Arc<dyn LeadOnly>, Arc::new(Compaction { store: store.clone() })]);
    tasks.spawn(Presence::of(&leader).run(shutdown.clone()));
    tasks.spawn(prove.run(shutdown.clone()));
    tasks.spawn(upkeep(&tls, &authority, config).run(shutdown.clone()));
    tasks.spawn(view.clone().follow(store.clone(), shutdown.clone()));
    tasks.spawn(sessions.only_while_leading(term.clone(), shutdown.clone()));
    tasks.spawn(logs.clone().only_while_leading(term, shutdown.clone()));
    tasks.spawn(logs.settle_resting(shutdown.clone()));
    tasks.spawn(leader.run(lead_only, shutdown.clone()));
    tasks.spawn(services.serve::<L>(config.connection_age.0, tls.incoming(listener), shutdown.clone())?);
    info!(%address, "controller is ready");
    Ok(Running { address, authority, tokens, view, id, store, shutdown, tasks, _lock: lock })
}

/// Where others reach this controller: as its settings say, else by its first name.
fn own_address(config: &Config, listening: SocketAddr) -> String {
    if let Some(address) = &config.address {
        return address.clone();
    }
    let name = config.names.first().map_or("localhost", String::as_str);
    let name = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
    format!("https://{name}:{}", listening.port())
}

/// Makes the first operator token and writes it to a file that only its owner can read. Does nothing if tokens
/// exist, or if another controller of the fleet makes it.
pub async fn bootstrap(running: &Running, path: &Path) -> Result<(), StartError> {
    if running.tokens.any().await? || !fleet::may_bootstrap(&running.store, &running.id).await? {
        return Ok(());
    }
    let (_, token) = running.tokens.create("bootstrap", Role::Operator, None).await?;
    let write = || {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        writeln!(file, "{}", token.expose())?;
        file.sync_all()
    };
    write().map_err(|source| StartError::BootstrapToken { path: path.display().to_string(), source })
}

fn upkeep(tls: &ServerTls, authority: &Arc<Authority>, config: &Config) -> Upkeep {
    Upkeep { tls: tls.clone(), authority: authority.clone(), names: config.names.clone() }
}

/// What the leader does about hosts: those that are silent, and those that are to be empty.
fn of_hosts(
    view: &Arc<View>,
    jobs: &Arc<Jobs>,
    logs: &JobLogs,
    clock: &Clock,
    config: &Config,
) -> Vec<Arc<dyn LeadOnly>> {
    let drain = Drain { view: view.clone(), jobs: jobs.clone(), clock: clock.clone() };
    let (view, jobs, logs, clock) = (view.clone(), jobs.clone(), logs.clone(), clock.clone());
    vec![Arc::new(drain), Arc::new(Reclaim { view, jobs, logs, clock, grace: config.timers.grace.0 })]
}

/// Names this start of a controller: sessions of one that was killed a moment ago are not those of this one.
fn this_start(id: &ControllerId) -> String {
    format!("{id}/{}", devfleet_shared::id::hex(&rand::random::<[u8; 8]>()))
}

struct Services {
    jobs: JobsService,
    fleet: FleetService,
    session: SessionService,
    passing: Arc<Passing>,
}

impl Services {
    fn serve<L: Listener>(
        self,
        connection_age: Duration,
        incoming: impl Stream<Item = std::io::Result<TlsStream<L::Connection>>> + Send + 'static,
        shutdown: CancellationToken,
    ) -> Result<impl Future<Output = ()> + Send, StartError> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(devfleet_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let (health, health_service) = tonic_health::server::health_reporter();
        let reflection_service = reflection().build_v1()?;
        let limit = MESSAGE_BYTES;
        let router = Server::builder()
            .timeout(CALL_TIME)
            .max_concurrent_streams(STREAMS)
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .max_connection_age(connection_age)
            .max_connection_age_grace(AGE_GRACE)
            .layer(AccessLayer { tokens: self.fleet.tokens.clone(), hosts: self.fleet.hosts() })
            .layer(PassingLayer { passing: self.passing })
            .add_service(health_service)
            .add_service(reflection_service)
            .add_service(JobsServer::new(self.jobs).max_decoding_message_size(limit).max_encoding_message_size(limit))
            .add_service(FleetServer::new(self.fleet).max_decoding_message_size(limit).max_encoding_message_size(limit))
            .add_service(
                SessionServer::new(self.session).max_decoding_message_size(limit).max_encoding_message_size(limit),
            );
        Ok(async move {
            health.set_serving::<JobsServer<JobsService>>().await;
            let stop = shutdown.clone();
            let serving = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
            tokio::pin!(serving);
            let ended = tokio::select! {
                ended = &mut serving => Some(ended),
                () = shutdown.cancelled() => tokio::time::timeout(GRACE, &mut serving).await.ok(),
            };
            if let Some(Err(error)) = ended {
                warn!(error = %Chain(&error), "serving ended");
            }
        })
    }
}

/// Opens the files that the configuration names, and tries them. Fails where a person must change something; files that
/// do not answer for a while are no reason not to start: logs wait on their hosts.
pub async fn open_files(config: &Config) -> Result<Files, StartError> {
    let files = files::open(config).await?;
    match files.try_out().await {
        Err(error) if !error.is_retryable() => return Err(error.into()),
        Err(error) => warn!(error = %Chain(&error), "the files do not answer; logs wait on their hosts until they do"),
        Ok(()) => {}
    }
    Ok(files)
}

async fn listen(wanted: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address: wanted, source };
    let listener = TcpListener::bind(wanted).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn make_dir(path: &Path) -> Result<std::path::PathBuf, StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StartError::Directory { path: path.display().to_string(), source })?;
    Ok(path.to_owned())
}
