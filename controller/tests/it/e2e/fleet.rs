//! Two real controllers on a real etcd, with logs in a bucket: what a person sees of one that dies.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::scene::{CHECK, SMALL, ci, project};
use crate::support::etcd::Cluster;
use crate::support::s3::Bucket;
use crate::support::site::{Settings, Site};

/// How many lines the agent writes.
const LINES: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn logs_in_a_bucket_are_followed_to_their_end_though_the_leader_is_killed() {
    let (cluster, bucket) = (Cluster::start(1), Bucket::over_tls().await);
    let store = format!("[store]\nkind = \"etcd\"\nendpoints = [\"http://{}\"]\n", cluster.address(0));
    let tables = format!("{store}{}", bucket.table("fleet"));
    let mut site = Site::start(Settings { tables, two_controllers: true, ..Settings::default() }).await;
    let agent = format!(
        "i=0\nwhile [ $i -lt {LINES} ]; do i=$((i+1)); echo \"line $i\"; sleep 0.2; done\necho 42 > answer.txt\n"
    );
    let repository =
        site.repository("tally", &[(".gitlab-ci.yml", &ci("")), ("check.sh", CHECK), ("answer.txt", "41\n")]);
    let path = repository.path.display().to_string();
    site.apply(&format!("{}{SMALL}", project("tally", &path, &agent, "approval = \"auto\""))).await;
    let job = site.submit("tally", "Make the answer right").await;
    site.in_phase(&job.id, "agent").await;

    let mut follower = Command::new(env!("CARGO_BIN_EXE_devfleet"))
        .args(["logs", "-f", &job.id])
        .env("DEVFLEET_CONTEXT", site.context_file())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("devfleet runs");
    let mut lines = BufReader::new(follower.stdout.take().expect("piped")).lines();
    let mut seen = Vec::new();
    let reading = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.trim_end().ends_with("line 10") {
                site.kill_leader().await;
            }
            seen.push(line);
        }
    };
    tokio::time::timeout(Duration::from_secs(180), reading).await.expect("the log ends");
    let status = follower.wait().await.expect("it ends");
    assert!(status.success(), "{status:?}");
    let numbers: Vec<usize> = seen
        .iter()
        .filter_map(|line| line.rsplit_once("line ").and_then(|(_, number)| number.trim().parse().ok()))
        .collect();
    assert_eq!(numbers, (1..=LINES).collect::<Vec<_>>(), "every line once and in order:\n{}", seen.join("\n"));

    let job = site.ended(&job.id).await;
    assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    assert!(site.diff(&job.id).await.expect("a diff").text.contains("+42"));
    let files = bucket.trusting("fleet", Some(&bucket.authority())).await;
    let kept = files.list(&format!("logs/{}/{}", job.id, job.attempts[0].id)).await.expect("listed");
    assert!(!kept.is_empty(), "the log is in the bucket");
    for name in ["controller", "second"] {
        assert!(!site.dir().join(name).join("logs").exists(), "nothing is kept beside the bucket");
    }
    assert_eq!(site.leftovers(), Vec::<String>::new());
    let log = site.host_log();
    assert!(!log.contains("the watchdog ended") && !log.contains("alone=true"), "it stays beside its daemon:\n{log}");
}
