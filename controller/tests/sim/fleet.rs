//! A whole fleet in one thread: real controllers and real hosts over a simulated network, clock and store.
//!
//! ```text
//! people ─▶ controllers (turmoil host each, own way to the store) ◀─ machines (turmoil host each, engine in memory)
//! ```
//! Each step moves the one clock, ends leases, does what the plan says of this moment, and looks for double runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devfleet_controller::config::Config;
use devfleet_controller::files::Files;
use devfleet_controller::forge::memory::{MemoryForge, Verb, When};
use devfleet_controller::forge::{ForgeError, SharedForge};
use devfleet_controller::forges::Forges;
use devfleet_controller::identity::{Authority, Role, Tokens};
use devfleet_controller::project::{ProjectConfig, ProjectRecord};
use devfleet_controller::server::{self, Ground};
use devfleet_controller::store::memory::MemoryStore;
use devfleet_controller::store::records::{HostRecord, key, put};
use devfleet_controller::store::{SharedStore, Transaction};
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{ControllerId, HostId};
use devfleet_shared::tls;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::forge::Blind;
use crate::machine::{self, Machine};
use crate::net::{SimDial, SimListener};
use crate::people::People;
use crate::plan::{Fault, Mutant, Plan, Trouble};
use crate::store::{SimStore, Way};

const TICK: Duration = Duration::from_millis(20);

const PROJECT: &str = r#"
name = "web"
repository = "https://forge.invalid/web.git"
approval = "auto"
max_attempts = 9
[agents.script]
kind = "script"
command = "true"
"#;
const PIPELINE: &str = "test:\n  image: app:1\n  script:\n    - pytest\n";

/// The fleet.
pub(crate) struct Fleet {
    pub(crate) plan: Plan,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) forge: Arc<MemoryForge>,
    pub(crate) machines: Vec<Arc<Machine>>,
    pub(crate) people: Arc<People>,
    /// What was seen, in order, with its time in milliseconds.
    pub(crate) seen: Vec<(u128, String)>,
    /// What must not be.
    pub(crate) violations: Vec<String>,
    /// Where all controllers keep logs and diffs.
    pub(crate) files: Files,
    dir: TempDir,
    clock: Clock,
    ways: Vec<Arc<Way>>,
    ids: Vec<ControllerId>,
    authority: Arc<Authority>,
    mutant: Option<Mutant>,
    double: BTreeMap<String, usize>,
}

pub(crate) fn controller(number: usize) -> String {
    format!("controller-{number}")
}

pub(crate) fn host(number: usize) -> String {
    format!("host-{number}")
}

impl Fleet {
    /// Sets everything up as it is before the first start.
    pub(crate) fn new(plan: Plan, mutant: Option<Mutant>) -> Fleet {
        tls::install_provider();
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("dir");
        let clock = Clock::fixed(Timestamp(0));
        let store = MemoryStore::new(clock.clone());
        let authority = Arc::new(Authority::open_or_create(&dir.path().join("ca"), &clock).expect("an authority"));
        let forge = Arc::new(MemoryForge::new());
        forge.commit("main", &[(".gitlab-ci.yml", PIPELINE)]);
        let names: Vec<String> = (0..plan.controllers).map(controller).collect();
        let site =
            Site { plan: &plan, dir: dir.path(), clock: &clock, authority: &authority, controllers: &names, mutant };
        let machines = (0..plan.hosts).map(|number| Arc::new(make_machine(number, &site))).collect::<Vec<_>>();
        let token = Setup { store: store.clone(), clock: clock.clone() }.run(&machines);
        let people = People {
            controllers: names,
            config: Arc::new(tls::client(authority.certificate_pem(), None).expect("settings")),
            token,
            accepted: Mutex::default(),
        };
        let way = |number| Way::new(store.clone(), plan.seed.wrapping_mul(31) + number as u64, mutant);
        Fleet {
            ways: (0..plan.controllers).map(way).collect(),
            ids: (0..plan.controllers).map(|_| ControllerId::random()).collect(),
            people: Arc::new(people),
            seen: Vec::new(),
            violations: Vec::new(),
            double: BTreeMap::new(),
            plan,
            store,
            forge,
            machines,
            files: Files::in_memory(),
            dir,
            clock,
            authority,
            mutant,
        }
    }

    /// Returns where a controller keeps its files.
    pub(crate) fn data_dir(&self, number: usize) -> PathBuf {
        self.dir.path().join(controller(number))
    }

    /// Runs until everything has ended, at most for five minutes after the last trouble.
    pub(crate) fn run(&mut self) {
        let mut sim = turmoil::Builder::new()
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(20))
            .rng_seed(self.plan.seed)
            .build();
        for number in 0..self.plan.controllers {
            self.add_controller(&mut sim, number);
        }
        for (number, machine) in self.machines.iter().enumerate() {
            let machine = Arc::clone(machine);
            sim.host(host(number), move || machine::run(Arc::clone(&machine)));
        }
        let (people, jobs) = (Arc::clone(&self.people), self.plan.jobs.clone());
        sim.client("people", async move {
            let tries = jobs.into_iter().enumerate().map(|(number, at)| Arc::clone(&people).submit(number, at));
            futures_util::future::join_all(tries).await;
            Ok(())
        });
        let last = self.plan.calm() + Duration::from_secs(300);
        while sim.elapsed() < last {
            if let Err(error) = sim.step() {
                self.violations.push(format!("a part of the fleet fell: {error}"));
                return;
            }
            self.clock.advance(TICK);
            self.store.expire();
            self.trouble(&mut sim);
            self.look(sim.elapsed());
            if sim.elapsed() > self.plan.calm() && self.is_over() {
                return;
            }
        }
    }

    fn add_controller(&self, sim: &mut turmoil::Sim<'_>, number: usize) {
        let config = Config { names: vec![controller(number)], ..Config::in_directory(self.data_dir(number)) };
        std::fs::create_dir_all(&config.data_dir).expect("dir");
        let forge: SharedForge = match self.mutant {
            Some(Mutant::MergeRequest) => Arc::new(Blind(Arc::clone(&self.forge), AtomicUsize::new(0))),
            _ => self.forge.clone(),
        };
        let (way, id) = (Arc::clone(&self.ways[number]), self.ids[number].clone());
        let (authority, clock, files) = (Arc::clone(&self.authority), self.clock.clone(), self.files.clone());
        sim.host(controller(number), move || {
            let store: SharedStore = Arc::new(SimStore(Arc::clone(&way)));
            let ground = {
                let (store, forge, id, files) = (store.clone(), forge.clone(), id.clone(), files.clone());
                let (authority, clock, cache) = (Arc::clone(&authority), clock.clone(), config.data_dir.join("git"));
                move || Ground {
                    id: id.clone(),
                    store: store.clone(),
                    files: files.clone(),
                    authority: Arc::clone(&authority),
                    forges: Forges::new(store.clone(), cache.clone()).with_fixed(forge.clone()),
                    reach: crate::net::reach,
                    clock: clock.clone(),
                    lock: None,
                }
            };
            serve(config.clone(), ground)
        });
    }

    /// Begins and ends what the plan says.
    fn trouble(&mut self, sim: &mut turmoil::Sim<'_>) {
        let (now, before) = (sim.elapsed(), sim.elapsed().saturating_sub(TICK));
        let due = |at: Duration| before < at && at <= now;
        let begins: Vec<Trouble> = self.plan.troubles.iter().copied().filter(|t| due(t.from)).collect();
        let ends: Vec<Trouble> = self.plan.troubles.iter().copied().filter(|t| due(t.until)).collect();
        for trouble in ends {
            self.note(now, format!("ends: {:?}", trouble.fault));
            self.end(sim, trouble.fault);
        }
        for trouble in begins {
            self.note(now, format!("begins: {:?}", trouble.fault));
            self.begin(sim, trouble.fault);
        }
    }

    fn begin(&mut self, sim: &mut turmoil::Sim<'_>, fault: Fault) {
        match fault {
            Fault::HostCut(h) => (0..self.plan.controllers).for_each(|c| sim.partition(host(h), controller(c))),
            Fault::PairCut(h, c) => sim.partition(host(h), controller(c)),
            Fault::OneWay(h, c) => sim.partition_oneway(host(h), controller(c)),
            Fault::Held(h, c) => sim.hold(host(h), controller(c)),
            Fault::ControllerDown(c) => sim.crash(controller(c)),
            Fault::DaemonDown(h) => drop(self.machines[h].up.send_replace(false)),
            Fault::StoreCut(c) => self.ways[c].mood().cut = true,
            Fault::StoreAmbiguous(c) => self.ways[c].mood().ambiguous = true,
            Fault::StoreLies(c) => {
                self.ways[c].mood().lying = true;
                self.end_lease(c);
            }
            Fault::StoreLate(c) => self.ways[c].mood().late = true,
            Fault::LeaseEnds(which) => self.end_lease(which),
            Fault::ForgeAnswerLost => {
                let lost = ForgeError::Unavailable {
                    action: "open the merge request".into(),
                    detail: "the answer was lost".into(),
                    retry_after: None,
                };
                self.forge.fail(Verb::EnsureMergeRequest, When::After, lost);
            }
        }
    }

    fn end(&mut self, sim: &mut turmoil::Sim<'_>, fault: Fault) {
        match fault {
            Fault::HostCut(h) => (0..self.plan.controllers).for_each(|c| sim.repair(host(h), controller(c))),
            Fault::PairCut(h, c) => sim.repair(host(h), controller(c)),
            Fault::OneWay(h, c) => sim.repair_oneway(host(h), controller(c)),
            Fault::Held(h, c) => sim.release(host(h), controller(c)),
            Fault::ControllerDown(c) => {
                if !sim.is_host_running(controller(c)) {
                    sim.bounce(controller(c));
                }
            }
            Fault::DaemonDown(h) => drop(self.machines[h].up.send_replace(true)),
            Fault::StoreCut(c) => self.ways[c].mood().cut = false,
            Fault::StoreAmbiguous(c) => self.ways[c].mood().ambiguous = false,
            Fault::StoreLies(c) => self.ways[c].mood().lying = false,
            Fault::StoreLate(c) => self.ways[c].mood().late = false,
            Fault::LeaseEnds(_) | Fault::ForgeAnswerLost => {}
        }
    }

    fn end_lease(&self, which: usize) {
        let leases = self.store.leases();
        if !leases.is_empty() {
            self.store.end_lease(leases[which % leases.len()]);
        }
    }

    fn note(&mut self, at: Duration, what: String) {
        self.seen.push((at.as_millis(), what));
    }

    /// Looks at what runs where.
    fn look(&mut self, now: Duration) {
        let mut running: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (number, machine) in self.machines.iter().enumerate() {
            for (job, attempt) in machine.runs.lock().expect("no panic").iter() {
                running.entry(job.clone()).or_default().push(format!("{attempt} on {}", host(number)));
            }
        }
        let count: BTreeMap<String, usize> = running.iter().map(|(job, on)| (job.clone(), on.len())).collect();
        if count == self.double {
            return;
        }
        for (job, on) in running.iter().filter(|(_, on)| on.len() > 1) {
            self.violations.push(format!("job {job} runs twice at {} ms: {}", now.as_millis(), on.join(", ")));
        }
        self.note(now, format!("running: {running:?}"));
        self.double = count;
    }

    /// Says whether every job was accepted and has ended, and no host has anything left, or to say.
    fn is_over(&self) -> bool {
        let accepted = self.people.accepted.lock().expect("no panic").len();
        let ended = crate::check::states(self).values().filter(|state| state.phase.is_terminal()).count();
        let clean = self.machines.iter().all(|machine| machine.engine.objects().is_empty());
        let shipped = self.machines.iter().all(|machine| machine.unshipped() == 0);
        accepted == self.plan.jobs.len() && ended >= accepted && clean && shipped
    }
}

/// Runs one controller, which waits for its store as a supervised process does.
async fn serve(config: Config, ground: impl Fn() -> Ground) -> turmoil::Result {
    loop {
        let listener = SimListener::bind().await?;
        match server::start_on(&config, ground(), listener, SocketAddr::from(([0, 0, 0, 0], crate::net::PORT))).await {
            Ok(running) => {
                let _running = running;
                std::future::pending::<()>().await;
            }
            // sleep: a supervisor waits before it starts a program again
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// What machines are made from.
struct Site<'a> {
    plan: &'a Plan,
    dir: &'a Path,
    clock: &'a Clock,
    authority: &'a Authority,
    controllers: &'a [String],
    mutant: Option<Mutant>,
}

fn make_machine(number: usize, site: &Site<'_>) -> Machine {
    let Site { plan, dir, clock, authority, controllers, mutant } = *site;
    let id = HostId::random();
    let request = tls::signing_request().expect("a key");
    let certified = authority.sign_host(&request.request_pem, &id).expect("a certificate");
    let own = (certified.certificate_pem.as_str(), &request.key_pem);
    let config = Arc::new(tls::client(authority.certificate_pem(), Some(own)).expect("settings"));
    let dial = SimDial { controllers: controllers.to_vec(), config, turn: AtomicUsize::new(number) };
    let data_dir = dir.join(host(number));
    std::fs::create_dir_all(&data_dir).expect("dir");
    let text = format!("data_dir = {data_dir:?}\nname = \"host-{number}\"\nslots = 3\n");
    Machine {
        host: id,
        engine: machine::engine(plan.agent[number], mutant),
        dial: Arc::new(dial),
        clock: clock.clone(),
        config: devfleet_host::config::Config::parse(Path::new("host.toml"), &text).expect("a configuration"),
        up: watch::Sender::new(true),
        runs: Mutex::default(),
    }
}

/// What stands in the store before anything starts.
struct Setup {
    store: Arc<MemoryStore>,
    clock: Clock,
}

impl Setup {
    fn run(self, machines: &[Arc<Machine>]) -> devfleet_shared::secret::Secret {
        let config = ProjectConfig::parse(PROJECT).expect("a project");
        let project = ProjectRecord { config, updated: self.clock.now() };
        let mut then = vec![put(key::project(&"web".parse().expect("a name")), &project).expect("put")];
        for (number, machine) in machines.iter().enumerate() {
            let record = HostRecord {
                id: machine.host.clone(),
                name: host(number),
                joined: self.clock.now(),
                certificate_ends: self.clock.now().after(Duration::from_secs(24 * 3600)),
                labels: BTreeMap::new(),
                desired: Default::default(),
            };
            then.push(put(key::host(&machine.host), &record).expect("put"));
        }
        let store: SharedStore = Arc::new(Arc::clone(&self.store));
        let tokens = Tokens::new(store.clone(), self.clock.clone());
        let set_up = async {
            store.commit(Transaction { when: Vec::new(), then }).await.expect("commit");
            tokens.create("people", Role::Operator, None).await.expect("a token").1
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(set_up)
    }
}
