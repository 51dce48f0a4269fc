//! Images from a real registry that asks for a login, on real Docker: who gets what, when, and where the password is not.
//!
//! The registry is Debian's `docker-registry` on a loopback port, which Docker takes without TLS.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use devfleet_host::engine::{EngineError, ImageFacts, RegistryCredential};
use devfleet_host::environment::{ImageError, ImageRequest, Images, PrivateImages, Pulls, RegistryMirrors, Wanted};
use devfleet_shared::attempt::FailureReason;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::environment::{PullPolicy, Recipe};
use devfleet_shared::secret::Secret;

use crate::engine_contract::Bench;

const SMALL: &str = "devfleet-test/nopm:1";
const OTHER: &str = "devfleet-test/noshell:1";

/// A registry with one user, and the images that a test brought to the engine from it.
struct Registry {
    program: Child,
    host: String,
    password: String,
    directory: tempfile::TempDir,
}

impl Registry {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let host = port.to_string();
        let password = format!("canary-{}", devfleet_shared::id::AttemptId::random()).repeat(2);
        let script = "print crypt($ENV{PASSWORD}, '$2y$05$abcdefghijklmnopqrstuu')";
        let hash = run(Command::new("perl").args(["-e", script]).env("PASSWORD", &password));
        assert!(hash.starts_with("$2y$"), "perl's crypt knows no bcrypt: {hash}");
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(path("htpasswd"), format!("bot:{hash}\n")).expect("written");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {:?}}}}}\nhttp: {{addr: {host:?}}}\n\
             auth: {{htpasswd: {{realm: test, path: {:?}}}}}\n",
            path("images"),
            path("htpasswd")
        );
        std::fs::write(path("config.yml"), config).expect("written");
        let program = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs docker-registry; run: deploy/setup.sh test");
        let registry = Self { program, host, password, directory };
        let mut looks = tokio::time::interval(Duration::from_millis(50));
        let listening = async {
            while tokio::net::TcpStream::connect(&registry.host).await.is_err() {
                looks.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), listening).await.expect("the registry listens");
        registry
    }

    fn name(&self, image: &str) -> String {
        format!("{}/team/{image}", self.host)
    }

    /// Pushes an image of this engine under a name, as its owner does, and returns its digest in the registry.
    fn push(&self, local: &str, image: &str) -> String {
        let (name, config) = (self.name(image), self.directory.path().join("client"));
        let docker = || {
            let mut command = Command::new("docker");
            command.arg("--config").arg(&config);
            command
        };
        run(docker().args(["login", "--username", "bot", "--password", &self.password, &self.host]));
        run(docker().args(["tag", local, &name]));
        let printed = run(docker().args(["push", &name]));
        run(docker().args(["rmi", &name]));
        std::fs::remove_dir_all(&config).expect("the client's own note of the password is gone");
        let digest = printed.split_whitespace().find(|word| word.starts_with("sha256:")).expect("a digest");
        digest.to_owned()
    }

    fn pulls(&self, project: &str, password: Option<&str>, policy: PullPolicy) -> Pulls {
        let login = |password: &str| {
            let credential = RegistryCredential { username: "bot".into(), password: Secret::new(password) };
            vec![(self.host.clone(), credential)]
        };
        Pulls { project: project.into(), logins: password.map(login).unwrap_or_default(), policy }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        let filter = format!("reference={}/team/*", self.host);
        let mut list = Command::new("docker");
        list.args(["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", &filter]);
        let output = list.output();
        let names = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        for name in names.lines() {
            let _ = Command::new("docker").args(["rmi", name.trim_end_matches(":<none>")]).output();
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn wanted(name: &str) -> Wanted<'_> {
    Wanted { reference: name, platform: "", pull: None }
}

async fn get(images: &Images, name: &str, pulls: &Pulls) -> Result<ImageFacts, ImageError> {
    images.present(&wanted(name), pulls, &|_| ()).await
}

#[track_caller]
fn check_refused(outcome: Result<ImageFacts, ImageError>, password: &str) {
    let error = outcome.expect_err("the registry refuses");
    assert_eq!(error.reason(), FailureReason::ImagePull, "{error:?}");
    assert!(matches!(error, ImageError::Engine { source: EngineError::Pull { unreachable: false, .. }, .. }));
    assert!(!format!("{error:?}").contains(password), "the password is in the error");
}

/// Says whether a text stands in any file below a directory.
fn stands_below(text: &str, directory: &Path) -> bool {
    let mut grep = Command::new("grep");
    grep.args(["--recursive", "--quiet", "--binary-files=text", "--fixed-strings", "--devices=skip", "-e", text]);
    grep.arg(directory).stderr(Stdio::null()).status().expect("grep can be run").code() == Some(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_comes_with_the_right_login_alone_and_the_password_stays_in_memory() {
    let bench = Bench::docker(&[SMALL]).await;
    let registry = Registry::start().await;
    let digest = registry.push(SMALL, "app:1");
    let data = tempfile::tempdir().expect("a directory");
    let images = || {
        let private = PrivateImages::open(&data.path().join("private-images.json")).expect("read");
        Images::new(bench.engine.clone(), bench.host.clone()).remembering(private)
    };
    let (name, wrong) = (registry.name("app:1"), "canary-of-a-wrong-password");
    let own = |password| registry.pulls("own", password, PullPolicy::IfNotPresent);
    check_refused(get(&images(), &name, &own(None)).await, &registry.password);
    check_refused(get(&images(), &name, &own(Some(wrong))).await, wrong);
    let right = own(Some(&registry.password));
    check_refused(get(&images(), &registry.name("app:2"), &right).await, &registry.password);
    let image = get(&images(), &name, &right).await.expect("it is pulled");
    let pinned = get(&images(), &format!("{}@{digest}", registry.name("app")), &right).await.expect("by its digest");
    assert_eq!(pinned.id, image.id);
    let elsewhere = format!("{}@sha256:{}", registry.name("app"), "0".repeat(64));
    check_refused(get(&images(), &elsewhere, &right).await, &registry.password);

    // It is here now; that alone gives it to nobody else, neither by name nor by digest, nor after a restart.
    for name in [name.clone(), format!("{}@{digest}", registry.name("app"))] {
        let other = |password| registry.pulls("other", password, PullPolicy::IfNotPresent);
        check_refused(get(&images(), &name, &other(None)).await, &registry.password);
        let never = registry.pulls("other", None, PullPolicy::Never);
        assert!(matches!(get(&images(), &name, &never).await, Err(ImageError::Unusable { .. })));
    }
    let other = registry.pulls("other", Some(&registry.password), PullPolicy::IfNotPresent);
    assert_eq!(get(&images(), &name, &other).await.expect("its login is as good").id, image.id);
    let both = registry.pulls("other", None, PullPolicy::IfNotPresent);
    assert_eq!(get(&images(), &name, &both).await.expect("it showed that it may").id, image.id);

    let control = data.path().join("control");
    std::fs::write(&control, &registry.password).expect("written");
    assert!(stands_below(&registry.password, data.path()), "the search finds what is there");
    std::fs::remove_file(&control).expect("removed");
    for place in [data.path(), Path::new("/var/lib/docker/containers"), Path::new("/var/lib/docker/image")] {
        assert!(!stands_below(&registry.password, place), "the password is below {}", place.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_followed_always_or_not_at_all_as_the_project_wants() {
    let bench = Bench::docker(&[SMALL, OTHER]).await;
    let registry = Registry::start().await;
    let images = Images::new(bench.engine.clone(), bench.host.clone());
    let name = registry.name("moving:1");
    let with = |policy| registry.pulls("own", Some(&registry.password), policy);
    registry.push(SMALL, "moving:1");
    let absent = get(&images, &name, &with(PullPolicy::Never)).await.expect_err("nothing is pulled");
    assert!(absent.to_string().contains("pull = \"never\""), "{absent}");
    let ci_says_never = Wanted { pull: Some(PullPolicy::Never), ..wanted(&name) };
    let absent = images.present(&ci_says_never, &with(PullPolicy::IfNotPresent), &|_| ()).await;
    assert!(matches!(absent, Err(ImageError::Unusable { .. })), "CI's own policy counts: {absent:?}");
    let first = get(&images, &name, &with(PullPolicy::IfNotPresent)).await.expect("pulled");
    let config = format!("{}-held", name);
    run(Command::new("docker").args(["tag", &name, &config]));
    registry.push(OTHER, "moving:1");
    run(Command::new("docker").args(["tag", &config, &name]));
    for policy in [PullPolicy::IfNotPresent, PullPolicy::Never] {
        assert_eq!(get(&images, &name, &with(policy)).await.expect("it is here").id, first.id, "{policy:?}");
    }
    let ci_says_always = Wanted { pull: Some(PullPolicy::Always), ..wanted(&name) };
    let kept = images.present(&ci_says_always, &with(PullPolicy::Never), &|_| ()).await.expect("it is here");
    assert_eq!(kept.id, first.id, "the project's `never` stands over CI's word");
    let moved = images.present(&ci_says_always, &with(PullPolicy::IfNotPresent), &|_| ()).await.expect("pulled again");
    assert_ne!(moved.id, first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_another_platform_does_not_serve() {
    let bench = Bench::docker(&[SMALL]).await;
    let images = Images::new(bench.engine.clone(), bench.host.clone());
    let registry = Registry::start().await;
    let name = registry.name("one-platform:1");
    registry.push(SMALL, "one-platform:1");
    let pulls = registry.pulls("own", Some(&registry.password), PullPolicy::IfNotPresent);
    let own = get(&images, &name, &pulls).await.expect("pulled");
    let (here, other) = match own.platform.as_str() {
        "linux/arm64" | "linux/arm64/v8" => ("linux/arm64", "linux/amd64"),
        _ => ("linux/amd64", "linux/arm64"),
    };
    let on = |platform| Wanted { platform, ..wanted(&name) };
    assert_eq!(images.present(&on(here), &pulls, &|_| ()).await.expect("it is here").id, own.id);
    let error = images.present(&on(other), &pulls, &|_| ()).await.expect_err("the registry has none for this platform");
    assert!(matches!(&error, ImageError::Unusable { why, .. } if why.contains("platform")), "{error:?}");
    assert_eq!(get(&images, &name, &pulls).await.expect("it still serves those who name none").id, own.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_first_and_its_registry_when_it_has_not_got_it() {
    let bench = Bench::docker(&[SMALL, OTHER]).await;
    let (mirror, registry) = (Registry::start().await, Registry::start().await);
    let mirrors = [(registry.host.clone(), mirror.host.clone()), ("gone.example.com".to_owned(), mirror.host.clone())];
    let mirrors = RegistryMirrors(mirrors.into_iter().collect());
    let images = Images::new(bench.engine.clone(), bench.host.clone()).through(mirrors);
    let logins = [&mirror, &registry].map(|of| of.pulls("own", Some(&of.password), PullPolicy::IfNotPresent).logins);
    let pulls = Pulls { project: "own".into(), logins: logins.concat(), policy: PullPolicy::IfNotPresent };
    mirror.push(SMALL, "app:1");
    registry.push(OTHER, "app:1");
    registry.push(OTHER, "unknown:1");
    let notes = std::sync::Mutex::new(Vec::new());
    let note = |text: &str| notes.lock().expect("notes").push(text.to_owned());

    let small = bench.engine.image(SMALL).await.expect("asked").expect("it is here");
    let name = registry.name("app:1");
    let near = images.present(&wanted(&name), &pulls, &note).await.expect("from the mirror");
    assert_eq!(near.id, small.id, "the mirror's image, not the registry's");
    // What came from a mirror is found again, and built upon, though the engine does not know it by its own name.
    assert_eq!(images.present(&wanted(&name), &pulls, &note).await.expect("it is here").id, near.id);
    assert_eq!(notes.lock().expect("notes").len(), 1, "{notes:?}");

    let far = images.present(&wanted(&registry.name("unknown:1")), &pulls, &note).await.expect("from its registry");
    assert_ne!(far.id, near.id);
    assert!(notes.lock().expect("notes").iter().any(|text| text.contains("its own registry is asked")), "{notes:?}");

    let unreachable = "gone.example.com/team/app:1";
    let recipe = Recipe::new(format!("FROM {unreachable}\nLABEL made=here\n"), Vec::new(), String::new());
    let request =
        ImageRequest { recipe: &recipe, base: wanted(unreachable), pulls: &pulls, created: Timestamp(1), note: &note };
    let built = images.ensure(&request).await.expect("built on what the mirror gave");
    assert_eq!(built.labels.get("made").map(String::as_str), Some("here"));
    let other = Pulls { project: "other".into(), ..Pulls::default() };
    check_refused(get(&images, &name, &other).await, &mirror.password);
}
