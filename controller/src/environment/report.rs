//! Puts the derivation together, and says of every fact where it stands in the CI configuration.

use std::collections::BTreeMap;

use devfleet_shared::environment::{CacheSpec, EnvironmentSpec, ServiceSpec};

use super::commands::{self, Sorted};
use super::job::{self, Job};
use super::merged::Document;
use super::purpose::Purpose;
use super::select::{self, Choice};
use super::services::{self, Services};
use super::variables::{self, Variables};
use super::yaml::Place;
use super::{Context, Derivation, DerivationError, ReportLine, Verdict, caches, gone, language, managers};

/// How many notes, dropped lines and report lines are worth keeping.
const MAX_LINES: usize = 200;
/// How many services of other jobs are worth telling.
const MAX_OPTIONAL_SERVICES: usize = 16;
/// How much of a value is shown.
const MAX_SHOWN_LETTERS: usize = 200;

/// Makes the derivation of a document.
pub(super) fn assemble(document: &Document, context: &Context) -> Result<Derivation, DerivationError> {
    let choice = select::choose(document, context)?;
    let job = choice.job;
    let mut variables = Variables::new(&job, &choice.variant, context);
    let values = variables.all()?;
    let services = services::of_job(&job, &mut variables, &values)?;
    let mut caches = caches::of_job(&job, &mut variables)?;
    let (before, script) = (job.lines("before_script"), job.lines("script"));
    let mut sorted = commands::sort(&texts(&before), &texts(&script), &context.repository_files);
    let mut notes = document.notes.clone();
    notes.extend(borrow_setup(&choice, &mut sorted, context));
    notes.extend(about_builders(&choice));
    let user = option(choice.written.user.as_deref(), "user", &mut variables, &mut notes)?;
    let pull = job::pull_policy(&choice.written, &mut notes);
    let platform = option(choice.written.platform.as_deref(), "platform", &mut variables, &mut notes)?;

    let mut report = Report { document, lines: Vec::new() };
    report.facts(&choice, (&services, &caches), &values);
    report.commands(&sorted, &job, &before, &script);
    report.borrowed(&choice, &sorted.borrowed);

    let managed = managers::caches(
        &[&sorted.setup, &sorted.verify],
        &sorted.commands,
        &values,
        &context.repository_files,
        user.as_deref(),
    );
    add_caches(&mut caches.specs, managed);
    let successor = gone::successor(&choice.image);
    let replaced = |found: &gone::Successor| {
        format!("the image {} is replaced by {}: {}", choice.image, found.image, found.reason)
    };
    notes.extend(successor.iter().map(replaced));
    notes.extend(if successor.is_none() { gone::archived(&choice.image) } else { None });
    notes.extend([&choice.notes, &services.notes, &caches.notes, &sorted.notes].into_iter().flatten().cloned());
    notes.extend(about_variables(&variables).into_iter().chain(about_verify(sorted.checks)));
    let confidence = confidence(document, &choice, sorted.checks) * if services.refused { 0.5 } else { 1.0 };
    let optional_services = optional(&choice, &services.specs, context);
    let (language, version) = pinned_language(&choice, &sorted.packages, &mut notes);
    let verdict = if document.flawed { Verdict::Invalid } else { choice.verdict };
    let mut dropped = services.dropped;
    dropped.extend(sorted.dropped);
    notes.truncate(MAX_LINES);
    dropped.truncate(MAX_LINES);
    Ok(Derivation {
        environment: EnvironmentSpec {
            image: successor.map_or_else(|| choice.image.to_string(), |found| found.image.to_string()),
            entrypoint: choice.written.entrypoint,
            user,
            platform,
            pull,
            services: services.specs,
            variables: values,
            caches: caches.specs,
            setup: sorted.setup,
            verify: sorted.verify,
        },
        ci_job: job.name.to_owned(),
        packages: sorted.packages,
        alternatives: choice.alternatives,
        dropped,
        report: report.lines,
        notes,
        confidence,
        verdict,
        written_image: choice.image.to_string(),
        language,
        version,
        optional_services,
    })
}

fn about_builders(choice: &Choice<'_>) -> Option<String> {
    let first = choice.builders.first()?;
    Some(format!("job {:?} uses what job {first:?} builds: its commands may have to run first", choice.job.name))
}

/// Adds the caches of package managers that lie neither in nor around one that the CI file names.
fn add_caches(specs: &mut Vec<CacheSpec>, managed: Vec<CacheSpec>) {
    let within =
        |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    for cache in managed {
        if !specs.iter().any(|known| within(&known.path, &cache.path) || within(&cache.path, &known.path)) {
            specs.push(cache);
        }
    }
}

/// Takes the installation of dependencies from the job before it, where CI hands the result on as a cache or an artifact.
fn borrow_setup(choice: &Choice<'_>, sorted: &mut Sorted, context: &Context) -> Option<String> {
    let installer = choice.installer.filter(|_| !sorted.installs)?;
    let (before, script) = (installer.lines("before_script"), installer.lines("script"));
    let lent = commands::sort(&texts(&before), &texts(&script), &context.repository_files);
    let mut setup: Vec<String> = lent.setup;
    setup.extend(lent.verify.into_iter().filter(|line| !sorted.setup.contains(line)));
    setup.retain(|line| !sorted.setup.contains(line));
    if setup.is_empty() {
        return None;
    }
    sorted.borrowed = setup.clone();
    setup.append(&mut sorted.setup);
    sorted.setup = setup;
    sorted.commands.extend(lent.commands);
    let known = sorted.packages.clone();
    sorted.packages.extend(lent.packages.into_iter().filter(|name| !known.contains(name)));
    Some(format!("the dependencies are installed as job {:?} does it", installer.name))
}

/// Services that other test jobs have and this one does not.
fn optional(choice: &Choice<'_>, own: &[ServiceSpec], context: &Context) -> Vec<ServiceSpec> {
    let mut optional: Vec<ServiceSpec> = Vec::new();
    for (job, variant) in &choice.siblings {
        let mut variables = Variables::new(job, variant, context);
        let Ok(found) = variables.all().and_then(|values| services::of_job(job, &mut variables, &values)) else {
            continue;
        };
        for spec in found.specs {
            let known = |other: &ServiceSpec| other.image == spec.image;
            if !own.iter().any(known) && !optional.iter().any(known) && optional.len() < MAX_OPTIONAL_SERVICES {
                optional.push(spec);
            }
        }
    }
    optional
}

/// The language and its version: the image's, that of the packages on a bare system, that of the commands.
fn language(choice: &Choice<'_>, packages: &[String]) -> (Option<String>, Option<String>) {
    let spoken = choice.tool.as_deref().and_then(language::of_tool);
    if let Some(language) = choice.image.language().or(spoken.filter(|_| !choice.image.is_bare())) {
        return (Some(language.to_owned()), language::version_in(&choice.image, language));
    }
    match (spoken, language::of_packages(packages)) {
        (Some(language), Some((brought, version))) if language == brought => (Some(language.to_owned()), version),
        (Some(language), _) => (Some(language.to_owned()), None),
        (None, Some((language, version))) => (Some(language.to_owned()), version),
        (None, None) => (None, None),
    }
}

/// The language, and its version as the repository's pins refine it.
fn pinned_language(
    choice: &Choice<'_>,
    packages: &[String],
    notes: &mut Vec<String>,
) -> (Option<String>, Option<String>) {
    let (language, version) = language(choice, packages);
    let pinned = language.as_deref().and_then(|language| choice.pins.get(language)).map(String::as_str);
    let version = select::pins::refine(pinned, version).unwrap_or_else(|(pinned, version)| {
        notes.push(format!("the repository pins version {pinned}, and CI runs {version}: the environment is CI's"));
        Some(version)
    });
    (language, version)
}

fn texts(lines: &[(String, Place)]) -> Vec<String> {
    lines.iter().map(|(text, _)| text.clone()).collect()
}

/// Expands `docker: user` or `docker: platform`; what the engine could take for something else is left out.
fn option(
    written: Option<&str>,
    what: &str,
    variables: &mut Variables<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<String>, DerivationError> {
    let Some(written) = written else { return Ok(None) };
    let value = variables.expand(written)?;
    let safe = |letter: char| letter.is_ascii_alphanumeric() || "._-:/".contains(letter);
    if !value.is_empty()
        && value.chars().all(safe)
        && value.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
    {
        return Ok(Some(value));
    }
    notes.push(format!("the image's docker {what} `{written}` is left out: it is {value:?}"));
    Ok(None)
}

fn about_variables(variables: &Variables<'_>) -> Option<String> {
    let mut names: Vec<&str> = variables.undefined.iter().chain(&variables.outside).map(String::as_str).collect();
    names.retain(|name| !name.starts_with("CI_") && !name.starts_with("GITLAB_"));
    let shown = names.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    (!names.is_empty()).then(|| format!("used, but not set in the CI file, and therefore empty: {shown}"))
}

fn about_verify(checks: Option<Purpose>) -> Option<String> {
    let text = match checks {
        None => "nothing is left that could check the result: every command of the job's script was dropped",
        Some(purpose) if purpose >= Purpose::EndToEnd => return None,
        Some(Purpose::Build | Purpose::Lint) => "the job builds or checks style; no tests were recognised",
        Some(_) => "no command of the job was recognised as a test or a build",
    };
    Some(text.to_owned())
}

fn confidence(document: &Document, choice: &Choice<'_>, checks: Option<Purpose>) -> f64 {
    let mut confidence = choice.confidence;
    for (applies, factor) in [(document.flawed, 0.8), (document.incomplete, 0.9), (checks.is_none(), 0.4)] {
        if applies {
            confidence *= factor;
        }
    }
    let confidence = if document.flawed { confidence.min(0.4) } else { confidence };
    (confidence * 100.0).round() / 100.0
}

/// Where a fact stands.
struct Origin<'a> {
    place: Place,
    job: &'a str,
    keyword: &'a str,
}

struct Report<'a> {
    document: &'a Document,
    lines: Vec<ReportLine>,
}

impl Report<'_> {
    fn add(&mut self, fact: &str, value: &str, origin: Origin<'_>) {
        if self.lines.len() >= MAX_LINES {
            return;
        }
        let mut shown: String = value.chars().take(MAX_SHOWN_LETTERS).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        let file = self.document.place(origin.place);
        let (job, keyword) = (origin.job.to_owned(), origin.keyword.to_owned());
        self.lines.push(ReportLine { fact: fact.to_owned(), value: shown, file, job, keyword });
    }

    fn facts(
        &mut self,
        choice: &Choice<'_>,
        (services, caches): (&Services, &caches::Caches),
        values: &BTreeMap<String, String>,
    ) {
        self.choice(choice);
        self.services(services, &choice.job);
        self.variables(&choice.job, values);
        self.caches(caches);
    }

    fn choice(&mut self, choice: &Choice<'_>) {
        let job = choice.job.name;
        let script = choice.job.keyword("script").map(|node| node.place).unwrap_or_default();
        self.add(
            "job",
            &format!("{job} ({})", choice.reasons.join("; ")),
            Origin { place: script, job, keyword: "script" },
        );
        let stands = choice.fact.as_ref().map(|fact| (fact.node.place, fact.origin, "image"));
        let (place, origin, keyword) = stands.unwrap_or((script, job, "script"));
        self.add("image", &choice.image.to_string(), Origin { place, job: origin, keyword });
        for (name, value) in &choice.variant {
            let place = choice.job.keyword("parallel").map(|node| node.place).unwrap_or_default();
            self.add(&format!("variable {name}"), value, Origin { place, job, keyword: "parallel:matrix" });
        }
    }

    fn variables(&mut self, job: &Job<'_>, values: &BTreeMap<String, String>) {
        for name in job.variable_names() {
            if let (Some(place), Some(value)) = (variables::place_of(job, &name), values.get(&name)) {
                let origin = if job.keyword("variables").is_some_and(|node| node.get(&name).is_some()) {
                    job.name
                } else {
                    "(global)"
                };
                self.add(&format!("variable {name}"), value, Origin { place, job: origin, keyword: "variables" });
            }
        }
    }

    fn caches(&mut self, caches: &caches::Caches) {
        for spec in &caches.specs {
            self.add(
                &format!("cache {}", spec.path),
                &spec.key,
                Origin { place: caches.place, job: &caches.origin, keyword: "cache" },
            );
        }
    }

    fn services(&mut self, services: &Services, job: &Job<'_>) {
        for (spec, place) in services.specs.iter().zip(&services.places) {
            let value = format!("{} as {}", spec.image, spec.aliases.join(", "));
            let origin = if services.origin.is_empty() { job.name } else { &services.origin };
            self.add(
                &format!("service {}", spec.name),
                &value,
                Origin { place: *place, job: origin, keyword: "services" },
            );
        }
    }

    /// Each kind of line at the entry in which the first of its lines stands.
    fn commands(&mut self, sorted: &Sorted, job: &Job<'_>, before: &[(String, Place)], script: &[(String, Place)]) {
        let inherited = job.inherited("before_script").map_or(job.name, |fact| fact.origin);
        let origin = |fact: &str| {
            let entry = *sorted.first.get(fact)?;
            Some(match before.get(entry) {
                Some((_, place)) => Origin { place: *place, job: inherited, keyword: "before_script" },
                None => Origin { place: script.get(entry - before.len())?.1, job: job.name, keyword: "script" },
            })
        };
        let dropped = sorted.dropped.iter().map(|dropped| dropped.line.as_str()).collect::<Vec<_>>().join("; ");
        for (fact, value) in [
            ("packages", sorted.packages.join(" ")),
            ("setup", sorted.setup.join("; ")),
            ("database", sorted.database.join("; ")),
            ("verify", sorted.verify.join("; ")),
            ("dropped", dropped),
        ] {
            if let Some(origin) = origin(fact) {
                self.add(fact, &value, origin);
            }
        }
    }

    /// What another job installs.
    fn borrowed(&mut self, choice: &Choice<'_>, setup: &[String]) {
        let Some(installer) = choice.installer.filter(|_| !setup.is_empty()) else { return };
        let lines = installer.lines("script");
        let place = lines.first().map(|(_, place)| *place).unwrap_or_default();
        self.add("setup", &setup.join("; "), Origin { place, job: installer.name, keyword: "script" });
    }
}
