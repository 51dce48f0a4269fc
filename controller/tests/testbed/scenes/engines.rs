//! Faults at the border between a host's daemon and its engine or disk.

use std::time::Duration;

use crate::engine_proxy::{EngineProxy, Fault};
use crate::fleet::{HOSTS, last};
use crate::work::Stage;

/// Plays with a proxy before every engine; returns how many requests met the fault.
async fn behind_proxies(stage: &Stage, faults: &[(&str, Fault)], jobs: usize) -> u32 {
    let proxies: Vec<_> = HOSTS.iter().map(|node| EngineProxy::before(&stage.fleet, node)).collect();
    stage.people.all_hosts_ready().await;
    for proxy in &proxies {
        faults.iter().for_each(|(path, fault)| proxy.fault(path, *fault, 2));
    }
    let mut ids = Vec::new();
    for _ in 0..jobs {
        ids.push(stage.submit("steady-1").await);
    }
    for id in &ids {
        let job = stage.people.ended(id).await;
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
    let mut met = 0;
    for proxy in proxies {
        met += proxy.met();
        proxy.remove(&stage.fleet);
    }
    stage.settle().await;
    met
}

pub(super) async fn a_container_whose_making_was_not_answered_is_made_once(stage: &Stage, _chaos: bool) -> String {
    let lost = behind_proxies(stage, &[("/containers/create", Fault::AnswerLost)], 3).await;
    assert!(lost >= 2, "{lost} answers were lost");
    format!("{lost} answers lost")
}

pub(super) async fn an_engine_that_answers_with_errors_is_asked_again(stage: &Stage, _chaos: bool) -> String {
    let faults = [
        ("/networks/create", Fault::Status500),
        ("/containers/create", Fault::Status500),
        ("/volumes/create", Fault::Status500),
        ("DELETE", Fault::Status500),
    ];
    let met = behind_proxies(stage, &faults, 3).await;
    assert!(met >= 4, "{met} errors were answered");
    format!("{met} errors answered")
}

pub(super) async fn a_disk_without_room_gets_no_new_job(stage: &Stage, _chaos: bool) -> String {
    let (job, node) = stage.at_work("steady-5").await;
    let filler = stage.fleet.dir().join(&node).join("filler");
    // All but 100 MiB: the running job goes on, and nothing new is begun there.
    let disk = rustix::fs::statvfs(stage.fleet.dir().join(&node).as_path()).expect("the disk");
    let size = (disk.f_bavail * disk.f_frsize).saturating_sub(100 << 20);
    let file = std::fs::File::create(&filler).expect("a file");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).expect("filled");
    last(Duration::from_secs(6)).await;
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(stage.submit("steady-1").await);
    }
    for id in others {
        let other = stage.people.ended(&id).await;
        assert_eq!(other.outcome, "succeeded", "{other:#?}");
        assert_ne!(other.attempts[0].host, job.attempts[0].host, "nothing is begun where there is no room");
    }
    drop(file);
    std::fs::remove_file(&filler).expect("room again");
    for job in stage.settle().await {
        assert_eq!((job.outcome.as_str(), job.attempts.len()), ("succeeded", 1), "{job:#?}");
    }
    String::new()
}
