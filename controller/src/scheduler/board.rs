//! The hosts while a plan is made: what is still free, which are set aside, and for each kind of needs the hosts in the
//! order in which they would start the job.
//!
//! Within one plan a host only gets fuller, so its cost only rises: the orders are heaps whose entries are looked at
//! again when they come up and their host has changed since. So a job costs a few looks, not one at every host.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use devfleet_shared::admission;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::{Digest, HostId, JobId};
use devfleet_shared::resources::Resources;

use super::{HostView, Needs, QueuedJob, Reasons, Snapshot, rules, score};

/// The host has the image.
const HAS: u8 = 1;
/// The host has a mirror of the repository.
const MIRROR: u8 = 2;
/// The host makes the image.
const MAKES: u8 = 4;

#[cfg(test)]
std::thread_local! {
    /// How many times a host was looked at on this thread.
    pub(super) static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A host, as it stands in a heap: cost, index, version of the host at that time.
type Ranked = Reverse<(u64, u32, u32)>;

/// Needs as a key.
type Key<'a> = ([u64; 5], &'a BTreeMap<String, String>, Option<&'a str>, Option<&'a Digest>, &'a str);

/// What changes on a host while a plan is made.
struct Slate {
    free: Resources,
    starting: u32,
    cpu_millis_given: u64,
    version: u32,
    set_aside: bool,
}

/// The hosts for one kind of needs.
#[derive(Default)]
struct Kind {
    flags: Vec<u8>,
    /// With the image, or where it is being made, or all where no image is named.
    warm: BinaryHeap<Ranked>,
    cold: BinaryHeap<Ranked>,
    /// How many of the recipe's makers are in `warm`.
    makers_seen: usize,
    /// Why such jobs wait, once one has asked.
    full: Option<Reasons>,
}

/// The board.
pub(super) struct Board<'a> {
    now: Timestamp,
    hosts: &'a [HostView],
    slates: Vec<Slate>,
    ready: usize,
    kinds: BTreeMap<Key<'a>, Kind>,
    having: BTreeMap<&'a Digest, Vec<u32>>,
    making: BTreeMap<&'a Digest, Vec<u32>>,
    mirroring: BTreeMap<&'a str, Vec<u32>>,
    reserved: BTreeMap<JobId, u32>,
    kept: Vec<&'a QueuedJob>,
}

impl<'a> Board<'a> {
    /// Lays the hosts out. What was set aside stays so while its job waits and its host is there.
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let hosts = &snapshot.hosts[..];
        let slate = |host: &HostView| Slate {
            free: host.free,
            starting: host.starting,
            cpu_millis_given: host.cpu_millis_given,
            version: 0,
            set_aside: false,
        };
        let mut board = Board {
            now: snapshot.now,
            hosts,
            slates: hosts.iter().map(slate).collect(),
            ready: hosts.iter().filter(|host| host.is_ready()).count(),
            kinds: BTreeMap::new(),
            having: BTreeMap::new(),
            making: BTreeMap::new(),
            mirroring: BTreeMap::new(),
            reserved: BTreeMap::new(),
            kept: Vec::new(),
        };
        for (index, host) in (0..).zip(hosts) {
            host.recipes.iter().for_each(|recipe| board.having.entry(recipe).or_default().push(index));
            let made = host.building.iter().filter(|recipe| !host.recipes.contains(*recipe));
            made.for_each(|recipe| board.making.entry(recipe).or_default().push(index));
            host.mirrors.iter().for_each(|mirror| board.mirroring.entry(mirror).or_default().push(index));
        }
        if !snapshot.reserved.is_empty() {
            board.keep_reservations(snapshot);
        }
        board
    }

    fn keep_reservations(&mut self, snapshot: &'a Snapshot) {
        let index: BTreeMap<&HostId, u32> = self.hosts.iter().map(|host| &host.id).zip(0..).collect();
        for job in &snapshot.queued {
            let Some(&at) = snapshot.reserved.get(&job.job).and_then(|host| index.get(host)) else { continue };
            let host = &self.hosts[at as usize];
            if rules::unfit(host, &job.needs).is_none() && rules::will_have_room(host, &job.needs) {
                self.slates[at as usize].set_aside = true;
                self.reserved.insert(job.job.clone(), at);
                self.kept.push(job);
            }
        }
    }

    /// Returns the jobs that have hosts set aside since an earlier plan.
    pub(super) fn kept(&self) -> Vec<&'a QueuedJob> {
        self.kept.clone()
    }

    /// Returns what is set aside.
    pub(super) fn reservations(&self) -> BTreeMap<JobId, HostId> {
        self.reserved.iter().map(|(job, at)| (job.clone(), self.hosts[*at as usize].id.clone())).collect()
    }

    /// Gives a job that has a host set aside to that host or to any that has room by now. What it leaves is free again.
    pub(super) fn place_reserved(&mut self, job: &'a QueuedJob) -> Option<HostId> {
        let at = *self.reserved.get(&job.job)?;
        self.slates[at as usize].set_aside = false;
        // Not kept for others: they are to see the host again that was set aside.
        let mut kind = self.kind(&job.needs);
        let chosen = self.choose(job, &mut kind);
        match chosen {
            Some(host) => {
                self.reserved.remove(&job.job);
                Some(self.take(host, &job.needs, &kind))
            }
            None => {
                self.slates[at as usize].set_aside = true;
                None
            }
        }
    }

    /// Gives a job to the host on which it would start first, or says why none takes it.
    pub(super) fn place(&mut self, job: &'a QueuedJob) -> Result<HostId, Reasons> {
        if let Some(&at) = self.reserved.get(&job.job) {
            return Err(rules::reserved(&self.hosts[at as usize]));
        }
        let needs = &*job.needs;
        let key = key(needs);
        let mut kind = match self.kinds.remove(&key) {
            Some(kind) => kind,
            None => self.kind(needs),
        };
        let placed = match self.choose(job, &mut kind) {
            Some(at) => Ok(self.take(at, needs, &kind)),
            None => Err(self.refuse(job, &mut kind)),
        };
        self.kinds.insert(key, kind);
        placed
    }

    fn take(&mut self, at: u32, needs: &'a Needs, kind: &Kind) -> HostId {
        if let Some(recipe) = needs.recipe.as_ref().filter(|_| kind.flags[at as usize] & (HAS | MAKES) == 0) {
            self.making.entry(recipe).or_default().push(at);
        }
        let slate = &mut self.slates[at as usize];
        slate.free = slate.free.minus(admission::set_aside(needs.resources));
        slate.cpu_millis_given += needs.resources.cpu_millis;
        slate.starting += 1;
        slate.version += 1;
        self.hosts[at as usize].id.clone()
    }

    /// Ranks all hosts for needs that were not seen yet.
    fn kind(&self, needs: &'a Needs) -> Kind {
        let mut kind = Kind { flags: vec![0; self.hosts.len()], ..Kind::default() };
        let mut mark = |hosts: Option<&Vec<u32>>, flag: u8| {
            hosts.into_iter().flatten().for_each(|at| kind.flags[*at as usize] |= flag);
        };
        mark(needs.recipe.as_ref().and_then(|recipe| self.having.get(recipe)), HAS);
        mark(self.mirroring.get(needs.repository.as_str()), MIRROR);
        let (mut warm, mut cold) = (Vec::new(), Vec::new());
        for (at, host) in (0..).zip(self.hosts) {
            if rules::unfit(host, needs).is_none() && !self.slates[at as usize].set_aside && self.admits(at, needs) {
                let flags = kind.flags[at as usize];
                let near = needs.recipe.is_none() || flags & HAS != 0;
                if near { &mut warm } else { &mut cold }.push(self.ranked(at, flags, needs));
            }
        }
        (kind.warm, kind.cold) = (warm.into(), cold.into());
        kind
    }

    fn ranked(&self, at: u32, flags: u8, needs: &Needs) -> Ranked {
        let slate = &self.slates[at as usize];
        let host = &self.hosts[at as usize];
        let mut cost = score::base(host, &slate.free, slate.starting, slate.cpu_millis_given);
        if needs.recipe.is_some() && flags & HAS == 0 {
            cost += score::IMAGE_MS;
        }
        if flags & MIRROR == 0 {
            cost += score::MIRROR_MS;
        }
        Reverse((cost, at, slate.version))
    }

    fn choose(&self, job: &QueuedJob, kind: &mut Kind) -> Option<u32> {
        let needs = &*job.needs;
        let makers = needs.recipe.as_ref().and_then(|recipe| self.making.get(recipe)).map_or(&[][..], Vec::as_slice);
        for &at in &makers[kind.makers_seen..] {
            kind.flags[at as usize] |= MAKES;
            if rules::unfit(&self.hosts[at as usize], needs).is_none() && self.admits(at, needs) {
                kind.warm.push(self.ranked(at, kind.flags[at as usize], needs));
            }
        }
        kind.makers_seen = makers.len();
        let flags = &kind.flags;
        let warm = self.best(&mut kind.warm, needs, flags, false);
        let cold = match rules::may_build(job, makers.len(), self.now) {
            true => self.best(&mut kind.cold, needs, flags, true),
            false => None,
        };
        let chosen = [warm, cold].into_iter().flatten().min();
        chosen.map(|(_, at)| at)
    }

    /// Looks at the first of a heap until it is up to date, and leaves it there.
    fn best(&self, heap: &mut BinaryHeap<Ranked>, needs: &Needs, flags: &[u8], cold: bool) -> Option<(u64, u32)> {
        while let Some(&Reverse((cost, at, version))) = heap.peek() {
            let slate = &self.slates[at as usize];
            let moved = cold && flags[at as usize] & MAKES != 0;
            if slate.set_aside || moved {
                heap.pop();
            } else if slate.version == version {
                return Some((cost, at));
            } else {
                heap.pop();
                if self.admits(at, needs) {
                    heap.push(self.ranked(at, flags[at as usize], needs));
                }
            }
        }
        None
    }

    fn refuse(&mut self, job: &QueuedJob, kind: &mut Kind) -> Reasons {
        let needs = &*job.needs;
        let makers = needs.recipe.as_ref().and_then(|recipe| self.making.get(recipe)).map_or(0, Vec::len);
        if !rules::may_build(job, makers, self.now) && self.best(&mut kind.cold, needs, &kind.flags, true).is_some() {
            return rules::image_under_way(makers);
        }
        if rules::may_reserve(job, self.now, self.reserved.len(), self.ready)
            && let Some(at) = self.soonest(needs)
        {
            self.slates[at as usize].set_aside = true;
            self.reserved.insert(job.job.clone(), at);
            return rules::reserved(&self.hosts[at as usize]);
        }
        let hosts = self.hosts.iter().zip(&self.slates).map(|(host, slate)| (host, slate.free, slate.set_aside));
        kind.full.get_or_insert_with(|| rules::no_room(hosts, needs)).clone()
    }

    /// Finds the host that is nearest to having room.
    fn soonest(&self, needs: &Needs) -> Option<u32> {
        let able = (0u32..).zip(self.hosts.iter().zip(&self.slates)).filter(|(_, (host, slate))| {
            !slate.set_aside && rules::unfit(host, needs).is_none() && rules::will_have_room(host, needs)
        });
        able.min_by_key(|(at, (_, slate))| (rules::shortfall(&slate.free, &needs.resources), *at)).map(|(at, _)| at)
    }

    fn admits(&self, at: u32, needs: &Needs) -> bool {
        #[cfg(test)]
        LOOKS.with(|looks| looks.set(looks.get() + 1));
        admission::fits(&self.slates[at as usize].free, &needs.resources)
    }
}

fn key(needs: &Needs) -> Key<'_> {
    let wanted = &needs.resources;
    let amounts = [wanted.cpu_millis, wanted.memory_bytes, wanted.disk_bytes, wanted.disk_inodes, wanted.slots];
    (amounts, &needs.labels, needs.runtime.as_deref(), needs.recipe.as_ref(), needs.repository.as_str())
}
