//! The sweeper at work: on a scripted engine and on real Docker.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use devfleet_host::engine::memory::Fault;
use devfleet_host::engine::{ContainerSpec, ImageBuild, Labels, Mount, ObjectKind, ObjectRef, label};
use devfleet_host::sweeper::{Ownership, Report, SweepError, Sweeper, temp_dir};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::AttemptId;

use super::engine_contract::{Bench, check, image_facts};

const BASE: &str = "devfleet-test/base:12";
const PROTECTION: Duration = Duration::from_secs(600);

fn attempt(number: u8) -> AttemptId {
    format!("{number:08x}").parse().expect("an id")
}

async fn sweep(bench: &Bench, data_dir: &Path, ownership: &Ownership, now: Timestamp, dry_run: bool) -> Report {
    let sweeper = Sweeper { engine: &bench.engine, host: &bench.host, data_dir, protection: PROTECTION };
    sweeper.sweep(&|| ownership.clone(), now, dry_run).await.expect("a sweep")
}

/// Makes a running container and a volume of one attempt, with this creation time on their labels.
async fn make(bench: &Bench, of: &AttemptId, created: Timestamp) {
    let mut labels = bench.labels();
    labels.insert(label::ATTEMPT.into(), of.to_string());
    labels.insert(label::CREATED.into(), created.0.to_string());
    let volume = of.object_name("workspace");
    bench.engine.ensure_volume(&volume, &labels).await.expect("a volume");
    let spec = ContainerSpec {
        name: of.object_name("agent"),
        image: BASE.into(),
        entrypoint: Some(["sleep", "600"].map(Into::into).to_vec()),
        init: true,
        mounts: vec![Mount::Volume { name: volume, target: "/workspace".into() }],
        labels,
        ..ContainerSpec::default()
    };
    bench.engine.ensure_container(&spec).await.expect("made");
    bench.engine.start(&spec.name, None, false).await.expect("started");
}

async fn attempts_left(bench: &Bench) -> BTreeSet<String> {
    let labels = Labels::from([(label::HOST.into(), bench.host.to_string())]);
    let found = bench.engine.list(&labels).await.expect("a list");
    found.into_iter().filter_map(|found| found.labels.get(label::ATTEMPT).cloned()).collect()
}

#[tokio::test]
async fn a_sweep_takes_what_nobody_owns_and_nothing_else() {
    let bench = Bench::memory();
    let memory = bench.memory.clone().expect("an engine in memory");
    let now = Timestamp(1_000_000_000);
    let old = Timestamp(now.0 - 3_600_000);
    for number in 1..=4 {
        make(&bench, &attempt(number), if number == 3 { now } else { old }).await;
    }
    let stranger = Labels::from([(label::APP.into(), label::APP_VALUE.into()), (label::HOST.into(), "other".into())]);
    bench.engine.ensure_volume("devbox-of-another-host", &stranger).await.expect("a volume");
    bench.engine.ensure_volume("of-a-person", &Labels::new()).await.expect("a volume");
    let mut kept = image_facts("sha256:kept");
    kept.labels = bench.labels();
    kept.labels.remove(label::ATTEMPT);
    memory.add_image("devfleet/box:kept", kept);

    let ownership = Ownership {
        owned: BTreeSet::from([attempt(1)]),
        holds: BTreeMap::from([(attempt(2), now.after(PROTECTION))]),
        ..Ownership::default()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let tried = sweep(&bench, folder.path(), &ownership, now, true).await;
    assert_eq!((tried.removed, attempts_left(&bench).await.len()), (0, 4), "a dry run removes nothing");
    let report = sweep(&bench, folder.path(), &ownership, now, false).await;
    assert_eq!(tried.verdicts, report.verdicts, "a dry run says what a sweep does");
    assert_eq!((report.removed, report.resists.len()), (2, 0));
    let left = attempts_left(&bench).await;
    assert_eq!(left, [1, 2, 3].map(|number| attempt(number).to_string()).into());
    let names: Vec<_> = memory.objects().into_iter().map(|object| object.name).collect();
    assert!(names.contains(&"devbox-of-another-host".to_owned()) && names.contains(&"of-a-person".to_owned()));
    assert!(bench.engine.image("devfleet/box:kept").await.expect("an answer").is_some());
    assert_eq!(sweep(&bench, folder.path(), &ownership, now, false).await.removed, 0, "a second sweep finds nothing");
    // The hold is over, and so is the youth.
    let later = now.after(2 * PROTECTION);
    assert_eq!(sweep(&bench, folder.path(), &ownership, later, false).await.removed, 4);
    assert_eq!(attempts_left(&bench).await, [attempt(1).to_string()].into());
}

#[tokio::test]
async fn an_engine_in_doubt_is_left_alone_and_what_resists_is_tried_again() {
    let bench = Bench::memory();
    let memory = bench.memory.clone().expect("an engine in memory");
    let folder = tempfile::tempdir().expect("a folder");
    make(&bench, &attempt(1), Timestamp(0)).await;
    let nobody = Ownership::default();
    memory.fail_when(|call| (call.verb == "list").then_some(Fault::Before));
    let sweeper = Sweeper { engine: &bench.engine, host: &bench.host, data_dir: folder.path(), protection: PROTECTION };
    let refused = sweeper.sweep(&Ownership::default, Timestamp(1 << 40), false).await;
    assert!(matches!(refused, Err(SweepError::List(_))));
    assert_eq!(memory.objects().len(), 2);
    memory.fail_when(|call| (call.verb == "remove" && call.about.ends_with("agent")).then_some(Fault::Before));
    let report = sweep(&bench, folder.path(), &nobody, Timestamp(1 << 40), false).await;
    assert_eq!(report.removed, 0);
    assert_eq!(report.resists.len(), 2, "the volume is still in use: {:?}", report.resists);
    memory.fail_never();
    assert_eq!(sweep(&bench, folder.path(), &nobody, Timestamp(1 << 40), false).await.removed, 2);
}

#[tokio::test]
async fn an_owner_that_comes_while_the_engine_is_listed_keeps_its_own() {
    let bench = Bench::memory();
    let folder = tempfile::tempdir().expect("a folder");
    make(&bench, &attempt(1), Timestamp(0)).await;
    let memory = bench.memory.clone().expect("an engine in memory");
    let sweeper = Sweeper { engine: &bench.engine, host: &bench.host, data_dir: folder.path(), protection: PROTECTION };
    // Owned only once the listing has been asked for: a snapshot from before it would miss the owner.
    let owners = move || {
        let listed = memory.calls().iter().any(|call| call.verb == "list");
        Ownership { owned: listed.then(|| attempt(1)).into_iter().collect(), ..Ownership::default() }
    };
    let report = sweeper.sweep(&owners, Timestamp(1 << 40), false).await.expect("a sweep");
    assert_eq!(report.removed, 0);
}

#[tokio::test]
async fn folders_of_attempts_that_are_over_go_too() {
    let bench = Bench::memory();
    let folder = tempfile::tempdir().expect("a folder");
    for number in 1..=2 {
        let path = temp_dir(folder.path(), &attempt(number));
        std::fs::create_dir_all(path.join("deep/er")).expect("a folder");
        std::fs::write(path.join("deep/er/bundle"), "x").expect("a file");
    }
    let foreign = folder.path().join("tmp/notes");
    std::fs::create_dir_all(&foreign).expect("a folder");
    let ownership = Ownership { owned: BTreeSet::from([attempt(1)]), ..Ownership::default() };
    let now = Clock::system().now();
    assert_eq!(sweep(&bench, folder.path(), &ownership, now, false).await.removed, 0, "too young");
    let later = now.after(2 * PROTECTION);
    assert_eq!(sweep(&bench, folder.path(), &ownership, later, true).await.folders.len(), 1);
    assert_eq!(sweep(&bench, folder.path(), &ownership, later, false).await.removed, 1);
    assert!(temp_dir(folder.path(), &attempt(1)).exists() && foreign.exists());
    assert!(!temp_dir(folder.path(), &attempt(2)).exists());
}

#[tokio::test]
async fn docker_is_swept_of_objects_and_of_what_a_build_left() {
    check(Bench::docker(&[BASE]).await, async |bench| {
        let folder = tempfile::tempdir().expect("a folder");
        let now = Clock::system().now();
        let (mine, stale) = (bench.attempt.clone(), AttemptId::random());
        make(&bench, &mine, now).await;
        make(&bench, &stale, now).await;
        // Two builds of one name: the first image has no name any more.
        let mut labels = bench.labels();
        labels.remove(label::ATTEMPT);
        for text in ["one", "two"] {
            let build = ImageBuild {
                tag: format!("devfleet-test/swept:{mine}"),
                dockerfile: format!("FROM {BASE}\nLABEL content={text}-{mine}\n"),
                arguments: BTreeMap::new(),
                files: Vec::new(),
                labels: labels.clone(),
                platform: String::new(),
            };
            bench.engine.build(&build, &|_| ()).await.expect("built");
        }
        let ownership = Ownership { owned: BTreeSet::from([mine.clone()]), ..Ownership::default() };
        assert_eq!(sweep(&bench, folder.path(), &ownership, now, false).await.removed, 0, "all of it is young");
        let later = now.after(2 * PROTECTION);
        let report = sweep(&bench, folder.path(), &ownership, later, false).await;
        assert_eq!((report.removed, report.resists.len()), (3, 0), "{:?}", report.verdicts);
        let left = bench.everything().await;
        let of = |kind, name: String| ObjectRef { kind, name };
        let wanted = [
            of(ObjectKind::Container, mine.object_name("agent")),
            of(ObjectKind::Volume, mine.object_name("workspace")),
            of(ObjectKind::Image, format!("devfleet-test/swept:{mine}")),
        ];
        assert_eq!(left, wanted);
    })
    .await;
}
