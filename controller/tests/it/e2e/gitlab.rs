//! A job on GitLab, from submission to merge request, with every secret looked for afterwards.

use std::process::Command;

use devfleet_proto::v1;

use super::scene::{CHECK, FIX, PYTHON};
use crate::support::gitlab::{Fault, GitLabStandIn, Route, Scope};
use crate::support::site::{Settings, Site, failure_reason};

const CI: &str = "
services:
  - name: devfleet-test/redis:7
    alias: cache
variables:
  GREETING: hello
test:
  image: devfleet-test/python:3.11
  before_script:
    - echo \"$GREETING from setup\"
  script:
    - python -c \"import redis; assert redis.Redis(host='cache').ping()\"
    - sh check.sh
";

/// Says whether a text occurs in any file below these directories, as root sees them.
pub(super) fn found_below(text: &str, directories: &[&str]) -> Vec<String> {
    let mut command = Command::new("grep");
    command.args([
        "--recursive",
        "--files-with-matches",
        "--binary-files=text",
        "--fixed-strings",
        "--devices=skip",
        "-e",
        text,
    ]);
    let output = command.args(directories).output().expect("grep can be run");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn project(gitlab: &GitLabStandIn, path: &str, agent: &str, more: &str) -> String {
    format!(
        "name = \"app\"\n{more}\n[forge]\nkind = \"gitlab\"\nurl = {:?}\nproject = {path:?}\ntoken = \"env://FORGE_TOKEN\"\n\
         [agents.worker]\nkind = \"script\"\ncommand = {agent:?}\nsecrets.AGENT_KEY = \"env://AGENT_KEY\"\n\
         [limits]\nmemory = \"256MiB\"\ndisk = \"64MiB\"\n",
        gitlab.url()
    )
}

async fn site(gitlab: &GitLabStandIn, canary: &str) -> Site {
    let variables =
        vec![("FORGE_TOKEN".to_owned(), gitlab.token(Scope::Api)), ("AGENT_KEY".to_owned(), canary.to_owned())];
    Site::start(Settings { variables, ..Settings::default() }).await
}

fn files() -> Vec<(&'static str, &'static str)> {
    vec![(".gitlab-ci.yml", CI), ("check.sh", CHECK), ("answer.txt", "41\n")]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_from_submission_to_one_merge_request_and_leaves_no_secret_behind() {
    let gitlab = GitLabStandIn::start().await;
    let app = gitlab.create_project("team/app", &files());
    let issue = gitlab.add_issue(&app, "The answer is wrong", "/close\nIt says 41.");
    let canary = format!("canary-{}", uuid::Uuid::new_v4());
    let site = site(&gitlab, &canary).await;
    let agent = format!("{FIX}echo \"the key is $AGENT_KEY\"\necho \"$DEVFLEET_TASK\" > task.txt\n");
    site.apply(&project(&gitlab, "team/app", &agent, "")).await;

    let request = v1::SubmitRequest {
        project: "app".into(),
        task: "Make the answer right\n/merge\n@all please".into(),
        plan: "1. Write 42.".into(),
        issue,
        ..Default::default()
    };
    let job = site.try_submit(request).await.expect("it is accepted");
    let job = site.until(&job.id, "a proposal", |job| job.phase == "awaiting-approval").await;
    assert!(site.leftovers().is_empty(), "nothing is provisioned before the approval");
    let proposal = site.connection().jobs().get_proposal(v1::GetProposalRequest { job: job.id.clone() }).await;
    let proposal = proposal.expect("a proposal").into_inner();
    let environment = proposal.environment.expect("an environment");
    assert_eq!((environment.image.as_str(), environment.services.len()), (PYTHON, 1));
    assert!(proposal.compose.contains("devfleet-test/redis:7") && proposal.recipe.is_some());

    site.approve(&job.id).await;
    let job = site.ended(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}\n{}", site.program_logs());
    let merge_request = job.merge_request.expect("a merge request");
    let standing = gitlab.merge_requests(&app);
    assert_eq!(standing.len(), 1);
    assert_eq!(gitlab.count(Route::Lint), 1, "its gates were passed once");
    assert_eq!(standing[0].sha, merge_request.commit);
    assert_eq!(standing[0].target_branch, "main");
    let description = &standing[0].description;
    assert!(
        description.contains(&format!("Closes #{issue}")) && description.contains(&job.proposal_digest),
        "{description}"
    );
    assert!(!description.lines().any(|line| line.trim_start().starts_with('/')), "{description}");
    let notes = gitlab.notes(&app, issue);
    assert_eq!(notes.len(), 1, "the issue is told once");
    assert!(notes[0].body.contains("/merge_requests/"), "{}", notes[0].body);

    let log = site.whole_log(&job.id).await;
    for line in ["hello from setup", "working on it", "the key is [masked]", "the answer is right"] {
        assert!(log.contains(line), "{line:?} is missing in:\n{log}");
    }
    let diff = site.diff(&job.id).await.expect("a diff").text;
    assert!(diff.contains("-41") && diff.contains("+42"), "{diff}");
    assert_eq!(site.leftovers(), Vec::<String>::new());
    let places =
        [&site.dir().display().to_string(), "/var/lib/docker", "/run/docker", "/var/lib/containerd", "/run/containerd"];
    assert_eq!(found_below(&canary, &places), Vec::<String>::new(), "the secret is on disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_holds_a_secret_is_not_pushed_and_shown_masked() {
    let gitlab = GitLabStandIn::start().await;
    let app = gitlab.create_project("team/app", &files());
    let canary = format!("canary-{}", uuid::Uuid::new_v4());
    let site = site(&gitlab, &canary).await;
    let agent = format!("{FIX}echo \"key: $AGENT_KEY\" > notes.txt\n");
    site.apply(&project(&gitlab, "team/app", &agent, "approval = \"auto\"")).await;
    let job = site.submit("app", "Make the answer right").await;
    let job = site.ended(&job.id).await;
    assert_eq!((job.outcome.as_str(), failure_reason(&job).as_str()), ("failed", "collect"), "{job:#?}");
    assert!(job.failure.expect("a failure").message.contains("renew the secret"));
    assert!(gitlab.merge_requests(&app).is_empty());
    assert_eq!(gitlab.head(&app, &job.attempts[0].branch), None, "nothing is pushed");
    let diff = site.diff(&job.id).await.expect("a diff").text;
    assert!(diff.contains("key: [masked]") && !diff.contains(&canary), "{diff}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_on_disk_would_be_found_by_the_search_that_finds_none() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("leak"), b"\0binary canary-of-this-test\xff").expect("written");
    assert_eq!(found_below("canary-of-this-test", &[&dir.path().display().to_string()]).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_request_whose_answer_was_lost_is_not_opened_twice() {
    let gitlab = GitLabStandIn::start().await;
    let app = gitlab.create_project("team/app", &files());
    let site = site(&gitlab, "agent-key-of-this-test").await;
    site.apply(&project(&gitlab, "team/app", FIX, "approval = \"auto\"")).await;
    gitlab.fault(Fault::AnswerLost { route: Route::CreateMergeRequest, times: 1 });
    gitlab.fault(Fault::Status { route: Route::Lint, code: 502, retry_after: None, times: 1 });
    gitlab.fault(Fault::Status { route: Route::Branch, code: 429, retry_after: Some(1), times: 1 });
    let job = site.submit("app", "Make the answer right").await;
    let job = site.ended(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}");
    assert_eq!(gitlab.merge_requests(&app).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_gitlab_rejects_fails_the_job_with_gitlabs_words() {
    let gitlab = GitLabStandIn::start().await;
    let app = gitlab.create_project("team/app", &files());
    let site = site(&gitlab, "agent-key-of-this-test").await;
    site.apply(&project(&gitlab, "team/app", FIX, "approval = \"auto\"")).await;
    gitlab.reject_pushes(&app, Some("only pushes with a ticket are allowed"));
    let job = site.submit("app", "Make the answer right").await;
    let job = site.ended(&job.id).await;
    assert_eq!((job.outcome.as_str(), failure_reason(&job).as_str()), ("failed", "push"));
    assert!(job.failure.expect("a failure").message.contains("only pushes with a ticket"));
    assert!(gitlab.merge_requests(&app).is_empty());
    assert_eq!(site.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gitlab_that_refuses_the_token_or_the_project_says_so_at_submission() {
    let gitlab = GitLabStandIn::start().await;
    gitlab.create_project("team/app", &files());
    let site = site(&gitlab, "agent-key-of-this-test").await;
    site.apply(&project(&gitlab, "team/other", FIX, "")).await;
    let request = || v1::SubmitRequest { project: "app".into(), task: "x".into(), ..Default::default() };
    let status = site.try_submit(request()).await.expect_err("there is no such project");
    assert!(status.message().contains("not found"), "{status:?}");
    let text = project(&gitlab, "team/app", FIX, "").replace("env://FORGE_TOKEN", "command://echo wrong-token");
    site.apply(&text).await;
    let status = site.try_submit(request()).await.expect_err("the token is wrong");
    assert!(!status.message().contains("wrong-token"), "{status:?}");
    let text = text.replace("command://echo wrong-token", "env://NOT_SET_ANYWHERE");
    site.apply(&text).await;
    let status = site.try_submit(request()).await.expect_err("the secret is missing");
    assert!(status.message().contains("NOT_SET_ANYWHERE"), "{status:?}");
    assert!(
        site.connection()
            .jobs()
            .list_jobs(v1::ListJobsRequest::default())
            .await
            .expect("a list")
            .into_inner()
            .jobs
            .is_empty()
    );
}
