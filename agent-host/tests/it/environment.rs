//! Environments built and unbuilt: on scripted engines with every call failing in turn, and on real Docker.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devfleet_host::engine::memory::{Fault, MemoryEngine, Script};
use devfleet_host::engine::{
    ContainerState, EngineError, ImageFacts, ObjectKind, ObjectRef, RegistryCredential, label,
};
use devfleet_host::environment::{
    CreationLog, Devbox, EnvironmentError, ImageError, ImageRequest, Images, Pulls, StepCommand, SubnetPool, Wanted,
    frame, tear_down,
};
use devfleet_shared::assignment::{AgentKind, AgentSpec, Assignment, Limits, Repository};
use devfleet_shared::attempt::{FailureReason, Step};
use devfleet_shared::clock::Timestamp;
use devfleet_shared::environment::{EnvironmentSpec, Recipe, RecipeFile, ServiceSpec};
use devfleet_shared::id::{Digest, Fence, JobId};
use devfleet_shared::secret::Secret;

use super::engine_contract::{Bench, check, collect, image_facts, text};

const BASE: &str = "devfleet-test/base:12";
const RECIPE: &str = "ARG DEVFLEET_USER\nUSER 0\nRUN test -n \"$DEVFLEET_USER\"\nUSER $DEVFLEET_USER\n";

/// Remembers what was written down.
#[derive(Default)]
struct Ledger {
    written: Mutex<Vec<ObjectRef>>,
    full: bool,
}

impl CreationLog for Ledger {
    fn about_to_make(&self, object: &ObjectRef) -> std::io::Result<()> {
        if self.full {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.written.lock().expect("a lock").push(object.clone());
        Ok(())
    }
}

/// All that a devbox borrows.
struct Site {
    bench: Arc<Bench>,
    assignment: Assignment,
    ledger: Ledger,
    pool: SubnetPool,
    images: Images,
    notes: Mutex<Vec<String>>,
}

impl Site {
    fn new(bench: Arc<Bench>, environment: EnvironmentSpec) -> Site {
        let recipe = format!("FROM {}\n{RECIPE}# {}\n", environment.image, bench.host);
        let assignment = Assignment {
            job: JobId::random(),
            attempt: bench.attempt.clone(),
            fence: Fence(7),
            project: "demo".parse().expect("a name"),
            task: String::new(),
            plan: String::new(),
            recipe: Recipe::new(recipe, Vec::new(), String::new()),
            environment,
            repository: Repository {
                url: "/repo.git".into(),
                base_commit: "0".repeat(40),
                base_branch: "main".into(),
                work_branch: "work".into(),
            },
            agent: AgentSpec {
                name: "script".parse().expect("a name"),
                kind: AgentKind::Script,
                command: "true".into(),
                variables: BTreeMap::new(),
                secrets: Vec::new(),
            },
            limits: Limits { service_ready: Duration::from_secs(20), ..Limits::default() },
            hold: Duration::ZERO,
        };
        // A pool of this test's own: tests run side by side on one engine, and so do several hosts.
        let byte = u8::from_str_radix(&bench.attempt.as_str()[..2], 16).expect("hex");
        Site {
            images: Images::new(bench.engine.clone(), bench.host.clone()),
            pool: format!("10.232.{byte}.0/24").parse().expect("a pool"),
            bench,
            assignment,
            ledger: Ledger::default(),
            notes: Mutex::default(),
        }
    }

    async fn with<T>(&self, act: impl AsyncFnOnce(&Devbox<'_>) -> T) -> T {
        let note = |line: &str| self.notes.lock().expect("a lock").push(line.to_owned());
        let devbox = Devbox {
            engine: &self.bench.engine,
            host: &self.bench.host,
            assignment: &self.assignment,
            created: Timestamp(1_000),
            expires: Timestamp(2_000),
            ledger: &self.ledger,
            note: &note,
            pool: &self.pool,
            images: &self.images,
        };
        act(&devbox).await
    }

    async fn prepare(&self) -> Result<ImageFacts, EnvironmentError> {
        self.with(async |devbox| devbox.prepare(&Pulls::default()).await).await
    }

    async fn tear_down(&self) -> Result<(), EnvironmentError> {
        self.with(async |devbox| devbox.tear_down().await).await
    }

    /// Runs a step to its end: its status, standard output and standard error.
    async fn run(
        &self,
        image: &ImageFacts,
        step: Step,
        command: StepCommand,
        variables: &[(&str, &str)],
    ) -> (i64, String, String) {
        let name = self.with(async |devbox| devbox.make_step(image, step, 1, command).await).await.expect("made");
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
        let input = frame(&variables).expect("a frame");
        self.bench.engine.start(&name, Some(&input), false).await.expect("started");
        let exit = self.bench.engine.wait(&name).await.expect("an end");
        let frames = collect(self.bench.engine.output(&name, None).await.expect("output")).await;
        (exit.status, text(&frames, false), text(&frames, true))
    }

    fn left(&self, objects: Vec<ObjectRef>) -> Vec<ObjectRef> {
        objects.into_iter().filter(|object| object.kind != ObjectKind::Image).collect()
    }
}

fn spec(services: Vec<ServiceSpec>) -> EnvironmentSpec {
    EnvironmentSpec { image: BASE.into(), services, ..EnvironmentSpec::default() }
}

fn service(name: &str, image: &str) -> ServiceSpec {
    ServiceSpec { name: name.into(), image: image.into(), aliases: vec![name.into()], ..ServiceSpec::default() }
}

fn step(script: &str) -> StepCommand {
    StepCommand { script: script.into(), network: true, keep_output: true, ..StepCommand::default() }
}

fn memory(bench: &Bench) -> Arc<MemoryEngine> {
    bench.memory.clone().expect("an engine in memory")
}

/// A scripted engine with two services, one of which has a port that somebody listens on.
async fn scripted() -> (Site, tokio::net::TcpListener) {
    let bench = Bench::memory();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    memory(&bench).add_image("redis:7", ImageFacts { ports: vec![port], ..image_facts("sha256:redis") });
    memory(&bench).add_to_registry("worker:1", image_facts("sha256:worker"));
    let services = vec![service("redis", "redis:7"), service("worker", "worker:1")];
    (Site::new(Arc::new(bench), spec(services)), listener)
}

/// Everything an attempt does to its engine, once through.
async fn whole_life(site: &Site) -> Result<(), EnvironmentError> {
    let image = site.prepare().await?;
    let wanted = StepCommand { mirror: Some("/mirror.git".into()), ..step("true") };
    let name = site.with(async |devbox| devbox.make_step(&image, Step::Checkout, 1, wanted).await).await?;
    let engine = |source| EnvironmentError::Engine { action: "run a step".into(), source };
    site.bench.engine.start(&name, Some(b"frame"), false).await.map_err(engine)?;
    site.bench.engine.wait(&name).await.map_err(engine)?;
    site.with(async |devbox| devbox.hold(&image).await).await?;
    Ok(())
}

#[tokio::test]
async fn preparing_and_tearing_down_twice_is_doing_it_once() {
    let (site, _listener) = scripted().await;
    let memory = memory(&site.bench);
    let first = site.prepare().await.expect("prepared");
    let objects = memory.objects();
    assert_eq!(objects.len(), 4, "network, workspace, two services: {objects:?}");
    assert_eq!(site.prepare().await.expect("prepared again"), first);
    assert_eq!(memory.objects(), objects);
    assert_eq!(memory.builds(), 1);
    for found in site.bench.engine.list(&site.bench.labels()).await.expect("a list") {
        for (name, value) in [(label::FENCE, "7"), (label::CREATED, "1000"), (label::EXPIRES, "2000")] {
            assert_eq!(found.labels.get(name).map(String::as_str), Some(value), "{name} of {:?}", found.object);
        }
        assert!(found.object.name.starts_with(&format!("devbox-{}-", site.bench.attempt)));
    }
    site.tear_down().await.expect("torn down");
    assert!(memory.objects().is_empty());
    site.tear_down().await.expect("torn down again");
}

#[tokio::test]
async fn a_preparation_makes_no_call_that_is_not_needed() {
    let (site, _listener) = scripted().await;
    let memory = memory(&site.bench);
    site.prepare().await.expect("prepared");
    site.tear_down().await.expect("torn down");
    let before = memory.calls().len();
    site.prepare().await.expect("prepared, with its images here");
    let prepared = memory.calls().len();
    site.tear_down().await.expect("torn down");
    let mut verbs: BTreeMap<&str, usize> = BTreeMap::new();
    for call in &memory.calls()[before..prepared] {
        *verbs.entry(call.verb).or_default() += 1;
    }
    // Two for the image (what it stands on, itself), one for each service's.
    let wanted = [("ensure_container", 2), ("ensure_network", 1), ("ensure_volume", 1), ("image", 4), ("start", 2)];
    assert_eq!(verbs, BTreeMap::from_iter(wanted.into_iter().chain([("state", 2), ("subnets", 1)])));
    let verbs: Vec<_> = memory.calls()[prepared..].iter().map(|call| call.verb).collect();
    assert_eq!(verbs, ["list", "remove", "remove", "remove", "remove", "list"]);
}

#[tokio::test]
async fn whatever_call_fails_nothing_is_left_and_nothing_was_made_unannounced() {
    let (site, _listener) = scripted().await;
    whole_life(&site).await.expect("a whole life");
    let calls = memory(&site.bench).calls().len();
    site.tear_down().await.expect("torn down");
    assert!(calls > 15, "{calls}");
    for fault in [Fault::Before, Fault::After] {
        for number in 1..=calls {
            let (site, _listener) = scripted().await;
            let memory = memory(&site.bench);
            memory.fail_when(move |call| (call.number == number).then_some(fault));
            let outcome = whole_life(&site).await;
            memory.fail_never();
            // One lost answer may be made good by a repetition inside; what counts is what is left.
            if let Err(error) = &outcome {
                assert!(!error.failure().message.is_empty());
            }
            let announced: BTreeSet<_> = site.ledger.written.lock().expect("a lock").iter().cloned().collect();
            for object in memory.objects() {
                assert!(announced.contains(&object), "{object:?} was made unannounced (call {number}, {fault:?})");
            }
            site.tear_down().await.expect("torn down");
            assert!(memory.objects().is_empty(), "left at call {number}, {fault:?}: {:?}", memory.objects());
        }
    }
}

#[tokio::test]
async fn a_tear_down_that_is_hit_at_any_call_is_finished_by_the_next() {
    for fault in [Fault::Before, Fault::After] {
        for number in 1..=12 {
            let (site, _listener) = scripted().await;
            let memory = memory(&site.bench);
            site.prepare().await.expect("prepared");
            let before = memory.calls().len();
            memory.fail_when(move |call| (call.number == before + number).then_some(fault));
            let first = site.tear_down().await;
            if first.is_ok() {
                assert!(memory.objects().is_empty(), "call {number}, {fault:?}: {:?}", memory.objects());
            }
            memory.fail_never();
            tear_down(&site.bench.engine, &site.bench.host, &site.bench.attempt).await.expect("finished");
            assert!(memory.objects().is_empty());
        }
    }
}

#[tokio::test]
async fn what_resists_is_named_and_the_rest_is_gone() {
    let (site, _listener) = scripted().await;
    let memory = memory(&site.bench);
    site.prepare().await.expect("prepared");
    memory.fail_when(|call| (call.verb == "remove" && call.about.ends_with("-network")).then_some(Fault::Before));
    let error = site.tear_down().await.expect_err("the network resists");
    let network = site.bench.attempt.object_name("network");
    assert!(error.to_string().contains(&network), "{error}");
    assert_eq!(error.failure().reason, FailureReason::Engine);
    assert_eq!(memory.objects(), [ObjectRef { kind: ObjectKind::Network, name: network }]);
}

#[tokio::test]
async fn without_a_ledger_nothing_is_made() {
    let (mut site, _listener) = scripted().await;
    site.ledger.full = true;
    let error = site.prepare().await.expect_err("the disk is full");
    assert_eq!(error.failure().reason, FailureReason::DiskFull);
    assert!(memory(&site.bench).objects().is_empty());
}

#[tokio::test]
async fn addresses_that_others_took_are_passed_over() {
    let (site, _listener) = scripted().await;
    let memory = memory(&site.bench);
    let (listed, hidden) = ("10.233.0.0/28", "10.233.0.16/28");
    memory.occupy(listed, false);
    memory.occupy(hidden, true);
    let site = Site { pool: "10.233.0.0/26".parse().expect("a pool"), ..site };
    site.prepare().await.expect("prepared");
    let found = site.bench.engine.list(&site.bench.labels()).await.expect("a list");
    let subnets: Vec<_> = found.into_iter().filter_map(|found| found.subnet).collect();
    assert_eq!(subnets, ["10.233.0.32/28"]);
    site.tear_down().await.expect("torn down");
    let site = Site { pool: "10.233.0.0/27".parse().expect("a pool"), ..site };
    let error = site.prepare().await.expect_err("a pool of taken addresses");
    assert!(error.to_string().contains("10.233.0.0/27"), "{error}");
}

#[tokio::test]
async fn services_that_fail_say_why() {
    let (site, listener) = scripted().await;
    let memory = memory(&site.bench);
    let mut site = site;
    site.assignment.limits.service_ready = Duration::from_millis(300);
    drop(listener);
    let error = site.prepare().await.expect_err("nobody listens");
    assert!(matches!(&error, EnvironmentError::ServiceNotReady { service, .. } if service == "redis"), "{error}");
    assert_eq!(error.failure().reason, FailureReason::ServiceNotReady);
    site.tear_down().await.expect("torn down");
    site.assignment.limits.service_ready = Duration::from_secs(600);
    memory.script("redis", Script::prints("bad option: --fast\n", 1));
    let begin = tokio::time::Instant::now();
    let error = site.prepare().await.expect_err("it ends");
    assert!(begin.elapsed() < Duration::from_secs(20), "reported at once");
    let message = error.failure().message;
    assert!(message.contains("status 1") && message.contains("bad option: --fast"), "{message}");
}

#[tokio::test]
async fn a_failed_image_ends_the_wait_for_services() {
    let (mut site, listener) = scripted().await;
    drop(listener);
    site.assignment.limits.service_ready = Duration::from_secs(600);
    memory(&site.bench).set_build_error(Some("E: no such package\nreturned a non-zero code: 100"));
    let begin = tokio::time::Instant::now();
    let error = site.prepare().await.expect_err("no image");
    assert!(begin.elapsed() < Duration::from_secs(20));
    let failure = error.failure();
    assert_eq!(failure.reason, FailureReason::ImageBuild);
    assert!(failure.message.contains("no such package"), "{}", failure.message);
}

#[tokio::test]
async fn images_are_made_once_per_key_however_many_want_them() {
    let bench = Arc::new(Bench::memory());
    let memory = memory(&bench);
    memory.add_to_registry("app:1", image_facts("sha256:app"));
    memory.set_build_time(Duration::from_millis(100));
    let images = Images::new(bench.engine.clone(), bench.host.clone());
    let recipe = |text: &str| Recipe::new(format!("FROM app:1\n{text}"), Vec::new(), String::new());
    let (one, other) = (recipe("one"), recipe("other"));
    let want = async |recipe: &Recipe| {
        let request = ImageRequest {
            recipe,
            base: Wanted { reference: "app:1", platform: "", pull: None },
            pulls: &Pulls::default(),
            created: Timestamp(1),
            note: &|_| (),
        };
        images.ensure(&request).await.expect("an image")
    };
    let (a, b, c) = tokio::join!(want(&one), want(&one), want(&other));
    assert_eq!(a, b);
    assert_ne!(a.id, c.id);
    assert_eq!((memory.builds(), memory.calls().iter().filter(|call| call.verb == "pull").count()), (2, 1));
    assert_eq!(want(&one).await, a);
    assert_eq!(memory.builds(), 2, "an identical key is no build");
    assert_eq!(a.user, "0", "a base without a user runs as root");
    // Another content or user of the base is another image.
    memory.add_image("app:1", ImageFacts { user: "dev".into(), ..image_facts("sha256:app") });
    assert_eq!(want(&one).await.user, "dev");
    memory.add_image("app:1", image_facts("sha256:newer"));
    assert_ne!(want(&one).await.id, a.id);
    assert_eq!(memory.builds(), 4);
}

#[tokio::test]
async fn an_image_with_another_file_than_was_approved_is_not_built() {
    let (mut site, _listener) = scripted().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent");
    std::fs::write(&path, b"other").expect("a file");
    let file =
        RecipeFile { name: "agent".into(), host_path: path.display().to_string(), digest: Digest::of(b"approved") };
    site.assignment.recipe = Recipe::new(format!("FROM {BASE}\n"), vec![file], String::new());
    let error = site.prepare().await.expect_err("another file");
    assert!(matches!(error, EnvironmentError::Image(ImageError::FileChanged { .. })), "{error}");
    assert_eq!(memory(&site.bench).builds(), 0);
}

#[tokio::test]
async fn steps_are_made_as_the_ci_would_run_them() {
    let (mut site, _listener) = scripted().await;
    site.assignment.environment.user = Some("dev".into());
    let mut image = site.prepare().await.expect("prepared");
    image.entrypoint = vec!["/entry".into()];
    let memory = memory(&site.bench);
    for (replaced, own) in
        [(None, Some("/entry")), (Some(vec![String::new()]), None), (Some(vec!["/own".into()]), Some("/own"))]
    {
        site.assignment.environment.entrypoint = replaced;
        let command = StepCommand { mirror: Some("/data/x.git".into()), ..StepCommand::default() };
        let name =
            site.with(async |devbox| devbox.make_step(&image, Step::Verify, 2, command).await).await.expect("made");
        assert_eq!(name, site.bench.attempt.object_name("verify-2"));
        let made = memory.container(&name).expect("a container");
        let command = made.command.expect("a command");
        assert_eq!(command.first().map(String::as_str), own.or(Some("/bin/sh")));
        assert_eq!((made.network, made.user.as_deref(), made.mounts.len()), (None, Some("dev"), 2));
        assert!(made.variables.is_empty() && made.stdin && made.init && made.memory_bytes > 0);
        site.bench.engine.remove(&ObjectRef { kind: ObjectKind::Container, name }).await.expect("removed");
    }
    let long = step(&"x".repeat(200_000));
    let error = site.with(async |devbox| devbox.make_step(&image, Step::Agent, 1, long).await).await;
    assert!(matches!(error, Err(EnvironmentError::ScriptTooLong { .. })));
}

// ---- on real Docker ----

async fn on_docker<F, Fut>(images: &[&str], environment: EnvironmentSpec, test: F)
where
    F: FnOnce(Site) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    check(Bench::docker(images).await, move |bench| test(Site::new(bench, environment))).await;
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("the docker command");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn docker_builds_an_environment_with_services_and_leaves_nothing() {
    let images = [BASE, "devfleet-test/redis:7", "devfleet-test/postgres:15"];
    let mut postgres = service("db", images[2]);
    postgres.aliases.push("postgres".into());
    postgres.variables.insert("POSTGRES_PASSWORD".into(), "public".into());
    let services = vec![service("redis", images[1]), postgres];
    on_docker(&images, spec(services), |site| async move {
        let image = site.prepare().await.expect("prepared");
        assert_eq!(site.prepare().await.expect("prepared again"), image);
        let engine = &site.bench.engine;
        let redis = site.bench.attempt.object_name("redis");
        assert!(matches!(engine.state(&redis).await, Ok(Some(ContainerState::Running { address: Some(_) }))));
        let anonymous = docker(&["inspect", "--format", "{{range .Mounts}}{{.Name}}{{end}}", &redis]).trim().to_owned();
        assert!(docker(&["volume", "ls", "-q"]).contains(&anonymous) && anonymous.len() == 64, "{anonymous}");

        let script =
            "echo kept > file; for at in redis/6379 db/5432 postgres/5432; do : < /dev/tcp/$at && echo $at; done";
        let (status, out, error) = site.run(&image, Step::Setup, step(script), &[]).await;
        assert_eq!((status, out.as_str()), (0, "redis/6379\ndb/5432\npostgres/5432\n"), "{error}");

        // No network, the mirror sealed, and the same workspace.
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("HEAD"), "ref").expect("a file");
        let command = StepCommand {
            mirror: Some(folder.path().into()),
            network: false,
            ..step(
                "pwd; cat file /mirror/HEAD; ls /sys/class/net; ! touch /mirror/x; id -u; cat; false; echo unreached",
            )
        };
        let (status, out, error) = site.run(&image, Step::Checkout, command, &[]).await;
        assert_eq!((status, out.as_str()), (1, "/workspace\nkept\nreflo\n0\n"), "{error}");

        let held = site.with(async |devbox| devbox.hold(&image).await).await.expect("held");
        assert_eq!(docker(&["exec", &held, "cat", "/workspace/file"]), "kept\n");

        site.tear_down().await.expect("torn down");
        site.tear_down().await.expect("torn down again");
        let left = site.left(site.bench.everything().await);
        assert!(left.is_empty(), "{left:?}");
        assert!(!docker(&["volume", "ls", "-q"]).contains(&anonymous), "an anonymous volume is left");
    })
    .await;
}

/// Says in which files of the engine a text stands. Needs to be root, as these tests are.
fn traces(text: &str) -> Vec<String> {
    // An engine that is not the machine's own has all its data in one folder.
    let root = PathBuf::from(docker(&["info", "--format", "{{.DockerRootDir}}"]).trim());
    let beside = if root.ends_with("data") { root.parent().map(|parent| parent.join("exec")) } else { None };
    let usual = ["/run/docker", "/var/run/docker", "/run/containerd", "/var/lib/containerd"].map(PathBuf::from);
    let places = usual.into_iter().chain([root]).chain(beside);
    let found = Command::new("grep")
        .args(["-rlaF", "--devices=skip", "-e", text])
        .args(places.filter(|place| place.exists()))
        .output()
        .expect("grep");
    assert!(found.status.code() != Some(2) || !found.stdout.is_empty() || rustix::process::geteuid().is_root());
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn docker_never_holds_a_secret_that_went_in_over_the_frame() {
    on_docker(&[BASE], spec(Vec::new()), |site| async move {
        assert!(rustix::process::geteuid().is_root(), "this test reads the engine's files: run it as root");
        let image = site.prepare().await.expect("prepared");
        let canary = format!("canary-{}", JobId::random());
        let public = format!("public-{}", JobId::random());
        // The step proves that it has the secret without printing it, and waits for us to look while it runs.
        let script = format!(
            "test \"${{#SECRET}}\" = {}; echo ready; echo {public} > /dev/null; read -r go < <(sleep 4; echo go); echo $go",
            canary.len()
        );
        let name =
            site.with(async |devbox| devbox.make_step(&image, Step::Agent, 1, step(&script)).await).await.expect("made");
        let variables = BTreeMap::from([("SECRET".to_owned(), Secret::new(canary.clone()))]);
        let input = frame(&variables).expect("a frame");
        site.bench.engine.start(&name, Some(&input), false).await.expect("started");
        assert!(docker(&["inspect", &name]).contains(&public), "the probe sees what Docker was told");
        assert!(!docker(&["inspect", &name]).contains(&canary));
        assert_eq!(traces(&canary), Vec::<String>::new(), "while it runs");
        assert!(!traces(&public).is_empty(), "the search finds what is there");
        assert_eq!(site.bench.engine.wait(&name).await.expect("an end").status, 0);
        assert_eq!(traces(&canary), Vec::<String>::new(), "after it ended");
        site.tear_down().await.expect("torn down");
        assert_eq!(traces(&canary), Vec::<String>::new(), "after it was removed");
    })
    .await;
}

#[tokio::test]
async fn docker_steps_without_a_frame_run_nothing() {
    on_docker(&[BASE], spec(Vec::new()), |site| async move {
        let image = site.prepare().await.expect("prepared");
        let name = site
            .with(async |devbox| devbox.make_step(&image, Step::Agent, 1, step("echo ran")).await)
            .await
            .expect("made");
        site.bench.engine.start(&name, Some(b"half a frame\nexport A='"), false).await.expect("started");
        assert_eq!(site.bench.engine.wait(&name).await.expect("an end").status, 125);
        let frames = collect(site.bench.engine.output(&name, None).await.expect("output")).await;
        assert_eq!((text(&frames, false).as_str(), text(&frames, true).as_str()), ("", "devfleet: no frame arrived\n"));
    })
    .await;
}

#[tokio::test]
async fn docker_values_arrive_through_busybox_too() {
    let images = ["devfleet-test/nopm:1"];
    let environment = EnvironmentSpec { image: images[0].into(), ..EnvironmentSpec::default() };
    on_docker(&images, environment, |site| async move {
        let image = site.prepare().await.expect("prepared");
        let nasty = "it's \"q\" $HOME `id` \\n\n\n  two\tlines é\u{1f980} \\";
        let script = "printf '%s|' \"$NASTY\"; echo ${BASH_VERSION:-no bash}";
        let script = script.replace("printf '%s|' \"$NASTY\"", "echo -n \"$NASTY|\"");
        let (status, out, error) =
            site.run(&image, Step::Agent, step(&script), &[("NASTY", nasty), ("UID", "5")]).await;
        assert_eq!((status, out), (0, format!("{nasty}|no bash\n")), "{error}");
    })
    .await;
}

#[tokio::test]
async fn docker_services_that_never_get_ready_or_end_show_their_log() {
    let images = [BASE, "devfleet-test/never-ready:1"];
    on_docker(&images, spec(vec![service("slow", images[1])]), |mut site| async move {
        site.assignment.limits.service_ready = Duration::from_secs(2);
        let message = site.prepare().await.expect_err("not ready").failure().message;
        assert!(message.contains("port 9999 after 2 s") && message.contains("waiting for a disk"), "{message}");
        site.tear_down().await.expect("torn down");
        let service = &mut site.assignment.environment.services[0];
        service.entrypoint = Some(["sh", "-c", "echo cannot open config >&2; exit 3"].map(Into::into).to_vec());
        site.assignment.limits.service_ready = Duration::from_secs(60);
        let begin = tokio::time::Instant::now();
        let message = site.prepare().await.expect_err("it ends").failure().message;
        assert!(begin.elapsed() < Duration::from_secs(30), "reported at once");
        assert!(message.contains("status 3") && message.contains("cannot open config"), "{message}");
    })
    .await;
}

#[tokio::test]
async fn docker_images_that_do_not_serve_are_told_apart() {
    let images = ["devfleet-test/noshell:1", "devfleet-test/nopm:1"];
    on_docker(&images, EnvironmentSpec::default(), move |mut site| async move {
        let git = "RUN command -v git || command -v apt-get || exit 42\n";
        let absent = "localhost:9/devfleet-test/absent:1";
        for (image, reason, words) in [
            (images[0], FailureReason::ImageUnusable, "no shell"),
            (images[1], FailureReason::ImageUnusable, "no git, and no package manager"),
            (absent, FailureReason::ImagePull, absent),
        ] {
            site.assignment.environment.image = image.into();
            site.assignment.recipe = Recipe::new(format!("FROM {image}\n{RECIPE}{git}"), Vec::new(), String::new());
            let failure = site.prepare().await.expect_err("of no use").failure();
            assert_eq!(failure.reason, reason, "{}", failure.message);
            assert!(failure.message.contains(words), "{}", failure.message);
            site.tear_down().await.expect("torn down");
        }
        let login = RegistryCredential { username: "u".into(), password: Secret::new("password-canary") };
        site.assignment.environment.image = absent.into();
        let pulls = Pulls { logins: vec![("localhost:9".to_owned(), login)], ..Pulls::default() };
        let error = site.with(async |devbox| devbox.prepare(&pulls).await).await.expect_err("no registry");
        assert!(!format!("{error:?} {}", error.failure().message).contains("canary"));
        assert!(matches!(
            error,
            EnvironmentError::Image(ImageError::Engine { source: EngineError::Pull { unreachable: true, .. }, .. })
        ));
    })
    .await;
}
