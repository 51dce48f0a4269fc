//! A CI configuration that changes between approval and start, and CI variables on their way into a step.

use devfleet_proto::v1;

use super::gitlab::found_below;
use crate::support::gitlab::{GitLabStandIn, Scope, Standing};
use crate::support::site::{Settings, Site};

fn ci(word: &str) -> String {
    format!(
        "test:\n  image: devfleet-test/python:3.11\n  before_script: ['echo \"index: ${{INDEX_KEY:-absent}} {word}\"']\n  \
         script: ['echo \"checks: ${{CHECK_KEY:-absent}}\"', 'grep -q 42 answer.txt']\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_is_approved_anew_and_ci_variables_reach_the_steps_they_are_for() {
    let gitlab = GitLabStandIn::start().await;
    let app = gitlab.create_project("team/app", &[(".gitlab-ci.yml", &ci("old")), ("answer.txt", "41\n")]);
    let [index, check] = ["index", "check"].map(|name| format!("canary-{name}-{}", uuid::Uuid::new_v4()));
    gitlab.set_variable(&app, "INDEX_KEY", &index, &serde_json::json!({}));
    gitlab.set_variable(&app, "CHECK_KEY", &check, &serde_json::json!({}));
    let token = gitlab.token_of(Standing::Maintainer, Scope::Api);
    let variables = vec![("FORGE_TOKEN".to_owned(), token)];
    let site = Site::start(Settings { variables, ..Settings::default() }).await;
    site.apply(&format!(
        "name = \"app\"\n[forge]\nkind = \"gitlab\"\nurl = {:?}\nproject = \"team/app\"\ntoken = \"env://FORGE_TOKEN\"\n\
         [agents.worker]\nkind = \"script\"\ncommand = 'echo 42 > answer.txt; echo \"agent: ${{CHECK_KEY:-absent}}\"'\n\
         [ci_variables]\nINDEX_KEY = [\"setup\"]\nCHECK_KEY = [\"verify\"]\n\
         [limits]\nmemory = \"256MiB\"\ndisk = \"64MiB\"\n",
        gitlab.url()
    ))
    .await;

    let job = site.submit("app", "Make the answer right").await;
    let job = site.until(&job.id, "a proposal", |job| job.phase == "awaiting-approval").await;
    let tip = gitlab.commit(&app, "main", &[(".gitlab-ci.yml", &ci("new"))]);
    let former = job.proposal_digest.clone();
    site.approve(&job.id).await;
    let job = site.until(&job.id, "another proposal", |job| job.proposal_digest != former).await;
    assert_eq!((job.phase.as_str(), job.base_commit.as_str()), ("awaiting-approval", tip.as_str()));
    assert!(job.attempts.is_empty() && site.leftovers().is_empty(), "nothing was started");
    let request = v1::GetProposalDiffRequest { job: job.id.clone() };
    let diff = site.connection().jobs().get_proposal_diff(request).await.expect("a difference").into_inner();
    assert_eq!((diff.former_digest, diff.digest), (former, job.proposal_digest.clone()));
    let setup = diff.facts.iter().find(|change| change.fact == "setup").expect("it is told");
    assert!(setup.former.contains("old") && setup.now.contains("new"), "{setup:?}");

    site.approve(&job.id).await;
    let job = site.ended(&job.id).await;
    let log = site.whole_log(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}\n{log}");
    for line in ["index: [masked] new", "index: absent new", "agent: absent", "checks: [masked]"] {
        assert!(log.contains(line), "{line:?} is missing in:\n{log}");
    }
    let places = [&site.dir().display().to_string(), "/var/lib/docker/containers", "/run/docker"];
    for canary in [&index, &check] {
        assert_eq!(found_below(canary, &places), Vec::<String>::new(), "the secret is on disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ci_variable_that_is_gone_fails_the_job_with_its_name() {
    let gitlab = GitLabStandIn::start().await;
    let app = gitlab.create_project("team/app", &[(".gitlab-ci.yml", &ci("x")), ("answer.txt", "41\n")]);
    gitlab.set_variable(&app, "INDEX_KEY", "canary-that-goes-away", &serde_json::json!({}));
    let token = gitlab.token_of(Standing::Maintainer, Scope::Api);
    let site =
        Site::start(Settings { variables: vec![("FORGE_TOKEN".to_owned(), token)], ..Settings::default() }).await;
    site.apply(&format!(
        "name = \"app\"\n[forge]\nkind = \"gitlab\"\nurl = {:?}\nproject = \"team/app\"\ntoken = \"env://FORGE_TOKEN\"\n\
         [agents.worker]\nkind = \"script\"\ncommand = \"true\"\n[ci_variables]\nINDEX_KEY = [\"setup\"]\n\
         [limits]\nmemory = \"256MiB\"\ndisk = \"64MiB\"\n",
        gitlab.url()
    ))
    .await;
    let job = site.submit("app", "Make the answer right").await;
    let job = site.until(&job.id, "a proposal", |job| job.phase == "awaiting-approval").await;
    gitlab.remove_variable(&app, "INDEX_KEY");
    site.approve(&job.id).await;
    let job = site.ended(&job.id).await;
    let failure = job.failure.expect("it failed");
    assert!(failure.reason == "secret" && failure.message.contains("INDEX_KEY"), "{failure:?}");
    assert_eq!(site.leftovers(), Vec::<String>::new());
}
