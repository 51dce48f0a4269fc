//! What every engine must keep: one suite, run on the engine in memory and on real Docker.
//!
//! The Docker half needs the engine of this machine and the test images; what is missing is said, never skipped.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use devfleet_host::engine::docker::DockerEngine;
use devfleet_host::engine::memory::{MemoryEngine, Piece, Script};
use devfleet_host::engine::{
    ContainerSpec, ContainerState, Engine as _, EngineError, ImageBuild, ImageFacts, Labels, Mount, NetworkSpec,
    ObjectKind, ObjectRef, OutputFrame, OutputStream, SharedEngine, label,
};
use devfleet_shared::id::{AttemptId, HostId};
use futures_util::{FutureExt as _, StreamExt as _};

/// Returns where the Docker to test against listens: `DOCKER_HOST`, as its own client has it, or the usual socket.
pub(crate) fn docker_address() -> String {
    std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into())
}

fn docker_socket() -> String {
    docker_address().trim_start_matches("unix://").to_owned()
}

pub(crate) const BASE: &str = "devfleet-test/base:12";

/// An engine, and a host id of this test's own.
pub(crate) struct Bench {
    pub(crate) engine: SharedEngine,
    pub(crate) memory: Option<Arc<MemoryEngine>>,
    pub(crate) host: HostId,
    pub(crate) attempt: AttemptId,
}

impl Bench {
    pub(crate) fn memory() -> Bench {
        let memory = MemoryEngine::new();
        memory.add_image(BASE, image_facts("sha256:base"));
        Bench::new(memory.clone(), Some(memory))
    }

    /// Real Docker; says what to do when it or an image is not there.
    pub(crate) async fn docker(images: &[&str]) -> Bench {
        let bench = Bench::new(Arc::new(DockerEngine::new(&docker_address())), None);
        if let Err(error) = bench.engine.facts().await {
            panic!("this test needs Docker: failed to {error}; run: deploy/setup.sh test");
        }
        for image in images {
            let found = bench.engine.image(image).await.expect("an answer");
            assert!(found.is_some(), "this test needs the image {image}; run: deploy/images/build.sh");
        }
        bench
    }

    fn new(engine: SharedEngine, memory: Option<Arc<MemoryEngine>>) -> Bench {
        Bench { engine, memory, host: HostId::random(), attempt: AttemptId::random() }
    }

    pub(crate) fn labels(&self) -> Labels {
        Labels::from([
            (label::APP.into(), label::APP_VALUE.into()),
            (label::HOST.into(), self.host.to_string()),
            (label::ATTEMPT.into(), self.attempt.to_string()),
        ])
    }

    pub(crate) fn name(&self, role: &str) -> String {
        self.attempt.object_name(role)
    }

    /// Describes a container that runs a shell script; in memory it does what `acts` says.
    pub(crate) fn container(&self, role: &str, script: &str, acts: Script) -> ContainerSpec {
        if let Some(memory) = &self.memory {
            memory.script(role, acts);
        }
        let mut labels = self.labels();
        labels.insert(label::ROLE.into(), role.into());
        ContainerSpec {
            name: self.name(role),
            image: BASE.into(),
            entrypoint: Some(["/bin/sh", "-c", script].map(Into::into).to_vec()),
            command: Some(Vec::new()),
            init: true,
            labels,
            ..ContainerSpec::default()
        }
    }

    pub(crate) async fn run(&self, spec: &ContainerSpec) {
        self.engine.ensure_container(spec).await.expect("made");
        self.engine.start(&spec.name, None, false).await.expect("started");
    }

    /// Addresses that no other test has.
    pub(crate) fn network(&self, role: &str) -> NetworkSpec {
        let byte = |at: usize| u8::from_str_radix(&self.attempt.as_str()[at..at + 2], 16).expect("hex");
        let subnet = format!("10.231.{}.{}/28", byte(0), byte(2) & 0xf0);
        NetworkSpec { name: self.name(role), subnet, labels: self.labels() }
    }

    pub(crate) async fn everything(&self) -> Vec<ObjectRef> {
        let labels = Labels::from([(label::HOST.into(), self.host.to_string())]);
        self.engine.list(&labels).await.expect("a list").into_iter().map(|found| found.object).collect()
    }

    /// Removes all of this test, whatever state it is in.
    pub(crate) async fn clean(&self) {
        for _ in 0..5 {
            let objects = self.everything().await;
            if objects.is_empty() {
                return;
            }
            for kind in [ObjectKind::Container, ObjectKind::Network, ObjectKind::Volume, ObjectKind::Image] {
                for object in objects.iter().filter(|object| object.kind == kind) {
                    let _ = self.engine.remove(object).await;
                }
            }
        }
        panic!("left behind: {:?}", self.everything().await);
    }
}

/// Runs a test and cleans up after it, also when it fails.
pub(crate) async fn check(bench: Bench, test: impl AsyncFnOnce(Arc<Bench>)) {
    let bench = Arc::new(bench);
    let outcome = AssertUnwindSafe(test(Arc::clone(&bench))).catch_unwind().await;
    bench.clean().await;
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

pub(crate) fn image_facts(id: &str) -> ImageFacts {
    ImageFacts { id: id.into(), ..ImageFacts::default() }
}

pub(crate) async fn collect(output: OutputStream) -> Vec<OutputFrame> {
    let frames = output.map(|frame| frame.expect("a frame")).collect();
    tokio::time::timeout(Duration::from_secs(60), frames).await.expect("the stream ends")
}

pub(crate) fn text(frames: &[OutputFrame], is_error: bool) -> String {
    let bytes: Vec<u8> =
        frames.iter().filter(|frame| frame.is_error == is_error).flat_map(|frame| frame.data.to_vec()).collect();
    String::from_utf8(bytes).expect("text")
}

fn of(kind: ObjectKind, name: &str) -> ObjectRef {
    ObjectRef { kind, name: name.into() }
}

/// The suite: each contract becomes a test on both engines.
macro_rules! contracts {
    ($($name:ident),+ $(,)?) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $name() {
                super::check(super::Bench::memory(), super::$name).await;
            })+
        }
        mod on_docker {
            $(#[tokio::test]
            async fn $name() {
                super::check(super::Bench::docker(&[super::BASE]).await, super::$name).await;
            })+
        }
    };
}

contracts!(
    making_and_removing_twice_is_making_and_removing_once,
    taken_addresses_are_told_from_other_failures,
    a_container_goes_from_created_to_its_exit_status,
    input_arrives_whole_and_output_from_the_first_byte,
    what_has_ended_is_not_run_again,
    kept_output_can_be_read_again_from_a_stamp_on,
    kept_output_is_followed_until_the_end,
    stopping_ends_a_container_and_repeats,
    a_running_container_is_removed_by_force,
    pausing_and_resuming_repeat_and_a_paused_container_can_be_removed,
    a_paused_container_is_taken_out_of_its_network_and_put_back_as_it_was,
    a_volume_in_use_stays,
    what_is_not_there_is_said_to_be_not_there,
    many_containers_run_side_by_side,
);

async fn making_and_removing_twice_is_making_and_removing_once(bench: Arc<Bench>) {
    let (network, volume) = (bench.network("network"), bench.name("workspace"));
    let mut spec = bench.container("agent", "exit 0", Script::prints("", 0));
    spec.network = Some(network.name.clone());
    spec.mounts = vec![Mount::Volume { name: volume.clone(), target: "/workspace".into() }];
    for _ in 0..2 {
        bench.engine.ensure_network(&network).await.expect("a network");
        bench.engine.ensure_volume(&volume, &bench.labels()).await.expect("a volume");
        bench.engine.ensure_container(&spec).await.expect("a container");
    }
    assert!(bench.engine.subnets().await.expect("subnets").contains(&network.subnet));
    let found = bench.engine.list(&bench.labels()).await.expect("a list");
    let objects: Vec<_> = found.iter().map(|found| found.object.clone()).collect();
    let wanted = [
        of(ObjectKind::Container, &spec.name),
        of(ObjectKind::Network, &network.name),
        of(ObjectKind::Volume, &volume),
    ];
    assert_eq!(objects, wanted);
    assert!(found.iter().all(|found| found.labels.get(label::HOST) == Some(&bench.host.to_string())));
    assert_eq!(found[1].subnet.as_ref(), Some(&network.subnet));
    assert!(!found[0].in_use && found[1].in_use && found[2].in_use);
    for _ in 0..2 {
        for object in &wanted {
            bench.engine.remove(object).await.expect("removed");
        }
    }
    assert!(bench.everything().await.is_empty());
}

async fn taken_addresses_are_told_from_other_failures(bench: Arc<Bench>) {
    let network = bench.network("network");
    bench.engine.ensure_network(&network).await.expect("a network");
    let other = NetworkSpec { name: bench.name("other"), ..network.clone() };
    let refused = bench.engine.ensure_network(&other).await.expect_err("the addresses are taken");
    assert!(matches!(refused, EngineError::SubnetTaken { .. }) && refused.is_retryable(), "{refused:?}");
    let moved = NetworkSpec { subnet: "10.230.0.0/28".into(), ..network };
    bench.engine.ensure_network(&moved).await.expect("already so, whatever its addresses");
}

async fn a_container_goes_from_created_to_its_exit_status(bench: Arc<Bench>) {
    let spec = bench.container("agent", "exit 3", Script::prints("", 3));
    assert_eq!(bench.engine.state(&spec.name).await.expect("an answer"), None);
    bench.engine.ensure_container(&spec).await.expect("made");
    assert_eq!(bench.engine.state(&spec.name).await.expect("an answer"), Some(ContainerState::Created));
    bench.engine.start(&spec.name, None, false).await.expect("started");
    for _ in 0..2 {
        let exit = bench.engine.wait(&spec.name).await.expect("an end");
        assert_eq!((exit.status, exit.out_of_memory), (3, false));
    }
    let state = bench.engine.state(&spec.name).await.expect("an answer");
    assert!(matches!(state, Some(ContainerState::Exited(exit)) if exit.status == 3), "{state:?}");
}

async fn input_arrives_whole_and_output_from_the_first_byte(bench: Arc<Bench>) {
    // More than fits into any pipe, and echoed while it is still being written.
    let input: Vec<u8> = (0..400_000u32).flat_map(|number| format!("{number}\n").into_bytes()).collect();
    let acts = Script::prints(std::str::from_utf8(&input).expect("text"), 0);
    let mut spec = bench.container("collect", "echo first >&2; cat; exit 0", acts);
    spec.stdin = true;
    bench.engine.ensure_container(&spec).await.expect("made");
    let attached = bench.engine.start(&spec.name, Some(&input), true).await.expect("started");
    let frames = collect(attached.output.expect("output")).await;
    assert_eq!(text(&frames, false).len(), input.len());
    assert_eq!(text(&frames, false).as_bytes(), input);
    assert!(frames.iter().all(|frame| frame.stamp.is_none()));
    assert_eq!(bench.engine.wait(&spec.name).await.expect("an end").status, 0);
}

async fn what_has_ended_is_not_run_again(bench: Arc<Bench>) {
    let mut spec = bench.container("agent", "cat; echo ran", Script::prints("inputran\n", 0));
    (spec.stdin, spec.keep_output) = (true, true);
    bench.engine.ensure_container(&spec).await.expect("made");
    bench.engine.start(&spec.name, Some(b"input"), false).await.expect("started");
    assert_eq!(bench.engine.wait(&spec.name).await.expect("an end").status, 0);
    bench.engine.start(&spec.name, Some(b"input"), false).await.expect("already so");
    let exit = bench.engine.wait(&spec.name).await.expect("an end");
    assert_eq!(exit.status, 0);
    let frames = collect(bench.engine.output(&spec.name, None).await.expect("output")).await;
    assert_eq!(text(&frames, false), "inputran\n");
}

async fn kept_output_can_be_read_again_from_a_stamp_on(bench: Arc<Bench>) {
    let line = |number: u64| Piece {
        after: Duration::from_millis(50 * number),
        data: format!("line {number}\n").into(),
        ..Piece::default()
    };
    let mut output: Vec<Piece> = (1..=5).map(line).collect();
    output.push(Piece { after: Duration::from_millis(260), is_error: true, data: "  error é\n".into() });
    let acts = Script { output, ..Script::ends(Duration::from_millis(300), 0) };
    let script = "for i in 1 2 3 4 5; do echo \"line $i\"; sleep 0.05; done; echo '  error é' >&2";
    let mut spec = bench.container("agent", script, acts);
    spec.keep_output = true;
    bench.run(&spec).await;
    let frames = collect(bench.engine.output(&spec.name, None).await.expect("output")).await;
    assert_eq!(text(&frames, false), "line 1\nline 2\nline 3\nline 4\nline 5\n");
    assert_eq!(text(&frames, true), "  error é\n");
    let stamps: Vec<_> = frames.iter().map(|frame| frame.stamp.clone().expect("a stamp")).collect();
    assert!(stamps.is_sorted() && stamps[0] < stamps[5], "{stamps:?}");
    let again = collect(bench.engine.output(&spec.name, Some(&stamps[2])).await.expect("output")).await;
    assert_eq!(again, frames[2..], "inclusive, and byte for byte the same");
}

async fn kept_output_is_followed_until_the_end(bench: Arc<Bench>) {
    let piece = |millis, data: &str| Piece {
        after: Duration::from_millis(millis),
        data: data.to_owned().into(),
        ..Piece::default()
    };
    // Silent for longer than the watchdog's patience, and no line end at the end.
    let acts = Script {
        output: vec![piece(0, "begin\n"), piece(3_000, "end")],
        ..Script::ends(Duration::from_millis(3_100), 0)
    };
    let mut spec = bench.container("agent", "echo begin; sleep 3; printf end", acts);
    spec.keep_output = true;
    bench.run(&spec).await;
    let mut output = bench.engine.output(&spec.name, None).await.expect("output");
    let first = output.next().await.expect("a frame").expect("a frame");
    assert_eq!(&first.data[..], b"begin\n");
    let running = bench.engine.state(&spec.name).await.expect("an answer");
    assert!(matches!(running, Some(ContainerState::Running { .. })), "{running:?}");
    let rest = collect(output).await;
    // Docker's driver ends what it keeps with a line end.
    assert_eq!(text(&rest, false).trim_end(), "end");
}

async fn stopping_ends_a_container_and_repeats(bench: Arc<Bench>) {
    let spec = bench.container("agent", "trap 'exit 143' TERM; while :; do sleep 0.1; done", Script::runs());
    bench.run(&spec).await;
    let (engine, name) = (bench.engine.clone(), spec.name.clone());
    let waiting = tokio::spawn(async move { engine.wait(&name).await });
    for _ in 0..2 {
        bench.engine.stop(&spec.name, Duration::from_secs(10)).await.expect("stopped");
    }
    assert_eq!(waiting.await.expect("joined").expect("an end").status, 143);
    bench.engine.stop(&bench.name("nobody"), Duration::from_secs(1)).await.expect("already so");
}

async fn pausing_and_resuming_repeat_and_a_paused_container_can_be_removed(bench: Arc<Bench>) {
    let spec = bench.container("agent", "sleep 600", Script::runs());
    bench.engine.pause(&spec.name).await.expect("nothing is there to pause");
    bench.run(&spec).await;
    for _ in 0..2 {
        bench.engine.pause(&spec.name).await.expect("paused");
        let state = bench.engine.state(&spec.name).await.expect("an answer");
        assert!(matches!(state, Some(ContainerState::Running { .. })), "{state:?}");
    }
    for _ in 0..2 {
        bench.engine.unpause(&spec.name).await.expect("resumed");
    }
    bench.engine.pause(&spec.name).await.expect("paused");
    bench.engine.remove(&of(ObjectKind::Container, &spec.name)).await.expect("removed");
    assert_eq!(bench.engine.state(&spec.name).await.expect("an answer"), None);
}

async fn a_paused_container_is_taken_out_of_its_network_and_put_back_as_it_was(bench: Arc<Bench>) {
    let network = bench.network("network");
    bench.engine.ensure_network(&network).await.expect("a network");
    let mut spec = bench.container("redis", "sleep 600", Script::runs());
    (spec.network, spec.aliases) = (Some(network.name.clone()), vec!["cache".into()]);
    assert_eq!(bench.engine.links(&spec.name).await.expect("none"), Vec::new());
    bench.run(&spec).await;
    let before = bench.engine.links(&spec.name).await.expect("links");
    assert_eq!(before.len(), 1);
    assert!(before[0].network == network.name && before[0].aliases.contains(&"cache".to_owned()), "{before:?}");
    bench.engine.pause(&spec.name).await.expect("paused");
    for _ in 0..2 {
        bench.engine.disconnect(&spec.name, &network.name).await.expect("cut");
        assert_eq!(bench.engine.links(&spec.name).await.expect("links"), Vec::new());
    }
    let listed = bench.engine.containers(&bench.labels()).await.expect("a list");
    assert!(listed.len() == 1 && listed[0].paused && listed[0].in_use, "{listed:?}");
    for _ in 0..2 {
        bench.engine.connect(&spec.name, &before[0]).await.expect("put back");
    }
    bench.engine.unpause(&spec.name).await.expect("resumed");
    assert_eq!(bench.engine.links(&spec.name).await.expect("links"), before);
    assert!(!bench.engine.containers(&bench.labels()).await.expect("a list")[0].paused);
    bench.engine.remove(&of(ObjectKind::Container, &spec.name)).await.expect("removed");
    bench.engine.connect(&spec.name, &before[0]).await.expect("what is gone is so already");
}

#[tokio::test]
async fn on_docker_a_paused_container_stands_still() {
    check(Bench::docker(&[BASE]).await, async |bench| {
        let spec = bench.container("agent", "sleep 1; exit 7", Script::runs());
        bench.run(&spec).await;
        bench.engine.pause(&spec.name).await.expect("paused");
        let early = tokio::time::timeout(Duration::from_secs(3), bench.engine.wait(&spec.name)).await;
        assert!(early.is_err(), "it ended while it was paused: {early:?}");
        bench.engine.unpause(&spec.name).await.expect("resumed");
        assert_eq!(bench.engine.wait(&spec.name).await.expect("an end").status, 7);
        bench.engine.pause(&spec.name).await.expect("what has ended is so already");
    })
    .await;
}

async fn a_running_container_is_removed_by_force(bench: Arc<Bench>) {
    let spec = bench.container("agent", "sleep 600", Script::runs());
    bench.run(&spec).await;
    let running = bench.engine.state(&spec.name).await.expect("an answer");
    assert!(matches!(running, Some(ContainerState::Running { address: None })), "no network: {running:?}");
    let container = of(ObjectKind::Container, &spec.name);
    let both = tokio::join!(bench.engine.remove(&container), bench.engine.remove(&container));
    both.0.expect("removed");
    both.1.expect("removed");
    assert_eq!(bench.engine.state(&spec.name).await.expect("an answer"), None);
}

async fn a_volume_in_use_stays(bench: Arc<Bench>) {
    let volume = bench.name("workspace");
    bench.engine.ensure_volume(&volume, &bench.labels()).await.expect("a volume");
    let mut spec = bench.container("agent", "exit 0", Script::prints("", 0));
    spec.mounts = vec![Mount::Volume { name: volume.clone(), target: "/workspace".into() }];
    bench.engine.ensure_container(&spec).await.expect("made");
    bench.engine.remove(&of(ObjectKind::Volume, &volume)).await.expect_err("in use");
    bench.engine.remove(&of(ObjectKind::Container, &spec.name)).await.expect("removed");
    bench.engine.remove(&of(ObjectKind::Volume, &volume)).await.expect("removed");
}

async fn what_is_not_there_is_said_to_be_not_there(bench: Arc<Bench>) {
    let nobody = bench.name("nobody");
    assert!(matches!(bench.engine.wait(&nobody).await, Err(EngineError::NotFound { .. })));
    assert!(matches!(bench.engine.output(&nobody, None).await.map(|_| ()), Err(EngineError::NotFound { .. })));
    assert!(matches!(bench.engine.start(&nobody, None, false).await.map(|_| ()), Err(EngineError::NotFound { .. })));
    let mut spec = bench.container("agent", "exit 0", Script::prints("", 0));
    spec.image = "devfleet-test/never-made:1".into();
    assert!(matches!(bench.engine.ensure_container(&spec).await, Err(EngineError::NotFound { .. })));
    assert_eq!(bench.engine.image(&spec.image).await.expect("an answer"), None);
    // No registry listens there.
    let pulled = bench.engine.pull("localhost:9/devfleet-test/never-made:1", "", None).await;
    assert!(matches!(&pulled, Err(EngineError::Pull { .. })), "{pulled:?}");
    assert!(bench.everything().await.is_empty());
}

async fn many_containers_run_side_by_side(bench: Arc<Bench>) {
    let specs: Vec<_> = (0..6)
        .map(|number| {
            let mut spec = bench.container(
                &format!("s{number}"),
                &format!("echo {number}"),
                Script::prints(&format!("{number}\n"), 0),
            );
            spec.keep_output = true;
            spec
        })
        .collect();
    let runs = specs.iter().enumerate().map(|(number, spec)| {
        let bench = bench.clone();
        async move {
            bench.run(spec).await;
            assert_eq!(bench.engine.wait(&spec.name).await.expect("an end").status, 0);
            let frames = collect(bench.engine.output(&spec.name, None).await.expect("output")).await;
            assert_eq!(text(&frames, false), format!("{number}\n"));
        }
    });
    futures_util::future::join_all(runs).await;
    assert_eq!(bench.everything().await.len(), 6);
}

// ---- what only a real engine can show ----

fn build(bench: &Bench, dockerfile: &str) -> ImageBuild {
    ImageBuild {
        tag: format!("devfleet-test/built:{}", bench.attempt),
        dockerfile: dockerfile.into(),
        arguments: BTreeMap::from([("WHO".into(), "root".into())]),
        files: Vec::new(),
        labels: bench.labels(),
        platform: String::new(),
    }
}

#[tokio::test]
async fn docker_builds_with_arguments_files_and_labels() {
    let bench = Bench::docker(&[BASE]).await;
    check(bench, async |bench| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("agent"), b"#!/bin/sh\necho from the file\n").expect("a file");
        let mut build =
            build(&bench, &format!("FROM {BASE}\nARG WHO\nCOPY agent /agent\nRUN /agent && test \"$WHO\" = root\nUSER $WHO\nEXPOSE 80 53/udp\n"));
        build.files = vec![("agent".into(), folder.path().join("agent"))];
        let lines = std::sync::Mutex::new(Vec::new());
        let image = bench.engine.build(&build, &|line| lines.lock().expect("a lock").push(line.to_owned())).await.expect("built");
        assert_eq!((image.user.as_str(), image.ports.as_slice()), ("root", [80].as_slice()));
        assert_eq!(image.labels.get(label::HOST), Some(&bench.host.to_string()));
        assert!(lines.lock().expect("a lock").iter().any(|line| line == "from the file"));
        assert_eq!(bench.engine.image(&build.tag).await.expect("an answer"), Some(image));
    })
    .await;
}

#[tokio::test]
async fn docker_shows_the_end_of_a_failed_build_and_leaves_no_container() {
    let bench = Bench::docker(&[BASE, "devfleet-test/noshell:1"]).await;
    check(bench, async |bench| {
        let ours = format!("LABEL {}={}", label::HOST, bench.host);
        let mut failing = build(&bench, &format!("FROM {BASE}\n{ours}\nRUN echo the reason >&2; exit 42\n"));
        failing.tag.push_str("-failing");
        let error = bench.engine.build(&failing, &|_| ()).await.expect_err("it fails");
        let shown = error.to_string();
        assert!(shown.contains("the reason") && shown.contains("returned a non-zero code: 42"), "{shown}");
        assert!(!bench.everything().await.iter().any(|object| object.kind == ObjectKind::Container));
        let shell_less = build(&bench, "FROM devfleet-test/noshell:1\nRUN true\n");
        let shown = bench.engine.build(&shell_less, &|_| ()).await.expect_err("no shell").to_string();
        assert!(shown.contains("exec: \"/bin/sh\""), "{shown}");
    })
    .await;
}

#[tokio::test]
async fn docker_says_when_a_program_cannot_be_run() {
    let bench = Bench::docker(&["devfleet-test/noshell:1"]).await;
    check(bench, async |bench| {
        let mut spec = bench.container("agent", "true", Script::default());
        spec.image = "devfleet-test/noshell:1".into();
        // With an init process it is that one that fails, later, with status 127.
        (spec.stdin, spec.init) = (true, false);
        bench.engine.ensure_container(&spec).await.expect("made");
        let refused = bench.engine.start(&spec.name, Some(b"x"), true).await.map(|_| ());
        assert!(matches!(&refused, Err(EngineError::NotRunnable { .. })), "{refused:?}");
    })
    .await;
}

#[tokio::test]
async fn docker_containers_have_nothing_that_was_not_wished_for() {
    let bench = Bench::docker(&[BASE]).await;
    check(bench, async |bench| {
        let script = "grep -E '^(CapBnd|NoNewPrivs):' /proc/self/status; ls /sys/class/net; \
                      mount | grep -c docker.sock || true; ulimit -n; cat /proc/1/comm; touch /mirror/x 2>&1 || echo sealed";
        let folder = tempfile::tempdir().expect("a folder");
        let mut spec = bench.container("agent", script, Script::default());
        spec.keep_output = true;
        spec.capabilities = vec!["CHOWN".into()];
        (spec.memory_bytes, spec.pids, spec.cpu_millis) = (64 << 20, 32, 500);
        spec.runtime = Some("runc".into());
        let facts = bench.engine.facts().await.expect("facts");
        assert!(facts.runtimes.contains("runc"), "{facts:?}");
        spec.mounts = vec![Mount::ReadOnlyDirectory { source: folder.path().into(), target: "/mirror".into() }];
        bench.run(&spec).await;
        bench.engine.wait(&spec.name).await.expect("an end");
        let frames = collect(bench.engine.output(&spec.name, None).await.expect("output")).await;
        let shown = text(&frames, false);
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines.contains(&"CapBnd:\t0000000000000001") && lines.contains(&"NoNewPrivs:\t1"), "{shown}");
        assert!(lines.contains(&"lo") && !lines.iter().any(|line| line.starts_with("eth")), "{shown}");
        assert!(lines.contains(&"16384") && lines.contains(&"sealed") && lines.contains(&"0"), "{shown}");
        assert!(lines.iter().any(|line| line.contains("init")), "{shown}");
        let inspected = std::process::Command::new("docker")
            .args(["inspect", "--format", "{{json .HostConfig}} {{json .Config.Healthcheck}}", &spec.name])
            .output()
            .expect("the docker command");
        let inspected = String::from_utf8(inspected.stdout).expect("text");
        for wanted in [
            r#""Privileged":false"#,
            r#""Memory":67108864"#,
            r#""MemorySwap":67108864"#,
            r#""PidsLimit":32"#,
            r#""NanoCpus":500000000"#,
            r#""IpcMode":"private""#,
            r#""Runtime":"runc""#,
            r#""CapDrop":["ALL"]"#,
            r#""no-new-privileges""#,
            r#""Type":"local""#,
            r#""NONE""#,
        ] {
            assert!(inspected.contains(wanted), "{wanted} is not in {inspected}");
        }
    })
    .await;
}

#[tokio::test]
async fn docker_says_when_memory_ran_out() {
    let bench = Bench::docker(&[BASE]).await;
    check(bench, async |bench| {
        let mut spec = bench.container("agent", "exec tail /dev/zero", Script::default());
        spec.memory_bytes = 32 << 20;
        bench.run(&spec).await;
        let exit = bench.engine.wait(&spec.name).await.expect("an end");
        assert_eq!((exit.status, exit.out_of_memory), (137, true));
    })
    .await;
}

#[tokio::test]
async fn long_lines_come_back_whole_and_can_be_resumed() {
    let bench = Bench::docker(&[BASE]).await;
    check(bench, async |bench| {
        let mut spec =
            bench.container("agent", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo after", Script::default());
        spec.keep_output = true;
        bench.run(&spec).await;
        bench.engine.wait(&spec.name).await.expect("an end");
        let frames = collect(bench.engine.output(&spec.name, None).await.expect("output")).await;
        let whole = text(&frames, false);
        assert!(
            whole == format!("{}\nafter\n", "x".repeat(100_000)),
            "{} bytes, {} lines",
            whole.len(),
            whole.lines().count()
        );
        let last = frames.last().and_then(|frame| frame.stamp.clone()).expect("a stamp");
        let again = collect(bench.engine.output(&spec.name, Some(&last)).await.expect("output")).await;
        assert_eq!(text(&again, false), "after\n");
    })
    .await;
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_from_one_that_is_too_old() {
    let gone = DockerEngine::new("unix:///nowhere/docker.sock").facts().await.expect_err("nobody there");
    assert!(
        matches!(gone, EngineError::Unreachable { .. }) && gone.to_string().contains("is Docker running"),
        "{gone}"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("old.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let body = r#"{"Version":"19.03.1","ApiVersion":"1.40"}"#;
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    let old = DockerEngine::new(&format!("unix://{}", path.display())).facts().await.expect_err("too old");
    server.abort();
    assert!(matches!(old, EngineError::TooOld { .. }) && old.to_string().contains("19.03.1"), "{old}");
}

#[tokio::test]
async fn networks_that_share_a_name_are_all_removed() {
    check(Bench::docker(&[]).await, async |bench| {
        let network = bench.network("network");
        let prefix = network.subnet.rsplit_once('.').expect("addresses").0.to_owned();
        // Docker 25 and later keep names unique by themselves, and answer the second with a conflict.
        let mut made_count = 0;
        for last in ["0/29", "8/29"] {
            // As two calls that crossed would: ours asks first.
            let body = serde_json::json!({
                "Name": network.name,
                "Labels": network.labels,
                "IPAM": {"Config": [{"Subnet": format!("{prefix}.{last}")}]},
            });
            let socket = docker_socket();
            let told = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", &socket];
            let made = std::process::Command::new("curl")
                .args(told)
                .args(["-H", "Content-Type: application/json", "-d", &body.to_string()])
                .arg("http://docker/v1.41/networks/create")
                .output()
                .expect("curl");
            match made.stdout.as_slice() {
                b"201" => made_count += 1,
                b"409" => assert_eq!(made_count, 1, "the first is made anywhere"),
                other => panic!("{}", String::from_utf8_lossy(other)),
            }
        }
        assert_eq!(bench.everything().await.len(), made_count);
        bench.engine.remove(&of(ObjectKind::Network, &network.name)).await.expect("removed");
        assert!(bench.everything().await.is_empty());
    })
    .await;
}

/// Passes bytes between a socket of its own and Docker's; of the first output that is followed nothing but its first frame.
async fn stuck_proxy(path: std::path::PathBuf) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::UnixListener::bind(path).expect("a socket");
    let (mut connections, stuck) = (tokio::task::JoinSet::new(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    loop {
        let (near, _) = listener.accept().await.expect("a caller");
        let stuck = Arc::clone(&stuck);
        connections.spawn(async move {
            let far = tokio::net::UnixStream::connect(docker_socket()).await.expect("docker");
            let ((mut asks, mut answered), (mut answers, mut asked)) = (near.into_split(), far.into_split());
            let mut request = vec![0; 64 << 10];
            let Ok(count @ 1..) = asks.read(&mut request).await else { return };
            let follows = String::from_utf8_lossy(&request[..count]).contains("follow=true");
            asked.write_all(&request[..count]).await.expect("docker listens");
            if follows && !stuck.swap(true, std::sync::atomic::Ordering::SeqCst) {
                // The connection stands, and brings nothing more.
                let mut answer = Vec::new();
                while !String::from_utf8_lossy(&answer).contains("one\n") {
                    answers.read_buf(&mut answer).await.expect("an answer");
                }
                answered.write_all(&answer).await.expect("the caller listens");
                return std::future::pending().await;
            }
            tokio::select! {
                _ = tokio::io::copy(&mut asks, &mut asked) => {}
                _ = tokio::io::copy(&mut answers, &mut answered) => {}
            }
        });
    }
}

#[tokio::test]
async fn output_that_gets_stuck_while_its_container_runs_goes_on() {
    check(Bench::docker(&[BASE]).await, async |bench| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("proxy.sock");
        let proxy = tokio::spawn(stuck_proxy(path.clone()));
        let mut spec = bench.container("agent", "", Script::default());
        spec.entrypoint.as_mut().expect("a script")[2] =
            "mkfifo /go; echo one; read -r go < /go; echo two; exec sleep 600".into();
        spec.keep_output = true;
        bench.run(&spec).await;
        let engine = DockerEngine::new(&path.display().to_string());
        let mut output = engine.output(&spec.name, None).await.expect("output");
        let first = output.next().await.expect("a frame").expect("a frame");
        let go = ["exec", &spec.name, "sh", "-c", "echo > /go"];
        let told = std::process::Command::new("docker").args(go).status().expect("the docker command");
        assert!(told.success());
        let second = tokio::time::timeout(Duration::from_secs(60), output.next()).await.expect("while it runs");
        assert_eq!(text(&[first, second.expect("a frame").expect("a frame")], false), "one\ntwo\n");
        proxy.abort();
    })
    .await;
}

/// Passes bytes between a socket of its own and Docker's, until told to cut every connection.
async fn cutting_proxy(path: std::path::PathBuf, mut cut: tokio::sync::watch::Receiver<u32>) {
    let listener = tokio::net::UnixListener::bind(path).expect("a socket");
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut near, _) = accepted.expect("a caller");
                connections.spawn(async move {
                    let mut far = tokio::net::UnixStream::connect(docker_socket()).await.expect("docker");
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
            Ok(()) = cut.changed() => connections.shutdown().await,
        }
    }
}

#[tokio::test]
async fn a_wait_that_is_cut_goes_on_and_output_can_be_resumed() {
    let bench = Bench::docker(&[BASE]).await;
    check(bench, async |bench| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("proxy.sock");
        let (cut, cuts) = tokio::sync::watch::channel(0);
        let proxy = tokio::spawn(cutting_proxy(path.clone(), cuts));
        let engine = DockerEngine::new(&path.display().to_string());
        let mut spec = bench.container("agent", "echo one; read -r go < /go; echo two; exit 7", Script::default());
        spec.entrypoint.as_mut().expect("a script")[2] =
            "mkfifo /go; echo one; read -r go < /go; echo two; exit 7".into();
        spec.keep_output = true;
        bench.run(&spec).await;
        let wait = engine.wait(&spec.name);
        let follow = async {
            let mut output = engine.output(&spec.name, None).await.expect("output");
            let first = output.next().await.expect("a frame").expect("a frame");
            cut.send_replace(1);
            let stamp = first.stamp.clone().expect("a stamp");
            let mut frames = vec![first];
            let go = ["exec", &spec.name, "sh", "-c", "echo > /go"];
            let told = std::process::Command::new("docker").args(go).status().expect("the docker command");
            assert!(told.success());
            // Either the stream found its way back by itself, or it says that it was cut and we resume.
            while let Some(item) = output.next().await {
                match item {
                    Ok(frame) => frames.push(frame),
                    Err(error) => {
                        assert!(error.is_retryable(), "{error:?}");
                        frames = collect(engine.output(&spec.name, Some(&stamp)).await.expect("output")).await;
                        break;
                    }
                }
            }
            frames
        };
        let (exit, frames) =
            tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(wait, follow) }).await.expect("in time");
        assert_eq!(exit.expect("an end").status, 7);
        assert_eq!(text(&frames, false), "one\ntwo\n");
        proxy.abort();
    })
    .await;
}
