//! Several jobs at once: they do not see each other, and never more run than may.

use super::scene::{SMALL, ci, usual_project};
use crate::support::site::{Settings, Site};
use devfleet_proto::v1;

#[tokio::test(flavor = "multi_thread")]
async fn two_jobs_on_one_repository_at_the_same_moment_end_with_a_branch_each() {
    let site = Site::usual().await;
    let agent = "echo 42 > answer.txt\necho \"$DEVFLEET_TASK\" > task.txt\n";
    let repository = usual_project(&site, &ci(""), agent, SMALL).await;
    let (one, two) = tokio::join!(site.submit("sample", "first task"), site.submit("sample", "second task"));
    let mut tasks = Vec::new();
    for job in [one, two] {
        let job = site.ended(&job.id).await;
        assert_eq!(job.outcome, "succeeded", "{job:#?}");
        let branch = job.merge_request.expect("a merge request").source_branch;
        tasks.push((repository.file(&branch, "task.txt").trim().to_owned(), job.task));
    }
    for (written, asked) in tasks {
        assert_eq!(written, asked, "a job sees its own workspace alone");
    }
    assert_eq!(repository.work_branches().len(), 2);
    assert_eq!(site.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_jobs_only_as_many_run_as_may_and_the_others_say_why_they_wait() {
    let site = Site::start(Settings { max_running: 2, ..Settings::default() }).await;
    usual_project(&site, &ci(""), "sleep 1\necho 42 > answer.txt\n", SMALL).await;
    for number in 0..5 {
        site.submit("sample", &format!("task {number}")).await;
    }
    let (mut most, mut reasons) = (0, Vec::new());
    loop {
        // One look at all of them: read one after the other, a job that ends meanwhile would count beside the next.
        let list = async || site.connection().jobs().list_jobs(v1::ListJobsRequest::default()).await;
        let jobs = site.connection().read(list).await.expect("the jobs").jobs;
        assert_eq!(jobs.len(), 5);
        most = most.max(jobs.iter().filter(|job| job.phase == "running").count());
        reasons.extend(jobs.iter().filter(|job| job.phase == "queued").flat_map(|job| job.waiting.clone()));
        if jobs.iter().all(|job| job.phase == "ended") {
            assert!(jobs.iter().all(|job| job.outcome == "succeeded"), "{jobs:#?}");
            break;
        }
    }
    assert_eq!(most, 2);
    assert!(reasons.iter().any(|reason| reason.contains("2 of 2 jobs run")), "{reasons:?}");
}
