//! The container engine is not there, too old, goes away in the middle, or has no room: the host says so, jobs wait and
//! say why, and all goes on by itself once the trouble is over.

use std::path::{Path, PathBuf};

use devfleet_proto::v1;
use devfleet_shared::units::ByteSize;

use super::scene::{CHECK, FIX, PYTHON, SMALL, ci, project, usual_project};
use crate::support::engine::{EngineSwitch, OldEngine};
use crate::support::site::{Settings, Site, docker, failure_reason, wait_for};

async fn site(engine: String) -> Site {
    Site::start(Settings { engine: Some(engine), ..Settings::default() }).await
}

fn problems(host: &v1::Host) -> String {
    host.inventory.as_ref().map(|inventory| inventory.problems.join("\n")).unwrap_or_default()
}

/// Waits until a job says that it waits, with these words in the reasons.
async fn waits(site: &Site, job: &v1::Job, words: &str) {
    site.until(&job.id, words, |job| job.phase == "queued" && job.waiting.iter().any(|reason| reason.contains(words)))
        .await;
}

/// The daemon never ended in between.
fn one_start(site: &Site) {
    let log = site.host_log();
    assert_eq!(log.matches("host daemon starts").count(), 1, "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_running_docker_says_so_and_takes_jobs_once_it_runs() {
    let mut switch = EngineSwitch::new();
    let site = site(switch.address()).await;
    let host = site.until_host("its problem", |host| host.connected && !problems(host).is_empty()).await;
    assert!(problems(&host).contains("is Docker running"), "{host:#?}");
    usual_project(&site, &ci(""), FIX, SMALL).await;
    let job = site.submit("sample", "waits").await;
    waits(&site, &job, "is Docker running").await;
    switch.on();
    let job = site.ended(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}");
    assert_eq!(job.attempts.len(), 1, "nothing was tried without an engine");
    let host = site.until_host("the end of its problem", |host| problems(host).is_empty()).await;
    let total = host.inventory.and_then(|inventory| inventory.total).expect("what it has");
    let disk = rustix::fs::statvfs(docker(&["info", "--format", "{{.DockerRootDir}}"]).trim()).expect("Docker's disk");
    let size = (disk.f_blocks - disk.f_bfree + disk.f_bavail) * disk.f_frsize;
    assert!(total.disk_bytes <= size && total.disk_bytes > size / 2, "the disk is Docker's: {total:?} of {size}");
    one_start(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_docker_is_too_old_says_what_is_needed() {
    let old = OldEngine::start();
    let site = site(old.address()).await;
    let host = site.until_host("its problem", |host| host.connected && !problems(host).is_empty()).await;
    for words in ["19.03.15", "1.40", "1.41 is needed", "Docker 20.10"] {
        assert!(problems(&host).contains(words), "{words:?} is missing in {host:#?}");
    }
    usual_project(&site, &ci(""), FIX, SMALL).await;
    let job = site.submit("sample", "waits").await;
    waits(&site, &job, "too old").await;
    site.cancel(&job.id).await.expect("it can be cancelled");
    assert_eq!(site.ended(&job.id).await.outcome, "cancelled");
    one_start(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_engine_fails_job_after_job_gets_no_more_until_one_goes_well() {
    let mut switch = EngineSwitch::new();
    switch.on();
    let tables = "[quarantine]\nafter = 2\npause = \"10s\"\n".to_owned();
    let site = Site::start(Settings { engine: Some(switch.address()), tables, ..Settings::default() }).await;
    let more = format!("max_attempts = 1\n{SMALL}");
    usual_project(&site, &ci(""), FIX, &more).await;
    switch.refuse(true);
    for task in ["fails with its host", "fails too"] {
        let failing = site.submit("sample", task).await;
        let failed = site.ended(&failing.id).await;
        assert_eq!((failed.outcome.as_str(), failure_reason(&failed).as_str()), ("failed", "engine"), "{failed:#?}");
        let message = failed.failure.map(|failure| failure.message).unwrap_or_default();
        assert!(message.contains("the shim cannot be started"), "{message}");
    }

    let host = site.until_host("its quarantine", |host| !host.quarantine.is_empty()).await;
    assert!(host.quarantine.contains("2 attempts failed through its own fault (engine)"), "{host:#?}");
    let next = site.submit("sample", "waits for the host").await;
    waits(&site, &next, "quarantine").await;
    switch.refuse(false);
    let job = site.ended(&next.id).await;
    assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    site.until_host("the end of it", |host| host.quarantine.is_empty()).await;
    one_start(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_goes_away_while_the_agent_works_and_the_job_goes_on() {
    let mut switch = EngineSwitch::new();
    switch.on();
    let site = site(switch.address()).await;
    let agent = "echo run >> runs.txt\ni=0\nwhile [ $i -lt 30 ]; do i=$((i+1)); echo \"line $i\"; sleep 0.1; done\necho 42 > answer.txt\n";
    let ci = format!(
        "image: {PYTHON}\nservices:\n  - name: devfleet-test/redis:7\n    alias: cache\ntest:\n  script: [sh check.sh]\n"
    );
    let repository = usual_project(&site, &ci, agent, SMALL).await;
    let job = site.submit("sample", "goes on").await;
    let job = site.in_phase(&job.id, "agent").await;
    let agent = format!("devbox-{}-agent", job.attempts[0].id);
    let state = || docker(&["inspect", "--format", "{{.State.Status}}", &agent]);
    let containers =
        || docker(&["ps", "--all", "--format", "{{.Names}}", "--filter", &format!("name={}", job.attempts[0].id)]);
    wait_for("the agent's first lines", || docker(&["logs", &agent]).contains("line 3\n").then_some(())).await;
    let before = containers();
    switch.off().await;
    // The agent ends while nobody sees it.
    wait_for("the agent's end", || (state().trim() == "exited").then_some(())).await;
    wait_for("that the host sees it", || site.host_log().contains("broke off a container's output").then_some(()))
        .await;
    assert_eq!(containers(), before, "nothing is made meanwhile");
    switch.on();
    let job = site.ended(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}\n{}", site.program_logs());
    assert_eq!(job.attempts.len(), 1);
    let branch = job.merge_request.expect("a merge request").source_branch;
    assert_eq!(repository.file(&branch, "runs.txt"), "run\n", "the agent ran once");
    let log = site.whole_log(&job.id).await;
    let lines: Vec<_> = log.lines().filter(|line| line.starts_with("line ")).map(str::to_owned).collect();
    let expected: Vec<_> = (1..=30).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, expected, "every line once and in order");
    assert_eq!(site.leftovers(), Vec::<String>::new());
    one_start(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_wants_more_disk_than_there_is_waits_and_says_so() {
    let site = Site::usual().await;
    usual_project(&site, &ci(""), FIX, "[limits]\nmemory = \"256MiB\"\ndisk = \"900TiB\"\n").await;
    let job = site.submit("sample", "waits").await;
    waits(&site, &job, "host host-1: too little disk").await;
    usual_project_again(&site).await;
    site.cancel(&job.id).await.expect("it can be cancelled");
    site.ended(&job.id).await;
    assert_eq!(site.leftovers(), Vec::<String>::new());
}

/// Another job of a modest project is not kept waiting by the immodest one.
async fn usual_project_again(site: &Site) {
    let repository =
        site.repository("modest", &[(".gitlab-ci.yml", &ci("")), ("check.sh", CHECK), ("answer.txt", "41\n")]);
    let text = project("modest", &repository.path.display().to_string(), FIX, "approval = \"auto\"");
    site.apply(&format!("{text}{SMALL}")).await;
    let job = site.submit("modest", "runs").await;
    assert_eq!(site.ended(&job.id).await.outcome, "succeeded");
}

/// A small disk of its own, in memory.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts one. `None`, with the reason printed: this user may not mount.
    fn mount(size: ByteSize) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={}", size.0), "tmpfs"]).arg(dir.path());
        if command.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        #[expect(clippy::print_stderr, reason = "a test that is left out says why")]
        {
            eprintln!("SKIPPED: this user may not mount a small disk");
        }
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes until nothing more fits; returns the file.
    fn fill(&self) -> PathBuf {
        use std::io::Write as _;
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).expect("a file");
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("--lazy").arg(self.path()).output());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_ends_the_job_and_the_next_try_waits_for_room() {
    let Some(disk) = SmallDisk::mount(ByteSize(8 << 20)) else { return };
    let settings = Settings { host_dir: Some(disk.path().join("host")), ..Settings::default() };
    let site = Site::start(settings).await;
    let agent = "echo started\nsleep 2\nhead -c 300000 /dev/zero | tr '\\0' 'x' | fold -w 100\necho 42 > answer.txt\n";
    let repository = usual_project(&site, &ci(""), agent, &format!("max_attempts = 2\n{SMALL}")).await;
    let job = site.submit("sample", "fills the disk").await;
    let job = site.in_phase(&job.id, "agent").await;
    let filler = disk.fill();
    // The first attempt ends for lack of room, and the second is not begun before there is some.
    waits(&site, &job, "the data disk").await;
    let first = &site.job(&job.id).await.attempts[0];
    assert!(first.ended_unix_ms > 0, "{first:#?}");
    assert_eq!(site.leftovers(), Vec::<String>::new());
    assert!(repository.work_branches().is_empty());
    std::fs::remove_file(filler).expect("room again");
    let job = site.ended(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}\n{}", failure_reason(&job));
    assert_eq!(job.attempts.len(), 2);
    assert_eq!(repository.work_branches().len(), 1);
    assert_eq!(site.leftovers(), Vec::<String>::new());
    one_start(&site);
}
