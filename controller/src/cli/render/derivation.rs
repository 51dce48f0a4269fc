//! A derivation on one page, for the people who ask what their CI configuration stands for.

use devfleet_shared::environment::{Recipe, ServiceSpec};

use super::super::harmless::one_line;
use super::{fields, heading, plain, table};
use crate::environment::{Derivation, Verdict};

/// How many lines of a list are shown before it is cut.
const MAX_LINES: usize = 20;

/// Shows the environment first, then how sure it is, then what was left out.
pub fn derivation(derived: &Derivation, recipe: &Recipe) -> String {
    let environment = &derived.environment;
    let language = [&derived.language, &derived.version].into_iter().flatten().cloned().collect::<Vec<_>>().join(" ");
    let mut out = fields([
        ("verdict", verdict(derived)),
        ("CI job", derived.ci_job.clone()),
        ("image", image(derived)),
        ("language", language),
        ("services", cut(environment.services.iter().map(service))),
        ("packages", derived.packages.join(" ")),
        ("setup", cut(environment.setup.iter().cloned())),
        ("verify", cut(environment.verify.iter().cloned())),
        ("caches", cut(environment.caches.iter().map(|cache| cache.path.clone()))),
        ("variables", cut(variables(derived))),
        ("optional", cut(derived.optional_services.iter().map(service))),
        ("recipe", recipe.digest.to_string()),
    ]);
    if !derived.notes.is_empty() {
        out.push_str(&heading("To know"));
        out.push_str(&super::indented(&derived.notes.join("\n")));
    }
    if !derived.dropped.is_empty() {
        out.push_str(&heading("Left out"));
        let rows = derived.dropped.iter().take(MAX_LINES);
        let rows = rows.map(|dropped| [plain(one_line(&dropped.line, 60)), plain(&dropped.reason)]);
        out.push_str(&table(["LINE", "WHY"], rows, ""));
    }
    if !derived.alternatives.is_empty() {
        out.push_str(&heading("Other CI jobs that were considered"));
        let rows = derived
            .alternatives
            .iter()
            .map(|other| [plain(&other.job), plain(&other.image), plain(other.score.to_string())]);
        out.push_str(&table(["JOB", "IMAGE", "SCORE"], rows, ""));
    }
    out
}

fn verdict(derived: &Derivation) -> String {
    let meaning = match derived.verdict {
        Verdict::Derived => "the CI configuration says it",
        Verdict::Ambiguous => "the CI configuration says more than one thing; read below what was taken",
        Verdict::Fallback => "the CI configuration does not say it; this is a guess",
        Verdict::Invalid => "GitLab refuses this configuration; read below why",
    };
    format!("{}, {:.0} % sure: {meaning}", derived.verdict.name(), derived.confidence * 100.0)
}

fn image(derived: &Derivation) -> String {
    let resolved = &derived.environment.image;
    match derived.written_image == *resolved {
        true => resolved.clone(),
        false => format!("{resolved} (written as {})", derived.written_image),
    }
}

fn service(service: &ServiceSpec) -> String {
    format!("{} as {}", service.image, service.aliases.join(", "))
}

/// The variables of the CI file; what every job has is not worth the room.
fn variables(derived: &Derivation) -> impl Iterator<Item = String> {
    let own = derived.environment.variables.iter().filter(|(name, _)| !name.starts_with("CI") && *name != "GITLAB_CI");
    own.map(|(name, value)| format!("{name}={}", one_line(value, 80)))
}

fn cut(items: impl Iterator<Item = String>) -> String {
    let mut lines: Vec<String> = items.take(MAX_LINES + 1).collect();
    if lines.len() > MAX_LINES {
        lines.truncate(MAX_LINES);
        lines.push("… (`--output json` shows all)".to_owned());
    }
    lines.join("\n")
}
