//! What must be done now and then: a fresh certificate for the listener, and history that nobody needs let go.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_shared::error::Chain;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::identity::{Authority, ServerTls};
use crate::leader::{LeadOnly, Term};
use crate::store::{Revision, SharedStore};

/// How often the listener's own certificate is made anew. It is good for longer.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// How long history is kept: a watch that broke off goes on from where it was if it comes back within this time.
const HISTORY: Duration = Duration::from_secs(600);

/// The upkeep and what it works with.
pub struct Upkeep {
    /// The listener's certificate.
    pub tls: ServerTls,
    /// Signs it.
    pub authority: Arc<Authority>,
    /// What it is for.
    pub names: Vec<String>,
}

/// Lets go of history. One controller does it for all.
pub struct Compaction {
    /// The store.
    pub store: SharedStore,
}

impl Upkeep {
    /// Runs until the shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut certificates = tokio::time::interval(CERTIFICATE_INTERVAL);
        // The first tick of an interval comes at once, and all is fresh at the start.
        certificates.tick().await;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = certificates.tick() => self.renew(),
            }
        }
    }

    fn renew(&self) {
        let renewed =
            self.authority.issue_server(&self.names).and_then(|issued| self.tls.replace(&self.authority, &issued));
        match renewed {
            Ok(()) => info!("the listener's certificate was renewed"),
            Err(error) => warn!(error = %Chain(&error), "the listener's certificate could not be renewed"),
        }
    }
}

#[async_trait]
impl LeadOnly for Compaction {
    async fn run(&self, _: Term, shutdown: CancellationToken) {
        let mut history = tokio::time::interval(HISTORY);
        let mut keep_from = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = history.tick() => keep_from = self.compact(keep_from).await,
            }
        }
    }
}

impl Compaction {
    /// Lets go of what was history at the last call already, and returns what is history by the next one.
    async fn compact(&self, keep_from: Option<Revision>) -> Option<Revision> {
        if let Some(before) = keep_from {
            match self.store.compact(before).await {
                Ok(()) => debug!(before, "history compacted"),
                Err(error) => warn!(error = %Chain(&error), "history could not be compacted"),
            }
        }
        // Any prefix tells the revision; this one holds nothing.
        self.store.range("/devfleet/none/").await.map(|snapshot| snapshot.revision).ok()
    }
}
