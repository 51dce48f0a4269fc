//! What the scheduler is told, from records in a real store and hosts that said what they have.

use std::time::Duration;

use devfleet_proto::v1;
use devfleet_shared::clock::Clock;
use devfleet_shared::id::{AttemptId, JobId};
use devfleet_shared::job::Outcome;

use super::*;
use crate::project::ProjectConfig;
use crate::sessions::Sessions;
use crate::store::embedded::Embedded;
use crate::store::records::hosts::{Desired, Wish};
use crate::store::records::settings::{self, Settings};
use crate::store::records::{AttemptRecord, JobSpec, JobState, Owner, key, put};
use crate::store::{Change, SharedStore, Transaction};
use crate::view::View;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3_600);

struct World {
    store: SharedStore,
    sessions: Sessions,
    _directory: tempfile::TempDir,
}

/// A job as it is to stand in the records.
struct Job<'a> {
    phase: JobPhase,
    owner: Option<(&'a HostId, Phase)>,
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().expect("dir");
        let clock = Clock::fixed(NOW);
        let store: SharedStore = Embedded::open(&directory.path().join("store"), clock.clone()).expect("store");
        World { store, sessions: Sessions::new(clock), _directory: directory }
    }

    async fn write(&self, then: Vec<Change>) {
        self.store.commit(Transaction { when: Vec::new(), then }).await.expect("written");
    }

    async fn host(&self, wish: Wish) -> HostId {
        let id = HostId::random();
        let desired = Desired { wish, by: "ada".into(), ..Desired::default() };
        let record = HostRecord {
            id: id.clone(),
            name: "box".into(),
            joined: NOW,
            certificate_ends: NOW,
            labels: BTreeMap::from([("zone".to_owned(), "eu".to_owned())]),
            desired,
        };
        self.write(vec![put(key::host(&id), &record).expect("a record")]).await;
        id
    }

    /// Has a host say that it has ten slots, five of which it finds free, and little room on its disk.
    fn connect(&self, host: &HostId) {
        let total = Resources { memory_bytes: 1_000, disk_bytes: 1_000, slots: 10, ..Resources::default() };
        let free = Resources { disk_bytes: 70, slots: 5, ..total };
        let inventory = v1::HostInventory {
            total: Some((&total).into()),
            free: Some((&free).into()),
            recipes: vec![Digest::of(b"recipe").to_string(), "no digest".into()],
            mirrors: vec!["m".into()],
            runtimes: vec!["runc".into()],
            problems: vec!["its disk is nearly full".into()],
            ..v1::HostInventory::default()
        };
        let hello = v1::Hello { inventory: Some(inventory), ..v1::Hello::default() };
        drop(self.sessions.open(host, self.sessions.number(), &hello));
    }

    async fn job(&self, Job { phase, owner }: Job<'_>) -> JobId {
        let spec = JobSpec { priority: 7, ..JobSpec::sample(NOW) };
        let id = spec.id.clone();
        let mut state = JobState::submitted(NOW);
        state.phase = phase;
        state.resources = Resources { cpu_millis: 500, memory_bytes: 100, slots: 1, ..Resources::default() };
        state.recipe = Some(Digest::of(b"recipe"));
        let mut then = vec![put(key::spec(&id), &spec).expect("a record")];
        if let Some((host, phase)) = owner {
            let attempt = AttemptId::random();
            let mut record = AttemptRecord::assigned(attempt.clone(), host.clone(), "devfleet/x".into(), NOW);
            record.phase = phase;
            state.attempts.push(record);
            then.push(put(key::owner(&id), &Owner { host: host.clone(), attempt }).expect("a record"));
        }
        then.push(put(key::state(&id), &state).expect("a record"));
        self.write(then).await;
        id
    }

    async fn project(&self) {
        let text = "name = \"app\"\nrepository = \"/srv/app.git\"\nweight = 3\nmax_running = 4\nhost_labels = { zone = \"eu\" }\n\
                    [agents.fix]\nkind = \"script\"\ncommand = \"true\"\n";
        let config = ProjectConfig::parse(text).expect("a project");
        let record = ProjectRecord { config: config.clone(), updated: NOW };
        self.write(vec![put(key::project(&config.name), &record).expect("a record")]).await;
    }

    async fn snapshot(&self) -> Snapshot {
        let view = View::open(&self.store).await.expect("a view");
        let pause = Duration::from_secs(300);
        let quarantine = Rules { after: 3, within: HOUR, pause, longest: HOUR };
        of(&view.read(), &self.sessions.connected(), Defaults { max_running: 5, quarantine }, NOW)
    }
}

#[tokio::test]
async fn what_waits_is_queued_with_its_needs_and_what_has_ended_is_not_looked_at() {
    let world = World::new();
    let waits = |phase| Job { phase, owner: None };
    let queued = world.job(waits(JobPhase::Queued)).await;
    for phase in [JobPhase::Submitted, JobPhase::AwaitingApproval, JobPhase::Ended(Outcome::NoChange)] {
        world.job(waits(phase)).await;
    }
    let alone = world.snapshot().await;
    assert_eq!(alone.queued.iter().map(|job| &job.job).collect::<Vec<_>>(), [&queued]);
    let standing = alone.projects.values().collect::<Vec<_>>();
    assert_eq!(standing, [&ProjectView::default()], "its project is gone");
    world.project().await;
    let second = world.job(waits(JobPhase::Queued)).await;
    let known = world.snapshot().await;
    assert_eq!((known.max_running, known.now), (5, NOW));
    assert_eq!(
        known.projects.values().collect::<Vec<_>>(),
        [&ProjectView { weight: 3, max_running: Some(4), running: 0 }]
    );
    let mut both = [queued, second];
    both.sort();
    assert_eq!(known.queued.iter().map(|job| job.job.clone()).collect::<Vec<_>>(), both);
    assert_eq!(known.queued[0].needs.labels["zone"], "eu");
    assert_eq!((known.queued[0].priority, known.queued[0].needs.recipe.clone()), (7, Some(Digest::of(b"recipe"))));
    assert!(Arc::ptr_eq(&known.queued[0].needs, &known.queued[1].needs), "equal needs are shared");
}

#[tokio::test]
async fn what_a_host_was_given_counts_until_its_environment_is_gone_whatever_became_of_the_job() {
    let world = World::new();
    let host = world.host(Wish::Active).await;
    world.connect(&host);
    let empty = world.snapshot().await.hosts.remove(0);
    assert_eq!((empty.free.slots, empty.free.memory_bytes, empty.free.disk_bytes), (10, 1_000, 70));
    assert_eq!((empty.total.slots, empty.starting, empty.cpu_millis_given), (10, 0, 0));
    assert_eq!(empty.recipes, BTreeSet::from([Digest::of(b"recipe")]));
    assert_eq!((empty.mirrors.len(), empty.runtimes.len(), empty.labels.len()), (1, 1, 1));
    assert_eq!(empty.problems, ["its disk is nearly full"]);

    let step = devfleet_shared::attempt::Step::Agent;
    for (phase, attempt) in [
        (JobPhase::Running, Phase::Preparing),
        (JobPhase::Running, Phase::Running(step)),
        (JobPhase::Ended(Outcome::NoChange), Phase::Running(step)),
    ] {
        world.job(Job { phase, owner: Some((&host, attempt)) }).await;
    }
    let taken = world.snapshot().await;
    assert_eq!(taken.projects.values().map(|project| project.running).collect::<Vec<_>>(), [2]);
    let host = &taken.hosts[0];
    assert_eq!((host.free.slots, host.free.memory_bytes, host.cpu_millis_given), (7, 700, 1_500));
    assert_eq!((host.starting, host.building.len()), (1, 1), "the one that prepares");
}

#[tokio::test]
async fn a_host_that_is_away_or_closed_says_so_and_settings_go_before_defaults() {
    let world = World::new();
    let (away, closed) = (world.host(Wish::Active).await, world.host(Wish::Cordoned).await);
    world.connect(&closed);
    let record = Settings { max_running: Some(9), ..Settings::default() };
    world.write(vec![put(settings::key(), &record).expect("a record")]).await;
    let snapshot = world.snapshot().await;
    let of = |id: &HostId| snapshot.hosts.iter().find(|host| host.id == *id).expect("it is there");
    assert_eq!(
        (of(&away).problems.as_slice(), of(&away).free),
        (&["it is not connected".to_owned()][..], Resources::default())
    );
    assert_eq!(of(&closed).closed.as_deref(), Some("cordoned by ada"));
    assert_eq!(snapshot.max_running, 9);
}
