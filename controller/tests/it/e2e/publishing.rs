//! The last steps of a job, when something goes wrong in them: one branch and one merge request, or clear words.

use devfleet_proto::v1;

use super::scene::{CHECK, FIX, SMALL, ci};
use crate::support::gitlab::{Fault, GitLabStandIn, ProjectHandle, Route, Scope};
use crate::support::site::{Settings, Site, failure_reason, wait_for};

/// A devfleet with one project on a GitLab.
struct Scene {
    gitlab: GitLabStandIn,
    app: ProjectHandle,
    site: Site,
}

impl Scene {
    async fn start() -> Self {
        let gitlab = GitLabStandIn::start().await;
        let ci = ci("");
        let app =
            gitlab.create_project("team/app", &[(".gitlab-ci.yml", &ci), ("check.sh", CHECK), ("answer.txt", "41\n")]);
        let variables = vec![("FORGE_TOKEN".to_owned(), gitlab.token(Scope::Api))];
        let site = Site::start(Settings { variables, ..Settings::default() }).await;
        let text = format!(
            "name = \"app\"\napproval = \"auto\"\n[forge]\nkind = \"gitlab\"\nurl = {:?}\nproject = \"team/app\"\ntoken = \"env://FORGE_TOKEN\"\n\
             [agents.worker]\nkind = \"script\"\ncommand = {FIX:?}\n{SMALL}",
            gitlab.url()
        );
        site.apply(&text).await;
        Self { gitlab, app, site }
    }

    /// Brings a job to where its push is under way and held up; returns it.
    async fn held_push(&self) -> v1::Job {
        self.gitlab.hold_pushes(&self.app, true);
        let job = self.site.submit("app", "Make the answer right").await;
        wait_for("the push", || self.gitlab.push_waits(&self.app).then_some(())).await;
        self.site.in_phase(&job.id, "publishing").await
    }

    /// Lists the branches that devfleet pushed.
    fn branches(&self) -> Vec<String> {
        let refs = ["for-each-ref", "--format=%(refname:short)", "refs/heads/devfleet/"];
        let output = std::process::Command::new("git").arg("--git-dir").arg(&self.app.git_dir).args(refs).output();
        String::from_utf8_lossy(&output.expect("git can be run").stdout).lines().map(str::to_owned).collect()
    }

    /// What must hold at the end, whatever was killed.
    async fn check_published(&self, id: &str) {
        let job = self.site.ended(id).await;
        assert_eq!(job.outcome, "succeeded", "{job:#?}\n{}", self.site.program_logs());
        assert_eq!(job.attempts.len(), 1, "no attempt is charged");
        let merge_request = job.merge_request.expect("a merge request");
        assert_eq!(self.branches(), std::slice::from_ref(&merge_request.source_branch));
        let standing = self.gitlab.merge_requests(&self.app);
        assert_eq!(standing.len(), 1, "{standing:?}");
        assert_eq!((standing[0].sha.as_str(), standing[0].iid), (merge_request.commit.as_str(), merge_request.number));
        assert_eq!(self.site.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_daemon_is_killed_while_it_pushes() {
    let mut scene = Scene::start().await;
    let job = scene.held_push().await;
    scene.site.kill_host().await;
    scene.gitlab.hold_pushes(&scene.app, false);
    scene.check_published(&job.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_is_killed_while_the_host_pushes_and_while_it_opens_the_merge_request() {
    let mut scene = Scene::start().await;
    let job = scene.held_push().await;
    scene.site.kill_controller().await;
    // The merge request is made, and its answer comes so late that the controller is gone by then.
    let delay = std::time::Duration::from_millis(1_500);
    scene.gitlab.fault(Fault::AnswerLost { route: Route::CreateMergeRequest, times: 1 });
    scene.gitlab.fault(Fault::Delay { route: Route::MergeRequests, delay, times: 2 });
    scene.gitlab.hold_pushes(&scene.app, false);
    wait_for("the call for a merge request", || (scene.gitlab.count(Route::MergeRequests) > 0).then_some(())).await;
    scene.site.kill_controller().await;
    scene.check_published(&job.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_request_that_somebody_opened_by_hand_is_taken_for_the_jobs() {
    let scene = Scene::start().await;
    let job = scene.held_push().await;
    let number = scene.gitlab.add_merge_request(&scene.app, &job.attempts[0].branch);
    scene.gitlab.hold_pushes(&scene.app, false);
    let job = scene.site.ended(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}");
    assert_eq!(job.merge_request.expect("a merge request").number, number);
    assert_eq!(scene.gitlab.merge_requests(&scene.app).len(), 1);
    assert_eq!(scene.gitlab.count(Route::CreateMergeRequest), 0, "none is asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gitlab_that_is_down_gets_the_merge_request_when_it_is_back() {
    let scene = Scene::start().await;
    let job = scene.held_push().await;
    scene.gitlab.fault(Fault::Status { route: Route::MergeRequests, code: 502, retry_after: None, times: 5 });
    scene.gitlab.hold_pushes(&scene.app, false);
    let job =
        scene.site.until(&job.id, "the trouble", |job| job.phase == "publishing" && !job.waiting.is_empty()).await;
    assert!(job.waiting.join("\n").contains("502"), "{job:#?}");
    scene.check_published(&job.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_a_protected_branch_fails_with_gitlabs_words() {
    let scene = Scene::start().await;
    let job = scene.held_push().await;
    scene.gitlab.protect(&scene.app, &job.attempts[0].branch);
    scene.gitlab.hold_pushes(&scene.app, false);
    let job = scene.site.ended(&job.id).await;
    assert_eq!((job.outcome.as_str(), failure_reason(&job).as_str()), ("failed", "push"), "{job:#?}");
    let message = job.failure.expect("a failure").message;
    assert!(message.contains("You are not allowed to push code to protected branches"), "{message}");
    assert!(scene.gitlab.merge_requests(&scene.app).is_empty() && scene.branches().is_empty());
    assert_eq!(scene.site.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_was_deleted_before_its_merge_request_is_named() {
    let scene = Scene::start().await;
    let job = scene.held_push().await;
    let branch = job.attempts[0].branch.clone();
    scene.gitlab.fault(Fault::Status { route: Route::MergeRequests, code: 502, retry_after: None, times: 5 });
    scene.gitlab.hold_pushes(&scene.app, false);
    scene.site.until(&job.id, "publishing", |job| job.phase == "publishing").await;
    scene.gitlab.delete_branch(&scene.app, &branch);
    let job = scene.site.ended(&job.id).await;
    assert_eq!((job.outcome.as_str(), failure_reason(&job).as_str()), ("failed", "merge-request"), "{job:#?}");
    let message = job.failure.expect("a failure").message;
    assert!(message.contains(&branch) && message.contains("does not exist"), "{message}");
}
