//! What can go wrong with an environment or an agent: each ends the job with a reason, a message that says what to do,
//! and nothing left behind.

use devfleet_proto::v1;

use super::scene::{CHECK, FIX, PYTHON, SMALL, ci, project, usual_project};
use crate::support::site::{Site, failure_reason};

/// Runs a job of a project with this CI file and agent to its end.
async fn run(site: &Site, name: &str, ci: &str, agent: &str, limits: &str) -> v1::Job {
    let repository = site.repository(name, &[(".gitlab-ci.yml", ci), ("check.sh", CHECK), ("answer.txt", "41\n")]);
    let head = project(name, &repository.path.display().to_string(), agent, "approval = \"auto\"");
    site.apply(&format!("{head}{SMALL}{limits}")).await;
    let job = site.submit(name, "Make the answer right").await;
    let job = site.ended(&job.id).await;
    assert_eq!(site.leftovers(), Vec::<String>::new(), "{name}");
    assert!(job.outcome == "succeeded" || repository.work_branches().is_empty(), "{name}: nothing is pushed");
    job
}

fn check(job: &v1::Job, reason: &str, says: &[&str]) {
    assert_eq!((job.outcome.as_str(), failure_reason(job).as_str()), ("failed", reason), "{job:#?}");
    let message = &job.failure.as_ref().expect("a failure").message;
    for says in says {
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_had_or_used_are_told_apart() {
    let site = Site::usual().await;
    let image = |image: &str| format!("image: {image}\ntest:\n  script: [sh check.sh]\n");
    let job = run(&site, "missing", &image("127.0.0.1:1/no/such:1"), FIX, "").await;
    check(&job, "image-pull", &["127.0.0.1:1/no/such:1"]);
    let job = run(&site, "shell-less", &image("devfleet-test/noshell:1"), FIX, "").await;
    check(&job, "image-unusable", &["shell"]);
    let job = run(&site, "no-manager", &image("devfleet-test/nopm:1"), FIX, "").await;
    check(&job, "image-unusable", &["git", "package manager"]);
    let broken = "image: devfleet-test/python:3.11\ntest:\n  before_script: [apt-get install -y no-such-package-anywhere]\n  script: [sh check.sh]\n";
    let job = run(&site, "no-package", broken, FIX, "").await;
    check(&job, "image-build", &["no-such-package-anywhere"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_never_gets_ready_is_reported_with_its_log() {
    let site = Site::usual().await;
    let ci = format!("image: {PYTHON}\nservices: [devfleet-test/never-ready:1]\ntest:\n  script: [sh check.sh]\n");
    let job = run(&site, "never", &ci, FIX, "service_ready = \"3s\"\n").await;
    check(&job, "service-not-ready", &["never-ready", "waiting for a disk that never comes"]);
    let ci = format!("image: {PYTHON}\nservices: [devfleet-test/postgres:15]\ntest:\n  script: [sh check.sh]\n");
    let job = run(&site, "exits", &ci, FIX, "").await;
    check(&job, "service-not-ready", &["postgres", "POSTGRES_PASSWORD"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_fails_changes_nothing_or_does_not_pass_the_check() {
    let site = Site::usual().await;
    let job = run(&site, "fails", &ci(""), "echo about to fail\nexit 3\n", "").await;
    check(&job, "agent", &["3"]);
    let job = run(&site, "idle", &ci(""), "echo nothing to do\n", "").await;
    assert_eq!(job.outcome, "no-change", "{job:#?}");
    let job = run(&site, "wrong", &ci(""), "echo 43 > answer.txt\n", "").await;
    check(&job, "verify", &[]);
    let diff = site.diff(&job.id).await.expect("what was tried can be read").text;
    assert!(diff.contains("+43"), "{diff}");
    assert!(job.merge_request.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ignores_the_end_of_its_time_is_killed() {
    let site = Site::usual().await;
    let job = run(&site, "stubborn", &ci(""), "trap '' TERM\nwhile true; do sleep 1; done\n", "agent = \"3s\"\n").await;
    check(&job, "timeout", &["agent", "3"]);
    let job = run(&site, "late", &ci(""), "sleep 600\n", "attempt = \"8s\"\n").await;
    check(&job, "timeout", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_cut_with_a_mark_and_its_end_stays_visible() {
    let site = Site::usual().await;
    let agent = "echo 42 > answer.txt\nhead -c 100000000 /dev/zero | tr '\\0' 'x' | fold -w 100\necho the very end\n";
    let job = run(&site, "flood", &ci(""), agent, "log = \"1MiB\"\n").await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}");
    site.whole_log(&job.id).await;
    let records = site.log_records(&job.id).await;
    let stored: usize = records.iter().map(|record| record.data.len()).sum();
    assert!(stored < 3 << 20, "{stored} bytes are kept");
    assert!(records.iter().any(|record| record.channel == v1::log_record::Channel::Cut as i32), "the cut is marked");
    assert!(site.log(&job.id).await.contains("the very end"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_and_endless_lines_survive() {
    let site = Site::usual().await;
    let agent =
        "echo 42 > answer.txt\nprintf 'raw \\377\\376\\000 bytes\\n'\nhead -c 300000 /dev/zero | tr '\\0' 'y'\necho\n";
    let job = run(&site, "binary", &ci(""), agent, "").await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}");
    site.whole_log(&job.id).await;
    let bytes: Vec<u8> = site
        .log_records(&job.id)
        .await
        .into_iter()
        .filter(|record| record.source == "agent")
        .flat_map(|record| record.data)
        .collect();
    let raw = b"raw \xff\xfe\x00 bytes\n";
    assert!(bytes.windows(raw.len()).any(|window| window == raw));
    assert_eq!(
        bytes.iter().filter(|byte| **byte == b'y').count(),
        300_000 + b"bytes".iter().filter(|byte| **byte == b'y').count()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_over_its_size_is_refused() {
    let site = Site::usual().await;
    let agent = "echo 42 > answer.txt\nhead -c 3000000 /dev/urandom > blob\n";
    let job = run(&site, "large", &ci(""), agent, "bundle = \"1MiB\"\n").await;
    check(&job, "collect", &["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_is_kept_stands_until_it_is_released() {
    let site = Site::usual().await;
    usual_project(&site, &ci(""), FIX, SMALL).await;
    let request =
        v1::SubmitRequest { project: "sample".into(), task: "x".into(), hold_seconds: 3600, ..Default::default() };
    let job = site.try_submit(request).await.expect("accepted");
    let job = site
        .until(&job.id, "a held environment", |job| {
            job.phase == "ended" && job.attempts.iter().any(|attempt| attempt.held_until_unix_ms > 0)
        })
        .await;
    assert_eq!(job.outcome, "succeeded");
    let standing = site.leftovers();
    assert!(standing.iter().any(|name| name.starts_with("volume")), "{standing:?}");
    site.cancel(&job.id).await.expect("it is released");
    site.ended(&job.id).await;
    assert_eq!(site.leftovers(), Vec::<String>::new());
    assert_eq!(site.job(&job.id).await.outcome, "succeeded", "the outcome stays");
}
