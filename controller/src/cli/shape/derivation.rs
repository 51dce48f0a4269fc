//! The shape of `env derive`: what a script learns about an environment.

use std::collections::BTreeMap;

use devfleet_shared::environment::{PullPolicy, Recipe, ServiceSpec};

use super::{Shape, list, record, text};
use crate::environment::{Alternative, Derivation, DerivationError, Dropped, ReportLine, Verdict, cache_kind};

/// Shapes a derivation.
pub fn derivation(derived: &Derivation, recipe: &Recipe) -> Shape {
    let environment = &derived.environment;
    let caches = environment.caches.iter().map(|cache| {
        record([
            ("path", text(&cache.path)),
            ("key", text(&cache.key)),
            ("kind", cache_kind(&cache.path).into()),
            ("lock_files", (&cache.lock_files).into()),
        ])
    });
    record([
        ("image", text(&derived.written_image)),
        ("image_resolved", text(&environment.image)),
        ("language", text(derived.language.as_deref().unwrap_or_default())),
        ("version", text(derived.version.as_deref().unwrap_or_default())),
        ("entrypoint", strings(environment.entrypoint.as_ref())),
        ("user", text(environment.user.as_deref().unwrap_or_default())),
        ("platform", text(environment.platform.as_deref().unwrap_or_default())),
        ("pull_policy", text(environment.pull.map(PullPolicy::name).unwrap_or_default())),
        ("services", list(&environment.services, service)),
        ("variables", texts(&environment.variables)),
        ("caches", Shape::List(caches.collect())),
        ("packages", (&derived.packages).into()),
        ("setup", (&environment.setup).into()),
        ("verify", (&environment.verify).into()),
        ("dropped", list(&derived.dropped, dropped)),
        ("job", text(&derived.ci_job)),
        ("alternatives", list(&derived.alternatives, alternative)),
        ("optional_services", list(&derived.optional_services, service)),
        ("confidence", derived.confidence.into()),
        ("verdict", derived.verdict.name().into()),
        ("notes", (&derived.notes).into()),
        ("report", list(&derived.report, report_line)),
        ("recipe_digest", recipe.digest.to_string().into()),
    ])
}

/// Shapes a configuration that gives no environment: `invalid` if it is none, `fallback` if nothing in it names an image.
pub fn refusal(error: &DerivationError) -> Shape {
    let verdict = match error {
        DerivationError::NoImage { .. } | DerivationError::UnresolvedImage { .. } => Verdict::Fallback,
        _ => Verdict::Invalid,
    };
    let none = || Shape::List(Vec::new());
    let image = match error {
        DerivationError::UnresolvedImage { written, .. } => text(written),
        _ => Shape::Null,
    };
    record([
        ("image", image),
        ("image_resolved", Shape::Null),
        ("language", Shape::Null),
        ("version", Shape::Null),
        ("entrypoint", Shape::Null),
        ("user", Shape::Null),
        ("platform", Shape::Null),
        ("pull_policy", Shape::Null),
        ("services", none()),
        ("variables", Shape::Record(Vec::new())),
        ("caches", none()),
        ("packages", none()),
        ("setup", none()),
        ("verify", none()),
        ("dropped", none()),
        ("job", Shape::Null),
        ("alternatives", none()),
        ("optional_services", none()),
        ("confidence", 0.0.into()),
        ("verdict", verdict.name().into()),
        ("notes", Shape::List(vec![error.to_string().into()])),
        ("report", none()),
        ("recipe_digest", Shape::Null),
    ])
}

fn service(service: &ServiceSpec) -> Shape {
    record([
        ("image", text(&service.image)),
        ("aliases", (&service.aliases).into()),
        ("command", strings(service.command.as_ref())),
        ("entrypoint", strings(service.entrypoint.as_ref())),
        ("variables", texts(&service.variables)),
    ])
}

fn strings(list: Option<&Vec<String>>) -> Shape {
    list.map_or(Shape::Null, Shape::from)
}

fn texts(values: &BTreeMap<String, String>) -> Shape {
    Shape::Record(values.iter().map(|(name, value)| (name.clone(), Shape::from(value))).collect())
}

fn dropped(dropped: &Dropped) -> Shape {
    record([("line", text(&dropped.line)), ("reason", text(&dropped.reason))])
}

fn alternative(other: &Alternative) -> Shape {
    record([("job", text(&other.job)), ("image", text(&other.image)), ("score", other.score.into())])
}

fn report_line(line: &ReportLine) -> Shape {
    record([
        ("fact", text(&line.fact)),
        ("value", text(&line.value)),
        ("file", text(&line.file)),
        ("job", text(&line.job)),
        ("keyword", text(&line.keyword)),
    ])
}
