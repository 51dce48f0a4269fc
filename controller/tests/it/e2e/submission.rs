//! What a person gets wrong is told at once, and nothing is created or lost.

use devfleet_proto::v1;
use tonic::{Code, Status};

use super::scene::{CHECK, FIX, SMALL, ci, project, usual_project};
use crate::support::site::{Site, failure_reason};

fn request(task: &str) -> v1::SubmitRequest {
    v1::SubmitRequest { project: "sample".into(), task: task.into(), ..Default::default() }
}

fn check(refused: Result<v1::Job, Status>, code: Code, says: &str) {
    let status = refused.expect_err("it is refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(says), "{:?} does not say {says:?}", status.message());
}

/// A project's name and files, the class of its job's failure, and what the message must say.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str, &'static str);

async fn jobs(site: &Site) -> usize {
    let list = site.connection().jobs().list_jobs(v1::ListJobsRequest::default()).await;
    list.expect("a list").into_inner().jobs.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_with_what_to_do_and_nothing_is_stored() {
    let site = Site::usual().await;
    usual_project(&site, &ci(""), FIX, SMALL).await;
    let submit = async |request: v1::SubmitRequest| site.try_submit(request).await;
    check(submit(v1::SubmitRequest { project: "other".into(), ..request("x") }).await, Code::NotFound, "known: sample");
    check(
        submit(v1::SubmitRequest { base: "no-such-branch".into(), ..request("x") }).await,
        Code::NotFound,
        "no-such-branch",
    );
    check(submit(v1::SubmitRequest { base: "--upload-pack=x".into(), ..request("x") }).await, Code::NotFound, "branch");
    check(
        submit(v1::SubmitRequest { agent: "robot".into(), ..request("x") }).await,
        Code::InvalidArgument,
        "it has: worker",
    );
    check(submit(request(" \n")).await, Code::InvalidArgument, "--task-file");
    check(submit(request(&"x".repeat((64 << 10) + 1))).await, Code::InvalidArgument, "65537 bytes");
    check(
        submit(v1::SubmitRequest { idempotency_key: "a b".into(), ..request("x") }).await,
        Code::InvalidArgument,
        "printable",
    );
    check(submit(v1::SubmitRequest { hold_seconds: 9_999_999, ..request("x") }).await, Code::InvalidArgument, "7 days");
    assert_eq!(jobs(&site).await, 0);
    for job in ["", "zzzz", "00000000"] {
        let status = site.connection().jobs().get_job(v1::GetJobRequest { job: job.into() }).await.expect_err("none");
        assert!(matches!(status.code(), Code::NotFound | Code::InvalidArgument), "{status:?}");
    }
    let status = site.try_apply("name = \"x\"\nrepositroy = \"/r\"\n").await.expect_err("a slip");
    assert!(status.message().contains("repositroy"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_idempotency_key_makes_one_job() {
    let site = Site::usual().await;
    usual_project(&site, &ci(""), FIX, SMALL).await;
    let with_key = |task: &str| v1::SubmitRequest { idempotency_key: "key-1".into(), ..request(task) };
    let (one, two) = tokio::join!(site.try_submit(with_key("same")), site.try_submit(with_key("same")));
    let (one, two) = (one.expect("accepted"), two.expect("accepted"));
    assert_eq!(one.id, two.id);
    assert_eq!(jobs(&site).await, 1);
    check(site.try_submit(with_key("other")).await, Code::AlreadyExists, "new key");
    assert_eq!(site.ended(&one.id).await.outcome, "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn approval_binds_the_digest_that_was_read() {
    let site = Site::usual().await;
    let repository =
        site.repository("gated", &[(".gitlab-ci.yml", &ci("")), ("check.sh", CHECK), ("answer.txt", "41\n")]);
    site.apply(&format!("{}{SMALL}", project("gated", &repository.path.display().to_string(), FIX, ""))).await;
    let job = site.submit("gated", "Make it right").await;
    let job = site.until(&job.id, "a proposal", |job| job.phase == "awaiting-approval").await;
    let approve = async |digest: &str| {
        let request = v1::ApproveRequest { job: job.id[..8].to_owned(), digest: digest.to_owned() };
        site.connection().jobs().approve(request).await.map(tonic::Response::into_inner)
    };
    let stale = format!("sha256:{}", "0".repeat(64));
    check(approve(&stale).await, Code::FailedPrecondition, &job.proposal_digest);
    check(approve("nonsense").await, Code::InvalidArgument, "digest");
    assert_eq!(site.job(&job.id).await.phase, "awaiting-approval");
    assert!(site.leftovers().is_empty());
    approve(&job.proposal_digest).await.expect("it is approved");
    check(approve(&job.proposal_digest).await, Code::FailedPrecondition, "awaits approval");
    assert_eq!(site.ended(&job.id).await.outcome, "succeeded");
    let refused = site.connection().jobs().remove_project(v1::RemoveProjectRequest { name: "gated".into() }).await;
    refused.expect("all its jobs have ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_job_ends_with_the_reason_and_nothing_is_provisioned() {
    let site = Site::usual().await;
    let repository = site.repository("gated", &[(".gitlab-ci.yml", &ci(""))]);
    site.apply(&project("gated", &repository.path.display().to_string(), FIX, "")).await;
    let job = site.submit("gated", "x").await;
    site.until(&job.id, "a proposal", |job| job.phase == "awaiting-approval").await;
    let request = v1::RejectRequest { job: job.id.clone(), reason: "too broad".into() };
    let job = site.connection().jobs().reject(request).await.expect("rejected").into_inner();
    assert_eq!((job.outcome.as_str(), job.attempts.len()), ("rejected", 0));
    assert!(job.failure.expect("the reason").message.contains("too broad"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_from_which_no_environment_follows_ends_the_job_with_what_is_missing() {
    let site = Site::usual().await;
    let cases: [Case; 4] = [
        ("no-file", &[("README", "x")], "forge", ".gitlab-ci.yml"),
        ("broken", &[(".gitlab-ci.yml", "test:\n  script: [")], "derivation", "line 2"),
        ("hidden", &[(".gitlab-ci.yml", ".test:\n  image: x\n  script: [make]\n")], "derivation", "job"),
        (
            "unresolved",
            &[(".gitlab-ci.yml", "test:\n  image: \"registry.example.com/$MISSING/\"\n  script: [make test]\n")],
            "derivation",
            "image",
        ),
    ];
    for (name, files, reason, says) in cases {
        let repository = site.repository(name, files);
        site.apply(&project(name, &repository.path.display().to_string(), FIX, "")).await;
        let job = site.submit(name, "x").await;
        let job = site.ended(&job.id).await;
        assert_eq!((job.outcome.as_str(), failure_reason(&job).as_str()), ("failed", reason), "{name}: {job:#?}");
        let message = job.failure.expect("a failure").message;
        assert!(message.contains(says), "{name}: {message:?} does not say {says:?}");
    }
    assert!(site.leftovers().is_empty());
}
