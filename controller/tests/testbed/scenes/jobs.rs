//! Jobs that behave badly: their neighbours and their host do not notice.

use devfleet_proto::v1;

use crate::fleet::wait_for;
use crate::work::Stage;

pub(super) async fn a_fork_bomb_harms_nobody_else(stage: &Stage, _chaos: bool) -> String {
    let bomb = stage.submit("fork-bomb").await;
    for _ in 0..3 {
        stage.submit("steady-5").await;
    }
    for job in stage.settle().await {
        let wanted = if job.id == bomb { "failed" } else { "succeeded" };
        assert_eq!(job.outcome, wanted, "{job:#?}");
    }
    String::new()
}

pub(super) async fn a_job_that_ignores_signals_and_hides_is_removed_whole(stage: &Stage, _chaos: bool) -> String {
    let id = stage.submit("stubborn").await;
    stage.working(&id).await;
    let request = v1::CancelRequest { job: id.clone() };
    stage.people.call(async |to| to.jobs().cancel(request.clone()).await).await.expect("it is cancelled");
    stage.kernel(&id, "no process", <[_]>::is_empty).await;
    for job in stage.settle().await {
        assert_eq!(job.outcome, "cancelled", "{job:#?}");
    }
    String::new()
}

pub(super) async fn floods_of_output_do_not_delay_the_neighbours(stage: &Stage, _chaos: bool) -> String {
    let floods = [stage.submit("flood").await, stage.submit("flood").await, stage.submit("flood").await];
    let quiet = stage.submit("steady-15").await;
    stage.working(&quiet).await;
    let flooding = stage.people.job(&floods[0]).await;
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
    format!("200,000 lines each; the first was {} when the quiet job's first line came", flooding.phase)
}

pub(super) async fn a_container_that_cannot_be_removed_holds_up_no_job(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-5").await;
    let agent =
        stage.kernel(&job.id, "the agent", |running| running.iter().any(|one| one.name.ends_with("agent"))).await;
    let name = agent.into_iter().find(|one| one.name.ends_with("agent")).expect("it runs").name;
    let upper = stage.fleet.docker(&node, &["inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", &name]);
    let stuck = std::path::Path::new(upper.trim()).join("stuck");
    std::fs::write(&stuck, "x").expect("written");
    let change = |flag: &str| crate::fleet::run(std::process::Command::new("chattr").arg(flag).arg(&stuck));
    change("+i");
    stage.people.until(&job.id, "the end", |job| job.phase == "ended").await;
    let other = stage.submit("steady-1").await;
    assert_eq!(stage.people.ended(&other).await.outcome, "succeeded", "others go on");
    change("-i");
    wait_for("the removal", async || {
        let left = stage.fleet.docker(&node, &["ps", "--all", "--quiet", "--filter", &format!("name={name}")]);
        left.trim().is_empty().then_some(())
    })
    .await;
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
    String::new()
}
