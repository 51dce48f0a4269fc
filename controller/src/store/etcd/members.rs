//! The members of the cluster: one is used until it fails, then the next. Every call has a deadline.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use devfleet_shared::secret::Secret;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions, Txn, TxnResponse};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::errors::Failure;
use super::{MESSAGE_BYTES, versions};
use crate::store::StoreError;

/// One try at one member. A cluster that elects a leader answers within this time or not at all.
const CALL: Duration = Duration::from_secs(3);
/// All tries of one call.
const CALLS: Duration = Duration::from_secs(10);
const PACE: Backoff = Backoff { first: Duration::from_millis(50), ceiling: Duration::from_millis(500) };

/// How a cluster is reached.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// The members' client addresses: `https://etcd-1.example:2379`.
    pub endpoints: Vec<String>,
    /// What stands before every key; may be empty.
    pub prefix: String,
    /// The authority of the members' certificates, PEM. `None`: no TLS.
    pub ca: Option<String>,
    /// Our certificate and its key, PEM.
    pub identity: Option<(String, Secret)>,
    /// Our user and its password.
    pub user: Option<(String, Secret)>,
}

/// The members.
pub(super) struct Members {
    settings: EtcdSettings,
    clients: Vec<OnceCell<Client>>,
    current: AtomicUsize,
}

impl Members {
    pub(super) fn new(settings: EtcdSettings) -> Self {
        let clients = settings.endpoints.iter().map(|_| OnceCell::new()).collect();
        Self { settings, clients, current: AtomicUsize::new(0) }
    }

    /// Returns the member in use, and its client.
    pub(super) async fn client(&self) -> Result<(usize, Client), Failure> {
        let count = self.clients.len().max(1);
        let member = self.current.load(Ordering::Relaxed) % count;
        let connecting = self.clients[member].get_or_try_init(|| self.connect(member));
        let client = match tokio::time::timeout(CALL, connecting).await {
            Ok(Ok(client)) => client.clone(),
            Ok(Err(error)) => {
                self.give_up(member);
                return Err(error.into());
            }
            Err(_) => {
                self.give_up(member);
                return Err(silent());
            }
        };
        Ok((member, client))
    }

    /// Uses the next member from now on, unless that was done already.
    pub(super) fn give_up(&self, member: usize) {
        let next = (member + 1) % self.clients.len().max(1);
        self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed).ok();
    }

    async fn connect(&self, member: usize) -> Result<Client, etcd_client::Error> {
        let ping = Duration::from_secs(3);
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CALL)
            .with_keep_alive(ping, ping)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(ca) = &self.settings.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((certificate, key)) = &self.settings.identity {
                tls = tls.identity(Identity::from_pem(certificate, key.expose()));
            }
            options = options.with_tls(tls);
        }
        if let Some((user, password)) = &self.settings.user {
            options = options.with_user(user, password.expose());
        }
        Client::connect([&self.settings.endpoints[member]], Some(options)).await
    }

    /// Makes one try at the member in use.
    pub(super) async fn once<T, F>(&self, call: impl FnOnce(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let (member, client) = self.client().await?;
        let failure = match tokio::time::timeout(CALL, call(client)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error.into(),
            Err(_) => silent(),
        };
        if matches!(failure, Failure::Unknown(_)) {
            self.give_up(member);
        }
        Err(failure)
    }

    /// Makes a call that may be repeated, until a member answers or the time is over.
    pub(super) async fn try_read<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let until = Instant::now() + CALLS;
        let mut tries = 0;
        loop {
            match self.once(&call).await {
                Err(Failure::Unknown(error)) if Instant::now() < until => {
                    debug!(error = %Chain(&*error), "a member of etcd does not answer");
                    tries += 1;
                    // sleep: the pace of tries
                    tokio::time::sleep(PACE.pause(tries, Backoff::jitter())).await;
                }
                other => return other,
            }
        }
    }

    /// As [`Members::try_read`], for calls that know nothing of leases and history.
    pub(super) async fn read<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.try_read(call).await.map_err(Failure::into_error)
    }

    /// Sends a transaction once.
    pub(super) async fn transact(&self, transaction: Txn) -> Result<TxnResponse, Failure> {
        let send = |client: Client| async move {
            client.kv_client().max_decoding_message_size(MESSAGE_BYTES).txn(transaction).await
        };
        self.once(send).await
    }

    /// Says which members have a version with known defects. Fails if none can be asked.
    pub(super) async fn check_versions(&self) -> Result<(), StoreError> {
        let mut last = None;
        for endpoint in &self.settings.endpoints {
            let status = self.once(|client| async move { client.maintenance_client().status().await }).await;
            match status {
                Ok(status) => {
                    last = Some(Ok(()));
                    match versions::advice(status.version()) {
                        None => info!(version = status.version(), "connected to etcd"),
                        Some(advice) => warn!(version = status.version(), advice, "etcd should be renewed"),
                    }
                    // The next member is asked next.
                    let member = self.current.load(Ordering::Relaxed);
                    self.give_up(member);
                }
                Err(failure) => {
                    let error = failure.into_error();
                    warn!(%endpoint, error = %Chain(&error), "a member of etcd cannot be asked");
                    last = Some(last.unwrap_or(Err(error)));
                }
            }
        }
        last.unwrap_or_else(|| Err(StoreError::Unavailable("no endpoint is configured".into())))
    }
}

fn silent() -> Failure {
    Failure::Unknown("no answer in time".into())
}
