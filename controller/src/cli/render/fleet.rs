//! Hosts, tokens, sweeps and findings, for people.

use devfleet_proto::v1;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::protocol::PROTOCOL;

use super::super::output::Paint;
use super::super::shape::fleet::labels;
use super::standing::{self, state};
use super::{age, bytes, fields, heading, plain, short, span, table};

/// Lists hosts.
pub fn hosts(hosts: &[v1::Host], now: Timestamp) -> String {
    let rows = hosts.iter().map(|host| {
        let inventory = host.inventory.clone().unwrap_or_default();
        let (total, free) = (inventory.total.unwrap_or_default(), inventory.free.unwrap_or_default());
        [
            plain(short(&host.id)),
            plain(&host.name),
            state(host),
            plain(format!("{} of {}", free.slots, total.slots)),
            plain(bytes(free.memory_bytes)),
            plain(bytes(free.disk_bytes)),
            plain(standing::attempts(host)),
            plain(version(host)),
            plain(age(host.last_seen_unix_ms, now)),
        ]
    });
    table(
        ["HOST", "NAME", "STATE", "FREE SLOTS", "FREE MEMORY", "FREE DISK", "ATTEMPTS", "VERSION", "SEEN"],
        rows,
        "No hosts yet. Let one join with a token: `devfleet join-token create`.",
    )
}

/// The daemon's version and, where it is not the newest, the protocol that it speaks.
fn version(host: &v1::Host) -> String {
    let version = host.inventory.as_ref().map(|inventory| inventory.host_version.clone()).unwrap_or_default();
    match host.protocol {
        0 | PROTOCOL => version,
        older => format!("{version} (protocol {older})"),
    }
}

/// Lists controllers.
pub fn controllers(controllers: &[v1::Controller], now: Timestamp) -> String {
    let rows = controllers.iter().map(|controller| {
        let leads = match (controller.leads, controller.leads_since_unix_ms) {
            (false, _) => plain(""),
            (true, 0) => (Paint::Good, "leads".into()),
            (true, since) => (Paint::Good, format!("leads for {} (term {})", age(since, now), controller.term)),
        };
        [
            plain(short(&controller.id)),
            plain(&controller.address),
            plain(&controller.version),
            leads,
            plain(age(controller.started_unix_ms, now)),
        ]
    });
    table(["CONTROLLER", "ADDRESS", "VERSION", "LEADS", "UP"], rows, "No controllers.")
}

/// Shows one host.
pub fn host(host: &v1::Host, now: Timestamp) -> String {
    let (paint, name) = state(host);
    let inventory = host.inventory.clone().unwrap_or_default();
    let (total, free) = (inventory.total.unwrap_or_default(), inventory.free.unwrap_or_default());
    let holds = inventory.holds.iter().map(|hold| {
        let left = span(Timestamp(hold.until_unix_ms).since(now).as_secs());
        format!("attempt {} of job {}, {left} more", hold.attempt, short(&hold.job))
    });
    let mut out = fields([
        ("host", host.id.clone()),
        ("name", host.name.clone()),
        ("state", paint.on(&name)),
        ("wanted", standing::wanted(host, now)),
        ("quarantine", standing::quarantine(host, now)),
        ("failures", failures(host)),
        ("problems", inventory.problems.join("\n")),
        ("labels", labels(host).join("\n")),
        ("seen", format!("{} ago", age(host.last_seen_unix_ms, now))),
        ("joined", format!("{} ago", age(host.joined_unix_ms, now))),
        ("certificate", certificate(host.certificate_ends_unix_ms, now)),
        ("engine", engine(&inventory)),
        ("runtimes", inventory.runtimes.join(", ")),
        ("daemon", version(host)),
        ("images", inventory.images.to_string()),
        ("caches", inventory.caches.to_string()),
        ("attempts", host.attempts.join("\n")),
        ("kept", holds.collect::<Vec<_>>().join("\n")),
    ]);
    out.push_str(&heading("Capacity"));
    let row = |name: &str, free: String, total: String| [plain(name), plain(free), plain(total)];
    let rows = [
        row("slots", free.slots.to_string(), total.slots.to_string()),
        row("processors", millis(free.cpu_millis), millis(total.cpu_millis)),
        row("memory", bytes(free.memory_bytes), bytes(total.memory_bytes)),
        row("disk", bytes(free.disk_bytes), bytes(total.disk_bytes)),
        row("inodes", free.disk_inodes.to_string(), total.disk_inodes.to_string()),
    ];
    out.push_str(&table(["WHAT", "FREE", "TOTAL"], rows, ""));
    out
}

fn failures(host: &v1::Host) -> String {
    match host.recent_failures {
        0 => String::new(),
        count => format!("{count} lately through its own fault"),
    }
}

fn certificate(ends_unix_ms: u64, now: Timestamp) -> String {
    match ends_unix_ms {
        0 => String::new(),
        ends if ends <= now.0 => Paint::Bad.on(&format!("ended {} ago", age(ends, now))),
        ends => format!("valid for {}", span(Timestamp(ends).since(now).as_secs())),
    }
}

fn engine(inventory: &v1::HostInventory) -> String {
    if inventory.engine_version.is_empty() {
        return String::new();
    }
    format!("{} (API {}, {})", inventory.engine_version, inventory.engine_api, inventory.storage_driver)
}

fn millis(cpu_millis: u64) -> String {
    format!("{}.{}", cpu_millis / 1_000, cpu_millis % 1_000 / 100)
}

/// Lists tokens.
pub fn tokens(tokens: &[v1::Token], now: Timestamp) -> String {
    let rows = tokens.iter().map(|token| {
        let state = match token.expires_unix_ms {
            _ if token.revoked => (Paint::Bad, "revoked".to_owned()),
            0 => (Paint::Good, "valid".to_owned()),
            ends if ends <= now.0 => (Paint::Bad, "expired".to_owned()),
            ends => (Paint::Good, format!("valid for {}", span(Timestamp(ends).since(now).as_secs()))),
        };
        [plain(&token.id), plain(&token.name), plain(&token.role), state, plain(age(token.created_unix_ms, now))]
    });
    table(["TOKEN", "NAME", "ROLE", "STATE", "AGE"], rows, "No tokens.")
}

/// Shows what was swept, or would be.
pub fn sweep(sweeps: &[v1::HostSweep], dry_run: bool) -> String {
    let mut out = String::new();
    for sweep in sweeps {
        out.push_str(&Paint::Strong.on(&sweep.host));
        out.push('\n');
        if !sweep.error.is_empty() {
            out.push_str(&format!("{}\n", Paint::Bad.on(&sweep.error)));
            continue;
        }
        let rows = sweep.objects.iter().map(|object| {
            let verdict = match (object.removed, object.error.is_empty()) {
                (true, _) => (Paint::Good, "removed".to_owned()),
                (false, false) => (Paint::Bad, format!("failed: {}", object.error)),
                (false, true) if dry_run => (Paint::Plain, "listed".to_owned()),
                (false, true) => (Paint::Plain, "stays".to_owned()),
            };
            [plain(&object.kind), plain(&object.name), verdict, plain(&object.reason)]
        });
        out.push_str(&table(["KIND", "NAME", "WHAT HAPPENED", "WHY"], rows, "Nothing to remove."));
    }
    if out.is_empty() { "No host is connected, so nothing was swept.\n".into() } else { out }
}

/// Shows findings, the wrong ones with what to do.
pub fn findings(findings: &[v1::Finding]) -> String {
    let rows = findings.iter().map(|finding| {
        let mark = if finding.ok { (Paint::Good, "ok".to_owned()) } else { (Paint::Bad, "WRONG".to_owned()) };
        [mark, plain(&finding.subject), plain(&finding.check), plain(&finding.message)]
    });
    table(["", "WHERE", "CHECK", "FOUND"], rows, "Nothing was checked.")
}

#[cfg(test)]
mod tests {
    use super::super::super::output::paint;
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn sample() -> v1::Host {
        let amount = |slots| v1::Resources {
            cpu_millis: 2_500,
            memory_bytes: 8 << 30,
            disk_bytes: 50 << 30,
            disk_inodes: 1_000,
            slots,
        };
        v1::Host {
            id: "11111111-2222-4333-8444-555555555555".into(),
            name: "box1".into(),
            connected: true,
            last_seen_unix_ms: NOW.0 - 2_000,
            joined_unix_ms: NOW.0 - 7_200_000,
            inventory: Some(v1::HostInventory {
                total: Some(amount(10)),
                free: Some(amount(9)),
                engine_version: "28.1".into(),
                engine_api: "1.49".into(),
                storage_driver: "overlay2".into(),
                host_version: "0.1.0".into(),
                ..Default::default()
            }),
            attempts: vec!["a3f91c20".into()],
            certificate_ends_unix_ms: NOW.0 + 86_400_000,
            labels: [("zone".to_owned(), "eu".to_owned())].into(),
            state: "active".into(),
            running: 1,
            protocol: PROTOCOL,
            ..v1::Host::default()
        }
    }

    #[test]
    fn hosts_read_as_a_table_with_their_state() {
        let broken = v1::HostInventory { problems: vec!["disk full".into()], ..sample().inventory.expect("there") };
        let not_ready = v1::Host { inventory: Some(broken), name: "box2".into(), protocol: 1, stopping: 2, ..sample() };
        let gone = v1::Host { connected: false, name: "box3".into(), ..sample() };
        let expected = "\
HOST      NAME  STATE         FREE SLOTS  FREE MEMORY  FREE DISK  ATTEMPTS       VERSION             SEEN
11111111  box1  ready         9 of 10     8.0 GiB      50 GiB     1 run          0.1.0               2s
11111111  box2  not ready     9 of 10     8.0 GiB      50 GiB     1 run, 2 stop  0.1.0 (protocol 1)  2s
11111111  box3  disconnected  9 of 10     8.0 GiB      50 GiB     1 run          0.1.0               2s
";
        assert_eq!(paint(&hosts(&[sample(), not_ready, gone], NOW), false), expected);
    }

    #[test]
    fn a_host_reads_as_a_page() {
        let page = paint(&host(&sample(), NOW), false);
        assert!(page.contains("engine:       28.1 (API 1.49, overlay2)\n"), "{page}");
        assert!(page.contains("certificate:  valid for 24h\n"), "{page}");
        assert!(page.contains("processors  2.5      2.5\n"), "{page}");
    }

    #[test]
    fn tokens_show_whether_they_are_of_use() {
        let token = |revoked, expires_unix_ms| v1::Token {
            id: "t1".into(),
            name: "ci".into(),
            role: "submitter".into(),
            created_unix_ms: NOW.0,
            expires_unix_ms,
            revoked,
        };
        let shown = paint(
            &tokens(&[token(false, 0), token(true, 0), token(false, 1), token(false, NOW.0 + 60_000)], NOW),
            false,
        );
        let states: Vec<_> = shown.lines().skip(1).map(|line| line[24..37].trim()).collect();
        assert_eq!(states, ["valid", "revoked", "expired", "valid for 60s"], "{shown}");
    }

    #[test]
    fn a_sweep_says_what_went_what_stays_and_what_resists() {
        let object = |name: &str, removed, error: &str| v1::SweptObject {
            kind: "volume".into(),
            name: name.into(),
            reason: "owned by nobody".into(),
            removed,
            error: error.into(),
        };
        let objects = vec![object("a", true, ""), object("b", false, "in use"), object("c", false, "")];
        let sweeps = [v1::HostSweep { host: "box1".into(), objects, error: String::new() }];
        let shown = paint(&sweep(&sweeps, false), false);
        assert!(shown.contains("volume  b     failed: in use  owned by nobody\n"), "{shown}");
        assert!(shown.contains("volume  c     stays"), "{shown}");
        assert!(paint(&sweep(&sweeps, true), false).contains("volume  c     listed"));
    }
}
