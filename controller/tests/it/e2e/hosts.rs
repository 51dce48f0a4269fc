//! The life of a host in the fleet, with the real daemon and real containers: cordoned, drained, resumed, removed.

use devfleet_proto::v1;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::scene::{CHECK, SMALL, ci, project};
use crate::support::site::{Site, attempt_phase, wait_async};

/// An agent that waits for a sign, so that a test decides when it goes on.
const PATIENT: &str = "while [ ! -e /tmp/go ]; do sleep 0.2; done; echo 42 > answer.txt\n";

/// A project whose jobs have one attempt and run as long as the test wants.
async fn patient(site: &Site, name: &str, more: &str) {
    let repository = site.repository(name, &[(".gitlab-ci.yml", &ci("")), ("check.sh", CHECK), ("answer.txt", "41\n")]);
    let head = format!("approval = \"auto\"\nmax_attempts = 1\n{more}");
    let text = project(name, &repository.path.display().to_string(), PATIENT, &head);
    site.apply(&format!("{text}{SMALL}")).await;
}

/// Lets the agent of a job go on, as soon as its container has started: the phase is told before.
async fn go(job: &v1::Job) {
    let agent = format!("devbox-{}-agent", job.attempts.last().expect("an attempt").id);
    let sign = async || {
        let told = std::process::Command::new("docker").args(["exec", &agent, "touch", "/tmp/go"]).output();
        told.expect("docker can be run").status.success().then_some(())
    };
    wait_async("the agent takes the sign", sign).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_host_gives_its_job_back_uncharged_and_has_it_again_once_it_is_resumed() {
    let site = Site::usual().await;
    patient(&site, "tally", "").await;
    let job = site.submit("tally", "Make the answer right").await;
    site.in_phase(&job.id, "agent").await;
    let fleet = || site.connection().fleet();

    // Until the deadline the attempt goes on, and the host takes nothing else.
    let drain = |deadline_seconds, then: &str| v1::DrainHostRequest {
        host: "host-1".into(),
        reason: "new kernel".into(),
        deadline_seconds,
        then: then.into(),
    };
    let drained = fleet().drain_host(drain(3_600, "wait")).await.expect("drained").into_inner();
    assert_eq!((drained.state.as_str(), drained.running, drained.state_by.as_str()), ("draining", 1, "bootstrap"));
    let second = site.submit("tally", "Make it right again").await;
    let told = "host host-1: draining by bootstrap: new kernel";
    site.until(&second.id, "the reason", |job| job.waiting.iter().any(|why| why == told)).await;
    let busy = v1::RemoveHostRequest { host: "host-1".into(), ..Default::default() };
    let busy = fleet().remove_host(busy).await.expect_err("a job runs there");
    let reason = busy.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    assert!(reason == "HOST_BUSY" && busy.message().contains("hosts drain host-1"), "{busy}");

    // The deadline is over at once: the attempt is stopped, and its job waits uncharged although it has one attempt.
    fleet().drain_host(drain(0, "requeue")).await.expect("drained");
    let queued =
        site.until(&job.id, "the queue", |job| job.phase == "queued" && job.attempts[0].ended_unix_ms > 0).await;
    assert!(queued.waiting.iter().any(|why| why.contains("stopped for another host")), "{queued:#?}");
    assert_eq!(site.leftovers(), Vec::<String>::new());
    site.until_host("drained", |host| host.state == "drained" && host.attempts.is_empty()).await;

    let resumed = fleet().resume_host(v1::ResumeHostRequest { host: "host-1".into(), reason: String::new() }).await;
    assert_eq!(resumed.expect("resumed").into_inner().state, "active");
    for id in [&job.id, &second.id] {
        let running = site.in_phase(id, "agent").await;
        go(&running).await;
        assert_eq!(site.ended(id).await.outcome, "succeeded");
    }
    assert_eq!(site.job(&job.id).await.attempts.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_host_stops_what_it_has_says_what_to_do_and_joins_anew_with_a_new_token() {
    let mut site = Site::usual().await;
    patient(&site, "tally", "").await;
    let job = site.submit("tally", "Make the answer right").await;
    site.in_phase(&job.id, "agent").await;
    let before = site.until_host("connected", |host| host.connected).await.id;
    let request = v1::RemoveHostRequest { host: "host-1".into(), reason: "sold".into(), force: true };
    let removed = site.connection().fleet().remove_host(request).await.expect("removed").into_inner();
    assert_eq!((removed.host_id.as_str(), removed.jobs), (before.as_str(), 1));
    wait_async("nothing is left", async || site.leftovers().is_empty().then_some(())).await;
    let told = || site.host_log().matches("this host was removed from the fleet: its attempts are stopped").count();
    wait_async("the message", async || (told() == 1).then_some(())).await;
    assert!(site.host_log().contains("devfleet join-token create") && site.host_log().contains("sold"));
    let gone = site.connection().fleet().get_host(v1::GetHostRequest { host: before.clone() }).await;
    assert_eq!(gone.expect_err("gone").code(), Code::NotFound);

    site.rejoin_host().await;
    site.host_connected().await;
    let after = site.until_host("another", |host| host.connected).await;
    assert_ne!(after.id, before, "it is another host now");
    // The job was lost with its host, which is not charged, and goes on on the new one.
    let again = |job: &v1::Job| job.attempts.len() == 2 && attempt_phase(job) == "agent";
    let running = site.until(&job.id, "another attempt", again).await;
    assert_eq!(running.attempts[1].host, after.id);
    go(&running).await;
    assert_eq!(site.ended(&job.id).await.outcome, "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_runtimes_decide_where_a_job_goes_and_the_runtime_reaches_the_engine() {
    let site = Site::usual().await;
    patient(&site, "tally", "runtime = \"runc\"\nhost_labels = { zone = \"eu\" }").await;
    let job = site.submit("tally", "Make the answer right").await;
    let waits = "host host-1: it has not the label zone=eu";
    site.until(&job.id, "the reason", |job| job.waiting.iter().any(|why| why == waits)).await;
    let set = [("zone".to_owned(), "eu".to_owned())].into();
    let label = v1::LabelHostRequest { host: "host-1".into(), set, remove: vec!["none".into()] };
    site.connection().fleet().label_host(label).await.expect("labelled");
    let running = site.in_phase(&job.id, "agent").await;
    let agent = format!("devbox-{}-agent", running.attempts[0].id);
    // The phase is told before there is a container.
    let runtime = wait_async("the agent's container", async || {
        let asked = std::process::Command::new("docker")
            .args(["inspect", "--format", "{{.HostConfig.Runtime}}", &agent])
            .output()
            .expect("docker can be run");
        asked.status.success().then(|| String::from_utf8_lossy(&asked.stdout).trim().to_owned())
    });
    assert_eq!(runtime.await, "runc");
    go(&running).await;
    assert_eq!(site.ended(&job.id).await.outcome, "succeeded");

    patient(&site, "elsewhere", "runtime = \"no-such-runtime\"").await;
    let job = site.submit("elsewhere", "Make the answer right").await;
    let waits = "host host-1: its engine has no runtime no-such-runtime";
    site.until(&job.id, "the reason", |job| job.waiting.iter().any(|why| why == waits)).await;
}
