//! Tables and properties of the scheduler.

use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp(10_000_000);

fn id(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

fn slots(slots: u64) -> Resources {
    Resources { slots, ..Resources::default() }
}

fn recipe(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn host(number: usize, free: u64) -> HostView {
    let mut host = HostView::new(id(number).parse().expect("a UUID"), format!("host-{number}"));
    (host.total, host.free) = (slots(free.max(10)), slots(free));
    host
}

/// A job that was submitted so many seconds ago.
fn job(number: usize, project: &str, age: u64) -> QueuedJob {
    let submitted = Timestamp(NOW.0 - age * 1_000);
    QueuedJob {
        job: id(number).parse().expect("a UUID"),
        project: project.parse().expect("a name"),
        priority: 0,
        submitted,
        since: submitted,
        not_before: Timestamp(0),
        needs: Arc::new(Needs { resources: slots(1), ..Needs::default() }),
    }
}

fn needing(mut job: QueuedJob, change: impl FnOnce(&mut Needs)) -> QueuedJob {
    change(Arc::make_mut(&mut job.needs));
    job
}

fn snapshot(max_running: usize, hosts: Vec<HostView>, queued: Vec<QueuedJob>) -> Snapshot {
    Snapshot { now: NOW, max_running, hosts, queued, ..Snapshot::default() }
}

fn number(id: &str) -> usize {
    id[24..].parse().expect("a number")
}

/// Who goes where, as numbers.
fn assigned(plan: &Plan) -> Vec<(usize, usize)> {
    plan.assign.iter().map(|(job, host)| (number(job.as_str()), number(host.as_str()))).collect()
}

fn reasons(plan: &Plan, job: usize) -> String {
    plan.wait.iter().find(|(id, _)| number(id.as_str()) == job).map(|(_, why)| why.join(" | ")).unwrap_or_default()
}

/// The world after a plan was carried out.
fn after(mut world: Snapshot, made: &Plan) -> Snapshot {
    for (job, to) in &made.assign {
        let job = world.queued.iter().find(|queued| queued.job == *job).expect("it was queued").clone();
        let host = world.hosts.iter_mut().find(|host| host.id == *to).expect("it is there");
        host.free = host.free.minus(job.needs.resources);
        host.starting += 1;
        host.building.extend(job.needs.recipe.clone());
        world.projects.entry(job.project.clone()).or_default().running += 1;
    }
    world.queued.retain(|job| made.wait.contains_key(&job.job));
    world.reserved = made.reserve.clone();
    world
}

#[test]
fn the_oldest_goes_first_and_projects_take_turns() {
    let queued = vec![job(1, "a", 9), job(2, "a", 8), job(3, "b", 7), job(4, "a", 6)];
    let plan = plan(&snapshot(3, vec![host(1, 10)], queued));
    assert_eq!(assigned(&plan), [(1, 1), (3, 1), (2, 1)]);
    assert!(reasons(&plan, 4).contains("3 of 3"));
}

#[test]
fn a_project_of_twice_the_weight_gets_twice_as_much() {
    let mut queued: Vec<_> = (0..12).map(|number| job(number, "heavy", 9)).collect();
    queued.extend((20..32).map(|number| job(number, "light", 10)));
    let mut world = snapshot(9, vec![host(1, 10)], queued);
    world.projects.insert("heavy".parse().expect("a name"), ProjectView { weight: 2, ..ProjectView::default() });
    let heavy = assigned(&plan(&world)).iter().filter(|(job, _)| *job < 20).count();
    assert_eq!(heavy, 6);
}

#[test]
fn running_jobs_count_as_share() {
    let mut world = snapshot(4, vec![host(1, 1)], vec![job(1, "busy", 9), job(2, "idle", 1)]);
    world.projects.insert("busy".parse().expect("a name"), ProjectView { running: 3, ..ProjectView::default() });
    assert_eq!(assigned(&plan(&world)), [(2, 1)]);
}

#[test]
fn priority_goes_before_age_and_waiting_raises_it() {
    let mut urgent = job(2, "a", 1);
    urgent.priority = 5;
    assert_eq!(assigned(&plan(&snapshot(1, vec![host(1, 9)], vec![job(1, "a", 9), urgent.clone()]))), [(2, 1)]);
    let starving = job(1, "a", 9_000);
    assert_eq!(assigned(&plan(&snapshot(1, vec![host(1, 9)], vec![starving, urgent]))), [(1, 1)]);
}

#[test]
fn a_projects_own_cap_lets_others_pass() {
    let queued = vec![job(1, "a", 9), job(2, "a", 8), job(3, "b", 7)];
    let mut world = snapshot(9, vec![host(1, 9)], queued);
    let capped = ProjectView { max_running: Some(1), ..ProjectView::default() };
    world.projects.insert("a".parse().expect("a name"), capped);
    let made = plan(&world);
    assert_eq!(assigned(&made), [(1, 1), (3, 1)]);
    assert!(reasons(&made, 2).starts_with("project: 1 of 1 jobs of a run"), "{}", reasons(&made, 2));
}

#[test]
fn the_emptier_host_wins_and_a_host_with_problems_gets_nothing() {
    let mut ill = host(2, 9);
    ill.problems = vec!["its disk is full".into()];
    let made = plan(&snapshot(9, vec![host(1, 1), ill.clone(), host(3, 2)], vec![job(1, "a", 1)]));
    assert_eq!(assigned(&made), [(1, 3)]);
    let waits = plan(&snapshot(9, vec![ill, host(4, 0)], vec![job(1, "a", 1)]));
    let why = reasons(&waits, 1);
    assert!(why.contains("disk is full") && why.contains("host-4: too little slots"), "{why}");
}

#[test]
fn each_reason_against_a_host_is_named() {
    let check = |change: fn(&mut HostView), expected: &str| {
        let mut only = host(1, 9);
        change(&mut only);
        let wanted = needing(job(1, "a", 1), |needs| {
            needs.labels.insert("disk".into(), "nvme".into());
            needs.runtime = Some("runsc".into());
        });
        let made = plan(&snapshot(9, vec![only], vec![wanted]));
        assert!(reasons(&made, 1).contains(expected), "{expected}: {}", reasons(&made, 1));
        assert_eq!(made.assign.is_empty(), !expected.is_empty());
    };
    let fit = |host: &mut HostView| {
        host.labels.insert("disk".into(), "nvme".into());
        host.runtimes.insert("runsc".into());
    };
    check(fit, "");
    check(
        |host| {
            host.runtimes.insert("runsc".into());
        },
        "has not the label disk=nvme",
    );
    check(
        |host| {
            host.labels.insert("disk".into(), "nvme".into());
        },
        "no runtime runsc",
    );
    check(|host| host.quarantined = Some("3 attempts failed in 10 minutes".into()), "quarantined: 3 attempts");
}

#[test]
fn of_very_many_hosts_kinds_of_trouble_are_counted() {
    let hosts = (1..40).map(|number| host(number, 0)).collect();
    let made = plan(&snapshot(9, hosts, vec![job(1, "a", 1)]));
    assert_eq!(reasons(&made, 1), "39 hosts, such as host-1: too little slots");
}

#[test]
fn without_hosts_or_before_its_time_a_job_waits_and_says_so() {
    assert!(reasons(&plan(&snapshot(9, vec![], vec![job(1, "a", 1)])), 1).contains("join-token"));
    let mut later = job(1, "a", 1);
    later.not_before = Timestamp(NOW.0 + 5_000);
    assert!(reasons(&plan(&snapshot(9, vec![host(1, 1)], vec![later])), 1).contains("in 6 s"));
}

#[test]
fn the_host_on_which_a_job_starts_soonest_wins() {
    let check = |change: fn(&mut HostView), wins: bool| {
        let (mut changed, other) = (host(1, 9), host(2, 9));
        changed.total.disk_bytes = 1_000;
        changed.free.disk_bytes = 900;
        changed.total.cpu_millis = 1_000;
        let wanted = needing(job(1, "a", 1), |needs| {
            needs.recipe = Some(recipe("r"));
            needs.repository = "m".into();
        });
        change(&mut changed);
        // The plain host comes first in line: of two equal ones it would win.
        let to = assigned(&plan(&snapshot(9, vec![other, changed], vec![wanted])))[0].1;
        assert_eq!(to == 1, wins);
    };
    check(|_| {}, false);
    check(
        |host| {
            host.recipes.insert(recipe("r"));
        },
        true,
    );
    check(
        |host| {
            host.mirrors.insert("m".into());
        },
        true,
    );
    check(
        |host| {
            host.mirrors.insert("m".into());
            host.recent_failures = 1;
        },
        false,
    );
    check(
        |host| {
            host.mirrors.insert("m".into());
            host.starting = 6;
        },
        false,
    );
    check(
        |host| {
            host.mirrors.insert("m".into());
            host.free.disk_bytes = 10;
        },
        false,
    );
    check(
        |host| {
            host.mirrors.insert("m".into());
            host.cpu_millis_given = 2_000;
        },
        false,
    );
}

#[test]
fn a_new_image_is_made_on_few_hosts_and_the_others_wait_a_bounded_time() {
    let cold = |number, age| needing(job(number, "a", age), |needs| needs.recipe = Some(recipe("new")));
    let hosts: Vec<_> = (1..=6).map(|number| host(number, 1)).collect();
    let made = plan(&snapshot(9, hosts.clone(), (1..=6).map(|number| cold(number, 10)).collect()));
    assert_eq!(made.assign.len(), rules::BUILDERS);
    assert!(reasons(&made, 6).starts_with("image: 2 hosts make the image"), "{}", reasons(&made, 6));
    let late = plan(&snapshot(9, hosts.clone(), (1..=6).map(|number| cold(number, 400)).collect()));
    assert_eq!(late.assign.len(), 6);
    let mut warm = hosts;
    warm.iter_mut().for_each(|host| {
        host.recipes.insert(recipe("new"));
    });
    assert_eq!(plan(&snapshot(9, warm, (1..=6).map(|number| cold(number, 10)).collect())).assign.len(), 6);
}

#[test]
fn a_large_job_gets_a_host_set_aside_that_small_ones_cannot_fill() {
    let large = |age| needing(job(1, "a", age), |needs| needs.resources = slots(8));
    let small: Vec<_> = (2..30).map(|number| job(number, "b", 1)).collect();
    let all = |age| small.iter().cloned().chain([large(age)]).collect();
    let hosts = vec![host(1, 3), host(2, 5)];
    let young = plan(&snapshot(99, hosts.clone(), all(5)));
    assert_eq!((young.assign.len(), young.reserve.len()), (8, 0));
    // The host with the larger part free is set aside before the small ones get there.
    let old = plan(&snapshot(99, hosts, all(700)));
    assert_eq!(old.reserve.values().map(|host| number(host.as_str())).collect::<Vec<_>>(), [2]);
    assert_eq!(old.assign.len(), 3);
    assert!(reasons(&old, 1).starts_with("reservation: host host-2"), "{}", reasons(&old, 1));
    let mut freed = snapshot(99, vec![host(1, 0), host(2, 10)], all(760));
    freed.reserved = old.reserve;
    let made = plan(&freed);
    assert_eq!(assigned(&made)[0], (1, 2));
    assert_eq!((made.assign.len(), made.reserve.len()), (3, 0));
}

#[test]
fn no_host_is_set_aside_that_will_never_have_room() {
    let large = needing(job(1, "a", 700), |needs| needs.resources = slots(80));
    assert!(plan(&snapshot(9, vec![host(1, 1)], vec![large])).reserve.is_empty());
    let mut idle = host(1, 10);
    (idle.total.disk_bytes, idle.free.disk_bytes) = (100, 10);
    let large = needing(job(1, "a", 700), |needs| needs.resources.disk_bytes = 50);
    assert!(plan(&snapshot(9, vec![idle], vec![large])).reserve.is_empty());
}

prop_compose! {
    fn a_host()(free in 0u64..5, flags in 0u32..64, starting in 0u32..3) -> HostView {
        let mut host = host(0, free);
        host.total = slots(5);
        host.starting = starting;
        if flags & 3 == 3 { host.problems.push("it is ill".into()) }
        if flags & 4 != 0 { host.labels.insert("l".into(), "x".into()); }
        if flags & 8 != 0 { host.recipes.insert(recipe("r")); }
        if flags & 48 == 48 { host.building.insert(recipe("s")); }
        host
    }
}

prop_compose! {
    fn a_world()(
        max_running in 0usize..9,
        hosts in prop::collection::vec(a_host(), 0..5),
        jobs in prop::collection::vec((0usize..3, 0u64..2_000, -2i32..3, 1u64..5, 0usize..6), 0..24),
        cap in prop::option::of(1usize..4),
    ) -> Snapshot {
        let mut world = snapshot(max_running, hosts, vec![]);
        for (number, host) in world.hosts.iter_mut().enumerate() {
            (host.id, host.name) = (id(number).parse().expect("a UUID"), format!("host-{number}"));
        }
        for (number, (project, age, priority, size, kind)) in jobs.into_iter().enumerate() {
            let mut job = needing(job(number, ["a", "b", "c"][project], age), |needs| {
                needs.resources = slots(size);
                if kind == 1 { needs.labels.insert("l".into(), "x".into()); }
                needs.recipe = [None, None, Some(recipe("r")), Some(recipe("s")), Some(recipe("t")), None][kind].clone();
            });
            job.priority = priority;
            world.queued.push(job);
        }
        world.projects.insert("a".parse().expect("a name"), ProjectView { weight: 3, max_running: cap, running: 0 });
        world
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_plan_is_a_function_and_covers_every_job(world in a_world()) {
        let made = plan(&world);
        prop_assert_eq!(&made, &plan(&world));
        let mut turned = world.clone();
        turned.queued.reverse();
        prop_assert_eq!(&made, &plan(&turned));
        prop_assert_eq!(made.assign.len() + made.wait.len(), world.queued.len());
        prop_assert!(made.wait.values().all(|why| !why.is_empty()));
    }

    #[test]
    fn a_plan_never_oversubscribes(world in a_world()) {
        let made = plan(&world);
        prop_assert!(made.assign.len() <= world.max_running);
        let (mut free, mut of_a) = (BTreeMap::new(), 0);
        for host in &world.hosts { free.insert(&host.id, host.free.slots); }
        for (job, to) in &made.assign {
            let job = world.queued.iter().find(|queued| queued.job == *job).expect("it was queued");
            let host = world.hosts.iter().find(|host| host.id == *to).expect("it is there");
            prop_assert!(host.problems.is_empty());
            prop_assert!(job.needs.labels.iter().all(|(name, value)| host.labels.get(name) == Some(value)));
            let left = free.get_mut(to).expect("it is there");
            prop_assert!(*left >= job.needs.resources.slots);
            *left -= job.needs.resources.slots;
            of_a += usize::from(job.project.as_str() == "a");
        }
        let cap = world.projects.values().next().and_then(|project| project.max_running);
        prop_assert!(cap.is_none_or(|cap| of_a <= cap));
    }

    #[test]
    fn planning_again_on_the_result_adds_nothing(world in a_world()) {
        let mut world = world;
        for _ in 0..2 {
            let made = plan(&world);
            world = after(world, &made);
            prop_assert_eq!(assigned(&plan(&world)), vec![]);
            // What ends makes room; then the same holds again, with what was set aside.
            world.hosts.iter_mut().for_each(|host| host.free.slots = (host.free.slots + 2).min(5));
        }
    }

    #[test]
    fn nothing_is_left_free_for_a_job_that_fits(world in a_world()) {
        let made = plan(&world);
        let then = after(world, &made);
        let running = made.assign.len();
        for job in then.queued.iter().filter(|job| job.needs.recipe.is_none() && job.project.as_str() != "a") {
            let fits = then.hosts.iter().any(|host| {
                !made.reserve.values().any(|reserved| *reserved == host.id)
                    && rules::unfit(host, &job.needs).is_none()
                    && host.free.slots >= job.needs.resources.slots
            });
            prop_assert!(!fits || running >= then.max_running || made.reserve.contains_key(&job.job));
        }
    }
}

/// A fleet of many hosts and very many jobs. Counted in looks at hosts, not in time: time depends on the machine.
#[test]
fn a_job_more_costs_a_look_not_a_walk_over_all_hosts() {
    let hosts: Vec<_> = (0..2_000).map(|number| host(number, 4)).collect();
    let queued: Vec<_> = (0..4_000).map(|number| job(number, ["a", "b", "c"][number % 3], 9)).collect();
    board::LOOKS.with(|looks| looks.set(0));
    let made = plan(&snapshot(3_000, hosts, queued));
    let looks = board::LOOKS.with(std::cell::Cell::get);
    assert_eq!(made.assign.len(), 3_000);
    // One kind of needs: each host once, and then a few looks for each job. A walk would take 6,000,000.
    assert!(looks < 2_000 + 10 * 3_000, "{looks} looks");
}
