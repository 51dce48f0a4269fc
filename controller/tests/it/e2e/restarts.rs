//! Both programs are killed in each phase of a job: the job goes on, nothing runs twice, no line of its log is lost.

use super::scene::{CHECK, PYTHON, SMALL, ci, project};
use crate::support::site::{Repository, Site, docker, wait_for};

/// How many lines the agent of these scenes writes.
const LINES: usize = 40;

async fn slow_project(site: &Site, name: &str) -> Repository {
    let ci = format!(
        "image: {PYTHON}\nservices:\n  - name: devfleet-test/redis:7\n    alias: cache\ntest:\n  before_script:\n    - sleep 2\n  script:\n    - sleep 2\n    - sh check.sh\n"
    );
    let agent = format!(
        "echo run >> runs.txt\ni=0\nwhile [ $i -lt {LINES} ]; do i=$((i+1)); echo \"line $i\"; sleep 0.1; done\necho 42 > answer.txt\n"
    );
    let repository = site.repository(name, &[(".gitlab-ci.yml", &ci), ("check.sh", CHECK), ("answer.txt", "41\n")]);
    let path = repository.path.display().to_string();
    site.apply(&format!("{}{SMALL}", project(name, &path, &agent, "approval = \"auto\""))).await;
    repository
}

/// What must hold however often something was killed.
async fn check(site: &Site, repository: &Repository, id: &str, phase: &str) {
    let job = site.ended(id).await;
    assert_eq!(job.outcome, "succeeded", "killed in {phase}: {job:#?}\n{}", site.program_logs());
    assert_eq!(job.attempts.len(), 1, "killed in {phase}: no attempt is charged");
    let branch = job.merge_request.expect("a merge request").source_branch;
    assert_eq!(repository.work_branches(), std::slice::from_ref(&branch));
    assert_eq!(repository.file(&branch, "runs.txt"), "run\n", "killed in {phase}: the agent ran once");
    let log = site.whole_log(id).await;
    let lines: Vec<_> = log.lines().filter(|line| line.starts_with("line ")).map(str::to_owned).collect();
    let expected: Vec<_> = (1..=LINES).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, expected, "killed in {phase}: every line once and in order");
    assert_eq!(site.leftovers(), Vec::<String>::new(), "killed in {phase}");
}

const PHASES: [&str; 6] = ["preparing", "checkout", "setup", "agent", "verify", "collect"];

#[tokio::test(flavor = "multi_thread")]
async fn the_host_daemon_is_killed_in_each_phase() {
    let mut site = Site::usual().await;
    let repositories = projects(&site).await;
    for (phase, repository) in PHASES.iter().zip(&repositories) {
        let job = site.submit(phase, "goes on").await;
        reached(&site, &job.id, phase).await;
        site.kill_host().await;
        check(&site, repository, &job.id, phase).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_is_killed_in_each_phase() {
    let mut site = Site::usual().await;
    let repositories = projects(&site).await;
    for (phase, repository) in PHASES.iter().zip(&repositories) {
        let job = site.submit(phase, "goes on").await;
        reached(&site, &job.id, phase).await;
        site.kill_controller().await;
        check(&site, repository, &job.id, phase).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_daemon_that_stands_still_cannot_freeze_is_frozen_by_its_watchdog_and_goes_on_with_it() {
    let site = Site::usual().await;
    let agent = "echo run >> runs.txt\nwhile [ ! -e /tmp/go ]; do sleep 0.2; done\necho 42 > answer.txt\n";
    let repository =
        site.repository("still", &[(".gitlab-ci.yml", &ci("")), ("check.sh", CHECK), ("answer.txt", "41\n")]);
    let path = repository.path.display().to_string();
    site.apply(&format!("{}{SMALL}", project("still", &path, agent, "approval = \"auto\""))).await;
    let job = site.submit("still", "goes on").await;
    let running = site.in_phase(&job.id, "agent").await;
    let agent = format!("devbox-{}-agent", running.attempts[0].id);
    let state = |of: &str| {
        let asked = std::process::Command::new("docker").args(["inspect", "--format", of, &agent]).output();
        String::from_utf8_lossy(&asked.expect("docker can be run").stdout).trim().to_owned()
    };
    wait_for("the agent runs", || (state("{{.State.Running}}") == "true").then_some(())).await;
    site.signal_host("STOP");
    wait_for("the agent is paused", || (state("{{.State.Paused}}") == "true").then_some(())).await;
    wait_for("it is in no network", || (state("{{len .NetworkSettings.Networks}}") == "0").then_some(())).await;
    site.signal_host("CONT");
    wait_for("it goes on", || (state("{{.State.Paused}}") == "false").then_some(())).await;
    docker(&["exec", &agent, "touch", "/tmp/go"]);
    let job = site.ended(&job.id).await;
    assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}\n{}", site.program_logs());
    let branch = job.merge_request.expect("a merge request").source_branch;
    assert_eq!(repository.file(&branch, "runs.txt"), "run\n", "the agent ran once");
    assert_eq!(site.leftovers(), Vec::<String>::new());
}

async fn projects(site: &Site) -> Vec<Repository> {
    let mut repositories = Vec::new();
    for phase in PHASES {
        repositories.push(slow_project(site, phase).await);
    }
    repositories
}

/// Waits until the attempt is in this phase or already past it: some phases are short.
async fn reached(site: &Site, id: &str, phase: &str) {
    let rank = |name: &str| PHASES.iter().position(|known| *known == name).unwrap_or(PHASES.len());
    site.until(id, phase, |job| {
        !job.attempts.is_empty() && {
            let now = crate::support::site::attempt_phase(job);
            now != "assigned" && rank(&now) >= rank(phase)
        }
    })
    .await;
}
