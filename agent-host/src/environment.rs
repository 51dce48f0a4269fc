//! Building and unbuilding a devbox: the saga of labelled, repeatable calls behind one attempt.
//!
//! ```text
//! image ──────────────────────────────┐
//! network ─▶ services until ready ────┼─▶ steps, one container each ─▶ tear down: containers, network, volumes
//! workspace volume ───────────────────┘
//! ```
//! Before each object is made the ledger says so on disk; each object carries the attempt's labels. So a crash at any
//! point leaves nothing that a second `tear_down` cannot find.

pub mod images;
pub mod networks;
mod pulls;
mod services;
pub mod steps;
mod views;
mod workspace;

use std::time::Duration;

use devfleet_shared::assignment::Assignment;
use devfleet_shared::attempt::{Failure, FailureReason};
use devfleet_shared::clock::Timestamp;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, HostId};
use tokio_util::sync::CancellationToken;

use crate::engine::{EngineError, ImageFacts, Labels, ObjectKind, ObjectRef, SharedEngine, label};

pub use images::{ImageError, ImageRequest, Images};
pub use networks::{InvalidPool, SubnetPool};
pub use pulls::{PrivateImages, Pulls, RegistryMirrors, Wanted};
pub use steps::{Frame, FrameError, StepCommand, frame};
pub use workspace::WORKSPACE;

/// Where it is written down what is about to be made, before it is made.
pub trait CreationLog: Send + Sync {
    /// Writes it down; when this answers, it is on disk.
    fn about_to_make(&self, object: &ObjectRef) -> std::io::Result<()>;
}

/// One line for the job's log, for people who watch.
pub type Note<'a> = dyn Fn(&str) + Send + Sync + 'a;

/// The environment of one attempt, and everything needed to build and unbuild it.
pub struct Devbox<'a> {
    /// The engine it lives on.
    pub engine: &'a SharedEngine,
    /// The host it lives on.
    pub host: &'a HostId,
    /// What is to be carried out in it.
    pub assignment: &'a Assignment,
    /// When the attempt began; it goes into labels.
    pub created: Timestamp,
    /// When it may go even if nobody can be asked; it goes into labels.
    pub expires: Timestamp,
    /// Where it is written down what is about to be made.
    pub ledger: &'a dyn CreationLog,
    /// Takes lines for the job's log.
    pub note: &'a Note<'a>,
    /// Where its network gets its addresses.
    pub pool: &'a SubnetPool,
    /// Where its image comes from.
    pub images: &'a Images,
}

/// Why an environment could not be built or unbuilt.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The image cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The ledger cannot be written, so nothing was made.
    #[error("write down that {name} is about to be made")]
    Ledger {
        /// What was about to be made.
        name: String,
        /// What the disk said.
        #[source]
        source: std::io::Error,
    },
    /// Every address of the pool is taken.
    #[error(
        "find free addresses for a network: all of {pool} are in use; widen `network_pool` or run `devfleet sweep`"
    )]
    NoAddresses {
        /// The pool.
        pool: String,
    },
    /// A service is still not there.
    #[error(
        "get service {service} ready: it does not accept connections on port {ports} after {} s; the end of its log:\n{log}",
        waited.as_secs()
    )]
    ServiceNotReady {
        /// The service.
        service: String,
        /// The ports that were tried.
        ports: String,
        /// How long was waited.
        waited: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// A service ended before it was ready.
    #[error("get service {service} ready: it ended with status {status}; the end of its log:\n{log}")]
    ServiceEnded {
        /// The service.
        service: String,
        /// Its exit status.
        status: i64,
        /// The last lines of its log.
        log: String,
    },
    /// A service was given up because something else had failed already.
    #[error("get service {service} ready: given up, because the environment cannot be built")]
    ServiceGivenUp {
        /// The service.
        service: String,
    },
    /// A step's script is longer than a program's argument may be.
    #[error(
        "make step {step}: its script has {length} bytes, {limit} are allowed; put it into a file of the repository"
    )]
    ScriptTooLong {
        /// The step.
        step: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The engine failed at one object.
    #[error("{action}")]
    Engine {
        /// What was tried.
        action: String,
        /// What the engine said.
        #[source]
        source: EngineError,
    },
    /// Objects that could not be removed.
    #[error("remove everything of attempt {attempt}: {} resist", names(objects))]
    Residue {
        /// The attempt.
        attempt: AttemptId,
        /// What is left.
        objects: Vec<ObjectRef>,
        /// Why the first of them resists, where the engine said so.
        #[source]
        source: Option<EngineError>,
    },
}

impl EnvironmentError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, EnvironmentError::Engine { source, .. } if source.is_retryable())
    }

    /// Returns the class and the message that people see.
    pub fn failure(&self) -> Failure {
        let reason = match self {
            EnvironmentError::Image(error) => error.reason(),
            EnvironmentError::Ledger { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                FailureReason::DiskFull
            }
            EnvironmentError::Ledger { .. } => FailureReason::Internal,
            EnvironmentError::NoAddresses { .. } => FailureReason::Engine,
            EnvironmentError::ServiceNotReady { .. }
            | EnvironmentError::ServiceEnded { .. }
            | EnvironmentError::ServiceGivenUp { .. } => FailureReason::ServiceNotReady,
            EnvironmentError::ScriptTooLong { .. } => FailureReason::Derivation,
            EnvironmentError::Engine { source, .. } => reason_of(source),
            EnvironmentError::Residue { .. } => FailureReason::Engine,
        };
        Failure { reason, message: format!("failed to {}", Chain(self)) }
    }
}

/// Returns the class of an engine's failure.
pub(crate) fn reason_of(error: &EngineError) -> FailureReason {
    match error {
        EngineError::Pull { .. } => FailureReason::ImagePull,
        EngineError::Build { .. } => FailureReason::ImageBuild,
        EngineError::NotRunnable { .. } => FailureReason::ImageUnusable,
        EngineError::DiskFull { .. } => FailureReason::DiskFull,
        EngineError::Unreachable { .. }
        | EngineError::TooOld { .. }
        | EngineError::NotFound { .. }
        | EngineError::SubnetTaken { .. }
        | EngineError::Deadline { .. }
        | EngineError::Other { .. } => FailureReason::Engine,
    }
}

fn names(objects: &[ObjectRef]) -> String {
    objects.iter().map(|object| object.name.as_str()).collect::<Vec<_>>().join(", ")
}

impl Devbox<'_> {
    /// Makes everything that the steps need: image, network, workspace, and the services until they are ready.
    ///
    /// Safe to repeat. On failure the first cause is returned and what was made stays for [`Devbox::tear_down`].
    pub async fn prepare(&self, pulls: &Pulls) -> Result<ImageFacts, EnvironmentError> {
        // Creations are always waited for, never cut: the engine would go on with a call that nobody waits for, and
        // make its object after the tear-down has looked. Only the wait for readiness is given up early.
        let given_up = CancellationToken::new();
        let image = async { self.image(pulls).await.inspect_err(|_| given_up.cancel()) };
        let workspace = async { self.make_workspace().await.inspect_err(|_| given_up.cancel()) };
        let services = async {
            self.make_network().await?;
            self.make_services(pulls, &given_up).await
        };
        let (image, workspace, services) = tokio::join!(image, workspace, services);
        // Given-up services are a consequence, so the other causes come first.
        let image = image?;
        workspace?;
        services?;
        Ok(image)
    }

    async fn image(&self, pulls: &Pulls) -> Result<ImageFacts, EnvironmentError> {
        let spec = &self.assignment.environment;
        let request = ImageRequest {
            recipe: &self.assignment.recipe,
            base: Wanted::base(spec),
            pulls,
            created: self.created,
            note: self.note,
        };
        Ok(self.images.ensure(&request).await?)
    }

    /// Removes everything of the attempt. Safe to repeat; see [`tear_down`].
    pub async fn tear_down(&self) -> Result<(), EnvironmentError> {
        tear_down(self.engine, self.host, &self.assignment.attempt).await
    }

    /// Returns the labels of one object of this environment.
    fn labels(&self, role: &str) -> Labels {
        let mut labels = attempt_labels(self.host, &self.assignment.attempt);
        labels.insert(label::JOB.into(), self.assignment.job.to_string());
        labels.insert(label::FENCE.into(), self.assignment.fence.to_string());
        labels.insert(label::ROLE.into(), role.into());
        labels.insert(label::CREATED.into(), self.created.0.to_string());
        labels.insert(label::EXPIRES.into(), self.expires.0.to_string());
        labels
    }

    /// Returns the name of one object of this environment.
    fn name(&self, role: &str) -> String {
        self.assignment.attempt.object_name(role)
    }

    /// Writes down that an object is about to be made.
    fn announce(&self, kind: ObjectKind, name: &str) -> Result<(), EnvironmentError> {
        self.ledger
            .about_to_make(&ObjectRef { kind, name: name.to_owned() })
            .map_err(|source| EnvironmentError::Ledger { name: name.to_owned(), source })
    }
}

fn attempt_labels(host: &HostId, attempt: &AttemptId) -> Labels {
    let mut labels = host_labels(host);
    labels.insert(label::ATTEMPT.into(), attempt.to_string());
    labels
}

/// Returns the labels by which a host's own objects are found.
pub(crate) fn host_labels(host: &HostId) -> Labels {
    Labels::from([(label::APP.into(), label::APP_VALUE.into()), (label::HOST.into(), host.to_string())])
}

/// How often a tear-down lists again what is left before it reports what resists.
const TEAR_DOWN_ROUNDS: u32 = 5;
/// How long it waits before it tries again what resisted.
const TEAR_DOWN_PAUSE: Duration = Duration::from_millis(500);

/// Removes everything that carries the attempt's labels: containers first, then networks, then volumes.
///
/// Safe to repeat, and right after a crash at any point. Tries everything even if one removal fails, and lists again
/// until nothing is left, at most five times; then it reports what resists.
pub async fn tear_down(engine: &SharedEngine, host: &HostId, attempt: &AttemptId) -> Result<(), EnvironmentError> {
    let labels = attempt_labels(host, attempt);
    let mut resists = None;
    for round in 0..TEAR_DOWN_ROUNDS {
        if round > 1 {
            tokio::time::sleep(TEAR_DOWN_PAUSE).await;
        }
        let found = engine.list(&labels).await.map_err(|source| EnvironmentError::Engine {
            action: format!("list what is left of attempt {attempt}"),
            source,
        })?;
        let objects: Vec<_> = found.into_iter().map(|found| found.object).collect();
        if objects.is_empty() {
            return Ok(());
        }
        if round + 1 == TEAR_DOWN_ROUNDS {
            return Err(EnvironmentError::Residue { attempt: attempt.clone(), objects, source: resists });
        }
        resists = remove_all(engine, objects).await;
    }
    Ok(())
}

/// Removes objects, each kind after the kinds that use it; returns the first refusal.
pub(crate) async fn remove_all(engine: &SharedEngine, objects: Vec<ObjectRef>) -> Option<EngineError> {
    let mut first = None;
    for kind in [ObjectKind::Container, ObjectKind::Network, ObjectKind::Volume, ObjectKind::Image] {
        let removals = objects.iter().filter(|object| object.kind == kind).map(|object| async move {
            let outcome = engine.remove(object).await;
            if let Err(error) = &outcome {
                tracing::warn!(object = %object.name, error = %Chain(error), "an object resists its removal");
            }
            outcome.err()
        });
        let refusals = futures_util::future::join_all(removals).await;
        first = first.or_else(|| refusals.into_iter().flatten().next());
    }
    first
}
