//! An engine in memory, for tests: its containers do what a script says, and every call is on record.
//!
//! It keeps the same contract as the real one. Time is tokio's, so a test may pause it. A test can make any call fail,
//! before or after it took effect, which is what a crash or a cut connection looks like from outside.

mod containers;
mod objects;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Attached, ContainerSpec, ContainerState, Engine, EngineError, EngineFacts, Exit, FoundObject, ImageBuild,
    ImageFacts, Labels, Link, NetworkSpec, ObjectKind, ObjectRef, OutputStream, Progress, RegistryCredential, ViewSpec,
};
use containers::Container;
use objects::{State, not_found};

/// What a container does once it is started.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// What it prints, and when.
    pub output: Vec<Piece>,
    /// How it ends; `None`: it runs until it is stopped.
    pub end: Option<End>,
    /// Its address in its network; `None`: this machine's loopback.
    pub address: Option<IpAddr>,
}

/// A piece of a script's output.
#[derive(Debug, Clone, Default)]
pub struct Piece {
    /// When, counted from the start.
    pub after: Duration,
    /// On standard error, else standard output.
    pub is_error: bool,
    /// The bytes.
    pub data: Bytes,
}

/// The end of a script.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// When, counted from the start.
    pub after: Duration,
    /// With what.
    pub exit: Exit,
}

impl Script {
    /// Prints this at once and ends at once with this status.
    pub fn prints(text: &str, status: i64) -> Script {
        let piece = Piece { data: Bytes::copy_from_slice(text.as_bytes()), ..Piece::default() };
        let output = if text.is_empty() { Vec::new() } else { vec![piece] };
        Script { output, ..Script::ends(Duration::ZERO, status) }
    }

    /// Ends after a while with this status, and prints nothing.
    pub fn ends(after: Duration, status: i64) -> Script {
        let end = Some(End { after, exit: Exit { status, out_of_memory: false } });
        Script { end, ..Script::default() }
    }

    /// Runs until it is stopped.
    pub fn runs() -> Script {
        Script::default()
    }
}

/// One call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which one it was, counted from 1.
    pub number: usize,
    /// The method of [`Engine`].
    pub verb: &'static str,
    /// What it was about: a name.
    pub about: String,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing.
    Before,
    /// It does all it should, and then its answer is lost.
    After,
}

type Faults = Box<dyn Fn(&Call) -> Option<Fault> + Send + Sync>;

/// The engine in memory.
#[derive(Default)]
pub struct MemoryEngine {
    state: Mutex<State>,
}

impl MemoryEngine {
    /// Makes an empty engine.
    pub fn new() -> Arc<MemoryEngine> {
        Arc::default()
    }

    /// Sets what containers with this role (the label) do; without, those with an input end at once with status 0, and
    /// the others run.
    pub fn script(&self, role: &str, script: Script) {
        self.lock().scripts.insert(role.to_owned(), script);
    }

    /// Puts an image on the engine.
    pub fn add_image(&self, name: &str, image: ImageFacts) {
        self.lock().images.insert(name.to_owned(), image);
    }

    /// Puts an image into the registry, so that it can be pulled.
    pub fn add_to_registry(&self, name: &str, image: ImageFacts) {
        self.lock().registry.insert(name.to_owned(), image);
    }

    /// Makes builds take a while.
    pub fn set_build_time(&self, time: Duration) {
        self.lock().build_time = time;
    }

    /// Makes builds fail with this as the end of the builder's output; `None`: they go well.
    pub fn set_build_error(&self, detail: Option<&str>) {
        self.lock().build_error = detail.map(str::to_owned);
    }

    /// Adds a network that is not ours. With `hidden` it is in no list, and only a try to overlap it shows it.
    pub fn occupy(&self, subnet: &str, hidden: bool) {
        let mut state = self.lock();
        state.taken.insert(subnet.to_owned());
        if !hidden {
            state.foreign.push(subnet.to_owned());
        }
    }

    /// Makes calls fail: each call asks.
    pub fn fail_when(&self, faults: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static) {
        self.lock().faults = Some(Box::new(faults));
    }

    /// Makes all calls go well again.
    pub fn fail_never(&self) {
        self.lock().faults = None;
    }

    /// Returns every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Returns how many images were built.
    pub fn builds(&self) -> usize {
        self.lock().builds
    }

    /// Returns all that exists, images excepted.
    pub fn objects(&self) -> Vec<ObjectRef> {
        let state = self.lock();
        let of = |kind, name: &String| ObjectRef { kind, name: name.clone() };
        let containers = state.containers.keys().map(|name| of(ObjectKind::Container, name));
        let networks = state.networks.keys().map(|name| of(ObjectKind::Network, name));
        let volumes = state.volumes.keys().map(|name| of(ObjectKind::Volume, name));
        containers.chain(networks).chain(volumes).collect()
    }

    /// Returns the labels of every container that runs and is not paused. Within a tokio runtime, whose time counts.
    pub fn running(&self) -> Vec<Labels> {
        let state = self.lock();
        let runs =
            |container: &&Container| !container.paused && matches!(container.state(), ContainerState::Running { .. });
        state.containers.values().filter(runs).map(|container| container.spec.labels.clone()).collect()
    }

    /// Returns how a container was made.
    pub fn container(&self, name: &str) -> Option<ContainerSpec> {
        self.lock().containers.get(name).map(|container| container.spec.clone())
    }

    /// Says whether a container is paused. What its script does goes on all the same.
    pub fn is_paused(&self, name: &str) -> bool {
        self.lock().containers.get(name).is_some_and(|container| container.paused)
    }

    /// Returns what was written to a container's first process.
    pub fn input(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().containers.get(name).and_then(|container| container.input.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a call and carries it out, unless a fault says otherwise.
    fn call<T>(
        &self,
        verb: &'static str,
        about: &str,
        act: impl FnOnce(&mut State) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut state = self.lock();
        let call = Call { number: state.calls.len() + 1, verb, about: about.to_owned() };
        let fault = state.faults.as_ref().and_then(|faults| faults(&call));
        state.calls.push(call);
        let injected = || {
            let action = format!("{verb} {about}");
            EngineError::Other { action, status: 500, detail: "injected failure".into() }
        };
        match fault {
            Some(Fault::Before) => Err(injected()),
            Some(Fault::After) => act(&mut state).and(Err(injected())),
            None => act(&mut state),
        }
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    async fn facts(&self) -> Result<EngineFacts, EngineError> {
        self.call("facts", "", |_| {
            Ok(EngineFacts {
                version: "0".into(),
                api: "1.41".into(),
                storage_driver: "memory".into(),
                data_root: "/".into(),
                cpus: 2,
                memory_bytes: 8 << 30,
                runtimes: BTreeSet::from(["runc".to_owned()]),
            })
        })
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageFacts>, EngineError> {
        self.call("image", reference, |state| {
            let by_id = || state.images.values().find(|image| image.id == reference);
            Ok(state.images.get(reference).or_else(by_id).cloned())
        })
    }

    async fn pull(
        &self,
        reference: &str,
        _platform: &str,
        _login: Option<&RegistryCredential>,
    ) -> Result<ImageFacts, EngineError> {
        self.call("pull", reference, |state| match state.registry.get(reference).cloned() {
            Some(image) => {
                state.images.insert(reference.to_owned(), image.clone());
                Ok(image)
            }
            None => Err(EngineError::Pull {
                image: reference.to_owned(),
                detail: "manifest unknown".into(),
                unreachable: false,
            }),
        })
    }

    async fn build(&self, build: &ImageBuild, progress: &Progress<'_>) -> Result<ImageFacts, EngineError> {
        let time = self.lock().build_time;
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        progress("Step 1/1");
        self.call("build", &build.tag, |state| {
            if let Some(detail) = state.build_error.clone() {
                return Err(EngineError::Build { tag: build.tag.clone(), detail });
            }
            state.builds += 1;
            let image = ImageFacts {
                id: format!("sha256:{:064x}", state.builds),
                user: build.arguments.get("DEVFLEET_USER").cloned().unwrap_or_default(),
                labels: build.labels.clone(),
                ..ImageFacts::default()
            };
            state.images.insert(build.tag.clone(), image.clone());
            Ok(image)
        })
    }

    async fn ensure_network(&self, network: &NetworkSpec) -> Result<(), EngineError> {
        self.call("ensure_network", &network.name, |state| state.make_network(network))
    }

    async fn ensure_volume(&self, name: &str, labels: &Labels) -> Result<(), EngineError> {
        self.call("ensure_volume", name, |state| {
            state.volumes.entry(name.to_owned()).or_insert_with(|| labels.clone());
            Ok(())
        })
    }

    async fn volume_path(&self, name: &str) -> Result<Option<std::path::PathBuf>, EngineError> {
        self.call("volume_path", name, |_| Ok(None))
    }

    async fn ensure_view(&self, view: &ViewSpec) -> Result<(), EngineError> {
        self.ensure_volume(&view.name, &view.labels).await
    }

    async fn ensure_container(&self, container: &ContainerSpec) -> Result<(), EngineError> {
        self.call("ensure_container", &container.name, |state| state.make_container(container))
    }

    async fn start(&self, name: &str, input: Option<&[u8]>, attach: bool) -> Result<Attached, EngineError> {
        self.call("start", name, |state| {
            let networks = state.networks.keys().cloned().collect::<BTreeSet<_>>();
            let container = state.container("start", name)?;
            if let Some(network) = container.spec.network.as_ref().filter(|network| !networks.contains(*network)) {
                return Err(not_found(format!("start {name}: network {network}")));
            }
            container.start(Instant::now(), input);
            Ok(Attached { output: attach.then(|| container.output(None, false)) })
        })
    }

    async fn state(&self, name: &str) -> Result<Option<ContainerState>, EngineError> {
        self.call("state", name, |state| Ok(state.containers.get(name).map(Container::state)))
    }

    async fn wait(&self, name: &str) -> Result<Exit, EngineError> {
        let end = self.call("wait", name, |state| Ok(state.container("wait for", name)?.end()))?;
        Ok(end.await)
    }

    async fn output(&self, name: &str, since: Option<&str>) -> Result<OutputStream, EngineError> {
        self.call("output", name, |state| {
            let container = state.container("read the output of", name)?;
            if !container.spec.keep_output {
                let action = format!("read the output of {name}");
                return Err(EngineError::Other { action, status: 500, detail: "its output is not kept".into() });
            }
            Ok(container.output(since, true))
        })
    }

    async fn stop(&self, name: &str, _grace: Duration) -> Result<(), EngineError> {
        self.call("stop", name, |state| {
            if let Some(container) = state.containers.get_mut(name) {
                container.kill(143);
            }
            Ok(())
        })
    }

    async fn pause(&self, name: &str) -> Result<(), EngineError> {
        self.call("pause", name, |state| {
            if let Some(container) = state.containers.get_mut(name) {
                container.paused = matches!(container.state(), ContainerState::Running { .. });
            }
            Ok(())
        })
    }

    async fn unpause(&self, name: &str) -> Result<(), EngineError> {
        self.call("unpause", name, |state| {
            if let Some(container) = state.containers.get_mut(name) {
                container.paused = false;
            }
            Ok(())
        })
    }

    async fn links(&self, name: &str) -> Result<Vec<Link>, EngineError> {
        self.call("links", name, |state| {
            Ok(state.containers.get(name).map(|container| container.links.clone()).unwrap_or_default())
        })
    }

    async fn disconnect(&self, name: &str, network: &str) -> Result<(), EngineError> {
        self.call("disconnect", name, |state| {
            if let Some(container) = state.containers.get_mut(name) {
                container.links.retain(|link| link.network != network);
            }
            Ok(())
        })
    }

    async fn connect(&self, name: &str, link: &Link) -> Result<(), EngineError> {
        self.call("connect", name, |state| {
            if let Some(container) = state.containers.get_mut(name)
                && !container.links.iter().any(|known| known.network == link.network)
            {
                container.links.push(link.clone());
            }
            Ok(())
        })
    }

    async fn remove(&self, object: &ObjectRef) -> Result<(), EngineError> {
        self.call("remove", &object.name, |state| state.remove(object))
    }

    async fn list(&self, labels: &Labels) -> Result<Vec<FoundObject>, EngineError> {
        self.call("list", "", |state| Ok(state.list(labels)))
    }

    async fn containers(&self, labels: &Labels) -> Result<Vec<FoundObject>, EngineError> {
        let of_kind = |found: &FoundObject| found.object.kind == ObjectKind::Container;
        self.call("containers", "", |state| Ok(state.list(labels).into_iter().filter(of_kind).collect()))
    }

    async fn subnets(&self) -> Result<Vec<String>, EngineError> {
        self.call("subnets", "", |state| {
            let ours = state.networks.values().map(|network| network.subnet.clone());
            Ok(ours.chain(state.foreign.iter().cloned()).collect())
        })
    }
}

/// The address that scripted containers have unless their script says another.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
