//! What `devfleet top` shows, on a screen in memory.

use devfleet_shared::clock::Timestamp;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::cli::output::paint;

fn seen() -> Seen {
    let total =
        v1::Resources { slots: 10, cpu_millis: 8_000, memory_bytes: 8 << 30, disk_bytes: 100 << 30, disk_inodes: 9 };
    let free =
        v1::Resources { slots: 7, cpu_millis: 4_000, memory_bytes: 2 << 30, disk_bytes: 50 << 30, disk_inodes: 9 };
    let inventory = v1::HostInventory { total: Some(total), free: Some(free), ..v1::HostInventory::default() };
    let host = |id: &str, name: &str, connected| v1::Host {
        id: id.into(),
        name: name.into(),
        connected,
        inventory: connected.then(|| inventory.clone()),
        last_seen_unix_ms: 59_000,
        attempts: vec!["a3f91c20".into()],
        ..v1::Host::default()
    };
    let job = |id: &str, phase: &str, submitted_unix_ms, title: &str| v1::Job {
        id: format!("{id}-0000-4000-8000-000000000000"),
        project: "web".into(),
        phase: phase.into(),
        submitted_unix_ms,
        title: title.into(),
        ..v1::Job::default()
    };
    let mut running = job("aaaaaaaa", "running", 1_000, "Fix \u{1b}[31mit");
    let state =
        v1::AttemptState { phase: v1::AttemptPhase::Running.into(), step: v1::Step::Agent.into(), result: None };
    let attempt = v1::Attempt {
        host: "h1".into(),
        assigned_unix_ms: 30_000,
        state: Some(state),
        tokens: 48_312,
        ..v1::Attempt::default()
    };
    running.attempts = vec![attempt];
    let mut queued = job("bbbbbbbb", "queued", 5_000, "Later");
    queued.waiting = vec!["parallelism: 5 of 5 jobs run (max_running)".into()];
    let jobs = vec![running, queued, job("cccccccc", "awaiting-approval", 50_000, "Ask")];
    let settings = v1::Settings { max_running: 5, ..v1::Settings::default() };
    Seen { hosts: vec![host("h2", "zeta", false), host("h1", "alpha", true)], jobs, settings, at: Timestamp(60_000) }
}

fn drawn(screen: &Screen, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw::draw(frame, screen)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

#[test]
fn the_hosts_are_shown_with_what_is_used_and_what_is_wrong() {
    let screen = Screen { seen: seen(), ..Screen::default() };
    assert_eq!(
        drawn(&screen, 100, 6),
        [
            "1 of 2 hosts connected   1 of 5 jobs running   1 queued   1 await approval",
            " Hosts 2   Running 1   Queue 2",
            "HOST ^  SLOTS    CPU   MEMORY              DISK               JOBS  SEEN  PROBLEMS",
            "alpha   3 of 10  50 %  6.0 GiB of 8.0 GiB  50 GiB of 100 GiB  1     1s",
            "zeta    0 of 0   0 %   0 B of 0 B          0 B of 0 B         1     1s    not connected",
            "q quit   tab next table   left/right sort by   r reverse   up/down scroll",
        ]
    );
}

#[test]
fn keys_turn_to_other_tables_and_sort_them() {
    let mut screen = Screen { seen: seen(), ..Screen::default() };
    assert!(screen.on(KeyCode::Tab, false));
    let running = drawn(&screen, 100, 6).join("\n");
    assert!(running.contains("aaaaaaaa  web      alpha  agent  30s  48k"), "{running}");
    assert!(!running.contains('\u{1b}'));
    assert!(screen.on(KeyCode::Tab, false));
    let first = |screen: &Screen| drawn(screen, 100, 6)[3].clone();
    assert!(first(&screen).contains("bbbbbbbb") && first(&screen).contains("5 of 5 jobs run"), "{}", first(&screen));
    (0..4).for_each(|_| assert!(screen.on(KeyCode::Right, false)));
    assert!(first(&screen).starts_with("cccccccc"), "{}", first(&screen));
    assert!(screen.on(KeyCode::Char('r'), false));
    assert!(first(&screen).starts_with("bbbbbbbb"));
    assert!(screen.on(KeyCode::Char('c'), false));
    assert!(!screen.on(KeyCode::Char('c'), true) && !screen.on(KeyCode::Char('q'), false));
}

#[test]
fn any_size_is_drawn_and_scrolling_stops_at_the_end() {
    let mut screen = Screen { seen: seen(), ..Screen::default() };
    (0..9).for_each(|_| assert!(screen.on(KeyCode::Down, false)));
    for (width, height) in [(1, 1), (3, 2), (20, 4), (500, 3), (80, 24)] {
        assert_eq!(drawn(&screen, width, height).len(), height as usize);
    }
    assert!(drawn(&screen, 80, 4)[2].starts_with("HOST") || drawn(&screen, 80, 5)[3].starts_with("zeta"));
}

#[test]
fn a_controller_that_is_away_is_said_and_the_last_view_stays() {
    let mut screen = Screen { seen: seen(), ..Screen::default() };
    screen.learn(Err(CliError::Usage("no answer".into())));
    let lines = drawn(&screen, 100, 6);
    assert!(lines[5].starts_with("trying again:") && lines[5].contains("no answer"), "{}", lines[5]);
    assert!(lines[3].starts_with("alpha"));
    screen.learn(Ok(Seen::default()));
    assert!(drawn(&screen, 100, 6)[5].starts_with("q quit"));
}

#[test]
fn without_a_terminal_all_tables_are_printed_as_text() {
    let printed = paint(&text(&seen()), false);
    for expected in ["1 of 2 hosts connected", "\nHosts\n", "\nRunning\n", "\nQueue\n", "a person's approval", "alpha"]
    {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
}
