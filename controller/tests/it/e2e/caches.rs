//! Dependency caches: a second job finds what the first one installed, and nothing that any agent wrote.

use std::path::PathBuf;

use super::scene::{CHECK, PYTHON, SMALL, project};
use crate::support::site::{Repository, Site, docker, wait_for};

/// Installs one package unless it is there, and shows what is there.
const CI: &str = "
cache:
  key: {files: [lock.txt]}
  paths: [vendor/]
test:
  before_script:
    - mkdir -p vendor; if [ -f vendor/package ]; then echo \"found $(cat vendor/package)\"; else cat lock.txt > vendor/package; echo installed; fi
    - echo \"there are $(ls vendor | tr '\\n' ' ')\"
  script: [sh check.sh]
";

/// Writes into the cache what no other job may see, and shows that it sees its own.
const AGENT: &str = "echo 42 > answer.txt; echo poison > vendor/package; echo x > vendor/canary-$DEVFLEET_ATTEMPT\n\
                     echo \"agent sees $(ls vendor | grep -c canary) canary\"\n";

struct Scene {
    site: Site,
    repository: Repository,
}

impl Scene {
    async fn start(setup: &str, agent: &str) -> Self {
        let site = Site::usual().await;
        let ci = format!("image: {PYTHON}\n{}", CI.replace("echo installed", setup));
        let files =
            [(".gitlab-ci.yml", ci.as_str()), ("check.sh", CHECK), ("answer.txt", "41\n"), ("lock.txt", "one\n")];
        let repository = site.repository("sample", &files);
        let path = repository.path.display().to_string();
        site.apply(&format!("{}{SMALL}", project("sample", &path, agent, "approval = \"auto\""))).await;
        Self { site, repository }
    }

    /// Runs a job to its end and returns what its `setup` said, the agent's part of it left out.
    async fn job(&self) -> String {
        let job = self.site.submit("sample", "Make the answer right").await;
        self.finished(&job.id).await
    }

    async fn finished(&self, id: &str) -> String {
        let job = self.site.ended(id).await;
        assert_eq!(job.outcome, "succeeded", "{job:#?}\n{}", self.site.program_logs());
        self.site.whole_log(id).await;
        assert_eq!(self.site.leftovers(), Vec::<String>::new());
        self.said(id, "setup").await
    }

    async fn said(&self, id: &str, source: &str) -> String {
        let records = self.site.log_records(id).await;
        let bytes: Vec<u8> =
            records.into_iter().filter(|record| record.source == source).flat_map(|record| record.data).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn place(&self, layer: &str) -> PathBuf {
        docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", layer]).trim().into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_job_finds_the_packages_of_the_first_and_nothing_that_an_agent_wrote() {
    let scene = Scene::start("echo installed", AGENT).await;
    let first = scene.job().await;
    assert!(first.contains("\ninstalled\n") && !first.contains("\nfound"), "{first}");
    let layers = scene.site.layers();
    assert_eq!(layers.len(), 1, "{layers:?}");

    // Two at once, each with a view of its own.
    let one = scene.site.submit("sample", "Make the answer right").await;
    let two = scene.site.submit("sample", "Make the answer right").await;
    for id in [&one.id, &two.id] {
        scene.site.ended(id).await;
    }
    for id in [&one.id, &two.id] {
        let setup = scene.finished(id).await;
        assert!(setup.contains("\nfound one\n") && setup.contains("\nthere are package \n"), "{setup}");
        let agent = scene.said(id, "agent").await;
        assert!(agent.contains("agent sees 1 canary"), "an attempt sees its own: {agent}");
    }
    assert_eq!(scene.site.layers(), layers, "what is kept is not kept again");
    assert_eq!(std::fs::read_to_string(scene.place(&layers[0]).join("package")).expect("the package"), "one\n");
    scene.site.until_host("its cache", |host| host.inventory.as_ref().is_some_and(|found| found.caches >= 1)).await;

    // Other lock files, other packages.
    scene.repository.commit(&[("lock.txt", "two\n")]);
    let setup = scene.job().await;
    assert!(setup.contains("\ninstalled\n"), "{setup}");
    assert_eq!(scene.site.layers().len(), 2);

    // What was changed behind our back is not used.
    for layer in scene.site.layers() {
        std::fs::write(scene.place(&layer).join("package"), "poison\n").expect("written");
    }
    let setup = scene.job().await;
    assert!(setup.contains("\ninstalled\n") && !setup.contains("poison"), "{setup}");
    assert!(scene.site.host_log().contains("a cache layer is set aside"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setup_that_fails_or_is_cancelled_leaves_no_cache() {
    let scene = Scene::start("exit 3", AGENT).await;
    let job = scene.site.submit("sample", "x").await;
    let job = scene.site.ended(&job.id).await;
    assert_eq!(job.outcome, "failed", "{job:#?}");
    assert_eq!((scene.site.layers(), scene.site.leftovers()), (Vec::new(), Vec::new()));

    let scene = Scene::start("sleep 600", AGENT).await;
    let job = scene.site.submit("sample", "x").await;
    scene.site.in_phase(&job.id, "setup").await;
    scene.site.cancel(&job.id).await.expect("it can be cancelled");
    assert_eq!(scene.site.ended(&job.id).await.outcome, "cancelled");
    assert_eq!((scene.site.layers(), scene.site.leftovers()), (Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_daemon_that_is_killed_on_the_way_seals_one_layer_and_leaves_nothing() {
    let mut scene = Scene::start("sleep 2; echo installed", &format!("{AGENT}sleep 2\n")).await;
    for (number, phase) in ["setup", "agent"].into_iter().enumerate() {
        scene.repository.commit(&[("lock.txt", &format!("lock {number}\n"))]);
        let job = scene.site.submit("sample", "Make the answer right").await;
        scene.site.in_phase(&job.id, phase).await;
        scene.site.kill_host().await;
        let setup = scene.finished(&job.id).await;
        assert!(setup.contains("\ninstalled\n"), "{phase}: {setup}");
        wait_for("one layer per lock file", || (scene.site.layers().len() == number + 1).then_some(())).await;
        let setup = scene.job().await;
        assert!(setup.contains(&format!("\nfound lock {number}\n")) && !setup.contains("canary"), "{phase}: {setup}");
    }
}
