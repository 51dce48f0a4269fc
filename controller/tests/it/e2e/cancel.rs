//! Cancelling a job at any moment ends in a torn-down environment within 15 seconds.

use std::time::Duration;

use super::scene::{CHECK, FIX, PYTHON, SMALL, project, usual_project};
use crate::support::site::{Site, now};

/// The bound that people are promised.
const PROMISED: Duration = Duration::from_secs(15);

/// A CI file and an agent of which one part, named by `stuck`, ignores SIGTERM and never ends.
fn parts(stuck: &str) -> (String, String) {
    let forever = "trap '' TERM; while true; do sleep 1; done";
    let part = |name: &str, usual: &str| if name == stuck { forever.to_owned() } else { usual.to_owned() };
    let ci = format!(
        "image: {PYTHON}\ntest:\n  before_script:\n    - {:?}\n  script:\n    - {:?}\n",
        part("setup", "echo set up"),
        if stuck == "verify" { format!("sh check.sh; {forever}") } else { "sh check.sh".to_owned() },
    );
    (ci, part("agent", FIX))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_in_each_step_and_its_environment_is_gone_in_time() {
    let site = Site::usual().await;
    for step in ["setup", "agent", "verify"] {
        let (ci, agent) = parts(step);
        let repository = site.repository(step, &[(".gitlab-ci.yml", &ci), ("check.sh", CHECK), ("answer.txt", "41\n")]);
        let path = repository.path.display().to_string();
        site.apply(&format!("{}{SMALL}", project(step, &path, &agent, "approval = \"auto\""))).await;
        let job = site.submit(step, "never ends").await;
        site.in_phase(&job.id, step).await;
        let asked = now();
        site.cancel(&job.id).await.expect("it can be cancelled");
        let job = site.ended(&job.id).await;
        assert_eq!(job.outcome, "cancelled", "in {step}: {job:#?}");
        assert!(now() - asked < PROMISED, "in {step}: it took {:?}", now() - asked);
        assert_eq!(site.leftovers(), Vec::<String>::new(), "in {step}");
        assert!(repository.work_branches().is_empty());
        site.cancel(&job.id).await.expect("cancelling again is fine");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_while_its_environment_is_made_and_before() {
    let site = Site::usual().await;
    let ci = format!("image: {PYTHON}\nservices: [devfleet-test/never-ready:1]\ntest:\n  script:\n    - sh check.sh\n");
    usual_project(&site, &ci, FIX, SMALL).await;
    let job = site.submit("sample", "waits for its service").await;
    site.in_phase(&job.id, "preparing").await;
    let asked = now();
    site.cancel(&job.id).await.expect("it can be cancelled");
    assert_eq!(site.ended(&job.id).await.outcome, "cancelled");
    assert!(now() - asked < PROMISED, "it took {:?}", now() - asked);
    assert_eq!(site.leftovers(), Vec::<String>::new());

    let repository = site.repository("gated", &[(".gitlab-ci.yml", &ci)]);
    site.apply(&project("gated", &repository.path.display().to_string(), FIX, "")).await;
    let job = site.submit("gated", "waits for approval").await;
    site.until(&job.id, "a proposal", |job| job.phase == "awaiting-approval").await;
    let job = site.cancel(&job.id).await.expect("it can be cancelled");
    assert_eq!((job.phase.as_str(), job.outcome.as_str()), ("ended", "cancelled"));
}
