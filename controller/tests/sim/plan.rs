//! What a seed decides: how large the fleet is, what it is given to do, and what goes wrong when.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// A guard that is taken away, to see that the checks miss it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The store answers before it has written, and forgets some of it.
    Durable,
    /// Environments that are to be frozen run on.
    Freeze,
    /// Merge requests are opened without looking for them first.
    MergeRequest,
}

impl Mutant {
    pub(crate) const ALL: [Mutant; 3] = [Mutant::Durable, Mutant::Freeze, Mutant::MergeRequest];

    /// Returns what the checks must complain of.
    pub(crate) fn complaint(self) -> &'static str {
        match self {
            Mutant::Durable => "seed",
            Mutant::Freeze => "runs twice",
            Mutant::MergeRequest => "merge requests",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Mutant> {
        Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == name)
    }
}

/// One seed of so many cuts a host off for longer than its jobs stay its own.
const LONG_CUTS: u64 = 8;

/// Something that goes wrong. Hosts and controllers by number, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The host reaches no controller.
    HostCut(usize),
    /// The host does not reach this controller.
    PairCut(usize, usize),
    /// What the host says does not arrive; what it is told does.
    OneWay(usize, usize),
    /// Nothing is lost between the two, and nothing arrives.
    Held(usize, usize),
    /// The controller is killed, and started again later.
    ControllerDown(usize),
    /// The daemon is killed, and started again later; containers run on.
    DaemonDown(usize),
    /// The controller does not reach the store.
    StoreCut(usize),
    /// Answers of the store are lost.
    StoreAmbiguous(usize),
    /// Keep-alives are answered though leases are gone, and one lease ends early.
    StoreLies(usize),
    /// What the store tells of changes comes late, or breaks off.
    StoreLate(usize),
    /// A lease ends early.
    LeaseEnds(usize),
    /// The forge does what it is asked, and its answer is lost.
    ForgeAnswerLost,
}

/// A fault and its time, counted from the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    pub(crate) fault: Fault,
}

/// The whole plan.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    pub(crate) controllers: usize,
    /// When each job is submitted.
    pub(crate) jobs: Vec<Duration>,
    /// How long the agent's step takes on each host.
    pub(crate) agent: Vec<Duration>,
    pub(crate) troubles: Vec<Trouble>,
}

impl Plan {
    /// Makes the plan of a seed. Seed 0 is a day on which nothing goes wrong.
    pub(crate) fn of(seed: u64) -> Plan {
        let mut chance = StdRng::seed_from_u64(seed);
        let (hosts, controllers) = (chance.random_range(2..=3), 2);
        let count = chance.random_range(2..=4);
        let jobs = (0..count).map(|_| ms(&mut chance, 1_000..20_000)).collect();
        let agent = (0..hosts).map(|_| ms(&mut chance, 500..45_000)).collect();
        let troubles = if seed == 0 { 0 } else { chance.random_range(1..=6) };
        let troubles = (0..troubles).map(|_| trouble(&mut chance, hosts, controllers)).collect();
        let mut plan = Plan { seed, hosts, controllers, jobs, agent, troubles };
        if seed % LONG_CUTS == 3 {
            plan.cut_off_for_long(&mut chance);
        }
        plan
    }

    /// A host is cut off at work, for so long that its jobs go to another one while it could still be at work itself.
    fn cut_off_for_long(&mut self, chance: &mut StdRng) {
        self.agent = (0..self.hosts).map(|_| ms(chance, 70_000..90_000)).collect();
        let from = ms(chance, 22_000..28_000);
        let fault = Fault::HostCut(chance.random_range(0..self.hosts));
        self.troubles.push(Trouble { from, until: from + ms(chance, 62_000..75_000), fault });
    }

    /// Returns when everything is whole again.
    pub(crate) fn calm(&self) -> Duration {
        let last = self.troubles.iter().map(|trouble| trouble.until);
        last.chain(self.jobs.iter().copied()).max().unwrap_or_default()
    }
}

fn ms(chance: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(chance.random_range(range))
}

fn trouble(chance: &mut StdRng, hosts: usize, controllers: usize) -> Trouble {
    let (host, controller) = (chance.random_range(0..hosts), chance.random_range(0..controllers));
    let fault = match chance.random_range(0..13) {
        0 | 1 => Fault::HostCut(host),
        2 => Fault::PairCut(host, controller),
        3 => Fault::OneWay(host, controller),
        4 => Fault::Held(host, controller),
        5 => Fault::ControllerDown(controller),
        6 => Fault::DaemonDown(host),
        7 => Fault::StoreCut(controller),
        8 => Fault::StoreAmbiguous(controller),
        9 => Fault::StoreLies(controller),
        10 => Fault::StoreLate(controller),
        11 => Fault::LeaseEnds(chance.random_range(0..8)),
        _ => Fault::ForgeAnswerLost,
    };
    let from = ms(chance, 2_000..40_000);
    let long = chance.random_bool(0.3);
    let span = if long { ms(chance, 30_000..70_000) } else { ms(chance, 500..15_000) };
    Trouble { from, until: from + span, fault }
}
