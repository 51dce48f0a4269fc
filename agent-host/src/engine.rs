//! The container engine, as the host daemon uses it.
//!
//! Verbs are safe to repeat: making what is there and removing what is gone are success. Names are deterministic
//! (`devbox-<attempt>-<role>`), so a call whose answer was lost is simply made again. Every object carries labels.

pub mod docker;
pub mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::secret::Secret;
use futures_util::stream::BoxStream;

/// Labels by name. The names stand in [`label`].
pub type Labels = BTreeMap<String, String>;

/// The labels that every object of ours carries.
pub mod label {
    /// Always `devfleet`.
    pub const APP: &str = "devfleet.app";
    /// The host's id: two daemons on one engine leave each other's objects alone.
    pub const HOST: &str = "devfleet.host";
    /// The job.
    pub const JOB: &str = "devfleet.job";
    /// The attempt.
    pub const ATTEMPT: &str = "devfleet.attempt";
    /// The ownership epoch.
    pub const FENCE: &str = "devfleet.fence";
    /// What it is in its environment: a step's name, a service's, `network`, `workspace`.
    pub const ROLE: &str = "devfleet.role";
    /// When it was made, in milliseconds since 1970.
    pub const CREATED: &str = "devfleet.created";
    /// When it may go even if the controller cannot be asked, in milliseconds since 1970.
    pub const EXPIRES: &str = "devfleet.expires";
    /// On images that are kept: the cache key.
    pub const IMAGE_KEY: &str = "devfleet.image-key";
    /// On volumes of an attempt: the layer that it reads.
    pub const CACHE_LAYER: &str = "devfleet.cache-layer";
    /// On volumes of an attempt that `setup` fills: the key of the layer that may be made from it.
    pub const CACHE_KEY: &str = "devfleet.cache-key";
    /// On layers: the attempt that filled it.
    pub const CACHE_FILLER: &str = "devfleet.cache-filler";
    /// The value of [`ROLE`] on layers.
    pub const CACHE_ROLE: &str = "cache-layer";
    /// On images that are kept: the digest of the recipe.
    pub const RECIPE: &str = "devfleet.recipe";
    /// The value of [`APP`].
    pub const APP_VALUE: &str = "devfleet";
}

/// What the engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// Its version.
    pub version: String,
    /// The API version that was agreed on.
    pub api: String,
    /// Its storage driver.
    pub storage_driver: String,
    /// Where it keeps its data.
    pub data_root: String,
    /// Processors of the machine.
    pub cpus: u64,
    /// Memory of the machine, in bytes.
    pub memory_bytes: u64,
    /// The container runtimes that it can start containers with, by name.
    pub runtimes: std::collections::BTreeSet<String>,
}

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageFacts {
    /// Its content id, `sha256:…`.
    pub id: String,
    /// What it runs on: `linux/amd64`, `linux/arm/v7`. Empty: not known.
    pub platform: String,
    /// The user its containers run as; empty: root.
    pub user: String,
    /// Its entrypoint.
    pub entrypoint: Vec<String>,
    /// Its command.
    pub command: Vec<String>,
    /// The TCP ports it exposes, ascending.
    pub ports: Vec<u16>,
    /// Its labels.
    pub labels: Labels,
}

/// A user name and password for an image registry.
#[derive(Debug, Clone)]
pub struct RegistryCredential {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// An image to be built.
#[derive(Debug, Clone)]
pub struct ImageBuild {
    /// The name it gets.
    pub tag: String,
    /// The Dockerfile.
    pub dockerfile: String,
    /// Build arguments.
    pub arguments: BTreeMap<String, String>,
    /// Files of the context: name, path on this host. The content has been checked.
    pub files: Vec<(String, std::path::PathBuf)>,
    /// Labels of the image.
    pub labels: Labels,
    /// `linux/amd64` and the like; empty: the engine's own.
    pub platform: String,
}

/// A bridge network to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// Its addresses: `10.213.0.16/28`.
    pub subnet: String,
    /// Its labels.
    pub labels: Labels,
}

/// A volume that shows the files of one directory, and keeps every change in others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewSpec {
    /// Its name.
    pub name: String,
    /// What it shows, never changed.
    pub lower: std::path::PathBuf,
    /// Where changes go.
    pub upper: std::path::PathBuf,
    /// A place of the kernel's own, on the same disk.
    pub work: std::path::PathBuf,
    /// Its labels.
    pub labels: Labels,
}

/// A container to be made. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerSpec {
    /// Its name.
    pub name: String,
    /// The image, by id or name.
    pub image: String,
    /// Replaces the image's entrypoint; `None` keeps it.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command; `None` keeps it.
    pub command: Option<Vec<String>>,
    /// Public variables (a service's). Docker writes these to disk: never a secret.
    pub variables: BTreeMap<String, String>,
    /// Replaces the image's user; `None` keeps it.
    pub user: Option<String>,
    /// Its working directory; `None` keeps the image's.
    pub working_dir: Option<String>,
    /// The network it joins; `None`: no network at all.
    pub network: Option<String>,
    /// Its names in that network.
    pub aliases: Vec<String>,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// Capabilities it keeps; all others are dropped. No-new-privileges is always set, privileged never.
    pub capabilities: Vec<String>,
    /// Thousandths of a processor; 0: no limit.
    pub cpu_millis: u64,
    /// Memory (and as much swap as memory, that is none beyond it) in bytes; 0: no limit.
    pub memory_bytes: u64,
    /// Processes; 0: no limit.
    pub pids: u64,
    /// The container runtime; `None`: the engine's default.
    pub runtime: Option<String>,
    /// Whether an init process reaps its children.
    pub init: bool,
    /// Whether its first process reads from us (see [`Engine::start`]).
    pub stdin: bool,
    /// Whether the engine keeps its output (bounded). Without it the output can only be read while attached.
    pub keep_output: bool,
    /// Its labels.
    pub labels: Labels,
}

/// Something that a container sees in its file tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A named volume.
    Volume {
        /// The volume's name.
        name: String,
        /// Where it appears.
        target: String,
    },
    /// A directory of the host, read-only, always. Only git mirrors are mounted so.
    ReadOnlyDirectory {
        /// The directory on the host.
        source: std::path::PathBuf,
        /// Where it appears.
        target: String,
    },
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Running since then.
    Running {
        /// Its address in its network, where it has one.
        address: Option<std::net::IpAddr>,
    },
    /// Over.
    Exited(Exit),
}

/// How a container's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its status: 0 is success, 128 + n is signal n.
    pub status: i64,
    /// Something in it was killed for lack of memory. Alone it does not mean failure.
    pub out_of_memory: bool,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFrame {
    /// Standard error, else standard output.
    pub is_error: bool,
    /// The engine's own time stamp for it (RFC 3339, nanoseconds), where it keeps output.
    pub stamp: Option<String>,
    /// The bytes, as they were written: no time stamp in them, not necessarily whole lines.
    pub data: Bytes,
}

/// Takes the lines that a builder prints.
pub type Progress<'a> = dyn Fn(&str) + Send + Sync + 'a;

/// A stream of output.
pub type OutputStream = BoxStream<'static, Result<OutputFrame, EngineError>>;

/// An object of ours on the engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRef {
    /// What it is.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
}

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// A container, in any state.
    Container,
    /// A network.
    Network,
    /// A volume.
    Volume,
    /// An image.
    Image,
}

/// A running container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Link {
    /// The network's name.
    pub network: String,
    /// The container's address in it.
    pub address: std::net::IpAddr,
    /// Under which names others find the container there.
    pub aliases: Vec<String>,
}

/// An object that was found on the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundObject {
    /// Which.
    pub object: ObjectRef,
    /// Its labels.
    pub labels: Labels,
    /// When the engine made it, where it says so.
    pub created: Option<Timestamp>,
    /// A container that runs, or anything that a container uses.
    pub in_use: bool,
    /// A container that is paused.
    pub paused: bool,
    /// A network's addresses.
    pub subnet: Option<String>,
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody answers at the socket.
    #[error("reach the container engine at {address}: {detail}; is Docker running, and may this user use it?")]
    Unreachable {
        /// The socket.
        address: String,
        /// What was seen.
        detail: String,
    },
    /// The engine is older than we can work with.
    #[error(
        "use container engine {version} (API {api}): it is too old, API {needed} is needed (Docker 20.10 or newer)"
    )]
    TooOld {
        /// Its version.
        version: String,
        /// Its newest API version.
        api: String,
        /// What is needed.
        needed: String,
    },
    /// The image cannot be pulled.
    #[error("pull image {image}: {detail}")]
    Pull {
        /// The image's name.
        image: String,
        /// What the engine or the registry said.
        detail: String,
        /// The registry was not reached, as opposed to: it refused.
        unreachable: bool,
    },
    /// The image cannot be built.
    #[error("build image {tag}: {detail}")]
    Build {
        /// The image's name.
        tag: String,
        /// The end of the builder's output.
        detail: String,
    },
    /// The object does not exist.
    #[error("{action}: there is no such object ({detail})")]
    NotFound {
        /// What was tried.
        action: String,
        /// What the engine said.
        detail: String,
    },
    /// The container's first program does not exist in its image or cannot be run.
    #[error("start {name}: its program cannot be run ({detail})")]
    NotRunnable {
        /// The container.
        name: String,
        /// What the engine said.
        detail: String,
    },
    /// No room left.
    #[error(
        "{action}: no space left on the engine's disk ({detail}); free some, for example with `docker system df` and `devfleet sweep`"
    )]
    DiskFull {
        /// What was tried.
        action: String,
        /// What the engine said.
        detail: String,
    },
    /// The addresses are taken by another network.
    #[error("make network {name}: its addresses {subnet} are in use")]
    SubnetTaken {
        /// The network.
        name: String,
        /// The addresses.
        subnet: String,
    },
    /// The engine did not answer in time.
    #[error("{action}: the container engine did not answer within {} s", after.as_secs())]
    Deadline {
        /// What was tried.
        action: String,
        /// How long was waited.
        after: Duration,
    },
    /// Anything else that the engine said.
    #[error("{action}: the container engine says {status}: {detail}")]
    Other {
        /// What was tried.
        action: String,
        /// The HTTP status; 0: none.
        status: u16,
        /// What the engine said.
        detail: String,
    },
}

impl EngineError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        match self {
            EngineError::Unreachable { .. } | EngineError::Deadline { .. } | EngineError::SubnetTaken { .. } => true,
            EngineError::Other { status, .. } => *status == 0 || *status >= 500,
            EngineError::Pull { unreachable, .. } => *unreachable,
            EngineError::TooOld { .. }
            | EngineError::Build { .. }
            | EngineError::NotFound { .. }
            | EngineError::NotRunnable { .. }
            | EngineError::DiskFull { .. } => false,
        }
    }
}

/// A container that was started while we hold its ends.
pub struct Attached {
    /// Its output from the first byte on; ends when the container ends. `None` unless asked for.
    pub output: Option<OutputStream>,
}

/// The engine.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Says what the engine is; fails if it cannot be used.
    async fn facts(&self) -> Result<EngineFacts, EngineError>;
    /// Looks for an image that is here.
    async fn image(&self, reference: &str) -> Result<Option<ImageFacts>, EngineError>;
    /// Pulls an image from its registry.
    async fn pull(
        &self,
        reference: &str,
        platform: &str,
        login: Option<&RegistryCredential>,
    ) -> Result<ImageFacts, EngineError>;
    /// Builds an image; what the builder prints goes to `progress`, a line at a time.
    async fn build(&self, build: &ImageBuild, progress: &Progress<'_>) -> Result<ImageFacts, EngineError>;
    /// Makes a network. One of that name is already so, whatever its addresses.
    async fn ensure_network(&self, network: &NetworkSpec) -> Result<(), EngineError>;
    /// Makes a named volume.
    async fn ensure_volume(&self, name: &str, labels: &Labels) -> Result<(), EngineError>;
    /// Says where a volume's files lie, if there is such a volume and its place can be seen from here.
    async fn volume_path(&self, name: &str) -> Result<Option<std::path::PathBuf>, EngineError>;
    /// Makes a view as a volume. A volume of that name is already so.
    async fn ensure_view(&self, view: &ViewSpec) -> Result<(), EngineError>;
    /// Makes a container without starting it. One of that name is already so.
    async fn ensure_container(&self, container: &ContainerSpec) -> Result<(), EngineError>;
    /// Starts a made container. With `input` it attaches first, writes these bytes to the first process and closes its
    /// input; with `attach` it returns the output. The bytes may be secret and leave no trace. A container that was
    /// started before is already so, even if it has ended: nothing is written to it and it is not run again.
    async fn start(&self, name: &str, input: Option<&[u8]>, attach: bool) -> Result<Attached, EngineError>;
    /// Says what a container is doing; `None` if there is none.
    async fn state(&self, name: &str) -> Result<Option<ContainerState>, EngineError>;
    /// Waits for a container to end. One that has ended answers at once.
    async fn wait(&self, name: &str) -> Result<Exit, EngineError>;
    /// Streams the kept output from this stamp on (that frame included), and on until the container ends.
    async fn output(&self, name: &str, since: Option<&str>) -> Result<OutputStream, EngineError>;
    /// Asks a container to end (SIGTERM), and kills it after the grace. One that has ended or is gone is already so.
    async fn stop(&self, name: &str, grace: Duration) -> Result<(), EngineError>;
    /// Stops a running container's processes where they are. One that is paused, has ended or is gone is already so.
    async fn pause(&self, name: &str) -> Result<(), EngineError>;
    /// Lets a paused container's processes go on. One that is not paused is already so.
    async fn unpause(&self, name: &str) -> Result<(), EngineError>;
    /// Says which networks a running container is in; none if it is gone.
    async fn links(&self, name: &str) -> Result<Vec<Link>, EngineError>;
    /// Takes a container out of a network, paused or not. One that is not in it or is gone is already so.
    async fn disconnect(&self, name: &str, network: &str) -> Result<(), EngineError>;
    /// Puts a container back into a network, under the same address and names. One that is in it or is gone is already so.
    async fn connect(&self, name: &str, link: &Link) -> Result<(), EngineError>;
    /// Removes an object, by force. One that is gone is already so.
    async fn remove(&self, object: &ObjectRef) -> Result<(), EngineError>;
    /// Lists every object that carries these labels: containers, networks, volumes, images.
    async fn list(&self, labels: &Labels) -> Result<Vec<FoundObject>, EngineError>;
    /// Lists the containers that carry these labels, and nothing else: quick also where many images lie.
    async fn containers(&self, labels: &Labels) -> Result<Vec<FoundObject>, EngineError>;
    /// Lists the addresses of every network of the engine, ours or not.
    async fn subnets(&self) -> Result<Vec<String>, EngineError>;
}

/// An engine that anyone may hold.
pub type SharedEngine = Arc<dyn Engine>;
