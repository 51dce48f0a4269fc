//! The shapes of hosts, tokens, sweeps and findings.

use devfleet_proto::v1;

use super::{Shape, list, moment, optional, record, text};

/// Says whether operators let a host take new jobs. One from before such wishes does.
pub fn is_open(host: &v1::Host) -> bool {
    matches!(host.state.as_str(), "" | "active")
}

/// Says whether a host takes work: connected, open, not in quarantine, and nothing wrong with it.
pub fn is_ready(host: &v1::Host) -> bool {
    host.connected
        && is_open(host)
        && host.quarantine.is_empty()
        && host.inventory.as_ref().is_some_and(|inventory| inventory.problems.is_empty())
}

/// Shapes a host. `ready` is ours, see [`is_ready`].
pub fn host(host: &v1::Host) -> Shape {
    record([
        ("id", text(&host.id)),
        ("name", text(&host.name)),
        ("ready", is_ready(host).into()),
        ("connected", host.connected.into()),
        ("last_seen", moment(host.last_seen_unix_ms)),
        ("joined", moment(host.joined_unix_ms)),
        ("inventory", optional(&host.inventory, inventory)),
        ("attempts", (&host.attempts).into()),
        ("certificate_ends", moment(host.certificate_ends_unix_ms)),
        ("labels", (&labels(host)).into()),
        ("state", text(&host.state)),
        ("state_by", text(&host.state_by)),
        ("state_reason", text(&host.state_reason)),
        ("state_since", moment(host.state_since_unix_ms)),
        ("drain_deadline", moment(host.drain_deadline_unix_ms)),
        ("drain_then", text(&host.drain_then)),
        ("running", host.running.into()),
        ("stopping", host.stopping.into()),
        ("held", host.held.into()),
        ("quarantine", text(&host.quarantine)),
        ("quarantine_until", moment(host.quarantine_until_unix_ms)),
        ("recent_failures", u64::from(host.recent_failures).into()),
        ("protocol", u64::from(host.protocol).into()),
    ])
}

/// Writes a host's labels as `NAME=VALUE`, in order.
pub fn labels(host: &v1::Host) -> Vec<String> {
    let mut labels: Vec<String> = host.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    labels
}

fn inventory(inventory: &v1::HostInventory) -> Shape {
    record([
        ("total", optional(&inventory.total, resources)),
        ("free", optional(&inventory.free, resources)),
        ("engine_version", text(&inventory.engine_version)),
        ("engine_api", text(&inventory.engine_api)),
        ("storage_driver", text(&inventory.storage_driver)),
        ("host_version", text(&inventory.host_version)),
        ("images", inventory.images.into()),
        ("caches", inventory.caches.into()),
        ("problems", (&inventory.problems).into()),
        ("holds", list(&inventory.holds, hold)),
        ("runtimes", (&inventory.runtimes).into()),
    ])
}

/// Shapes a controller.
pub fn controller(controller: &v1::Controller) -> Shape {
    record([
        ("id", text(&controller.id)),
        ("address", text(&controller.address)),
        ("version", text(&controller.version)),
        ("protocol", u64::from(controller.protocol).into()),
        ("started", moment(controller.started_unix_ms)),
        ("leads", controller.leads.into()),
        ("leads_since", moment(controller.leads_since_unix_ms)),
        ("term", controller.term.into()),
    ])
}

fn hold(hold: &v1::Hold) -> Shape {
    record([("attempt", text(&hold.attempt)), ("job", text(&hold.job)), ("until", moment(hold.until_unix_ms))])
}

fn resources(amount: &v1::Resources) -> Shape {
    record([
        ("cpu_millis", amount.cpu_millis.into()),
        ("memory_bytes", amount.memory_bytes.into()),
        ("disk_bytes", amount.disk_bytes.into()),
        ("disk_inodes", amount.disk_inodes.into()),
        ("slots", amount.slots.into()),
    ])
}

/// Shapes a token without its secret.
pub fn token(token: &v1::Token) -> Shape {
    record([
        ("id", text(&token.id)),
        ("name", text(&token.name)),
        ("role", text(&token.role)),
        ("created", moment(token.created_unix_ms)),
        ("expires", moment(token.expires_unix_ms)),
        ("revoked", token.revoked.into()),
    ])
}

/// Shapes what was swept on one host.
pub fn host_sweep(sweep: &v1::HostSweep) -> Shape {
    let object = |object: &v1::SweptObject| {
        record([
            ("kind", text(&object.kind)),
            ("name", text(&object.name)),
            ("reason", text(&object.reason)),
            ("removed", object.removed.into()),
            ("error", text(&object.error)),
        ])
    };
    record([("host", text(&sweep.host)), ("objects", list(&sweep.objects, object)), ("error", text(&sweep.error))])
}

/// Shapes a finding.
pub fn finding(finding: &v1::Finding) -> Shape {
    record([
        ("subject", text(&finding.subject)),
        ("check", text(&finding.check)),
        ("ok", finding.ok.into()),
        ("message", text(&finding.message)),
    ])
}
