//! The whole daemon: identity, what is left from before, then the session and everything that runs beside it.
//!
//! ```text
//! lock ─▶ join or load ─▶ adopt from the ledgers ─▶ session │ supervisor │ sweeper │ log shipper │ renewal
//! ```
//! Ends when it is told to, or when one of its parts ends, which is a defect. Containers run on either way.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::Clock;
use devfleet_shared::endpoints::Endpoints;
use devfleet_shared::error::Chain;
use devfleet_shared::id::HostId;
use devfleet_shared::secret::Secret;
use devfleet_shared::tls;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::admitted::Admitted;
use crate::attempt::Surroundings;
use crate::attempt::ports::Code;
use crate::attempt::reports::Board;
use crate::caches::Caches;
use crate::config::Config;
use crate::disk::{self, Gauge, Space};
use crate::engine::SharedEngine;
use crate::engine::docker::DockerEngine;
use crate::environment::{Images, InvalidPool, PrivateImages, RegistryMirrors};
use crate::freeze::watchdog::{self, Watch};
use crate::freeze::{Freezer, PROOF, Proofs};
use crate::identity::{HostIdentity, IdentityError};
use crate::ledger::LedgerError;
use crate::mirror::Mirrors;
use crate::session::followed::Followed;
use crate::session::inventory::Inventory;
use crate::session::wire::RemoteController;
use crate::session::{Session, Sweeping};
use crate::spool::shipping::{Dial, LogShipper};
use crate::spool::{SpoolError, Spools};
use crate::supervisor::Supervisor;

/// The variable that may hold the join token.
pub const JOIN_TOKEN: &str = "DEVFLEET_JOIN_TOKEN";
/// The pace at which a controller that cannot be reached is asked to let this host join.
const JOIN_AGAIN: Backoff = Backoff { first: Duration::from_millis(300), ceiling: Duration::from_secs(10) };
/// The file beside the identity that says that the host was removed.
const REMOVAL: &str = "removed";
/// The file beside the identity that says which store is followed.
const FOLLOWED: &str = "store.json";
/// How often it is looked whether the certificate is to be renewed.
const RENEWAL: Duration = Duration::from_secs(60);
/// How long the parts may take to end.
const GRACE: Duration = Duration::from_secs(8);

/// Why the daemon could not start or run on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory cannot be used.
    #[error("use the data directory {path}", path = path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another daemon works in the data directory.
    #[error("use the data directory {path}: another devfleet-host works in it; stop that one, or set another data_dir", path = path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The host has not joined, and has nothing to join with.
    #[error(
        "join the fleet: this host has no identity and no join token; make one with `devfleet join-token create` and give it in {JOIN_TOKEN} or in the file that join_token_file names"
    )]
    NoToken,
    /// The file with the join token cannot be read.
    #[error("read the join token from {path}; write the output of `devfleet join-token create` into it", path = path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The identity cannot be had.
    #[error("get this host's identity")]
    Identity(#[from] IdentityError),
    /// The host was removed from the fleet, and has nothing to join anew with.
    #[error(
        "be part of the fleet: {detail}; make a token with `devfleet join-token create` and give it in {JOIN_TOKEN} or in the file that join_token_file names (if the host was taken back by a restore, delete {})", .file.display()
    )]
    Removed {
        /// What the controller said.
        detail: String,
        /// Where that stands.
        file: PathBuf,
    },
    /// The network pool is not one.
    #[error("use network_pool")]
    Pool(#[from] InvalidPool),
    /// The spools cannot be opened.
    #[error("open the spools")]
    Spools(#[from] SpoolError),
    /// The ledgers cannot be read.
    #[error("take up what is left from before")]
    Ledgers(#[from] LedgerError),
    /// The system's signals cannot be listened to.
    #[error("listen for SIGTERM and SIGINT")]
    Signals(#[source] std::io::Error),
    /// A part of the daemon ended by itself.
    #[error("go on: the {part} ended, which is a defect; its containers run on, start the daemon again")]
    PartEnded {
        /// Which.
        part: &'static str,
    },
}

/// Runs the daemon until SIGTERM or SIGINT, on the engine that the configuration names.
pub async fn run_until_told(config: Config) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let shutdown = CancellationToken::new();
    let engine = Arc::new(DockerEngine::new(&config.engine));
    let mut running = std::pin::pin!(run_on(engine, config, shutdown.clone()));
    tokio::select! {
        ended = &mut running => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
    running.await
}

/// Reads which images came with a login.
fn private_images(data_dir: &Path) -> Result<PrivateImages, RunError> {
    let path = data_dir.join("private-images.json");
    PrivateImages::open(&path).map_err(|source| RunError::DataDir { path, source })
}

/// Runs the daemon until `shutdown`, on this engine.
pub async fn run_on(engine: SharedEngine, config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    tls::install_provider();
    let _lock = lock(&config.data_dir)?;
    let clock = Clock::system();
    let Some(identity) = identity(&config, &shutdown).await? else { return Ok(()) };
    tracing::info!(host = %identity.host(), name = config.name, "host daemon starts");
    let endpoints = endpoints(&config)?;
    let dial: Arc<dyn Dial> = Arc::new(IdentityDial { identity: identity.clone(), endpoints: Arc::clone(&endpoints) });
    let code = Arc::new(Mirrors::new(config.data_dir.join("mirrors")));
    let ground = Ground { host: identity.host().clone(), engine, code, dial, clock: clock.clone(), gauge: Space::at };
    let end = shutdown.child_token();
    let (data_dir, address) = (config.data_dir.clone(), config.engine.clone());
    let watch = Watch { data_dir, engine: address, host: identity.host().clone() };
    let mut parts = start(ground, &config, &end).await?;
    // This very program, also where its file was replaced since.
    let program = Path::new("/proc/self/exe");
    spawn(&mut parts, "watchdog's keeper", watchdog::keep(program, watch, end.clone()));
    spawn(&mut parts, "renewal", renew(identity, endpoints, clock, end.clone()));
    await_end(parts, &end).await
}

/// What a daemon stands on, given from outside.
pub struct Ground {
    /// This host.
    pub host: HostId,
    /// The engine.
    pub engine: SharedEngine,
    /// Mirrors and remotes.
    pub code: Arc<dyn Code>,
    /// Connects to the controller.
    pub dial: Arc<dyn Dial>,
    /// Tells the time.
    pub clock: Clock,
    /// Measures the room on disks.
    pub gauge: Gauge,
}

/// Takes up what is left from before and starts the parts, which end at `end`. None ends by itself.
pub async fn start(
    ground: Ground,
    config: &Config,
    end: &CancellationToken,
) -> Result<JoinSet<&'static str>, RunError> {
    let Ground { host, engine, code, dial, clock, gauge } = ground;
    let spools = Spools::open_dir(config.data_dir.join("spool"))?;
    let proofs = Proofs::open(config.data_dir.join(PROOF), clock.clone());
    let around = Arc::new(Surroundings {
        clock: clock.clone(),
        pool: config.network_pool.parse()?,
        slots: config.slots.into(),
        admitted: Admitted::default(),
        images: Images::new(Arc::clone(&engine), host.clone())
            .remembering(private_images(&config.data_dir)?)
            .through(RegistryMirrors(config.registry_mirrors.clone())),
        caches: Caches::new(Arc::clone(&engine), host.clone(), &config.data_dir, config.cache_budget.0),
        code,
        controller: Arc::new(RemoteController { dial: Arc::clone(&dial) }),
        spools: spools.clone(),
        data_dir: config.data_dir.clone(),
        engine_disk: first_look(&engine).await,
        gauge,
        board: Board::default(),
        host,
        proofs: proofs.clone(),
        engine,
    });
    let (supervisor, handle) = Supervisor::adopt(Arc::clone(&around), config.data_dir.join("ledger"))?;
    let sweeping = Arc::new(Sweeping {
        around: Arc::clone(&around),
        protection: config.protection_window.0,
        turn: tokio::sync::Mutex::default(),
    });
    let welcomed = watch::Sender::new(false);
    let mirrors = config.data_dir.join("mirrors");
    let freezer = Freezer { around: Arc::clone(&around), supervisor: handle.clone() };
    let session = Session {
        dial: Arc::clone(&dial),
        supervisor: handle.clone(),
        inventory: Inventory { around, supervisor: handle, mirrors },
        sweeping: Arc::clone(&sweeping),
        incarnation: devfleet_shared::id::hex(&rand::random::<[u8; 16]>()),
        proofs,
        clock: clock.clone(),
        welcomed: welcomed.clone(),
        followed: Followed::open(config.data_dir.join("identity").join(FOLLOWED)),
        removal: config.data_dir.join("identity").join(REMOVAL),
    };
    let (shipper, _) = LogShipper::new(spools, dial);
    let mut parts = JoinSet::new();
    spawn(&mut parts, "supervisor", supervisor.run(end.clone()));
    spawn(&mut parts, "freezer", freezer.run(end.clone()));
    spawn(&mut parts, "session", session.run(end.clone()));
    spawn(&mut parts, "sweeper", sweeping.run(welcomed.subscribe(), end.clone()));
    spawn(&mut parts, "log shipper", shipper.run(end.clone()));
    Ok(parts)
}

fn spawn(parts: &mut JoinSet<&'static str>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    parts.spawn(async move {
        work.await;
        name
    });
}

async fn await_end(mut parts: JoinSet<&'static str>, end: &CancellationToken) -> Result<(), RunError> {
    let outcome = tokio::select! {
        biased;
        () = end.cancelled() => Ok(()),
        ended = parts.join_next() => Err(RunError::PartEnded { part: ended.and_then(Result::ok).unwrap_or("fallen part") }),
    };
    end.cancel();
    let all = async { while parts.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        tracing::warn!("some parts of the daemon did not end in time");
    }
    parts.shutdown().await;
    tracing::info!("host daemon ends, its containers run on");
    outcome
}

/// Keeps a second daemon out of the data directory, for as long as the file is open.
fn lock(data_dir: &Path) -> Result<File, RunError> {
    let failed = |source| RunError::DataDir { path: data_dir.to_owned(), source };
    // Tasks, plans and logs lie here: for the daemon's own user alone.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
    std::fs::set_permissions(data_dir, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    let file = File::options().create(true).write(true).truncate(false).open(data_dir.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(RunError::InUse { path: data_dir.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Loads the identity or joins the fleet. `None`: told to stop while waiting for the controller.
async fn identity(config: &Config, shutdown: &CancellationToken) -> Result<Option<HostIdentity>, RunError> {
    let directory = config.data_dir.join("identity");
    let removal = directory.join(REMOVAL);
    if let Ok(detail) = std::fs::read_to_string(&removal) {
        let Ok(_) = join_token(config) else { return Err(RunError::Removed { detail, file: removal }) };
        let aside = HostIdentity::set_aside(&directory)?;
        tracing::warn!(aside = %aside.display(), "this host was removed from the fleet, it joins anew as another host");
    }
    if let Some(identity) = HostIdentity::load(&directory)? {
        return Ok(Some(identity));
    }
    let token = join_token(config)?;
    let endpoints = endpoints(config)?;
    let mut tries = 0;
    loop {
        let error = match HostIdentity::join(&directory, endpoints.current(), &token, &config.name).await {
            Ok(identity) => {
                tracing::info!(host = %identity.host(), "joined the fleet");
                forget_token(config);
                return Ok(Some(identity));
            }
            Err(error) if error.is_retryable() => error,
            Err(error) => return Err(error.into()),
        };
        tries += 1;
        endpoints.elsewhere();
        tracing::warn!(error = %Chain(&error), "cannot join the fleet yet");
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(JOIN_AGAIN.pause(tries, Backoff::jitter())) => {}
        }
    }
}

fn endpoints(config: &Config) -> Result<Arc<Endpoints>, RunError> {
    let none = || IdentityError::BadUrl { url: String::new() };
    Ok(Arc::new(Endpoints::new(config.endpoints()).ok_or_else(none)?))
}

fn join_token(config: &Config) -> Result<Secret, RunError> {
    if let Ok(token) = std::env::var(JOIN_TOKEN)
        && !token.trim().is_empty()
    {
        return Ok(Secret::new(token.trim()));
    }
    let path = config.join_token_file.as_ref().ok_or(RunError::NoToken)?;
    let text = std::fs::read_to_string(path).map_err(|source| RunError::TokenFile { path: path.clone(), source })?;
    Ok(Secret::new(text.trim()))
}

fn forget_token(config: &Config) {
    let Some(path) = &config.join_token_file else { return };
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "join token file not removed; the token is of no use any more");
    }
}

/// Looks for the engine's disk at the start. An engine that cannot be used yet is asked again when it matters.
async fn first_look(engine: &SharedEngine) -> Option<PathBuf> {
    match engine.facts().await {
        Ok(facts) => disk::of_engine(&facts),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the container engine cannot be used yet");
            None
        }
    }
}

/// Keeps the certificate fresh.
async fn renew(identity: HostIdentity, endpoints: Arc<Endpoints>, clock: Clock, end: CancellationToken) {
    let mut interval = tokio::time::interval(RENEWAL);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = interval.tick() => {}
        }
        match identity.renew_if_due(endpoints.current(), clock.now()).await {
            Ok(true) => tracing::info!(ends = %identity.ends(), "certificate renewed"),
            Ok(false) => {}
            Err(error @ IdentityError::Expired { .. }) => tracing::error!(error = %Chain(&error), "certificate ended"),
            Err(error) => tracing::warn!(error = %Chain(&error), "certificate not renewed, it is tried again"),
        }
    }
}

/// Connects with the host's identity.
struct IdentityDial {
    identity: HostIdentity,
    endpoints: Arc<Endpoints>,
}

#[async_trait]
impl Dial for IdentityDial {
    async fn dial(&self) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.identity.channel_to(Arc::clone(&self.endpoints))?)
    }

    fn elsewhere(&self) {
        self.endpoints.elsewhere();
    }
}
