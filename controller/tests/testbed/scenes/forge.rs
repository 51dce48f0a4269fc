//! Faults of the forge: answers that are lost after the deed.

use crate::support::gitlab::{Fault, Route};
use crate::work::Stage;

pub(super) async fn a_merge_request_whose_answer_was_lost_is_opened_once(stage: &Stage, _chaos: bool) -> String {
    for route in [Route::CreateMergeRequest, Route::MergeRequests] {
        stage.gitlab.fault(Fault::AnswerLost { route, times: 2 });
    }
    stage.submit("steady-1").await;
    stage.submit("steady-1").await;
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
    String::new()
}

pub(super) async fn a_push_whose_answer_was_lost_is_not_made_twice(stage: &Stage, _chaos: bool) -> String {
    stage.gitlab.fault(Fault::AnswerLost { route: Route::GitPush, times: 3 });
    stage.submit("steady-1").await;
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
        let branch = job.merge_request.expect("a merge request").source_branch;
        assert_eq!(stage.file(&branch, "runs.txt"), "run\n", "the agent ran once");
    }
    String::new()
}

pub(super) async fn a_forge_that_fails_for_a_while_delays_the_result(stage: &Stage, _chaos: bool) -> String {
    stage.gitlab.fault(Fault::Status { route: Route::CreateMergeRequest, code: 502, retry_after: None, times: 2 });
    stage.gitlab.fault(Fault::Status { route: Route::MergeRequests, code: 429, retry_after: Some(1), times: 2 });
    stage.submit("steady-1").await;
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
    String::new()
}
